"""The messages of one connection to parts of whole transactions."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from cdc_runner.capture.buffer import Part, Payload
from cdc_runner.capture.pgoutput import messages as protocol
from cdc_runner.capture.pgoutput.messages import Relation
from cdc_runner.capture.pgoutput.relations import Relations
from cdc_runner.capture.pgoutput.streamed import StreamedTransaction
from cdc_runner.capture.rows.columns import DELETE, HEADER, INSERT, UPDATE, pack
from cdc_runner.capture.rows.stamps import RunCounter, pack_end, pack_runs
from cdc_runner.position import Position

PREFIX = 5
"""Bytes before the first tuple mark of a row message."""

PART_BYTES = 1 << 20
"""Size at which rows of an open transaction leave memory, or go to the buffer, which may spill them."""

_FEW = 48
_ROWS = frozenset((INSERT, UPDATE, DELETE))


class TransactionReader:
    """Collects rows until their transaction is complete. Used by the capture thread.

    Rows are only appended to a list; what else there is to do is done for many rows at once, when a part is made.
    """

    def __init__(
        self,
        relations: Relations,
        put: Callable[[Part], bool],
        directory: Path,
        barriers: Iterable[Position],
        *,
        stamped: bool = False,
    ) -> None:
        """Args:
        relations: resolves tables.
        put: takes over a part.
        directory: for files of streamed transactions.
        barriers: positions that no part may span.
        stamped: whether pieces say where their messages belong.
        """
        self._stamped = stamped
        self._relations = relations
        self._put = put
        self._directory = directory
        self._barriers = sorted(barrier.lsn for barrier in barriers)
        self.delivered = 0
        """End LSN of the last transaction that was handed over."""
        self.idle_end = 0
        """LSN up to which the server has sent everything, as its last message says; 0 when another message was last."""
        self.reply_wanted = False
        self._reset()

    def _reset(self) -> None:
        self._described: dict[bytes, Relation] = {}
        self._rows: list[bytes] = []
        self._append: Callable[[bytes], None] = self._rows.append
        self._size = 0
        self._mark = 0
        self._transactions = 0
        self._end = self.delivered
        self._time = 0.0
        self._open = False
        self._skipping = False
        self._repeated = self.delivered
        self._streams: dict[bytes, StreamedTransaction] = {}
        self._stream: StreamedTransaction | None = None
        self._block: list[bytes] = []
        self._counter = RunCounter()
        self._begun = b""
        self._numbers = bytearray()
        self._number = 0
        self._marks: list[bytes] = []
        self.idle_end = 0

    def add_barrier(self, barrier: Position) -> None:
        """No part may span this position either; it lies behind everything that was fed. From any thread."""
        insort(self._barriers, barrier.lsn)

    def restart(self) -> None:
        """A new connection begins: what was not handed over comes again, and what was is passed over."""
        for stream in self._streams.values():
            stream.release()
        self._relations.forget()
        self._reset()

    def feed(self, messages: Sequence[bytes], size: int) -> None:
        """Take over messages and hand over the transactions that are complete now.

        Args:
            messages: as they came.
            size: bytes of them.

        Raises:
            RosettaError: a table cannot be resolved, or a file cannot be written.
        """
        self.idle_end = 0
        append = self._append
        for message in messages:
            kind = message[0]
            if kind in _ROWS:
                append(message)
            else:
                self._control(kind, message)
                append = self._append
        self._size += size
        if self._block and self._size > PART_BYTES:
            self._keep_block()
        if self._transactions:
            self._hand_over()
        if self._rows and self._size > PART_BYTES:
            self._put_rows(len(self._rows), None)
        if not self._rows and not self._block:
            self._size = 0

    def _control(self, kind: int, message: bytes) -> None:
        if kind == protocol.BEGIN:
            self._open = True
            self._begun = message
            if self._repeated or self._stamped:
                self._begin(*protocol.parse_begin(message))
        elif kind == protocol.COMMIT:
            self._commit(message)
        elif kind == protocol.KEEPALIVE:
            end, reply = protocol.parse_keepalive(message)
            self.reply_wanted |= reply
            if not self._open:
                self.idle_end = end
        elif kind == protocol.RELATION:
            self._describe(message)
        elif kind == protocol.TYPE:
            self._relations.told_type(*protocol.parse_type(message, 1 if self._stream is None else 5))
        elif kind == protocol.TRUNCATE:
            self._truncate(message)
        else:
            self._control_stream(kind, message)

    def _control_stream(self, kind: int, message: bytes) -> None:
        if kind == protocol.STREAM_START:
            number = message[1:5]
            if number not in self._streams:
                self._streams[number] = StreamedTransaction(self._directory)
            self._stream = self._streams[number]
            self._append = self._block.append
        elif kind == protocol.STREAM_STOP:
            self._keep_block()
            self._stream = None
            self._append = self._rows.append
        elif kind == protocol.STREAM_COMMIT:
            self._commit_stream(message)
        elif kind == protocol.STREAM_ABORT:
            whole, part = message[1:5], message[5:9]
            stream = self._streams.get(whole)
            if stream is not None and whole == part:
                self._streams.pop(whole).release()
            elif stream is not None:
                stream.abort(part)
        # What is left are origins and logical messages: the transaction that has them counts, they do not.

    # -- transactions that come whole --------------------------------------------------------------------------------

    def _begin(self, commit: int, number: int) -> None:
        """A transaction begins that is to be stamped, or may have been handed over before the connection was lost."""
        self._skipping = commit < self._repeated
        if self._skipping:
            self._append = deque[bytes](maxlen=0).append
            return
        self._repeated = 0
        self._number = number
        self._counter.begin(number, len(self._rows))

    def _commit(self, message: bytes) -> None:
        self._open = False
        if self._skipping:
            self._skipping = False
            self._append = self._rows.append
            return
        end, self._time = protocol.parse_commit(message)
        if self._barriers:
            self._part_at_barrier(end)
        if self._stamped:
            self._marks.append(pack_end(self._number, end, self._time))
        self._numbers += self._begun[protocol.BEGIN_NUMBER]
        self._transactions += 1
        self._mark = len(self._rows)
        self._end = end

    def _part_at_barrier(self, end: int) -> None:
        """Hand over what came before when a barrier lies between it and the transaction that ends now."""
        crossed = self._barriers[0] < end
        if crossed and self._transactions:
            self._hand_over()
        while self._barriers and self._barriers[0] < end:
            self._barriers.pop(0)

    def _hand_over(self) -> None:
        """Hand over the complete transactions."""
        count, self._transactions = self._transactions, 0
        mark, self._mark = self._mark, 0
        self._put_rows(mark, self._end, count)

    def _put_rows(self, count: int, end: int | None, transactions: int = 0) -> None:
        rows = self._rows[:count]
        del self._rows[:count]
        if not self._rows:
            self._size = 0
        part = Part(None if end is None else Position(end), self._time if end else 0.0, transactions)
        if end is not None:
            part.marks, self._marks = self._marks, []
            part.numbers, self._numbers = bytes(self._numbers), bytearray()
        stamps = self._counter.runs(rows) if self._stamped else {}
        groups = _by_relation(rows)
        if len(groups) > 1:
            self._relations.look_ahead(self._described[number] for number, _ in groups)
        for number, group in groups:
            resolved = self._relations.resolve(self._described[number])
            if resolved is not None:
                runs = stamps.get(number, ())
                header = HEADER.pack(resolved.layout, PREFIX, len(group), len(runs))
                piece = pack(group, header + pack_runs(runs))
                part.payloads.append((resolved.version, Payload(piece, len(group))))
        if end is None and not part.payloads:
            return
        if self._put(part) and end is not None:
            self.delivered = end

    def _describe(self, message: bytes) -> None:
        if self._stream is not None:
            # It is written with the description that held when it came.
            self._keep_block()
            relation = protocol.parse_relation(message, 5)
            self._stream.relations[relation.number] = relation
            return
        relation = protocol.parse_relation(message, 1)
        if relation.number in self._described and self._rows:
            # The rows so far are of the table as it was.
            if self._transactions:
                self._hand_over()
            if self._rows:
                self._put_rows(len(self._rows), None)
        self._described[relation.number] = relation

    def _truncate(self, message: bytes) -> None:
        if self._stream is None:
            for number in protocol.parse_truncate(message, 1):
                self._append(b"T" + number)
        else:
            for number in protocol.parse_truncate(message, 5):
                self._append(b"T" + message[1:5] + number)

    # -- transactions that come while they are open ------------------------------------------------------------------

    def _keep_block(self) -> None:
        if self._block and self._stream is not None:
            self._stream.add(self._block, self._described)
            self._block.clear()
            self._size = 0

    def _commit_stream(self, message: bytes) -> None:
        end, moment = protocol.parse_commit(message, 6)
        stream = self._streams.pop(message[1:5])
        try:
            if self._transactions:
                self._hand_over()
            if end > self.delivered:
                number = int.from_bytes(message[1:5]) if self._stamped else None
                part = Part(Position(end), moment, 1, stream.payloads(self._relations.resolve, number))
                part.numbers = message[1:5]
                if number is not None:
                    part.marks.append(pack_end(number, end, moment))
                if self._put(part):
                    self.delivered = end
            self._end = max(self._end, end)
            self._described |= stream.relations
        finally:
            stream.release()

    def put_idle(self, moment: float) -> None:
        """Hand over that there is nothing up to where the server has sent everything.

        Every transaction that is still to come commits after that, so it is a position like the end of one.
        """
        if self.idle_end > self.delivered and not self._rows and not self._open:
            end = self.idle_end
            if self._put(Part(Position(end), moment, 0)):
                self.delivered = end


def _by_relation(rows: Sequence[bytes]) -> list[tuple[bytes, Sequence[bytes]]]:
    """Return rows by the relation that they name, in order of first appearance."""
    if not rows:
        return []
    if len(rows) > _FEW:
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        starts = np.cumsum(lengths) - lengths
        joined = b"".join(rows)
        numbers = np.ndarray((len(joined) - 4,), dtype="<u4", buffer=joined, offset=1, strides=(1,))[starts]
        if (numbers == numbers[0]).all():
            return [(rows[0][1:5], rows)]
    groups: dict[bytes, list[bytes]] = {}
    for row in rows:
        groups.setdefault(row[1:5], []).append(row)
    return list(groups.items())
