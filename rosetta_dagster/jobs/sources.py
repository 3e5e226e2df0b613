"""Jobs about sources: create, change, copy, remove; tables, publication, slot, schema history."""

# The services reach into the engine and its libraries: they are imported by a run, never by the code server.
# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from typing import Any

from dagster import Config, Failure, MetadataValue, OpExecutionContext, op
from pydantic import Field

from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.jobs.partitions import SOURCES
from rosetta_dagster.jobs.verb import fields, given, reference, table, verb_job
from rosetta_dagster.resources.catalog import catalog_engine, catalog_session

_ENV = "Environment variable of the code server that holds the password. Never the password itself."
_FILE = "File on the host of the code server that holds the password."
_MODES = "disable, allow, prefer, require, verify-ca or verify-full"


class CreateSourceConfig(Config):
    """A PostgreSQL database whose tables are copied."""

    name: str = Field(description="Its name, e.g. shop: letters, digits, - and _.")
    host: str = Field(description="Host name or address, e.g. db.example.com.")
    port: int = Field(default=5432, description="Port.")
    database: str = Field(description="Database, e.g. shop.")
    username: str = Field(description="Role with LOGIN and REPLICATION, and SELECT on the tables, e.g. rosetta.")
    password_env: str = Field(default="", description=_ENV)
    password_file: str = Field(default="", description=_FILE)
    sslmode: str = Field(default="prefer", description=f"One of {_MODES}.")
    sslrootcert: str = Field(default="", description="File with the certificate authority.")
    tables: list[str] = Field(default=["public.*"], description="Patterns schema.table, with * and ?.")
    slot: str = Field(default="", description="Replication slot; made at the first start. Empty: rosetta_NAME.")
    publication: str = Field(default="", description="Publication; made when absent. Empty: rosetta_NAME.")
    capture_engine: str = Field(default="", description="debezium or pgoutput. Empty: the default.")


class ChangeSourceConfig(Config):
    """What to change; a field that stays empty (or 0) is left as it is."""

    host: str = Field(default="", description="Host name or address.")
    port: int = Field(default=0, description="Port.")
    database: str = Field(default="", description="Database.")
    username: str = Field(default="", description="Role.")
    password_env: str = Field(default="", description=_ENV)
    password_file: str = Field(default="", description=_FILE)
    sslmode: str = Field(default="", description=f"One of {_MODES}.")
    sslrootcert: str = Field(default="", description="File with the certificate authority.")
    tables: list[str] = Field(default=[], description="Patterns that take the place of the present ones.")
    slot: str = Field(default="", description="Refused while a pipeline uses the source.")
    publication: str = Field(default="", description="Refused while a pipeline uses the source.")
    capture_engine: str = Field(default="", description="debezium or pgoutput.")


class DuplicateConfig(Config):
    """The name of the copy."""

    new_name: str = Field(description="Name of the copy, e.g. shop_test. Credentials are copied, encrypted anew.")


class RemoveSourceConfig(Config):
    """A removal drops the slot at the server: it is asked for twice."""

    dry_run: bool = Field(default=True, description="On: only say what would be removed.")
    keep_slot: bool = Field(default=False, description="On: leave slot and publication at the server, and list them.")


class TablesConfig(Config):
    """Which tables."""

    tables: list[str] = Field(default=[], description="schema.table, or patterns with * and ?.")
    preset: str = Field(default="", description="Instead: the tables of this preset of the source.")


class UnregisterConfig(Config):
    """Which tables; asked for twice."""

    tables: list[str] = Field(
        description="Tables or patterns as the job list_source_tables shows them, e.g. [public.orders, sales.*]."
    )
    dry_run: bool = Field(default=True, description="On: only say what would be done.")


class BrowseConfig(Config):
    """Which tables to look at."""

    table: str = Field(default="*.*", description="schema.table, or a pattern with * and ?.")


class DropConfig(Config):
    """Asked for twice."""

    dry_run: bool = Field(default=True, description="On: only say what would be dropped, and what follows.")


