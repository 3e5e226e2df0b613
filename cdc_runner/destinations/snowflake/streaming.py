"""Snowpipe Streaming over REST (high-performance architecture): host, scoped token, channels, rows, status."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from cdc_runner.destinations.snowflake.auth import KeyPairTokens, account_url, expiry_of
from cdc_runner.destinations.snowflake.transport import Refused, Transport, Unanswered, json_object
from cdc_runner.spec import SnowflakeAddress

TOKEN_RENEW_BEFORE_SECONDS = 60.0
TOKEN_LIFETIME_SECONDS = 540.0
"""What a scoped token without an `exp` is trusted for; tokens were seen to live about ten minutes."""
_HOST = re.compile(r"[A-Za-z0-9.-]+(:[0-9]+)?")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=:%-]+")


@dataclass(frozen=True, slots=True)
class Pipe:
    """A pipe by its stored names."""

    database: str
    schema: str
    name: str

    @property
    def path(self) -> str:
        """Its place in URLs."""
        parts = ("databases", self.database, "schemas", self.schema, "pipes", self.name)
        return "/".join(quote(part, safe="") for part in parts)


@dataclass(frozen=True, slots=True)
class ChannelStatus:
    """What the service says of a channel.

    Attributes:
        code: ACTIVE or SUCCESS, else the reason why it must be opened anew.
        committed: offset token up to which rows are durable; None before the first.
        rows_inserted: since the channel was made.
        rows_error: rows that were rejected, likewise.
        error_upper_bound: no rejected row has a token above it.
    """

    code: str
    committed: str | None
    rows_inserted: int
    rows_error: int
    error_upper_bound: str | None = None

    @property
    def usable(self) -> bool:
        """Whether rows can be appended."""
        return self.code.upper() in ("ACTIVE", "SUCCESS", "0", "")


class StreamingService:
    """Calls of the streaming API for one account. Thread-safe."""

    def __init__(
        self,
        address: SnowflakeAddress,
        tokens: KeyPairTokens,
        transport: Transport,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Args:
        address: the account.
        tokens: signs what goes to the account's host.
        transport: sends requests.
        clock: seconds since the epoch.
        """
        self._account = account_url(address)
        self._tokens = tokens
        self._transport = transport
        self._clock = clock
        self._lock = threading.Lock()
        self._host: str | None = None
        self._scoped = ""
        self._scoped_until = 0.0

    # -- where and as whom -------------------------------------------------------------------------------------------

    def host(self) -> str:
        """Return the host for rows, asked for once. The answer is text or JSON; underscores become dashes."""
        with self._lock:
            if self._host is None:
                url = f"{self._account}/v2/streaming/hostname"
                response = self._transport.send("GET", url, self._account_headers, renew=self._tokens.renew)
                self._host = parse_hostname(response.text)
            return self._host

    def exchange(self) -> None:
        """Get a scoped token unless there is a good one.

        Raises:
            Refused, Unanswered, Unreachable: see `Transport.send`.
        """
        self._scoped_token()

    def _account_headers(self) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self._tokens.token()}",
            "X-Snowflake-Authorization-Token-Type": "KEYPAIR_JWT",
        }

    def _scoped_headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._scoped_token()}"}

    def _scoped_token(self) -> str:
        host = self.host()
        with self._lock:
            if self._clock() > self._scoped_until - TOKEN_RENEW_BEFORE_SECONDS:
                form = f"grant_type={quote('urn:ietf:params:oauth:grant-type:jwt-bearer', safe='')}&scope={quote(host)}"
                response = self._transport.send(
                    "POST",
                    f"{self._account}/oauth/token",
                    lambda: self._account_headers() | {"Content-Type": "application/x-www-form-urlencoded"},
                    renew=self._tokens.renew,
                    content=form.encode(),
                )
                self._scoped = parse_token(response.text)
                self._scoped_until = expiry_of(self._scoped) or self._clock() + TOKEN_LIFETIME_SECONDS
            return self._scoped

    def _renew_scoped(self) -> None:
        with self._lock:
            self._scoped_until = 0.0

    # -- channels ----------------------------------------------------------------------------------------------------

    def open_channel(self, pipe: Pipe, channel: str) -> tuple[str, ChannelStatus]:
        """Open a channel and return its continuation token and status. What another client has open is cut off.

        Raises:
            Refused: 409 while rows are on their way, which an opening would throw away, and the other refusals.
            Unanswered, Unreachable: see `Transport.send`.
        """
        body = json.dumps({"fail_on_uncommitted_rows": True}).encode()
        answer = self._json("PUT", self._channel_url(pipe, channel), params=_request_id(), content=body)
        status = _status(answer.get("channel_status") or {})
        token = answer.get("next_continuation_token")
        if not token:
            raise Unanswered("what came has no continuation token")
        return str(token), status

    def append(self, pipe: Pipe, channel: str, continuation: str, rows: Rows) -> str:
        """Send rows and return the next continuation token. Success does not mean that they are durable.

        Raises:
            Unanswered: nobody knows whether the service has the rows.
            Refused, Unreachable: it has not.
        """
        url = f"{self._url(f'/v2/streaming/data/{pipe.path}')}/channels/{quote(channel, safe='')}/rows"
        params = {
            "continuationToken": continuation,
            "startOffsetToken": rows.first,
            "endOffsetToken": rows.last,
            # What an older version of the protocol calls the end.
            "offsetToken": rows.last,
            **_request_id(),
        }

        def headers() -> dict[str, str]:
            kind = {"Content-Type": "application/x-ndjson", "Content-Encoding": rows.encoding}
            return self._scoped_headers() | kind

        response = self._transport.send(
            "POST", url, headers, renew=self._renew_scoped, params=params, content=rows.body, repeatable=False
        )
        return str(json_object(response).get("next_continuation_token", ""))

    def statuses(self, pipe: Pipe, channels: Sequence[str]) -> dict[str, ChannelStatus]:
        """Return the status of channels of one pipe; one that does not exist is not in the result."""
        body = json.dumps({"channel_names": list(channels)}).encode()
        answer = self._json("POST", self._url(f"/v2/streaming/{pipe.path}:bulk-channel-status"), content=body)
        found = answer.get("channel_statuses") or {}
        return {str(name): _status(value) for name, value in found.items()}

    def drop_channel(self, pipe: Pipe, channel: str) -> None:
        """Drop a channel; one that is not there is fine. Refused with 409 while rows are on their way."""
        try:
            self._json("DELETE", self._channel_url(pipe, channel), params={"fail_on_uncommitted_rows": "true"})
        except Refused as error:
            if error.status != 404:
                raise

    def _channel_url(self, pipe: Pipe, channel: str) -> str:
        return f"{self._url(f'/v2/streaming/{pipe.path}')}/channels/{quote(channel, safe='')}"

    def _url(self, path: str) -> str:
        scheme = self._account.partition("://")[0]
        return f"{scheme}://{self.host()}{path}"

    def _json(
        self, method: str, url: str, *, params: dict[str, str] | None = None, content: bytes | None = None
    ) -> dict[str, Any]:
        response = self._transport.send(
            method,
            url,
            lambda: self._scoped_headers() | {"Content-Type": "application/json"},
            renew=self._renew_scoped,
            params=params,
            content=content,
        )
        return json_object(response)


