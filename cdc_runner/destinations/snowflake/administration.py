"""What is asked of a Snowflake destination outside of a pipeline."""

from __future__ import annotations

from cdc_runner.destinations.snowflake import state
from cdc_runner.destinations.snowflake.auth import KeyPairTokens
from cdc_runner.destinations.snowflake.session import Session
from cdc_runner.destinations.snowflake.sql import SqlSession
from cdc_runner.destinations.snowflake.streaming import Pipe
from cdc_runner.destinations.snowflake.transport import Refused, Transport, Unanswered, Unreachable, classified
from cdc_runner.destinations.snowflake.waiting import EventMark
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


def forget_pipeline(address: SnowflakeAddress, pipeline: str, destination: str) -> list[str]:
    """Drop landing tables, streams, tasks and channels of a pipeline, and its state; targets stay.

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
