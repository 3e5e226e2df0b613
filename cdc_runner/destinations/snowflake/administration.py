"""What is asked of a Snowflake destination outside of a pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from cdc_runner.capture.inspect import matches, split_pattern
from cdc_runner.destinations.snowflake import state
from cdc_runner.destinations.snowflake.auth import KeyPairTokens
from cdc_runner.destinations.snowflake.retire import settle
from cdc_runner.destinations.snowflake.session import Session
from cdc_runner.destinations.snowflake.sql import SqlSession, literal
from cdc_runner.destinations.snowflake.streaming import Pipe
from cdc_runner.destinations.snowflake.transport import Refused, Transport, Unanswered, Unreachable, classified
from cdc_runner.destinations.snowflake.waiting import EventMark
from cdc_runner.schema import TableId, quote_identifier
from cdc_runner.spec import SnowflakeAddress


def service_version(address: SnowflakeAddress) -> str:
    """Return the version that the service says it has, through the SQL API.

    Raises:
        RosettaError: CREDENTIAL_UNREADABLE, or a destination kind.
    """
    rows = run_once(address, "SELECT CURRENT_VERSION()", "tell its version")
    return str(rows[0][0])


def run_once(
    address: SnowflakeAddress, statement: str, what: str = "run a statement", *, limit_seconds: float = 120.0
) -> list[list[str | None]]:
    """Run one statement on connections of its own and return its rows, values as text.

    Args:
        address: the account.
        statement: SQL of Snowflake.
        what: what it does, for error messages.
        limit_seconds: after so long it is cancelled.

    Raises:
        RosettaError: CREDENTIAL_UNREADABLE, or a destination kind.
    """
    transport = Transport(attempts=3)
    try:
        tokens = KeyPairTokens(address)
        return SqlSession(address, tokens, transport).run(statement, what, limit_seconds=limit_seconds).rows
    finally:
        transport.close()


_COLUMNS = """
SELECT TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME, DATA_TYPE, IS_NULLABLE, COLUMN_DEFAULT, NUMERIC_PRECISION, NUMERIC_SCALE
FROM {database}.INFORMATION_SCHEMA.COLUMNS WHERE TABLE_SCHEMA <> 'INFORMATION_SCHEMA'{condition}
ORDER BY TABLE_SCHEMA, TABLE_NAME, ORDINAL_POSITION
"""


@dataclass(frozen=True, slots=True)
class DestinationColumn:
    """A column of a table, as the account has it; `type` with precision and scale of a NUMBER."""

    table: TableId
    name: str
    type: str
    nullable: bool
    default: str | None


def read_columns(address: SnowflakeAddress, pattern: str) -> list[DestinationColumn]:
    """Return the columns of the database's tables that match a pattern such as `shop.*`, whatever its case.

    A pattern without a dot is one of tables in any schema.

    Raises:
        RosettaError: CONFIG_INVALID for the pattern, CREDENTIAL_UNREADABLE, or a destination kind.
    """
    wanted = (pattern if "." in pattern else f"*.{pattern}").upper()
    schema_half, _ = split_pattern(wanted)
    exact = not any(character in schema_half for character in "*?[")
    condition = f" AND UPPER(TABLE_SCHEMA) = {literal(schema_half)}" if exact else ""
    statement = _COLUMNS.format(database=quote_identifier(address.database), condition=condition)
    return [
        DestinationColumn(
            TableId(str(schema), str(table)), str(name), _type_text(type_, precision, scale), nullable == "YES", default
        )
        for schema, table, name, type_, nullable, default, precision, scale in run_once(
            address, statement, "read the columns of its tables"
        )
        if matches(TableId(str(schema).upper(), str(table).upper()), [wanted])
    ]


def _type_text(name: str | None, precision: str | None, scale: str | None) -> str:
    if name == "NUMBER" and precision is not None:
        return f"NUMBER({precision},{scale or 0})"
    return name or ""


def forget_pipeline(address: SnowflakeAddress, pipeline: str, destination: str) -> list[str]:
    """Merge what has landed, and drop landing tables, streams, tasks, channels and state of a pipeline; targets stay.

    Args:
        address: the account.
        pipeline: identity of the pipeline.
        destination: identity of the destination.

    Returns:
        Names of what was dropped. Nothing when the pipeline never reached the destination.

    Raises:
        RosettaError: a destination kind; what was dropped stays dropped, and it can be repeated.
    """
    session = Session(address, pipeline, destination)
    try:
        if not session.objects.columns(session.naming.state(state.TABLE)):
            return []
        dropped: list[str] = []
        for table in session.store.tables():
            names = session.naming.table(table.sync.target)
            _drop(session, names.pipe, names.channel)
            settle(session, table)
            dropped += session.objects.drop(table.sync)
        _drop(session, session.naming.state_pipe(state.POSITION), session.naming.channel("POSITION"))
        session.store.forget()
        if session.objects.columns(session.waiting.table):
            session.waiting.forget()
        return dropped
    finally:
        session.close()


def read_waiting(address: SnowflakeAddress, pipeline: str, destination: str) -> list[EventMark]:
    """Return what waits at a destination, without disturbing whoever writes there.

    Raises:
        RosettaError: a destination kind.
    """
    session = Session(address, pipeline, destination)
    try:
        return session.waiting.read() if session.objects.columns(session.waiting.table) else []
    finally:
        session.close()


def _drop(session: Session, pipe: Pipe, channel: str) -> None:
    try:
        session.streaming.drop_channel(pipe, channel)
    except (Refused, Unanswered, Unreachable) as error:
        raise classified(error, f"drop channel {channel}") from None


def check_ingest(address: SnowflakeAddress) -> str:
    """Return the ingest host, after the exchange of a token with the account.

    Raises:
        RosettaError: a destination kind.
    """
    session = Session(address, "doctor", "doctor")
    try:
        session.streaming.exchange()
        return session.streaming.host()
    except (Refused, Unanswered, Unreachable) as error:
        raise classified(error, "open the streaming service") from None
    finally:
        session.close()


def key_fingerprint(address: SnowflakeAddress) -> str:
    """Return the fingerprint of the private key, as `DESC USER` shows that of the public one.

    Raises:
        RosettaError: CREDENTIAL_UNREADABLE.
    """
    return KeyPairTokens(address).fingerprint
