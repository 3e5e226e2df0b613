"""The operating-system account of embedded PostgreSQL, and a place on disk that it can reach.

PostgreSQL refuses to run as root, so root hands it to an unprivileged account. That account often cannot enter the
directory of the one who calls: `/root` has mode 0700. Permissions of directories that are not ours are never changed;
instead the servers' files go to a directory outside, and `ROSETTA_HOME/postgres` is a symbolic link to it.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from cdc_runner.errors import ErrorKind, RosettaError

_log = structlog.get_logger(__name__)

_ACCOUNT_NAMES = ("nobody", "daemon")
_MARKER = "rosetta-home"
"""File in an outside directory that names the ROSETTA_HOME it belongs to."""


@dataclass(frozen=True, slots=True)
class Account:
    """An account that server processes run under.

    Attributes:
        uid, gid: numeric ids.
        name: as the account database spells it.
        changes: true when processes must change to it, false when the caller is this account already.
    """

    uid: int
    gid: int
    name: str
    changes: bool

    def subprocess_options(self) -> dict[str, Any]:
        """Return the keyword arguments that make `subprocess` start a process under this account."""
        if not self.changes:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path) -> None:
        """Give a file or directory to this account."""
        if self.changes:
            os.chown(path, self.uid, self.gid)


def server_account() -> Account:
    """Return the account for PostgreSQL: the caller, or an unprivileged one when the caller is root.

    Raises:
        RosettaError: the caller is root and the machine has no unprivileged account, or the caller has no name, which
            `initdb` demands.
    """
    uid = os.geteuid()
    if uid != 0:
        try:
            return Account(uid, os.getegid(), pwd.getpwuid(uid).pw_name, changes=False)
        except KeyError:
            raise RosettaError(
                ErrorKind.EMBEDDED_SERVER,
                f"user id {uid} has no entry in the account database; embedded PostgreSQL needs one",
            ) from None
    for name in _ACCOUNT_NAMES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(entry.pw_uid, entry.pw_gid, name, changes=True)
    raise RosettaError(
        ErrorKind.EMBEDDED_SERVER,
        f"embedded PostgreSQL cannot run as root and found none of the accounts {', '.join(_ACCOUNT_NAMES)}",
    )


def can_enter(path: Path, account: Account) -> bool:
    """Tell whether the account may enter a directory; asked of the kernel, so that access lists count too."""
    if not account.changes:
        return os.access(path, os.X_OK)
    check = ["/bin/sh", "-c", 'test -d "$1" && test -x "$1"', "sh", str(path)]
    try:
        return subprocess.run(check, cwd="/", env={}, check=False, **account.subprocess_options()).returncode == 0
    except OSError as error:
        raise RosettaError(
            ErrorKind.EMBEDDED_SERVER, f"cannot start a process as {account.name}: {error.strerror}"
        ) from error


def server_root(home: Path, account: Account) -> Path:
    """Return the directory for PostgreSQL servers of a ROSETTA_HOME; it exists and the account can enter it.

    It is `home/postgres`, or where that symbolic link leads. The same home gives the same directory every time.
    """
    inside = home / "postgres"
    if inside.is_symlink():
        target = inside.resolve()
        if target.is_dir() and can_enter(target, account):
            return target
        raise RosettaError(
            ErrorKind.EMBEDDED_SERVER, f"{inside} leads to {target}, which is gone or closed to {account.name}"
        )
    inside.mkdir(mode=0o755, exist_ok=True)
    if account.changes:
        inside.chmod(0o711)
    if can_enter(inside, account):
        return inside
    if any(inside.iterdir()):
        raise RosettaError(
            ErrorKind.EMBEDDED_SERVER,
            f"{inside} holds servers but {account.name} can no longer enter it; restore the permissions of its parents",
        )
    outside = _outside_directory(home, account)
    inside.rmdir()
    inside.symlink_to(outside)
    _log.info("embedded.directory_outside", directory=str(outside), account=account.name)
    return outside


def _outside_directory(home: Path, account: Account) -> Path:
    for base in _outside_bases():
        _report_orphans(base)
        directory = base / f"rosetta-{secrets.token_hex(6)}"
        try:
            directory.mkdir(mode=0o711)
            directory.chmod(0o711)  # whatever the umask took away
        except OSError:
            continue
        if can_enter(directory, account):
            (directory / _MARKER).write_text(str(home.resolve()))
            return directory
        directory.rmdir()
    raise RosettaError(
        ErrorKind.EMBEDDED_SERVER,
        f"{account.name} can enter neither {home} nor a directory for temporary files; "
        "set ROSETTA_HOME to a directory that every user may enter",
    )


def _outside_bases() -> list[Path]:
    bases = [Path("/var/lib/rosetta"), Path("/var/tmp"), Path(tempfile.gettempdir())]
    try:
        bases[0].mkdir(mode=0o755, exist_ok=True)
    except OSError:
        return bases[1:]
    return bases


def _report_orphans(base: Path) -> None:
    """Name directories whose home is gone. They are not removed: the home may only be unmounted for now."""
    for directory in base.glob("rosetta-*"):
        try:
            home = Path((directory / _MARKER).read_text())
        except OSError:
            continue
        if not (home / "postgres").is_symlink():
            _log.warning("embedded.directory_orphaned", directory=str(directory), home=str(home))


def remove_server_root(home: Path) -> None:
    """Delete the servers' directory of a home, inside or outside; no server may run in it."""
    inside = home / "postgres"
    if inside.is_symlink():
        target = inside.resolve()
        if (target / _MARKER).is_file():
            shutil.rmtree(target, ignore_errors=True)
        inside.unlink()
    elif inside.is_dir():
        shutil.rmtree(inside)
