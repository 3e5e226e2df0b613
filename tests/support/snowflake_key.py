"""The key pair of the tests' user at Snowflake, made once."""

from __future__ import annotations

from functools import cache

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa


@cache
def user_key() -> rsa.RSAPrivateKey:
    """Return the key."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def private_key(passphrase: str | None = None) -> str:
    """The key of the tests' user, as PKCS#8 in PEM."""
    how: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        how = serialization.BestAvailableEncryption(passphrase.encode())
    return user_key().private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how).decode()
