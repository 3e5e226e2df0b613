"""Settings: type, unit, bounds, default and description of each; values are stored as text.

A value comes from the pipeline's own settings, else from `rosetta_setting_configuration`, else it is the default.
"""

from __future__ import annotations

import math
import re
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from cdc_runner.catalog.models import Pipeline, Setting
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.spec import PipelineSettings

Value = int | float | bool | str
Kind = Literal["integer", "number", "boolean", "choice", "text", "timezone"]


@dataclass(frozen=True, slots=True)
class SettingDefinition:
    """One setting.

    Attributes:
        key: its name.
        kind: type of the value.
        default: value when nothing is stored.
        description: what it does, in one sentence.
        unit: unit of a number; empty when it has none.
        minimum: least number, inclusive.
        maximum: greatest number, inclusive; for texts the greatest length.
        choices: the possible values of a choice.
        pipeline: whether a pipeline reads it, and may have its own value.
        secret: never shown.
    """

    key: str
    kind: Kind
    default: Value
    description: str
    unit: str = ""
    minimum: float = -math.inf
    maximum: float = math.inf
    choices: tuple[str, ...] = ()
    pipeline: bool = False
    secret: bool = False

    def parse(self, text: str) -> Value:
        """Return the value of a text.

        Raises:
            RosettaError: CONFIG_INVALID, wrong type or out of bounds.
        """
        match self.kind:
            case "integer":
                return self._bounded(self._integer(text))
            case "number":
                return self._bounded(self._number(text))
            case "boolean":
                lowered = text.strip().lower()
                if lowered not in ("true", "false", "on", "off", "yes", "no", "1", "0"):
                    raise self._wrong("is not true or false")
                return lowered in ("true", "on", "yes", "1")
            case "choice":
                if text not in self.choices:
                    raise self._wrong(f"is not one of {', '.join(self.choices)}")
                return text
            case "timezone":
                if text not in zoneinfo.available_timezones():
                    raise self._wrong("is not a time zone name such as Asia/Jakarta")
                return text
            case "text":
                if len(text) > self.maximum:
                    raise self._wrong(f"is longer than {self.maximum:.0f} characters")
                if "\x00" in text:
                    raise self._wrong("holds a NUL character")
                return text

    def format(self, value: Value) -> str:
        """Return the text under which a value is stored."""
        return str(value).lower() if isinstance(value, bool) else str(value)

    def _integer(self, text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip()):
            raise self._wrong("is not a whole number")
        return int(text)

    def _number(self, text: str) -> float:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}(\.[0-9]{1,9})?", text.strip()):
            raise self._wrong("is not a number")
        return float(text)

    def _bounded(self, value: int | float) -> int | float:
        if not self.minimum <= value <= self.maximum:
            unit = f" {self.unit}" if self.unit else ""
            raise self._wrong(f"is not between {self.minimum:g} and {self.maximum:g}{unit}")
        return value

    def _wrong(self, reason: str) -> RosettaError:
        return RosettaError(ErrorKind.CONFIG_INVALID, f"setting {self.key}: the value {reason}", {"setting": self.key})


_P = PipelineSettings()
_MIB = 1024 * 1024

