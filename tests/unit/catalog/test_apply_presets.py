"""A preset in the tables of a pipeline's destination: looked up when the file is applied, and shown by its tables."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, select

from cdc_runner.catalog.apply_file import apply_configuration
from cdc_runner.catalog.credentials import Keyring, generate_key, parse_key
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.file_format import parse_configuration
from cdc_runner.catalog.models import TableSync
from cdc_runner.catalog.plan import Plan
from cdc_runner.catalog.secret_source import read_secrets
from cdc_runner.errors import RosettaError
from cdc_runner.services.presets import create_preset

pytestmark = pytest.mark.pg

SHOP = """
sources:
  shop:
    {{host: 127.0.0.1, database: shop, username: rosetta, password: {{env: SHOP_PASSWORD}}{presets}}}
destinations:
  warehouse:
    {{type: postgres, host: b, database: dwh, username: rosetta, password: {{env: SHOP_PASSWORD}}, schema: shop}}
pipelines:
  shop_to_warehouse:
    source: shop
    destinations:
      - destination: warehouse
        tables:
{tables}
"""
PRESETS = ", presets: {core: [public.orders, 'sales.*'], rest: [public.items, public.orders]}"

Apply = Callable[..., Plan]


@pytest.fixture
def keyring() -> Keyring:
    return Keyring(parse_key(generate_key()))


@pytest.fixture
def apply(engine: Engine, keyring: Keyring, tmp_path, monkeypatch: pytest.MonkeyPatch) -> Apply:
    monkeypatch.setenv("SHOP_PASSWORD", "canary-shop")

    def run(*tables: str, presets: str = PRESETS, prune: bool = False, dry_run: bool = False) -> Plan:
        lines = "\n".join(f"          - {one}" for one in tables)
        file = parse_configuration(SHOP.format(presets=presets, tables=lines))
        with session_scope(engine) as session:
            plan = apply_configuration(session, file, read_secrets(file, tmp_path), keyring, prune=prune)
            if dry_run:
                session.rollback()
        return plan

    return run


def declared(engine: Engine) -> dict[str, tuple[str | None, tuple[str, ...]]]:
    """Table -> target and tags, as they are stored."""
    with session_scope(engine) as session:
        rows = session.scalars(select(TableSync).where(TableSync.origin == "DECLARED"))
        return {row.table_name: (row.table_name_target, tuple(sorted(tag.tag for tag in row.tags))) for row in rows}


def shown(plan: Plan) -> str | None:
    (change,) = [one for one in plan.changes if one.kind == "pipeline destination"]
    return next((field.new for field in change.fields if field.name == "tables"), None)


def test_tables_of_presets_are_declared_and_shown(engine: Engine, apply: Apply) -> None:
    tables = ("preset: core", "{preset: rest, tags: [daily]}")
    plan = apply(*tables, dry_run=True)
    assert shown(plan) == "public.items [daily]; public.orders [daily]; sales.*"
    apply(*tables)
    assert declared(engine) == {
        "public.orders": (None, ("daily",)), "sales.*": (None, ()), "public.items": (None, ("daily",)),
    }  # fmt: skip
    assert not apply(*tables).changes_anything


def test_another_apply_follows_a_preset_that_has_changed(engine: Engine, apply: Apply) -> None:
    apply("preset: core")
    plan = apply("preset: core", presets=", presets: {core: [public.items]}")
    assert shown(plan) == "public.items"
    assert set(declared(engine)) == {"public.items"}


@pytest.mark.parametrize("tables", [("preset: core", "{table: public.orders, tags: [own]}"),
                                    ("{table: public.orders, tags: [own]}", "preset: core")])  # fmt: skip
def test_a_table_that_is_named_itself_counts(engine: Engine, apply: Apply, tables) -> None:
    apply(*tables)
    assert declared(engine)["public.orders"] == (None, ("own",))


def test_a_preset_of_the_config_database_serves_until_a_file_prunes_it(engine: Engine, apply: Apply) -> None:
    apply("table: public.items")
    with session_scope(engine) as session:
        create_preset(session, "shop", "stored", ["public.orders"])
    assert shown(apply("preset: stored")) == "public.orders"
    assert not apply("preset: stored", presets="").changes_anything
    with pytest.raises(RosettaError, match=r"\[0\]\.preset: the source has no preset 'stored'; known: core, rest"):
        apply("preset: stored", prune=True)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("preset: gone", r"destinations\[0\]\.tables\[0\]\.preset: the source has no preset 'gone'; known: core, rest"),
        ("{preset: core, filter: id > 1}", r"destinations\[0\]\.tables\[0\]\.filter: is not a known field"),
        ("{preset: core, table: public.orders}", r"destinations\[0\]\.tables\[0\]\.preset: is not a known field"),
        ("{preset: 'no; such'}", r"tables\[0\]\.preset: the name may hold"),
        ("{}", r"tables\[0\]\.table: is missing"),
        ("7", r"tables\[0\]: must be a mapping"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(apply: Apply, table: str, problem: str) -> None:
    with pytest.raises(RosettaError, match=problem):
        apply(table)


def test_presets_that_write_to_one_target_are_refused(apply: Apply) -> None:
    presets = ", presets: {core: [public.orders, sales.orders]}"
    with pytest.raises(RosettaError, match=r"tables\[0\]: .*tables\[0\] writes to the same target already \(orders\)"):
        apply("preset: core", presets=presets)
