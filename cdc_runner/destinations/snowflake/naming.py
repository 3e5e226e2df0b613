"""Names of objects at Snowflake: quoted always, folded as the destination is set."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from cdc_runner.destinations.snowflake.streaming import Pipe
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableId, TableSchema, quote_identifier
from cdc_runner.spec import SnowflakeAddress

POSITION = "_ROSETTA_POSITION"
OPERATION = "_ROSETTA_OP"
COMMITTED_AT = "_ROSETTA_COMMITTED_AT"
TRANSACTION = "_ROSETTA_XID"
UNCHANGED = "_ROSETTA_UNCHANGED"
LANDING_COLUMNS = (POSITION, OPERATION, COMMITTED_AT, TRANSACTION, UNCHANGED)
"""What a landing table has beside the source's columns; all text."""

ROW = "_ROSETTA_ROW"
"""Of a target without a key: the position of the insert that made the row, which tells equal rows apart."""

DELETED = "_ROSETTA_DELETED"
"""Of a target with soft deletes: whether the source has deleted the row."""

DELETED_AT = "_ROSETTA_DELETED_AT"
"""Beside it: when the source committed that, UTC."""

MAX_IDENTIFIER = 255


@dataclass(frozen=True, slots=True)
class ObjectName:
    """A table, stream or task by its stored names."""

    database: str
    schema: str
    name: str

    @property
    def quoted(self) -> str:
        """As SQL."""
        return ".".join(map(quote_identifier, (self.database, self.schema, self.name)))


@dataclass(frozen=True, slots=True)
class TableNames:
    """Everything that belongs to one target table."""

    target: ObjectName
    landing: ObjectName
    stream: ObjectName
    task: ObjectName
    pipe: Pipe
    channel: str


class Naming:
    """Names for one pipeline and destination."""

    def __init__(self, address: SnowflakeAddress, pipeline: str, destination: str) -> None:
        """Args:
        address: says where and how names are folded.
        pipeline: identity of the pipeline.
        destination: identity of the destination.
        """
        self._address = address
        self._landing = (address.landing_database or address.database, address.landing_schema or address.schema)
        self._writer = _plain(f"{pipeline}_{destination}", f"{pipeline}\0{destination}")

    def fold(self, name: str) -> str:
        """Return an identifier of the source as the destination stores it."""
        return name.upper() if self._address.identifiers == "upper" else name

    def table(self, target: TableId) -> TableNames:
        """Return the names of a target table and of what belongs to it."""
        address, folded = self._address, self.fold(target.name)
        # Names in the addresses of the streaming API are taken as they are stored: upper case is safe everywhere.
        plain = folded.upper()
        landing = self._object(f"LANDING_{plain}")
        return TableNames(
            target=ObjectName(address.database, self.fold(target.schema), folded),
            landing=landing,
            stream=self._object(f"ROSETTA_STREAM_{plain}"),
            task=self._object(f"ROSETTA_MERGE_{plain}"),
            pipe=Pipe(landing.database, landing.schema, landing.name + address.pipe_suffix),
            channel=f"{self._writer}_{_plain(plain, plain)}",
        )

    def state(self, name: str) -> ObjectName:
        """Return a table in which Rosetta keeps something."""
        return self._object(f"ROSETTA_{name}")

    def state_pipe(self, name: str) -> Pipe:
        """Return the pipe of such a table."""
        table = self.state(name)
        return Pipe(table.database, table.schema, table.name + self._address.pipe_suffix)

    def channel(self, purpose: str) -> str:
        """Return a channel of this pipeline and destination that belongs to no target table."""
        return f"{self._writer}_{purpose}"

    def _object(self, name: str) -> ObjectName:
        return ObjectName(*self._landing, name)

    def columns(self, schema: TableSchema) -> dict[str, str]:
        """Return the stored names of a table's columns by those of the source.

        Raises:
            RosettaError: DESTINATION_SCHEMA when two are the same after folding, or one is Rosetta's own.
        """
        folded = {name: self.fold(name) for name in schema.stream_names}
        seen: dict[str, str] = {}
        for name, stored in folded.items():
            # The service matches columns of a landing table without regard to case.
            other = seen.setdefault(stored.upper(), name)
            if other != name:
                raise RosettaError(
                    ErrorKind.DESTINATION_SCHEMA,
                    f"table {schema.table}: columns {other} and {name} differ only in case, which Snowflake's "
                    "streaming does not tell apart; rename one at the source or leave the table out",
                )
            if stored.upper().startswith("_ROSETTA_") or len(stored) > MAX_IDENTIFIER:
                raise RosettaError(
                    ErrorKind.DESTINATION_SCHEMA,
                    f"table {schema.table}: column {name} cannot have this name at Snowflake",
                )
        return folded


def _plain(name: str, identity: str) -> str:
    """Return a name of letters, digits and underscores; different identities give different names."""
    plain = re.sub(r"[^A-Z0-9_]", "_", name.upper())
    if plain == name and "_" not in name:
        return plain
    return f"{plain[:100]}_{hashlib.sha256(identity.encode()).hexdigest()[:8].upper()}"
