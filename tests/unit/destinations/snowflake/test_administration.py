"""The doctor's findings, removal, and statements of monitors."""

from __future__ import annotations

import dataclasses

import pytest
from pydantic import SecretStr

from cdc_runner.destinations.snowflake.administration import (
    DestinationColumn,
    forget_pipeline,
    read_columns,
    run_once,
    service_version,
)
from cdc_runner.doctor.finding import Findings
from cdc_runner.doctor.snowflake import check_snowflake
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import Column, TableId
from cdc_runner.spec import DestinationSpec, SnowflakeAddress, SyncMode, TableShape
from tests.support.snowflake_events import ITEM, LOG, address_of, apply, destination_of, events, ready, sync_of, table
from tests.support.snowflake_key import private_key
from tests.support.snowflake_server import SnowflakeServer


def examined(address: SnowflakeAddress, *schemas) -> Findings:
    found = Findings("destination lake")
    spec = DestinationSpec(1, 1, "lake", "snowflake", address, "SHOP")
    syncs = [sync_of(one) for one in schemas]
    check_snowflake(spec, "shop", syncs, {one.table: one for one in schemas}, found)
    return found


def levels(found: Findings) -> dict[str, str]:
    return {one.check: one.level for one in found.items}


def test_the_doctor_says_what_is_missing(snowflake: SnowflakeServer):
    twins = table(Column("a", "int", "int4"), Column("A", "numeric", "numeric"), key=("a",), name="twins")
    number = table(Column("id", "int", "int4"), Column("n", "numeric", "numeric"), name="number")
    snowflake.sql.query('CREATE SCHEMA "ANALYTICS"."SHOP"')
    snowflake.sql.query('CREATE TABLE "ANALYTICS"."SHOP"."ITEM" (a int)')
    found = examined(address_of(snowflake), ITEM, twins, number)
    assert levels(found) == {
        "private_key": "ok",
        "connection": "ok",
        "warehouse": "error",
        "streaming": "ok",
        "schema": "ok",
        "grants": "warning",
        "target": "warning",
        "columns": "error",
        "numbers_as_text": "warning",
        "target_tables": "ok",
    }
    assert "SHA256:" in found.items[0].what
    missing = examined(address_of(snowflake, warehouse="WH", landing_schema="ELSEWHERE"), LOG)
    assert [one.level for one in missing.items if one.check == "schema"] == ["warning", "ok"]


def test_the_doctor_lists_the_grants_that_are_missing(snowflake: SnowflakeServer):
    snowflake.sql.query('CREATE SCHEMA "ANALYTICS"."SHOP"')
    address = address_of(snowflake, warehouse="WH")
    snowflake.sql.grants = [("USAGE", "DATABASE", "ANALYTICS"), ("OWNERSHIP", "SCHEMA", "ANALYTICS.SHOP")]
    (said,) = [one for one in examined(address, ITEM).items if one.check == "grants"]
    assert said.solution == (
        'GRANT USAGE ON WAREHOUSE WH TO ROLE "ROSETTA"; GRANT EXECUTE TASK ON ACCOUNT TO ROLE "ROSETTA";'
    )
    snowflake.sql.grants += [("USAGE", "WAREHOUSE", '"WH"'), ("EXECUTE TASK", "ACCOUNT", "ACME")]
    assert levels(examined(address, ITEM))["grants"] == "ok"


def test_the_doctor_names_a_key_that_the_account_does_not_take(snowflake: SnowflakeServer):
    stranger = dataclasses.replace(address_of(snowflake), user="SOMEBODY")
    found = examined(stranger, ITEM)
    assert levels(found) == {"private_key": "ok", "connection": "error"}
    assert "RSA_PUBLIC_KEY_FP" in found.items[-1].solution
    broken = dataclasses.replace(address_of(snowflake), private_key=SecretStr("canary"))
    assert levels(examined(broken, ITEM)) == {"private_key": "error"}


