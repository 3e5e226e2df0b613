"""Jobs that give a pipeline, a source or a destination another name."""

# The services reach into the engine and its libraries: they are imported by a run, never by the code server.
# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from typing import Any

from dagster import Config, OpExecutionContext, op
from pydantic import Field

from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.jobs.partitions import DESTINATIONS, PIPELINES, SOURCES
from rosetta_dagster.jobs.verb import fields, verb_job
from rosetta_dagster.resources.catalog import catalog_session

_FOLLOWS = (
    "The pages and pickers show the new name within a minute; what its assets told before stays under the old one. "
    "A configuration file has to say the new name from now on."
)


class RenameConfig(Config):
    """The name from now on."""

    new_name: str = Field(description="Its new name, e.g. shop_eu: letters, digits, - and _. Nothing is copied again.")


def _report(context: OpExecutionContext, found: dict[str, Any]) -> None:
    kind, before, name = found.pop("kind"), found.pop("before"), found.pop("name")
    result = f"{kind} {before} is called {name} now"
    context.add_output_metadata({"result": result, "what follows": _FOLLOWS, **fields(found)})


@op(name="change_pipeline_name")
def rename_pipeline_op(context: OpExecutionContext, config: RenameConfig) -> None:
    from cdc_runner.services import rename

    with engine_outcome(), catalog_session() as session:
        found = rename.rename_pipeline(session, context.partition_key, config.new_name)
    _report(context, found)


@op(name="change_source_name")
def rename_source_op(context: OpExecutionContext, config: RenameConfig) -> None:
    from cdc_runner.services import rename

    with engine_outcome(), catalog_session() as session:
        found = rename.rename_source(session, context.partition_key, config.new_name)
    _report(context, found)


@op(name="change_destination_name")
def rename_destination_op(context: OpExecutionContext, config: RenameConfig) -> None:
    from cdc_runner.services import rename

    with engine_outcome(), catalog_session() as session:
        found = rename.rename_destination(session, context.partition_key, config.new_name)
    _report(context, found)


rename_pipeline = verb_job(
    rename_pipeline_op,
    name="rename_pipeline",
    picker=PIPELINES,
    kind="change",
    description="Gives a pipeline another name, whether it runs or not. Nothing is copied again: its positions, dead "
    "letters and backfills stay as they are.",
)
rename_source = verb_job(
    rename_source_op,
    name="rename_source",
    picker=SOURCES,
    kind="change",
    description="Gives a source another name; slot and publication keep theirs. Its pipeline starts anew and goes on.",
)
rename_destination = verb_job(
    rename_destination_op,
    name="rename_destination",
    picker=DESTINATIONS,
    kind="change",
    description="Gives a destination another name. Pipelines that feed it start anew and go on.",
)

RENAME_JOBS = [rename_pipeline, rename_source, rename_destination]
