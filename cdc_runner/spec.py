"""What one pipeline is to do, as read from the config database: the input of the pipeline process.

Frozen and complete: the process reads it once at its start; a change of the catalog raises the pipeline's generation
and the supervisor starts the process anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import SecretStr

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


@dataclass(frozen=True, slots=True)
class TableSync:
    """One source table (or pattern) that feeds one target table of one destination."""

    id: int
    table: str
    """Pattern as in SourceSpec.tables; a plain name for a sync with an explicit target."""
    target: str | None = None
    """Target table name; None keeps the source's name."""


@dataclass(frozen=True, slots=True)
class DestinationSpec:
    """A destination of a pipeline.

    Attributes:
        id: id of the `pipeline_destinations` row.
        destination_id: id of the `destinations` row.
        name: the destination's name.
        type: `postgres` or `snowflake`.
        address: where to write, for `postgres`.
        schema: the one target schema; None keeps the source's schema names.
        syncs: explicit table syncs; empty means every table of the source.
    """

    id: int
    destination_id: int
    name: str
    type: str
    address: PostgresAddress
    schema: str | None
    syncs: tuple[TableSync, ...] = ()


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """Bounds of a pipeline's work; values come from `rosetta_setting_configuration`.

    Attributes:
        batch_max_rows: most change events of one destination transaction (a larger source transaction stays whole).
        batch_max_bytes: most raw bytes held in memory for one destination before capture waits.
        spill_bytes: raw bytes of an open transaction above which it goes to disk.
        load_workers: parallel COPY pipes of an initial load.
        load_chunk_bytes: bytes of table a chunk covers.
        heartbeat_seconds: longest time between two heartbeats on an idle source.
        schema_policy: `evolve`, `freeze` or `pause`.
        jvm_heap_megabytes: heap limit of the Debezium engine.
        synchronous_commit: apply sessions' `synchronous_commit` (`on` or `off`).
        drop_columns: whether a column dropped at the source is dropped at the target too.
        capture_origin: `any`, or `none` to leave out what the source received by replication (engine pgoutput,
            PostgreSQL 16).
    """

    batch_max_rows: int = 250_000
    batch_max_bytes: int = 32 * 1024 * 1024
    spill_bytes: int = 32 * 1024 * 1024
    load_workers: int = 4
    load_chunk_bytes: int = 64 * 1024 * 1024
    heartbeat_seconds: float = 5.0
    schema_policy: str = "evolve"
    jvm_heap_megabytes: int = 256
    synchronous_commit: str = "on"
    drop_columns: bool = False
    capture_origin: str = "any"


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """Everything a pipeline process needs; `generation` identifies this version of the configuration."""

    id: int
    name: str
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
