"""Fixtures of every test; each subject has its module in `tests/support`."""

from __future__ import annotations

pytest_plugins = [
    "tests.support.servers",
    "tests.support.proxy",
    "tests.support.pipelines",
    "tests.support.snowflake_server",
    "tests.support.snowflake_pipeline",
    "tests.support.snowduck",
    "tests.support.snowduck_pipeline",
]
