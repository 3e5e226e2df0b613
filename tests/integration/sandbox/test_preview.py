"""Preview of a source's tables: types, masks, refusals, cache, cancellation."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.database import open_catalog, session_scope
from cdc_runner.catalog.environment import read_environment
from cdc_runner.sandbox.run import SandboxLimits
from cdc_runner.sandbox.turns import Queue, preview_queue
from cdc_runner.services import preview as preview_module
from cdc_runner.services import preview_run
from cdc_runner.services.preview import PreviewPlan, as_json, plan_preview, preview
from cdc_runner.services.preview_run import PreviewRequest, run_preview
from cdc_runner.spec import Mask, MaskKind
from tests.support.pipelines import PipelineHarness
from tests.support.servers import RedisServer
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.timeout(300)]


def test_preview_reads_samples_with_masks_and_refuses_the_rest(pipeline: PipelineHarness) -> None:
    source = pipeline.source
    source.execute("CREATE TABLE orders (id int PRIMARY KEY, email text, amount numeric(10,2), any_digits numeric)")
    source.execute("INSERT INTO orders SELECT i, 'canary' || i, i / 4.0, i / 3.0 FROM generate_series(1, 50) i")
    source.execute("CREATE SCHEMA two; CREATE TABLE two.twice (id int); CREATE TABLE twice (id int)")
    pipeline.configure(syncs=[{"table": "public.orders", "mask": {"email": "hash"}}])
    keyring = Keyring.from_environment(
        read_environment({"CREDENTIAL_ENCRYPTION_KEY": pipeline.environment["CREDENTIAL_ENCRYPTION_KEY"]})
    )
    engine = open_catalog(pipeline.config.url())
    with session_scope(engine) as session:
        plan = plan_preview(session, "shop", keyring)
    engine.dispose()
    found = as_json(preview(plan, "SELECT sum(amount) AS total, count(*), min(email) AS mail FROM orders", 20))
    assert found["state"] == "COMPLETED", found
    assert found["columns"][0] == {"name": "total", "type": "DECIMAL(38,2)"}
    total, count, mail = found["rows"][0]
    assert (total, count) == ("52.50", "20") and len(mail) == 64
    assert as_json(preview(plan, "SELECT any_digits FROM orders WHERE id = 1"))["columns"][0]["type"] == "VARCHAR"
    assert preview(plan, "SELECT * FROM twice").state == "REFUSED", "two schemas have it"
    assert preview(plan, "SELECT * FROM pg_class").state == "REFUSED"
    assert preview(plan, "SELECT * FROM read_text('/etc/passwd')").state == "REFUSED"
    many = preview(plan, "SELECT a.id FROM orders a, orders b")
    assert many.truncated and many.rows is not None and many.rows.num_rows == 100


def request_of(plan: PreviewPlan, redis_server: RedisServer, home: Path, sql: str, **changes: object) -> PreviewRequest:
    request = PreviewRequest(plan, sql, 100, True, 2, home, SecretStr(redis_server.url))
    return replace(request, **changes)  # type: ignore[arg-type]  # fields by name


@pytest.fixture
def shop(pipeline: PipelineHarness) -> Iterator[Callable[[], PreviewPlan]]:
    """Makes a plan of the source `shop`, without masks."""
    pipeline.source.execute("CREATE TABLE orders (id int PRIMARY KEY, email text)")
    pipeline.source.execute("INSERT INTO orders SELECT i, 'canary' || i FROM generate_series(1, 50) i")
    engine = open_catalog(pipeline.config.url())

    def plan() -> PreviewPlan:
        pipeline.configure(syncs=[{"table": "public.orders"}])
        key = pipeline.environment["CREDENTIAL_ENCRYPTION_KEY"]
        keyring = Keyring.from_environment(read_environment({"CREDENTIAL_ENCRYPTION_KEY": key}))
        with session_scope(engine) as session:
            return plan_preview(session, "shop", keyring)

    yield plan
    engine.dispose()


def test_a_result_is_cached_until_a_mask_changes(shop, pipeline, redis_server, redis_client, tmp_path: Path) -> None:
    sql = "SELECT min(email) AS mail, count(*) FROM orders"
    plain = request_of(shop(), redis_server, tmp_path, sql)
    first = run_preview(plain).as_json()
    assert first["rows"] == [["canary1", "50"]] and first["cached_seconds"] is None and not first["cache_problem"]
    pipeline.source.execute("INSERT INTO orders VALUES (0, 'canary0')")
    again = run_preview(plain).as_json()
    assert again["rows"] == first["rows"] and again["cached_seconds"] is not None
    assert again["columns"] == first["columns"]
    (key,) = redis_client.keys("preview:*")
    assert 0 < redis_client.ttl(key) <= 300
    constant = replace(plain.plan, masks=(("public.orders", {"email": Mask(MaskKind.CONSTANT, text="x")}),))
    masked = run_preview(replace(plain, plan=constant)).as_json()
    assert masked["rows"] == [["x", "51"]] and masked["cached_seconds"] is None, "no older result, unmasked"
    hash_mask = (("public.orders", {"email": Mask(MaskKind.HASH)}),)
    hashed, other_key = (replace(plain.plan, masks=hash_mask, mask_key=SecretStr(key)) for key in ("a" * 64, "b" * 64))
    assert len({one.digest(sql, 100) for one in (plain.plan, hashed, other_key)}) == 3
    fresh = run_preview(replace(plain, use_cache=False)).as_json()
    assert fresh["rows"] == [["canary0", "51"]] and fresh["cached_seconds"] is None
    redis_client.set(key, b"something else")
    assert run_preview(plain).as_json()["rows"] == [["canary0", "51"]]


def test_without_redis_a_preview_only_says_so(shop, redis_server, tmp_path: Path) -> None:
    request = request_of(shop(), redis_server, tmp_path, "SELECT count(*) FROM orders")
    for url in (None, SecretStr("redis://:canary-word@127.0.0.1:1/0")):
        found = run_preview(replace(request, redis_url=url)).as_json()
        assert found["rows"] == [["50"]] and found["cache_problem"]
        assert "canary-word" not in str(found)


def test_interrupt_ends_query_and_process_at_once(shop, pipeline, redis_server, tmp_path: Path, monkeypatch) -> None:
    plan = shop()
    endless = request_of(plan, redis_server, tmp_path, "SELECT count(*) FROM range(10000000000000000)")
    limits = SandboxLimits(seconds=300, cpu_seconds=300)
    monkeypatch.setattr(preview_run, "preview", functools.partial(preview, limits=limits))
    # What other tests have left ended, and nobody has waited for, is still listed.
    before = set(psutil.Process().children())

    def started() -> set[psutil.Process]:
        return set(psutil.Process().children()) - before

    # Not before it computes: a process that is only being started ends by itself, and is collected by the next start.
    _interrupt(endless, lambda: any(one.cpu_times().user > 1 for one in started()))
    assert not started()
    # The source keeps the table locked: the preview waits for its rows.
    blocked = request_of(plan, redis_server, tmp_path, "SELECT count(*) FROM orders")
    monkeypatch.setattr(preview_module, "READ_TIMEOUT", "300s")
    holder = pipeline.source.connect()
    holder.autocommit = False
    holder.cursor().execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
    waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'rosetta preview' AND wait_event_type = 'Lock'"
    _interrupt(blocked, lambda: pipeline.source.server.execute(waiting))
    holder.close()
    assert preview_queue(tmp_path, 2) == Queue(0, 0)


def _interrupt(request: PreviewRequest, running: Callable[[], object]) -> None:
    """Run a preview, and send the process an interrupt when it runs."""

    def watch() -> None:
        wait_for(running, 60, "the preview to run")
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=watch)
    # A shell that starts the tests in the background has interrupts ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        watcher.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run_preview(request)
        watcher.join(60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 120, "it was not waited for"
