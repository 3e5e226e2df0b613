"""The order of tables that foreign keys ask for."""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter

import psycopg2.extensions

from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableId


def foreign_key_order(cursor: psycopg2.extensions.cursor, tables: Sequence[TableId]) -> list[TableId]:
    """Return the tables with parents before their children.

    Raises:
        RosettaError: DESTINATION_SCHEMA when foreign keys form a circle: no order satisfies them.
    """
    cursor.execute(
        """SELECT cn.nspname, c.relname, pn.nspname, p.relname
           FROM pg_constraint f
           JOIN pg_class c ON c.oid = f.conrelid JOIN pg_namespace cn ON cn.oid = c.relnamespace
           JOIN pg_class p ON p.oid = f.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace
           WHERE f.contype = 'f' AND f.conrelid <> f.confrelid"""
    )
    wanted = set(tables)
    sorter: TopologicalSorter[TableId] = TopologicalSorter({table: set() for table in sorted(wanted)})
    for child_schema, child, parent_schema, parent in cursor.fetchall():
        pair = TableId(child_schema, child), TableId(parent_schema, parent)
        if wanted.issuperset(pair):
            sorter.add(*pair)
    try:
        return list(sorter.static_order())
    except CycleError as error:
        circle = ", ".join(str(table) for table in error.args[1])
        raise RosettaError(
            ErrorKind.DESTINATION_SCHEMA,
            f"foreign keys of the target tables form a circle ({circle}) and the role may not set "
            "session_replication_role: grant it (GRANT SET ON PARAMETER session_replication_role TO ...) or make the "
            "constraints DEFERRABLE",
        ) from error
