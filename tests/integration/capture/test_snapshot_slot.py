"""A slot whose snapshot waits for transactions that are open at the source: given up after its time, or by somebody."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from cdc_runner.capture.publication import SnapshotSlot, read_slot
from cdc_runner.errors import ErrorKind, RosettaError
from tests.support.servers import Database
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.timeout(120)]


@pytest.fixture
def open_transaction(source_database: Database) -> Iterator[None]:
    """A transaction that has written and is open until the test ends."""
    with closing(source_database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; SELECT txid_current()")
        yield


@pytest.mark.usefixtures("open_transaction")
def test_a_snapshot_is_given_up_after_its_time(source_database: Database) -> None:
    with pytest.raises(RosettaError, match=r"within 0\.5 s: a transaction is open there") as caught:
        SnapshotSlot(source_database.address(), source_database.name, timeout_seconds=0.5)
    assert caught.value.kind is ErrorKind.SOURCE_UNAVAILABLE
    with closing(source_database.connect()) as connection:
        assert read_slot(connection, source_database.name) is None


@pytest.mark.usefixtures("open_transaction")
def test_a_snapshot_that_somebody_cancelled_is_not_said_to_have_had_a_limit(source_database: Database) -> None:
    errors: list[RosettaError] = []

    def make() -> None:
        try:
            SnapshotSlot(source_database.address(), source_database.name)
        except RosettaError as error:
            errors.append(error)

    cancel = (
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'rosetta snapshot' AND wait_event_type = 'Lock'"
    )
    maker = threading.Thread(target=make, daemon=True)
    maker.start()
    wait_for(lambda: source_database.execute(cancel), 60, "the slot to wait")
    maker.join(60)
    assert [error.kind for error in errors] == [ErrorKind.SOURCE_UNAVAILABLE]
    assert "canceling statement due to user request" in errors[0].message
    assert "within" not in errors[0].message
