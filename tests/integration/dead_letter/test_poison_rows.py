"""Rows that the target refuses, from the real stream: only their keys wait, and a replay brings everything in order."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import redis

from cdc_runner.dead_letter.queue import DeadLetterQueue
from cdc_runner.errors import RosettaError
from cdc_runner.services import dead_letters
from cdc_runner.services.dead_letters import Scope
from tests.integration.dead_letter.conftest import Configure
from tests.support.dead_letters import (
    different_keys,
    operator,
    replay,
    status_of,
    waiting_entries,
    waiting_keys,
)
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(600)]

FREE = "ALTER TABLE item DROP CONSTRAINT one_code, DROP CONSTRAINT positive, ALTER note TYPE text"


@pytest.mark.both_engines
def test_only_the_poisoned_keys_wait_and_a_replay_brings_them_in_order(
    strict: Configure, redis_client: redis.Redis
) -> None:
    """A unique violation, a CHECK and a text that is too long, each followed by later changes; then a restart."""
    pipeline = strict()
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute("UPDATE item SET code = 'code2' WHERE id = 1")
    source.execute("UPDATE item SET amount = -5 WHERE id = 10; UPDATE item SET amount = 11 WHERE id = 11")
    source.execute("INSERT INTO item VALUES (200, 'code200', 1, repeat('canary', 10)), (201, 'code201', 1, 'fine')")
    source.execute("UPDATE item SET note = 'other rows flow' WHERE id BETWEEN 20 AND 90")
    pipeline.wait_caught_up()
    assert waiting_keys(target) == {("1",), ("10",), ("200",)}
    assert different_keys(pipeline) == {1, 10, 200}
    # Values are in the payload only, never in a reason.
    assert not target.execute("SELECT FROM _rosetta.waiting_key WHERE reason LIKE '%canary%' OR reason LIKE '%-5%'")
    wait_for(lambda: status_of(pipeline) == [("item", 3, 3, 0)], 30, "the status to tell of the dead letters")
    assert pipeline.config.execute("SELECT type FROM notification_log WHERE key_notification LIKE 'dead_letters:%'")
    # Killed and started again, the keys still wait.
    pipeline.kill()
    pipeline.start()
    # Later changes of these keys wait behind them, whatever they are: updates, a delete, a changed key.
    source.execute("UPDATE item SET note = 'later' WHERE id IN (1, 10)")
    source.execute("UPDATE item SET id = 300 WHERE id = 10")
    source.execute("UPDATE item SET amount = 7 WHERE id = 200; UPDATE item SET amount = 8 WHERE id = 55")
    # Unique values that change places are no poison, beside one that is.
    source.execute(
        "UPDATE item SET code = CASE id WHEN 60 THEN 'code61' ELSE 'code60' END WHERE id IN (60, 61);"
        "UPDATE item SET amount = -1 WHERE id = 62"
    )
    pipeline.wait_caught_up()
    assert waiting_keys(target) >= {("1",), ("10",), ("200",), ("62",)}
    assert different_keys(pipeline) <= {1, 10, 62, 200, 300}
    target.execute(FREE)
    result = replay(pipeline)
    assert result["keys_refused"] == 0, result
    assert waiting_keys(target) == set()
    assert not redis_client.keys("dlq:*"), "nothing is left in Redis"
    # The running pipeline may report once more what it saw before the replay.
    wait_for(lambda: status_of(pipeline) == [], 60, "the status to tell of none")
    pipeline.assert_equal()
    source.execute("UPDATE item SET note = 'all flow again'; DELETE FROM item WHERE id = 1")
    pipeline.wait_caught_up()
    assert waiting_entries(target) == 0
    pipeline.assert_equal()
    still_open = "SELECT key_notification FROM notification_log WHERE status = 'OPEN'"
    wait_for(lambda: not pipeline.config.execute(still_open), 30, "every event to be over")


def test_rows_without_a_key_wait_by_their_look_and_a_truncate_makes_all_void(strict: Configure) -> None:
    """Equal rows are counted; what a TRUNCATE makes void is removed, and told."""
    pipeline = strict()
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute("INSERT INTO line VALUES (7, 'bad'), (7, 'bad'), (7, 'good')")
    pipeline.wait_caught_up()
    assert waiting_entries(target) == 1
    source.execute(
        "INSERT INTO line VALUES (7, 'bad');"
        "DELETE FROM line WHERE ctid = (SELECT min(ctid) FROM line WHERE what = 'bad')"
    )
    source.execute(
        "INSERT INTO line VALUES (8, 'bad'); DELETE FROM line WHERE at = 8; INSERT INTO line VALUES (9, 'c')"
    )
    pipeline.wait_caught_up()
    assert target.execute("SELECT count(*) FROM line WHERE what <> 'bad'") == source.execute(
        "SELECT count(*) FROM line WHERE what <> 'bad'"
    )
    target.execute("ALTER TABLE line DROP CONSTRAINT known")
    assert replay(pipeline)["keys_refused"] == 0
    pipeline.assert_equal()
    target.execute("ALTER TABLE item DROP CONSTRAINT positive; ALTER TABLE item ADD CHECK (amount <> 12345)")
    source.execute("UPDATE item SET amount = 12345 WHERE id = 1")
    pipeline.wait_caught_up()
    assert waiting_keys(target) == {("1",)}
    source.execute("TRUNCATE item; INSERT INTO item VALUES (1, 'a', 1, 'after the truncate')")
    pipeline.wait_caught_up()
    assert waiting_entries(target) == 0
    pipeline.assert_equal()
    told = "SELECT message FROM notification_log WHERE key_notification LIKE 'dead_letters_discarded:%'"
    wait_for(lambda: "TRUNCATE" in str(pipeline.config.execute(told)), 30, "the discard to be told")


def test_an_operator_inspects_edits_exports_and_purges(strict: Configure, tmp_path: Path) -> None:
    """Values are seen only where they are asked for; what is removed is recorded."""
    pipeline = strict()
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute("UPDATE item SET amount = -5, note = 'secret text' WHERE id IN (10, 11)")
    pipeline.wait_caught_up()
    with operator(pipeline) as engine:
        listed = dead_letters.list_letters(engine, Scope("shop"))
        assert {one["operation"] for one in listed} == {"put"}
        assert all("positive" in one["reason"] and one["in_redis"] for one in listed)
        assert "secret" not in json.dumps(listed)
        entry = next(
            one["entry"]
            for one in listed
            if dead_letters.inspect_letter(engine, Scope("shop", entry=one["entry"]))["key"] == {"id": "10"}
        )
        found = dead_letters.inspect_letter(engine, Scope("shop", entry=entry))
        assert found["values"] == {"id": "10", "code": "code10", "amount": "-5", "note": "secret text"}
        with pytest.raises(RosettaError, match="cannot be edited"):
            dead_letters.edit_letter(engine, Scope("shop", entry=entry), {"id": "99"})
        with pytest.raises(RosettaError, match="no column"):
            dead_letters.edit_letter(engine, Scope("shop", entry=entry), {"nothing": "99"})
        dead_letters.edit_letter(engine, Scope("shop", entry=entry), {"amount": "5"})
        assert dead_letters.inspect_letter(engine, Scope("shop", entry=entry))["edited"]
        (replayed,) = dead_letters.replay_letters(engine, Scope("shop", entry=entry))
        assert (replayed["keys_replayed"], replayed["keys_refused"]) == (1, 0)
        assert target.execute("SELECT amount, note FROM item WHERE id = 10") == [(5, "secret text")]
        file = tmp_path / "out" / "letters.jsonl"
        assert dead_letters.export_letters(engine, Scope("shop"), file) == 1
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert json.loads(file.read_text())["values"]["note"] == "secret text"
        (dry,) = dead_letters.purge_letters(engine, Scope("shop", table="public.item"))
        assert (dry["entries"], waiting_keys(target)) == (1, {("11",)})
        dead_letters.purge_letters(engine, Scope("shop", table="public.item"), dry_run=False)
    assert waiting_keys(target) == set()
    assert pipeline.config.execute(
        "SELECT count(*) FROM notification_log WHERE key_notification LIKE 'dead_letters_discarded:%'"
    ) == [(1,)]
    # The purged key's later changes flow again.
    source.execute("UPDATE item SET amount = 12 WHERE id IN (10, 11)")
    pipeline.wait_caught_up()
    pipeline.assert_equal()


@pytest.mark.slow
def test_what_stays_poison_is_tried_a_few_times_and_what_is_cured_comes_by_itself(strict: Configure) -> None:
    """A few attempts, not a loop; a row whose cause is gone arrives without anybody's doing."""
    pipeline = strict(dead_letter_retry_seconds=1, dead_letter_retries=4)
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute("UPDATE item SET code = 'code2' WHERE id = 1")
    wait_for(lambda: waiting_keys(target) == {("1",)}, 60, "the row to wait")
    source.execute("UPDATE item SET code = 'other' WHERE id = 2; UPDATE item SET amount = -5 WHERE id = 10")
    wait_for(lambda: waiting_keys(target) == {("10",)}, 60, "it to come by itself")
    attempts = "SELECT max(attempts) FROM _rosetta.waiting_key"
    wait_for(lambda: target.execute(attempts) == [(4,)], 90, "four attempts")
    source.execute("UPDATE item SET note = 'goes on' WHERE id = 20")
    pipeline.wait_caught_up()
    target.execute("ALTER TABLE item DROP CONSTRAINT positive")
    assert different_keys(pipeline) == {10}
    assert target.execute(attempts) == [(4,)]
    assert replay(pipeline)["keys_refused"] == 0
    pipeline.assert_equal()


def test_a_replay_that_dies_before_it_acknowledges_is_not_repeated(
    strict: Configure, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The marks go with the data: what is left over in Redis has no mark, and is removed without being applied."""
    pipeline = strict()
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute("UPDATE item SET amount = -5 WHERE id = 10; INSERT INTO line VALUES (7, 'bad')")
    pipeline.wait_caught_up()
    target.execute(FREE + "; ALTER TABLE line DROP CONSTRAINT known")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DeadLetterQueue, "finish", die)
        with pytest.raises(KeyboardInterrupt):
            replay(pipeline)
    assert waiting_entries(target) == 0
    assert redis_client.keys("dlq:*"), "they were not acknowledged"
    source.execute("UPDATE item SET amount = 6 WHERE id = 10")
    pipeline.wait_caught_up()
    assert replay(pipeline)["keys_replayed"] == 0
    assert not redis_client.keys("dlq:*")
    pipeline.assert_equal()
