"""Sends one message to one channel. Every call ends in bounded time; no error tells an address or a token."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from urllib.parse import quote, quote_plus, urlsplit

import httpx

from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.notification.address import resolve, resolve_host
from cdc_runner.notification.channel import Channel
from cdc_runner.notification.message import Message
from cdc_runner.notification.quiet import quiet_libraries

_TIMEOUT = httpx.Timeout(8.0, connect=5.0)
TELEGRAM_LIMIT = 4096
SLACK_LIMIT = 3000
TEXT_LIMIT = 8000
SIGNATURE_HEADER = "X-Rosetta-Signature"
TIMESTAMP_HEADER = "X-Rosetta-Timestamp"
DELIVERY_HEADER = "X-Rosetta-Delivery"


def send(channel: Channel, message: Message, delivery: str, *, allow_internal: bool) -> None:
    """Send a message and return when the receiver has taken it.

    Args:
        channel: where.
        message: what.
        delivery: the same at each attempt, so that a receiver can tell a repeated one.
        allow_internal: addresses inside the own network are allowed.

    Raises:
        RosettaError: NOTIFICATION_FAILED, or CONFIG_INVALID for an address that is not allowed.
    """
    with quiet_libraries() as said:
        _SENDERS[channel.type](channel, message, delivery, allow_internal, said)


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """Return the signature of a webhook's body: HMAC-SHA256 over the timestamp, a dot and the body."""
    return "v1=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def _webhook(channel: Channel, message: Message, delivery: str, allow_internal: bool, said: list[str]) -> None:
    body = json.dumps({"delivery": delivery, **message.as_json()}, ensure_ascii=False).encode()
    headers = {DELIVERY_HEADER: delivery}
    if channel.secret("signing_secret"):
        timestamp = str(int(time.time()))
        headers |= {
            TIMESTAMP_HEADER: timestamp,
            SIGNATURE_HEADER: sign(channel.secret("signing_secret"), timestamp, body),
        }
    _post(channel.secret("url"), body, headers, allow_internal)


def _telegram(channel: Channel, message: Message, delivery: str, allow_internal: bool, said: list[str]) -> None:
    # No parse_mode: the text is shown as it is, whatever characters it holds.
    headline = message.headline
    text = f"{headline}\n{message.body(TELEGRAM_LIMIT - len(headline) - 8)}"
    content = {"chat_id": channel.config["chat_id"], "text": text, "link_preview_options": {"is_disabled": True}}
    base = str(channel.config.get("api_url", "https://api.telegram.org")).rstrip("/")
    url = f"{base}/bot{quote(channel.secret('bot_token'), safe=':')}/sendMessage"
    _post(url, json.dumps(content).encode(), {}, allow_internal)


def _slack(channel: Channel, message: Message, delivery: str, allow_internal: bool, said: list[str]) -> None:
    text = f"{message.headline}\n{message.body(SLACK_LIMIT - len(message.headline) - 8)}"
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    _post(channel.secret("url"), json.dumps({"text": escaped}).encode(), {}, allow_internal)


def _post(url: str, body: bytes, headers: dict[str, str], allow_internal: bool) -> None:
    endpoint = resolve(url, allow_internal=allow_internal)
    try:
        with (
            # Neither a proxy of the environment nor a redirect may lead elsewhere than to the checked address.
            httpx.Client(timeout=_TIMEOUT, trust_env=False, follow_redirects=False) as client,
            client.stream(
                "POST",
                endpoint.url,
                content=body,
                headers={"Host": endpoint.host_header, "Content-Type": "application/json", **headers},
                extensions={"sni_hostname": endpoint.server_name},
            ) as answer,
        ):
            _check(answer)
    except httpx.TimeoutException:
        raise _failed("did not answer in time") from None
    except httpx.HTTPError as error:
        # The texts of these errors may hold the address.
        raise _failed(f"could not be reached ({type(error).__name__})") from None


def _check(answer: httpx.Response) -> None:
    code = answer.status_code
    if 200 <= code < 300:
        return
    if code in (401, 403):
        raise _failed(f"refused the credentials (HTTP {code})")
    if 300 <= code < 400:
        raise _failed(f"answered with a redirect, which is not followed (HTTP {code})")
    wait = answer.headers.get("Retry-After", "")
    detail = {"retry_after_seconds": min(int(wait), 3600)} if wait.isdigit() else {}
    raise RosettaError(ErrorKind.NOTIFICATION_FAILED, f"the channel answered HTTP {code}", dict(detail))


def _email(channel: Channel, message: Message, delivery: str, allow_internal: bool, said: list[str]) -> None:
    config = channel.config
    # The mail library takes the name, which the certificate is for; it is resolved again by it.
    resolve_host(config["host"], config["port"], allow_internal=allow_internal)
    scheme = "mailto" if config["security"] == "none" else "mailtos"
    user = quote(config["username"], safe="") if config.get("username") else ""
    login = f"{user}:{quote(channel.secret('password'), safe='')}@" if user else ""
    options = {
        "smtp": config["host"],
        "from": config["sender"],
        "to": ",".join(config["recipients"]),
        "mode": {"starttls": "starttls", "ssl": "ssl", "none": "insecure"}[config["security"]],
        "format": "text",
    }
    query = "&".join(f"{name}={quote_plus(value)}" for name, value in options.items())
    _apprise_notify(f"{scheme}://{login}{config['host']}:{config['port']}?{query}", channel, message, said)


def _apprise(channel: Channel, message: Message, delivery: str, allow_internal: bool, said: list[str]) -> None:
    host = urlsplit(channel.secret("url")).hostname
    if not allow_internal and host and ("." in host or ":" in host or host == "localhost"):
        resolve_host(host, 443, allow_internal=False)
    _apprise_notify(channel.secret("url"), channel, message, said)


def _apprise_notify(url: str, channel: Channel, message: Message, said: list[str]) -> None:
    # Imported here: it takes half a second, and most installations have a webhook only.
    import apprise

    kinds = {
        "INFO": apprise.NotifyType.INFO,
        "WARNING": apprise.NotifyType.WARNING,
        "ERROR": apprise.NotifyType.FAILURE,
    }
    kind = apprise.NotifyType.SUCCESS if message.announcement == "RESOLVED" else kinds[message.severity]
    # Neither attachments nor configuration files: an address must not make it read something here.
    sender = apprise.Apprise()
    with quiet_libraries() as warnings:
        if not sender.add(url):
            raise RosettaError(ErrorKind.CONFIG_INVALID, "the address of the channel is none that apprise knows")
        sent = sender.notify(body=message.body(TEXT_LIMIT), title=message.headline, notify_type=kind)
    if not sent:
        raise _failed(_without_secrets(warnings[-1] if warnings else "did not take the message", channel))


def _without_secrets(text: str, channel: Channel) -> str:
    for secret in channel.secrets.values():
        plain = secret.get_secret_value()
        for form in {plain, quote(plain, safe=""), quote_plus(plain)}:
            text = text.replace(form, "***")
    # An address of apprise is itself a secret, in pieces too.
    return "did not take the message" if channel.type == "apprise" else text[:300]


def _failed(reason: str) -> RosettaError:
    return RosettaError(ErrorKind.NOTIFICATION_FAILED, f"the channel {reason}")


_Sender = Callable[[Channel, Message, str, bool, list[str]], None]
_SENDERS: dict[str, _Sender] = {
    "webhook": _webhook,
    "telegram": _telegram,
    "slack": _slack,
    "email": _email,
    "apprise": _apprise,
}
