"""The jobs that administer sources, destinations, pipelines, settings and notifications, launched as the pages do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.pipelines import source_place
from tests.support.receiver import receiving
from tests.support.snowflake_door import ACCOUNT, USER
from tests.support.snowflake_server import DATABASE

pytestmark = [pytest.mark.dagster, pytest.mark.pg]


SOURCE = {"host": "127.0.0.1", "port": 9, "database": "shop", "username": "rosetta", "password_env": "ANY_PASSWORD"}


def test_source_is_created_changed_copied_and_removed(catalog, launch) -> None:
    assert "is created" in launch("create_source", name="shop", **SOURCE)["result"]
    assert "exists already" in launch("create_source", succeeds=False, name="shop", **SOURCE)["failure"]
    assert "secret is never typed" in launch(
        "create_source", succeeds=False, name="other", **{**SOURCE, "password_env": ""})["failure"]  # fmt: skip
    assert "2 fields" in launch("change_source", "shop", host="DB.example.com", tables=["sales.*"])["result"]
    assert catalog.execute("SELECT host, table_patterns, username FROM sources") == [
        ("db.example.com", ["sales.*"], "rosetta")]  # fmt: skip
    assert "sslmode" in launch("change_source", "shop", succeeds=False, sslmode="maybe")["failure"]
    assert "nothing to change" in launch("change_source", "shop", succeeds=False)["failure"]
    launch("duplicate_source", "shop", new_name="shop2")
    rows = catalog.execute("SELECT id, slot_name, password FROM sources WHERE name = 'shop2'")
    ((identifier, slot, stored),) = rows
    assert slot == "rosetta_shop2"
    assert Keyring(bytes(range(32))).decrypt(stored, source_place(identifier)).get_secret_value() == "canary-word"
    assert "dry run" in launch("remove_source", "shop2")["result"]
    assert catalog.execute("SELECT count(*) FROM sources") == [(2,)]
    assert "is removed" in launch("remove_source", "shop2", dry_run=False, keep_slot=True)["result"]
    assert catalog.execute("SELECT count(*) FROM sources") == [(1,)]


def test_destination_is_created_changed_copied_and_removed(catalog, launch) -> None:
    target = {"type": "postgres", "host": "h", "database": "d", "username": "u", "password_env": "ANY_PASSWORD"}
    launch("create_destination", name="dwh", target_schema="shop", **target)
    assert "literal" not in launch("change_destination", "dwh", port=5433, target_schema="sales")["result"]
    assert catalog.execute("SELECT config ->> 'port', config ->> 'schema' FROM destinations") == [("5433", "sales")]
    launch("change_destination", "dwh", password_env="ANY_PASSWORD")
    launch("duplicate_destination", "dwh", new_name="dwh2")
    assert "dry run" in launch("remove_destination", "dwh2")["result"]
    launch("remove_destination", "dwh2", dry_run=False)
    assert catalog.execute("SELECT name FROM destinations") == [("dwh",)]
    assert "connect" in launch("test_destination", "dwh", succeeds=False)["failure"]


def test_pipeline_is_created_and_what_it_copies_is_changed(catalog, launch, add_pipeline) -> None:
    add_pipeline("shop")
    launch("create_source", name="billing", **SOURCE)
    target = {"type": "postgres", "host": "h", "database": "d", "username": "u", "password_env": "ANY_PASSWORD"}
    for name in ("one", "two"):
        launch("create_destination", name=name, **target)
    launch("create_pipeline", name="bills", source="billing", destinations=["one"])
    assert "uses this source already" in launch(
        "create_pipeline", succeeds=False, name="more", source="billing", destinations=["one"])["failure"]  # fmt: skip
    launch("add_pipeline_destination", "bills", destination="two")
    assert "already" in launch("add_pipeline_destination", "bills", succeeds=False, destination="two")["failure"]
    launch("add_pipeline_table", "bills", destination="two", table="public.invoices", target="bills", tags=["pii"])
    launch("add_pipeline_table", "bills", destination="two", table="public.items")
    declared = (
        "SELECT s.table_name, s.table_name_target FROM pipelines_destination_table_sync s"
        " JOIN pipeline_destinations d ON d.id = s.pipeline_destination_id"
        " JOIN pipelines p ON p.id = d.pipeline_id WHERE p.name = 'bills' ORDER BY 1"
    )
    assert catalog.execute(declared) == [("public.invoices", "bills"), ("public.items", None)]
    assert "dry run" in launch("remove_pipeline_table", "bills", destination="two", table="public.items")["result"]
    launch("remove_pipeline_table", "bills", destination="two", table="public.items", dry_run=False)
    assert catalog.execute(declared) == [("public.invoices", "bills")]
    refused = launch("remove_pipeline_table", "bills", succeeds=False, destination="two", table="public.invoices",
                     target="bills", dry_run=False)  # fmt: skip
    assert "last declared table" in refused["failure"]
    launch("change_pipeline_settings", "bills", settings={"load_workers": "3"})
    assert catalog.execute("SELECT settings FROM pipelines WHERE name = 'bills'") == [({"load_workers": "3"},)]
    assert "load_workers" in launch(
        "change_pipeline_settings", "bills", succeeds=False, settings={"load_workers": "0"})["failure"]  # fmt: skip
    assert "dry run" in launch("remove_pipeline_destination", "bills", destination="two")["result"]
    launch("remove_pipeline_destination", "bills", destination="two", dry_run=False)
    assert "only destination" in launch("remove_pipeline_destination", "bills", destination="one")["result"]
    assert "2 pipelines" in launch("list_pipelines")["result"]


def test_the_only_destination_need_not_be_named(catalog, launch) -> None:
    launch("create_source", name="billing", **SOURCE)
    target = {"type": "postgres", "host": "h", "database": "d", "username": "u", "password_env": "ANY_PASSWORD"}
    launch("create_destination", name="one", **target)
    launch("create_pipeline", name="bills", source="billing", destinations=["one"])
    assert "0 destinations" in launch("add_pipeline_destination", "bills", succeeds=False)["failure"]
    assert "for one" in launch("add_pipeline_table", "bills", table="public.invoices")["result"]
    launch("add_pipeline_table", "bills", table="public.items")
    assert "from one" in launch("remove_pipeline_table", "bills", table="public.items", dry_run=False)["result"]
    launch("create_destination", name="two", **target)
    assert "feeds two now" in launch("add_pipeline_destination", "bills")["result"]
    for job, config in (("add_pipeline_table", {"table": "public.x"}), ("remove_pipeline_table", {"table": "public.x"}),
                        ("remove_pipeline_destination", {})):  # fmt: skip
        assert "say which: one, two" in launch(job, "bills", succeeds=False, **config)["failure"], job
    assert "no destination" in launch(
        "add_pipeline_table", "bills", succeeds=False, destination="three", table="public.x")["failure"]  # fmt: skip


def test_change_of_a_pipeline_leaves_masks_and_filters_of_its_tables(catalog, launch) -> None:
    launch("create_source", name="billing", **SOURCE)
    target = {"type": "postgres", "host": "h", "database": "d", "username": "u", "password_env": "ANY_PASSWORD"}
    launch("create_destination", name="one", **target)
    launch("create_destination", name="two", **target)
    launch("create_pipeline", name="bills", source="billing", destinations=["one"])
    shaped = {
        "filter": "region = 'EU'", "exclude": ["notes"], "rename": {"id": "key"}, "mode": "soft_delete",
        "mask": {"email": "hash", "phone": {"truncate": 3}, "name": {"constant": "x"}, "iban": "null"},
    }  # fmt: skip
    launch("add_pipeline_table", "bills", destination="one", table="public.invoices", tags=["pii"], **shaped)
    stored = "SELECT filter_sql, shape FROM pipelines_destination_table_sync WHERE table_name = 'public.invoices'"
    ((condition, shape),) = catalog.execute(stored)
    assert set(shape["mask"]) == {"email", "phone", "name", "iban"} and shape["mask"]["phone"]["length"] == 3
    launch("add_pipeline_table", "bills", destination="one", table="public.items", columns=["id", "price"])
    launch("add_pipeline_destination", "bills", destination="two")
    launch("change_pipeline_settings", "bills", settings={"load_workers": "3"})
    assert catalog.execute(stored) == [(condition, shape)]
    ((tags,),) = catalog.execute("SELECT count(*) FROM pipelines_destination_table_sync_tag")
    assert tags == 1


def test_tables_publication_and_slot_of_a_real_source(catalog, launch, source_database) -> None:
    server = source_database.server
    source_database.execute("CREATE TABLE orders (id int PRIMARY KEY); CREATE TABLE loose (a int)")
    catalog_source = {
        "host": server.host, "port": server.port, "database": source_database.name, "username": server.username,
    }  # fmt: skip
    launch("create_source", name="shop", tables=["public.orders"], password_env="ANY_PASSWORD", **catalog_source)
    ((identifier,),) = catalog.execute("SELECT id FROM sources")
    secret = Keyring(bytes(range(32))).encrypt(server.password, source_place(identifier))
    catalog.execute("UPDATE sources SET password = %s, slot_name = %s", (secret, f"{source_database.name}_s"))
    assert "reachable" in launch("test_source", "shop")["result"]
    assert launch("list_source_tables", "shop")["result"] == "2 tables at source shop, 1 of them registered"
    assert launch("browse_source_schema", "shop", table="public.orders")["result"] == "1 columns"
    assert "no table" in launch("register_tables", "shop", succeeds=False, tables=["public.absent"])["failure"]
    assert "1 of 2" in launch("register_tables", "shop", tables=["public.loose", "public.orders"])["result"]
    assert "dry run" in launch("unregister_tables", "shop", tables=["public.loose"])["result"]
    launch("unregister_tables", "shop", tables=["public.loose"], dry_run=False)
    assert catalog.execute("SELECT table_patterns FROM sources") == [(["public.orders"],)]
    launch("create_preset", "shop", name="core", tables=["public.orders"])
    assert "1 new tables" in launch("create_publication", "shop", preset="core")["result"]
    refused = launch("create_publication", "shop", succeeds=False, tables=["public.loose"])["failure"]
    assert "would fail at the source" in refused
    source_database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (f"{source_database.name}_s",))
    assert "dry run: slot" in launch("drop_slot", "shop")["result"]
    assert "recovery plan" in launch("drop_slot", "shop", dry_run=False)["result"]
    assert "no slot" in launch("drop_slot", "shop", succeeds=False, dry_run=False)["failure"]
    assert "dry run" in launch("drop_publication", "shop")["result"]
    assert "is dropped" in launch("drop_publication", "shop", dry_run=False)["result"]


def test_columns_of_both_types_of_destinations(catalog, launch, source_database, snowflake, monkeypatch) -> None:
    server = source_database.server
    source_database.execute("CREATE TABLE orders (id int PRIMARY KEY, note text)")
    monkeypatch.setenv("DWH_PASSWORD", server.password)
    address = {"host": server.host, "port": server.port, "database": source_database.name, "username": server.username}
    launch("create_destination", name="dwh", type="postgres", password_env="DWH_PASSWORD", **address)
    assert launch("browse_destination_schema", "dwh", table="public.*")["result"] == "2 columns"
    monkeypatch.setenv("LAKE_KEY", snowflake.private_key())
    snowflake.sql.query(f'CREATE SCHEMA "{DATABASE}"."SHOP"; CREATE TABLE "{DATABASE}"."SHOP"."ITEM" ("ID" bigint)')
    account = {"account": ACCOUNT, "user": USER, "database": DATABASE, "target_schema": "SHOP", "host": snowflake.url}
    launch("create_destination", name="lake", type="snowflake", private_key_env="LAKE_KEY", **account)
    assert launch("browse_destination_schema", "lake", table="shop.*")["result"] == "1 columns"
    assert launch("browse_destination_schema", "lake")["result"] == "1 columns"


def test_presets_are_made_changed_copied_and_used(catalog, launch) -> None:
    launch("create_source", name="shop", **SOURCE)
    assert "is created" in launch("create_preset", "shop", name="core", tables=["public.*", "sales.orders"])["result"]
    assert "already" in launch("create_preset", "shop", succeeds=False, name="core", tables=["a.b"])["failure"]
    assert "tables[1]" in launch("create_preset", "shop", succeeds=False, name="x", tables=["a.b", "a.b.c"])["failure"]
    launch("create_preset", "shop", name="rest", tables=["public.items"])
    assert "already" in launch("change_preset", "shop", succeeds=False, name="rest", new_name="core")["failure"]
    assert "2 fields" in launch("change_preset", "shop", name="core", new_name="main", tables=["public.*"])["result"]
    launch("duplicate_source", "shop", new_name="shop2")
    assert launch("list_presets")["result"] == "4 presets"
    target = {"type": "postgres", "host": "h", "database": "d", "username": "u", "password_env": "ANY_PASSWORD"}
    launch("create_destination", name="dwh", **target)
    launch("create_pipeline", name="bills", source="shop", destinations=["dwh"])
    launch("add_pipeline_table", "bills", destination="dwh", preset="main", tags=["core"])
    assert catalog.execute("SELECT table_name FROM pipelines_destination_table_sync") == [("public.*",)]
    neither = launch("add_pipeline_table", "bills", succeeds=False, destination="dwh")
    assert "one of table and preset" in neither["failure"]
    shaped = launch("add_pipeline_table", "bills", succeeds=False, destination="dwh", preset="main", filter="a = 1")
    assert "not filter" in shaped["failure"]
    assert "dry run" in launch("remove_preset", "shop", name="main")["result"]
    launch("remove_preset", "shop", name="main", dry_run=False)
    assert "known: rest" in launch("remove_preset", "shop", succeeds=False, name="main")["failure"]


def test_tags_are_given_found_renamed_and_removed_with_their_last_use(catalog, launch, add_pipeline) -> None:
    add_pipeline("shop", ("orders", "items", "customers"))
    launch("tag_tables", "shop", tables=["public.orders", "public.items"], tags=["Finance", "pii"])
    assert launch("tag_tables", "shop", tables=["public.*"], tags=["pii"])["result"].startswith("1 tags were added")
    launch("tag_tables", "shop", tables=["public.customers"], tags=["crm"], destination="shop-warehouse")
    assert "no table" in launch("tag_tables", "shop", succeeds=False, tables=["public.x"], tags=["a"])["failure"]
    assert "at most 63" in launch("tag_tables", "shop", succeeds=False, tables=["public.*"], tags=["a b"])["failure"]
    other = {"tables": ["public.*"], "tags": ["a"], "destination": "other"}
    assert "no destination" in launch("tag_tables", "shop", succeeds=False, **other)["failure"]
    found = launch("list_tags")
    assert [tuple(row.data.values())[:2] for row in found["tags"].records] == [("crm", 1), ("finance", 2), ("pii", 3)]
    assert [tuple(row.data.values()) for row in found["relations"].records] == [
        ("finance", "pii", 2), ("crm", "pii", 1)]  # fmt: skip
    assert launch("list_tags", search="I", pipeline="shop")["result"] == "2 tags"
    assert launch("list_tags", source="other")["result"] == "0 tags"
    assert launch("show_tag", tag="pii")["result"] == "3 tables carry pii"
    assert "known: pii" in launch("show_tag", succeeds=False, tag="pix")["failure"]
    assert "exists already" in launch("rename_tag", succeeds=False, tag="crm", new_name="pii")["failure"]
    launch("rename_tag", tag="finance", new_name="money")
    launch("rename_tag", tag="crm", new_name="pii", merge=True)
    tags = "SELECT tag FROM tbltag_list ORDER BY 1"
    assert catalog.execute(tags) == [("money",), ("pii",)]
    launch("untag_tables", "shop", tables=["public.orders"], tags=["money"])
    assert "dry run" in launch("remove_tag", tag="pii")["result"]
    launch("remove_tag", tag="pii", dry_run=False)
    assert catalog.execute(tags) == [("money",)]
    assert launch("show_tag", tag="money")["result"] == "1 tables carry money"
    catalog.execute("DELETE FROM pipelines")
    assert catalog.execute(tags) == []


def test_preview_of_a_source(catalog, launch, instance, source_database, monkeypatch) -> None:
    server = source_database.server
    source_database.execute("CREATE TABLE orders (id int PRIMARY KEY, note text)")
    source_database.execute("INSERT INTO orders VALUES (1, 'a,b'), (2, NULL)")
    monkeypatch.setenv("SHOP_PASSWORD", server.password)
    launch("create_source", name="shop", host=server.host, port=server.port, database=source_database.name,
           username=server.username, password_env="SHOP_PASSWORD")  # fmt: skip
    found = launch("preview", "shop", sql="SELECT id, note, id * 2 AS twice, id FROM orders ORDER BY id")
    assert found["result"] == "2 rows of 4 columns" and found["state"] == "COMPLETED"
    assert [list(row.data.values()) for row in found["rows"].records] == [
        ["1", "a,b", "2", "1"],
        ["2", "NULL", "4", "2"],
    ]
    assert found["cache"].startswith("none: REDIS_URL is not set")
    _, _, run, _, key, _ = found["CSV"].split("/")
    log = instance.compute_log_manager.get_captured_local_path([run, "compute_logs", key], "out")
    assert Path(log).read_text() == 'id,note,twice,id\n1,"a,b",2,1\n2,,4,2\n'
    refused = launch("preview", "shop", succeeds=False, sql="SELECT * FROM read_text('/etc/passwd')")
    assert refused["failure"].startswith("REFUSED: table function read_text")


def test_settings_history_and_notifications(catalog, launch, add_pipeline, monkeypatch) -> None:
    add_pipeline("shop")
    assert "settings" in launch("show_settings")["result"]
    assert launch("change_setting", setting="retention_days", value="30")["result"] == "retention_days is 30 now"
    assert "no setting" in launch("change_setting", succeeds=False, setting="nothing", value="1")["failure"]
    assert launch("show_schema_history", "shop-source")["result"].startswith("1 versions")
    with receiving() as hook:
        monkeypatch.setenv("HOOK_URL", f"{hook.url}/canary-word")
        launch("change_setting", setting="notification_allow_internal", value="true")
        launch("create_notification_channel", name="hook", type="webhook", url_env="HOOK_URL")
        assert "took the message" in launch("test_notification", "hook")["result"]
        hook.answers = [500]
        assert "HTTP 500" in launch("test_notification", "hook", succeeds=False)["failure"]
    assert "0 open" in launch("list_notifications")["result"]
    assert "marked as read" in launch("acknowledge_notifications", clear=True)["result"]
    assert "is changed" in launch("change_notification_channel", "hook", enabled=False)["result"]
    assert "dry run" in launch("remove_notification_channel", "hook")["result"]
    launch("remove_notification_channel", "hook", dry_run=False)
    assert catalog.execute("SELECT count(*) FROM notification_channels") == [(0,)]


def test_changes_of_a_pipeline_follow_each_other_and_never_wait_for_a_comparison() -> None:
    from rosetta_dagster.control_plane import _JOBS

    tags = {
        job.name: job.get_tags_for_partition_key("shop", selected_asset_keys=None)
        for job in _JOBS
        if job.partitions_def
    }
    limits = yaml.safe_load((Path(__file__).parents[3] / "dagster.yaml").read_text())["concurrency"]["runs"]
    limited = {one["key"] for one in limits["tag_concurrency_limits"]}
    most = {
        one["key"]: one["limit"] for one in limits["tag_concurrency_limits"] if not isinstance(one.get("value"), dict)
    }
    lasting = ("rosetta/compare", "rosetta/follow", "rosetta/sandbox")
    assert sum(most[key] for key in lasting) < limits["max_concurrent_runs"], "what lasts leaves room for the others"
    jobs = {job.name: job.tags for job in _JOBS}
    assert "rosetta/follow" in jobs["backfill_table"] and "rosetta/follow" in jobs["resync_table"]
    assert "rosetta/sandbox" in jobs["preview"]
    assert {"rosetta/change", "rosetta/compare"} <= limited and "dagster/partition" not in limited
    assert tags["pause_pipeline"]["rosetta/change"] == tags["remove_pipeline"]["rosetta/change"] == "shop"
    for name in ("verify", "repair"):
        assert "rosetta/change" not in tags[name] and tags[name]["rosetta/compare"] == "shop"
    for name in ("preview", "doctor", "list_source_tables", "test_source"):
        assert not limited & tags[name].keys(), name


def test_every_destructive_job_is_a_dry_run_unless_told_otherwise() -> None:
    from rosetta_dagster.control_plane import _JOBS

    words = ("remove_", "drop_", "unregister_", "refresh_pipeline", "apply_file")
    for job in _JOBS:
        (first, *_) = job.nodes
        definition: Any = first.definition
        schema = definition.config_schema.config_type
        if job.name.startswith(words):
            field = schema.fields["dry_run"]
            assert field.default_provided, job.name
            assert field.default_value is True, job.name


def test_things_are_renamed(catalog, launch, add_pipeline) -> None:
    add_pipeline("shop")
    add_pipeline("billing")
    told = launch("rename_pipeline", "shop", new_name="store")
    assert told["result"] == "pipeline shop is called store now"
    assert told["identity"] == "shop"
    assert "configuration file" in told["what follows"]
    assert launch("rename_source", "shop-source", new_name="sales")["slot"] == "shop"
    assert launch("rename_destination", "shop-warehouse", new_name="dwh")["pipelines"] == "store"
    assert catalog.execute("SELECT name, identity FROM pipelines ORDER BY 1") == [
        ("billing", "billing"), ("store", "shop")]  # fmt: skip
    assert "exists already" in launch("rename_pipeline", "store", succeeds=False, new_name="billing")["failure"]
    assert "letters, digits" in launch("rename_pipeline", "store", succeeds=False, new_name="a/b")["failure"]
    assert "called store now" in launch("rename_pipeline", "shop", succeeds=False, new_name="other")["failure"]
