from __future__ import annotations

from typing import Any

import pytest

from cdc_runner.catalog.schema_diff import change_names, differences


def column(name: str, number: int, type_text: str = "text", **more: Any) -> dict[str, Any]:
    return {"name": name, "number": number, "type_text": type_text, "not_null": False, "default": None, **more}


def schema(*columns: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"schema": "public", "table": "orders", "columns": list(columns), "key": ["id"], "primary_key": ["id"],
            "replica_identity": "d", **more}  # fmt: skip


ID = column("id", 1, "bigint", not_null=True)
OLD = schema(ID, column("note", 2), column("amount", 3, "numeric(10,2)"))


@pytest.mark.parametrize(("new", "names", "told"), [
    (schema(ID, column("note", 2), column("amount", 3, "numeric(10,2)"), column("at", 4, "date")),
     "NEW COLUMN", "NEW COLUMN at - → date"),
    (schema(ID, column("amount", 3, "numeric(10,2)")), "DROP COLUMN", "DROP COLUMN note text → -"),
    (schema(ID, column("remark", 2), column("amount", 3, "numeric(10,2)")),
     "RENAME COLUMN", "RENAME COLUMN remark note → remark"),
    (schema(ID, column("note", 2), column("amount", 3, "numeric(12,2)")),
     "CHANGES TYPE", "CHANGES TYPE amount numeric(10,2) → numeric(12,2)"),
    # The same name under another number: dropped and made anew.
    (schema(ID, column("note", 9), column("amount", 3, "numeric(10,2)")), "NEW COLUMN, DROP COLUMN", "NEW COLUMN note"),
    (schema(ID, column("note", 2, not_null=True, default="''::text"), column("amount", 3, "numeric(10,2)")),
     "CHANGES NULLABILITY, CHANGES DEFAULT", "CHANGES NULLABILITY note NULL → NOT NULL"),
    ({**OLD, "primary_key": ["id", "note"], "key": ["id", "note"]}, "CHANGES KEY", "CHANGES KEY id → id, note"),
    ({**OLD, "replica_identity": "f"}, "CHANGES REPLICA IDENTITY", "CHANGES REPLICA IDENTITY d → f"),
    ({**OLD, "table": "sales"}, "RENAME TABLE", "RENAME TABLE public.orders → public.sales"),
    ({**OLD, "partitioned": True}, "OTHER CHANGE", "OTHER CHANGE"),
    (OLD, "", ""),
    (None, "DROP TABLE", "DROP TABLE"),
])  # fmt: skip
def test_differences_are_named(new: dict[str, Any] | None, names: str, told: str) -> None:
    found = differences(OLD, new)
    assert change_names(found) == names
    assert (str(found[0]) if found else "").startswith(told)


def test_first_version_and_columns_without_numbers() -> None:
    assert change_names(differences(None, OLD)) == "INITIAL_LOAD"
    before = schema(column("id", 0), column("a", 0))
    after = schema(column("id", 0), column("b", 0))
    assert change_names(differences(before, after)) == "NEW COLUMN, DROP COLUMN"