_DEFINITIONS = (
    SettingDefinition("batch_max_rows", "integer", _P.batch_max_rows,
                      "Most change events applied in one destination transaction; a larger source transaction stays "
                      "whole.", "rows", 1, 10_000_000, pipeline=True),
    SettingDefinition("batch_max_bytes", "integer", _P.batch_max_bytes,
                      "Most raw bytes held in memory for one destination before capture waits.", "bytes",
                      _MIB, 4096 * _MIB, pipeline=True),
    SettingDefinition("spill_bytes", "integer", _P.spill_bytes,
                      "Raw bytes of an open transaction above which it goes to disk.", "bytes",
                      _MIB, 4096 * _MIB, pipeline=True),
    SettingDefinition("load_workers", "integer", _P.load_workers,
                      "Parallel copies of an initial load.", "", 1, 64, pipeline=True),
    SettingDefinition("load_chunk_bytes", "integer", _P.load_chunk_bytes,
                      "Bytes of a table that one chunk of a load covers.", "bytes", _MIB, 65_536 * _MIB, pipeline=True),
    SettingDefinition("load_beside_megabytes", "integer", _P.load_beside_megabytes,
                      "How much of tables that join a running pipeline is loaded while its stream waits; the larger "
                      "ones are loaded beside it (PostgreSQL destinations, tables with a key).", "MB",
                      0, 100_000_000, pipeline=True),
    SettingDefinition("heartbeat_seconds", "number", _P.heartbeat_seconds,
                      "Longest time between two heartbeats on an idle source.", "seconds", 0.5, 3600, pipeline=True),
    SettingDefinition("schema_policy", "choice", _P.schema_policy,
                      "What follows a schema change at the source.",
                      choices=("evolve", "freeze", "pause"), pipeline=True),
    SettingDefinition("jvm_heap_megabytes", "integer", _P.jvm_heap_megabytes,
                      "Heap limit of the Debezium engine.", "MB", 64, 16_384, pipeline=True),
    SettingDefinition("synchronous_commit", "choice", _P.synchronous_commit,
                      "synchronous_commit of the sessions that write to a destination.",
                      choices=("on", "off"), pipeline=True),
    SettingDefinition("drop_columns", "boolean", _P.drop_columns,
                      "Whether a column dropped at the source is dropped at the target too.", pipeline=True),
    SettingDefinition("capture_origin", "choice", _P.capture_origin,
                      "none leaves out what the source received by replication (engine pgoutput, PostgreSQL 16).",
                      choices=("any", "none"), pipeline=True),
    SettingDefinition("dead_letter_max_entries", "integer", _P.dead_letter_max_entries,
                      "Most dead letters of a table; beyond them the destination waits.", "entries",
                      1, 5_000_000, pipeline=True),
    SettingDefinition("dead_letter_retry_seconds", "number", _P.dead_letter_retry_seconds,
                      "Pause before a dead letter is tried again by itself, doubled after each refusal up to six "
                      "hours; 0 leaves it to a person.", "seconds", 0, 21_600, pipeline=True),
    SettingDefinition("dead_letter_retries", "integer", _P.dead_letter_retries,
                      "Most attempts by itself to replay a dead letter.", "", 0, 1000, pipeline=True),
    SettingDefinition("dead_letter_alert_seconds", "number", _P.dead_letter_alert_seconds,
                      "Age of a dead letter from which its event is an error.", "seconds",
                      1, 31_536_000, pipeline=True),
    SettingDefinition("park_after_seconds", "number", _P.park_after_seconds,
                      "How long a destination must be away before its changes are parked in Redis, so that the slot "
                      "may pass them; 0 never parks.", "seconds", 0, 86_400, pipeline=True),
    SettingDefinition("custom_sql_seconds", "number", _P.custom_sql_seconds,
                      "Longest that a statement of custom SQL may take over the rows at hand.", "seconds",
                      1, 600, pipeline=True),
    SettingDefinition("custom_sql_memory_megabytes", "integer", _P.custom_sql_memory_megabytes,
                      "Most memory of a statement of custom SQL.", "megabytes", 64, 16_384, pipeline=True),
    SettingDefinition("custom_sql_max_rows", "integer", _P.custom_sql_max_rows,
                      "Most rows that a change may ask custom SQL to compute anew; no group may have more.", "rows",
                      1000, 10_000_000, pipeline=True),
    SettingDefinition("park_max_megabytes", "integer", _P.park_max_megabytes,
                      "Most that is parked in Redis for a destination; beyond it the slot waits.", "MB",
                      1, 1_000_000, pipeline=True),
    SettingDefinition("backfill_workers", "integer", _P.backfill_workers,
                      "Chunks of a backfill that are copied at once.", "", 1, 32, pipeline=True),
    SettingDefinition("backfill_megabytes_per_second", "integer", _P.backfill_megabytes_per_second,
                      "Most that a backfill reads from the source in a second; 0 for no limit.", "MB/s",
                      0, 100_000, pipeline=True),
    SettingDefinition("backfill_window_seconds", "integer", _P.backfill_window_seconds,
                      "How long a backfill reads under one snapshot before it takes another; the source cannot clean "
                      "up rows for so long.", "seconds", 1, 86_400, pipeline=True),
    SettingDefinition("wal_warning_megabytes", "integer", 3000,
                      "WAL kept for a slot above which a source is shown as WARNING.", "MB", 1, 10_000_000),
    SettingDefinition("wal_error_megabytes", "integer", 6000,
                      "WAL kept for a slot above which a source is shown as ERROR.", "MB", 1, 10_000_000),
    SettingDefinition("wal_pause_backfills_megabytes", "integer", 8000,
                      "WAL kept for a slot above which backfills of its source wait (never below "
                      "wal_error_megabytes).", "MB", 1, 10_000_000),
    SettingDefinition("wal_drop_slot_megabytes", "integer", 20_000,
                      "WAL kept for a slot above which it is dropped, if wal_drop_slot_allowed is on (never below "
                      "wal_pause_backfills_megabytes).", "MB", 1, 10_000_000),
    SettingDefinition("wal_drop_slot_allowed", "boolean", False,
                      "Whether Rosetta may drop a slot that keeps too much WAL, to save the source; its tables must "
                      "then be copied again."),
    SettingDefinition("wal_monitor_seconds", "integer", 60,
                      "Time between two looks at the sources' WAL.", "seconds", 60, 3600),
    SettingDefinition("lag_warning_seconds", "integer", 60,
                      "Lag of a destination above which a notification is made.", "seconds", 1, 86_400),
    SettingDefinition("credits_warning_per_day", "number", 0,
                      "Snowflake credits of a destination in a day above which a warning is sent; 0 never.",
                      "credits", 0, 1_000_000),
    SettingDefinition("credits_error_per_day", "number", 0,
                      "The same for an alert.", "credits", 0, 1_000_000),
    SettingDefinition("retention_days", "integer", 14,
                      "Age at which observations (WAL, machine, flow) are removed.", "days", 1, 3650),
    SettingDefinition("notification_retention_days", "integer", 90,
                      "Age at which resolved notifications are removed.", "days", 1, 3650),
    SettingDefinition("backfill_retention_days", "integer", 90,
                      "Age at which ended backfills are removed from the history.", "days", 1, 3650),
    SettingDefinition("credit_retention_days", "integer", 400,
                      "Age at which Snowflake credits by day are removed.", "days", 40, 3650),
    SettingDefinition("verify_workers", "integer", 2,
                      "Statements at once on each side while tables are compared.", "", 1, 32),
    SettingDefinition("verify_megabytes_per_second", "integer", 0,
                      "Most of a table read on each side in a second while tables are compared; 0 for no limit.",
                      "MB/s", 0, 100_000),
    SettingDefinition("verify_statement_seconds", "integer", 300,
                      "Longest time of one statement while tables are compared.", "seconds", 5, 86_400),
    SettingDefinition("preview_at_once", "integer", 2,
                      "Previews that run at once on a host; more wait for their turn.", "", 1, 64),
    SettingDefinition("timezone", "timezone", "Asia/Jakarta", "Time zone of displayed times and of day boundaries."),
    SettingDefinition("runner_auto_start", "boolean", True,
                      "Whether Dagster starts a runner when none lives; off while one is stopped on purpose."),
    SettingDefinition("notification_iterations", "integer", 3,
                      "Times that a condition must be seen before it is sent.", "", 1, 1000),
    SettingDefinition("notification_quiet_seconds", "integer", 120,
                      "Time that a condition must stay resolved before that is told; one that comes back within it is "
                      "not told again.", "seconds", 0, 86_400),
    SettingDefinition("notification_reminder_minutes", "integer", 240,
                      "Time after which an open condition is told again; 0 never.", "minutes", 0, 43_200),
    SettingDefinition("notification_allow_internal", "boolean", False,
                      "Whether notifications may go to addresses inside the own network (loopback, private, "
                      "link-local)."),
)  # fmt: skip

