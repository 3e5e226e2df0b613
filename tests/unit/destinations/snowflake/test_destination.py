"""Events into landing tables and from there into targets, on the strict stand-in."""

from __future__ import annotations

import dataclasses

import pyarrow as pa
import pytest

from cdc_runner.destinations.base import ReloadNeeded, TableState
from cdc_runner.destinations.snowflake.held import HeldTargets, MergedBeyond
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import Column
from cdc_runner.spec import SyncMode, TableShape
from tests.support.snowflake_events import ITEM, LOG, address_of, apply, destination_of, events, ready, sync_of, table
from tests.support.snowflake_server import SnowflakeServer

LANDING = '"ANALYTICS"."SHOP"."LANDING_ITEM"'
TARGET = '"ANALYTICS"."SHOP"."ITEM"'


def merged(server: SnowflakeServer, what: str = TARGET) -> list[tuple[object, ...]]:
    server.sql.run_tasks()
    return server.sql.query(f"SELECT * FROM {what} ORDER BY ALL")


def texts(rows: list[tuple[object, ...]]) -> list[tuple[str | None, ...]]:
    return [tuple(None if value is None else str(value) for value in row) for row in rows]


@pytest.fixture
def destination(snowflake: SnowflakeServer):
    made = destination_of(snowflake)
    made.open()
    ready(made, ITEM, LOG)
    yield made
    made.close()


def test_the_last_state_of_each_key_reaches_the_target(snowflake: SnowflakeServer, destination):
    apply(destination, 10, events(ITEM, 10, [("u", None, "1", 'a\n"b\\', "1.10"), ("u", None, "2", None, None)]))
    apply(destination, 20, events(ITEM, 20, [("u", None, "1", "é😀", "2.00"), ("d", None, "2")]))
    assert texts(merged(snowflake)) == [("1", "é😀", "2.00")]
    apply(destination, 30, events(ITEM, 30, [("d", None, "1"), ("u", None, "1", "again", "3.00")]))
    assert texts(merged(snowflake)) == [("1", "again", "3.00")]
    assert snowflake.sql.query(f"SELECT count(*) FROM {LANDING}") == [(0,)]


def test_a_value_that_an_update_left_out_stays(snowflake: SnowflakeServer, destination):
    apply(destination, 10, events(ITEM, 10, [("u", None, "1", "long", "1.00"), ("u", None, "2", "other", "1.00")]))
    merged(snowflake)
    rows = [("u", "010", "1", None, "5.00"), ("u", None, "2", "new", "1.00"), ("u", "010", "2", None, "6.00")]
    apply(destination, 20, events(ITEM, 20, rows))
    assert texts(merged(snowflake)) == [("1", "long", "5.00"), ("2", "new", "6.00")]


def test_a_truncate_takes_what_was_there_before_it(snowflake: SnowflakeServer, destination):
    apply(destination, 10, events(ITEM, 10, [("u", None, "1", "a", "1.00")]))
    merged(snowflake)
    rows = [("u", None, "2", "b", "1.00"), ("t", None), ("u", None, "3", "c", "1.00")]
    apply(destination, 20, events(ITEM, 20, rows))
    assert texts(merged(snowflake)) == [("3", "c", "1.00")]


def test_rows_without_a_key_are_counted(snowflake: SnowflakeServer, destination):
    target = '"ANALYTICS"."SHOP"."LOG"'
    apply(destination, 10, events(LOG, 10, [("i", None, "1", "x"), ("i", None, "1", "x"), ("i", None, "2", None)]))
    assert len(merged(snowflake, target)) == 3
    apply(destination, 20, events(LOG, 20, [("d", None, "1", "x"), ("d", None, "2", None), ("i", None, "3", "y")]))
    assert [row[:2] for row in merged(snowflake, target)] == [(1, "x"), (3, "y")]


def test_a_changed_key_is_completed_from_the_source(snowflake: SnowflakeServer):
    made = destination_of(snowflake, fetch=lambda schema, keys, told=b"", /: {keys[0]: ("9", "fetched", "1.00")})
    made.open()
    ready(made, ITEM)
    apply(made, 10, events(ITEM, 10, [("u", None, "1", "a", "1.00")]))
    apply(made, 20, events(ITEM, 20, [("m", "010", "9", None, "1.00", "1")], first=3))
    assert texts(merged(snowflake)) == [("9", "fetched", "1.00")]
    made.close()


