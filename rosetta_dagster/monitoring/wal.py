"""Looks at the slots of all sources at once, and keeps what was seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, selectinload

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.models import Pipeline, StreamOffset, WalMetric, WalMonitor
from cdc_runner.catalog.pipelines import source_address
from cdc_runner.catalog.settings import get_setting
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.spec import PostgresAddress
from rosetta_dagster.monitoring.slot import SlotReading, Verdict, judge, read_slot

SOURCES_AT_ONCE = 16
ALL_SOURCES_SECONDS = 40.0
"""A tick has a minute; a source that hangs is left behind and told as such."""

Reader = Callable[[PostgresAddress, str, str], SlotReading]


@dataclass(frozen=True, slots=True)
class WatchedSlot:
    """One source with a pipeline.

    Attributes:
        address: where it is, or why its credentials cannot be read.
    """

    source_id: int
    source: str
    slot: str
    publication: str
    address: PostgresAddress | RosettaError
    wanted: bool
    started: bool


@dataclass(frozen=True, slots=True)
class WatchResult:
    """What was found at one source."""

    watched: WatchedSlot
    reading: SlotReading | RosettaError
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Thresholds:
    """WAL kept for a slot, in MB."""

    warning_megabytes: int
    error_megabytes: int


def watched_slots(session: Session) -> tuple[list[WatchedSlot], Thresholds]:
    """Return the sources that have a pipeline, with their credentials decrypted, and the limits.

    Raises:
        RosettaError: there is no usable key, and so no source can be read.
    """
    keyring = Keyring.from_environment()
    started = set(session.scalars(select(StreamOffset.pipeline_id).where(StreamOffset.applied_lsn > 0)))
    # Without their table syncs, of which there may be thousands.
    pipelines = session.scalars(select(Pipeline).order_by(Pipeline.name).options(selectinload(Pipeline.source)))
    slots = [_watched(pipeline, keyring, pipeline.id in started) for pipeline in pipelines]
    warning, error = (int(get_setting(session, f"wal_{level}_megabytes")) for level in ("warning", "error"))
    return slots, Thresholds(warning, error)


def _watched(pipeline: Pipeline, keyring: Keyring, started: bool) -> WatchedSlot:
    source = pipeline.source
    address: PostgresAddress | RosettaError
    try:
        address = source_address(source, keyring)
    except RosettaError as error:
        address = error
    wanted = pipeline.status != "PAUSE"
    return WatchedSlot(source.id, source.name, source.slot_name, source.publication_name, address, wanted, started)


def watch(
    slots: Sequence[WatchedSlot],
    thresholds: Thresholds,
    *,
    reader: Reader = read_slot,
    timeout_seconds: float = ALL_SOURCES_SECONDS,
) -> list[WatchResult]:
    """Ask every source at the same time; a slow one delays none of the others, and all of them at most so long."""
    pool = ThreadPoolExecutor(SOURCES_AT_ONCE, thread_name_prefix="wal")
    try:
        futures = [pool.submit(_read_one, slot, reader) for slot in slots]
        wait(futures, timeout_seconds)
        return [_result(slot, future, thresholds) for slot, future in zip(slots, futures, strict=True)]
    finally:
        # Those that hang end with their own timeouts.
        pool.shutdown(wait=False, cancel_futures=True)


def _read_one(slot: WatchedSlot, reader: Reader) -> SlotReading | RosettaError:
    if isinstance(slot.address, RosettaError):
        return slot.address
    try:
        return reader(slot.address, slot.slot, slot.publication)
    except RosettaError as error:
        return error


def _result(slot: WatchedSlot, future: Future[SlotReading | RosettaError], thresholds: Thresholds) -> WatchResult:
    reading = (
        future.result() if future.done() else RosettaError(ErrorKind.SOURCE_UNAVAILABLE, "the source does not answer")
    )
    verdict = judge(
        reading,
        warning_megabytes=thresholds.warning_megabytes,
        error_megabytes=thresholds.error_megabytes,
        wanted=slot.wanted,
        started=slot.started,
    )
    return WatchResult(slot, reading, verdict)


def store_results(session: Session, results: Sequence[WatchResult]) -> None:
    """Keep the latest state of every source, and a point of its history where there was an answer."""
    for result in results:
        reading = result.reading
        values: dict[str, object] = {
            "status": result.verdict.status,
            "replication_slot_name": result.watched.slot,
            "error_message": result.verdict.reason if result.verdict.status != "OK" else None,
        }
        if isinstance(reading, SlotReading):
            values |= {
                "wal_lsn": reading.wal_lsn,
                "slot_active": reading.active,
                "slot_wal_status": reading.wal_status,
                "restart_lsn": reading.restart_lsn,
                "confirmed_flush_lsn": reading.confirmed_flush_lsn,
                "replication_lag_bytes": _lag(reading),
                "retained_wal_bytes": reading.retained_bytes,
                "safe_wal_bytes": reading.safe_bytes,
                "directory_bytes": reading.directory_bytes,
            }
            size = reading.directory_bytes if reading.directory_bytes is not None else reading.retained_bytes or 0
            session.add(
                WalMetric(
                    source_id=result.watched.source_id, size_bytes=size, retained_wal_bytes=reading.retained_bytes
                )
            )
        session.execute(
            insert(WalMonitor)
            .values(source_id=result.watched.source_id, **values)
            # now() is set even when nothing differs: its age tells that the monitor works.
            .on_conflict_do_update(index_elements=["source_id"], set_={**values, "updated_at": text("now()")})
        )


def _lag(reading: SlotReading) -> int | None:
    if reading.confirmed_flush_lsn is None:
        return None
    return max(0, reading.wal_lsn - reading.confirmed_flush_lsn)


def failed_entirely(results: Sequence[WatchResult]) -> str | None:
    """Return why a look at the sources was worth nothing, when none of them answered."""
    errors = [str(result.reading) for result in results if isinstance(result.reading, RosettaError)]
    return f"no source answered: {errors[0]}" if errors and len(errors) == len(results) else None


def summary(results: Sequence[WatchResult]) -> str:
    """Return one line: the worst first, else how much WAL is kept at the most."""
    if not results:
        return "no pipelines"
    bad = [result for result in results if result.verdict.status != "OK"]
    if bad:
        bad.sort(key=lambda result: result.verdict.status)
        first = bad[0]
        more = (
            f" and {len(bad) - 1} more of {len(results)}" if len(bad) > 1 else f"; {len(results) - 1} others are well"
        )
        return f"{first.verdict.status} {first.watched.source}: {first.verdict.reason}{more}"
    kept = [
        (result.reading.retained_bytes or 0, result.watched.source)
        for result in results
        if isinstance(result.reading, SlotReading)
    ]
    most, source = max(kept)
    return f"{len(results)} sources OK; most WAL kept: {most / 1048576:.1f} MB ({source})"