REGISTRY: dict[str, SettingDefinition] = {definition.key: definition for definition in _DEFINITIONS}

_ORDERED = (("wal_warning_megabytes", "wal_error_megabytes"),)
"""Pairs of which the first must stay below the second."""


def definition(key: str) -> SettingDefinition:
    """Return the definition of a setting.

    Raises:
        RosettaError: NOT_FOUND, with the known names.
    """
    found = REGISTRY.get(key)
    if found is None:
        raise RosettaError(ErrorKind.NOT_FOUND, f"no setting {key[:80]!r}; known: {', '.join(REGISTRY)}")
    return found


def all_settings(session: Session) -> dict[str, Value]:
    """Return every global setting; a stored value that no longer is valid gives the default."""
    stored = {row.config_key: row.config_value for row in session.scalars(select(Setting))}
    return {key: _value(known, stored.get(key)) for key, known in REGISTRY.items()}


def get_setting(session: Session, key: str) -> Value:
    """Return a global setting.

    Raises:
        RosettaError: NOT_FOUND.
    """
    known = definition(key)
    return _value(known, session.scalar(select(Setting.config_value).where(Setting.config_key == key)))


def set_setting(session: Session, key: str, text: str) -> Value:
    """Store a global setting and return its value; pipelines that read it are started anew.

    Raises:
        RosettaError: NOT_FOUND or CONFIG_INVALID; nothing is stored.
    """
    known = definition(key)
    value = known.parse(text)
    if value == get_setting(session, key):
        return value
    check_order({**all_settings(session), key: value})
    stored = known.format(value)
    session.execute(
        insert(Setting)
        .values(config_key=key, config_value=stored)
        .on_conflict_do_update(index_elements=[Setting.config_key], set_={"config_value": stored})
    )
    _raise_generations(session, known)
    return value


