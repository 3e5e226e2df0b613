"""Turns of sandboxes: bounded over threads and processes, in order, freed by a death."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cdc_runner.errors import RosettaError
from cdc_runner.sandbox import turns
from cdc_runner.sandbox.turns import Queue, TurnCancelled, Turns
from tests.support.waiting import wait_for

_HOLDER = """
import sys, pathlib, time
from cdc_runner.sandbox.turns import Turns
with Turns(pathlib.Path(sys.argv[1]), 1).turn():
    print("mine", flush=True)
    time.sleep(600)
"""


def queue_is(directory: Path, queue: Queue) -> bool:
    return Turns(directory, 1).queue() == queue


def test_many_requests_never_run_more_than_allowed_and_all_get_their_turn(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(turns, "POLL_SECONDS", 0.005)
    running, most, lock = 0, 0, threading.Lock()

    def request(_: int) -> None:
        nonlocal running, most
        with Turns(tmp_path, 3).turn():
            with lock:
                running += 1
                most = max(most, running)
            os.sched_yield()
            with lock:
                running -= 1

    with ThreadPoolExecutor(40) as pool:
        assert len(list(pool.map(request, range(200)))) == 200
    assert 1 <= most <= 3
    assert Turns(tmp_path, 3).queue() == Queue(0, 0)


def test_turns_come_in_the_order_of_the_requests_and_tell_how_many_are_before(tmp_path: Path) -> None:
    told: list[int] = []
    order: list[str] = []

    def request(name: str) -> None:
        with Turns(tmp_path, 1).turn(on_wait=told.append):
            order.append(name)

    with Turns(tmp_path, 1).turn():
        threads = []
        for place, name in enumerate("abc", 1):
            threads.append(threading.Thread(target=request, args=(name,)))
            threads[-1].start()
            wait_for(functools.partial(queue_is, tmp_path, Queue(1, place)), 30, "it to wait")
        wait_for(lambda: {1, 2, 3} <= set(told), 30, "all to be told their places")
    for thread in threads:
        thread.join(60)
    assert order == ["a", "b", "c"]


def test_a_process_that_dies_gives_its_turn_up(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "mine\n"
        assert Turns(tmp_path, 1).queue() == Queue(1, 0)
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
    with Turns(tmp_path, 1).turn() as waited:
        assert waited < 60
        assert Turns(tmp_path, 1).queue() == Queue(1, 0)


def test_waiting_can_be_cancelled_and_is_refused_beyond_a_bound(tmp_path: Path, monkeypatch) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with Turns(tmp_path, 1).turn():
        with pytest.raises(TurnCancelled), Turns(tmp_path, 1).turn(cancelled):
            raise AssertionError("it had no turn")
        monkeypatch.setattr(turns, "MAX_WAITING", 0)
        with pytest.raises(RosettaError, match="wait already"), Turns(tmp_path, 1).turn():
            raise AssertionError("it had no turn")
    assert Turns(tmp_path, 1).queue() == Queue(0, 0)
