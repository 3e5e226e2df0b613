from __future__ import annotations

from collections.abc import Sequence

import pytest
from dagster import AssetKey, Definitions, TableColumnDep

from rosetta_dagster.assets.snapshot import CatalogSnapshot, ColumnRow, PipelineRow, TableRow, snapshot_of_rows
from rosetta_dagster.assets.specs import asset_specs, pipeline_key, source_table_key, table_key

pytestmark = pytest.mark.dagster


def table(name: str, *, schema: str = "public", target: str | None = None, tags: Sequence[str] = ()) -> TableRow:
    return TableRow(
        destination="warehouse",
        destination_type="postgres",
        destination_database="dwh",
        source_schema=schema,
        source_table=name,
        target_schema="shop",
        target_table=target or name,
        tags=tuple(tags),
        columns=(ColumnRow(name="id", type_text="bigint", not_null=True, in_key=True),),
    )


def catalog(*tables: TableRow, pipeline: str = "shop_copy") -> CatalogSnapshot:
    row = PipelineRow(
        name=pipeline, source="shop", source_database="shop", capture_engine="debezium", tables=tuple(tables)
    )
    return CatalogSnapshot(pipelines=(row,))


def specs_of(snapshot: CatalogSnapshot):
    return {spec.key: spec for spec in asset_specs(snapshot)}


def test_replicated_table_stands_below_its_source_table() -> None:
    specs = specs_of(catalog(table("orders", target="orders_eu", tags=["finance"])))
    spec = specs[AssetKey(["rosetta", "shop_copy", "warehouse", "shop", "orders_eu"])]
    assert [dep.asset_key for dep in spec.deps] == [AssetKey(["source", "shop", "public", "orders"])]
    assert spec.group_name == "pipeline_shop_copy"
    assert "postgres" in spec.kinds
    assert spec.tags["tag/finance"] == ""
    assert spec.metadata["dagster/table_name"] == "dwh.shop.orders_eu"
    assert [column.name for column in spec.metadata["dagster/column_schema"].value.columns] == ["id"]


def test_owners_come_from_smart_tags() -> None:
    specs = specs_of(catalog(table("orders", tags=["owner.finance", "pii", "owner."])))
    spec = specs[AssetKey(["rosetta", "shop_copy", "warehouse", "shop", "orders"])]
    assert list(spec.owners) == ["team:finance"]


def test_pipeline_asset_stands_below_its_tables_and_has_freshness() -> None:
    specs = specs_of(catalog(table("orders"), table("customers")))
    spec = specs[pipeline_key("shop_copy")]
    assert {dep.asset_key for dep in spec.deps} == {
        table_key("shop_copy", "warehouse", "shop", name) for name in ("orders", "customers")
    }
    assert spec.freshness_policy is not None


def test_two_source_tables_of_one_target_make_one_asset_with_both_upstream() -> None:
    specs = specs_of(
        catalog(table("orders", schema="eu", target="orders"), table("orders", schema="us", target="orders"))
    )
    spec = specs[table_key("shop_copy", "warehouse", "shop", "orders")]
    assert {dep.asset_key for dep in spec.deps} == {
        source_table_key("shop", schema, "orders") for schema in ("eu", "us")
    }


def test_one_source_table_of_two_targets_is_one_source_asset() -> None:
    specs = specs_of(catalog(table("orders"), table("orders", target="daily_revenue")))
    assert len(specs) == 4  # one source table, two targets, the pipeline


@pytest.mark.parametrize(
    "name", ['odd "name', "a/b", "dotted.name", "таблица", "select", "name with spaces", "ж" * 31, "🦆" * 15, "x" * 63]
)
def test_any_table_name_loads_and_keeps_its_own_key(name: str) -> None:
    snapshot = catalog(table(name), table(f"{name}2"[-63:]), pipeline="p-with-dash")
    keys = [spec.key for spec in asset_specs(snapshot)]
    assert len(set(keys)) == len(keys) == 5
    assert all(len(key.to_string()) <= 512 for key in keys)
    Definitions(assets=asset_specs(snapshot)).get_repository_def()