class HistoryConfig(Config):
    """Which table, and how far back."""

    table: str = Field(default="", description="schema.table; empty: every table of the source.")
    limit: int = Field(default=100, description="Newest versions to show.")


@op(name="store_source")
def create_source_op(context: OpExecutionContext, config: CreateSourceConfig) -> None:
    from cdc_runner.services.create import create_source
    from cdc_runner.services.source import describe_source

    with engine_outcome(), catalog_session() as session:
        entry = given(config.model_dump(), "name", "password_env", "password_file")
        entry["password"] = reference("password", config.password_env, config.password_file)
        create_source(session, config.name, entry)
        described = describe_source(session, config.name)
    result = f"source {config.name} is created; next: job test_source, then create_pipeline"
    context.add_output_metadata({"result": result, **fields(described)})


def _changes(values: dict[str, Any], variable: str, file: str) -> dict[str, Any]:
    changes = given(values, "password_env", "password_file")
    password = reference("password", variable, file, required=False)
    return {**changes, **({"password": password} if password else {})}


def change_table(changed: dict[str, list[Any]]) -> MetadataValue:
    """Return changed fields as a table."""
    rows = [{"field": name, "before": before, "after": after} for name, (before, after) in changed.items()]
    return table(rows, ("field", "before", "after"))


@op(name="update_source")
def change_source_op(context: OpExecutionContext, config: ChangeSourceConfig) -> None:
    from cdc_runner.services.edit import change_source

    name = context.partition_key
    with engine_outcome(), catalog_session() as session:
        changes = _changes(config.model_dump(), config.password_env, config.password_file)
        changed = change_source(session, name, changes)
    result = f"{len(changed)} fields of source {name} were changed; a running pipeline starts anew with them"
    context.add_output_metadata({"result": result, "changes": change_table(changed)})


@op(name="copy_source")
def duplicate_source_op(context: OpExecutionContext, config: DuplicateConfig) -> None:
    from cdc_runner.services.edit import duplicate_source

    with engine_outcome(), catalog_session() as session:
        described = duplicate_source(session, context.partition_key, config.new_name)
    result = f"source {config.new_name} is a copy of {context.partition_key}, with a slot and publication of its own"
    context.add_output_metadata({"result": result, **fields(described)})


@op(name="delete_source")
def remove_source_op(context: OpExecutionContext, config: RemoveSourceConfig) -> None:
    from cdc_runner.services.source import describe_source, remove_source

    name = context.partition_key
    with engine_outcome(), catalog_session() as session:
        if config.dry_run:
            described = describe_source(session, name)
            fate = "stay" if config.keep_slot else "are dropped"
            result = f"dry run: source {name} would be removed; slot and publication {fate}"
            if described["pipelines"]:
                result = f"dry run: refused while pipeline {described['pipelines'][0]} uses source {name}"
            context.add_output_metadata({"result": result, **fields(described)})
            return
        removal = remove_source(session, name, keep_slot=config.keep_slot)
    result = f"source {name} is removed; {len(removal.left_over)} things are left over"
    lists = {"removed": removal.removed, "LEFT OVER": removal.left_over, "kept": removal.kept}
    context.add_output_metadata({"result": result, **{name: MetadataValue.json(one) for name, one in lists.items()}})


@op(name="connect_to_source")
def test_source_op(context: OpExecutionContext) -> None:
    from cdc_runner.services.source import check_source

    with engine_outcome(), catalog_session() as session:
        result = check_source(session, context.partition_key)
    report_connection(context, "source", result)


def report_connection(context: OpExecutionContext, kind: str, result: dict[str, Any]) -> None:
    """End the run as the connection test did.

    Raises:
        Failure: it could not connect; with the reason.
    """
    facts = fields(result)
    if result.get("error"):
        raise Failure(f"{kind} {result['name']}: {result['error']}", facts, allow_retries=False)
    context.add_output_metadata({"result": f"{kind} {result['name']} is reachable", **facts})


