from __future__ import annotations

import base64
import os

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cdc_runner.catalog.credentials import CredentialPlace, Keyring, generate_key, key_id, parse_key
from cdc_runner.catalog.environment import read_environment
from cdc_runner.errors import ErrorKind, RosettaError

PLACE = CredentialPlace("sources", "password", 7)


@pytest.fixture
def keyring() -> Keyring:
    return Keyring(parse_key(generate_key()))


def sealed(stored: str) -> bytes:
    return base64.b64decode(stored.partition(".")[2])


def test_every_encryption_has_its_own_nonce(keyring: Keyring):
    nonces = {sealed(keyring.encrypt("secret", PLACE))[:12] for _ in range(10_000)}
    assert len(nonces) == 10_000


def test_nonces_come_from_the_operating_system(keyring: Keyring, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "urandom", lambda count: b"\x07" * count)
    assert sealed(keyring.encrypt("secret", PLACE))[:12] == b"\x07" * 12


def test_the_stored_form_is_key_id_and_base64_of_nonce_ciphertext_tag(keyring: Keyring):
    stored = keyring.encrypt("secret", PLACE)
    identifier, _, _ = stored.partition(".")
    raw = sealed(stored)
    assert identifier == key_id(keyring.current)
    assert len(raw) == 12 + len("secret") + 16
    # Readable by any AES-GCM implementation that knows the associated data.
    assert AESGCM(keyring.current).decrypt(raw[:12], raw[12:], b"rosetta:1:sources:password:7") == b"secret"


# NIST CAVP gcmEncryptExtIV256.rsp (96-bit IV, 128-bit tag); test cases 13, 14, 16 of the GCM specification.
VECTORS = [
    ("b52c505a37d78eda5dd34f20c22540ea1b58963cf8e5bf8ffa85f9f2492505b4", "516c33929df5a3284ff463d7", "", "",
     "bdc1ac884d332457a1d2664f168c76f0"),
    ("0000000000000000000000000000000000000000000000000000000000000000", "000000000000000000000000", "", "",
     "530f8afbc74536b9a963b4f1c4cb738b"),
    ("0000000000000000000000000000000000000000000000000000000000000000", "000000000000000000000000",
     "00000000000000000000000000000000", "", "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"),
    ("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308", "cafebabefacedbaddecaf888",
     "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
     "feedfacedeadbeeffeedfacedeadbeefabaddad2",
     "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "nonce", "plain", "associated", "result"), VECTORS)
def test_the_cipher_is_aes_256_gcm(key: str, nonce: str, plain: str, associated: str, result: str):
    cipher = AESGCM(bytes.fromhex(key))
    assert cipher.encrypt(bytes.fromhex(nonce), bytes.fromhex(plain), bytes.fromhex(associated)).hex() == result


def test_a_flip_of_any_byte_is_refused(keyring: Keyring):
    stored = keyring.encrypt("secret", PLACE)
    raw = sealed(stored)
    for index in range(len(raw)):
        damaged = bytearray(raw)
        damaged[index] ^= 1
        text = f"{keyring.current_id}.{base64.b64encode(bytes(damaged)).decode()}"
        with pytest.raises(RosettaError, match="cannot decrypt credential") as caught:
            keyring.decrypt(text, PLACE)
        assert caught.value.kind is ErrorKind.CREDENTIAL_UNREADABLE


@pytest.mark.parametrize(
    "damage", ["", "secret", "no base64 !", "{id}.", "{id}.AAAA", "{id}.!!!!", "{id}.{cut}", ".AAAA"]
)
def test_other_texts_are_refused_and_never_used_as_secret(keyring: Keyring, damage: str):
    stored = keyring.encrypt("secret", PLACE)
    text = damage.format(id=keyring.current_id, cut=stored.partition(".")[2][:-8])
    with pytest.raises(RosettaError, match=r"cannot decrypt credential sources\.password of row 7, key id"):
        keyring.decrypt(text, PLACE)


def test_another_key_is_refused_by_its_id(keyring: Keyring):
    other = Keyring(parse_key(generate_key()))
    stored = other.encrypt("secret", PLACE)
    with pytest.raises(RosettaError, match=f"key id {other.current_id}"):
        keyring.decrypt(stored, PLACE)
    # Even with a forged key id.
    with pytest.raises(RosettaError, match="cannot decrypt"):
        keyring.decrypt(f"{keyring.current_id}.{stored.partition('.')[2]}", PLACE)


@pytest.mark.parametrize(
    "place",
    [
        CredentialPlace("sources", "password", 8),
        CredentialPlace("destinations", "password", 7),
        CredentialPlace("sources", "private_key", 7),
    ],
)
def test_a_value_moved_to_another_row_or_column_is_refused(keyring: Keyring, place: CredentialPlace):
    stored = keyring.encrypt("secret", PLACE)
    assert keyring.decrypt(stored, PLACE).get_secret_value() == "secret"
    with pytest.raises(RosettaError, match="another row or column"):
        keyring.decrypt(stored, place)


def test_rotation_reads_old_and_new(keyring: Keyring):
    stored = keyring.encrypt("secret", PLACE)
    rotated = Keyring(parse_key(generate_key()), (keyring.current,))
    assert rotated.decrypt(stored, PLACE).get_secret_value() == "secret"
    assert not rotated.is_current(stored)
    again = rotated.encrypt(rotated.decrypt(stored, PLACE), PLACE)
    assert rotated.is_current(again)
    assert Keyring(rotated.current).decrypt(again, PLACE).get_secret_value() == "secret"


@pytest.mark.parametrize(
    "value",
    [
        base64.b64encode(os.urandom(31)).decode(),
        base64.b64encode(os.urandom(16)).decode(),
        os.urandom(32).hex(),
        "a long enough passphrase that is not base64",
        "",
        None,
    ],
)
def test_a_wrong_key_is_refused_and_the_variable_named(value: str | None):
    variables = {} if value is None else {"CREDENTIAL_ENCRYPTION_KEY": value}
    with pytest.raises(RosettaError, match="CREDENTIAL_ENCRYPTION_KEY") as caught:
        Keyring.from_environment(read_environment(variables))
    assert caught.value.kind is ErrorKind.CREDENTIAL_KEY_INVALID
    assert not value or value not in str(caught.value)


def test_a_wrong_old_key_is_refused():
    variables = {"CREDENTIAL_ENCRYPTION_KEY": generate_key(), "CREDENTIAL_ENCRYPTION_KEYS_OLD": "AAAA"}
    with pytest.raises(RosettaError, match="CREDENTIAL_ENCRYPTION_KEYS_OLD"):
        Keyring.from_environment(read_environment(variables))


def test_nothing_shows_a_key_or_secret(keyring: Keyring):
    environment = read_environment({"CREDENTIAL_ENCRYPTION_KEY": "canary-key", "CONFIG_DATABASE_URL": "canary-url"})
    assert "canary" not in repr(environment)
    assert repr(keyring) == "Keyring()"
