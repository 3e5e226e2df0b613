"""A source and a target database in one transaction each, and the way of a table from one to the other."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg2.extensions
import pytest

from cdc_runner.capture.inspect import read_tables
from cdc_runner.connections import connect
from cdc_runner.destinations.postgres import ddl, types
from cdc_runner.destinations.postgres.target_table import read_target
from cdc_runner.schema import Column, TableId, TableSchema, quote_identifier, quote_literal
from cdc_runner.shaping.evolution import SchemaChange, diff
from tests.support.servers import Database, PostgresServer

TABLE = TableId("public", "t")


@dataclass
class Pair:
    """A source and a target."""

    source: psycopg2.extensions.connection
    target: psycopg2.extensions.connection
    schema_map: types.SchemaMap

    def at_source(self, *statements: str) -> None:
        with self.source.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def at_target(self, *statements: str) -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = []
        with self.target.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
        return rows

    def schema(self, name: str = "t", schema: str = "public") -> TableSchema:
        (found,) = read_tables(self.source, tables=[TableId(schema, name)])
        return found

    def place(self, schema: TableSchema) -> TableId:
        return TableId(self.schema_map(schema.table.schema), schema.table.name)

    def create(self, name: str = "t", schema: str = "public", *, with_key: bool = True) -> TableSchema:
        """Make the target table as the source's table is now."""
        found = self.schema(name, schema)
        types.ensure_types(self.source, self.target, [found], self.schema_map)
        ddl.create_table(self.target, self.place(found), found, self.schema_map, with_key=with_key)
        return found

    def copy(self, schema: TableSchema) -> None:
        """Bring the source's rows to the target in the way that changes go: as text, cast to the target's types."""
        names = ", ".join(quote_identifier(name) for name in schema.stream_names)
        with self.source.cursor() as cursor:
            texts = ", ".join(f"{quote_identifier(name)}::text" for name in schema.stream_names)
            cursor.execute(f"SELECT {texts} FROM {schema.table.quoted}")
            rows = cursor.fetchall()
        wanted = [types.target_type(column, self.schema_map) for column in schema.stream_columns]
        with self.target.cursor() as cursor:
            for row in rows:
                values = ", ".join(
                    f"{'NULL' if value is None else quote_literal(value)}::{type_}"
                    for value, type_ in zip(row, wanted, strict=True)
                )
                cursor.execute(f"INSERT INTO {self.place(schema).quoted} ({names}) VALUES ({values})")

    def evolve(self, old: TableSchema, *, drop_columns: bool = False) -> list[SchemaChange]:
        """Change the target table as the source's table was changed since `old`."""
        new = self.schema(old.table.name, old.table.schema)
        changes = diff(old, new)
        types.ensure_types(self.source, self.target, [new], self.schema_map)
        ddl.evolve(self.target, self.place(old), changes, new, self.schema_map, drop_columns=drop_columns)
        return changes

    def rows(self, schema: TableSchema) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
        """Return the source's and the target's rows as text, sorted."""
        texts = ", ".join(f"{quote_identifier(name)}::text" for name in schema.column_names)
        with self.source.cursor() as one, self.target.cursor() as other:
            one.execute(f'SELECT {texts} FROM {schema.table.quoted} ORDER BY ({texts})::text COLLATE "C"')
            other.execute(f'SELECT {texts} FROM {self.place(schema).quoted} ORDER BY ({texts})::text COLLATE "C"')
            return one.fetchall(), other.fetchall()

    def assert_equal(self, schema: TableSchema) -> None:
        source, target = self.rows(schema)
        assert source == target
        assert source, "the comparison of empty tables says nothing"


def there(pair: Pair) -> dict[str, Column]:
    """Return the columns of the target table."""
    found = read_target(pair.target, TABLE)
    assert found is not None
    return {name: column.column for name, column in found.columns.items()}


def start(pair: Pair, *statements: str) -> TableSchema:
    """Make a table at the source, and the same at the target; return how it is."""
    pair.at_source(*statements)
    schema = pair.create()
    pair.copy(schema)
    return schema


@pytest.fixture(scope="module")
def databases(source_server: PostgresServer, target_server: PostgresServer) -> Iterator[tuple[Database, Database]]:
    """An empty source and target for all tests of a module: each test takes back what it did."""
    suffix = secrets.token_hex(4)
    source = source_server.create_database(f"test_ddl_source_{suffix}")
    target = target_server.create_database(f"test_ddl_target_{suffix}")
    yield source, target
    source_server.drop_database(source.name)
    target_server.drop_database(target.name)


@pytest.fixture
def make_pair(databases: tuple[Database, Database]) -> Iterator[Callable[..., Pair]]:
    """A factory of pairs with a schema map; both sides are rolled back at the end."""
    opened: list[psycopg2.extensions.connection] = []

    def make(schema_map: types.SchemaMap | None = None) -> Pair:
        source, target = databases
        opened.append(connect(source.address(), application_name="test"))
        opened.append(connect(target.address(), application_name="test", side="destination"))
        return Pair(opened[-2], opened[-1], schema_map or types.TypePlaces(str))

    yield make
    for connection in opened:
        connection.close()


@pytest.fixture
def pair(make_pair: Callable[..., Pair]) -> Pair:
    """A pair whose target has the source's schema names."""
    return make_pair()


@pytest.fixture
def lasting_pair(source_database: Database, target_database: Database) -> Iterator[Pair]:
    """A pair for a test that commits at the target; the source is in autocommit mode."""
    source = connect(source_database.address(), application_name="test")
    target = connect(target_database.address(), application_name="test", side="destination")
    source.autocommit = True
    yield Pair(source, target, types.TypePlaces(str))
    source.close()
    target.close()
