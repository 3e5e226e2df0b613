"""One round of sending: all channels at once, each in its own thread, the whole in bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from sqlalchemy import Engine

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.settings import get_setting
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.notification.channel import Channel
from cdc_runner.notification.message import Message
from cdc_runner.notification.outbox import Claimed, Outcome, announce, claim, record_outcomes
from cdc_runner.notification.send import send

ROUND_SECONDS = 20.0
CHANNELS_AT_ONCE = 8

Send = Callable[[Channel, Message, str, bool], None]


@dataclass(frozen=True, slots=True)
class Round:
    """What a round did."""

    announced: int
    delivered: int
    failed: int
    problem: str = ""

    @property
    def line(self) -> str:
        """One line for the list of ticks."""
        if not (self.announced or self.delivered or self.failed):
            return "nothing to send"
        told = f"{self.delivered} sent"
        return f"{told}, {self.failed} to be tried again: {self.problem}" if self.failed else told


def _send(channel: Channel, message: Message, delivery: str, allow_internal: bool) -> None:
    send(channel, message, delivery, allow_internal=allow_internal)


def send_round(engine: Engine, keyring: Keyring, *, sender: Send = _send, seconds: float = ROUND_SECONDS) -> Round:
    """Announce what is due, send what is waiting, and record what came of it.

    Nothing is sent inside a transaction. A channel that hangs is left behind: its messages come again later.

    Raises:
        RosettaError: the config database is away.
    """
    with session_scope(engine) as session:
        announced = announce(session)
    with session_scope(engine) as session:
        claimed = claim(session, keyring)
        allow_internal = bool(get_setting(session, "notification_allow_internal"))
    outcomes = _send_all(claimed, allow_internal, sender, seconds)
    if outcomes:
        with session_scope(engine) as session:
            record_outcomes(session, outcomes)
    failed = [one for one in outcomes if one.error is not None]
    problem = f"{failed[0].claimed.channel_name}: {failed[0].error}" if failed else ""
    return Round(announced, len(outcomes) - len(failed), len(failed), problem)


def _send_all(claimed: Sequence[Claimed], allow_internal: bool, sender: Send, seconds: float) -> list[Outcome]:
    by_channel: dict[int, list[Claimed]] = {}
    for one in claimed:
        by_channel.setdefault(one.channel_id, []).append(one)
    if not by_channel:
        return []
    deadline = time.monotonic() + seconds
    pool = ThreadPoolExecutor(CHANNELS_AT_ONCE, thread_name_prefix="notify")
    try:
        futures: list[tuple[list[Claimed], Future[list[Outcome]]]] = [
            (messages, pool.submit(_send_channel, messages, allow_internal, sender, deadline))
            for messages in by_channel.values()
        ]
        wait([future for _, future in futures], max(0.0, deadline - time.monotonic()) + 1.0)
        # One that still hangs keeps its claim: nobody knows what became of its message until the claim ends.
        return [outcome for _, future in futures if future.done() for outcome in future.result()]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _send_channel(messages: Sequence[Claimed], allow_internal: bool, sender: Send, deadline: float) -> list[Outcome]:
    outcomes: list[Outcome] = []
    error: RosettaError | None = None
    for one in messages:
        if error is None and time.monotonic() > deadline:
            error = RosettaError(ErrorKind.NOTIFICATION_FAILED, "the channel is slow")
            outcomes.append(Outcome(one, error, tried=False))
        elif error is not None:
            outcomes.append(Outcome(one, error, tried=False))
        else:
            error = _try(one, allow_internal, sender)
            outcomes.append(Outcome(one, error))
    return outcomes


def _try(one: Claimed, allow_internal: bool, sender: Send) -> RosettaError | None:
    if isinstance(one.channel, RosettaError):
        return one.channel
    try:
        sender(one.channel, one.message, one.delivery, allow_internal)
    except RosettaError as error:
        return error
    except Exception as error:
        # At the top of a loop over messages: one that cannot be sent must not stop the others, and is told.
        return RosettaError(ErrorKind.NOTIFICATION_FAILED, f"the channel failed ({type(error).__name__})")
    return None
