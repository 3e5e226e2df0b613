"""Preview: a SELECT over sampled rows of a source's tables, in the sandbox. Masked columns are masked here too."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import psycopg2
import pyarrow as pa
from pydantic import SecretStr
from sqlalchemy.orm import Session

from cdc_runner.capture.inspect import matches, read_tables
from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.pipelines import mask_key_place, source_address, stored_shape
from cdc_runner.catalog.repositories import get_source
from cdc_runner.connections import classify, connect
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.sandbox.run import SandboxLimits, SandboxResult, SandboxTable, run_statement
from cdc_runner.schema import Column, TableSchema, quote_identifier
from cdc_runner.shaping.mask import masker
from cdc_runner.spec import Mask, MaskKind, PostgresAddress

MAX_SAMPLE_ROWS = 10_000
READ_TIMEOUT = "10s"

_TYPES = {
    "int2": "SMALLINT",
    "int4": "INTEGER",
    "int8": "BIGINT",
    "float4": "REAL",
    "float8": "DOUBLE",
    "bool": "BOOLEAN",
    "date": "DATE",
    "timestamp": "TIMESTAMP",
    "timestamptz": "TIMESTAMPTZ",
    "uuid": "UUID",
}
"""Types that mean the same in DuckDB; every other one is given as PostgreSQL's text."""


