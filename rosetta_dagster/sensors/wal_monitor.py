"""Sensor that watches the WAL which the sources keep for our slots, and acts before it endangers them."""

from __future__ import annotations

import time

from dagster import DefaultSensorStatus, SensorEvaluationContext, SkipReason, sensor
from sqlalchemy.orm import Session

from cdc_runner.catalog.notifications import sync_conditions
from cdc_runner.catalog.settings import get_setting
from cdc_runner.errors import RosettaError
from rosetta_dagster.monitoring.conditions import wal_conditions
from rosetta_dagster.monitoring.wal import WatchResult, failed_entirely, store_results, summary, watch, watched_slots
from rosetta_dagster.monitoring.wal_ladder import SlotToDrop, climb, read_limits
from rosetta_dagster.resources.catalog import catalog_engine, catalog_session, record_job
from rosetta_dagster.sensors.cadence import interval_for
from rosetta_dagster.sensors.outcome import STILL_AT_WORK, alone, failed_tick

_TICK_SECONDS = 60


@sensor(
    minimum_interval_seconds=interval_for(_TICK_SECONDS),
    default_status=DefaultSensorStatus.RUNNING,
    description="Each minute (setting wal_monitor_seconds), every source at once: slot, publication and the WAL kept "
    "for us. Above wal_warning_megabytes it warns, above wal_error_megabytes it alerts, above "
    "wal_pause_backfills_megabytes backfills wait, and above wal_drop_slot_megabytes, if wal_drop_slot_allowed is on, "
    "the pipeline is paused and its slot dropped with a recovery plan.",
)
def wal_monitor(context: SensorEvaluationContext) -> SkipReason:
    with alone("wal_monitor") as free:
        return _tick(context) if free else SkipReason(STILL_AT_WORK)


def _tick(context: SensorEvaluationContext) -> SkipReason:
    started, now = time.monotonic(), time.time()
    try:
        with catalog_session() as session:
            wanted = int(get_setting(session, "wal_monitor_seconds"))
            if now - float(context.cursor or 0) < wanted - _TICK_SECONDS / 2 and wanted > _TICK_SECONDS:
                return SkipReason(f"looked {now - float(context.cursor or 0):.0f} s ago; next after {wanted} s")
            slots, thresholds = watched_slots(session)
        # Outside of any transaction: a source may take its time.
        results = watch(slots, thresholds)
        line = summary(results)
        with catalog_session() as session:
            store_results(session, results)
            to_drop = climb(session, results, read_limits(session))
            _tell(session, results)
            record_job(session, "wal_monitor", failed_entirely(results), started=started, line=line)
    except RosettaError as error:
        return failed_tick("wal_monitor", error)
    context.update_cursor(str(now))
    return SkipReason("; ".join([line, *(_drop(one) for one in to_drop)]))


def _tell(session: Session, results: list[WatchResult]) -> None:
    verdicts = {one.watched.source: (one.verdict.status, one.verdict.reason) for one in results}
    sync_conditions(session, "wal:", wal_conditions(verdicts))


def _drop(one: SlotToDrop) -> str:
    # Imported here: the services reach into the engine, and this is the rarest of cases.
    from cdc_runner.services.slot_rescue import drop_source_slot

    source = one.result.watched.source
    try:
        drop_source_slot(catalog_engine(), source, one.reason)
    except RosettaError as error:
        return f"the slot of {source} could not be dropped: {error}"
    return f"the slot of {source} was dropped"
