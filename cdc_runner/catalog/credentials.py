"""Encryption of stored secrets: AES-256-GCM, bound to the place where the secret is stored.

A stored text is `<key id>.<base64(12-byte nonce, ciphertext, 16-byte tag)>`. The associated data names table, column
and row id, so that a value copied to another row or column is refused. The key id is the first 8 hex digits of a hash
of the key; it tells which of several keys a value needs, and nothing about the key.

    keyring = Keyring.from_environment()
    stored = keyring.encrypt("secret", CredentialPlace("sources", "password", 7))
    keyring.decrypt(stored, CredentialPlace("sources", "password", 7))
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr

from cdc_runner.catalog.environment import Environment, read_environment
from cdc_runner.errors import ErrorKind, RosettaError

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
KEY_VARIABLE = "CREDENTIAL_ENCRYPTION_KEY"
OLD_KEYS_VARIABLE = "CREDENTIAL_ENCRYPTION_KEYS_OLD"


@dataclass(frozen=True, slots=True)
class CredentialPlace:
    """Where a secret is stored: table, column and row id."""

    table: str
    column: str
    row_id: int

    @property
    def associated_data(self) -> bytes:
        """The place as bytes; the parts are names of ours and a number, so that no two places read the same."""
        return f"rosetta:1:{self.table}:{self.column}:{self.row_id}".encode()

    def __str__(self) -> str:
        return f"{self.table}.{self.column} of row {self.row_id}"


def generate_key() -> str:
    """Return a new key for CREDENTIAL_ENCRYPTION_KEY: base64 of 32 random bytes."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def parse_key(text: str, variable: str = KEY_VARIABLE) -> bytes:
    """Return the 32 bytes of a key.

    Raises:
        RosettaError: CREDENTIAL_KEY_INVALID, naming the variable; never the text.
    """
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        raise RosettaError(ErrorKind.CREDENTIAL_KEY_INVALID, f"{variable} is not base64 text") from None
    if len(key) != KEY_BYTES:
        raise RosettaError(
            ErrorKind.CREDENTIAL_KEY_INVALID,
            f"{variable} is base64 of {len(key)} bytes; exactly {KEY_BYTES} are needed",
        )
    return key


def key_id(key: bytes) -> str:
    """Return the public name of a key."""
    return hashlib.sha256(b"rosetta key id\x00" + key).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Keyring:
    """The key that encrypts, and older ones that still decrypt."""

    current: bytes = field(repr=False)
    old: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def from_environment(cls, environment: Environment | None = None) -> Keyring:
        """Return the keys of CREDENTIAL_ENCRYPTION_KEY and CREDENTIAL_ENCRYPTION_KEYS_OLD.

        Raises:
            RosettaError: CREDENTIAL_KEY_INVALID, a key is missing or is not base64 of 32 bytes.
        """
        known = environment or read_environment()
        if known.encryption_key is None:
            raise RosettaError(ErrorKind.CREDENTIAL_KEY_INVALID, f"{KEY_VARIABLE} is not set")
        return cls(
            parse_key(known.encryption_key.get_secret_value()),
            tuple(parse_key(key.get_secret_value(), OLD_KEYS_VARIABLE) for key in known.old_encryption_keys),
        )

    @property
    def current_id(self) -> str:
        """Key id that new values get."""
        return key_id(self.current)

    def encrypt(self, secret: SecretStr | str, place: CredentialPlace) -> str:
        """Return the stored text of a secret; a new random nonce each time."""
        plain = secret.get_secret_value() if isinstance(secret, SecretStr) else secret
        nonce = os.urandom(NONCE_BYTES)
        try:
            data = plain.encode()
        except UnicodeEncodeError:
            raise RosettaError(ErrorKind.CONFIG_INVALID, f"the secret for {place} is not valid text") from None
        sealed = nonce + AESGCM(self.current).encrypt(nonce, data, place.associated_data)
        return f"{self.current_id}.{base64.b64encode(sealed).decode()}"

    def decrypt(self, stored: str, place: CredentialPlace) -> SecretStr:
        """Return the secret of a stored text.

        Raises:
            RosettaError: CREDENTIAL_UNREADABLE: damaged, stored elsewhere, or of a key that is not here.
        """
        identifier, separator, encoded = stored.partition(".")
        if not separator:
            raise _unreadable(place, "unknown", "it is not in the stored form")
        key = next((key for key in (self.current, *self.old) if key_id(key) == identifier), None)
        if key is None:
            raise _unreadable(place, identifier, f"that key is neither in {KEY_VARIABLE} nor in {OLD_KEYS_VARIABLE}")
        try:
            sealed = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise _unreadable(place, identifier, "it is not base64 text") from None
        if len(sealed) < NONCE_BYTES + TAG_BYTES:
            raise _unreadable(place, identifier, "it is cut short")
        try:
            plain = AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place.associated_data)
        except InvalidTag:
            raise _unreadable(place, identifier, "it was changed, or belongs to another row or column") from None
        return SecretStr(plain.decode())

    def is_current(self, stored: str) -> bool:
        """Tell whether a stored text was made with the current key."""
        return stored.partition(".")[0] == self.current_id


def _unreadable(place: CredentialPlace, identifier: str, reason: str) -> RosettaError:
    shown = identifier if len(identifier) == 8 and identifier.isalnum() else "unknown"
    return RosettaError(
        ErrorKind.CREDENTIAL_UNREADABLE,
        f"cannot decrypt credential {place}, key id {shown}: {reason}",
        {"table": place.table, "column": place.column, "row_id": place.row_id, "key_id": shown},
    )
