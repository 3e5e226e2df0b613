"""The job that applies a configuration file."""

# The services reach into the engine and its libraries: they are imported by a run, never by the code server.
# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from pathlib import Path

from dagster import Config, JobDefinition, MetadataValue, OpExecutionContext, in_process_executor, job, op
from pydantic import Field

from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.resources.catalog import catalog_engine


class ApplyConfig(Config):
    """Which file, and whether to change anything.

    A path and not the text: what is typed here stays in the run for ever, a pasted password with it.
    """

    path: str = Field(
        description="Configuration file on the host of the code server, e.g. /etc/rosetta/shop.yaml. Secrets in it are "
        "references ({env: NAME} or {file: PATH})."
    )
    dry_run: bool = Field(default=True, description="On: show the differences and change nothing.")
    prune: bool = Field(default=False, description="Also remove what the file does not name; refused for what runs.")


@op(name="apply")
def apply_op(context: OpExecutionContext, config: ApplyConfig) -> None:
    from cdc_runner.services.apply import apply_path

    with engine_outcome():
        plan = apply_path(catalog_engine(), Path(config.path), dry_run=config.dry_run, prune=config.prune)
    *lines, counts = plan.as_text().splitlines()
    context.add_output_metadata(
        {
            "result": f"dry run, nothing was changed: {counts}" if config.dry_run else counts,
            "plan": MetadataValue.md("```\n" + "\n".join(lines) + "\n```"),
            **({"LEFT OVER": MetadataValue.json(plan.left_over)} if plan.left_over else {}),
        }
    )


_TAGS = {"dagster/max_runtime": "300"}


@job(
    executor_def=in_process_executor,
    tags=_TAGS,
    description="Brings sources, destinations and pipelines in line with a configuration file: the same as "
    "`rosetta apply FILE`. A dry run unless told otherwise. What the file does not name is left alone.",
)
def apply_file() -> None:
    apply_op()


CONFIGURATION_JOBS: list[JobDefinition] = [apply_file]