def test_a_removed_pipeline_leaves_its_targets(snowflake: SnowflakeServer):
    assert forget_pipeline(address_of(snowflake), "shop", "lake") == []
    made = destination_of(snowflake)
    made.open()
    ready(made, ITEM, LOG)
    apply(made, 10, events(ITEM, 10, [("u", None, "1", "a", "1.00")]))
    snowflake.sql.run_tasks()
    made.close()
    dropped = forget_pipeline(address_of(snowflake), "shop", "lake")
    assert {"LANDING_ITEM", "ROSETTA_MERGE_LOG", "ROSETTA_STREAM_LOG"} <= set(dropped)
    left = {name for (name,) in snowflake.sql.query("SELECT table_name FROM duckdb_tables()")}
    state = {f"ROSETTA_{one}" for one in ("PIPELINE", "TABLE", "POSITION", "WAITING", "CHANNEL")}
    assert left == {"ITEM", "LOG", *state}
    assert snowflake.sql.query('SELECT * FROM "ANALYTICS"."SHOP"."ITEM"') != []
    assert not snowflake.sql.tasks and not snowflake.channels
    again = destination_of(snowflake)
    again.open()
    assert again.position() is None and again.table_states() == []
    again.close()


def test_a_removed_pipeline_leaves_no_row_behind(snowflake: SnowflakeServer):
    made = destination_of(snowflake)
    made.open()
    ready(made, ITEM, LOG)
    apply(made, 10, events(ITEM, 10, [("u", None, "1", "a", "1.00")]))
    made.close()
    snowflake.sql.refuse = "MERGE INTO"
    with pytest.raises(RosettaError):
        forget_pipeline(address_of(snowflake), "shop", "lake")
    assert snowflake.sql.query('SELECT count(*) FROM "ANALYTICS"."SHOP"."LANDING_ITEM"') == [(1,)]
    snowflake.sql.refuse = None
    assert set(snowflake.violations) == {"refused as asked"}
    snowflake.violations.clear()
    assert "LANDING_ITEM" in forget_pipeline(address_of(snowflake), "shop", "lake")
    assert snowflake.sql.query('SELECT "NAME" FROM "ANALYTICS"."SHOP"."ITEM"') == [("a",)]


@pytest.mark.parametrize("mode", [SyncMode.MIRROR, SyncMode.SOFT_DELETE, SyncMode.HISTORY])
def test_a_table_that_is_not_fed_any_more_keeps_its_target_alone(snowflake: SnowflakeServer, mode: SyncMode):
    shaped = dataclasses.replace(sync_of(ITEM), shape=TableShape(mode=mode))
    made = destination_of(snowflake)
    made.open()
    ready(made, ITEM, LOG)
    session = made._open_session()
    if mode is not SyncMode.MIRROR:
        session.objects.drop(shaped)
        session.objects.make(shaped, session.objects.shape(ITEM, shaped), None, ours=True)
    apply(made, 10, events(ITEM, 10, [("u", None, "1", "a", "1.00"), ("u", None, "2", "b", "1.00")]))
    apply(made, 20, events(ITEM, 20, [("d", None, "2")]))
    snowflake.sql.refuse = "MERGE INTO" if mode is not SyncMode.HISTORY else 'INSERT INTO "ANALYTICS"."SHOP"."ITEM"'
    made.let_go({TableId("SHOP", "log")})
    assert snowflake.sql.query('SELECT count(*) FROM "ANALYTICS"."SHOP"."LANDING_ITEM"') == [(3,)]
    left_over = [one for one in examined(address_of(snowflake), LOG).items if one.check == "left_over"]
    assert len(left_over) == 1 and "LANDING_ITEM is still there with 3 rows" in left_over[0].what
    assert 'DROP TASK "ANALYTICS"."SHOP"."ROSETTA_MERGE_ITEM";' in left_over[0].solution
    snowflake.sql.refuse = None
    assert set(snowflake.violations) == {"refused as asked"}
    snowflake.violations.clear()
    made.close()
    made.open()
    made.let_go({TableId("SHOP", "log")})
    left = {name for (name,) in snowflake.sql.query("SELECT table_name FROM duckdb_tables()")}
    assert {"ITEM", "LANDING_LOG"} <= left and "LANDING_ITEM" not in left
    assert not [one for one in examined(address_of(snowflake), LOG).items if one.check == "left_over"]
    assert [name.split(".")[-1] for name in snowflake.sql.tasks] == ['"ROSETTA_MERGE_LOG"']
    assert not any("ITEM" in name for _, name in snowflake.channels)
    rows = snowflake.sql.query('SELECT count(*) FROM "ANALYTICS"."SHOP"."ITEM"')
    assert rows == [({SyncMode.MIRROR: 1, SyncMode.SOFT_DELETE: 1, SyncMode.HISTORY: 3}[mode],)]
    snowflake.sql.log.clear()
    made.close()
    made.open()
    made.let_go({TableId("SHOP", "log")})
    assert not any(one.startswith("DROP") for one in snowflake.sql.log)
    assert {one.sync.target.name: one.ready for one in made.table_states()} == {"item": False, "log": True}
    made.reset()
    made.close()


