"""Jobs about destinations: create, change, copy, test, browse, remove."""

# The services reach into the engine and its libraries: they are imported by a run, never by the code server.
# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from typing import Any

from dagster import Config, MetadataValue, OpExecutionContext, op
from pydantic import Field

from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.jobs.partitions import DESTINATIONS
from rosetta_dagster.jobs.sources import BrowseConfig, DuplicateConfig, change_table, report_connection
from rosetta_dagster.jobs.verb import fields, given, reference, table, verb_job
from rosetta_dagster.resources.catalog import catalog_session

_SECRETS = ("password", "private_key", "private_key_passphrase")


class _Secrets(Config):
    password_env: str = Field(default="", description="Environment variable with the password. Never the password.")
    password_file: str = Field(default="", description="File with the password.")
    private_key_env: str = Field(default="", description="Snowflake: variable with the private key (PEM).")
    private_key_file: str = Field(default="", description="Snowflake: file with the private key (PEM).")
    private_key_passphrase_env: str = Field(default="", description="Snowflake: variable with its passphrase.")
    private_key_passphrase_file: str = Field(default="", description="Snowflake: file with its passphrase.")


class ChangeDestinationConfig(_Secrets):
    """What to change; a field that stays empty (or 0) is left as it is."""

    host: str = Field(default="", description="PostgreSQL: host name or address.")
    port: int = Field(default=0, description="PostgreSQL: port.")
    database: str = Field(default="", description="Database.")
    username: str = Field(default="", description="PostgreSQL: role that owns the target schema.")
    sslmode: str = Field(default="", description="PostgreSQL: disable, prefer, require, verify-ca or verify-full.")
    sslrootcert: str = Field(default="", description="PostgreSQL: file with the certificate authority.")
    target_schema: str = Field(default="", description="Schema of the targets. Empty: the source's schema names.")
    account: str = Field(default="", description="Snowflake: account, e.g. ACME-EU1.")
    user: str = Field(default="", description="Snowflake: user with the key pair.")
    role: str = Field(default="", description="Snowflake: role.")
    warehouse: str = Field(default="", description="Snowflake: warehouse of the merge tasks.")
    landing_database: str = Field(default="", description="Snowflake: database of the landing tables.")
    landing_schema: str = Field(default="", description="Snowflake: schema of the landing tables.")


class CreateDestinationConfig(ChangeDestinationConfig):
    """Where tables are copied to."""

    name: str = Field(description="Its name, e.g. warehouse: letters, digits, - and _.")
    type: str = Field(description="postgres or snowflake. The fields of the other one stay empty.")


class RemoveDestinationConfig(Config):
    """Asked for twice."""

    dry_run: bool = Field(default=True, description="On: only say what would be removed. The tables stay in any case.")


def _entry(values: dict[str, Any]) -> dict[str, Any]:
    references = [f"{secret}_{kind}" for secret in _SECRETS for kind in ("env", "file")]
    entry = given(values, "name", *references)
    if "target_schema" in entry:
        entry["schema"] = entry.pop("target_schema")
    for secret in _SECRETS:
        found = reference(secret, values[f"{secret}_env"], values[f"{secret}_file"], required=False)
        if found is not None:
            entry[secret] = found
    return entry


@op(name="store_destination")
def create_destination_op(context: OpExecutionContext, config: CreateDestinationConfig) -> None:
    from cdc_runner.services.create import create_destination
    from cdc_runner.services.destination import describe_destination

    with engine_outcome(), catalog_session() as session:
        create_destination(session, config.name, _entry(config.model_dump()))
        described = describe_destination(session, config.name)
    result = f"destination {config.name} is created; next: job test_destination"
    context.add_output_metadata({"result": result, **fields(described)})


@op(name="update_destination")
def change_destination_op(context: OpExecutionContext, config: ChangeDestinationConfig) -> None:
    from cdc_runner.services.edit import change_destination

    name = context.partition_key
    with engine_outcome(), catalog_session() as session:
        changed = change_destination(session, name, _entry(config.model_dump()))
    result = f"{len(changed)} fields of destination {name} were changed; pipelines that feed it start anew"
    context.add_output_metadata({"result": result, "changes": change_table(changed)})


@op(name="copy_destination")
def duplicate_destination_op(context: OpExecutionContext, config: DuplicateConfig) -> None:
    from cdc_runner.services.edit import duplicate_destination

    with engine_outcome(), catalog_session() as session:
        described = duplicate_destination(session, context.partition_key, config.new_name)
    result = f"destination {config.new_name} is a copy of {context.partition_key}"
    context.add_output_metadata({"result": result, **fields(described)})


@op(name="connect_to_destination")
def test_destination_op(context: OpExecutionContext) -> None:
    from cdc_runner.services.destination import check_destination

    with engine_outcome(), catalog_session() as session:
        result = check_destination(session, context.partition_key)
    report_connection(context, "destination", result)


@op(name="read_destination_columns")
def browse_destination_op(context: OpExecutionContext, config: BrowseConfig) -> None:
    from cdc_runner.services.source_tables import browse_destination

    with engine_outcome(), catalog_session() as session:
        rows = browse_destination(session, context.partition_key, config.table)
    columns = ("table", "column", "type", "nullable", "in_key", "default")
    context.add_output_metadata({"result": f"{len(rows)} columns", "columns": table(rows, columns)})


@op(name="delete_destination")
def remove_destination_op(context: OpExecutionContext, config: RemoveDestinationConfig) -> None:
    from cdc_runner.services.destination import remove_destination

    name = context.partition_key
    with engine_outcome(), catalog_session() as session:
        removal = remove_destination(session, name)
        if config.dry_run:
            session.rollback()
    result = f"dry run: destination {name} would be removed" if config.dry_run else f"destination {name} is removed"
    context.add_output_metadata({"result": result, "kept": MetadataValue.json(removal.kept)})


create_destination = verb_job(
    create_destination_op,
    name="create_destination",
    description="Creates a destination: a PostgreSQL database or a Snowflake account that tables are copied to.",
)
change_destination = verb_job(
    change_destination_op,
    name="change_destination",
    picker=DESTINATIONS,
    kind="change",
    description="Changes address, credentials or schema of a destination; what stays empty is left as it is.",
)
duplicate_destination = verb_job(
    duplicate_destination_op,
    name="duplicate_destination",
    picker=DESTINATIONS,
    kind="change",
    description="Copies a destination under another name.",
)
test_destination = verb_job(
    test_destination_op,
    name="test_destination",
    picker=DESTINATIONS,
    description="Connects to a destination with its stored credentials and says what is wrong, if anything.",
)
browse_destination_schema = verb_job(
    browse_destination_op,
    name="browse_destination_schema",
    picker=DESTINATIONS,
    description="Lists tables and columns of a destination.",
)
remove_destination = verb_job(
    remove_destination_op,
    name="remove_destination",
    picker=DESTINATIONS,
    kind="change",
    description="Removes a destination that no pipeline feeds; its tables stay. A dry run unless told otherwise.",
)

DESTINATION_JOBS = [
    create_destination, change_destination, duplicate_destination, test_destination, browse_destination_schema,
    remove_destination,
]  # fmt: skip
