"""A replication connection: messages in, status out."""

from __future__ import annotations

import os
import select
import threading
import time

import psycopg2
import psycopg2.extensions
import psycopg2.extras
import structlog

from cdc_runner.capture.identity import ServerIdentity
from cdc_runner.capture.pgoutput import messages
from cdc_runner.capture.pgoutput.libpq import CopyBoth
from cdc_runner.connections import classify, connect
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import format_lsn, parse_lsn
from cdc_runner.schema import quote_identifier
from cdc_runner.spec import SourceSpec

log = structlog.get_logger()

STATUS_SECONDS = 1.0
"""Longest time between two status messages; the server gives up after `wal_sender_timeout` without one."""
_STATUS_PAUSE_SECONDS = 0.05
_ASK_AFTER_SECONDS = 20.0
_LOST_AFTER_SECONDS = 60.0

_BUSY_MESSAGES = 30
_GATHER_SECONDS = 0.002

MAX_MESSAGES = 4000
MAX_BYTES = 1 << 20


def stream_options(source: SourceSpec, server_version: int, origin: str) -> dict[str, str]:
    """Return the options of START_REPLICATION: the newest protocol that the server has.

    Two-phase commit is not asked for: a prepared transaction comes when it is committed, as any other.
    """
    options = {"proto_version": "1", "publication_names": quote_identifier(source.publication)}
    if server_version >= 140000:
        protocol = 4 if server_version >= 160000 else 3 if server_version >= 150000 else 2
        options |= {"proto_version": str(protocol), "streaming": "on", "messages": "true"}
    if server_version >= 160000:
        options["origin"] = origin
    return options


class Link:
    """Streams from the slot's confirmed position. One thread reads; a thread of its own sends status messages.

    Nothing is reported as durable but what `durable` was set to.
    """

    def __init__(self, source: SourceSpec, origin: str, durable: int) -> None:
        """Connect and start.

        Args:
            source: its slot and publication exist.
            origin: `any`, or `none` to leave out what came to the source by replication (PostgreSQL 16).
            durable: LSN to report from the beginning; 0 when nothing is known.

        Raises:
            RosettaError: a source kind; SLOT_AHEAD when the slot has moved beyond `durable`.
        """
        self._connection = connect(
            source.address,
            application_name=f"rosetta capture {source.name}",
            connection_factory=psycopg2.extras.LogicalReplicationConnection,
        )
        self._lock = threading.Lock()
        self._closed = False
        self._wake_reader, self._waker = os.pipe()
        try:
            self.identity = self._identify()
            confirmed = self._confirmed(source.slot)
            if durable and confirmed > durable:
                raise RosettaError(
                    ErrorKind.SLOT_AHEAD,
                    f"replication slot {source.slot} has moved to {format_lsn(confirmed)} by itself, "
                    f"beyond {format_lsn(durable)}",
                )
            with self._connection.cursor() as cursor:
                options = stream_options(source, self._connection.server_version, origin)
                cursor.start_replication(slot_name=source.slot, decode=False, options=options)  # type: ignore[attr-defined]  # the factory's cursor
            self._copy = CopyBoth(self._connection)
        except BaseException as error:
            self.close()
            if isinstance(error, psycopg2.Error):
                raise classify(error, "source") from error
            raise
        self._poll = select.poll()
        for handle in (self._connection.fileno(), self._wake_reader):
            self._poll.register(handle, select.POLLIN)
        self.durable = max(durable, confirmed)
        self.received = 0
        self._heard_at = time.monotonic()
        self._more = self._busy = False
        self._ask = False
        self._report_now = threading.Event()
        self._reporter = threading.Thread(target=self._report, name="capture-status", daemon=True)
        self._reporter.start()

    def _identify(self) -> ServerIdentity:
        with self._connection.cursor() as cursor:
            cursor.execute("IDENTIFY_SYSTEM")
            row = cursor.fetchone()
        assert row is not None, "IDENTIFY_SYSTEM returns a row"
        return ServerIdentity(str(row[0]), int(row[1]))

    def _confirmed(self, slot: str) -> int:
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", (slot,))
            row = cursor.fetchone()
        if row is None:
            raise RosettaError(ErrorKind.SLOT_MISSING, f"replication slot {slot} is gone")
        return 0 if row[0] is None else parse_lsn(row[0])

    # -- the reader --------------------------------------------------------------------------------------------------

    def read(self, wait_seconds: float) -> tuple[list[bytes], int]:
        """Return the next messages and their size; none when nothing came in time or `wake` was called.

        Raises:
            RosettaError: the stream ended or the connection is lost, silently for a minute too.
        """
        if not self._more:
            if self._busy:
                # The server sends row by row. Woken for each, both sides would spend their time on system calls.
                time.sleep(_GATHER_SECONDS)
            self._poll.poll(wait_seconds * 1000)
        found, size = self._copy.read(MAX_MESSAGES, MAX_BYTES)
        self._more = len(found) >= MAX_MESSAGES or size >= MAX_BYTES
        self._busy = len(found) >= _BUSY_MESSAGES
        now = time.monotonic()
        if found:
            self._heard_at, self._ask = now, False
        elif now - self._heard_at > _LOST_AFTER_SECONDS:
            raise RosettaError(ErrorKind.SOURCE_UNAVAILABLE, "source: the server has been silent for a minute")
        elif now - self._heard_at > _ASK_AFTER_SECONDS and not self._ask:
            self._ask = True
            self.report()
        return found, size

    def wake(self) -> None:
        """Let a waiting `read` return; any thread may call it."""
        with self._lock:
            if not self._closed:
                os.write(self._waker, b"x")

    def close(self) -> None:
        """Say once more what is durable, and disconnect; idempotent. Not while another thread reads."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if hasattr(self, "_copy"):
                try:
                    self._copy.write(messages.status(self.received, self.durable, ask=False))
                except RosettaError as error:
                    log.debug("capture.last_status_not_sent", error=str(error))
            self._connection.close()
            os.close(self._wake_reader)
            os.close(self._waker)
        if hasattr(self, "_reporter"):
            self._report_now.set()
            self._reporter.join(5)

    # -- status ------------------------------------------------------------------------------------------------------

    def confirm(self, lsn: int) -> None:
        """Report an LSN as durable soon; lower ones are ignored. Any thread may call it."""
        if lsn > self.durable:
            self.durable = lsn
            self._report_now.set()

    def report(self) -> None:
        """Send a status soon."""
        self._report_now.set()

    def _report(self) -> None:
        """Send status messages in time whatever the reader waits for (a thread of its own)."""
        while True:
            self._report_now.wait(STATUS_SECONDS)
            self._report_now.clear()
            with self._lock:
                if self._closed:
                    return
                try:
                    self._copy.write(messages.status(self.received, self.durable, ask=self._ask))
                except RosettaError as error:
                    # The reader notices the same; it alone decides what follows.
                    log.debug("capture.status_not_sent", error=str(error))
            time.sleep(_STATUS_PAUSE_SECONDS)