def test_a_reset_loads_everything_anew(snowflake: SnowflakeServer):
    made = destination_of(snowflake)
    made.open()
    ready(made, ITEM)
    apply(made, 10, events(ITEM, 10, [("u", None, "1", "a", "1.00")]))
    made.reset()
    assert made.position() is None
    assert [one.ready for one in made.table_states()] == [False]
    assert snowflake.sql.query('SELECT count(*) FROM "ANALYTICS"."SHOP"."LANDING_ITEM"') == [(0,)]
    made.close()


def test_statements_of_monitors(snowflake: SnowflakeServer):
    address = address_of(snowflake)
    assert service_version(address) == "9.99.9"
    assert run_once(address, "SELECT TO_VARCHAR(1.5)") == [["1.5"]]
    wrong = SnowflakeAddress("OTHER", "ROSETTA", SecretStr(private_key()), "ANALYTICS", "S", host=snowflake.url)
    with pytest.raises(RosettaError) as caught:
        service_version(wrong)
    assert caught.value.kind is ErrorKind.DESTINATION_AUTHENTICATION


def test_columns_of_an_account_are_browsed_by_pattern(snowflake: SnowflakeServer):
    snowflake.sql.query('CREATE SCHEMA "ANALYTICS"."SHOP"; CREATE SCHEMA "ANALYTICS"."Odd"')
    snowflake.sql.query('CREATE TABLE "ANALYTICS"."SHOP"."ORDERS" ("ID" bigint NOT NULL, "NOTE" text DEFAULT \'none\')')
    snowflake.sql.query('CREATE TABLE "ANALYTICS"."SHOP"."ITEMS" ("ID" bigint)')
    snowflake.sql.query('CREATE TABLE "ANALYTICS"."Odd"."orders" ("x" text)')
    address = address_of(snowflake)
    found = read_columns(address, "shop.orders")
    assert [(str(one.table), one.name, one.nullable) for one in found] == [
        ("SHOP.ORDERS", "ID", False), ("SHOP.ORDERS", "NOTE", True),
    ]  # fmt: skip
    assert "UPPER(TABLE_SCHEMA) = 'SHOP'" in snowflake.sql.log[-1]
    assert found[1].default == "'none'"

    def tables(pattern: str) -> list[str]:
        return sorted({str(one.table) for one in read_columns(address, pattern)})

    assert tables("*.*") == ["Odd.orders", "SHOP.ITEMS", "SHOP.ORDERS"]
    assert tables("orders") == ["Odd.orders", "SHOP.ORDERS"]
    assert tables("shop.i*") == ["SHOP.ITEMS"]
    assert tables('"sho*".*') == []
    with pytest.raises(RosettaError) as caught:
        tables("a.b.c")
    assert caught.value.kind is ErrorKind.CONFIG_INVALID


def test_a_number_is_told_with_its_scale(monkeypatch: pytest.MonkeyPatch, snowflake: SnowflakeServer):
    row = ["SHOP", "ITEM", "PRICE", "NUMBER", "YES", None, "12", "2"]
    monkeypatch.setattr("cdc_runner.destinations.snowflake.administration.run_once", lambda *_: [row])
    expected = DestinationColumn(TableId("SHOP", "ITEM"), "PRICE", "NUMBER(12,2)", True, None)
    assert read_columns(address_of(snowflake), "*.*") == [expected]