def test_names_too_long_for_dagster_get_short_distinct_keys() -> None:
    keys = {table_key("p" * 63, "d" * 63, "ж" * 31, "щ" * 30 + letter) for letter in "абв"}
    assert len(keys) == 3
    assert all(len(key.to_string()) <= 512 for key in keys)
    assert all(key.path[:2] == ["rosetta", next(iter(keys)).path[1]] for key in keys)


def test_custom_sql_does_not_claim_the_columns_of_the_source() -> None:
    shaped = table("orders").model_copy(update={"custom_sql": True})
    spec = specs_of(catalog(shaped))[table_key("shop_copy", "warehouse", "shop", "orders")]
    assert "dagster/column_schema" not in spec.metadata


def test_columns_say_where_they_come_from() -> None:
    """Through a rename, a mask and custom SQL that joins; the joined table stands upstream, too."""
    schema = {"columns": [{"name": name, "type_text": "text"} for name in ("id", "email", "customer_id")]}
    base: dict[str, object] = {
        "pipeline": "p", "destination": "w", "destination_type": "postgres", "destination_database": "d",
        "source_schema": "public", "source_table": "orders", "target_schema": "public", "tags": [],
        "schema_table": schema, "filter_sql": None, "custom_sql": None, "shape": {}, "known": None,
    }  # fmt: skip
    shape = {"rename": {"id": "number"}, "mask": {"email": {"kind": "hash"}}, "exclude": ["customer_id"]}
    sql = "SELECT o.id, upper(c.name) || o.email AS who FROM orders o JOIN customers c ON c.id = o.customer_id"
    known = [["public", "customers", {"columns": [{"name": "id"}, {"name": "name"}]}]]
    tables = [
        {**base, "target_table": "shaped", "shape": shape},
        {**base, "target_table": "computed", "custom_sql": sql, "known": known},
    ]
    pipelines = [{"name": "p", "source": "s", "source_database": "d", "capture_engine": "pgoutput"}]
    specs = specs_of(snapshot_of_rows(pipelines, tables, "f"))
    orders, customers = source_table_key("s", "public", "orders"), source_table_key("s", "public", "customers")
    shaped, computed = (specs[table_key("p", "w", "public", name)] for name in ("shaped", "computed"))
    assert [(one.name, one.type) for one in shaped.metadata["dagster/column_schema"].value.columns] == [
        ("number", "text"), ("email", "text"),
    ]  # fmt: skip
    assert shaped.metadata["dagster/column_lineage"].value.deps_by_column == {
        "number": [TableColumnDep(orders, "id")],
        "email": [TableColumnDep(orders, "email")],
    }
    assert computed.metadata["dagster/column_lineage"].value.deps_by_column == {
        "id": [TableColumnDep(orders, "id")],
        "who": [TableColumnDep(customers, "name"), TableColumnDep(orders, "email")],
    }
    assert {dep.asset_key for dep in computed.deps} == {orders, customers} and customers in specs


def test_a_lookup_at_the_destination_is_told_and_is_no_table_of_the_source() -> None:
    """A table of the source has the same name; the looked-up columns are not its."""
    schema = {"columns": [{"name": name, "type_text": "text"} for name in ("id", "code")]}
    sql = "SELECT o.id, r.code, o.id || r.code AS both FROM orders o JOIN destination.public.orders r ON r.id = o.code"
    row: dict[str, object] = {
        "pipeline": "p", "destination": "w", "destination_type": "postgres", "destination_database": "d",
        "source_schema": "public", "source_table": "orders", "target_schema": "public", "target_table": "t", "tags": [],
        "schema_table": schema, "filter_sql": None, "custom_sql": sql, "shape": {}, "known": None,
    }  # fmt: skip
    pipelines = [{"name": "p", "source": "s", "source_database": "d", "capture_engine": "pgoutput"}]
    spec = specs_of(snapshot_of_rows(pipelines, [row], "f"))[table_key("p", "w", "public", "t")]
    orders = source_table_key("s", "public", "orders")
    assert spec.metadata["dagster/column_lineage"].value.deps_by_column == {
        "id": [TableColumnDep(orders, "id")],
        "both": [TableColumnDep(orders, "id")],
    }
    assert {dep.asset_key for dep in spec.deps} == {orders}
    assert "looked up in public.orders of the destination" in str(spec.description)
