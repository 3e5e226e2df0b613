"""Jobs about smart tags of tables."""

# The services reach into the engine and its libraries: they are imported by a run, never by the code server.
# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from dagster import Config, MetadataValue, OpExecutionContext, op
from pydantic import Field

from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.jobs.partitions import PIPELINES
from rosetta_dagster.jobs.verb import table, verb_job
from rosetta_dagster.resources.catalog import catalog_session


class TagTablesConfig(Config):
    """Which tables, and which tags."""

    tables: list[str] = Field(description="Tables, patterns, or as they were declared, e.g. [public.orders, sales.*].")
    tags: list[str] = Field(
        description="Names, e.g. [pii, owner.finance]: letters, digits, _, . and -; owner.TEAM makes TEAM the owner."
    )
    destination: str = Field(default="", description="Only of this destination. Empty: all of the pipeline.")


class ListTagsConfig(Config):
    """Nothing has to be given."""

    search: str = Field(default="", description="Only tags that hold this text.")
    source: str = Field(default="", description="Only where tables of this source carry it.")
    pipeline: str = Field(default="", description="Only where this pipeline's tables carry it.")
    destination: str = Field(default="", description="Only where tables of this destination carry it.")


class TagConfig(Config):
    """Which tag."""

    tag: str = Field(description="Its name as the job list_tags shows it, e.g. pii.")


class RenameTagConfig(TagConfig):
    """Which tag, and what it is to be called."""

    new_name: str = Field(description="Its new name, e.g. personal.")
    merge: bool = Field(default=False, description="On: make it one with a tag that has the new name already.")


class RemoveTagConfig(TagConfig):
    """Asked for twice."""

    dry_run: bool = Field(default=True, description="On: only say what it would be taken off.")


@op(name="give_tags")
def tag_tables_op(context: OpExecutionContext, config: TagTablesConfig) -> None:
    from cdc_runner.services.tags import add_tags

    with engine_outcome(), catalog_session() as session:
        count = add_tags(session, context.partition_key, config.tables, config.tags, config.destination or None)
    context.add_output_metadata({"result": f"{count} tags were added; the assets show them within half a minute"})


@op(name="take_tags")
def untag_tables_op(context: OpExecutionContext, config: TagTablesConfig) -> None:
    from cdc_runner.services.tags import remove_tags

    with engine_outcome(), catalog_session() as session:
        count = remove_tags(session, context.partition_key, config.tables, config.tags, config.destination or None)
    result = f"{count} tags were taken off; a tag that nothing carries any more is gone"
    context.add_output_metadata({"result": result})


@op(name="read_tags")
def list_tags_op(context: OpExecutionContext, config: ListTagsConfig) -> None:
    from cdc_runner.services.tags import list_tags, tag_relations

    with engine_outcome(), catalog_session() as session:
        rows = list_tags(
            session,
            config.search,
            source=config.source or None,
            pipeline=config.pipeline or None,
            destination=config.destination or None,
        )
        pairs = tag_relations(session)
    context.add_output_metadata(
        {
            "result": f"{len(rows)} tags",
            "tags": table(rows, ("tag", "tables", "pipelines", "destinations")),
            "relations": table(pairs, ("tag", "other", "shared_tables")),
        }
    )


def _uses(tree: dict[str, dict[str, list[dict[str, str]]]]) -> list[dict[str, str]]:
    return [
        {"pipeline": pipeline, "destination": destination, **one}
        for pipeline, destinations in tree.items()
        for destination, tables in destinations.items()
        for one in tables
    ]


def _report_uses(context: OpExecutionContext, result: str, uses: list[dict[str, str]]) -> None:
    shown = table(uses, ("pipeline", "destination", "table", "target"))
    context.add_output_metadata({"result": result, "tables": shown})


@op(name="read_tag")
def show_tag_op(context: OpExecutionContext, config: TagConfig) -> None:
    from cdc_runner.services.tags import tag_usage

    with engine_outcome(), catalog_session() as session:
        uses = _uses(tag_usage(session, config.tag))
    _report_uses(context, f"{len(uses)} tables carry {config.tag}", uses)


@op(name="change_tag_name")
def rename_tag_op(context: OpExecutionContext, config: RenameTagConfig) -> None:
    from cdc_runner.services.tags import rename_tag

    with engine_outcome(), catalog_session() as session:
        count = rename_tag(session, config.tag, config.new_name, merge=config.merge)
    result = f"tag {config.tag} is {config.new_name} now, at {count} places"
    context.add_output_metadata({"result": MetadataValue.text(result)})


@op(name="take_tag_off_everything")
def remove_tag_op(context: OpExecutionContext, config: RemoveTagConfig) -> None:
    from cdc_runner.services.tags import delete_tag, tag_usage

    with engine_outcome(), catalog_session() as session:
        uses = _uses(tag_usage(session, config.tag))
        if not config.dry_run:
            delete_tag(session, config.tag)
    dry = "dry run: would be taken" if config.dry_run else "is taken"
    _report_uses(context, f"{config.tag} {dry} off {len(uses)} tables", uses)


tag_tables = verb_job(
    tag_tables_op, name="tag_tables", picker=PIPELINES, kind="change", description="Gives smart tags to tables."
)
untag_tables = verb_job(
    untag_tables_op, name="untag_tables", picker=PIPELINES, kind="change", description="Takes smart tags off tables."
)
list_tags = verb_job(
    list_tags_op,
    name="list_tags",
    description="Lists smart tags with the number of their tables, and which of them are carried together.",
)
show_tag = verb_job(show_tag_op, name="show_tag", description="Shows where a smart tag is used.")
rename_tag = verb_job(
    rename_tag_op, name="rename_tag", description="Gives a smart tag another name, or makes two of them one."
)
remove_tag = verb_job(
    remove_tag_op,
    name="remove_tag",
    description="Takes a smart tag off everything. A dry run unless told otherwise.",
)

TAG_JOBS = [tag_tables, untag_tables, list_tags, show_tag, rename_tag, remove_tag]