@dataclass(frozen=True, slots=True)
class PreviewPlan:
    """What a preview reads: the source, and how the columns of its tables are masked, by table and column."""

    address: PostgresAddress
    patterns: tuple[str, ...]
    masks: tuple[tuple[str, dict[str, Mask]], ...]
    mask_key: SecretStr | None

    def digest(self, sql: str, sample_rows: int) -> str:
        """Return a hash of what a result depends on, but for the rows: statement, source, tables, masks, their key."""
        address = self.address
        content = {
            "sql": sql,
            "rows": sample_rows,
            "source": [address.host, address.port, address.database, address.username],
            "tables": self.patterns,
            "masks": [
                [table, [[name, asdict(mask)] for name, mask in sorted(masks.items())]] for table, masks in self.masks
            ],
            "key": None
            if self.mask_key is None
            else hashlib.sha256(self.mask_key.get_secret_value().encode()).hexdigest(),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Cancellation:
    """Ends a preview from another thread: its query at the source, and its process."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._lock = threading.Lock()
        self._connection: psycopg2.extensions.connection | None = None

    def cancel(self) -> None:
        """End what runs, and let nothing more begin."""
        self.event.set()
        with self._lock:
            if self._connection is not None:
                self._connection.cancel()

    @contextmanager
    def covering(self, connection: psycopg2.extensions.connection) -> Iterator[None]:
        """Cover the queries of a connection during the block."""
        with self._lock:
            self._connection = connection
        try:
            yield
        finally:
            with self._lock:
                self._connection = None


def plan_preview(session: Session, source: str, keyring: Keyring | None = None) -> PreviewPlan:
    """Return what a preview of a source needs to know of the catalog.

    Raises:
        RosettaError: NOT_FOUND, CREDENTIAL_*.
    """
    keys, row = keyring or Keyring.from_environment(), get_source(session, source)
    masks = [
        (sync.table_name, dict(stored_shape(sync).masks))
        for pipeline in row.pipelines
        for destination in pipeline.destinations
        for sync in destination.table_syncs
        if sync.origin == "DECLARED"
    ]
    key = keys.decrypt(row.mask_key, mask_key_place(row.id)) if row.mask_key else None
    return PreviewPlan(source_address(row, keys), tuple(row.table_patterns), tuple(one for one in masks if one[1]), key)


def preview(
    plan: PreviewPlan,
    sql: str,
    sample_rows: int = 1000,
    limits: SandboxLimits | None = None,
    cancellation: Cancellation | None = None,
) -> SandboxResult:
    """Run a SELECT over the first rows of the tables that it names.

    Args:
        plan: of `plan_preview`.
        sql: one SELECT of DuckDB; tables stand without schema.
        sample_rows: rows read of each table, 10,000 at most.
        limits: of the sandbox.
        cancellation: ends it early; its state is then CANCELLED.

    Raises:
        RosettaError: CONFIG_INVALID for a wrong number of rows, and the source kinds. What is wrong with the statement
            is in the result.
    """
    if not 1 <= sample_rows <= MAX_SAMPLE_ROWS:
        raise RosettaError(ErrorKind.CONFIG_INVALID, f"sample rows must be between 1 and {MAX_SAMPLE_ROWS}")
    cancellation = cancellation or Cancellation()
    cancelled = cancellation.event
    try:
        connection = connect(
            plan.address, application_name="rosetta preview", settings={"statement_timeout": READ_TIMEOUT}
        )
        try:
            connection.set_session(readonly=True, autocommit=True)
            with cancellation.covering(connection):
                offered = _offered(read_tables(connection, list(plan.patterns)))
                empty = [SandboxTable(name, (), pa.table({})) for name in offered]
                checked = run_statement(sql, empty, limits, check_only=True, cancelled=cancelled)
                if checked.state != "CHECKED":
                    return checked
                tables = [
                    _sample(connection, plan, offered[name], sample_rows)
                    for name in checked.tables
                    if not cancelled.is_set()
                ]
        finally:
            connection.close()
    except psycopg2.errors.QueryCanceled as error:
        if not cancelled.is_set():
            raise classify(error, "source") from error
        return cancelled_result()
    except psycopg2.Error as error:
        raise classify(error, "source") from error
    return cancelled_result() if cancelled.is_set() else run_statement(sql, tables, limits, cancelled=cancelled)


def cancelled_result() -> SandboxResult:
    """Return the result of a preview that was cancelled before its statement ran."""
    return SandboxResult("CANCELLED", "it was cancelled", (), None, (), None, False, 0.0, 0, "unknown")


def _offered(tables: Sequence[TableSchema]) -> dict[str, TableSchema]:
    """Return the tables by name; one whose name another schema has too (in whatever case) is left out."""
    names = [schema.table.name.lower() for schema in tables]
    return {schema.table.name: schema for schema in tables if names.count(schema.table.name.lower()) == 1}


def _sample(
    connection: psycopg2.extensions.connection, plan: PreviewPlan, schema: TableSchema, rows: int
) -> SandboxTable:
    masks = {
        name: mask for table, found in plan.masks if matches(schema.table, [table]) for name, mask in found.items()
    }
    key = None if plan.mask_key is None else plan.mask_key.get_secret_value().encode()
    columns = schema.columns
    listed = ", ".join(
        "NULL" if _hidden(masks.get(column.name)) else f"{quote_identifier(column.name)}::text" for column in columns
    )
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {listed} FROM {schema.table.quoted} LIMIT {int(rows)}")
        found = cursor.fetchall()
    texts: dict[str, Any] = {}
    for place, column in enumerate(columns):
        values = [row[place] for row in found]
        mask = masks.get(column.name)
        if mask is not None:
            masked = masker(mask, column, key)
            values = [masked(value) for value in values]
        texts[column.name] = pa.array(values, pa.string())
    types = tuple((column.name, _type(column, masks.get(column.name))) for column in columns)
    return SandboxTable(schema.table.name, types, pa.table(texts))


def _hidden(mask: Mask | None) -> bool:
    return mask is not None and mask.kind in (MaskKind.NULL, MaskKind.CONSTANT)


def _type(column: Column, mask: Mask | None) -> str:
    if mask is not None:
        return "VARCHAR"
    if column.type_name == "numeric":
        # Without precision, or with more of it than DuckDB has, a decimal would be rounded.
        digits, _, scale = column.type_text.removeprefix("numeric(").removesuffix(")").partition(",")
        fits = digits.isdigit() and scale.isdigit() and int(digits) <= 38 and int(scale) <= int(digits)
        return f"DECIMAL({digits},{scale})" if fits else "VARCHAR"
    return _TYPES.get(column.type_name, "VARCHAR")


def as_json(result: SandboxResult) -> dict[str, Any]:
    """Return a result for machines: columns with types, rows as lists of text."""
    rows = [] if result.rows is None else [list(row.values()) for row in result.rows.to_pylist()]
    return {
        "state": result.state,
        "reason": result.reason,
        "tables": list(result.tables),
        "columns": [{"name": name, "type": kind} for name, kind in result.columns],
        "rows": rows,
        "truncated": result.truncated,
        "seconds": round(result.seconds, 3),
        "peak_bytes": result.peak_bytes,
    }
