"""Disks that fill up, and have room again: the reason is told, nothing is lost, no one has to help."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.pipelines import PipelineHarness
from tests.support.servers import Database, PostgresServer
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.both_engines, pytest.mark.timeout(400)]


class SmallDisk:
    """A file system of a given size, mounted for one test."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, megabytes: int) -> None:
        """Give it another size."""
        subprocess.run(["mount", "-o", f"remount,size={megabytes}m", str(self.path)], check=True)


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], SmallDisk]]:
    """A factory of small disks; needs root, and a kernel that lets it mount."""
    if os.geteuid() != 0:
        pytest.skip("a small disk can be mounted by root only")
    mounted: list[Path] = []

    def mount(megabytes: int) -> SmallDisk:
        path = Path(tempfile.mkdtemp(prefix="rosetta-disk-"))
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "tmpfs", str(path)], capture_output=True
        )
        if done.returncode:
            path.rmdir()
            pytest.skip("this machine does not let root mount a tmpfs")
        mounted.append(path)
        return SmallDisk(path)

    try:
        yield mount
    finally:
        for path in mounted:
            subprocess.run(["umount", "-l", str(path)], check=False)
            path.rmdir()


def _last_error(pipeline: PipelineHarness) -> str:
    return str(pipeline.config.execute("SELECT coalesce(last_error, '') FROM pipeline_metadata")[0][0])


def test_a_transaction_that_does_not_fit_the_runners_disk(
    pipeline: PipelineHarness, small_disk: Callable[[int], SmallDisk]
) -> None:
    """The transaction is not applied in part; with room for it, the next start takes it whole."""
    disk = small_disk(8)
    pipeline.home = disk.path
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute("CREATE TABLE big (id int PRIMARY KEY, v text)")
    pipeline.configure(settings={"spill_bytes": 4 << 20, "batch_max_bytes": 4 << 20})
    pipeline.start()
    pipeline.wait_caught_up()
    source.execute("INSERT INTO big SELECT i, repeat('x', 500) FROM generate_series(1, 60000) i")

    def named() -> bool:
        pipeline.ensure_running()
        assert target.execute("SELECT count(*) FROM big") == [(0,)]
        return "cannot spill" in _last_error(pipeline)

    wait_for(named, 120, "the full disk to be named")
    disk.resize(400)
    pipeline.wait_caught_up(120, revive=True)
    pipeline.assert_equal()


@pytest.fixture
def small_target(
    target_server: PostgresServer, small_disk: Callable[[int], SmallDisk]
) -> Iterator[tuple[Database, SmallDisk]]:
    """A database whose tables are on a disk of 40 MB."""
    disk = small_disk(40)
    directory = disk.path / "space"
    directory.mkdir()
    data = Path(target_server.execute("SHOW data_directory")[0][0])
    owner = data.stat()
    shutil.chown(directory, owner.st_uid, owner.st_gid)
    name = f"small_{secrets.token_hex(4)}"
    target_server.execute(f"CREATE TABLESPACE {name} LOCATION '{directory}'")
    target_server.execute(f"CREATE DATABASE {name} TABLESPACE {name}")
    try:
        yield Database(target_server, name), disk
    finally:
        target_server.drop_database(name)
        target_server.execute(f"DROP TABLESPACE {name}")


def test_a_destination_without_room_is_waited_for(
    pipeline: PipelineHarness, small_target: tuple[Database, SmallDisk]
) -> None:
    """The batch stays refused as a whole, the reason says what to do, and it goes on by itself."""
    database, disk = small_target
    pipeline.targets = {"target": database}
    source = pipeline.source
    source.execute("CREATE TABLE big (id int PRIMARY KEY, v text); CREATE TABLE small (id int PRIMARY KEY)")
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    source.execute("INSERT INTO big SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 60000) i")
    source.execute("INSERT INTO small VALUES (1)")

    def named() -> bool:
        pipeline.ensure_running()
        return "53100" in str(
            pipeline.config.execute("SELECT string_agg(error_message, ' ') FROM pipeline_destinations")[0][0]
        ) or "53100" in _last_error(pipeline)

    wait_for(named, 120, "the full disk to be named")
    assert database.execute("SELECT count(*) FROM small") == [(0,)], "the order of transactions is kept"
    disk.resize(400)
    pipeline.wait_caught_up(180, revive=True)
    pipeline.assert_equal()
