"""What one pipeline is to do, as read from the config database: the input of the pipeline process.

Frozen and complete: the process reads it once at its start; a change of the catalog raises the pipeline's generation
and the supervisor starts the process anew.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import SecretStr

from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableId


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """How to reach a PostgreSQL database. `password` never shows in a repr."""

    host: str
    port: int
    database: str
    username: str
    password: SecretStr
    sslmode: str = "prefer"
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None


@dataclass(frozen=True, slots=True)
class SnowflakeAddress:
    """How to reach a Snowflake account, and how to write there. Secrets never show in a repr.

    Attributes:
        account: `ORGANISATION-ACCOUNT`, or a locator.
        user: whose public key is the private key's.
        private_key: PKCS#8 as PEM, encrypted or not.
        database: of the targets, as stored.
        schema: of the targets, as stored.
        private_key_passphrase: of an encrypted key.
        role: None takes the user's default role.
        warehouse: runs statements and, unless tasks are serverless, merges; None takes the user's default.
        landing_database: of the landing tables; None is that of the targets.
        landing_schema: likewise.
        host: URL or host name in place of the account's own, for private links.
        identifiers: `upper` folds names as Snowflake does with unquoted ones, `keep` keeps the source's case.
        merge_seconds: time between two merges of a table.
        merge_when: `schedule`, or `triggered` for tasks that run when something has landed.
        cluster_targets: `none`, or `key` for targets that are clustered by their key.
        arrays: `variant` or `array` for arrays as JSON in that type, or `text` for PostgreSQL's text of them.
        spatial: `text`, or `native` for PostGIS as GEOGRAPHY and GEOMETRY.
        merge_warehouse: runs the merges; `serverless` leaves it to Snowflake, None takes `warehouse`.
        deletes: `hard`, or `soft` to mark rows as deleted.
        landing_hours: how long merged rows stay in landing tables.
        pipe_suffix: what a landing table's pipe is called, after the table's name.
        compression: `zstd` or `gzip`.
    """

    account: str
    user: str
    private_key: SecretStr
    database: str
    schema: str
    private_key_passphrase: SecretStr | None = None
    role: str | None = None
    warehouse: str | None = None
    landing_database: str | None = None
    landing_schema: str | None = None
    host: str | None = None
    identifiers: str = "upper"
    merge_seconds: int = 60
    merge_when: str = "schedule"
    cluster_targets: str = "none"
    arrays: str = "variant"
    spatial: str = "text"
    merge_warehouse: str | None = None
    deletes: str = "hard"
    landing_hours: int = 0
    pipe_suffix: str = "-STREAMING"
    compression: str = "zstd"


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """A source: its server, publication, slot and the tables it offers.

    `tables` are patterns `schema.table` with `*` and `?`, each half matched on its own; a half may be double-quoted
    when the name holds a dot. `capture_engine` is `debezium` or `pgoutput`.
    """

    id: int
    name: str
    address: PostgresAddress
    publication: str
    slot: str
    tables: tuple[str, ...]
    capture_engine: str = "debezium"


class SyncMode(StrEnum):
    """What a target keeps of rows that change."""

    MIRROR = "mirror"
    SOFT_DELETE = "soft_delete"
    """Rows that are gone stay, marked as deleted."""
    HISTORY = "history"
    """Each change is a row of its own."""


class MaskKind(StrEnum):
    """How a value is made unrecognisable."""

    HASH = "hash"
    """HMAC-SHA-256 of the text form under the source's key, as 64 hexadecimal digits; NULL stays NULL."""
    NULL = "null"
    TRUNCATE = "truncate"
    """The first characters of the text form; NULL stays NULL."""
    CONSTANT = "constant"
    """The same text in every row, also where there is NULL."""


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask of one column: `length` is of TRUNCATE (characters), `text` of CONSTANT."""

    kind: MaskKind
    length: int | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class TableShape:
    """How a table sync differs from a plain copy. All names are the source's.

    Attributes:
        filter: condition that rows must meet, as `row_filter.sql` writes it; None for all rows.
        filter_columns: the columns that it reads.
        columns: the only columns to copy; None for all.
        exclude: columns to leave out.
        rename: pairs of a column and its name at the target.
        masks: pairs of a column and its mask.
        mode: what becomes of rows that change.
        custom_sql: a SELECT over the table's rows, in DuckDB's dialect; None for none.
        key: columns of its result that identify a row; empty to find them.
        table_masks: triples of table, column and mask, of every sync of the source: what the SQL must not see.
    """

    filter: str | None = None
    filter_columns: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    masks: tuple[tuple[str, Mask], ...] = ()
    mode: SyncMode = SyncMode.MIRROR
    custom_sql: str | None = None
    key: tuple[str, ...] = ()
    table_masks: tuple[tuple[str, str, Mask], ...] = ()

    @property
    def plain(self) -> bool:
        """Whether the target is a copy of the source table."""
        return self == TableShape()

    @property
    def fingerprint(self) -> str:
        """A short text that is another one when the target has to be loaded anew; empty for a plain copy."""
        if self.plain:
            return ""
        content = asdict(self)
        for name in ("key", "table_masks"):
            # Fields that are younger than stored fingerprints count only where they say something.
            if not content[name]:
                del content[name]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` reads, without what is at its default, filter and custom SQL."""
        content: dict[str, Any] = {}
        if self.columns is not None:
            content["columns"] = list(self.columns)
        if self.exclude:
            content["exclude"] = list(self.exclude)
        if self.rename:
            content["rename"] = dict(self.rename)
        if self.masks:
            content["mask"] = {
                name: {key: value for key, value in asdict(mask).items() if value is not None}
                for name, mask in self.masks
            }
        if self.mode is not SyncMode.MIRROR:
            content["mode"] = self.mode.value
        if self.filter_columns:
            content["filter_columns"] = list(self.filter_columns)
        if self.key:
            content["key"] = list(self.key)
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any], row_filter: str | None, custom_sql: str | None) -> TableShape:
        """Return a shape as the config database holds it."""
        masks = content.get("mask", {})
        return cls(
            filter=row_filter,
            filter_columns=tuple(content.get("filter_columns", ())),
            columns=tuple(content["columns"]) if "columns" in content else None,
            exclude=tuple(content.get("exclude", ())),
            rename=tuple(sorted(content.get("rename", {}).items())),
            masks=tuple(
                (name, Mask(MaskKind(masks[name]["kind"]), masks[name].get("length"), masks[name].get("text")))
                for name in sorted(masks)
            ),
            mode=SyncMode(content.get("mode", "mirror")),
            custom_sql=custom_sql,
            key=tuple(content.get("key", ())),
        )