def test_a_batch_that_comes_again_lands_once(snowflake: SnowflakeServer, destination):
    first = events(ITEM, 10, [("u", None, str(number), "a", "1.00") for number in range(100)])
    second = events(ITEM, 20, [("d", None, str(number)) for number in range(50)])
    destination._position_at = float("inf")  # it dies before it notes how far it is
    apply(destination, 10, first)
    again = destination_of(snowflake)
    again.open()
    assert again.position() == Position(1)
    # Other borders of batches than before: what counts is each event's own position.
    both = dataclasses.replace(first, rows=pa.concat_tables([first.rows, second.rows]))
    apply(again, 20, both)
    assert snowflake.sql.query(f"SELECT count(*), count(DISTINCT _ROSETTA_POSITION) FROM {LANDING}") == [(150, 150)]
    again.close()


def test_the_position_is_kept_by_the_service(snowflake: SnowflakeServer, destination):
    assert apply(destination, 30, events(ITEM, 30, [("u", None, "1", "a", "1.00")])) == Position(30)
    again = destination_of(snowflake)
    again.open()
    assert again.position() == Position(30)
    assert {one.sync.target.name for one in again.table_states() if one.ready} == {"item", "log"}
    assert again.table_states()[0].schema == ITEM
    again.close()


def test_an_older_runner_is_fenced(snowflake: SnowflakeServer, destination):
    apply(destination, 10, events(ITEM, 10, [("u", None, "1", "a", "1.00")]))
    newer = destination_of(snowflake)
    newer.open()
    with pytest.raises(RosettaError) as caught:
        apply(destination, 20, events(ITEM, 20, [("u", None, "1", "b", "1.00")]))
    assert caught.value.kind is ErrorKind.FENCED
    apply(newer, 20, events(ITEM, 20, [("u", None, "1", "c", "1.00")]))
    assert texts(merged(snowflake)) == [("1", "c", "1.00")]
    newer.close()


def test_soft_deletes_mark_rows(snowflake: SnowflakeServer):
    made = destination_of(snowflake, deletes="soft")
    made.open()
    ready(made, ITEM)
    apply(made, 10, events(ITEM, 10, [("u", None, "1", "a", "1.00"), ("u", None, "2", "b", "1.00")]))
    merged(snowflake)
    apply(made, 20, events(ITEM, 20, [("d", None, "1")]))
    at = "2023-11-14 22:13:20.250000"
    assert texts(merged(snowflake)) == [("1", "a", "1.00", "True", at), ("2", "b", "1.00", "False", None)]
    apply(made, 30, events(ITEM, 30, [("u", None, "1", "back", "1.00")]))
    assert texts(merged(snowflake))[0] == ("1", "back", "1.00", "False", None)
    apply(made, 40, events(ITEM, 40, [("t", None), ("u", None, "2", "again", "2.00")]))
    assert texts(merged(snowflake)) == [("1", "back", "1.00", "True", at), ("2", "again", "2.00", "False", None)]
    made.close()


def test_a_history_has_a_row_for_each_event(snowflake: SnowflakeServer):
    made = destination_of(snowflake)
    made.open()
    sync = dataclasses.replace(sync_of(ITEM), shape=TableShape(mode=SyncMode.HISTORY))
    shape = made._open_session().objects.shape(ITEM, sync)
    made.start_at(Position(1))
    made._open_session().objects.make(sync, shape, None)
    made.remember_all([TableState(sync, True, Position(1), ITEM, shape=sync.shape.fingerprint)])
    rows = [("u", None, "1", "a", "1.00"), ("u", "010", "1", None, "2.00"), ("d", None, "1"), ("t", None)]
    made.apply([[(sync, events(ITEM, 10, rows))]], Position(10), 1_700_000_000.0)
    snowflake.sql.run_tasks()
    made.apply([[(sync, events(ITEM, 20, rows[:1]))]], Position(20), 1_700_000_000.0)
    found = merged(snowflake, f"(SELECT * FROM {TARGET})")
    kept = sorted((str(row[3]), row[4], *texts([row[:3]])[0], row[7]) for row in found)
    assert [row[1:] for row in kept] == [
        ("u", "1", "a", "1.00", None),
        ("u", "1", None, "2.00", "010"),
        ("d", "1", None, None, None),
        ("t", None, None, None, None),
        ("u", "1", "a", "1.00", None),
    ]
    assert len({row[0] for row in kept}) == 5
    made.close()


