"""Jobs for dead letters, of the same verbs as `rosetta dlq`; the launchpad's partition picker offers the pipelines.

No value of a row reaches a run's config, its events or its metadata: what needs values reads or writes a file.
"""

# The services reach into the engine and its libraries: they are imported by a run, never by the code server.
# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

import json
from pathlib import Path
from typing import Any

from dagster import Config, Failure, JobDefinition, MetadataValue, OpExecutionContext, in_process_executor, job, op
from pydantic import Field

from cdc_runner.catalog.environment import read_environment
from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.jobs.partitions import PIPELINES, one_at_a_time
from rosetta_dagster.resources.catalog import catalog_engine

_LISTED = 200
_TABLE = "Only this target table, as schema.table; empty: every table."
_DESTINATION = "Only this destination of the pipeline; empty: every one."
_ENTRY_NAME = "Name of the entry as `list_dead_letters` shows it, e.g. 9b2f4c6a0d1e4f5bb7c8d9e0f1a2b3c4."
_ENTRY = "Only the key of this entry (`list_dead_letters` names them); empty: every key."


class LettersConfig(Config):
    """Which dead letters are meant."""

    destination: str = Field(default="", description=_DESTINATION)
    table: str = Field(default="", description=_TABLE)


class EntryConfig(Config):
    """One entry."""

    entry: str = Field(description=_ENTRY_NAME)


class EditConfig(Config):
    """Other values for an entry. They come from a file: what is typed here is stored in the run for ever."""

    entry: str = Field(description=_ENTRY_NAME)
    values_file: str = Field(
        description="File on the code server's host, e.g. /etc/rosetta/fixed.json, with a JSON object of column name "
        'and PostgreSQL text or null: {"amount": "12.50", "note": null}.'
    )


class ReplayConfig(Config):
    """A replay writes to the destinations: it is asked for twice."""

    destination: str = Field(default="", description=_DESTINATION)
    table: str = Field(default="", description=_TABLE)
    entry: str = Field(default="", description=_ENTRY)
    dry_run: bool = Field(default=True, description="On: only count what would be replayed. Off: replay it.")


class PurgeConfig(Config):
    """A purge gives changes up: it is asked for twice."""

    destination: str = Field(default="", description=_DESTINATION)
    table: str = Field(default="", description=_TABLE)
    entry: str = Field(default="", description=_ENTRY)
    dry_run: bool = Field(default=True, description="On: only count what would be removed. Off: remove it.")


def _scope(context: OpExecutionContext, destination: str = "", table: str = "", entry: str = "") -> Any:
    from cdc_runner.services.dead_letters import Scope

    return Scope(context.partition_key, destination or None, table or None, entry or None)


def _described(rows: list[dict[str, Any]]) -> MetadataValue:
    return MetadataValue.md("```json\n" + json.dumps(rows[:_LISTED], indent=1, default=str) + "\n```")


@op(name="list_letters")
def list_op(context: OpExecutionContext, config: LettersConfig) -> None:
    from cdc_runner.services import dead_letters as service

    with engine_outcome():
        rows = service.list_letters(catalog_engine(), _scope(context, config.destination, config.table))
    context.add_output_metadata({"result": f"{len(rows)} changes wait", "dead letters": _described(rows)})


@op(name="inspect_letter")
def inspect_op(context: OpExecutionContext, config: EntryConfig) -> None:
    from cdc_runner.services import dead_letters as service

    with engine_outcome():
        found = service.inspect_letter(catalog_engine(), _scope(context, entry=config.entry))
    # The values stay out of Dagster's storage; `rosetta dlq inspect` and the export show them.
    shown = {name: value for name, value in found.items() if name not in ("values", "key")}
    context.add_output_metadata({"result": str(found["reason"]), "entry": _described([shown])})


@op(name="edit_letter")
def edit_op(context: OpExecutionContext, config: EditConfig) -> None:
    from cdc_runner.services import dead_letters as service

    try:
        values = json.loads(Path(config.values_file).read_text(encoding="utf-8"))
        right = isinstance(values, dict) and all(one is None or isinstance(one, str) for one in values.values())
    except (OSError, ValueError):
        right = False
    if not right:
        raise Failure(f"{config.values_file} is not a readable JSON object of texts", allow_retries=False)
    with engine_outcome():
        result = service.edit_letter(catalog_engine(), _scope(context, entry=config.entry), values)
    context.add_output_metadata({"result": f"{len(values)} columns of {result['table']} edited; replay it next"})