def reset_setting(session: Session, key: str) -> Value:
    """Remove the stored value of a global setting and return the default."""
    known = definition(key)
    check_order({**all_settings(session), key: known.default})
    if session.execute(delete(Setting).where(Setting.config_key == key).returning(Setting.id)).first():
        _raise_generations(session, known)
    return known.default


def check_order(values: Mapping[str, Value]) -> None:
    """Refuse values that contradict each other.

    Raises:
        RosettaError: CONFIG_INVALID, naming both settings.
    """
    for lower, upper in _ORDERED:
        if float(values[lower]) >= float(values[upper]):
            raise RosettaError(
                ErrorKind.CONFIG_INVALID,
                f"setting {lower} ({values[lower]}) must be below {upper} ({values[upper]})",
                {"setting": lower},
            )


def parse_pipeline_settings(values: Mapping[str, str]) -> dict[str, str]:
    """Return a pipeline's own settings in stored form.

    Raises:
        RosettaError: unknown setting, one that pipelines do not read, or a wrong value.
    """
    return {key: pipeline_definition(key).format(pipeline_definition(key).parse(text)) for key, text in values.items()}


def pipeline_definition(key: str) -> SettingDefinition:
    """Return the definition of a setting that a pipeline may have its own value of.

    Raises:
        RosettaError: NOT_FOUND, with the known names.
    """
    known = REGISTRY.get(key)
    if known is None or not known.pipeline:
        names = ", ".join(name for name, one in REGISTRY.items() if one.pipeline)
        raise RosettaError(ErrorKind.NOT_FOUND, f"no setting {key[:80]!r} of a pipeline; known: {names}")
    return known


def pipeline_settings(session: Session, own: Mapping[str, str]) -> PipelineSettings:
    """Return the settings of a pipeline: its own over the global ones."""
    values = all_settings(session)
    chosen = {
        key: _value(known, own[key]) if key in own else values[key] for key, known in REGISTRY.items() if known.pipeline
    }
    return PipelineSettings(**chosen)  # type: ignore[arg-type]  # the registry has the same keys and types; tested


def _value(known: SettingDefinition, text: str | None) -> Value:
    if text is None:
        return known.default
    try:
        return known.parse(text)
    except RosettaError:
        # Bounds may have been narrowed by a newer version; a stale value must not stop every pipeline.
        return known.default


def _raise_generations(session: Session, known: SettingDefinition) -> None:
    if known.pipeline:
        affected = update(Pipeline).where(~Pipeline.settings.has_key(known.key))
        session.execute(affected.values(generation=Pipeline.generation + 1))
