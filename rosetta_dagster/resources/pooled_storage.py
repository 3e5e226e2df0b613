"""Dagster's storage in PostgreSQL, with connections that are kept.

dagster-postgres opens a connection for each statement, some thirty for one tick of a sensor, and looks for its tables
whenever an instance is made, which the code server does for each tick. That is most of what an idle Dagster costs. Here
all instances of a process share one small pool for each database. Chosen in dagster.yaml, as `storage: custom:`.
"""

from __future__ import annotations

import os
import select
import time
from functools import lru_cache
from typing import Any

import psycopg2
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import get_token_provider_from_config, pg_url_from_config
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import InvalidatePoolError

from rosetta_dagster.resources.lean_daemon import judge_freshness_seldom, refresh_seldom
from rosetta_dagster.resources.lean_schedule_storage import LeanScheduleStorage

KEPT = 3
"""Connections that a process keeps while it is idle."""
MORE = 30
"""Those that it may open beside them when many threads ask at once."""
RECYCLE_SECONDS = 900
PING_AFTER_SECONDS = 30.0
"""A connection that has rested longer is tried before it is used: something between may have forgotten it."""

_with_tables: set[str] = set()

# Each of Dagster's processes makes its storage first of all, so this is the place where a daemon can be told.
refresh_seldom()
judge_freshness_seldom()


@lru_cache(maxsize=8)
def _engine(url: str) -> Engine:
    engine = create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        pool_size=KEPT,
        max_overflow=MORE,
        pool_recycle=RECYCLE_SECONDS,
        # The one that was used last: it need not be tried again.
        pool_use_lifo=True,
    )
    event.listen(engine, "checkout", _is_alive)
    event.listen(engine, "checkin", _note_use)
    return engine


def _is_alive(connection: Any, record: Any, _proxy: Any) -> None:
    """Have the pool open another connection when this one is dead: a restart of the server would be a failed tick."""
    now = time.monotonic()
    rested = now - record.info.get("used_at", now) > PING_AFTER_SECONDS
    if _has_ended(connection) or (rested and not _answers(connection)):
        raise InvalidatePoolError


def _has_ended(connection: Any) -> bool:
    """Tell, without a round trip, whether the server has closed an idle connection: it has nothing else to say."""
    if connection.closed:
        return True
    waiting = select.poll()
    waiting.register(connection.fileno(), select.POLLIN)
    return bool(waiting.poll(0))


def _answers(connection: Any) -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except psycopg2.Error:
        return False
    return True


def _note_use(_connection: Any, record: Any) -> None:
    record.info["used_at"] = time.monotonic()


# A child must not speak on its parent's connections; it opens its own.
os.register_at_fork(after_in_child=_engine.cache_clear)


class PooledPostgresStorage(DagsterPostgresStorage):
    """DagsterPostgresStorage whose three parts share this process's pool; takes the same configuration.

    The webserver replaces the pool by one with its own statement timeout. With an `auth_provider` everything is as it
    is in dagster-postgres.
    """

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
        token_provider: Any = None,
    ) -> None:
        super().__init__(
            postgres_url,
            should_autocreate_tables and postgres_url not in _with_tables,
            inst_data=inst_data,
            token_provider=token_provider,
        )
        _with_tables.add(postgres_url)
        self._schedule_storage = LeanScheduleStorage(postgres_url, False, inst_data, token_provider)
        if token_provider is None:
            for part in (self._run_storage, self._event_log_storage, self._schedule_storage):
                part._engine = _engine(postgres_url)  # noqa: SLF001 - there is no other way in

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> PooledPostgresStorage:
        """Return the storage of a dagster.yaml."""
        return cls(
            pg_url_from_config(config_value),
            config_value.get("should_autocreate_tables", True),
            inst_data=inst_data,
            token_provider=get_token_provider_from_config(config_value),
        )
