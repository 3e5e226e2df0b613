"""A Snowflake destination on the stand-in, and events made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from pydantic import SecretStr

from cdc_runner.capture.base import TableVersion
from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.snowflake.channel import Patience
from cdc_runner.destinations.snowflake.destination import SnowflakeDestination
from cdc_runner.position import Position
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema
from cdc_runner.shaping.net import NetChange, NetKind
from cdc_runner.spec import DestinationSpec, PipelineSettings, ResolvedSync, SnowflakeAddress
from tests.support.snowflake_door import ACCOUNT, USER
from tests.support.snowflake_server import DATABASE


class Account(Protocol):
    """A stand-in for an account."""

    url: str

    def private_key(self) -> str:
        """The user's private key as PEM."""
        ...


IMPATIENT = Patience(commit_seconds=5.0, poll_seconds=(0.005, 0.02))


def address_of(server: Account, **options: Any) -> SnowflakeAddress:
    """How to reach the stand-in."""
    key = SecretStr(server.private_key())
    return SnowflakeAddress(ACCOUNT, USER, key, DATABASE, "SHOP", host=server.url, **options)


def destination_of(server: Account, **options: Any) -> SnowflakeDestination:
    """A destination on the stand-in, not opened."""
    settings = options.pop("settings", PipelineSettings())
    fetch = options.pop("fetch", lambda schema, keys: {})

    def no_source() -> Any:
        raise AssertionError("no source is needed")

    return SnowflakeDestination(
        DestinationSpec(1, 1, "lake", "snowflake", address_of(server, **options), "SHOP"),
        "shop",
        settings,
        directory=Path("/nonexistent"),
        fetch=fetch,
        source=no_source,
        patience=IMPATIENT,
    )


def table(*columns: Column, key: tuple[str, ...] = ("id",), name: str = "item") -> TableSchema:
    """A source table."""
    identity = ReplicaIdentity.DEFAULT if key else ReplicaIdentity.FULL
    return TableSchema(TableId("public", name), columns, key, key, identity)


ITEM = table(
    Column("id", "integer", "int4", number=1),
    Column("name", "text", "text", number=2),
    Column("price", "numeric(10,2)", "numeric", number=3),
)
LOG = table(Column("at", "integer", "int4", number=1), Column("line", "text", "text", number=2), key=(), name="log")


def sync_of(schema: TableSchema) -> ResolvedSync:
    """Its target."""
    return ResolvedSync(None, schema.table, TableId("SHOP", schema.table.name))


def ready(destination: SnowflakeDestination, *schemas: TableSchema) -> None:
    """Prepare targets as if they had been loaded from empty tables."""
    session = destination._open_session()
    destination.start_at(Position(1))
    for schema in schemas:
        session.objects.make(sync_of(schema), session.objects.shape(schema, sync_of(schema)), None)
    destination.remember_all([TableState(sync_of(one), True, Position(1), one) for one in schemas])


def events(schema: TableSchema, lsn: int, rows: Sequence[tuple[Any, ...]], first: int = 2) -> NetChange:
    """Events of one transaction: (op, x, values…), for an `m` followed by the old key."""
    width = len(schema.stream_columns)
    keys = len(schema.key)
    padded = [(*row, *[None] * (2 + width + keys - len(row))) for row in rows]
    names = ["op", "x", *(f"c{n}" for n in range(width)), *(f"k{n}" for n in range(keys))]
    columns = {name: pa.array([row[place] for row in padded], pa.string()) for place, name in enumerate(names)}
    count = len(rows)
    stamps = {
        "lsn": pa.array([lsn] * count, pa.int64()),
        "seq": pa.array([first + 2 * place for place in range(count)], pa.int64()),
        "xid": pa.array([lsn] * count, pa.int64()),
        "at": pa.array([1_700_000_000.25] * count, pa.float64()),
    }
    arrow = pa.table({"ord": pa.array(range(count), pa.int64()), **columns, **stamps})
    return NetChange(NetKind.EVENTS, TableVersion(schema, 1), False, arrow, False, False, count)


def apply(destination: SnowflakeDestination, lsn: int, *changes: NetChange) -> Position:
    """Apply one batch."""
    segment = [(sync_of(change.version.schema), change) for change in changes]
    return destination.apply([segment], Position(lsn), 1_700_000_000.0).position
