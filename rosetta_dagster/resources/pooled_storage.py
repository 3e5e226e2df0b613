"""Dagster's storage in PostgreSQL, with connections that are kept.

dagster-postgres opens a connection for each statement, some thirty for one tick of a sensor, and looks for its tables
whenever an instance is made, which the code server does for each tick. That is most of what an idle Dagster costs. Here
all instances of a process share one small pool for each database. Chosen in dagster.yaml, as `storage: custom:`.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import get_token_provider_from_config, pg_url_from_config
from sqlalchemy import Engine, create_engine

KEPT = 3
"""Connections that a process keeps while it is idle."""
MORE = 30
"""Those that it may open beside them when many threads ask at once."""
RECYCLE_SECONDS = 900

_with_tables: set[str] = set()


@lru_cache(maxsize=8)
def _engine(url: str) -> Engine:
    return create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        pool_size=KEPT,
        max_overflow=MORE,
        pool_recycle=RECYCLE_SECONDS,
        # The one connection too many at a restart of the server would be a failed tick.
        pool_pre_ping=True,
    )


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
