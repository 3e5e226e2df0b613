"""The command line starts fast: help of every command, and what is not loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rosetta_dagster.cli import main as command_line
from tests.integration.cli.conftest import Run

pytestmark = pytest.mark.pg


def test_help_is_fast_and_loads_neither_dagster_nor_a_database_driver():
    program = (
        "import sys; from rosetta_dagster.cli.main import main; code = main(['--help']);"
        " heavy = {'dagster', 'sqlalchemy', 'psycopg2', 'jpype', 'duckdb'} & set(sys.modules);"
        " print(heavy); sys.exit(code or bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in command_line.COMMANDS:
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("name", sorted(command_line.COMMANDS))
def test_every_command_has_help_and_is_a_command(name: str, capsys: pytest.CaptureFixture[str]):
    assert command_line.main([name, "--help"]) == 0
    assert "Usage: rosetta" in capsys.readouterr().out


def test_catalog_commands_do_not_load_dagster(run: Run, real_file: Path):
    run("apply", str(real_file))
    program = (
        "import sys; from rosetta_dagster.cli.main import main;"
        " codes = [main([name, '--json']) for name in ('status', 'doctor')];"
        " print({'dagster', 'jpype'} & set(sys.modules) or 'light', file=sys.stderr); sys.exit(max(codes))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ)
    )
    assert (done.returncode, done.stderr.strip()) == (0, "light")
