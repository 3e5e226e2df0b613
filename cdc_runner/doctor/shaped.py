"""What targets are to look like, filters, masks and custom SQL applied; what does not fit its table is a finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cdc_runner.doctor.finding import Findings, names
from cdc_runner.errors import RosettaError
from cdc_runner.pipeline.custom import custom_shapers
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.columns import column_plan
from cdc_runner.spec import DestinationSpec, PipelineSpec, ResolvedSync


def target_schemas(
    spec: PipelineSpec,
    destination: DestinationSpec,
    syncs: Sequence[ResolvedSync],
    schemas: Mapping[TableId, TableSchema],
    found: Findings,
) -> dict[TableId, TableSchema]:
    """Return the schemas of targets, by target; one whose shape does not fit its table is left out and noted."""
    written = {sync.target for sync in syncs}
    expected: dict[TableId, TableSchema] = {}
    for sync in syncs:
        schema = schemas[sync.source]
        try:
            if sync.shape.custom_sql is None:
                plan = column_plan(sync, schema)
                expected[sync.target] = schema if plan is None else plan.target
                continue
            for target, shaper in custom_shapers(spec, destination, [sync], schemas, written).items():
                expected[target] = shaper.target_schema(schema)
                shaper.close()
                if shaper.looks_up:
                    found.ok(
                        "lookups",
                        f"target {target} looks rows up in {names(shaper.looks_up)} of the destination: a change there "
                        "reaches it with the next change of the row that is joined",
                    )
        except RosettaError as error:
            found.failure("shape", error)
    return expected
