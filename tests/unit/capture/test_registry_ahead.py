"""Tables that are described together are read from the catalog together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cdc_runner.capture.pgoutput.messages import Relation
from cdc_runner.capture.pgoutput.relations import Relations
from cdc_runner.capture.registry import SchemaRegistry, StreamColumn
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema

INT4 = 23


def schema(number: int, *names: str) -> TableSchema:
    columns = tuple(Column(name, "integer", "int4", number=place) for place, name in enumerate(("id", *names), 1))
    return TableSchema(
        TableId("public", f"t{number}"), columns, ("id",), ("id",), ReplicaIdentity.DEFAULT, oid=number + 1
    )


class Catalog:
    """Present schemas, and how they were asked for."""

    def __init__(self, schemas: Sequence[TableSchema]) -> None:
        self.present = {one.table: one for one in schemas}
        self.asked: list[list[TableId]] = []

    def read(self, table: TableId) -> TableSchema | None:
        self.asked.append([table])
        return self.present.get(table)

    def read_all(self, tables: Sequence[TableId]) -> dict[TableId, TableSchema]:
        self.asked.append(list(tables))
        return {table: self.present[table] for table in tables if table in self.present}


def relation(schema: TableSchema) -> Relation:
    names = schema.stream_names
    return Relation(schema.oid.to_bytes(4), schema.table, tuple((name, INT4) for name in names), "d", ("id",))


def test_relations_that_come_together_take_one_look_and_unwanted_ones_none() -> None:
    known = [schema(number) for number in range(50)]
    catalog = Catalog([schema(number, "more") for number in range(50)])
    registry = SchemaRegistry(known, catalog.read, read_all=catalog.read_all)
    wanted = [one.table for one in known[:40]]
    relations = Relations(registry, wanted, lambda numbers: dict.fromkeys(numbers, "int4"))
    described = [relation(one) for one in catalog.present.values()]
    relations.look_ahead(described)
    resolved = [relations.resolve(one) for one in described]
    assert catalog.asked == [wanted]
    assert [one.version.schema for one in resolved if one is not None] == list(catalog.present.values())[:40]
    relations.look_ahead(described)
    assert len(catalog.asked) == 1


def test_what_was_read_ahead_serves_once() -> None:
    """A description that comes later may stand for a later change."""
    old, new = schema(1), schema(1, "more")
    catalog = Catalog([old, schema(2)])
    registry = SchemaRegistry([old, schema(2)], catalog.read, read_all=catalog.read_all)
    registry.look_ahead([old.table, TableId("public", "t2")])
    assert registry.resolve(old.table, [StreamColumn("id", "int4")]).schema == old
    catalog.present[new.table] = new
    described = [StreamColumn("id", "int4"), StreamColumn("more", "int4")]
    assert registry.resolve(old.table, described).schema == new


def test_a_table_that_is_gone_is_described_from_what_was_known() -> None:
    old = schema(1)
    catalog = Catalog([dataclasses.replace(schema(2))])
    registry = SchemaRegistry([old, schema(2)], catalog.read, read_all=catalog.read_all)
    registry.look_ahead([old.table, TableId("public", "t2")])
    assert registry.resolve(old.table, [StreamColumn("id", "int4")]).schema.columns == old.columns
    assert len(catalog.asked) == 1
