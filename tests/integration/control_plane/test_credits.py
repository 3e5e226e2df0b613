from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import select

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.models import CreditSnowflake, CreditSnowflakePart, Notification
from cdc_runner.catalog.settings import set_setting
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.services.credits import PARTS_STATEMENT, STATEMENT, collect_credits, credits_by_day
from rosetta_dagster.monitoring.history import read_history
from rosetta_dagster.resources.catalog import catalog_engine

pytestmark = [pytest.mark.dagster, pytest.mark.pg]

KEYRING = Keyring(bytes(range(32)))


def add_lake(catalog, name: str = "lake") -> None:
    catalog.execute("INSERT INTO destinations (name, type, config) VALUES (%s, 'snowflake', '{}')", (name,))


def test_without_snowflake_nothing_is_asked(catalog) -> None:
    def never(*_: object) -> list[list[str | None]]:
        raise AssertionError("asked")

    assert collect_credits(catalog_engine(), never, KEYRING) == []


def test_credits_are_stored_by_service_and_day_and_days_above_the_limit_are_told(catalog) -> None:
    add_lake(catalog)
    today = datetime.now(UTC).date()
    answers: list[list[str | None]] = [
        [str(today), "WAREHOUSE_METERING", "4.5"], [str(today), "SNOWPIPE_STREAMING", "0.25"],
        [str(today - timedelta(days=3)), "SERVERLESS_TASK", "90"], [str(today), "AI", None],
    ]  # fmt: skip
    asked: list[str] = []

    def answer(destination, keyring, statement):
        asked.append(statement)
        return answers if statement == STATEMENT else [[str(today), "WAREHOUSE", "LOAD_WH", "4"]]

    with session_scope(catalog_engine()) as session:
        set_setting(session, "credits_warning_per_day", "4")
    for used in ("4.5", "5"):
        answers[0][2] = used
        collect_credits(catalog_engine(), answer, KEYRING)
    assert asked == [STATEMENT, PARTS_STATEMENT] * 2
    with session_scope(catalog_engine()) as session:
        rows = session.scalars(select(CreditSnowflake)).all()
        assert {(row.usage_date, row.service): row.total_credit for row in rows}[(today, "WAREHOUSE_METERING")] == 5
        assert len(credits_by_day(session)) == 4
        (part,) = session.scalars(select(CreditSnowflakePart))
        assert (part.kind, part.name, part.total_credit) == ("WAREHOUSE", "LOAD_WH", Decimal(4))
        (told,) = session.scalars(select(Notification).where(Notification.kind == "credits"))
        # What was three days ago is no news.
        assert (told.type, told.iteration_check) == ("WARNING", 2)
        assert told.message.startswith("5.25 credits")
        assert sum(read_history(session).credits["WAREHOUSE_METERING"].values()) == float(Decimal(5))


def test_destination_that_cannot_be_asked_is_told_and_stops_no_other(catalog) -> None:
    add_lake(catalog, "away")
    add_lake(catalog, "lake")

    def answer(destination, keyring, statement):
        if destination.name == "away":
            raise RosettaError(ErrorKind.DESTINATION_UNAVAILABLE, "the account does not answer")
        return [[str(datetime.now(UTC).date()), "PIPE", "1"]] if statement == STATEMENT else []

    away, lake = collect_credits(catalog_engine(), answer, KEYRING)
    assert (away.error, lake.error) == ("the account does not answer", None)
    with session_scope(catalog_engine()) as session:
        assert len(credits_by_day(session)) == 1
        (told,) = session.scalars(select(Notification).where(Notification.kind == "credits"))
        assert told.key_notification == "credits:away/read"