def test_columns_come_go_and_change_names(snowflake: SnowflakeServer, destination):
    apply(destination, 10, events(ITEM, 10, [("u", None, "1", "a", "1.00")]))
    columns = (
        ITEM.columns[0],
        dataclasses.replace(ITEM.columns[1], name="title"),
        dataclasses.replace(ITEM.columns[2], type_text="numeric(12,2)"),
        Column("added", "integer", "int4", number=4, missing_value="7"),
    )
    changed = dataclasses.replace(ITEM, columns=columns)
    apply(destination, 20, events(changed, 20, [("u", None, "2", "b", "1234567890.12", "8")]))
    assert texts(merged(snowflake)) == [("1", "a", "1.00", "7"), ("2", "b", "1234567890.12", "8")]
    names = snowflake.sql.query("SELECT column_name FROM information_schema.columns WHERE table_name = 'ITEM'")
    assert [name for (name,) in names] == ["ID", "TITLE", "PRICE", "ADDED"]
    dropped = dataclasses.replace(changed, columns=(*columns[:2], columns[3]))
    apply(destination, 30, events(dropped, 30, [("u", None, "3", "c", "9")]))
    assert texts(merged(snowflake))[2] == ("3", "c", None, "9")


def test_two_columns_that_change_places(snowflake: SnowflakeServer):
    old = table(Column("id", "integer", "int4", number=1), Column("a", "text", "text", number=2),
                Column("b", "text", "text", number=3))  # fmt: skip
    made = destination_of(snowflake)
    made.open()
    ready(made, old)
    apply(made, 10, events(old, 10, [("u", None, "1", "was a", "was b")]))
    new = dataclasses.replace(old, columns=(old.columns[0], dataclasses.replace(old.columns[1], name="b"),
                                            dataclasses.replace(old.columns[2], name="a")))  # fmt: skip
    apply(made, 20, events(new, 20, [("u", None, "2", "in b", "in a")]))
    snowflake.sql.run_tasks()
    assert snowflake.sql.query(f'SELECT "A", "B" FROM {TARGET} ORDER BY "ID"') == [("was b", "was a"), ("in a", "in b")]
    made.close()


def test_a_type_that_cannot_be_widened_asks_for_a_load(snowflake: SnowflakeServer, destination):
    columns = (*ITEM.columns[:2], Column("price", "text", "text", number=3))
    with pytest.raises(ReloadNeeded) as caught:
        apply(destination, 20, events(dataclasses.replace(ITEM, columns=columns), 20, [("u", None, "1", "a", "b")]))
    assert caught.value.table == sync_of(ITEM).target


def test_a_value_that_does_not_fit_is_refused_by_name(snowflake: SnowflakeServer):
    schema = table(Column("id", "integer", "int4", number=1), Column("day", "date", "date", number=2))
    made = destination_of(snowflake)
    made.open()
    ready(made, schema)
    with pytest.raises(RosettaError, match="column day: infinity") as caught:
        apply(made, 10, events(schema, 10, [("u", None, "1", "2024-02-29"), ("u", None, "2", "infinity")]))
    assert caught.value.kind is ErrorKind.DESTINATION_ROW_REJECTED
    assert made.position() == Position(1)
    made.close()


def test_rows_that_the_service_drops_are_noticed(snowflake: SnowflakeServer, destination):
    snowflake.reject = "poison"
    rows = [("u", None, "1", "fine", "1.00"), ("u", None, "2", "poison", "1.00")]
    with pytest.raises(RosettaError, match=r"dropped 1 rows of table public\.item") as caught:
        apply(destination, 10, events(ITEM, 10, rows))
    assert caught.value.kind is ErrorKind.DESTINATION_ROW_REJECTED
    again = destination_of(snowflake)
    again.open()
    assert [one.sync.target.name for one in again.table_states() if not one.ready] == ["item"]
    assert again.position() == Position(1)
    again.close()


def test_names_keep_their_case_when_asked(snowflake: SnowflakeServer):
    schema = table(Column("Id", "integer", "int4", number=1), Column("My Name", "text", "text", number=2),
                   key=("Id",), name="Order Lines")  # fmt: skip
    made = destination_of(snowflake, identifiers="keep")
    made.open()
    ready(made, schema)
    apply(made, 10, events(schema, 10, [("u", None, "1", "a")]))
    assert merged(snowflake, '"ANALYTICS"."SHOP"."Order Lines"') == [(1, "a")]
    names = snowflake.sql.query("SELECT column_name FROM information_schema.columns WHERE table_name = 'Order Lines'")
    assert [name for (name,) in names] == ["Id", "My Name"]
    made.close()


