"""The statements that bring a target up to its landing table, and the task that runs them.

Each merge takes the rows above the position up to which the table was merged (kept in the state table) up to the
highest one that is there when it begins, so it is deterministic, can be run by anyone at any time, and loses no row
between reading and cleaning up. What counts is the position, never the time of arrival.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdc_runner.destinations.snowflake import naming
from cdc_runner.destinations.snowflake.naming import ObjectName, TableNames
from cdc_runner.destinations.snowflake.rows import Shape
from cdc_runner.destinations.snowflake.sql import literal
from cdc_runner.destinations.snowflake.types import toastable
from cdc_runner.schema import quote_identifier
from cdc_runner.spec import SyncMode

_POSITION = quote_identifier(naming.POSITION)
_OP = quote_identifier(naming.OPERATION)
_UNCHANGED = quote_identifier(naming.UNCHANGED)
_ROW = quote_identifier(naming.ROW)
_DELETED = quote_identifier(naming.DELETED)
_DELETED_AT = quote_identifier(naming.DELETED_AT)
_COMMITTED_AT = quote_identifier(naming.COMMITTED_AT)
_TRANSACTION = quote_identifier(naming.TRANSACTION)


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of a merge: its name at Snowflake, its value from landing text, its place in `_ROSETTA_UNCHANGED`."""

    name: str
    number: int
    identifying: bool
    may_stay: bool
    value: str
    """SQL with `{}` for the landing expression."""

    def of(self, expression: str) -> str:
        return self.value.replace("{}", expression)


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Everything that the statements of one table depend on.

    Attributes:
        names: of the table.
        shape: of its source table.
        state: the state table.
        writer: identifies pipeline and destination there.
        landing_hours: how long merged rows stay in the landing table.
    """

    names: TableNames
    shape: Shape
    state: ObjectName
    writer: str
    landing_hours: int = 0

    @property
    def _soft(self) -> bool:
        return self.shape.keeps is SyncMode.SOFT_DELETE and bool(self.shape.schema.key)

    @property
    def _columns(self) -> list[_Column]:
        schema = self.shape.schema
        return [
            _Column(
                quote_identifier(self.shape.columns[column.name]),
                number,
                column.name in schema.key,
                bool(schema.key) and column.name not in schema.key and toastable(column),
                self.shape.carried(column).value("{}"),
            )
            for number, column in enumerate(schema.stream_columns)
            if column.name in self.shape.columns
        ]

    @property
    def _where_state(self) -> str:
        target = self.names.target
        return (
            f"PIPELINE = {literal(self.writer)} AND TARGET_SCHEMA = {literal(target.schema)} "
            f"AND TARGET_TABLE = {literal(target.name)}"
        )

    def _state(self, column: str) -> str:
        return f"(SELECT {column} FROM {self.state.quoted} WHERE {self._where_state})"

    @property
    def _window(self) -> str:
        """Condition for the landing rows of this merge; a truncate makes everything before it void."""
        return f"{_POSITION} > {self._state('LOW')} AND {_POSITION} <= {self._state('BOUND')}"

    @property
    def held(self) -> str:
        """Query for the number of holds that keep the task from merging the table: one or none."""
        now = "DATE_PART(EPOCH_SECOND, CURRENT_TIMESTAMP())"
        return (
            f"SELECT COUNT(*) FROM {self.state.quoted} WHERE {self._where_state} AND HOLD <> '' AND HELD_UNTIL > {now}"
        )

    def statements(self, through: str | None = None) -> list[str]:
        """Return the statements of one merge, to be run in one transaction.

        Args:
            through: rows above this position are left for the next merge.
        """
        if self.shape.keeps is SyncMode.HISTORY:
            work = [self._history()]
        else:
            work = [self._truncate(), *(self._keyed() if self.shape.schema.key else self._keyless())]
        return [
            *self._bounds(through),
            *work,
            f"UPDATE {self.state.quoted} SET MERGED = BOUND WHERE {self._where_state}",
            self._clean_up(),
        ]

    def block(self, through: str | None = None) -> str:
        """Return one statement that runs the merge in a transaction, of rows up to a position or of all."""
        return as_block(self.statements(through))

    def _bounds(self, through: str | None) -> list[str]:
        limit = "" if through is None else f" AND {_POSITION} <= {literal(through)}"
        landing = self.names.landing.quoted
        state, where = self.state.quoted, self._where_state
        return [
            # A table that is being loaded is not complete: nothing is merged until it is.
            f"UPDATE {state} SET BOUND = COALESCE((SELECT MAX({_POSITION}) FROM {landing} WHERE {_POSITION} > "
            f"{self._state('MERGED')}{limit}), MERGED), LOW = MERGED WHERE {where} AND READY",
            f"UPDATE {state} SET LOW = COALESCE((SELECT MAX({_POSITION}) FROM {landing} WHERE {_OP} = 't' AND "
            f"{_POSITION} > {self._state('MERGED')} AND {_POSITION} <= {self._state('BOUND')}), MERGED) "
            f"WHERE {where} AND READY",
        ]

    def _truncate(self) -> str:
        target = self.names.target.quoted
        # LOW is above MERGED only when there was a truncate.
        condition = f"EXISTS (SELECT 1 FROM {self.state.quoted} WHERE {self._where_state} AND LOW > MERGED)"
        if self._soft:
            at = (
                f"(SELECT MAX(CAST({_COMMITTED_AT} AS TIMESTAMP_NTZ(6))) FROM {self.names.landing.quoted} "
                f"WHERE {_POSITION} = {self._state('LOW')})"
            )
            return f"UPDATE {target} SET {_DELETED} = TRUE, {_DELETED_AT} = {at} WHERE NOT {_DELETED} AND {condition}"
        return f"DELETE FROM {target} WHERE {condition}"

    def _clean_up(self) -> str:
        merged = f"{_POSITION} <= {self._state('MERGED')}"
        if self.landing_hours:
            time = quote_identifier(naming.COMMITTED_AT)
            age = f"DATEADD(HOUR, -{self.landing_hours}, CURRENT_TIMESTAMP())"
            merged += f" AND CAST({time} AS TIMESTAMP_NTZ) < CAST({age} AS TIMESTAMP_NTZ)"
        return f"DELETE FROM {self.names.landing.quoted} WHERE {merged}"

    # -- tables with a key -------------------------------------------------------------------------------------------

    def _keyed(self) -> list[str]:
        columns = self._columns
        match = " AND ".join(f"t.{one.name} = s.{one.name}" for one in columns if one.identifying)
        settings = [
            f"{one.name} = CASE WHEN s.P{one.number} IS NULL THEN t.{one.name} ELSE s.{one.name} END"
            if one.may_stay
            else f"{one.name} = s.{one.name}"
            for one in columns
            if not one.identifying
        ]
        inserted = [one.name for one in columns]
        values = [f"s.{one.name}" for one in columns]
        gone = "DELETE"
        if self._soft:
            gone = f"UPDATE SET {_DELETED} = TRUE, {_DELETED_AT} = CAST(s.GONE_AT AS TIMESTAMP_NTZ(6))"
            settings += [f"{_DELETED} = FALSE", f"{_DELETED_AT} = NULL"]
            inserted.append(_DELETED)
            values.append("FALSE")
        update = f"WHEN MATCHED THEN UPDATE SET {', '.join(settings)} " if settings else ""
        return [
            f"MERGE INTO {self.names.target.quoted} AS t USING ({self._last_states(columns)}) AS s ON {match} "
            f"WHEN MATCHED AND s.OP = 'd' THEN {gone} {update}"
            f"WHEN NOT MATCHED AND s.OP <> 'd' THEN INSERT ({', '.join(inserted)}) VALUES ({', '.join(values)})"
        ]

    def _last_states(self, columns: Sequence[_Column]) -> str:
        """The last row of each key; a value that an update left out is the last one that was sent for the key.

        P of a column is the position of that value, NULL when the target's own value stays.
        """
        key = ", ".join(one.name for one in columns if one.identifying)
        staying = [one for one in columns if one.may_stay]
        names = [one.name for one in columns]
        order = f"ROW_NUMBER() OVER (PARTITION BY {key} ORDER BY {_POSITION} DESC) AS RN"
        source = (
            f"SELECT {', '.join(names)}, {_OP} AS OP, {_COMMITTED_AT} AS GONE_AT, {_POSITION} AS POS, {order}"
            f"{_comma(self._sent(staying, key))} "
            f"FROM {self.names.landing.quoted} WHERE {self._window} AND {_OP} <> 't'"
        )
        if staying:
            known = [
                f"MAX(CASE WHEN POS = P{one.number} THEN {one.name} END) OVER (PARTITION BY {key}) AS V{one.number}"
                for one in staying
            ]
            marks = [f"P{one.number}" for one in staying]
            source = f"SELECT {', '.join(names)}, OP, GONE_AT, RN{_comma(marks)}{_comma(known)} FROM ({source}) AS sent"
        values = [f"{one.of(f'V{one.number}' if one.may_stay else one.name)} AS {one.name}" for one in columns]
        marks = [f"P{one.number}" for one in staying]
        return f"SELECT {', '.join(values)}, OP, GONE_AT{_comma(marks)} FROM ({source}) AS last WHERE RN = 1"

    def _sent(self, staying: Sequence[_Column], key: str) -> list[str]:
        return [
            f"MAX(CASE WHEN {_OP} <> 'd' AND ({_UNCHANGED} IS NULL OR SUBSTR({_UNCHANGED}, {one.number + 1}, 1) = '0') "
            f"THEN {_POSITION} END) OVER (PARTITION BY {key}) AS P{one.number}"
            for one in staying
        ]

    # -- history -----------------------------------------------------------------------------------------------------

    def _history(self) -> str:
        """Each event is a row. A value that an update left out is NULL, and marked in `_ROSETTA_UNCHANGED`."""
        columns = self._columns
        own = [_POSITION, _OP, _COMMITTED_AT, _TRANSACTION, _UNCHANGED]
        names = ", ".join([*(one.name for one in columns), *own])
        values = [one.of(one.name) for one in columns]
        values += [_POSITION, _OP, f"CAST({_COMMITTED_AT} AS TIMESTAMP_NTZ(6))", _TRANSACTION, _UNCHANGED]
        window = f"{_POSITION} > {self._state('MERGED')} AND {_POSITION} <= {self._state('BOUND')}"
        return (
            f"INSERT INTO {self.names.target.quoted} ({names}) SELECT {', '.join(values)} "
            f"FROM {self.names.landing.quoted} WHERE {window}"
        )

    # -- tables without a key ----------------------------------------------------------------------------------------

    def _keyless(self) -> list[str]:
        """Rows have no identity at the source: an insert adds one, a delete takes one that looks the same."""
        columns = self._columns
        names = ", ".join(one.name for one in columns)
        values = ", ".join(f"{one.of(one.name)} AS {one.name}" for one in columns)
        target, landing = self.names.target.quoted, self.names.landing.quoted
        gone = (
            f"SELECT {names}, COUNT(*) AS N FROM (SELECT {values} FROM {landing} WHERE {self._window} AND {_OP} = 'd') "
            f"AS events GROUP BY {names}"
        )
        alike = " AND ".join(f"t.{one.name} IS NOT DISTINCT FROM g.{one.name}" for one in columns)
        partition = ", ".join(f"t.{one.name}" for one in columns)
        return [
            f"INSERT INTO {target} ({names}, {_ROW}) SELECT {values}, {_POSITION} FROM {landing} "
            f"WHERE {self._window} AND {_OP} = 'i'",
            f"DELETE FROM {target} WHERE {_ROW} IN (SELECT ROW_ID FROM (SELECT t.{_ROW} AS ROW_ID, g.N AS N, "
            f"ROW_NUMBER() OVER (PARTITION BY {partition} ORDER BY t.{_ROW}) AS RN "
            f"FROM {target} AS t JOIN ({gone}) AS g ON {alike}) AS found WHERE RN <= N)",
        ]


def as_block(statements: Sequence[str], *, unless: str | None = None) -> str:
    """Return one statement that runs several in one transaction, or none of them.

    Args:
        statements: what to run.
        unless: a query for a number; nothing is done when it is not zero.
    """
    body = ";\n".join(["BEGIN TRANSACTION", *statements, "COMMIT"])
    if unless is not None:
        counted = unless.replace("SELECT COUNT(*) FROM", "SELECT COUNT(*) INTO :held FROM", 1)
        body = f"LET held INTEGER := 0;\n{counted};\nIF (held > 0) THEN\nRETURN 'held';\nEND IF;\n{body}"
    return f"BEGIN\n{body};\nEXCEPTION WHEN OTHER THEN\nROLLBACK;\nRAISE;\nEND"


def task_statement(plan: MergePlan, *, seconds: int, warehouse: str | None, triggered: bool = False) -> str:
    """Return the statement that makes the task of a table.

    The stream says whether there is anything to do, so that an idle table costs nothing; the merge itself goes by
    position. Reading the stream without a row of it moves it on; a task that is held leaves it where it is.

    Args:
        plan: of the table.
        seconds: time between two merges.
        warehouse: None for a serverless task.
        triggered: run when something has landed, in place of looking each time.
    """
    names = plan.names
    where = f"WAREHOUSE = {quote_identifier(warehouse)}" if warehouse else ""
    note = f"INSERT INTO {plan.state.quoted} (PIPELINE) SELECT {_OP} FROM {names.stream.quoted} WHERE 1 = 0"
    body = as_block([note, *plan.statements()], unless=plan.held)
    when = f"SCHEDULE = '{max(10, seconds)} SECONDS'"
    if triggered:
        when = f"USER_TASK_MINIMUM_TRIGGER_INTERVAL_IN_SECONDS = {max(10, seconds)}"
    return (
        f"CREATE OR REPLACE TASK {names.task.quoted} {where} {when} "
        f"ALLOW_OVERLAPPING_EXECUTION = FALSE WHEN SYSTEM$STREAM_HAS_DATA({literal(names.stream.quoted)}) AS\n{body}"
    )


def _comma(parts: Sequence[str]) -> str:
    return "".join(f", {part}" for part in parts)
