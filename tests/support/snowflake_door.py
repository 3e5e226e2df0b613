"""Who may ask the strict local server for the Snowflake destination, and how it says no."""

from __future__ import annotations

import base64
import json
import secrets
import time
from email.message import Message

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from cdc_runner.destinations.snowflake.auth import fingerprint
from tests.support.snowflake_key import user_key

ACCOUNT, USER = "ACME-EU1", "ROSETTA"


class Answer(Exception):
    """Ends a request with an error of the protocol."""

    def __init__(self, status: int, code: str, message: str = "", **headers: str) -> None:
        super().__init__(code)
        self.status, self.code, self.message, self.headers = status, code, message, headers


class Door:
    """Checks the JWT's signature, claims and lifetime, gives scoped tokens for it, and checks those."""

    def __init__(self) -> None:
        self.token_seconds = 600.0
        """How long a scoped token is good for."""
        self._key = user_key()
        self._expiry: dict[str, float] = {}

    def check_jwt(self, headers: Message) -> None:
        """Raise an answer unless a request is the user's."""
        try:
            scheme, _, token = headers["Authorization"].partition(" ")
            assert scheme == "Bearer"
            assert headers["X-Snowflake-Authorization-Token-Type"] == "KEYPAIR_JWT"
            signed, _, signature = token.rpartition(".")
            self._key.public_key().verify(_decode(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
            header, claims = (json.loads(_decode(part)) for part in signed.split("."))
            assert header["alg"] == "RS256"
            assert claims["sub"] == f"{ACCOUNT}.{USER}"
            assert claims["iss"] == f"{ACCOUNT}.{USER}.{fingerprint(self._key)}"
            assert claims["iat"] <= time.time() < claims["exp"]
            assert claims["exp"] - claims["iat"] <= 3600
        except (AssertionError, InvalidSignature, KeyError, ValueError, TypeError):
            raise Answer(401, "390144", "JWT token is invalid") from None

    def scoped_token(self) -> str:
        """Return a new scoped token, which says when it ends."""
        expiry = time.time() + self.token_seconds
        claims = base64.urlsafe_b64encode(json.dumps({"exp": expiry}).encode()).decode().rstrip("=")
        token = f"h.{claims}.{secrets.token_urlsafe(24)}"
        self._expiry[token] = expiry
        return token

    def forget_tokens(self) -> None:
        """Take back all scoped tokens."""
        self._expiry.clear()

    def check_scoped(self, headers: Message) -> None:
        """Raise an answer unless a request has a scoped token that has not ended."""
        token = (headers.get("Authorization") or "").removeprefix("Bearer ")
        if self._expiry.get(token, 0.0) < time.time():
            raise Answer(401, "390303", "invalid scoped token")


def _decode(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