@op(name="read_source_tables")
def list_tables_op(context: OpExecutionContext) -> None:
    from cdc_runner.services.source_tables import list_tables

    with engine_outcome(), catalog_session() as session:
        rows = list_tables(session, context.partition_key)
    taken = sum(row["registered"] for row in rows)
    columns = ("table", "registered", "published", "columns", "key", "estimated_rows", "size_bytes", "hindrance")
    result = f"{len(rows)} tables at source {context.partition_key}, {taken} of them registered"
    context.add_output_metadata({"result": result, "tables": table(rows, columns)})


@op(name="read_source_columns")
def browse_source_op(context: OpExecutionContext, config: BrowseConfig) -> None:
    from cdc_runner.services.source_tables import browse_source

    with engine_outcome(), catalog_session() as session:
        rows = browse_source(session, context.partition_key, config.table)
    columns = ("table", "column", "type", "nullable", "in_key", "default")
    context.add_output_metadata({"result": f"{len(rows)} columns", "columns": table(rows, columns)})


@op(name="add_tables_to_source")
def register_tables_op(context: OpExecutionContext, config: TablesConfig) -> None:
    from cdc_runner.services.presets import tables_of_preset
    from cdc_runner.services.source_tables import register_tables

    name = context.partition_key
    with engine_outcome(), catalog_session() as session:
        wanted = [*config.tables, *(tables_of_preset(session, name, config.preset) if config.preset else [])]
        if not wanted:
            raise Failure("give tables or a preset", allow_retries=False)
        added = register_tables(session, name, wanted)
    result = f"{len(added)} of {len(wanted)} were added; a running pipeline publishes and loads them within seconds"
    context.add_output_metadata({"result": result, "added": MetadataValue.json(added)})


@op(name="take_tables_off_source")
def unregister_tables_op(context: OpExecutionContext, config: UnregisterConfig) -> None:
    from cdc_runner.services.source_tables import unregister_tables

    with engine_outcome(), catalog_session() as session:
        removed = unregister_tables(session, context.partition_key, config.tables)
        if config.dry_run:
            session.rollback()
    dry = "dry run: would be taken off the list" if config.dry_run else "taken off the list"
    result = f"{dry}: {', '.join(removed)}; what was copied stays at the targets"
    context.add_output_metadata({"result": result})


@op(name="publish_tables")
def create_publication_op(context: OpExecutionContext, config: TablesConfig) -> None:
    from cdc_runner.services.presets import tables_of_preset
    from cdc_runner.services.source_tables import create_publication

    name = context.partition_key
    with engine_outcome(), catalog_session() as session:
        wanted = [*config.tables, *(tables_of_preset(session, name, config.preset) if config.preset else [])]
        made = create_publication(session, name, wanted)
    result = f"publication {made['publication']} has {len(made['added'])} new tables"
    context.add_output_metadata({"result": result, **{key: MetadataValue.json(made[key]) for key in made}})


@op(name="unpublish_tables")
def drop_publication_op(context: OpExecutionContext, config: DropConfig) -> None:
    from cdc_runner.services.source import describe_source
    from cdc_runner.services.source_tables import remove_publication

    name = context.partition_key
    with engine_outcome(), catalog_session() as session:
        publication = describe_source(session, name)["publication"]
        if config.dry_run:
            told = (
                f"dry run: publication {publication} of source {name} would be dropped; changes from then on are lost"
            )
        else:
            found = remove_publication(session, name)
            told = f"publication {publication} is dropped" if found else f"there was no publication {publication}"
    follows = "A pipeline of the source must be refreshed afterwards: job refresh_pipeline."
    context.add_output_metadata({"result": told, "what follows": follows})


