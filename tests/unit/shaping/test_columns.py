"""Columns chosen, renamed and masked."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from cdc_runner.errors import RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema
from cdc_runner.shaping.columns import plan_columns
from cdc_runner.shaping.mask import CopyMasker, masker
from cdc_runner.spec import Mask, MaskKind, SyncMode, TableShape

KEY = SecretStr("key")
TABLE = TableSchema(
    TableId("public", "person"),
    (
        Column("id", "integer", "int4", not_null=True, number=1),
        Column("email", "character varying(80)", "varchar", not_null=True, number=2, default="'x'::text"),
        Column("vip", "boolean", "bool", number=3),
        Column("born", "date", "date", number=4),
        Column("twice", "integer", "int4", generated=True, number=5, expression="id * 2"),
    ),
    ("id",),
    ("id",),
    ReplicaIdentity.DEFAULT,
)
HASH = Mask(MaskKind.HASH)


def test_a_target_has_the_chosen_columns_with_names_and_types_of_masks() -> None:
    shape = TableShape(
        exclude=("born",), rename=(("email", "mail"),), masks=(("email", HASH), ("vip", Mask(MaskKind.NULL)))
    )
    plan = plan_columns(shape, TABLE, KEY)
    assert [(column.name, column.type_text, column.not_null) for column in plan.target.columns] == [
        ("id", "integer", True), ("mail", "text", True), ("vip", "boolean", False),
    ]  # fmt: skip
    assert plan.target.column("mail").default is None
    assert plan.select_list(Position(0)) == '"id", "email", NULL'


def test_a_shape_without_columns_keeps_generated_ones() -> None:
    plan = plan_columns(TableShape(filter='"id" > 1', filter_columns=("id",)), TABLE, None)
    assert plan.target == TABLE
    soft = plan_columns(TableShape(mode=SyncMode.SOFT_DELETE), TABLE, None)
    assert soft.target.column_names[-2:] == ("_rosetta_deleted", "_rosetta_deleted_at")
    assert soft.select_list(Position(0)).endswith(", false, NULL")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (TableShape(masks=(("mail", HASH),)), "mask names mail"),
        (TableShape(exclude=("id",)), "identifies the rows"),
        (TableShape(masks=(("id", Mask(MaskKind.NULL)),)), "only be masked by hash"),
        (TableShape(filter="x", filter_columns=("twice",)), "that the change stream carries"),
        (TableShape(rename=(("email", "vip"),)), "two columns would be named vip"),
        (TableShape(columns=("id",), masks=(("email", HASH),)), "left out"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape: TableShape, message: str) -> None:
    with pytest.raises(RosettaError, match=message):
        plan_columns(shape, TABLE, KEY)


def test_a_hash_is_the_same_for_both_text_forms_and_differs_by_key() -> None:
    vip = TABLE.column("vip")
    hashed = masker(HASH, vip, b"key")
    assert hashed("t") == hashed("true") and hashed("t") != hashed("f") and hashed(None) is None
    assert hashed("t") != masker(HASH, vip, b"other")("t")
    padded = masker(HASH, Column("c", "character(5)", "bpchar"), b"key")
    assert padded("ab   ") == padded("ab")


def test_copy_lines_are_masked_whatever_the_pieces() -> None:
    mask = CopyMasker([None, masker(Mask(MaskKind.TRUNCATE, length=4), TABLE.column("email"), None)])
    data = b"1\ta\\tb\\\\cd\n2\t\\N\n3\t\xc3\xbc\xc3\xbc\xc3\xbc\xc3\xbc\xc3\xbc\n"
    for size in (1, 3, 1000):
        pieces = b"".join(mask(data[at : at + size]) for at in range(0, len(data), size))
        mask.finish()
        assert pieces == b"1\ta\\tb\\\\\n2\t\\N\n3\t\xc3\xbc\xc3\xbc\xc3\xbc\xc3\xbc\n"


def test_fingerprints_tell_shapes_apart() -> None:
    shapes = [TableShape(), TableShape(exclude=("a",)), TableShape(masks=(("a", HASH),)), TableShape(filter="x")]
    assert len({shape.fingerprint for shape in shapes}) == 4 and shapes[0].fingerprint == ""
    for shape in shapes:
        assert TableShape.from_json(shape.as_json(), shape.filter, shape.custom_sql) == shape
