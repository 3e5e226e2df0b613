"""The configuration file: parsed and checked as a whole, every problem named by its path.

Secrets are references, `{env: NAME}` or `{file: PATH}`; a literal is refused. Nothing of a value is ever repeated in a
problem, as it may be a secret in the wrong place.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from cdc_runner.catalog.channel_entry import CHANNEL_TYPES, ChannelEntry
from cdc_runner.catalog.entry_fields import NAME_RULE, STRICT, ConfigurationProblems, Name, Secret, Text, storable
from cdc_runner.catalog.table_entry import (
    UNION_TAGS,
    Identifier,
    TableEntry,
    TablePattern,
    TablesEntry,
    is_pattern,
    split_table,
)


def _setting(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | str):
        return str(value)
    raise PydanticCustomError("setting", "must be a number, true, false or text")


_TABLES: TypeAdapter[list[str]] = TypeAdapter(Annotated[list[TablePattern], Field(min_length=1)])
SlotName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$", max_length=63)]
Port = Annotated[int, Field(ge=1, le=65535)]
SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
SettingText = Annotated[str, BeforeValidator(_setting)]


class _Strict(BaseModel):
    model_config = STRICT


class PostgresOptions(_Strict):
    """How to reach a PostgreSQL database."""

    host: Annotated[str, BeforeValidator(storable), StringConstraints(min_length=1, max_length=255, to_lower=True)]
    port: Port = 5432
    database: Identifier
    username: Identifier
    password: Secret
    sslmode: SslMode = "prefer"
    sslrootcert: Text | None = None
    sslcert: Text | None = None
    sslkey: Text | None = None


class SourceEntry(PostgresOptions):
    """A source of the file."""

    type: Literal["postgres"] = "postgres"
    publication: Identifier | None = None
    slot: SlotName | None = None
    tables: Annotated[list[TablePattern], Field(min_length=1)] = ["public.*"]
    capture_engine: Literal["debezium", "pgoutput"] = "debezium"
    presets: dict[Name, Annotated[list[TablePattern], Field(min_length=1)]] | None = None
    """Named lists of tables; None leaves those that there are alone."""


class PostgresDestinationEntry(PostgresOptions):
    """A PostgreSQL destination of the file."""

    type: Literal["postgres"]
    schema_name: Identifier | None = Field(default=None, alias="schema")


class SnowflakeDestinationEntry(_Strict):
    """A Snowflake destination of the file."""

    type: Literal["snowflake"]
    account: Text
    user: Text
    private_key: Secret
    private_key_passphrase: Secret | None = None
    role: Text | None = None
    warehouse: Text | None = None
    database: Text
    schema_name: Text = Field(alias="schema")
    landing_database: Text | None = None
    landing_schema: Text | None = None
    host: Text | None = None
    identifiers: Literal["upper", "keep"] = "upper"
    merge_seconds: Annotated[int, Field(ge=10, le=86_400)] = 60
    merge_when: Literal["schedule", "triggered"] = "schedule"
    cluster_targets: Literal["none", "key"] = "none"
    arrays: Literal["variant", "array", "text"] = "variant"
    spatial: Literal["text", "native"] = "text"
    merge_warehouse: Text | None = None
    deletes: Literal["hard", "soft"] = "hard"
    landing_hours: Annotated[int, Field(ge=0, le=8_760)] = 0
    pipe_suffix: str = "-STREAMING"
    compression: Literal["zstd", "gzip"] = "zstd"


DestinationEntry = Annotated[PostgresDestinationEntry | SnowflakeDestinationEntry, Field(discriminator="type")]


class PipelineDestinationEntry(_Strict):
    """A destination of a pipeline."""

    destination: Name
    tables: Annotated[list[TablesEntry], Field(min_length=1)] | None = None

    @property
    def table_entries(self) -> list[TableEntry]:
        """Its tables and patterns, without presets; empty when it says nothing of tables."""
        return [one for one in self.tables or () if isinstance(one, TableEntry)]


class PipelineEntry(_Strict):
    """A pipeline of the file; without `status` the status is left as it is, and a new one is born PAUSE."""

    source: Name
    status: Literal["START", "PAUSE"] | None = None
    destinations: Annotated[list[PipelineDestinationEntry], Field(min_length=1)]
    settings: dict[str, SettingText] = {}


class ConfigurationFile(_Strict):
    """The whole file."""

    sources: dict[Name, SourceEntry] = {}
    destinations: dict[Name, DestinationEntry] = {}
    pipelines: dict[Name, PipelineEntry] = {}
    notifications: dict[Name, ChannelEntry] | None = None
    """None, a file without this section, leaves channels as they are."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, where YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag == "tag:yaml.org,2002:str":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem="a key is given twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_configuration(text: str) -> ConfigurationFile:
    """Return the content of a configuration file.

    Raises:
        ConfigurationProblems: every problem, each with its path.
    """
    try:
        # A SafeLoader subclass: constructs plain values only.
        content = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown place"
        raise ConfigurationProblems([f"not YAML: {error.problem or 'cannot be read'} ({where})"]) from None
    except (yaml.YAMLError, RecursionError, ValueError):
        raise ConfigurationProblems(["not YAML: it holds a character or a structure that cannot be read"]) from None
    if content is None:
        raise ConfigurationProblems(["the file is empty"])
    if not isinstance(content, dict):
        raise ConfigurationProblems(["the file must hold sources:, destinations:, pipelines: or notifications:"])
    return check_configuration(content)