@op(name="release_slot")
def drop_slot_op(context: OpExecutionContext, config: DropConfig) -> None:
    from cdc_runner.services.slot_rescue import describe_slot, drop_source_slot

    name = context.partition_key
    with engine_outcome():
        if config.dry_run:
            with catalog_session() as session:
                found = describe_slot(session, name)
            steps = found.pop("recovery")
            result = f"dry run: slot {found['slot']} of source {name} would be dropped"
        else:
            found = drop_source_slot(catalog_engine(), name, "dropped by hand")
            steps = found.pop("steps")
            result = f"slot {found['slot']} of source {name} is dropped; the recovery plan is below"
    plan = MetadataValue.md("\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1)))
    context.add_output_metadata({"result": result, "recovery plan": plan, **fields(found)})


@op(name="read_schema_history")
def schema_history_op(context: OpExecutionContext, config: HistoryConfig) -> None:
    from cdc_runner.services.schema_history import schema_history

    with engine_outcome(), catalog_session() as session:
        rows = schema_history(session, context.partition_key, config.table or None, min(config.limit, 500))
    columns = ("table", "version", "change", "differences", "columns", "position", "seen_at")
    context.add_output_metadata({"result": f"{len(rows)} versions, the newest first", "versions": table(rows, columns)})


create_source = verb_job(
    create_source_op,
    name="create_source",
    description="Creates a source: a PostgreSQL database whose tables are copied.",
)
change_source = verb_job(
    change_source_op,
    name="change_source",
    picker=SOURCES,
    kind="change",
    description="Changes address, credentials, patterns or engine of a source; what stays empty is left as it is.",
)
duplicate_source = verb_job(
    duplicate_source_op,
    name="duplicate_source",
    picker=SOURCES,
    kind="change",
    description="Copies a source under another name.",
)
remove_source = verb_job(
    remove_source_op,
    name="remove_source",
    picker=SOURCES,
    kind="change",
    description="Removes a source that no pipeline uses, its slot and publication. A dry run unless told otherwise.",
)
test_source = verb_job(
    test_source_op,
    name="test_source",
    picker=SOURCES,
    description="Connects to a source with its stored credentials and says what is wrong, if anything.",
)
list_source_tables = verb_job(
    list_tables_op,
    name="list_source_tables",
    picker=SOURCES,
    description="Lists the tables of a source now: registered, published, size, key, and what hinders their copying.",
)
browse_source_schema = verb_job(
    browse_source_op, name="browse_source_schema", picker=SOURCES, description="Lists tables and columns of a source."
)
register_tables = verb_job(
    register_tables_op,
    name="register_tables",
    picker=SOURCES,
    kind="change",
    description="Lets a source take more tables: named, by pattern, or by preset.",
)
unregister_tables = verb_job(
    unregister_tables_op,
    name="unregister_tables",
    picker=SOURCES,
    kind="change",
    description="Takes tables or patterns off a source's list. A dry run unless told otherwise.",
)
create_publication = verb_job(
    create_publication_op,
    name="create_publication",
    picker=SOURCES,
    kind="change",
    description="Makes a source's publication now, or adds tables to it. A pipeline does this by itself at its start.",
)
drop_publication = verb_job(
    drop_publication_op,
    name="drop_publication",
    picker=SOURCES,
    kind="change",
    description="Drops a source's publication; its pipeline must be paused. A dry run unless told otherwise.",
)
drop_slot = verb_job(
    drop_slot_op,
    name="drop_slot",
    picker=SOURCES,
    kind="change",
    description="Drops a source's slot with a recorded recovery plan; its pipeline must be paused. A dry run unless "
    "told otherwise. The slot itself is made by the pipeline's first start, together with the snapshot of its load.",
)
show_schema_history = verb_job(
    schema_history_op,
    name="show_schema_history",
    picker=SOURCES,
    description="Shows the versions of the tables' schemas with what differs from one to the next.",
)

SOURCE_JOBS = [
    create_source, change_source, duplicate_source, remove_source, test_source, list_source_tables,
    browse_source_schema, register_tables, unregister_tables, create_publication, drop_publication, drop_slot,
    show_schema_history,
]  # fmt: skip
