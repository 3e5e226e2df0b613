"""Lineage through filters, renames, masks, history and custom SQL."""

from __future__ import annotations

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


def test_what_cannot_be_read_has_no_columns() -> None:
    assert table_lineage(ORDERS, TableShape(custom_sql="SELECT FROM WHERE ("), KNOWN).columns == ()
    assert table_lineage(ORDERS, TableShape(), {}).columns == ()


def test_a_chart_names_each_table_once_and_holds_no_foreign_quote() -> None:
    found = table_lineage(TableId("public", 'a"b'), TableShape(), {})
    chart = mermaid([("shop", "lake: one", found), ("shop", "lake: two", found)])
    assert chart.splitlines() == [
        "flowchart LR",
        '    n0["lake: one"]',
        '    n1[("shop: public.a&quot;b")]',
        "    n1 --> n0",
        '    n2["lake: two"]',
        "    n1 --> n2",
    ]
