"""One channel and what goes through it exactly once: rows are held until the service says that they are durable."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from cdc_runner.destinations.snowflake.pace import Budget
from cdc_runner.destinations.snowflake.streaming import ChannelStatus, Pipe, Rows, StreamingService
from cdc_runner.destinations.snowflake.transport import Refused, Unanswered, Unreachable, classified
from cdc_runner.errors import ErrorKind, RosettaError

log = structlog.get_logger()

REQUESTS_PER_SECOND = 10.0
BYTES_PER_SECOND = 20_000_000.0
BURST_BYTES = 8_000_000.0
COMMIT_WAIT_SECONDS = 180.0
POLL_SECONDS = (0.02, 0.05, 0.1, 0.25, 0.5)
MAX_REOPENS = 5
"""Openings in a row without any row becoming durable, after which the writer gives up and the pipeline backs off."""

_REOPEN = (
    "STALE_CONTINUATION_TOKEN",
    "STALE_PIPE_CACHE",
    "ERR_CHANNEL_HAS_INVALID_ROW_SEQUENCER",
    "ERR_CHANNEL_HAS_INVALID_CLIENT_SEQUENCER",
    "ERR_CHANNEL_MUST_BE_REOPENED",
    "ERR_CHANNEL_DOES_NOT_EXIST",
)
_CONFLICT = ("ERR_CHANNEL_HAS_UNCOMMITTED_DATA", "ERR_OPEN_CHANNEL_IN_PROGRESS")


class ChannelLost(Exception):
    """The channel must be opened anew; what of the rows is durable is not known until then."""


@dataclass(slots=True)
class RowsRejected(Exception):
    """The service dropped rows, or counts other rows than were sent.

    Attributes:
        missing: rows that were sent and are not in the table.
        requests: what was sent; the missing rows are among these.
    """

    missing: int
    requests: Sequence[Rows]

    @property
    def through(self) -> str:
        """Offset token of the last row concerned."""
        return self.requests[-1].last


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a channel waits, and how; tests shorten it.

    Attributes:
        commit_seconds: for rows to become durable, before the channel is opened anew.
        poll_seconds: times between two looks, the last one repeated.
        clock: seconds.
        sleep: waits for seconds.
    """

    commit_seconds: float = COMMIT_WAIT_SECONDS
    poll_seconds: Sequence[float] = POLL_SECONDS
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep


