from __future__ import annotations

import pytest

from rosetta_dagster.assets.overview import overview_event
from rosetta_dagster.assets.snapshot import snapshot_of_rows
from rosetta_dagster.control_plane import build_definitions
from rosetta_dagster.jobs.dead_letters import DEAD_LETTER_JOBS, PurgeConfig, ReplayConfig
from rosetta_dagster.monitoring.overview import read_overview
from rosetta_dagster.monitoring.verdicts import verdicts
from rosetta_dagster.resources.catalog import catalog_session
from rosetta_dagster.resources.catalog_rows import read_catalog_rows
from rosetta_dagster.resources.pipeline_health import read_health

pytestmark = [pytest.mark.dagster, pytest.mark.pg]

STORE = """
INSERT INTO dead_letter_tables (pipeline_destination_id, source_schema, source_table, target_schema, target_table,
                                waiting_keys, entries, lost_entries, reason)
SELECT pipeline_destination_id, source_schema, source_table, target_schema, target_table, 2, 3, %s, 'a CHECK'
FROM pipelines_destination_table_sync WHERE origin = 'RESOLVED' AND source_table = 'orders'
"""


def test_the_checks_name_the_table_whose_changes_wait(catalog, add_pipeline) -> None:
    add_pipeline("shop", ("orders", "customers"))
    catalog.execute(STORE, (0,))
    with catalog_session() as session:
        rows = read_catalog_rows(session)
        (health,) = read_health(session)
    (verdict,) = [one for one in verdicts(health) if one.name == "dead_letters_empty"]
    assert not verdict.passed
    assert verdict.is_warning
    assert "3 changes of 2 keys wait: a CHECK" in verdict.reason
    definitions = build_definitions(snapshot_of_rows(rows.pipelines, rows.tables, rows.fingerprint))
    checks = [one for one in definitions.asset_checks or [] if one.node_def.name == "dead_letter_checks"]
    assert len(checks) == 1
    catalog.execute("UPDATE dead_letter_tables SET lost_entries = 1")
    with catalog_session() as session:
        (health,) = read_health(session)
    (verdict,) = [one for one in verdicts(health) if one.name == "dead_letters_empty"]
    assert "1 of them lost in Redis" in verdict.reason
    assert not verdict.is_warning


def test_the_check_and_the_overview_tell_what_is_parked(catalog, add_pipeline) -> None:
    add_pipeline("shop")
    catalog.execute(
        "INSERT INTO dead_letter_queues (pipeline_destination_id, state, parked_batches, parked_bytes) "
        "SELECT id, 'OK', 3, 2000000 FROM pipeline_destinations"
    )
    with catalog_session() as session:
        health = read_health(session)
        event = overview_event(health, {}, read_overview(session), "")
    (verdict,) = [one for one in verdicts(health[0]) if one.name == "dead_letters_empty"]
    assert (verdict.passed, verdict.is_warning) == (False, True)
    assert "3 batches for it are parked" in verdict.reason
    assert event.metadata["parked bytes"].value == 2_000_000


def test_replay_and_purge_are_dry_runs_unless_told_otherwise() -> None:
    assert ReplayConfig().dry_run
    assert PurgeConfig().dry_run
    names = {job.name for job in DEAD_LETTER_JOBS}
    assert names == {
        "list_dead_letters",
        "inspect_dead_letter",
        "edit_dead_letter",
        "replay_dead_letters",
        "export_dead_letters",
        "purge_dead_letters",
    }
