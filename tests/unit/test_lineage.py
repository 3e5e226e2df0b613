"""Lineage through filters, renames, masks, history and custom SQL."""

from __future__ import annotations

from dataclasses import replace

from cdc_runner.lineage import mermaid, table_lineage
from cdc_runner.schema import TableId
from cdc_runner.spec import Mask, MaskKind, SyncMode, TableShape

ORDERS, CUSTOMERS = TableId("public", "orders"), TableId("sales", "customers")
KNOWN = {ORDERS: ("id", "customer_id", "amount", "Made"), CUSTOMERS: ("id", "name", "country")}


def _columns(shape: TableShape) -> dict[str, tuple[list[str], str]]:
    found = table_lineage(ORDERS, shape, KNOWN)
    return {one.name: ([str(source) for source in one.sources], one.how) for one in found.columns}


def test_copies_keep_their_columns_through_renames_and_masks() -> None:
    shape = TableShape(
        filter='("amount" > 1)',
        filter_columns=("amount",),
        exclude=("customer_id",),
        rename=(("id", "number"),),
        masks=(("amount", Mask(MaskKind.NULL)), ("Made", Mask(MaskKind.HASH))),
        mode=SyncMode.SOFT_DELETE,
    )
    assert _columns(shape) == {
        "number": (["public.orders.id"], "copied"),
        "amount": ([], "null"),
        "Made": (["public.orders.Made"], "hash"),
        "_rosetta_deleted": ([], "added by Rosetta"),
        "_rosetta_deleted_at": ([], "added by Rosetta"),
    }
    assert [str(one) for one in table_lineage(ORDERS, shape, KNOWN).filter_columns] == ["public.orders.amount"]


def test_custom_sql_is_followed_through_joins_aliases_and_aggregates() -> None:
    sql = (
        "SELECT date_trunc('day', made) AS day, day + INTERVAL 1 DAY AS next, upper(c.name) AS who, "
        "o.customer_id, sum(amount) FILTER (WHERE country = 'x') AS total, count(*) AS n "
        "FROM Orders o JOIN customers c ON c.id = o.customer_id WHERE o.id > 1 GROUP BY ALL"
    )
    assert _columns(TableShape(custom_sql=sql)) == {
        "day": (["public.orders.Made"], "computed"),
        "next": (["public.orders.Made"], "computed"),
        "who": (["sales.customers.name"], "computed"),
        "customer_id": (["public.orders.customer_id"], "copied"),
        "total": (["public.orders.amount", "sales.customers.country"], "computed"),
        "n": ([], "computed"),
    }
    found = table_lineage(ORDERS, TableShape(custom_sql=sql), KNOWN)
    assert found.tables == (ORDERS, CUSTOMERS)
    assert [str(one) for one in found.filter_columns] == ["public.orders.id"]


def test_tables_of_the_destination_are_named_as_such() -> None:
    sql = (
        "SELECT o.id, r.Rate, o.amount * r.rate AS worth, upper(label) AS label, label AS label2, made FROM orders o "
        "LEFT JOIN destination.public.orders r ON r.id = o.customer_id WHERE r.active"
    )
    assert _columns(TableShape(custom_sql=sql)) == {
        "id": (["public.orders.id"], "copied"),
        "Rate": (["destination.public.orders.Rate"], "copied"),
        "worth": (["public.orders.amount", "destination.public.orders.rate"], "computed"),
        "label": (["destination.public.orders.label"], "computed"),
        "label2": (["destination.public.orders.label"], "copied"),
        "made": (["public.orders.Made"], "copied"),
    }
    found = table_lineage(ORDERS, TableShape(custom_sql=sql), KNOWN)
    assert (found.tables, found.lookups) == ((ORDERS,), (ORDERS,))
    assert [str(one) for one in found.filter_columns] == ["destination.public.orders.active"]


def test_what_cannot_be_read_has_no_columns() -> None:
    assert table_lineage(ORDERS, TableShape(custom_sql="SELECT FROM WHERE ("), KNOWN).columns == ()
    assert table_lineage(ORDERS, TableShape(), {}).columns == ()


def test_a_chart_names_each_table_once_and_holds_no_foreign_quote() -> None:
    found = table_lineage(TableId("public", 'a"b'), TableShape(), {})
    looking = replace(found, lookups=(TableId("s", "one"),))
    chart = mermaid([("shop", "lake", TableId("s", "one"), found), ("shop", "lake", TableId("s", "two"), looking)])
    assert chart.splitlines() == [
        "flowchart LR",
        '    n0["lake: s.one"]',
        '    n1[("shop: public.a&quot;b")]',
        "    n1 --> n0",
        '    n2["lake: s.two"]',
        "    n1 --> n2",
        "    n0 -.-> n2",
    ]
