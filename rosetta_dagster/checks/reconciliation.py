"""The check `reconciliation` of every pipeline: reads every row on both sides, so it runs when asked for only."""

# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from collections.abc import Iterator

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSpec,
    multi_asset_check,
)

from rosetta_dagster.assets.snapshot import CatalogSnapshot
from rosetta_dagster.assets.specs import pipeline_key
from rosetta_dagster.jobs.reconcile import RECONCILIATION, compare_now, report_metadata, severity, summary

_DESCRIPTION = (
    "Every row of source and destinations is the same at one position. Execute compares them now; the schedule "
    "verify_daily, off by default, does each night."
)


def build_reconciliation_checks(snapshot: CatalogSnapshot) -> list[AssetChecksDefinition]:
    """Return the check for each of a catalog's pipelines; none while there are no pipelines."""
    names = {pipeline_key(pipeline.name): pipeline.name for pipeline in snapshot.pipelines}
    specs = [AssetCheckSpec(RECONCILIATION, asset=key, description=_DESCRIPTION) for key in names]
    if not specs:
        return []

    @multi_asset_check(name="pipeline_reconciliation", specs=specs, can_subset=True)
    def pipeline_reconciliation(context: AssetCheckExecutionContext) -> Iterator[AssetCheckResult]:
        for key in context.selected_asset_check_keys:
            report = compare_now(names[key.asset_key])
            yield AssetCheckResult(
                asset_key=key.asset_key,
                check_name=key.name,
                passed=report["outcome"] == "EQUAL",
                description=summary(report),
                severity=severity(report),
                metadata=report_metadata(report),
            )

    return [pipeline_reconciliation]