def check_configuration(content: Mapping[Any, Any]) -> ConfigurationFile:
    """Return the checked content of a configuration file that is parsed already.

    Raises:
        ConfigurationProblems: every problem, each with its path.
    """
    try:
        parsed = ConfigurationFile.model_validate(content)
    except ValidationError as error:
        raise ConfigurationProblems([_problem(one) for one in error.errors(include_input=False)]) from None
    problems = _cross_checks(parsed)
    if problems:
        raise ConfigurationProblems(problems)
    return parsed


_WORDS = {
    "extra_forbidden": "is not a known field",
    "missing": "is missing",
    "int_type": "must be a whole number",
    "string_type": "must be text (quote it)",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "string_too_long": "is too long",
    "union_tag_not_found": "is missing",
    "invalid_key": "must be text",
}


_TYPES: dict[str, tuple[str, ...]] = {
    "destinations": ("postgres", "snowflake"),
    "notifications": tuple(CHANNEL_TYPES),
}
"""Section -> what `type` of an entry may be."""


def _problem(error: Any) -> str:
    location = list(error["loc"])
    kind = error["type"]
    if location and location[-1] == "[key]":
        rule = NAME_RULE if kind == "string_pattern_mismatch" else _WORDS.get(kind, "is not a usable name")
        return f"{_path(location[:-1])}: {rule}"
    # The discriminator's value stands in the path; it is not a field.
    location = [part for part in location if part not in UNION_TAGS]
    types = _TYPES.get(location[0], ()) if location else ()
    if len(location) > 2 and location[2] in types:
        del location[2]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        location.append("type")
    if kind == "union_tag_invalid":
        return f"{_path(location)}: must be {', '.join(types[:-1])} or {types[-1]}"
    message = _WORDS.get(kind)
    if message is None:
        message = error["msg"].replace("Input should be", "must be")
    if kind == "string_pattern_mismatch":
        message = _pattern_rule(location)
    return f"{_path(location)}: {message}"


def _pattern_rule(location: list[Any]) -> str:
    if location[-1] == "slot":
        return "may hold lower case letters, digits and _ only"
    if "tags" in location:
        return "a tag may hold lower case letters, digits, _, . and - only"
    return NAME_RULE


def _path(location: list[Any]) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = str(part) if re.fullmatch(r"[\w .-]{1,80}", str(part)) else ascii(str(part)[:40])
            text += f".{shown}" if text else shown
    return text or "file"


def default_slot(source: str) -> str:
    """Return the slot name of a source that names none."""
    return "rosetta_" + re.sub(r"[^a-z0-9_]", "_", source.lower())[:55]


def _cross_checks(file: ConfigurationFile) -> list[str]:
    problems: list[str] = []
    slots: dict[tuple[str, int, str], str] = {}
    for name, source in file.sources.items():
        place = (source.host, source.port, source.slot or default_slot(name))
        if place in slots:
            problems.append(f"sources.{name}.slot: sources.{slots[place]} uses this slot on the same server already")
        slots.setdefault(place, name)
    used: dict[str, str] = {}
    for name, pipeline in file.pipelines.items():
        if pipeline.source in used:
            problems.append(
                f"pipelines.{name}.source: pipelines.{used[pipeline.source]} uses this source already;"
                " one pipeline feeds many destinations"
            )
        used.setdefault(pipeline.source, name)
        problems.extend(_pipeline_checks(name, pipeline, file))
    return problems


def _pipeline_checks(name: str, pipeline: PipelineEntry, file: ConfigurationFile) -> list[str]:
    problems: list[str] = []
    seen: set[str] = set()
    for number, entry in enumerate(pipeline.destinations):
        path = f"pipelines.{name}.destinations[{number}]"
        if entry.destination in seen:
            problems.append(f"{path}.destination: is listed twice")
        seen.add(entry.destination)
        named = [(index, one) for index, one in enumerate(entry.tables or ()) if isinstance(one, TableEntry)]
        problems.extend(target_problems(path, named, one_schema=has_one_schema(file, entry)))
    return problems


def has_one_schema(file: ConfigurationFile, entry: PipelineDestinationEntry) -> bool:
    """Whether all tables of a pipeline's destination go into one schema, as far as the file tells."""
    known = file.destinations.get(entry.destination)
    return known is not None and known.schema_name is not None


def target_problems(path: str, entries: Iterable[tuple[int, TableEntry]], *, one_schema: bool) -> list[str]:
    """Return which tables of a pipeline's destination write to the target of another one.

    Args:
        path: of the pipeline's destination.
        entries: tables and patterns, each with its index in the file.
        one_schema: as `has_one_schema` tells.
    """
    problems: list[str] = []
    targets: dict[tuple[str, str], int] = {}
    for index, entry in entries:
        if is_pattern(entry.table):
            continue
        schema, table = split_table(entry.table)
        target = ("" if one_schema else schema, entry.target or table)
        if target in targets:
            other = f"{path}.tables[{targets[target]}]"
            problems.append(f"{path}.tables[{index}]: {other} writes to the same target already ({target[1]})")
        targets.setdefault(target, index)
    return problems


def check_tables(tables: Sequence[str]) -> list[str]:
    """Return tables and patterns, each once, that may stand in a configuration file.

    Raises:
        ConfigurationProblems: there is none, or one cannot be; with its place.
    """
    try:
        return list(dict.fromkeys(_TABLES.validate_python(list(tables))))
    except ValidationError as error:
        problems = error.errors(include_input=False)
        raise ConfigurationProblems([_problem({**one, "loc": ("tables", *one["loc"])}) for one in problems]) from None


def covers(patterns: list[str], table: str) -> bool:
    """Tell whether patterns of a source take a plain table."""
    schema, name = split_table(table)
    return any(
        fnmatch.fnmatchcase(schema, one) and fnmatch.fnmatchcase(name, two) for one, two in map(split_table, patterns)
    )
