"""The checks of every pipeline: executed from its asset's page, and evaluated by the sensor replication_monitor."""

# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from collections.abc import Iterator

from dagster import (
    AssetCheckEvaluation,
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetKey,
    MetadataValue,
    multi_asset_check,
)

from rosetta_dagster.assets.snapshot import CatalogSnapshot
from rosetta_dagster.assets.specs import pipeline_key
from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.jobs.verb import findings_table
from rosetta_dagster.monitoring.verdicts import CHECKS, CheckVerdict, verdicts
from rosetta_dagster.resources.catalog import catalog_session
from rosetta_dagster.resources.pipeline_health import read_health

DOCTOR = "doctor_finds_no_error"
_DOCTOR_DESCRIPTION = (
    "Source, slot, publication, rights and settings are as a pipeline needs them, and every target table has the "
    "columns, types and key of its source table. Executed on demand only: it asks all servers."
)


def build_pipeline_checks(snapshot: CatalogSnapshot) -> list[AssetChecksDefinition]:
    """Return the checks of a catalog's pipelines; none while there are no pipelines."""
    specs = [
        AssetCheckSpec(name, asset=pipeline_key(pipeline.name), description=description)
        for pipeline in snapshot.pipelines
        for name, description in CHECKS.items()
    ]
    if not specs:
        return []

    @multi_asset_check(name="pipeline_checks", specs=specs, can_subset=True)
    def pipeline_checks(context: AssetCheckExecutionContext) -> Iterator[AssetCheckResult]:
        with engine_outcome(), catalog_session() as session:
            known = {pipeline_key(health.pipeline): verdicts(health) for health in read_health(session)}
        for key in context.selected_asset_check_keys:
            found = next((one for one in known.get(key.asset_key, ()) if one.name == key.name), None)
            verdict = found or CheckVerdict(key.name, False, "the pipeline was removed")
            yield AssetCheckResult(
                asset_key=key.asset_key,
                check_name=key.name,
                passed=verdict.passed,
                description=verdict.reason,
                severity=_severity(verdict),
                metadata=verdict.numbers,
            )

    return [pipeline_checks, _doctor_checks(snapshot)]


def _doctor_checks(snapshot: CatalogSnapshot) -> AssetChecksDefinition:
    specs = [
        AssetCheckSpec(DOCTOR, asset=pipeline_key(pipeline.name), description=_DOCTOR_DESCRIPTION)
        for pipeline in snapshot.pipelines
    ]

    @multi_asset_check(name="pipeline_doctor", specs=specs, can_subset=True)
    def pipeline_doctor(context: AssetCheckExecutionContext) -> Iterator[AssetCheckResult]:
        # Imported by a run, never by the code server: it reaches into the engine and its libraries.
        from cdc_runner.doctor.run import examine_subject, read_subjects

        with engine_outcome(), catalog_session() as session:
            subjects = {pipeline_key(subject.name): subject for subject in read_subjects(session)}
        for key in context.selected_asset_check_keys:
            subject = subjects.get(key.asset_key)
            if subject is None:
                yield AssetCheckResult(asset_key=key.asset_key, check_name=DOCTOR, passed=False,
                                       description="the pipeline was removed")  # fmt: skip
                continue
            report = examine_subject(subject)
            bad = [one for one in report.findings if one.level != "ok"]
            counts = f"{report.count('error')} errors, {report.count('warning')} warnings"
            yield AssetCheckResult(
                asset_key=key.asset_key,
                check_name=DOCTOR,
                passed=report.ok,
                description=f"{counts}; {bad[0].subject}: {bad[0].what}" if bad else counts,
                metadata={"findings": findings_table([one.as_json() for one in bad])},
            )

    return pipeline_doctor


def check_event(asset: AssetKey, verdict: CheckVerdict) -> AssetCheckEvaluation:
    """Return the event of a check that a sensor has evaluated."""
    return AssetCheckEvaluation(
        asset_key=asset,
        check_name=verdict.name,
        passed=verdict.passed,
        description=verdict.reason,
        severity=_severity(verdict),
        metadata={
            name: MetadataValue.text(n) if isinstance(n, str) else MetadataValue.int(n)
            for name, n in verdict.numbers.items()
        },
    )


def _severity(verdict: CheckVerdict) -> AssetCheckSeverity:
    return AssetCheckSeverity.WARN if verdict.is_warning else AssetCheckSeverity.ERROR
