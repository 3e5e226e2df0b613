"""Files with secrets: mode 0600 from the first byte, and never half-written."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
from pathlib import Path

from pydantic import SecretStr

from cdc_runner.errors import ErrorKind, RosettaError

SECRET_FILE = "embedded.secret"
CREDENTIAL_KEY_FILE = "credential.key"


def write_private(path: Path, text: str) -> None:
    """Replace a file by one with this text that only its owner may read; a crash leaves the old or the new one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def server_passwords(home: Path, names: tuple[str, ...]) -> dict[str, SecretStr]:
    """Return the password of each server, inventing and storing those that are missing.

    Raises:
        RosettaError: the file is there but cannot be read as what it should be.
    """
    path = home / SECRET_FILE
    stored: dict[str, str] = {}
    if path.exists():
        try:
            stored = {str(name): str(value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}
        except (OSError, ValueError, AttributeError):
            raise RosettaError(ErrorKind.EMBEDDED_SERVER, f"{path} is damaged or not readable") from None
    missing = [name for name in names if name not in stored]
    if missing:
        stored.update({name: secrets.token_urlsafe(24) for name in missing})
        write_private(path, json.dumps(stored, indent=1))
    return {name: SecretStr(stored[name]) for name in names}


def credential_key(home: Path) -> SecretStr:
    """Return the key that credentials in the config database are encrypted with: base64 of 32 random bytes.

    It is made once; when `credential.key` is lost, stored credentials cannot be read any more.
    """
    path = home / CREDENTIAL_KEY_FILE
    if not path.exists():
        offer = home / f"{CREDENTIAL_KEY_FILE}.{secrets.token_hex(4)}"
        write_private(offer, base64.b64encode(secrets.token_bytes(32)).decode("ascii") + "\n")
        # A link never replaces: of two processes that start at once, both then read the key of the first.
        with contextlib.suppress(FileExistsError):
            os.link(offer, path)
        offer.unlink()
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    return SecretStr(path.read_text(encoding="utf-8").strip())
