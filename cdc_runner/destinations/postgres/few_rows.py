"""Small net changes without a staging table: rows go along with prepared statements, many tables a round trip.

A staging table costs its making, a COPY and an emptying at each commit, however few the rows: 3 ms for one row where
this took 0.14, on a busy machine. What is sent here is held back until so much has come together, or until somebody
needs what a statement finds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psycopg2.extensions
import pyarrow as pa

from cdc_runner.destinations.postgres import statements
from cdc_runner.destinations.postgres.statements import TargetShape
from cdc_runner.shaping.net import NetChange, NetKind

FEW_ROWS = 200
FEW_BYTES = 1 << 16
"""Up to so many rows and bytes; more come faster by COPY."""

_HELD_BYTES = 1 << 18

PREPARED = 500
"""Statements that a session keeps: each takes memory of the server, the more the more columns its target has."""


@dataclass(frozen=True, slots=True)
class Staging:
    """The rows of a net change, where statements can read them.

    Attributes:
        rows: what stands in FROM; for few rows with parameters in it.
        arguments: texts of those parameters as SQL literals; None for a staging table.
        number: of the target in this session.
    """

    rows: str
    arguments: str | None = None
    number: int = 0


def is_small(change: NetChange) -> bool:
    """Tell whether a change may be written without a staging table."""
    rows = change.rows
    if change.kind is NetKind.MOVE or rows.num_rows > FEW_ROWS:
        return False
    # The exact size takes longer to find than all else here; of rows that are part of a larger buffer it must be.
    return bool(rows.get_total_buffer_size() <= FEW_BYTES or rows.nbytes <= FEW_BYTES)


class FewRows:
    """Prepares statements, and sends them with their rows."""

    def __init__(self) -> None:
        self._prepared: dict[tuple[int, str], str] = {}
        self._count = 0
        self._held: list[str] = []
        self._held_bytes = 0

    def forget_session(self) -> None:
        """The session is gone, and its prepared statements with it."""
        self._prepared.clear()
        self.begin()

    def begin(self) -> None:
        """A transaction begins: what another one held back is void."""
        self._held.clear()
        self._held_bytes = 0

    def stage(self, cursor: psycopg2.extensions.cursor, change: NetChange, shape: TargetShape, number: int) -> Staging:
        """Return the rows of a small change as parameters.

        Args:
            cursor: to quote with.
            change: `is_small`.
            shape: the target.
            number: of the target in this session.
        """
        columns = statements.staging_columns(change.kind, shape)
        arrays = [_LITERALS[type_](change.rows.column(name)) for name, type_ in columns]
        arguments = cursor.mogrify(", ".join(["%s"] * len(arrays)), arrays).decode()
        return Staging(_parameters(columns), arguments, number)

    def send(self, cursor: psycopg2.extensions.cursor, staging: Staging, statement: str) -> None:
        """Have a statement run over the rows, at the next `flush` or before; its count is not told."""
        self._hold(self._execute(staging, statement))
        if self._held_bytes > _HELD_BYTES:
            self.flush(cursor)

    def ask(self, cursor: psycopg2.extensions.cursor, staging: Staging, statement: str) -> list[tuple[str | None, ...]]:
        """Run a query over the rows, after all that is held back; return what it finds."""
        self._hold(self._execute(staging, statement))
        self.flush(cursor)
        return [tuple(row) for row in cursor.fetchall()]

    def _execute(self, staging: Staging, statement: str) -> str:
        key = staging.number, statement
        name = self._prepared.get(key)
        if name is None:
            if len(self._prepared) >= PREPARED:
                self._prepared.clear()
                self._hold("DEALLOCATE ALL")
            # Never a name that was there before: a statement that is held back may come to nothing.
            self._count += 1
            name = self._prepared[key] = f"rosetta_{self._count}"
            self._hold(f"PREPARE {name} AS {statement}")
        return f"EXECUTE {name}({staging.arguments})"

    def _hold(self, statement: str) -> None:
        self._held.append(statement)
        self._held_bytes += len(statement)

    def flush(self, cursor: psycopg2.extensions.cursor) -> None:
        """Run what is held back.

        Raises:
            psycopg2.Error: of the first statement that fails; those after it were not run.
        """
        if self._held:
            text = "; ".join(self._held)
            self.begin()
            cursor.execute(text)


def _parameters(columns: Sequence[tuple[str, str]]) -> str:
    arrays = ", ".join(f"${place}::{type_}[]" for place, (_, type_) in enumerate(columns, 1))
    return f"(SELECT * FROM unnest({arrays}) AS v({', '.join(name for name, _ in columns)}))"


def _texts(column: pa.ChunkedArray) -> str:
    quoted = (
        "NULL" if value is None else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for value in column.to_pylist()
    )
    return "{" + ",".join(quoted) + "}"


def _plain(column: pa.ChunkedArray) -> str:
    return "{" + ",".join("NULL" if value is None else str(value) for value in column.to_pylist()) + "}"


_LITERALS: dict[str, Callable[[pa.ChunkedArray], str]] = {"text": _texts, "boolean": _plain, "bigint": _plain}
