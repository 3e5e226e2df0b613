"""HTTP calls to Snowflake: back-off where the service asks for it, one renewal of a refused token, errors by class."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from cdc_runner.errors import ErrorKind, RosettaError

# httpx writes whole URLs at INFO.
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpcore").setLevel(logging.WARNING)

TIMEOUT = httpx.Timeout(connect=10.0, read=60.0, write=60.0, pool=10.0)
ATTEMPTS = 6
MAX_WAIT_SECONDS = 30.0
_SATURATED = frozenset(
    {
        "ReceiverSaturated",
        "MemoryThresholdExceeded",
        "MemoryThresholdExceededInContainer",
        "HttpRetryableClientError",
        "ERR_GENERAL_EXCEPTION_RETRY_REQUEST",
    }
)


@dataclass(slots=True)
class Refused(Exception):
    """The service answered with an error.

    Attributes:
        status: of HTTP.
        code: of Snowflake, empty when the answer has none.
        message: of Snowflake; may hold values of rows, so it is for matching only and never shown.
        retry_after: seconds that the service asks to wait, None when it does not.
    """

    status: int
    code: str
    message: str = ""
    retry_after: float | None = None

    @property
    def temporary(self) -> bool:
        """Whether the same request may be sent again after a while: nothing of it was done."""
        return self.status in (429, 502, 503, 504) or self.code in _SATURATED

    def __str__(self) -> str:
        return f"HTTP {self.status} {self.code}".strip()


class Unanswered(Exception):
    """The request left, but no answer came: whether the service did what was asked is not known."""


class Unreachable(Exception):
    """No connection: the service did nothing."""


class Transport:
    """Sends requests with retries. Thread-safe, as httpx's client is."""

    def __init__(
        self,
        *,
        verify: bool = True,
        sleep: Callable[[float], object] | None = None,
        attempts: int = ATTEMPTS,
        timeout: httpx.Timeout = TIMEOUT,
    ) -> None:
        """Args:
        verify: whether certificates are checked; never False outside of tests.
        sleep: waits for seconds; the default can be ended by `close`.
        attempts: most tries of one request.
        timeout: limits of one try.
        """
        headers = {"User-Agent": "rosetta/0.1", "Accept": "application/json"}
        self._client = httpx.Client(timeout=timeout, verify=verify, headers=headers)
        self._closing = threading.Event()
        self._sleep = sleep or self._closing.wait
        self._attempts = attempts

    def close(self) -> None:
        """End waiting and close connections."""
        self._closing.set()
        self._client.close()

    def send(
        self,
        method: str,
        url: str,
        headers: Callable[[], Mapping[str, str]],
        *,
        renew: Callable[[], object],
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
        repeatable: bool = True,
    ) -> httpx.Response:
        """Send a request until it is answered with success.

        Args:
            method: of HTTP.
            url: whole, path parts quoted.
            headers: gives authorization; asked before each try.
            renew: makes the next `headers` give another token; called once after 401.
            params: query.
            content: body.
            repeatable: whether doing it twice is the same as once; else a missing answer is not followed by a retry.

        Raises:
            Refused: the last answer, when the service does not take it.
            Unanswered: no answer to a request that is not repeatable, or to the last try.
            Unreachable: no connection at the last try.
        """
        request = _Request(self._client, method, url, headers, renew, params, content)
        retrying = Retrying(
            stop=stop_after_attempt(self._attempts),
            wait=_wait,
            retry=retry_if_exception(partial(self._worth_another_try, repeatable)),
            sleep=self._pause,
            reraise=True,
        )
        return retrying(request.attempt)

    def _worth_another_try(self, repeatable: bool, error: BaseException) -> bool:
        if self._closing.is_set():
            return False
        if isinstance(error, Refused):
            return error.temporary
        return isinstance(error, Unreachable) or (isinstance(error, Unanswered) and repeatable)

    def _pause(self, seconds: float) -> None:
        self._sleep(seconds)


@dataclass(slots=True)
class _Request:
    """A request that renews its token once, when the service refuses that; see `Transport.send`."""

    client: httpx.Client
    method: str
    url: str
    headers: Callable[[], Mapping[str, str]]
    renew: Callable[[], object]
    params: Mapping[str, str] | None
    content: bytes | None
    renewed: bool = False

    def attempt(self) -> httpx.Response:
        try:
            return self._once()
        except Refused as error:
            if error.status != 401 or self.renewed:
                raise
            self.renewed = True
            self.renew()
        return self._once()

    def _once(self) -> httpx.Response:
        headers = dict(self.headers())
        try:
            response = self.client.request(
                self.method, self.url, headers=headers, params=self.params, content=self.content
            )
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Unreachable(type(error).__name__) from None
        except RuntimeError:
            # The client was closed by another thread.
            raise Unreachable("closed") from None
        except httpx.RequestError as error:
            # The text of these errors may hold the URL, which holds tokens.
            raise Unanswered(type(error).__name__) from None
        if response.status_code < 400:
            return response
        raise _refusal(response)


def json_object(response: httpx.Response) -> dict[str, Any]:
    """Return the object that an answer holds; empty when it holds nothing, or other JSON.

    Raises:
        Unanswered: it is no JSON, so it is not the service that has answered, but something on the way to it.
    """
    if not response.content:
        return {}
    try:
        answer: Any = response.json()
    except ValueError:
        raise Unanswered("what came is no JSON") from None
    return answer if isinstance(answer, dict) else {}


def _refusal(response: httpx.Response) -> Refused:
    code = message = ""
    try:
        body: Any = response.json()
        if isinstance(body, dict):
            code = str(body.get("code") or body.get("error_code") or "")
            message = str(body.get("message") or "")
    except (json.JSONDecodeError, UnicodeDecodeError):
        pass
    after: float | None = None
    with contextlib.suppress(KeyError, ValueError):
        after = float(response.headers["Retry-After"])
    return Refused(response.status_code, code, message, after)


_backoff = wait_random_exponential(multiplier=0.5, max=10.0)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after if isinstance(error, Refused) else None
    return min(MAX_WAIT_SECONDS, asked if asked is not None else _backoff(state))


def classified(error: Refused | Unanswered | Unreachable, what: str) -> RosettaError:
    """Return the error of the engine for a failed call; no text of the service is in it.

    Args:
        error: what happened.
        what: what was being done, for the message.
    """
    if isinstance(error, Refused):
        detail: dict[str, str | int | float | bool | None] = {"status": error.status, "code": error.code}
        if error.status == 401:
            kind = ErrorKind.DESTINATION_AUTHENTICATION
        elif error.status == 403:
            kind = ErrorKind.DESTINATION_PERMISSION
        elif error.status == 404:
            kind = ErrorKind.DESTINATION_SCHEMA
        elif error.temporary or error.status >= 500 or error.status == 409:
            kind = ErrorKind.DESTINATION_UNAVAILABLE
        else:
            kind = ErrorKind.DESTINATION_SCHEMA
        return RosettaError(kind, f"Snowflake refused to {what}: {error}", detail)
    return RosettaError(ErrorKind.DESTINATION_UNAVAILABLE, f"Snowflake did not answer when asked to {what} ({error})")
