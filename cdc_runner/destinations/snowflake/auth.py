"""Key-pair authentication: private keys, their fingerprint, and the JSON web tokens signed with them."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from pydantic import SecretStr

from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.spec import SnowflakeAddress

_LOOPBACK = ("http://127.0.0.1:", "http://localhost:")

LIFETIME_SECONDS = 3540
"""Snowflake takes a token for at most an hour after it was issued."""

SKEW_SECONDS = 60
"""Tokens say that they were issued so long ago: the service refuses one of the future, and clocks differ a little."""

RENEW_BEFORE_SECONDS = 300


def load_private_key(pem: SecretStr, passphrase: SecretStr | None) -> rsa.RSAPrivateKey:
    r"""Return the RSA key of a PEM text (PKCS#8, encrypted or not); `\n` as two characters is taken for a line end.

    Raises:
        RosettaError: CREDENTIAL_UNREADABLE; nothing of the key or the passphrase is in the message.
    """
    text = pem.get_secret_value().replace("\\n", "\n").replace("\r\n", "\n").strip() + "\n"
    password = passphrase.get_secret_value().encode() if passphrase is not None else None
    if password is not None and "BEGIN ENCRYPTED PRIVATE KEY" not in text:
        # A passphrase for a key that has none is a mix-up of files rather than an error of the key.
        raise RosettaError(
            ErrorKind.CREDENTIAL_UNREADABLE, "private_key_passphrase is given, but private_key is not encrypted"
        )
    try:
        key = serialization.load_pem_private_key(text.encode(), password)
    except TypeError:
        raise RosettaError(
            ErrorKind.CREDENTIAL_UNREADABLE, "private_key is encrypted: give private_key_passphrase"
        ) from None
    except ValueError:
        raise RosettaError(
            ErrorKind.CREDENTIAL_UNREADABLE, "private_key is not a PEM private key, or the passphrase is wrong"
        ) from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise RosettaError(ErrorKind.CREDENTIAL_UNREADABLE, "private_key is not an RSA key")
    return key


def fingerprint(key: rsa.RSAPrivateKey) -> str:
    """Return a key's fingerprint as `DESC USER` shows it in RSA_PUBLIC_KEY_FP."""
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return "SHA256:" + base64.b64encode(hashlib.sha256(public).digest()).decode()


def token_account(account: str) -> str:
    """Return an account as tokens name it: upper case, without the region of a locator (`xy12345.eu-west-1`)."""
    return account.partition(".")[0].upper()


def account_url(address: SnowflakeAddress) -> str:
    """Return the URL of an account; underscores, which no host name may have, become dashes."""
    if address.host:
        host = address.host.rstrip("/")
        url = host if "://" in host else f"https://{host}"
        if not url.startswith("https://") and not url.startswith(_LOOPBACK):
            raise RosettaError(ErrorKind.CONFIG_INVALID, "host of a Snowflake destination must be reached by https")
        return url
    return f"https://{address.account.lower().replace('_', '-')}.snowflakecomputing.com"


def expiry_of(token: str) -> float | None:
    """Return when a JSON web token expires, seconds since the epoch; None for a token of another kind."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims: Any = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return float(claims["exp"])
    except (ValueError, KeyError, TypeError):
        return None


class KeyPairTokens:
    """Signs tokens for one user, and gives the same one until it is about to expire. Thread-safe."""

    def __init__(self, address: SnowflakeAddress, clock: Callable[[], float] = time.time) -> None:
        """Args:
        address: account, user and key.
        clock: seconds since the epoch.

        Raises:
            RosettaError: CREDENTIAL_UNREADABLE.
        """
        self._key = load_private_key(address.private_key, address.private_key_passphrase)
        self.fingerprint = fingerprint(self._key)
        self._subject = f"{token_account(address.account)}.{address.user.upper()}"
        self._clock = clock
        self._lock = threading.Lock()
        self._token = ""
        self._expires = 0.0

    def token(self) -> str:
        """Return a token that is good for some minutes at least."""
        with self._lock:
            now = self._clock()
            if now > self._expires - RENEW_BEFORE_SECONDS:
                issued = int(now) - SKEW_SECONDS
                self._token, self._expires = self._sign(issued), issued + LIFETIME_SECONDS
            return self._token

    def renew(self) -> None:
        """Sign anew at the next use, after the service refused a token."""
        with self._lock:
            self._expires = 0.0

    def _sign(self, now: int) -> str:
        claims = {
            "iss": f"{self._subject}.{self.fingerprint}",
            "sub": self._subject,
            "iat": now,
            "exp": now + LIFETIME_SECONDS,
        }
        signed = f"{_encode({'alg': 'RS256', 'typ': 'JWT'})}.{_encode(claims)}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def _encode(part: dict[str, Any]) -> str:
    text = json.dumps(part, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()