def test_a_hold_keeps_the_task_from_merging_and_ends(snowflake: SnowflakeServer):
    made = destination_of(snowflake)
    made.open()
    ready(made, ITEM, LOG)
    apply(made, 10, events(ITEM, 10, [("u", None, "1", "a", "1.00")]))
    token = made.hold()
    assert texts(merged(snowflake)) == []
    held = HeldTargets(address_of(snowflake), "shop", "lake", 10, token)
    known = next(one for one in held.states() if one.sync.target.name == "item")
    shape = held.shape(known, known.sync)
    apply(made, 20, events(ITEM, 20, [("u", None, "1", "later", "2.00")]))
    position = held.settle(known.sync, shape)
    query = f'SELECT t."NAME" AS A FROM {TARGET} AS t'
    assert held.read(known.sync, position, query, ["A"], limit_seconds=60) == [["a"]]
    assert texts(merged(snowflake)) == [("1", "a", "1.00")]
    held.release_others([known.sync.target])
    state = 'SELECT "TARGET_TABLE" FROM "ANALYTICS"."SHOP"."ROSETTA_TABLE" WHERE "HOLD" IS NOT NULL'
    assert snowflake.sql.query(state) == [("ITEM",)]
    held.release(known.sync.target)
    assert texts(merged(snowflake)) == [("1", "later", "2.00")]
    with pytest.raises(MergedBeyond, match="merged or loaded again while it was read"):
        held.read(known.sync, position, query, ["A"], limit_seconds=60)
    with pytest.raises(MergedBeyond, match="beyond the position"):
        held.settle(known.sync, shape)
    made.hold()
    snowflake.sql.query('UPDATE "ANALYTICS"."SHOP"."ROSETTA_TABLE" SET "HELD_UNTIL" = 1')
    apply(made, 30, events(ITEM, 30, [("d", None, "1")]))
    assert merged(snowflake) == []
    held.close()
    made.close()


def test_arrays_of_type_array_are_stored_and_kept(snowflake: SnowflakeServer):
    tags = Column("tags", "text[]", "_text", type_category="A", element="text", number=2)
    schema = table(ITEM.columns[0], tags, name="tagged")
    made = destination_of(snowflake, arrays="array")
    made.open()
    ready(made, schema)
    created = [one for one in snowflake.sql.log if one.startswith("CREATE OR REPLACE TABLE")]
    assert '"TAGS" ARRAY' in created[0]
    rows = [("u", None, "1", '{a,NULL,"b,c"}'), ("u", None, "2", None), ("u", None, "3", "{}")]
    apply(made, 10, events(schema, 10, rows))
    found = merged(snowflake, '"ANALYTICS"."SHOP"."TAGGED"')
    assert found == [(1, '["a",null,"b,c"]'), (2, None), (3, "[]")]
    apply(made, 20, events(schema, 20, [("u", "01", "1", None), ("u", None, "2", "{x}")]))
    assert merged(snowflake, '"ANALYTICS"."SHOP"."TAGGED"')[:2] == [(1, '["a",null,"b,c"]'), (2, '["x"]')]
    made.close()


def test_a_target_keeps_deleting_until_it_is_loaded_anew(snowflake: SnowflakeServer):
    for deletes in ("hard", "soft", "soft"):
        made = destination_of(snowflake, deletes=deletes)
        made.open()
        if not made.table_states():
            ready(made, ITEM)
        assert made.plan_load(None, [(sync_of(ITEM), ITEM)], {}) == []  # type: ignore[arg-type]  # nothing to load
        made.close()
    assert not any("_ROSETTA_DELETED" in one for one in snowflake.sql.tasks.values())


def test_a_task_is_made_anew_when_its_settings_are_others(snowflake: SnowflakeServer):
    for seconds, wanted in ((60, 1), (60, 0), (90, 1), (90, 0)):
        made = destination_of(snowflake, merge_seconds=seconds)
        made.open()
        if not made.table_states():
            ready(made, ITEM)
        snowflake.sql.log.clear()
        assert made.plan_load(None, [(sync_of(ITEM), ITEM)], {}) == []  # type: ignore[arg-type]  # nothing to load
        tasks = [one for one in snowflake.sql.log if one.startswith("CREATE OR REPLACE TASK")]
        assert len(tasks) == wanted, seconds
        assert all(f"SCHEDULE = '{seconds} SECONDS'" in one for one in tasks)
        made.close()


def test_tasks_and_clustering_are_as_asked(snowflake: SnowflakeServer):
    made = destination_of(snowflake, merge_when="triggered", merge_seconds=30, cluster_targets="key", warehouse="WH")
    made.open()
    ready(made, ITEM, LOG)
    statements = [
        one for one in snowflake.sql.log if one.startswith(("CREATE OR REPLACE TASK", "CREATE OR REPLACE TABLE"))
    ]
    assert [' CLUSTER BY ("ID")' in one for one in statements if " TABLE " in one] == [True, False]
    tasks = [one.partition(" AS\n")[0] for one in statements if " TASK " in one]
    assert all("SCHEDULE" not in one and "TRIGGER_INTERVAL_IN_SECONDS = 30" in one for one in tasks)
    apply(made, 10, events(ITEM, 10, [("u", None, "1", "a", "1.00")]))
    assert texts(merged(snowflake)) == [("1", "a", "1.00")]
    made.close()
