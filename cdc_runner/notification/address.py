"""Where a notification may be sent: public addresses only, unless the operator allows others.

The name is resolved once, the answer is checked, and the connection goes to the very address that was checked: a name
that resolves to something else a moment later leads nowhere.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from cdc_runner.errors import ErrorKind, RosettaError


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An HTTP address that may be called.

    Attributes:
        url: with the address in place of the name.
        host_header: the name and port of before.
        server_name: the name that the certificate must be of.
    """

    url: str
    host_header: str
    server_name: str


def check_url(url: str, *, allow_internal: bool) -> None:
    """Refuse an address that is never right, without asking a name server.

    Raises:
        RosettaError: CONFIG_INVALID; the address is not repeated, as it may hold a token.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused("is not a URL") from None
    if parts.scheme not in (("http", "https") if allow_internal else ("https",)):
        raise _refused("must begin with https:// (http:// only with the setting notification_allow_internal)")
    if not parts.hostname or port == 0:
        raise _refused("names no host")
    if parts.username is not None or parts.password is not None:
        raise _refused("must not hold a user name or password")
    if any(ord(character) <= 32 or ord(character) == 127 for character in url):
        raise _refused("holds a space or a control character")


def resolve(url: str, *, allow_internal: bool) -> Endpoint:
    """Return the endpoint of an address, resolved and checked.

    Raises:
        RosettaError: CONFIG_INVALID for an address that is not allowed, NOTIFICATION_FAILED when it does not resolve.
    """
    check_url(url, allow_internal=allow_internal)
    parts = urlsplit(url)
    host = parts.hostname or ""
    address = resolve_host(host, parts.port or (443 if parts.scheme == "https" else 80), allow_internal=allow_internal)
    literal = f"[{address}]" if ":" in address else address
    port = f":{parts.port}" if parts.port else ""
    shown = f"[{host}]" if ":" in host else host
    target = parts._replace(netloc=f"{literal}{port}", fragment="").geturl()
    return Endpoint(target, f"{shown}{port}", host)


def resolve_host(host: str, port: int, *, allow_internal: bool) -> str:
    """Return an address of a host that may be called.

    Raises:
        RosettaError: CONFIG_INVALID for one that is not allowed, NOTIFICATION_FAILED when it does not resolve.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise RosettaError(ErrorKind.NOTIFICATION_FAILED, "the host of the channel does not resolve") from None
    addresses = [str(entry[4][0]) for entry in found]
    # All of them: a name with one public and one private address is a known trick.
    if not allow_internal and not all(is_public(address) for address in addresses):
        raise _refused("leads into the own network (setting notification_allow_internal)")
    return addresses[0].partition("%")[0]


def is_public(address: str) -> bool:
    """Tell whether an address is one of the public internet."""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(known, ipaddress.IPv6Address):
        inner = known.ipv4_mapped or known.sixtofour or (known.teredo[1] if known.teredo else None)
        if inner is not None:
            return is_public(str(inner))
    return known.is_global and not known.is_multicast


def _refused(reason: str) -> RosettaError:
    return RosettaError(ErrorKind.CONFIG_INVALID, f"the address of the channel {reason}")
