"""Jobs about presets, the named lists of a source's tables."""

# The services reach into the engine and its libraries: they are imported by a run, never by the code server.
# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from dagster import Config, OpExecutionContext, op
from pydantic import Field

from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.jobs.partitions import SOURCES
from rosetta_dagster.jobs.sources import change_table
from rosetta_dagster.jobs.verb import table, verb_job
from rosetta_dagster.resources.catalog import catalog_session


class PresetConfig(Config):
    """A named list of tables."""

    name: str = Field(description="Its name, e.g. finance: letters, digits, - and _.")
    tables: list[str] = Field(description="Tables and patterns, e.g. [public.orders, sales.*].")


class ChangePresetConfig(Config):
    """What to change; what stays empty is left as it is."""

    name: str = Field(description="Its present name, e.g. finance; the job list_presets lists them.")
    tables: list[str] = Field(default=[], description="Tables and patterns that take the place of the present ones.")
    new_name: str = Field(default="", description="Another name.")


class RemovePresetConfig(Config):
    """Asked for twice."""

    name: str = Field(description="Its name, e.g. finance; the job list_presets lists them.")
    dry_run: bool = Field(default=True, description="On: only say what would be removed.")


@op(name="read_presets")
def list_presets_op(context: OpExecutionContext) -> None:
    from cdc_runner.services.presets import list_presets

    with engine_outcome(), catalog_session() as session:
        rows = list_presets(session)
    shown = table(rows, ("source", "preset", "tables"))
    context.add_output_metadata({"result": f"{len(rows)} presets", "presets": shown})


@op(name="store_preset")
def create_preset_op(context: OpExecutionContext, config: PresetConfig) -> None:
    from cdc_runner.services.presets import create_preset

    with engine_outcome(), catalog_session() as session:
        create_preset(session, context.partition_key, config.name, config.tables)
    result = f"preset {config.name} of source {context.partition_key} is created; use it in register_tables"
    context.add_output_metadata({"result": f"{result}, create_publication or add_pipeline_table"})


@op(name="update_preset")
def change_preset_op(context: OpExecutionContext, config: ChangePresetConfig) -> None:
    from cdc_runner.services.presets import change_preset

    with engine_outcome(), catalog_session() as session:
        changed = change_preset(
            session, context.partition_key, config.name, tables=config.tables, new_name=config.new_name or None
        )
    result = f"{len(changed)} fields of preset {config.name} were changed; what was made by it stays as it is"
    context.add_output_metadata({"result": result, "changed": change_table(changed)})


@op(name="drop_preset")
def remove_preset_op(context: OpExecutionContext, config: RemovePresetConfig) -> None:
    from cdc_runner.services.presets import remove_preset, tables_of_preset

    with engine_outcome(), catalog_session() as session:
        if config.dry_run:
            tables = tables_of_preset(session, context.partition_key, config.name)
        else:
            tables = remove_preset(session, context.partition_key, config.name)
    dry = "dry run: would be removed" if config.dry_run else "is removed"
    result = f"preset {config.name} {dry}; what was registered or published by it stays"
    context.add_output_metadata({"result": result, "tables": ", ".join(tables)})


list_presets = verb_job(
    list_presets_op, name="list_presets", description="Lists the presets of every source with their tables."
)
create_preset = verb_job(
    create_preset_op,
    name="create_preset",
    picker=SOURCES,
    kind="change",
    description="Makes a preset: a named list of a source's tables, to register, publish or copy them together.",
)
change_preset = verb_job(
    change_preset_op,
    name="change_preset",
    picker=SOURCES,
    kind="change",
    description="Gives a preset other tables, or another name.",
)
remove_preset = verb_job(
    remove_preset_op,
    name="remove_preset",
    picker=SOURCES,
    kind="change",
    description="Removes a preset. A dry run unless told otherwise.",
)

PRESET_JOBS = [list_presets, create_preset, change_preset, remove_preset]
