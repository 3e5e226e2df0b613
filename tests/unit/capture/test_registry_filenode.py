"""What the registry believes of a catalog that is ahead of the stream."""

from __future__ import annotations

from cdc_runner.capture.registry import StreamColumn, merge
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema

TABLE = TableId("public", "t")


def schema(*names: str, filenode: int) -> TableSchema:
    columns = tuple(Column(name, "integer", "int4", number=number) for number, name in enumerate(names, 1))
    return TableSchema(TABLE, columns, ("id",), ("id",), ReplicaIdentity.DEFAULT, oid=1, filenode=filenode)


def described(*names: str) -> list[StreamColumn]:
    return [StreamColumn(name, "int4") for name in names]


def test_filenode_of_a_catalog_that_has_the_columns_of_the_stream_is_kept() -> None:
    catalog = schema("id", "a", filenode=8)
    assert merge(TABLE, described("id", "a"), schema("id", filenode=7), catalog).filenode == 8


def test_filenode_of_a_catalog_that_knows_a_later_column_is_unknown() -> None:
    catalog = schema("id", "a", "b", filenode=8)
    assert merge(TABLE, described("id", "a"), schema("id", filenode=7), catalog).filenode == 0
