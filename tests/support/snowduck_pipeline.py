"""A whole pipeline into the independent stand-in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.support.servers import Database
from tests.support.snowduck import Snowduck
from tests.support.snowflake_key import private_key
from tests.support.snowflake_pipeline import SnowflakePipeline, lake


class DuckPipeline(SnowflakePipeline):
    """A pipeline whose destination is snowduck."""

    duck: Snowduck
    forms: ClassVar[dict[str, str]] = {"BINARY": "HEX_ENCODE({})"}

    def reached(self) -> int:
        try:
            rows = self.duck.query('SELECT MAX("POSITION") FROM "ANALYTICS"."SHOP"."ROSETTA_POSITION"')
        except RuntimeError:
            self.duck.failed.pop()  # the table is not there yet
            return 0
        return int(str(rows[0][0]).partition("/")[0], 16) if rows and rows[0][0] else 0

    def assert_landed_once(self) -> None:
        """Fail when an event is in a landing table twice."""
        found = self.source.execute("SELECT upper(tablename) FROM pg_tables WHERE schemaname = 'public'")
        self._landed_once([f"LANDING_{name}" for (name,) in found], self.duck.query)


@pytest.fixture
def duck_pipeline(config_database: Database, source_database: Database, snowduck: Snowduck) -> Iterator[DuckPipeline]:
    with tempfile.TemporaryDirectory(prefix="rosetta-pipeline-") as home:
        harness = DuckPipeline(config_database, source_database, {}, Path(home))
        harness.duck = snowduck
        entry = lake(snowduck.url) | {"pipe_suffix": "", "compression": "gzip"}
        del entry["private_key_passphrase"]
        harness.lakes["lake"] = entry
        harness.secrets = {"LAKE_KEY": private_key()}
        try:
            yield harness
        finally:
            harness.close()
