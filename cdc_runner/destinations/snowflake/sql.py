"""Statements over the SQL API, with the same key pair as streaming."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

from cdc_runner.destinations.snowflake.auth import KeyPairTokens, account_url
from cdc_runner.destinations.snowflake.transport import (
    Refused,
    Transport,
    Unanswered,
    Unreachable,
    classified,
    json_object,
)
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.spec import SnowflakeAddress

POLL_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)
DEFAULT_LIMIT_SECONDS = 600.0
_CODE_KINDS = {
    "003001": ErrorKind.DESTINATION_PERMISSION,
    "000606": ErrorKind.DESTINATION_PERMISSION,
    "000625": ErrorKind.DESTINATION_CONFLICT,
    "000630": ErrorKind.DESTINATION_UNAVAILABLE,
}
"""No rights; no warehouse in use; a lock that was waited for too long; a statement that ran too long."""
_RUNNING_CODES = ("333334", "333333", None)
"""The statement is under way, or waits for its turn."""


@dataclass(frozen=True, slots=True)
class Result:
    """Rows of a statement, values as text.

    Attributes:
        columns: names.
        rows: values; None is NULL.
    """

    columns: tuple[str, ...] = ()
    rows: list[list[str | None]] = field(default_factory=list)

    @property
    def value(self) -> str | None:
        """The first value of the first row, None when there is none."""
        return self.rows[0][0] if self.rows and self.rows[0] else None


class SqlSession:
    """Runs statements one by one; each is a session of its own at the service. Thread-safe."""

    def __init__(
        self,
        address: SnowflakeAddress,
        tokens: KeyPairTokens,
        transport: Transport,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        """Args:
        address: account, role, warehouse and database.
        tokens: signs requests.
        transport: sends them.
        clock: seconds.
        sleep: waits for seconds; the default can be ended by `cancel_waits`.
        """
        place = {
            "database": address.database,
            "schema": address.schema,
            "warehouse": address.warehouse,
            "role": address.role,
        }
        self._place = {name: value for name, value in place.items() if value}
        self._tokens = tokens
        self._transport = transport
        self._url = f"{account_url(address)}/api/v2/statements"
        self._clock = clock
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait

    def cancel_waits(self) -> None:
        """Stop waiting for results; statements under way are cancelled."""
        self._stopped.set()

    def run(
        self,
        statement: str,
        what: str,
        *,
        bindings: Sequence[str | None] = (),
        limit_seconds: float = DEFAULT_LIMIT_SECONDS,
    ) -> Result:
        """Run one statement and return its rows. A lost answer is asked for again, not run again.

        Args:
            statement: SQL of Snowflake.
            what: what it does, for error messages: the statement and the service's text may hold values of rows.
            bindings: texts for the statement's question marks; values of rows are kept out of the query history so.
            limit_seconds: after so long it is cancelled.

        Raises:
            RosettaError: a destination kind, with Snowflake's code in `detail` when it refused.
        """
        body = {"statement": statement, "timeout": int(limit_seconds), **self._place}
        if bindings:
            body["bindings"] = {str(n): {"type": "TEXT", "value": value} for n, value in enumerate(bindings, 1)}
        deadline = self._clock() + limit_seconds
        # The same request id with retry=true gives the first run's result instead of a second run.
        params = {"requestId": str(uuid.uuid4()), "retry": "true"}
        answer = self._call("POST", self._url, what, params=params, content=json.dumps(body).encode())
        handle = str(answer.get("statementHandle", ""))
        pauses = chain(POLL_SECONDS, repeat(POLL_SECONDS[-1]))
        while _is_running(answer):
            if not handle:
                raise RosettaError(ErrorKind.DESTINATION_UNAVAILABLE, f"Snowflake gave no handle when asked to {what}")
            if self._clock() > deadline or self._stopped.is_set():
                self.cancel(handle)
                raise RosettaError(
                    ErrorKind.DESTINATION_UNAVAILABLE,
                    f"Snowflake took longer than {limit_seconds:.0f} s to {what}: the statement was cancelled",
                )
            self._sleep(next(pauses))
            answer = self._call("GET", f"{self._url}/{handle}", what)
        return self._result(handle, answer, what)

    def cancel(self, handle: str) -> None:
        """Cancel a statement; one that has ended already is left alone."""
        try:
            self._call("POST", f"{self._url}/{handle}/cancel", "cancel a statement")
        except RosettaError:
            # It ended, or the service is gone: either way there is nothing left to cancel from here.
            return

    def _result(self, handle: str, answer: dict[str, Any], what: str) -> Result:
        meta = answer.get("resultSetMetaData") or {}
        columns = tuple(str(column["name"]) for column in meta.get("rowType") or ())
        rows: list[list[str | None]] = [list(map(_text, row)) for row in answer.get("data") or ()]
        for partition in range(1, len(meta.get("partitionInfo") or ())):
            more = self._call("GET", f"{self._url}/{handle}", what, params={"partition": str(partition)})
            rows += [list(map(_text, row)) for row in more.get("data") or ()]
        return Result(columns, rows)

    def _call(
        self, method: str, url: str, what: str, *, params: dict[str, str] | None = None, content: bytes | None = None
    ) -> dict[str, Any]:
        try:
            response = self._transport.send(
                method, url, self._headers, renew=self._tokens.renew, params=params, content=content
            )
            return json_object(response)
        except Refused as error:
            raise _statement_error(error, what) from None
        except (Unanswered, Unreachable) as error:
            raise classified(error, what) from None

    def _headers(self) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self._tokens.token()}",
            "X-Snowflake-Authorization-Token-Type": "KEYPAIR_JWT",
            "Content-Type": "application/json",
        }


def _is_running(answer: dict[str, Any]) -> bool:
    return "resultSetMetaData" not in answer and answer.get("code") in _RUNNING_CODES


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)


def _statement_error(error: Refused, what: str) -> RosettaError:
    if error.status not in (408, 422):
        return classified(error, what)
    kind = _CODE_KINDS.get(error.code) or (
        ErrorKind.DESTINATION_UNAVAILABLE if error.status == 408 else ErrorKind.DESTINATION_SCHEMA
    )
    return RosettaError(kind, f"Snowflake could not {what} (code {error.code})", {"code": error.code})


def literal(text: str | None) -> str:
    """Return a text as a literal of Snowflake, where a backslash escapes; NULL for None."""
    if text is None:
        return "NULL"
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def literals(texts: Sequence[str]) -> str:
    """Return texts as a list of literals."""
    return ", ".join(map(literal, texts))
