"""The command line gives things other names, and says what is wrong with a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.cli.conftest import Run
from tests.support.servers import Database

pytestmark = pytest.mark.pg


def test_pipeline_source_and_destination_are_renamed(run: Run, file: Path, config_database: Database):
    run("apply", str(file))
    assert "pipeline daily is called hourly now" in run("pipeline", "rename", "daily", "hourly").out
    told = run("source", "rename", "shop", "sales", "--json").json
    assert told == {
        "kind": "source", "name": "sales", "before": "shop", "slot": "rosetta_shop", "publication": "rosetta_shop",
        "pipelines": ["hourly"],
    }  # fmt: skip
    assert run("destination", "rename", "warehouse", "dwh", "--json").json["identity"] == "warehouse"
    assert run("pipeline", "show", "hourly", "--json").json["identity"] == "daily"
    names = "SELECT p.name, p.identity, s.name, d.name FROM pipelines p, sources s, destinations d"
    assert config_database.execute(names) == [("hourly", "daily", "sales", "dwh")]
    refused = run("apply", str(file))
    assert refused.code == 2
    assert "source sales uses this slot" in refused.err


def test_names_that_cannot_be_are_refused(run: Run, file: Path):
    run("apply", str(file))
    refused = run("pipeline", "rename", "daily", "every day")
    assert (refused.code, "letters, digits" in refused.err) == (2, True)
    refused = run("pipeline", "rename", "nothing", "hourly")
    assert (refused.code, "no pipeline 'nothing'; known: daily" in refused.err) == (2, True)
    run("destination", "duplicate", "warehouse", "dwh")
    refused = run("destination", "rename", "warehouse", "dwh")
    assert (refused.code, "a destination dwh exists already" in refused.err) == (1, True)
    run("pipeline", "rename", "daily", "hourly")
    refused = run("pipeline", "pause", "daily")
    assert (refused.code, "created as daily is called hourly now" in refused.err) == (2, True)
