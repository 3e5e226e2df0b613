"""What one process asks of the one that runs the pipeline: replays and purges of marks that only that one may change.

Requests are a list in Redis beside the queue, answers a text each, kept for ten minutes. A request that is not taken in
time is withdrawn by whoever asked, so nothing is done later that nobody waits for.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cdc_runner.dead_letter.queue import DeadLetterQueue
from cdc_runner.destinations.marks import Selection
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableId

ANSWER_SECONDS = 120.0
_KEPT_SECONDS = 600
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        id: of the request.
        verb: `replay` or `purge`.
        selection: what is meant.
    """

    id: str
    verb: str
    selection: Selection


def ask(queue: DeadLetterQueue, verb: str, selection: Selection, *, sleep: Callable[[float], object]) -> Any:
    """Ask the running pipeline, and return what it answers.

    Raises:
        RosettaError: DEAD_LETTER_UNAVAILABLE, no answer came; what the pipeline says went wrong.
    """
    target = None if selection.target is None else [selection.target.schema, selection.target.name]
    request = {"id": uuid.uuid4().hex, "verb": verb, "target": target, "entry": selection.entry}
    text, deadline = json.dumps(request), time.monotonic() + ANSWER_SECONDS
    with queue.store.client() as client:
        client.rpush(queue.requests, text)
        while True:
            found = client.getdel(f"{queue.requests}:{request['id']}")
            if found is not None:
                break
            if time.monotonic() > deadline:
                client.lrem(queue.requests, 0, text)
                raise RosettaError(
                    ErrorKind.DEAD_LETTER_UNAVAILABLE, "the running pipeline did not answer in time: see its log"
                )
            sleep(_POLL_SECONDS)
    answer = json.loads(found)
    if "error" in answer:
        raise RosettaError(ErrorKind(answer["kind"]), answer["error"])
    return answer["result"]


def take(queue: DeadLetterQueue) -> Request | None:
    """Return the next request, None when there is none."""
    with queue.store.client() as client:
        text = client.lpop(queue.requests)
    if text is None:
        return None
    value = json.loads(text)
    target = None if value["target"] is None else TableId(*value["target"])
    return Request(value["id"], value["verb"], Selection(target, value["entry"]))


def answer(queue: DeadLetterQueue, request: Request, outcome: object) -> None:
    """Answer a request: with a result for JSON, or with the error that ended it."""
    if isinstance(outcome, RosettaError):
        value: dict[str, object] = {"error": outcome.message, "kind": outcome.kind.value}
    else:
        value = {"result": outcome}
    with queue.store.client() as client:
        client.set(f"{queue.requests}:{request.id}", json.dumps(value), ex=_KEPT_SECONDS)
