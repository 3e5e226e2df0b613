"""The check of every replicated table that its dead-letter queue is empty; executed from the asset's page.

The pipeline's own check of the same name is evaluated by the sensor replication_monitor; it names the table.
"""

# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from collections.abc import Iterator

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetCheckSpec,
    multi_asset_check,
)

from rosetta_dagster.assets.snapshot import CatalogSnapshot
from rosetta_dagster.assets.specs import table_key
from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.monitoring.verdicts import TABLE_CHECK, CheckVerdict, table_letters
from rosetta_dagster.resources.catalog import catalog_session
from rosetta_dagster.resources.pipeline_health import read_health


def build_dead_letter_checks(snapshot: CatalogSnapshot) -> list[AssetChecksDefinition]:
    """Return the checks of a catalog's tables; none while there are no tables."""
    specs = [
        AssetCheckSpec(TABLE_CHECK, asset=key, description="No change of this table waits in the dead-letter queue.")
        for key in dict.fromkeys(
            table_key(pipeline.name, table.destination, table.target_schema, table.target_table)
            for pipeline in snapshot.pipelines
            for table in pipeline.tables
        )
    ]
    if not specs:
        return []

    @multi_asset_check(name="dead_letter_checks", specs=specs, can_subset=True)
    def dead_letter_checks(context: AssetCheckExecutionContext) -> Iterator[AssetCheckResult]:
        with engine_outcome(), catalog_session() as session:
            known = {
                table_key(health.pipeline, table.destination, table.target_schema, table.target_table): table
                for health in read_health(session)
                for table in health.tables
            }
        for key in context.selected_asset_check_keys:
            table = known.get(key.asset_key)
            removed = CheckVerdict(TABLE_CHECK, False, "the table was removed")
            verdict = removed if table is None else table_letters(table)
            yield AssetCheckResult(
                asset_key=key.asset_key,
                check_name=key.name,
                passed=verdict.passed,
                description=verdict.reason,
                severity=AssetCheckSeverity.WARN if verdict.is_warning else AssetCheckSeverity.ERROR,
                metadata=verdict.numbers,
            )

    return [dead_letter_checks]
