"""A whole pipeline into the strict stand-in, and the comparison of a source with it by the stated types."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cdc_runner.capture.inspect import read_tables
from cdc_runner.destinations.snowflake.rows import carried_in
from cdc_runner.destinations.snowflake.types import DEFAULT_RULES
from cdc_runner.position import parse_lsn
from cdc_runner.schema import Column, TableSchema, quote_identifier
from tests.support.pipelines import PipelineHarness
from tests.support.servers import Database
from tests.support.snowflake_door import ACCOUNT, USER
from tests.support.snowflake_server import DATABASE, SnowflakeServer
from tests.support.waiting import wait_for

Query = Callable[[str], list[tuple[Any, ...]]]


class SnowflakePipeline(PipelineHarness):
    """A pipeline whose destination is the stand-in."""

    server: SnowflakeServer
    forms: ClassVar[dict[str, str]] = {"BINARY": "hex({})"}
    """How values of a type are shown as text."""

    def reached(self) -> int:
        """LSN up to which the stand-in says that the stream is durable."""
        found = [one.committed for (_, name), one in self.server.channels.items() if name.endswith("_POSITION")]
        return int(found[0].partition("/")[0], 16) if found and found[0] else 0

    def wait_landed(self, timeout: float = 120, *, revive: bool = False) -> None:
        """Wait until everything that is committed at the source now has landed."""
        wanted = parse_lsn(self.source.execute("SELECT pg_current_wal_lsn()::text")[0][0])
        self.source.execute("SELECT pg_logical_emit_message(true, 'rosetta', '')")

        def landed() -> bool:
            if revive:
                self.ensure_running()
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(f"the pipeline ended with {self.process.returncode}:\n{self.log_text()[-3000:]}")
            return self.reached() >= wanted

        try:
            wait_for(landed, timeout, f"the stand-in to reach {wanted:x}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log_text()[-3000:]}") from error

    def assert_same(self, query: Query | None = None) -> None:
        """Merge, and fail when a target differs from its source by the types that are stated."""
        if query is None:
            self.server.sql.run_tasks()
        with closing(self.source.connect()) as connection:
            schemas = [one for one in read_tables(connection, ["public.*"])]
            for schema in schemas:
                columns = ", ".join(_source_text(schema, column) for column in schema.stream_columns)
                with connection.cursor() as cursor:
                    cursor.execute(f"SET TimeZone = 'UTC'; SELECT {columns} FROM {schema.table.quoted}")
                    source = cursor.fetchall()
                assert_rows(schema, source, query or self.server.sql.query, self.forms)

    def assert_landed_once(self) -> None:
        """Fail when an event is in a landing table twice."""
        found = self.server.sql.query("SELECT table_name FROM duckdb_tables() WHERE table_name LIKE 'LANDING_%'")
        self._landed_once([table for (table,) in found], self.server.sql.query)

    def _landed_once(self, tables: Sequence[str], query: Query) -> None:
        for table in tables:
            twice = query(
                f'SELECT "_ROSETTA_POSITION", count(*) FROM "{DATABASE}"."SHOP"."{table}" '
                "GROUP BY 1 HAVING count(*) > 1"
            )
            assert not twice, (table, twice[:10])


def assert_rows(schema: TableSchema, source: list[tuple[Any, ...]], query: Query, forms: dict[str, str]) -> None:
    """Compare rows of a source, as text, with the target's."""
    types = [carried_in(schema, column, DEFAULT_RULES).type for column in schema.stream_columns]
    columns = ", ".join(forms.get(type_, "CAST({} AS VARCHAR)").format(_name(name))
                        for name, type_ in zip(schema.stream_names, types, strict=True))  # fmt: skip
    target = query(f'SELECT {columns} FROM "{DATABASE}"."SHOP".{_name(schema.table.name)}')
    left = sorted(repr(_normal(row, types)) for row in source)
    right = sorted(repr(_normal(row, types)) for row in target)
    missing, beyond = sorted(set(left) - set(right)), sorted(set(right) - set(left))
    assert left == right, f"{schema.table}: {len(left)} and {len(right)} rows; {missing[:3]} against {beyond[:3]}"


def _source_text(schema: TableSchema, column: Column) -> str:
    """A column of the source as text: an array as JSON where it is kept so."""
    quoted = quote_identifier(column.name)
    if column.type_category == "A" and carried_in(schema, column, DEFAULT_RULES).type == "VARIANT":
        return f"to_json({quoted})::text"
    # A cast to text is not the output function for every type.
    return f"CASE WHEN {quoted} IS NOT NULL THEN format('%s', {quoted}) END"


def _name(name: str) -> str:
    return quote_identifier(name.upper())


def _normal(row: tuple[Any, ...], types: list[str]) -> list[object]:
    return [None if value is None else _value(value, type_) for value, type_ in zip(row, types, strict=True)]


def _value(text: str, type_: str) -> object:
    if type_.startswith("NUMBER"):
        return Decimal(text)
    if type_ == "BOOLEAN":
        return text[0].lower()
    if type_ == "FLOAT":
        return repr(float(text))
    if type_.startswith("TIMESTAMP_TZ"):
        return datetime.fromisoformat(text if text[-3] in "+-:" else f"{text}+00:00").timestamp()
    if type_.startswith(("TIMESTAMP", "TIME")):
        return text.rstrip("0") if "." in text else f"{text}."
    if type_ == "VARIANT":
        return json.dumps(json.loads(text), sort_keys=True)
    if type_ == "BINARY":
        return text.removeprefix("\\x").upper()
    return text


@pytest.fixture
def snowflake_pipeline(
    config_database: Database, source_database: Database, snowflake: SnowflakeServer
) -> Iterator[SnowflakePipeline]:
    """A pipeline into the strict stand-in, not configured yet."""
    with tempfile.TemporaryDirectory(prefix="rosetta-pipeline-") as home:
        harness = SnowflakePipeline(config_database, source_database, {}, Path(home))
        harness.server = snowflake
        harness.lakes["lake"] = lake(snowflake.url)
        harness.secrets = {"LAKE_KEY": snowflake.private_key("a passphrase"), "LAKE_PASSPHRASE": "a passphrase"}
        try:
            yield harness
        finally:
            harness.close()


def lake(url: str) -> dict[str, object]:
    """A Snowflake destination of the configuration file."""
    return {
        "type": "snowflake",
        "account": ACCOUNT,
        "user": USER,
        "private_key": {"env": "LAKE_KEY"},
        "private_key_passphrase": {"env": "LAKE_PASSPHRASE"},
        "warehouse": "LOAD_WH",
        "database": DATABASE,
        "schema": "SHOP",
        "host": url,
    }
