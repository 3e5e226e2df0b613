"""Both sides of a pipeline that does not run: its destinations stand still, and its slot tells what waits for them."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import psycopg2
import psycopg2.extensions

from cdc_runner.capture.publication import SnapshotSlot, read_slot
from cdc_runner.connections import classify, connect
from cdc_runner.destinations.postgres import state
from cdc_runner.destinations.snowflake.held import HeldTargets, new_token
from cdc_runner.errors import RosettaError
from cdc_runner.position import Position, format_lsn
from cdc_runner.reconcile.fenced import Fenced
from cdc_runner.reconcile.session import Settings, SnapshotSessions
from cdc_runner.schema import TableId, quote_identifier
from cdc_runner.spec import DestinationSpec, PipelineSpec, SnowflakeAddress

SLOT_SECONDS = 10.0
LOOKED_AT_MESSAGES = 200_000
"""Messages of the slot that are looked at; the server keeps all of them in a temporary file meanwhile."""

# Only the head of a row's message is needed: its kind and the table's number. Of others everything.
_PEEK = """
SELECT CASE WHEN get_byte(data, 0) IN (73, 85, 68) THEN substring(data FROM 1 FOR 5) ELSE data END
FROM pg_logical_slot_peek_binary_changes(%s, %s::pg_lsn, %s, 'proto_version', '1', 'publication_names', %s)
"""


@contextmanager
def standing(spec: PipelineSpec, destinations: Collection[DestinationSpec], settings: Settings) -> Iterator[Fenced]:
    """Give sessions that see the source at a new position and the destinations as they are.

    A table of which changes wait in the slot is named in `Fenced.pending`; every other one must be equal.

    Raises:
        RosettaError: SLOT_IN_USE when the pipeline was started meanwhile, and the kinds of both sides.
    """
    with ExitStack() as cleanup:
        name = f"{spec.source.slot[:40]}_verify_{secrets.token_hex(4)}"
        with SnapshotSlot(spec.source.address, name, temporary=True, timeout_seconds=SLOT_SECONDS) as slot:
            source = SnapshotSessions(spec.source.address, "source", slot.snapshot, settings)
            cleanup.callback(source.close)
            found = Fenced(slot.lsn, source)
        positions: dict[int, Position] = {}
        for one in destinations:
            if isinstance(one.place, SnowflakeAddress):
                _hold(spec.identity, one, one.place, found, positions, cleanup)
                continue
            try:
                sessions = SnapshotSessions(one.address, "destination", None, settings)
            except RosettaError as error:
                found.problems[one.id] = error.message
                continue
            cleanup.callback(sessions.close)
            position = _position(sessions, spec.identity)
            if position is None or position.lsn > found.lsn:
                found.problems[one.id] = "it holds no position, or one that the source has not reached"
                continue
            positions[one.id], found.targets[one.id] = position, sessions
        _leave_out_passed(spec, found, positions)
        if positions:
            _look_into_slot(spec, found, positions)
        yield found


def _hold(
    pipeline: str,
    destination: DestinationSpec,
    place: SnowflakeAddress,
    found: Fenced,
    positions: dict[int, Position],
    cleanup: ExitStack,
) -> None:
    """Keep the targets of a Snowflake destination from being merged beyond the position."""
    try:
        held = HeldTargets(place, pipeline, destination.identity, found.lsn, new_token())
        cleanup.callback(held.close)
        position = held.position()
        if position is not None and position.lsn <= found.lsn:
            held.take()
    except RosettaError as error:
        found.problems[destination.id] = error.message
        return
    if position is None or position.lsn > found.lsn:
        found.problems[destination.id] = "it holds no position, or one that the source has not reached"
        return
    positions[destination.id], found.lakes[destination.id] = position, held


def _position(sessions: SnapshotSessions, pipeline: str) -> Position | None:
    try:
        with sessions.keeper.cursor() as cursor:
            return state.read_position(cursor, pipeline)
    except psycopg2.Error as error:
        raise classify(error, "destination") from error


def _leave_out_passed(spec: PipelineSpec, found: Fenced, positions: dict[int, Position]) -> None:
    """Leave out the destinations that the slot has passed: of what is parked for them it does not tell any more."""
    with _source_session(spec) as connection:
        slot = read_slot(connection, spec.source.slot)
    confirmed = 0 if slot is None else slot.confirmed_lsn or 0
    for identifier, position in list(positions.items()):
        if position.lsn < confirmed:
            _leave_out(
                found,
                identifier,
                f"the slot has passed it, up to {format_lsn(confirmed)}: changes for it are parked in Redis (or lost, "
                "which the start of the pipeline tells): start the pipeline",
            )
            del positions[identifier]


def _leave_out(found: Fenced, identifier: int, reason: str) -> None:
    found.problems[identifier] = reason
    found.targets.pop(identifier, None)
    found.lakes.pop(identifier, None)


@contextmanager
def _source_session(spec: PipelineSpec) -> Iterator[psycopg2.extensions.connection]:
    connection = connect(spec.source.address, application_name="rosetta verify")
    try:
        connection.autocommit = True
        yield connection
    except psycopg2.Error as error:
        raise classify(error, "source") from error
    finally:
        connection.close()


def _look_into_slot(spec: PipelineSpec, found: Fenced, positions: dict[int, Position]) -> None:
    """Find out which tables have changes between a destination's position and that of the source's snapshot."""
    with _source_session(spec) as connection, connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = '300s'")
        cursor.execute(
            _PEEK,
            (
                spec.source.slot,
                format_lsn(found.lsn),
                LOOKED_AT_MESSAGES,
                quote_identifier(spec.source.publication),
            ),
        )
        messages = [bytes(row[0]) for row in cursor.fetchall()]
    for identifier, position in positions.items():
        found.pending[identifier] = pending_tables(messages, position)
        if len(messages) >= LOOKED_AT_MESSAGES:
            _leave_out(found, identifier, "too many changes wait in the slot: start the pipeline first")


def pending_tables(messages: Sequence[bytes], position: Position) -> frozenset[TableId]:
    """Return the tables that transactions behind a position change.

    Args:
        messages: of pgoutput, protocol 1, in order; of rows at least the first 5 bytes.
        position: of the destination.
    """
    names: dict[int, TableId] = {}
    pending: set[TableId] = set()
    touched: set[int] = set()
    for message in messages:
        kind = message[:1]
        if kind == b"R":
            (oid,) = struct.unpack_from("!I", message, 1)
            schema, name = message[5:].split(b"\0", 2)[:2]
            names[oid] = TableId(schema.decode() or "pg_catalog", name.decode())
        elif kind in (b"I", b"U", b"D"):
            touched.add(struct.unpack_from("!I", message, 1)[0])
        elif kind == b"T":
            (count,) = struct.unpack_from("!I", message, 1)
            touched.update(struct.unpack_from(f"!{count}I", message, 6))
        elif kind == b"C":
            (end,) = struct.unpack_from("!Q", message, 10)
            if end > position.lsn:
                pending.update(names[oid] for oid in touched)
            touched.clear()
    return frozenset(pending)
