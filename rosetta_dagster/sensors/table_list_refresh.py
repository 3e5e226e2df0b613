"""Sensor that keeps lists of names in step with the catalog."""

from __future__ import annotations

from dagster import DefaultSensorStatus, SensorEvaluationContext, SensorResult, SkipReason, sensor

from cdc_runner.errors import RosettaError
from rosetta_dagster.jobs.partitions import picker_requests
from rosetta_dagster.resources.catalog import catalog_session, read_names, record_job
from rosetta_dagster.resources.pipeline_health import read_health
from rosetta_dagster.sensors.cadence import interval_for
from rosetta_dagster.sensors.outcome import failed_tick


@sensor(
    minimum_interval_seconds=interval_for(300),
    default_status=DefaultSensorStatus.RUNNING,
    description="Each 5 minutes: the names in the launchpad's pickers, and a count of the tables of every pipeline.",
)
def table_list_refresh(context: SensorEvaluationContext) -> SensorResult | SkipReason:
    try:
        with catalog_session() as session:
            health, names = read_health(session), read_names(session)
            record_job(session, "table_list_refresh")
    except RosettaError as error:
        return failed_tick("table_list_refresh", error)
    requests = picker_requests(names, context.instance.get_dynamic_partitions)
    counts = ", ".join(f"{one.pipeline}: {len(one.tables)} tables" for one in health)
    return SensorResult(skip_reason=counts or "no pipelines", dynamic_partitions_requests=requests)