class Channel:
    """Appends rows in the order of their offset tokens. Used by one thread.

    The offset token that the service holds is the only memory: rows at or below it are never sent again, rows above it
    are sent until it covers them. A continuation token that was used in vain (no answer, or an answer that ignored the
    rows) is never used again: the channel is opened, which tells what arrived.
    """

    def __init__(
        self,
        service: StreamingService,
        pipe: Pipe,
        name: str,
        *,
        fence: Callable[[], None] = lambda: None,
        patience: Patience | None = None,
        bytes_per_second: float = BYTES_PER_SECOND,
    ) -> None:
        """Args:
        service: makes the calls.
        pipe: of the landing table.
        name: of the channel; no other writer may use it.
        fence: raises FENCED when a newer writer has taken over; asked before the channel is taken from another client.
        patience: how long to wait.
        bytes_per_second: budget of uncompressed bytes.
        """
        self._service = service
        self._pipe = pipe
        self.name = name
        self._fence = fence
        self._patience = patience or Patience()
        clock, sleep = self._patience.clock, self._patience.sleep
        self._requests = Budget(REQUESTS_PER_SECOND, REQUESTS_PER_SECOND, clock=clock, sleep=sleep)
        self._bytes = Budget(bytes_per_second, BURST_BYTES, clock=clock, sleep=sleep)
        self._continuation: str | None = None
        self._seen = ChannelStatus("", None, 0, 0)
        self._pending: list[Rows] = []

    @property
    def committed(self) -> str | None:
        """Offset token up to which rows were seen to be durable."""
        return self._seen.committed

    @property
    def rows_rejected(self) -> int:
        """Rows that the service has rejected since the channel was made."""
        return self._seen.rows_error

    def open(self) -> str | None:
        """Open the channel and return the offset token up to which rows are durable.

        Waits while rows of an earlier client are on their way: opening over them would throw them away.

        Raises:
            RosettaError: a destination kind.
        """
        deadline = self._patience.clock() + self._patience.commit_seconds
        attempt = 0
        while True:
            try:
                token, status = self._service.open_channel(self._pipe, self.name)
                break
            except Refused as error:
                conflict = error.status == 409 and (not error.code or error.code.startswith(_CONFLICT))
                if not conflict or self._patience.clock() > deadline:
                    raise classified(error, f"open channel {self.name}") from None
            except (Unanswered, Unreachable) as error:
                raise classified(error, f"open channel {self.name}") from None
            self._pause(attempt)
            attempt += 1
        self._continuation = token
        self._take_note(status)
        return status.committed

    def send(self, rows: Rows) -> None:
        """Send a request; `settle` makes sure that it is durable. One that is durable already is left out.

        Raises:
            RosettaError: a destination kind.
        """
        if self.committed is not None and rows.last <= self.committed:
            return
        self._pending.append(rows)
        if self._continuation is None:
            return
        try:
            self._append(rows)
        except ChannelLost as error:
            self._lose(error)

    @property
    def pending_bytes(self) -> int:
        """Bytes that are held until they are durable."""
        return sum(len(one.body) for one in self._pending)

    def settle(self) -> None:
        """Return when everything that was sent is durable.

        Raises:
            RowsRejected: the service took fewer rows than were sent; all others are durable.
            RosettaError: FENCED, or a destination kind; some rows may be durable.
        """
        reopens = 0
        while self._pending:
            before = self.committed
            try:
                if self._continuation is None:
                    self._fence()
                    self.open()
                    for one in self._pending:
                        self._append(one)
                else:
                    self._await(self._pending[-1].last)
            except ChannelLost as error:
                self._lose(error)
                reopens = 0 if self.committed != before else reopens + 1
                if reopens > MAX_REOPENS:
                    raise RosettaError(
                        ErrorKind.DESTINATION_UNAVAILABLE,
                        f"channel {self.name} was lost {reopens} times and no row became durable ({error})",
                    ) from None
                self._pause(reopens)

    def glance(self) -> None:
        """Look once whether what was sent is durable, without waiting for it."""
        if self._pending and self._continuation is None:
            self.settle()
        if not self._pending:
            return
        try:
            self._take_note(self._status())
        except ChannelLost as error:
            self._lose(error)

    def _lose(self, error: ChannelLost) -> None:
        self._continuation = None
        log.info("snowflake.channel_lost", channel=self.name, reason=str(error))

    def drop(self) -> None:
        """Drop the channel, with the memory of what went through it."""
        self._continuation = None
        try:
            self._service.drop_channel(self._pipe, self.name)
        except (Refused, Unanswered, Unreachable) as error:
            raise classified(error, f"drop channel {self.name}") from None

    def _append(self, rows: Rows) -> None:
        self._requests.take()
        self._bytes.take(rows.raw_bytes)
        sent = self._continuation
        assert sent is not None, "the channel is open"
        try:
            after = self._service.append(self._pipe, self.name, sent, rows)
        except Refused as error:
            if error.code.startswith(_REOPEN):
                raise ChannelLost(error.code) from None
            self._continuation = None
            raise classified(error, f"take rows in channel {self.name}") from None
        except Unanswered as error:
            raise ChannelLost(f"no answer: {error}") from None
        except Unreachable as error:
            self._continuation = None
            raise classified(error, f"take rows in channel {self.name}") from None
        if after in ("", sent):
            # A stale token is answered with success, and the rows are ignored.
            raise ChannelLost("the service ignored the rows")
        self._continuation = after

    def _await(self, last: str) -> None:
        """Wait until the service holds everything up to an offset token."""
        deadline = self._patience.clock() + self._patience.commit_seconds
        attempt = 0
        while True:
            self._take_note(self._status())
            if self.committed is not None and self.committed >= last:
                return
            if self._patience.clock() > deadline:
                raise ChannelLost(f"rows were not durable after {self._patience.commit_seconds:.0f} s")
            self._pause(attempt)
            attempt += 1

    def _take_note(self, status: ChannelStatus) -> None:
        """Forget what is durable, and compare what the service counted with what was sent."""
        before, self._seen = self._seen, status
        done = [one for one in self._pending if status.committed is not None and one.last <= status.committed]
        self._pending = self._pending[len(done) :]
        expected = sum(one.count for one in done)
        errors = status.rows_error - before.rows_error
        inserted = status.rows_inserted - before.rows_inserted
        if done and (errors > 0 or 0 <= inserted < expected):
            raise RowsRejected(max(errors, expected - inserted), done)

    def _status(self) -> ChannelStatus:
        try:
            found = self._service.statuses(self._pipe, [self.name])
        except (Refused, Unanswered, Unreachable) as error:
            self._continuation = None
            raise classified(error, f"tell the status of channel {self.name}") from None
        # Some answers fold the names.
        status = found.get(self.name) or next((one for name, one in found.items() if name.upper() == self.name), None)
        if status is None or not status.usable:
            raise ChannelLost("the channel is gone" if status is None else status.code)
        return status

    def _pause(self, attempt: int) -> None:
        times = self._patience.poll_seconds
        self._patience.sleep(times[min(attempt, len(times) - 1)])
