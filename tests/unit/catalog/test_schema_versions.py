"""Versions of a table's schema, which the change stream and a monitor of the source both bring."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from sqlalchemy.orm import Session

from cdc_runner.catalog import reporting
from cdc_runner.catalog.models import SchemaEvolution, TableMetadata
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema

pytestmark = pytest.mark.pg


def numbered(**columns: tuple[int, str]) -> TableSchema:
    """A schema of columns with their numbers and types."""
    made = tuple(
        Column(name, kind, kind, number=number) for name, (number, kind) in {"id": (1, "int"), **columns}.items()
    )
    return TableSchema(TableId("public", "orders"), made, ("id",), ("id",), ReplicaIdentity.DEFAULT)


A, B, C = ("a", (2, "int")), ("b", (3, "int")), ("c", (4, "int"))


@pytest.mark.parametrize(
    "steps",
    [
        # Three columns at once, brought one by one.
        [(), (A,), (A, B), (A, B, C)],
        # A type that is changed twice.
        [(A,), (("a", (2, "bigint")),), (("a", (2, "text")),)],
        # A column that comes and goes, a column that is renamed on the way.
        [(), (A,), (), (B,), (("d", (3, "int")),)],
        [(A, B), (B,), (B, C)],
    ],
)
def test_what_the_stream_brings_late_is_no_newer_version(
    session: Session, pipeline_id: int, steps: list[tuple[tuple[str, tuple[int, str]], ...]]
):
    """The monitor has seen several changes at once, before the stream brings them."""
    made = [numbered(**dict(columns)) for columns in steps]
    table = made[0].table
    reporting.record_schema_change(session, 1001, table, None, None, made[0])
    assert reporting.record_schema_change(session, 1001, table, None, None, made[-1]) == 2
    last = reporting.schema_to_json(made[-1])
    for old, new in pairwise(made):
        assert reporting.record_schema_change(session, 1001, table, None, old, new, lsn=9) == 2
        assert session.query(TableMetadata).populate_existing().one().schema_table == last
    history = session.query(SchemaEvolution).order_by(SchemaEvolution.version_schema).all()
    assert [(one.version_schema, one.lsn) for one in history] == [(1, None), (2, 9)]
    # What comes now is newer.
    newer = numbered(**dict(steps[-1]), e=(9, "int"))
    assert reporting.record_schema_change(session, 1001, table, None, made[-1], newer) == 3


def test_what_is_newer_is_stored_although_the_stream_does_not_know_the_version_before(
    session: Session, pipeline_id: int
):
    """A default is not told by the stream: a column that comes, and one that goes, are steps from before it."""
    known, table = numbered(a=(2, "int"), b=(3, "int")), TableId("public", "orders")
    columns = (known.columns[0], replace(known.columns[1], default="7"), known.columns[2])
    reporting.record_schema_change(session, 1001, table, None, None, known)
    assert reporting.record_schema_change(session, 1001, table, None, None, replace(known, columns=columns)) == 2
    wide = replace(known, columns=(*columns, Column("c", "int", "int", number=4)))
    assert reporting.record_schema_change(session, 1001, table, None, known, wide) == 3
    narrow = replace(wide, columns=(wide.columns[0], *wide.columns[2:]))
    assert reporting.record_schema_change(session, 1001, table, None, known, narrow) == 4
    # There and back, each is a step of its own.
    assert reporting.record_schema_change(session, 1001, table, None, narrow, known) == 5
    assert reporting.record_schema_change(session, 1001, table, None, known, narrow) == 6
