"""Rows that the target refuses from a backfill, and keys that wait while one is at work."""

from __future__ import annotations

import pytest

from tests.integration.dead_letter.conftest import Configure
from tests.support.backfills import Backfills
from tests.support.dead_letters import different_keys, replay, waiting_entries, waiting_keys

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(600)]


def test_refused_rows_wait_and_keys_that_wait_are_left_to_their_queue(strict: Configure) -> None:
    pipeline = strict()
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute("UPDATE item SET amount = -7 WHERE id = 7")
    pipeline.wait_caught_up()
    assert waiting_keys(target) == {("7",)}
    target.execute("DELETE FROM item WHERE id IN (50, 51); ALTER TABLE item ADD CONSTRAINT no_50 CHECK (id <> 50)")
    target.execute("INSERT INTO item VALUES (900, 'extra', 1, 'e')")
    backfills = Backfills(pipeline)
    done = backfills.wait(backfills.start("public.item", mode="resync"))
    assert (done["dead_letters"], done["deleted"]) == (1, 1)
    assert waiting_keys(target) == {("7",), ("50",)}
    assert different_keys(pipeline) == {7, 50}
    # A later change waits behind its row, although nothing but the backfill has put that aside.
    source.execute("UPDATE item SET note = 'later' WHERE id IN (50, 51)")
    pipeline.wait_caught_up()
    assert waiting_entries(target) == 3
    assert target.execute("SELECT note FROM item WHERE id = 51") == [("later",)]
    target.execute("ALTER TABLE item DROP CONSTRAINT no_50, DROP CONSTRAINT positive")
    replay(pipeline)
    assert waiting_entries(target) == 0
    pipeline.assert_equal()
