"""PostgreSQL, Redis and Java from Python packages, for first use, tests and CI.

    EmbeddedStack(home).start() -> StackState   the servers, as daemons, stoppable from any process
    environment(state)                          the variables that point Rosetta at them
    java_home()                                 JAVA_HOME, or the package's Java; only a path

In production the same variables point to real servers, and nothing here is used but `java_home`.
"""

from __future__ import annotations

from rosetta_dagster.embedded.binaries import java_home
from rosetta_dagster.embedded.environment import environment
from rosetta_dagster.embedded.postgres import EmbeddedPostgres
from rosetta_dagster.embedded.redis_server import EmbeddedRedis
from rosetta_dagster.embedded.stack import DEFAULT_PORTS, EmbeddedStack, home_directory
from rosetta_dagster.embedded.state import PostgresState, RedisState, ServerStatus, StackState

__all__ = [
    "DEFAULT_PORTS",
    "EmbeddedPostgres",
    "EmbeddedRedis",
    "EmbeddedStack",
    "PostgresState",
    "RedisState",
    "ServerStatus",
    "StackState",
    "environment",
    "home_directory",
    "java_home",
]