@op(name="replay_letters")
def replay_op(context: OpExecutionContext, config: ReplayConfig) -> None:
    from cdc_runner.services import dead_letters as service

    scope = _scope(context, config.destination, config.table, config.entry)
    with engine_outcome():
        results = service.replay_letters(catalog_engine(), scope, dry_run=config.dry_run)
    if config.dry_run:
        result = f"dry run: {sum(one['keys'] for one in results)} keys would be replayed; nothing was changed"
    else:
        refused = sum(one["keys_refused"] for one in results)
        result = f"{sum(one['keys_replayed'] for one in results)} keys replayed, {refused} refused again"
    context.add_output_metadata({"result": result, "destinations": _described(results)})


@op(name="export_letters")
def export_op(context: OpExecutionContext, config: LettersConfig) -> None:
    from cdc_runner.services import dead_letters as service

    path = read_environment().home.absolute() / "exports" / f"dead_letters_{context.run_id}.jsonl"
    with engine_outcome():
        scope = _scope(context, config.destination, config.table)
        count = service.export_letters(catalog_engine(), scope, path)
    context.add_output_metadata({"result": f"{count} changes exported", "file": MetadataValue.path(path)})


@op(name="purge_letters")
def purge_op(context: OpExecutionContext, config: PurgeConfig) -> None:
    from cdc_runner.services import dead_letters as service

    scope = _scope(context, config.destination, config.table, config.entry)
    with engine_outcome():
        results = service.purge_letters(
            catalog_engine(), scope, dry_run=config.dry_run, why=f"Dagster run {context.run_id}"
        )
    count = sum(one["entries"] for one in results)
    result = f"dry run: {count} changes would be removed; nothing was" if config.dry_run else f"{count} removed"
    context.add_output_metadata({"result": result, "destinations": _described(results)})


_TAGS = {"dagster/max_runtime": "3600"}


@job(
    partitions_def=PIPELINES,
    executor_def=in_process_executor,
    tags=_TAGS,
    description="Lists the changes that a pipeline's destinations refused and those that wait behind them, without "
    "values.",
)
def list_dead_letters() -> None:
    list_op()


@job(
    partitions_def=PIPELINES,
    executor_def=in_process_executor,
    tags=_TAGS,
    description="Shows one dead letter without its values; `rosetta dlq inspect` shows them.",
)
def inspect_dead_letter() -> None:
    inspect_op()


@job(
    partitions_def=PIPELINES,
    config=one_at_a_time(PIPELINES, "letters"),
    executor_def=in_process_executor,
    tags=_TAGS,
    description="Gives a dead letter other values, from a file; a replay writes them.",
)
def edit_dead_letter() -> None:
    edit_op()


@job(
    partitions_def=PIPELINES,
    config=one_at_a_time(PIPELINES, "letters"),
    executor_def=in_process_executor,
    tags=_TAGS,
    description="Brings what waits into the destinations, in order for each key. A dry run unless told otherwise.",
)
def replay_dead_letters() -> None:
    replay_op()


@job(
    partitions_def=PIPELINES,
    executor_def=in_process_executor,
    tags=_TAGS,
    description="Writes what waits, with values, to a file below ROSETTA_HOME that only its owner can read.",
)
def export_dead_letters() -> None:
    export_op()


@job(
    partitions_def=PIPELINES,
    config=one_at_a_time(PIPELINES, "letters"),
    executor_def=in_process_executor,
    tags=_TAGS,
    description="Removes what waits without applying it, and records that. A dry run unless told otherwise.",
)
def purge_dead_letters() -> None:
    purge_op()


DEAD_LETTER_JOBS: list[JobDefinition] = [
    list_dead_letters,
    inspect_dead_letter,
    edit_dead_letter,
    replay_dead_letters,
    export_dead_letters,
    purge_dead_letters,
]
