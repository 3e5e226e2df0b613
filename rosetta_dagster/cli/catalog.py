"""The config database for a command: environment of the embedded servers, engine, session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from cdc_runner.catalog.database import open_catalog, session_scope


def use_embedded_environment() -> None:
    """Fill in the variables that are not set from the embedded servers of ROSETTA_HOME, if `rosetta up` made them."""
    if os.environ.get("CONFIG_DATABASE_URL"):
        return
    from rosetta_dagster.embedded import EmbeddedStack, StackState, environment, home_directory

    home = home_directory()
    known = StackState.read_file(home)
    if "config" not in known:
        return
    names = tuple(name for name in ("config", "redis") if name in known)
    for name, value in environment(EmbeddedStack(home, names).state()).items():
        os.environ.setdefault(name, value)


@contextmanager
def catalog_engine() -> Iterator[Engine]:
    """Yield an engine of the config database, migrations applied.

    Raises:
        RosettaError: not configured, or not reachable.
    """
    use_embedded_environment()
    engine = open_catalog(application_name="rosetta cli")
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def catalog_session() -> Iterator[Session]:
    """Yield a session that commits at the end of the block.

    Raises:
        RosettaError: not configured, or not reachable.
    """
    with catalog_engine() as engine, session_scope(engine) as session:
        yield session
