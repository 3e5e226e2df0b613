"""Configuration files that are refused: each problem is named, and nothing is changed."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from cdc_runner.catalog.entry_fields import ConfigurationProblems
from cdc_runner.catalog.file_format import parse_configuration
from cdc_runner.errors import RosettaError
from tests.unit.catalog.conftest import SHOP, Apply, everything

pytestmark = pytest.mark.pg


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("{env: SHOP_PASSWORD}", "canary-literal"), r"sources\.shop\.password: a literal secret is refused"),
        (("{env: SHOP_PASSWORD}", "{env: NOT_SET_HERE}"), r"sources\.shop\.password: .*NOT_SET_HERE is not set"),
        (
            ("{file: warehouse.secret}", "{file: nowhere}"),
            r"destinations\.warehouse\.password: the file nowhere cannot",
        ),
        (("port: 5434", "port: abc"), r"sources\.shop\.port: must be a whole number"),
        (("port: 5434", "port: '5434'"), r"sources\.shop\.port: must be a whole number"),
        (("port: 5434", "port: 70000"), r"sources\.shop\.port: must be less than"),
        (("host: 127.0.0.1", "host: ''"), r"sources\.shop\.host: must not be empty"),
        (("username: rosetta", "user: rosetta"), r"sources\.shop\.user: is not a known field"),
        (("status: START", "status: REFRESH"), r"pipelines\.shop_to_warehouse\.status: must be"),
        (("status: START", "statuss: START"), r"pipelines\.shop_to_warehouse\.statuss: is not a known field"),
        (("source: shop", "source: shopp"), r"pipelines\.shop_to_warehouse\.source: no source 'shopp'"),
        (("destination: warehouse", "destination: x"), r"destinations\[0\]\.destination: no destination 'x'"),
        (("load_workers: 2", "load_workers: -2"), r"settings\.load_workers: .* is not between 1 and 64"),
        (("load_workers: 2", "load_workers: 2000000000"), r"settings\.load_workers: .* is not between 1 and 64"),
        (("load_workers: 2", "wal_error_megabytes: 2"), r"settings\.wal_error_megabytes: no setting"),
        (
            ("target: orders_eu", "filter: \"region = 'EU' OR now() > at\""),
            r"\.filter: function current_time",
        ),
        (("target: orders_eu", 'filter: "\' OR 1=1 --"'), r"tables\[0\]\.filter: it cannot be read"),
        (("target: orders_eu", "mask: {email: sha}"), r"tables\[0\]\.mask: a mask is hash, null"),
        (("target: orders_eu", "mode: delete"), r"tables\[0\]\.mode: must be"),
        (('table: "sales.*"', 'table: "sales.*"\n            exclude: [a]'), r"tables\[1\]: a pattern of several"),
        (("target: orders_eu", "custom_sql: SELECT 1"), r"tables\[0\]\.custom_sql: FROM must name the table"),
        (("target: orders_eu", "custom_sql: SELECT * FROM read_csv('/x')"), r"\.custom_sql: table function read_csv"),
        (
            ("target: orders_eu", "custom_sql: SELECT id FROM orders_eu\n            filter: id = 1"),
            "takes none of filter",
        ),
        (("target: orders_eu", "key: [id]"), "key belongs to custom_sql"),
        (('table: "sales.*"', 'table: "sales.*"\n            target: x'), r"tables\[1\]: a pattern of several tables"),
        (('table: "sales.*"', "table: sales.orders_eu"), r"tables\[1\]: .*tables\[0\] writes to the same target"),
        (('"public.*"', '"a.b.c"'), r"sources\.shop\.tables\[0\]: must be schema.table"),
        (("  shop:\n", "  shop; DROP TABLE x:\n"), "the name may hold letters"),
        (("    host: 127.0.0.1\n    port: 5434", "    host: a\n    host: b\n    port: 5434"), "a key is given twice"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_changed(
    engine: Engine, apply: Apply, change: tuple[str, str], problem: str
):
    empty = everything(engine)
    content = SHOP.replace(*change, 1)
    assert content != SHOP
    with pytest.raises(RosettaError, match=problem) as caught:
        apply(content)
    assert "canary" not in str(caught.value)
    assert everything(engine) == empty


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigurationProblems) as caught:
        parse_configuration(SHOP.replace("port: 5434", "port: x").replace("status: START", "status: GO"))
    assert len(caught.value.problems) == 2


def test_two_pipelines_of_one_source_and_two_sources_of_one_slot_are_refused(engine: Engine, apply: Apply):
    second = SHOP + "  second:\n    source: shop\n    destinations: [{destination: lake}]\n"
    with pytest.raises(RosettaError, match="one pipeline feeds many destinations"):
        apply(second)
    twin = """
sources:
  twin: {host: 127.0.0.1, port: 5434, database: d, username: u, password: {env: SHOP_PASSWORD}, slot: rosetta_shop}
"""
    with pytest.raises(RosettaError, match=r"sources\.shop\.slot: .*uses this slot on the same server"):
        apply(twin + SHOP.replace("sources:", ""))
    apply(SHOP)
    with pytest.raises(RosettaError, match=r"sources\.twin\.slot: source shop uses this slot"):
        apply(twin)
    with pytest.raises(RosettaError, match="uses this source already"):
        apply("pipelines: {second: {source: shop, destinations: [{destination: lake}]}}")


@pytest.mark.parametrize("content", ["", "- 1", "a: [", "x: \x01", "sources: 1", "&a [*a]"])
def test_what_is_not_a_configuration_is_refused(content: str):
    with pytest.raises(ConfigurationProblems):
        parse_configuration(content)


def test_the_slot_of_a_used_source_does_not_change(engine: Engine, apply: Apply):
    apply(SHOP)
    before = everything(engine)
    with pytest.raises(RosettaError, match=r"sources\.shop\.slot: cannot change while pipeline shop_to_warehouse"):
        apply(SHOP.replace("    database: shop\n", "    database: shop\n    slot: another\n"))
    assert everything(engine) == before


def test_custom_sql_for_snowflake_is_refused_by_name(apply: Apply) -> None:
    entry = '      - destination: lake\n        tables: [{table: public.orders, custom_sql: "SELECT id FROM orders"}]\n'
    with pytest.raises(RosettaError, match=r"destination lake, table public\.orders: custom_sql is for PostgreSQL"):
        apply(SHOP + entry)
