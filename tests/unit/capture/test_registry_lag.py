"""A catalog that is a moment behind the stream: a commit is in the WAL before other sessions can see it."""

from __future__ import annotations

import dataclasses

from cdc_runner.capture.registry import SchemaRegistry, StreamColumn
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema

OLD = TableSchema(
    TableId("public", "t"), (Column("id", "integer", "int4", number=1),), ("id",), ("id",), ReplicaIdentity.DEFAULT
)
NEW = dataclasses.replace(
    OLD, columns=(*OLD.columns, Column("extra", "integer", "int4", default="5", missing_value="5", number=2))
)
DESCRIBED = [StreamColumn("id", "int4"), StreamColumn("extra", "int4")]


def test_the_catalog_is_waited_for_when_it_shows_the_columns_of_before() -> None:
    answers, paused = [OLD, OLD, NEW], list[float]()
    registry = SchemaRegistry([OLD], lambda table: answers.pop(0), pause=paused.append)
    assert registry.resolve(OLD.table, DESCRIBED).schema.columns == NEW.columns
    assert len(paused) == 2


def test_a_column_that_came_and_went_is_waited_for_a_moment_only() -> None:
    paused: list[float] = []
    registry = SchemaRegistry([OLD], lambda table: OLD, pause=paused.append)
    assert registry.resolve(OLD.table, DESCRIBED).schema.column("extra").number == 0
    assert sum(paused) <= 1.01
