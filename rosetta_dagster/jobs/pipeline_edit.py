"""Jobs that create a pipeline and change what it copies: destinations, tables, settings."""

# The services reach into the engine and its libraries: they are imported by a run, never by the code server.
# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from typing import Any

from dagster import Config, Failure, MetadataValue, OpExecutionContext, op
from pydantic import Field

from rosetta_dagster.assets.specs import pipeline_key
from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.jobs.partitions import PIPELINES
from rosetta_dagster.jobs.verb import findings_table, table, verb_job
from rosetta_dagster.resources.catalog import catalog_session


class CreatePipelineConfig(Config):
    """One source, and the destinations that it feeds."""

    name: str = Field(description="Its name, e.g. shop_to_warehouse: letters, digits, - and _.")
    source: str = Field(description="Name of a source that no other pipeline uses, e.g. shop.")
    destinations: list[str] = Field(
        description="Names of destinations, e.g. [warehouse]; each gets every table of the source."
    )
    start: bool = Field(default=False, description="On: replicate at once. Off: it is born paused.")


class AttachConfig(Config):
    """Which destination."""

    destination: str = Field(
        default="", description="Its name, e.g. warehouse. Empty: the only one that the pipeline does not feed yet."
    )


class DestinationConfig(Config):
    """Which destination."""

    destination: str = Field(default="", description="Its name, e.g. warehouse. Empty: the pipeline's only one.")


class DetachConfig(DestinationConfig):
    """Asked for twice."""

    dry_run: bool = Field(default=True, description="On: only say what would be done. The target tables stay.")


class TableConfig(DestinationConfig):
    """A table, or a pattern of tables, of a pipeline's destination."""

    table: str = Field(default="", description="At the source, e.g. public.orders, or a pattern: sales.*")
    preset: str = Field(default="", description="Instead: every table of this preset of the source, unshaped.")
    target: str = Field(default="", description="Another name at the target. Empty: the same name.")
    filter: str = Field(default="", description="Only rows that pass this condition are copied.")
    filter_form: dict[str, Any] = Field(
        default={}, description="Instead of filter: the condition in builder form, as docs/shaping.md describes it."
    )
    columns: list[str] = Field(default=[], description="The only columns to copy. Empty: all of them.")
    exclude: list[str] = Field(default=[], description="Columns to leave out.")
    rename: dict[str, str] = Field(default={}, description="Column at the source: its name at the target.")
    mask: dict[str, Any] = Field(
        default={},
        description="Column: hash, 'null', {truncate: NUMBER OF CHARACTERS} or {constant: TEXT}. The target never "
        "gets the value itself.",
    )
    mode: str = Field(
        default="",
        description="mirror (default); soft_delete: rows that are gone stay, marked; history: each change is a row.",
    )
    custom_sql: str = Field(
        default="", description="SELECT that shapes the rows; docs/custom-sql.md says what it may hold."
    )
    key: list[str] = Field(default=[], description="Columns of its result that identify a row. Empty: they are found.")
    tags: list[str] = Field(default=[], description="Smart tags.")


class RemoveTableConfig(DestinationConfig):
    """A declared table; asked for twice."""

    table: str = Field(description="As it was declared, e.g. public.orders; the job show_pipeline lists them.")
    target: str = Field(default="", description="Its other name at the target, if it has one.")
    dry_run: bool = Field(default=True, description="On: only say what would be done. The target table stays.")


class SettingsConfig(Config):
    """Settings of this pipeline, over the global ones."""

    settings: dict[str, str] = Field(
        description="Setting -> value as text, e.g. {schema_policy: pause}. An empty value goes back to the global "
        "one. The job show_settings lists them."
    )


class ListConfig(Config):
    """Nothing has to be given."""

    status: str = Field(default="", description="Only pipelines that are set to this: START, PAUSE or REFRESH.")


@op(name="store_pipeline")
def create_pipeline_op(context: OpExecutionContext, config: CreatePipelineConfig) -> None:
    from cdc_runner.services.create import create_pipeline

    with engine_outcome(), catalog_session() as session:
        create_pipeline(session, config.name, config.source, config.destinations, start=config.start)
    follows = "it starts within seconds" if config.start else "start it with the job start_pipeline"
    result = f"pipeline {config.name} is created; {follows}; its assets appear within half a minute"
    context.add_output_metadata({"result": result, "pipeline": MetadataValue.asset(pipeline_key(config.name))})


def _tell(context: OpExecutionContext, result: str, text: str) -> None:
    context.add_output_metadata({"result": result, "plan": MetadataValue.md(f"```\n{text}\n```")})


@op(name="attach_destination")
def add_destination_op(context: OpExecutionContext, config: AttachConfig) -> None:
    from cdc_runner.services.pipeline_edit import add_destination, destination_to_add

    with engine_outcome(), catalog_session() as session:
        destination = destination_to_add(session, context.partition_key, config.destination)
        plan = add_destination(session, context.partition_key, destination)
    _tell(context, f"pipeline {context.partition_key} feeds {destination} now; it is loaded first", plan.as_text())


@op(name="detach_destination")
def detach_destination_op(context: OpExecutionContext, config: DetachConfig) -> None:
    from cdc_runner.services.pipeline_edit import describe_detachment, destination_of, remove_destination

    name = context.partition_key
    with engine_outcome(), catalog_session() as session:
        destination = destination_of(session, name, config.destination)
        if config.dry_run:
            context.add_output_metadata({"result": describe_detachment(session, name, destination)})
            return
        removal = remove_destination(session, name, destination)
    lists = {"removed": removal.removed, "LEFT OVER": removal.left_over, "kept": removal.kept}
    result = f"pipeline {name} feeds {destination} no more"
    context.add_output_metadata({"result": result, **{one: MetadataValue.json(found) for one, found in lists.items()}})


