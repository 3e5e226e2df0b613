"""Applying configuration files."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.entry_fields import ConfigurationProblems
from cdc_runner.catalog.file_format import parse_configuration
from cdc_runner.catalog.models import Destination, Pipeline, PipelineMetadata, Source
from cdc_runner.catalog.pipelines import load_pipeline, set_status
from cdc_runner.errors import RosettaError
from cdc_runner.services.presets import list_presets
from tests.unit.catalog.conftest import ONLY_SHOP, SHOP, Apply, actions, everything

pytestmark = pytest.mark.pg


def test_a_file_is_created_then_unchanged(engine: Engine, apply: Apply):
    assert set(actions(apply(SHOP)).values()) == {"create"}
    before = everything(engine)
    again = apply(SHOP)
    assert set(actions(again).values()) == {"nothing"}
    assert not again.changes_anything
    assert everything(engine) == before


def test_what_was_applied_is_what_the_engine_reads(engine: Engine, apply: Apply):
    apply(SHOP)
    with session_scope(engine) as session:
        pipeline = session.query(Pipeline).one()
        assert session.query(PipelineMetadata).one().status == "PAUSED"
        spec = load_pipeline(session, pipeline.id)
    assert pipeline.status == "START"
    assert spec.source.slot == spec.source.publication == "rosetta_shop"
    assert spec.source.tables == ("public.*", "sales.order_*")
    assert spec.source.capture_engine == "debezium"
    assert spec.source.address.password.get_secret_value() == "canary-shop"
    (destination,) = spec.destinations
    assert destination.address.password.get_secret_value() == "canary-warehouse"
    assert [(sync.table, sync.target) for sync in destination.syncs] == [
        ("public.orders", "orders_eu"),
        ("sales.*", None),
    ]
    assert (spec.settings.load_workers, spec.settings.drop_columns) == (2, True)


def test_a_dry_run_shows_the_same_and_changes_nothing(engine: Engine, apply: Apply):
    empty = everything(engine)
    dry = apply(SHOP, dry_run=True)
    assert everything(engine) == empty
    assert actions(dry) == actions(apply(SHOP))


def test_differences_are_named_by_field(apply: Apply, engine: Engine):
    apply(SHOP)
    plan = apply(SHOP.replace("port: 5434", "port: 6000").replace("target: orders_eu", "target: orders_asia"))
    fields = {change.name: [str(one) for one in change.fields] for change in plan.changes if change.fields}
    assert fields["shop"] == ["port: 5434 -> 6000"]
    assert "orders_eu" in fields["shop_to_warehouse/warehouse"][0]
    assert "orders_asia" in fields["shop_to_warehouse/warehouse"][0]
    with session_scope(engine) as session:
        pipeline = session.query(Pipeline).one()
        declared = [sync.table_name_target for sync in pipeline.destinations[0].table_syncs]
    assert sorted(declared, key=str) == [None, "orders_asia"]


def test_tags_follow_the_file(apply: Apply, engine: Engine):
    def tags() -> list[str]:
        with session_scope(engine) as session:
            syncs = session.query(Pipeline).one().destinations[0].table_syncs
            return [tag.tag for sync in syncs for tag in sync.tags]

    apply(SHOP)
    assert tags() == ["finance", "pii"]
    apply(SHOP.replace("[finance, PII]", "[finance]"))
    assert tags() == ["finance"]
    apply(SHOP.replace("            tags: [finance, PII]\n", ""))
    assert tags() == []
    apply(SHOP)
    moved = SHOP.replace("            tags: [finance, PII]\n", "") + "            tags: [finance, new]\n"
    apply(moved)
    assert tags() == ["finance", "new"]
    with session_scope(engine) as session:
        known = list(session.scalars(text("SELECT tag FROM tbltag_list ORDER BY 1")))
    assert known == ["finance", "new"], "what no table carries is gone"


def test_presets_follow_the_file_and_stay_without_the_field(apply: Apply, engine: Engine):
    def presets() -> dict[str, list[str]]:
        with session_scope(engine) as session:
            return {row["preset"]: row["tables"] for row in list_presets(session, "shop")}

    apply(SHOP)
    line = '    tables: ["public.*", "sales.order_*"]\n'
    with_presets = SHOP.replace(line, line + "    presets: {core: [public.orders, 'sales.*'], rest: [public.items]}\n")
    plan = apply(with_presets)
    assert {(change.name, change.action) for change in plan.changes if change.kind == "preset"} == {
        ("shop/core", "create"), ("shop/rest", "create")}  # fmt: skip
    assert presets() == {"core": ["public.orders", "sales.*"], "rest": ["public.items"]}
    assert not apply(with_presets).changes_anything
    fewer = with_presets.replace(", rest: [public.items]", "").replace("'sales.*'", "sales.x")
    plan = apply(fewer)
    assert {(change.name, change.action) for change in plan.changes if change.kind == "preset"} == {
        ("shop/core", "change"), ("shop/rest", "left alone")}  # fmt: skip
    assert presets() == {"core": ["public.orders", "sales.x"], "rest": ["public.items"]}
    assert not apply(SHOP).changes_anything
    assert len(presets()) == 2
    with pytest.raises(ConfigurationProblems, match=r"sources\.shop\.presets\.core\[0\]: must be schema\.table"):
        parse_configuration(with_presets.replace("public.orders, 'sales.*'", "'a.b.c'"))


def test_what_the_file_does_not_name_is_left_alone_and_said(engine: Engine, apply: Apply):
    apply(SHOP)
    plan = apply(ONLY_SHOP)
    assert actions(plan) == {
        "source shop": "nothing",
        "pipeline shop_to_warehouse": "left alone",
        "destination warehouse": "left alone",
        "destination lake": "left alone",
    }
    assert "left alone" in plan.as_text()


def test_prune_removes_and_lists_the_slot_that_it_cannot_drop(engine: Engine, apply: Apply):
    apply(SHOP.replace("port: 5434", "port: 1").replace("status: START", "status: PAUSE"))
    before = everything(engine)
    shop = ONLY_SHOP.replace("port: 5434", "port: 1")
    assert actions(apply(shop, prune=True, dry_run=True))["pipeline shop_to_warehouse"] == "remove"
    assert everything(engine) == before
    plan = apply(shop, prune=True)
    assert actions(plan)["destination warehouse"] == "remove"
    assert "SELECT pg_drop_replication_slot('rosetta_shop')" in plan.left_over[0]
    assert 'DROP PUBLICATION "rosetta_shop"' in plan.left_over[1]
    with session_scope(engine) as session:
        assert session.query(Pipeline).count() == session.query(Destination).count() == 0
        assert session.query(Source).count() == 1


def test_prune_refuses_what_runs(engine: Engine, apply: Apply):
    apply(SHOP)
    before = everything(engine)
    with pytest.raises(RosettaError, match="pause shop_to_warehouse"):
        apply(ONLY_SHOP, prune=True)
    assert everything(engine) == before


def test_a_status_that_is_not_given_is_left_as_it_is(engine: Engine, apply: Apply):
    without = SHOP.replace("    status: START\n", "")
    apply(without)
    with session_scope(engine) as session:
        pipeline = session.query(Pipeline).one()
        assert pipeline.status == "PAUSE"
        set_status(session, pipeline.id, "START")
    assert not apply(without).changes_anything
    apply(SHOP.replace("status: START", "status: PAUSE"))
    with session_scope(engine) as session:
        assert session.query(Pipeline).one().status == "PAUSE"
