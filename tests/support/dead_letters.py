"""What tests of dead letters ask and do, through the service functions."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from sqlalchemy import Engine

from cdc_runner.catalog.database import open_catalog
from cdc_runner.services import dead_letters
from cdc_runner.services.dead_letters import Scope
from tests.support.pipelines import PipelineHarness
from tests.support.servers import Database


def waiting_keys(target: Database, table: str = "item") -> set[tuple[str | None, ...]]:
    """Return the keys that wait, from the marks of the target."""
    rows = target.execute("SELECT key_text FROM _rosetta.waiting_key WHERE target_table = %s", (table,))
    return {tuple(json.loads(row[0])) for row in rows}


def waiting_entries(target: Database) -> int:
    """Return how many changes wait, from the marks of the target."""
    return int(target.execute("SELECT count(*) FROM _rosetta.waiting_key")[0][0])


@contextmanager
def operator(harness: PipelineHarness) -> Iterator[Engine]:
    """The environment of a person at a shell: config database, key and Redis."""
    names = ("CONFIG_DATABASE_URL", "CREDENTIAL_ENCRYPTION_KEY", "REDIS_URL", "ROSETTA_HOME")
    values = {name: harness.environment[name] for name in names if name in harness.environment}
    with mock.patch.dict(os.environ, values):
        engine = open_catalog(harness.config.url())
        try:
            yield engine
        finally:
            engine.dispose()


def replay(harness: PipelineHarness, pipeline: str = "shop", **scope: str) -> dict[str, Any]:
    """Replay what waits, as an operator does; return the result of the one destination."""
    with operator(harness) as engine:
        (result,) = dead_letters.replay_letters(engine, Scope(pipeline, **scope))
    return result


def different_keys(harness: PipelineHarness, table: str = "item", target: str = "target") -> set[int]:
    """Return the ids of rows that source and target do not have alike."""
    statement = f"SELECT * FROM {table}"
    source = set(harness.source.execute(statement))
    return {row[0] for row in source ^ set(harness.targets[target].execute(statement))}


def status_of(harness: PipelineHarness) -> Collection[Any]:
    """Return the rows of dead letters in the config database."""
    return harness.config.execute("SELECT target_table, waiting_keys, entries, lost_entries FROM dead_letter_tables")