@op(name="declare_table")
def add_table_op(context: OpExecutionContext, config: TableConfig) -> None:
    from cdc_runner.services.pipeline_edit import add_preset, add_table, destination_of

    name = context.partition_key
    declared = config.model_dump(exclude={"destination", "preset", "filter_form"})
    if config.filter and config.filter_form:
        raise Failure("give one of filter and filter_form", allow_retries=False)
    declared["filter"] = config.filter or config.filter_form
    if bool(config.table) == bool(config.preset):
        raise Failure("give one of table and preset", allow_retries=False)
    shape = {field for field, value in declared.items() if value and field not in ("table", "tags")}
    if config.preset and shape:
        raise Failure(f"a preset's tables take tags only, not {', '.join(sorted(shape))}", allow_retries=False)
    with engine_outcome(), catalog_session() as session:
        destination = destination_of(session, name, config.destination)
        if config.preset:
            plan = add_preset(session, name, destination, config.preset, config.tags)
        else:
            plan = add_table(session, name, destination, declared)
    _tell(context, f"{config.table or config.preset} is declared for {destination}", plan.as_text())


@op(name="undeclare_table")
def remove_table_op(context: OpExecutionContext, config: RemoveTableConfig) -> None:
    from cdc_runner.services.pipeline_edit import destination_of, remove_table

    name = context.partition_key
    with engine_outcome(), catalog_session() as session:
        destination = destination_of(session, name, config.destination)
        plan = remove_table(session, name, destination, config.table, config.target or None)
        if config.dry_run:
            session.rollback()
    dry = "dry run: would be taken" if config.dry_run else "is taken"
    _tell(context, f"{config.table} {dry} from {destination}; the target table stays", plan.as_text())


@op(name="update_pipeline_settings")
def pipeline_settings_op(context: OpExecutionContext, config: SettingsConfig) -> None:
    from cdc_runner.services.pipeline_edit import change_settings

    with engine_outcome(), catalog_session() as session:
        plan = change_settings(session, context.partition_key, config.settings)
    _tell(context, f"settings of {context.partition_key} are changed; it starts anew with them", plan.as_text())


@op(name="read_pipelines")
def list_pipelines_op(context: OpExecutionContext, config: ListConfig) -> None:
    from cdc_runner.services.pipeline import describe_pipelines

    with engine_outcome(), catalog_session() as session:
        rows = [row for row in describe_pipelines(session) if config.status in ("", row["status"])]
    columns = ("name", "source", "destination_names", "status", "state", "last_error")
    context.add_output_metadata({"result": f"{len(rows)} pipelines", "pipelines": table(rows, columns)})


@op(name="examine_pipeline")
def doctor_op(context: OpExecutionContext) -> None:
    from cdc_runner.doctor.run import examine_subject, read_subjects

    with engine_outcome(), catalog_session() as session:
        (subject,) = read_subjects(session, context.partition_key)
    report = examine_subject(subject)
    counts = f"{report.count('error')} errors, {report.count('warning')} warnings"
    findings = findings_table([one.as_json() for one in report.findings])
    if not report.ok:
        raise Failure(f"pipeline {context.partition_key}: {counts}", {"findings": findings}, allow_retries=False)
    context.add_output_metadata({"result": counts, "findings": findings})


create_pipeline = verb_job(
    create_pipeline_op, name="create_pipeline", description="Creates a pipeline: one source, one or more destinations."
)
list_pipelines = verb_job(
    list_pipelines_op, name="list_pipelines", description="Lists the pipelines with their state and last error."
)
add_pipeline_destination = verb_job(
    add_destination_op,
    name="add_pipeline_destination",
    picker=PIPELINES,
    kind="change",
    description="Lets a pipeline feed one more destination.",
)
remove_pipeline_destination = verb_job(
    detach_destination_op,
    name="remove_pipeline_destination",
    picker=PIPELINES,
    kind="change",
    description="Lets a paused pipeline feed a destination no more; its tables stay. A dry run unless told otherwise.",
)
add_pipeline_table = verb_job(
    add_table_op,
    name="add_pipeline_table",
    picker=PIPELINES,
    kind="change",
    description="Declares a table or pattern of a pipeline's destination: target name, filter, SQL, tags. With the "
    "first declared table only declared ones are copied. One with the same table and target is replaced.",
)
remove_pipeline_table = verb_job(
    remove_table_op,
    name="remove_pipeline_table",
    picker=PIPELINES,
    kind="change",
    description="Takes a declared table from a pipeline's destination. A dry run unless told otherwise.",
)
change_pipeline_settings = verb_job(
    pipeline_settings_op,
    name="change_pipeline_settings",
    picker=PIPELINES,
    kind="change",
    description="Gives a pipeline settings of its own, over the global ones.",
)

doctor = verb_job(
    doctor_op,
    name="doctor",
    picker=PIPELINES,
    description="Checks source, destinations, rights, tables and slot of a pipeline, and says what to do about each "
    "finding. Nothing is changed.",
)

PIPELINE_EDIT_JOBS = [
    create_pipeline, list_pipelines, add_pipeline_destination, remove_pipeline_destination, add_pipeline_table,
    remove_pipeline_table, change_pipeline_settings, doctor,
]  # fmt: skip
