"""A source database that the engine `pgoutput` reads, and what its stream has given so far."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cdc_runner.capture.assemble import BatchSettings
from cdc_runner.capture.base import ChangeBatch
from cdc_runner.capture.inspect import read_tables
from cdc_runner.capture.pgoutput.stream import PgoutputStream
from cdc_runner.capture.publication import read_slot
from cdc_runner.capture.registry import SchemaRegistry
from cdc_runner.position import parse_lsn
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.spec import SourceSpec
from tests.support.servers import Database
from tests.support.waiting import wait_for

MARK = "INSERT INTO mark VALUES (1)"


class Source:
    """A database with a slot, and what its stream has given so far."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.database = database
        self.directory = directory
        self.batches: list[ChangeBatch] = []
        self.rows: list[dict[str, Any]] = []
        self.versions: dict[str, set[int]] = {}
        self.acknowledging = True
        self.taking = threading.Event()
        self.taking.set()
        self.errors: list[BaseException] = []
        self.stream: PgoutputStream | None = None
        self._thread: threading.Thread | None = None

    def begin(self, ddl: str) -> None:
        self.database.execute(f"{ddl}; CREATE TABLE mark (id int); ALTER TABLE mark REPLICA IDENTITY FULL")
        self.database.execute("CREATE PUBLICATION p FOR ALL TABLES WITH (publish_via_partition_root = true)")
        self.database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (self.database.name,))

    def spec(self) -> SourceSpec:
        return SourceSpec(1, "s", self.database.address(), "p", self.database.name, ("*.*",), "pgoutput")

    def schemas(self) -> list[TableSchema]:
        with closing(self.database.connect()) as connection:
            return read_tables(connection, patterns=["*.*"])

    def read_table(self, table: TableId) -> TableSchema | None:
        with closing(self.database.connect()) as connection:
            return next(iter(read_tables(connection, tables=[table])), None)

    def start(self, **options: Any) -> PgoutputStream:
        schemas = self.schemas()
        settings = options.pop("settings", BatchSettings())
        self.stream = PgoutputStream(
            self.spec(),
            SchemaRegistry(schemas, self.read_table),
            [schema.table for schema in schemas],
            settings=settings,
            spill_directory=self.directory,
            **options,
        )
        self._thread = threading.Thread(target=self._read, args=(self.stream,), daemon=True)
        self._thread.start()
        return self.stream

    def _read(self, stream: PgoutputStream) -> None:
        try:
            for batch in stream.batches():
                for segment in batch.segments():
                    for changes in segment.tables:
                        name = changes.version.schema.table.name
                        self.versions.setdefault(name, set()).add(changes.version.number)
                        self.rows += [{"table": name, **row} for row in changes.rows.to_pylist()]
                batch.release()
                self.batches.append(batch)
                if self.acknowledging:
                    stream.acknowledge(batch.last)
                self.taking.wait(60)
        except BaseException as error:
            self.errors.append(error)

    def wait_marks(self, number: int) -> None:
        def seen() -> bool:
            if self.errors:
                raise self.errors[0]
            return len(self.of("mark")) >= number

        wait_for(seen, 60, f"mark {number}")

    def of(self, table: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["table"] == table]

    def confirmed(self) -> int:
        with closing(self.database.connect()) as connection:
            slot = read_slot(connection, self.database.name)
        assert slot is not None
        return slot.confirmed_lsn or 0

    def walsender(self) -> int | None:
        rows = self.database.execute(
            "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", (self.database.name,)
        )
        return rows[0][0] if rows else None

    def wal(self) -> int:
        return parse_lsn(self.database.execute("SELECT pg_current_wal_lsn()::text")[0][0])

    def close(self) -> None:
        self.taking.set()
        if self.stream is not None:
            self.stream.close()
        if self._thread is not None:
            self._thread.join(20)
        assert not list(self.directory.iterdir()), "every file of a streamed transaction is gone"


@pytest.fixture
def source(source_database: Database, tmp_path: Path) -> Iterator[Source]:
    found = Source(source_database, tmp_path)
    yield found
    found.close()


@pytest.fixture
def streaming_source(source: Source) -> Source:
    """A source whose transactions are sent while they are open, as soon as they have 64 kB of changes."""
    source.database.execute(f"ALTER DATABASE \"{source.database.name}\" SET logical_decoding_work_mem = '64kB'")
    return source
