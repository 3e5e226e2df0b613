"""Wrong calls of the command line: one clear line, an exit code, and nothing is changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from rosetta_dagster.cli import main as command_line
from tests.integration.cli.conftest import Run
from tests.support.servers import Database

pytestmark = pytest.mark.pg


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "words"),
    [
        (("nothing",), {}, 2, "No such command"),
        (("apply",), {}, 2, "Missing argument"),
        (("apply", "absent.yaml"), {}, 2, "cannot read absent.yaml"),
        (("pipeline", "start", "absent"), {}, 2, "no pipeline 'absent'"),
        (("doctor", "absent"), {}, 2, "no pipeline 'absent'"),
        (("status", "absent"), {}, 2, "no pipeline 'absent'"),
        (("settings", "get", "absent"), {}, 2, "no setting 'absent'"),
        (("status",), {"CONFIG_DATABASE_URL": "canary://nowhere"}, 1, "CONFIG_DATABASE_URL is not of the form"),
        (("status",), {"CONFIG_DATABASE_URL": "postgresql://u:canary@127.0.0.1:1/x"}, 1, "Connection refused"),
        (("status",), {"CONFIG_DATABASE_URL": "postgresql://u:canary@nowhere.invalid/x"}, 1, "could not translate"),
        (("status",), {"CONFIG_DATABASE_URL": "", "ROSETTA_HOME": "/nonexistent"}, 1, "CONFIG_DATABASE_URL is not set"),
        (("apply", "{file}"), {"CREDENTIAL_ENCRYPTION_KEY": "canary"}, 2, "CREDENTIAL_ENCRYPTION_KEY is"),
        (("apply", "{file}"), {"CREDENTIAL_ENCRYPTION_KEY": ""}, 2, "CREDENTIAL_ENCRYPTION_KEY is not set"),
        (("apply", "{file}"), {"SOURCE_PASSWORD": ""}, 2, "SOURCE_PASSWORD is not set"),
    ],
)
def test_bad_input_gives_one_clear_line(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], variables: dict[str, str],
    code: int, words: str,
):  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = run(*(argument.format(file=file) for argument in arguments))
    assert result.code == code
    assert words in result.err
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert result.out == ""
    assert "canary" not in result.err


def test_every_problem_of_a_file_has_its_line(run: Run, file: Path, config_database: Database):
    file.write_text(file.read_text().replace("{env: SOURCE_PASSWORD}", "canary-literal", 1).replace("shop,", "shopp,"))
    result = run("apply", str(file))
    assert result.code == 2
    assert "error: sources.shop.password: a literal secret is refused; write {env: NAME}" in result.err
    assert "canary" not in result.err
    assert config_database.execute("SELECT count(*) FROM sources") == [(0,)]


def test_debug_shows_the_traceback(
    config_database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CONFIG_DATABASE_URL", config_database.url())
    monkeypatch.setenv("ROSETTA_DEBUG", "1")
    assert command_line.main(["pipeline", "show", "absent"]) == 2
    assert "Traceback" in capsys.readouterr().err
