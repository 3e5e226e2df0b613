"""Sensor that shows backfills in the Dagster pages: each that is at work, or has been, gets a run that follows it."""

from __future__ import annotations

from dagster import (
    DefaultSensorStatus,
    RunRequest,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from cdc_runner.catalog import backfills
from cdc_runner.errors import RosettaError
from rosetta_dagster.jobs.backfills import backfill_table
from rosetta_dagster.jobs.partitions import TABLES, table_key
from rosetta_dagster.resources.catalog import catalog_session, record_job
from rosetta_dagster.sensors.cadence import interval_for
from rosetta_dagster.sensors.outcome import failed_tick


@sensor(
    job=backfill_table,
    minimum_interval_seconds=interval_for(5),
    default_status=DefaultSensorStatus.RUNNING,
    description="Each 5 seconds: a backfill that was queued elsewhere gets a run that follows it, so that the pages "
    "show its progress and its end.",
)
def backfill_queue(context: SensorEvaluationContext) -> SensorResult | SkipReason:
    try:
        with catalog_session() as session:
            found = backfills.unannounced(session)
            counts = backfills.open_counts(session)
            backfills.announce(session, [identifier for identifier, _, _ in found])
            record_job(session, "backfill_queue")
    except RosettaError as error:
        return failed_tick("backfill_queue", error)
    line = f"{counts.get('EXECUTING', 0)} at work, {counts.get('PENDING', 0)} waiting"
    if not found:
        return SkipReason(line)
    keys = {identifier: table_key(pipeline, str(table)) for identifier, pipeline, table in found}
    known = context.instance.get_dynamic_partitions("tables")
    new = sorted(set(keys.values()) - set(known))
    return SensorResult(
        run_requests=[
            RunRequest(
                run_key=f"backfill {identifier}",
                partition_key=key,
                run_config={"ops": {"copy_table_again": {"config": {"backfill_id": identifier}}}},
                tags={"rosetta/backfill": str(identifier)},
            )
            for identifier, key in keys.items()
        ],
        dynamic_partitions_requests=[TABLES.build_add_request(new)] if new else [],
    )
