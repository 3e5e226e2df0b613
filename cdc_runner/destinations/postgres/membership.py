"""Which rows of a source table went into which row of a target of custom SQL, kept in the target's database."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

import psycopg2.extensions

from cdc_runner.schema import TableId
from cdc_runner.shaping.mask import copy_field

_CREATE = """
CREATE TABLE IF NOT EXISTS _rosetta.custom_sql_row (
    pipeline text NOT NULL,
    target_schema text NOT NULL,
    target_table text NOT NULL,
    row_key text NOT NULL,
    group_key text NOT NULL,
    PRIMARY KEY (pipeline, target_schema, target_table, row_key)
);
-- A group's text may be longer than an entry of an index.
CREATE INDEX IF NOT EXISTS custom_sql_row_group
    ON _rosetta.custom_sql_row (pipeline, target_schema, target_table, md5(group_key));
"""
_OWN = "pipeline = %s AND target_schema = %s AND target_table = %s"


def create(cursor: psycopg2.extensions.cursor) -> None:
    """Create the table unless it is there, in the current transaction."""
    cursor.execute("SELECT to_regclass('_rosetta.custom_sql_row') IS NOT NULL")
    row = cursor.fetchone()
    if row is None or not row[0]:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('rosetta state'))")
        cursor.execute(_CREATE)


def forget_pipeline(cursor: psycopg2.extensions.cursor, pipeline: str) -> None:
    """Remove what is kept for a pipeline, in the current transaction."""
    cursor.execute("SELECT to_regclass('_rosetta.custom_sql_row') IS NOT NULL")
    row = cursor.fetchone()
    if row is not None and row[0]:
        cursor.execute("DELETE FROM _rosetta.custom_sql_row WHERE pipeline = %s", (pipeline,))


class PostgresMembership:
    """See `cdc_runner.shaping.net.Membership`; in the transaction of a cursor."""

    def __init__(self, cursor: psycopg2.extensions.cursor, pipeline: str, target: TableId) -> None:
        """Args:
        cursor: of the transaction.
        pipeline: under which it is kept.
        target: the target table.
        """
        self._cursor = cursor
        self._own = (pipeline, target.schema, target.name)

    def groups_of(self, rows: Sequence[str]) -> dict[str, str]:
        """Return the groups that rows went into."""
        if not rows:
            return {}
        self._cursor.execute(
            f"SELECT row_key, group_key FROM _rosetta.custom_sql_row WHERE {_OWN} AND row_key = ANY (%s)",
            (*self._own, list(rows)),
        )
        return dict(self._cursor.fetchall())

    def rows_of(self, groups: Sequence[str], most: int) -> dict[str, str] | None:
        """Return the rows that went into groups."""
        if not groups:
            return {}
        self._cursor.execute(
            f"SELECT row_key, group_key FROM _rosetta.custom_sql_row WHERE {_OWN} "
            "AND md5(group_key) IN (SELECT md5(one) FROM unnest(%s) one) AND group_key = ANY (%s) LIMIT %s",
            (*self._own, list(groups), list(groups), max(0, most) + 1),
        )
        found = self._cursor.fetchall()
        return None if len(found) > most else dict(found)

    def largest(self, groups: Sequence[str]) -> int:
        """Return how many rows the largest of the groups has."""
        self._cursor.execute(
            f"SELECT count(*) FROM _rosetta.custom_sql_row WHERE {_OWN} "
            "AND md5(group_key) IN (SELECT md5(one) FROM unnest(%s) one) AND group_key = ANY (%s) "
            "GROUP BY group_key ORDER BY 1 DESC LIMIT 1",
            (*self._own, list(groups), list(groups)),
        )
        row = self._cursor.fetchone()
        return 0 if row is None else int(row[0])

    def place(self, rows: Iterable[str], groups: Mapping[str, str]) -> None:
        """Note that rows now are in these groups, and those of them that are not named in none."""
        self._cursor.execute(
            f"DELETE FROM _rosetta.custom_sql_row WHERE {_OWN} AND row_key = ANY (%s)", (*self._own, list(rows))
        )
        self.add(groups)

    def add(self, groups: Mapping[str, str]) -> None:
        """Note groups of rows that were in none."""
        own = b"\t".join(copy_field(one) for one in self._own)
        lines = [b"\t".join((own, copy_field(row), copy_field(group))) for row, group in groups.items()]
        if lines:
            data = io.BytesIO(b"\n".join(lines) + b"\n")
            self._cursor.copy_expert("COPY _rosetta.custom_sql_row FROM STDIN", data, size=1 << 18)

    def clear(self) -> None:
        """Forget all rows."""
        self._cursor.execute(f"DELETE FROM _rosetta.custom_sql_row WHERE {_OWN}", self._own)

    def all_rows(self, rows: int) -> Iterator[list[tuple[str, str]]]:
        """Yield all rows with their group, whole groups one after the other, so many rows at a time."""
        with self._cursor.connection.cursor("rosetta_custom_groups") as cursor:
            cursor.itersize = rows
            cursor.execute(
                f'SELECT row_key, group_key FROM _rosetta.custom_sql_row WHERE {_OWN} ORDER BY group_key COLLATE "C", '
                'row_key COLLATE "C"',
                self._own,
            )
            while found := cursor.fetchmany(rows):
                yield found