@dataclass(frozen=True, slots=True)
class Rows:
    """One request of rows.

    Attributes:
        body: NDJSON, compressed.
        encoding: gzip or zstd.
        raw_bytes: before compression.
        count: rows.
        first: offset token of the first row.
        last: offset token of the last row.
    """

    body: bytes
    encoding: str
    raw_bytes: int
    count: int
    first: str
    last: str


def parse_hostname(answer: str) -> str:
    """Return the host of an answer, which is plain text or JSON.

    Raises:
        Unanswered: it is neither, so something on the way to the service has answered.
    """
    text = answer.strip()
    if text[:1] in ("{", '"'):
        try:
            value: Any = json.loads(text)
        except ValueError:
            raise Unanswered("what came is no JSON") from None
        text = str(value.get("hostname", "")) if isinstance(value, dict) else str(value)
    host = text.replace("_", "-")
    if not _HOST.fullmatch(host):
        raise Unanswered("what came is no host")
    return host


def parse_token(answer: str) -> str:
    """Return the token of an answer, which is plain text or a JSON string.

    Raises:
        Unanswered: it is none, so something on the way to the service has answered.
    """
    token = answer.strip().strip('"')
    if not _TOKEN.fullmatch(token):
        raise Unanswered("what came is no token")
    return token


def _status(value: dict[str, Any]) -> ChannelStatus:
    committed = value.get("last_committed_offset_token")
    return ChannelStatus(
        code=str(value.get("channel_status_code", "")),
        committed=None if committed in (None, "") else str(committed),
        rows_inserted=int(value.get("rows_inserted") or 0),
        rows_error=int(value.get("rows_error_count") or value.get("rows_errors") or 0),
        error_upper_bound=value.get("last_error_offset_upper_bound"),
    )


def _request_id() -> dict[str, str]:
    return {"requestId": str(uuid.uuid4())}