PLAIN = TableShape()


@dataclass(frozen=True, slots=True)
class TableSync:
    """One source table (or pattern) that feeds one target table of one destination."""

    id: int
    table: str
    """Pattern as in SourceSpec.tables; a plain name for a sync with an explicit target."""
    target: str | None = None
    """Target table name; None keeps the source's name."""
    shape: TableShape = PLAIN
    mask_key: SecretStr | None = None
    """Key of the source's hash masks; None while no sync has one."""


@dataclass(frozen=True, slots=True)
class DestinationSpec:
    """A destination of a pipeline.

    Attributes:
        id: id of the `pipeline_destinations` row.
        destination_id: id of the `destinations` row.
        name: the destination's name, for people.
        type: `postgres` or `snowflake`.
        place: where to write.
        schema: the one target schema; None keeps the source's schema names.
        syncs: explicit table syncs; empty means every table of the source.
        identity: stays when the name changes, and is part of what is kept under; the name when none is given.
    """

    id: int
    destination_id: int
    name: str
    type: str
    place: PostgresAddress | SnowflakeAddress
    schema: str | None
    syncs: tuple[TableSync, ...] = ()
    identity: str = ""

    def __post_init__(self) -> None:
        if not self.identity:
            object.__setattr__(self, "identity", self.name)

    @property
    def address(self) -> PostgresAddress:
        """The PostgreSQL database.

        Raises:
            RosettaError: CONFIG_INVALID for a destination of another type.
        """
        if not isinstance(self.place, PostgresAddress):
            raise RosettaError(
                ErrorKind.CONFIG_INVALID, f"destination {self.name} is of type {self.type}, not a PostgreSQL database"
            )
        return self.place

    @property
    def snowflake(self) -> SnowflakeAddress:
        """The Snowflake account.

        Raises:
            RosettaError: CONFIG_INVALID for a destination of another type.
        """
        if not isinstance(self.place, SnowflakeAddress):
            raise RosettaError(
                ErrorKind.CONFIG_INVALID, f"destination {self.name} is of type {self.type}, not a Snowflake account"
            )
        return self.place


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """Bounds of a pipeline's work; values come from `rosetta_setting_configuration`.

    Attributes:
        batch_max_rows: most change events of one destination transaction (a larger source transaction stays whole).
        batch_max_bytes: most raw bytes held in memory for one destination before capture waits.
        spill_bytes: raw bytes of an open transaction above which it goes to disk.
        load_workers: parallel COPY pipes of an initial load.
        load_chunk_bytes: bytes of table a chunk covers.
        load_beside_megabytes: how much of tables that join a running pipeline is loaded while its stream waits; the
            larger ones are loaded beside it.
        heartbeat_seconds: longest time between two heartbeats on an idle source.
        schema_policy: `evolve`, `freeze` or `pause`.
        jvm_heap_megabytes: heap limit of the Debezium engine.
        synchronous_commit: apply sessions' `synchronous_commit` (`on` or `off`).
        drop_columns: whether a column dropped at the source is dropped at the target too.
        capture_origin: `any`, or `none` to leave out what the source received by replication (engine pgoutput,
            PostgreSQL 16).
        dead_letter_max_entries: most dead letters of a table; beyond them the destination waits.
        dead_letter_retry_seconds: pause before a dead letter is tried again by itself; 0 leaves it to a person.
        dead_letter_retries: most such attempts.
        dead_letter_alert_seconds: age of a dead letter from which its event is an error.
        park_after_seconds: how long a destination must be away before its changes are parked in Redis, so that the
            slot may pass them; 0 never parks.
        park_max_megabytes: most that is parked for a destination; beyond it the slot waits.
        backfill_workers: chunks of a backfill that are copied at once.
        backfill_megabytes_per_second: most that a backfill reads from the source in a second; 0 for no limit.
        backfill_window_seconds: how long a backfill reads under one snapshot before it takes another.
        custom_sql_seconds: longest that a statement of custom SQL may take over the rows at hand.
        custom_sql_memory_megabytes: most memory of such a statement.
        custom_sql_max_rows: most rows that a change may ask to be computed anew; a group may not have more.
    """

    batch_max_rows: int = 250_000
    batch_max_bytes: int = 8 * 1024 * 1024
    spill_bytes: int = 16 * 1024 * 1024
    load_workers: int = 4
    load_chunk_bytes: int = 64 * 1024 * 1024
    load_beside_megabytes: int = 256
    heartbeat_seconds: float = 5.0
    schema_policy: str = "evolve"
    jvm_heap_megabytes: int = 192
    synchronous_commit: str = "on"
    drop_columns: bool = False
    capture_origin: str = "any"
    dead_letter_max_entries: int = 100_000
    dead_letter_retry_seconds: float = 300.0
    dead_letter_retries: int = 10
    dead_letter_alert_seconds: float = 86_400.0
    park_after_seconds: float = 0.0
    park_max_megabytes: int = 1024
    backfill_workers: int = 2
    backfill_megabytes_per_second: int = 0
    backfill_window_seconds: int = 120
    custom_sql_seconds: float = 60.0
    custom_sql_memory_megabytes: int = 512
    custom_sql_max_rows: int = 200_000


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """Everything a pipeline process needs.

    Attributes:
        id: id of the `pipelines` row.
        name: for people: logs, errors, events. It may change from one start to the next.
        identity: never changes. Everything that other servers keep or see of the pipeline bears it: positions, marks,
            journals, channels, dead letters, the names of sessions.
        generation: identifies this version of the configuration.
        source: where changes come from.
        destinations: where they go.
        settings: bounds of the work.
    """

    id: int
    name: str
    identity: str
    generation: int
    source: SourceSpec
    destinations: tuple[DestinationSpec, ...]
    settings: PipelineSettings = field(default_factory=PipelineSettings)


@dataclass(frozen=True, slots=True)
class ResolvedSync:
    """A table sync with its patterns resolved: one source table to one target table."""

    sync_id: int | None
    source: TableId
    target: TableId
    shape: TableShape = field(default=PLAIN, compare=False)
    """How the rows are shaped on the way; not part of a sync's identity."""
    mask_key: SecretStr | None = field(default=None, compare=False, repr=False)
    """Key of the source's hash masks."""
