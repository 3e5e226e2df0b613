from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from cdc_runner.catalog import events
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.models import Notification
from cdc_runner.catalog.notifications import Condition, record_event, resolve_event, sync_conditions
from cdc_runner.catalog.settings import set_setting
from cdc_runner.supervisor.catalog_view import record_crash

pytestmark = pytest.mark.pg


def rows(session: Session) -> list[Notification]:
    session.expire_all()
    return list(session.scalars(select(Notification).order_by(Notification.id)))


def test_one_open_entry_a_key_counts_and_keeps_the_highest_severity(session: Session) -> None:
    for severity, told in (("WARNING", "first"), ("ERROR", "second"), ("INFO", "third")):
        record_event(session, "wal/shop", severity, "wal", told)  # type: ignore[arg-type]
    (row,) = rows(session)
    assert (row.iteration_check, row.type, row.message, row.title, row.status) == (3, "ERROR", "third", "third", "OPEN")


def test_resolved_key_is_the_same_entry_within_the_quiet_period_and_a_new_one_after_it(session: Session) -> None:
    first = record_event(session, "wal/shop", "ERROR", "wal", "one")
    assert resolve_event(session, "wal/shop", "well again")
    assert not resolve_event(session, "wal/shop")
    assert rows(session)[0].message == "well again"
    assert record_event(session, "wal/shop", "ERROR", "wal", "two") == first
    assert (rows(session)[0].status, rows(session)[0].reopened) == ("OPEN", 1)
    resolve_event(session, "wal/shop")
    session.execute(text("UPDATE notification_log SET resolved_at = now() - interval '3 minutes'"))
    assert record_event(session, "wal/shop", "ERROR", "wal", "three") != first


def test_happenings_of_one_key_are_one_entry_within_the_quiet_period(session: Session) -> None:
    first = record_event(session, "crash/shop", "WARNING", "crash", "ended", lasting=False)
    assert record_event(session, "crash/shop", "WARNING", "crash", "ended again", lasting=False) == first
    set_setting(session, "notification_quiet_seconds", "0")
    assert record_event(session, "crash/shop", "WARNING", "crash", "and again", lasting=False) != first
    assert [row.status for row in rows(session)] == ["EVENT", "EVENT"]


def test_conditions_of_a_scope_are_resolved_when_they_are_gone(session: Session) -> None:
    record_event(session, "other/x", "ERROR", "other", "stays")
    wal = Condition("WARNING", "wal", "3100 MB", at_once=False)
    assert sync_conditions(session, "wal/", {"wal/a": wal, "wal/b": wal}) == (2, 0)
    assert sync_conditions(session, "wal/", {"wal/b": wal}) == (1, 1)
    assert {row.key_notification: row.status for row in rows(session)} == {
        "other/x": "OPEN", "wal/a": "RESOLVED", "wal/b": "OPEN"}  # fmt: skip
    assert not any(row.is_force_sent for row in rows(session) if row.kind == "wal")
    with pytest.raises(ValueError, match="outside"):
        sync_conditions(session, "wal/", {"other/x": wal})


def test_long_texts_and_odd_keys_are_cut_and_kept(session: Session) -> None:
    key = "table/" + "ü%_" * 300
    record_event(session, key, "INFO", "schema", "x" * 10_000, title="t" * 500)
    record_event(session, key, "INFO", "schema", "")
    assert resolve_event(session, key)
    (row,) = rows(session)
    assert len(row.key_notification) == 400


def test_writers_of_one_key_at_once_make_one_entry(engine: Engine) -> None:
    barrier = threading.Barrier(4)

    def write() -> None:
        with session_scope(engine) as session:
            barrier.wait(10)
            record_event(session, "wal/shop", "ERROR", "wal", "x")

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    with session_scope(engine) as session:
        (row,) = rows(session)
        assert row.iteration_check == 4


def test_events_of_the_engine_are_entries_of_their_kind_and_key(session: Session) -> None:
    first = events.record_event(session, "dead_letters", "shop/public.orders", "WARNING", "Dead letters", "3 changes")
    assert events.record_event(session, "dead_letters", "shop/public.orders", "ERROR", "Dead letters", "4") == first
    assert events.resolve_event(session, "dead_letters", "shop/public.orders")
    events.record_event(session, "dead_letters_discarded", "shop", "WARNING", "Gone", "2 changes", lasting=False)
    one, two = rows(session)
    assert (one.kind, one.key_notification, one.status, one.iteration_check) == (
        "dead_letters", "dead_letters:shop/public.orders", "RESOLVED", 2)  # fmt: skip
    assert two.status == "EVENT"


def test_crash_is_stored_and_told_in_the_callers_transaction(engine: Engine, pipeline_id: int) -> None:
    with engine.begin() as connection:
        record_crash(connection, pipeline_id, "killed by signal 9", datetime.now(UTC))
    with pytest.raises(RuntimeError), engine.begin() as connection:
        record_crash(connection, pipeline_id, "undone", datetime.now(UTC))
        raise RuntimeError
    with session_scope(engine) as session:
        (row,) = rows(session)
        assert (row.key_notification, row.status, row.type) == ("pipeline_crash:shop_to_warehouse", "EVENT", "WARNING")
        assert session.scalar(text("SELECT status FROM pipeline_metadata")) == "ERROR"
