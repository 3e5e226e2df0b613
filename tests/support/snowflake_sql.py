"""Statements of Snowflake on DuckDB, for the strict local server: translated by sqlglot, blocks and tasks by hand."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa
import sqlglot

_TASK = re.compile(r"CREATE OR REPLACE TASK (\S+) (.*?) AS\n(BEGIN\n.*)", re.DOTALL)
_INFORMATION = re.compile(r'"(\w+)"\.INFORMATION_SCHEMA\.(COLUMNS|SCHEMATA|TABLES)\s+WHERE', re.IGNORECASE)


def held_query(block: str) -> str | None:
    """Return the query by which a block of a task decides to do nothing; None for one without it."""
    head = block.partition("BEGIN TRANSACTION;\n")[0]
    match = re.search(r"SELECT COUNT\(\*\) INTO :held (FROM .*);\nIF \(held > 0\)", head)
    return None if match is None else f"SELECT COUNT(*) {match.group(1)}"


class SqlError(Exception):
    """A statement that failed."""


class SnowflakeSql:
    """One account's databases. Thread-safe: one statement at a time."""

    def __init__(self, database: str) -> None:
        self._connection = duckdb.connect(config={"threads": "1"})
        self._connection.execute("SET TimeZone = 'UTC'")
        self._connection.execute(f"ATTACH ':memory:' AS \"{database}\"")
        self.lock = threading.RLock()
        self.tasks: dict[str, str] = {}
        self.resumed: set[str] = set()
        self.streams: set[str] = set()
        self.log: list[str] = []
        self.grants: list[tuple[str, str, str]] = []
        """Privilege, kind of object and name."""
        self.refuse: str | None = None

    def run(self, statement: str, bindings: Sequence[str | None] = ()) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Run a statement or a block; return names and rows."""
        with self.lock:
            self.log.append(statement)
            if self.refuse and self.refuse in statement:
                raise SqlError("refused as asked")
            if statement.startswith("BEGIN\n"):
                self._block(statement)
                return [], []
            if statement.startswith("SELECT CURRENT_VERSION()"):
                return ["version", "role", "warehouse"], [("9.99.9", "ROSETTA", None)]
            if statement == "SELECT CURRENT_ROLE()":
                return ["role"], [("ROSETTA",)]
            if statement.startswith("SHOW GRANTS TO ROLE"):
                return ["created_on", "privilege", "granted_on", "name"], [("now", *one) for one in self.grants]
            if self._managed(statement):
                return [], []
            return self._one(statement, bindings)

    def _managed(self, statement: str) -> bool:
        task = _TASK.match(statement)
        words = statement.split()
        if task:
            self.tasks[task.group(1)] = task.group(3)
            self.resumed.discard(task.group(1))
        elif statement.startswith("ALTER TASK"):
            assert words[-1] == "RESUME"
            assert words[2] in self.tasks, "a task is resumed that was not made"
            self.resumed.add(words[2])
        elif statement.startswith("DROP TASK"):
            self.tasks.pop(words[-1], None)
        elif statement.startswith("CREATE STREAM"):
            self.streams.add(words[5])
        elif statement.startswith("DROP STREAM"):
            self.streams.discard(words[-1])
        else:
            return False
        return True

    def run_tasks(self) -> None:
        """Run every task that is resumed, once."""
        with self.lock:
            for name in sorted(self.resumed):
                self._block(self.tasks[name])

    def _block(self, block: str) -> None:
        held = held_query(block)
        if held and self._one(held)[1] != [(0,)]:
            return
        body = block.partition("BEGIN TRANSACTION;\n")[2].partition(";\nCOMMIT")[0]
        self._connection.execute("BEGIN")
        try:
            for statement in body.split(";\n"):
                if not any(stream in statement for stream in self.streams):
                    self._one(statement)
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise

    def _one(self, statement: str, bindings: Sequence[str | None] = ()) -> tuple[list[str], list[tuple[Any, ...]]]:
        catalog = {"COLUMNS": "table_catalog", "SCHEMATA": "catalog_name", "TABLES": "table_catalog"}
        statement = _INFORMATION.sub(
            lambda m: f"information_schema.{m.group(2)} WHERE {catalog[m.group(2).upper()]} = '{m.group(1)}' AND",
            statement,
        )
        try:
            (translated,) = sqlglot.transpile(statement, read="snowflake", write="duckdb")
            # DuckDB's own VARIANT turns some NULLs into JSON's null; a JSON column does not. Nor has it a type ARRAY.
            translated = re.sub(r'(" )VARIANT\b', r"\1JSON", translated)
            translated = re.sub(r'((?:" | AS ))\[\]', r"\1JSON", translated)
            cursor = self._connection.execute(translated, list(bindings))
            rows = cursor.fetchall() if cursor.description else []
            return [one[0] for one in cursor.description or ()], rows
        except (duckdb.Error, sqlglot.errors.SqlglotError) as error:
            raise SqlError(f"{type(error).__name__}: {error}") from error

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement of DuckDB, for tests."""
        with self.lock:
            return self._connection.execute(statement).fetchall()

    def insert(self, table: str, rows: list[dict[str, str | None]]) -> None:
        """Insert landed rows by column name."""
        with self.lock:
            names = list(rows[0])
            arrays = [pa.array([row.get(name) for row in rows], pa.string()) for name in names]
            landed = pa.table(arrays, names=names)  # found by name in the statement
            self._connection.register("landed", landed)
            self._connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM landed")
            self._connection.unregister("landed")

    def close(self) -> None:
        """Free the memory."""
        self._connection.close()
