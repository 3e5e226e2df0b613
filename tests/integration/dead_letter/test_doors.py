"""Dead letters through the doors of people: the command line as a process, jobs and checks in a Dagster instance."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, DagsterInstance, Definitions, JobDefinition
from dagster._core.test_utils import instance_for_test

from rosetta_dagster.assets.overview import overview_event
from rosetta_dagster.assets.snapshot import snapshot_of_rows
from rosetta_dagster.checks.dead_letters import build_dead_letter_checks
from rosetta_dagster.jobs.dead_letters import DEAD_LETTER_JOBS
from rosetta_dagster.monitoring.overview import read_overview
from rosetta_dagster.resources.catalog import catalog_engine, catalog_session
from rosetta_dagster.resources.catalog_rows import read_catalog_rows
from rosetta_dagster.resources.pipeline_health import read_health
from tests.integration.dead_letter.conftest import Configure
from tests.support.dead_letters import status_of, waiting_keys
from tests.support.pipelines import PipelineHarness
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.dagster, pytest.mark.timeout(600)]

Run = Callable[..., Any]


@pytest.fixture
def poisoned(strict: Configure, monkeypatch: pytest.MonkeyPatch) -> Iterator[PipelineHarness]:
    """A pipeline of which three keys wait, and this process pointed at its config database."""
    pipeline = strict()
    pipeline.source.execute("UPDATE item SET amount = -5, note = 'canary' WHERE id IN (10, 11, 12)")
    pipeline.wait_caught_up()
    wait_for(lambda: status_of(pipeline) == [("item", 3, 3, 0)], 30, "the status to tell")
    for name in ("CONFIG_DATABASE_URL", "CREDENTIAL_ENCRYPTION_KEY", "REDIS_URL", "ROSETTA_HOME"):
        monkeypatch.setenv(name, pipeline.environment[name])
    catalog_engine.cache_clear()
    yield pipeline
    catalog_engine().dispose()
    catalog_engine.cache_clear()


def command(pipeline: PipelineHarness, *words: str, code: int | None = 0) -> str:
    """Run `rosetta dlq …` as a person does; return what it prints. No code: it must fail."""
    program = "import sys; from rosetta_dagster.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "dlq", *words],
        env=pipeline.environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == code if code is not None else done.returncode, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_command_line_end_to_end(poisoned: PipelineHarness, tmp_path: Path) -> None:
    """List, inspect, edit and replay one, export, replay what is refused again, purge, and words that are wrong."""
    target = poisoned.targets["target"]
    listed = json.loads(command(poisoned, "list", "shop", "--json"))
    assert len(listed) == 3
    assert "canary" not in str(listed)
    assert "positive" in command(poisoned, "list", "shop", "--table", "public.item")
    first = listed[0]["entry"]
    found = json.loads(command(poisoned, "inspect", "shop", first, "--json"))
    assert found["values"]["note"] == "canary"
    values = tmp_path / "values.json"
    values.write_text('{"amount": "5"}')
    assert "keys replayed: 1" in command(poisoned, "edit", "shop", first, str(values), "--replay")
    assert target.execute("SELECT amount, note FROM item WHERE id = %s", (int(found["key"]["id"]),)) == [(5, "canary")]
    assert "2 entries" in command(poisoned, "export", "shop", str(tmp_path / "letters.jsonl"))
    # Refused again: exit code 1, and nothing is lost.
    assert "keys refused: 2" in command(poisoned, "replay", "shop", code=1)
    assert "dry run" in command(poisoned, "purge", "shop")
    assert len(waiting_keys(target)) == 2
    command(poisoned, "purge", "shop", "--yes")
    assert command(poisoned, "list", "shop").strip() == "no dead letters"
    assert status_of(poisoned) == []
    for words in (("list", "nothing"), ("inspect", "shop", "nothing"), ("list", "shop", "--table", "item")):
        told = command(poisoned, *words, code=None)
        assert len(told.strip().splitlines()) == 1, told


def test_the_jobs_and_checks_in_a_dagster_instance(poisoned: PipelineHarness, tmp_path: Path) -> None:
    """What the pages launch: no value in any event; the check of the table fails, then passes."""
    target = poisoned.targets["target"]
    with instance_for_test() as instance:
        launch = _launcher(instance)
        assert launch("list_dead_letters")["result"] == "3 changes wait"
        assert _check(instance) == (False, "WARN")
        with catalog_session() as session:
            health = read_health(session)
            event = overview_event(health, {}, read_overview(session), "")
        assert event.metadata["dead letters"].value == 3
        assert "positive" in str(event.metadata["dead letters by table"])
        entry = target.execute("SELECT entry FROM _rosetta.waiting_key ORDER BY number LIMIT 1")[0][0]
        assert "positive" in launch("inspect_dead_letter", entry=entry)["result"]
        values = tmp_path / "values.json"
        values.write_text('{"amount": "7", "note": "canary of the edit"}')
        assert "2 columns" in launch("edit_dead_letter", entry=entry, values_file=str(values))["result"]
        assert "3 keys would" in launch("replay_dead_letters")["result"]
        assert launch("replay_dead_letters", dry_run=False)["result"] == "1 keys replayed, 2 refused again"
        assert launch("export_dead_letters")["result"] == "2 changes exported"
        assert "2 changes would" in launch("purge_dead_letters")["result"]
        target.execute("ALTER TABLE item DROP CONSTRAINT positive")
        assert launch("replay_dead_letters", dry_run=False)["result"] == "2 keys replayed, 0 refused again"
        # The running pipeline may report once more what it saw before the replay.
        wait_for(lambda: _check(instance) == (True, "ERROR"), 60, "the check to pass")
    assert target.execute("SELECT note, count(*) FROM item WHERE note LIKE 'canary%%' GROUP BY 1 ORDER BY 1") == [
        ("canary", 2),
        ("canary of the edit", 1),
    ]


def _launcher(instance: DagsterInstance) -> Run:
    jobs: dict[str, JobDefinition] = {job.name: job for job in DEAD_LETTER_JOBS}

    def launch(name: str, **config: Any) -> dict[str, Any]:
        job = jobs[name]
        (operation,) = [node.name for node in job.nodes]
        assert job.partitions_def is not None
        instance.add_dynamic_partitions(str(job.partitions_def.name), ["shop"])  # type: ignore[attr-defined]
        run_config = {"ops": {operation: {"config": config}}} if config else {}
        result = job.execute_in_process(instance=instance, partition_key="shop", run_config=run_config)
        assert "canary" not in str(result.all_events) + str(result.dagster_run.run_config)
        (event,) = [one for one in result.all_events if one.event_type_value == "STEP_OUTPUT"]
        output: Any = event.event_specific_data
        return {key: value.value for key, value in output.metadata.items() if hasattr(value, "value")}

    return launch


def _check(instance: DagsterInstance) -> tuple[bool, str]:
    """Execute the checks of all tables; return the outcome of the one of `item`."""
    with catalog_session() as session:
        rows = read_catalog_rows(session)
    definitions = Definitions(
        asset_checks=build_dead_letter_checks(snapshot_of_rows(rows.pipelines, rows.tables, rows.fingerprint))
    )
    result = definitions.resolve_implicit_global_asset_job_def().execute_in_process(instance=instance)
    key = AssetKey(["rosetta", "shop", "target", "public", "item"])
    (found,) = [one for one in result.get_asset_check_evaluations() if one.asset_key == key]
    return found.passed, found.severity.value
