"""Sensor that makes new, changed and removed pipelines appear in the Dagster pages without a restart."""

from __future__ import annotations

import time
from dataclasses import replace

from dagster import (
    DefaultSensorStatus,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from cdc_runner.errors import RosettaError
from rosetta_dagster.jobs.partitions import picker_requests
from rosetta_dagster.resources.catalog import (
    catalog_session,
    read_names,
    read_names_fingerprint,
    read_pipeline_ids,
    record_job,
)
from rosetta_dagster.resources.catalog_rows import read_catalog_fingerprint
from rosetta_dagster.resources.webserver import URL_VARIABLE, reload_definitions, webserver_url
from rosetta_dagster.sensors.cadence import interval_for
from rosetta_dagster.sensors.outcome import failed_tick
from rosetta_dagster.sensors.reload_policy import ReloadState, is_reload_due, seen


def build_pipeline_refresh_check(loaded_fingerprint: str) -> SensorDefinition:
    """Return the sensor for definitions that were made from the catalog of this fingerprint."""

    @sensor(
        minimum_interval_seconds=interval_for(10),
        default_status=DefaultSensorStatus.RUNNING,
        description="Loads the definitions again when the catalog has changed and is quiet, and keeps the pickers of "
        "the launchpad in step with the pipelines.",
    )
    def pipeline_refresh_check(context: SensorEvaluationContext) -> SensorResult | SkipReason:
        before = ReloadState.from_cursor(context.cursor)
        try:
            with catalog_session() as session:
                current, fingerprint = read_catalog_fingerprint(session), read_names_fingerprint(session)
                # Thousands of names are read, here and from Dagster, only when one of them is another.
                names = read_names(session) if fingerprint != before.names else None
                pipelines = len(read_pipeline_ids(session))
                record_job(session, "pipeline_refresh_check")
        except RosettaError as error:
            return failed_tick("pipeline_refresh_check", error)
        status, state = _reload_if_due(loaded_fingerprint, current, before)
        return SensorResult(
            skip_reason=f"{pipelines} pipelines; {status}",
            cursor=replace(state, names=fingerprint).to_cursor(),
            dynamic_partitions_requests=picker_requests(names or {}, context.instance.get_dynamic_partitions),
        )

    return pipeline_refresh_check


def _reload_if_due(loaded: str, current: str, state: ReloadState) -> tuple[str, ReloadState]:
    now = time.time()
    if current == loaded:
        return "the pages show the present catalog", seen(state, current)
    url = webserver_url()
    if url is None:
        return f"the catalog has changed: reload the code location ({URL_VARIABLE} is not set)", seen(state, current)
    if not is_reload_due(loaded, current, state, now):
        return "the catalog has changed; reload when it is quiet", seen(state, current)
    try:
        reload_definitions(url)
    except RosettaError as error:
        return str(error), ReloadState(current, now)
    return "the catalog has changed; definitions loaded again", ReloadState(current, now)
