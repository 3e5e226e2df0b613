"""Engine and sessions of the config database.

    engine = open_catalog()                  # CONFIG_DATABASE_URL, migrations applied
    with session_scope(engine) as session:   # one transaction; commits at its end
        ...

Errors of the database leave a session scope as RosettaErrors, without values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import QueuePool

from cdc_runner.catalog.environment import Environment, read_environment
from cdc_runner.errors import ErrorKind, RosettaError

CONNECT_TIMEOUT_SECONDS = 10
STATEMENT_TIMEOUT_SECONDS = 60
_DRIVERS = {"postgresql", "postgres", "postgresql+psycopg2"}


def catalog_url(environment: Environment | None = None) -> URL:
    """Return the URL of the config database.

    Raises:
        RosettaError: CONFIG_DATABASE_URL is not set, or is not a PostgreSQL URL. Its text is never repeated.
    """
    known = environment or read_environment()
    if known.config_database_url is None:
        raise RosettaError(
            ErrorKind.CONFIG_DATABASE_UNAVAILABLE,
            "CONFIG_DATABASE_URL is not set (`rosetta up` starts an embedded config database)",
        )
    return parse_catalog_url(known.config_database_url.get_secret_value())


def parse_catalog_url(text: str) -> URL:
    """Return the SQLAlchemy URL of a `postgresql://user:password@host:port/database` text.

    Raises:
        RosettaError: the text is not such a URL.
    """
    wrong = RosettaError(
        ErrorKind.CONFIG_DATABASE_UNAVAILABLE,
        "CONFIG_DATABASE_URL is not of the form postgresql://user:password@host:port/database",
    )
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise wrong from None
    if url.drivername not in _DRIVERS or not url.database:
        raise wrong
    return url.set(drivername="postgresql+psycopg2")


def create_catalog_engine(
    url: URL | str | None = None, *, application_name: str = "rosetta", pool_size: int = 5
) -> Engine:
    """Return an engine for the config database; connects at first use.

    Make it after a fork or an exec, never before: sockets of a pool are not to be shared between processes.

    Raises:
        RosettaError: the URL is missing or wrong.
    """
    target = catalog_url() if url is None else (parse_catalog_url(url) if isinstance(url, str) else url)
    return create_engine(
        target,
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=5,
        pool_timeout=15,
        pool_pre_ping=True,
        pool_recycle=1800,
        # SQLAlchemy puts parameters into error texts otherwise, and some of them are secrets.
        hide_parameters=True,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": application_name,
            "keepalives": 1,
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 4,
            # Keepalives do not help while data wait for an acknowledgement: that would take about 15 minutes.
            "tcp_user_timeout": 35_000,
            "options": (
                "-c TimeZone=UTC"
                f" -c statement_timeout={STATEMENT_TIMEOUT_SECONDS * 1000}"
                " -c idle_in_transaction_session_timeout=300000"
            ),
        },
    )


def open_catalog(url: URL | str | None = None, *, application_name: str = "rosetta") -> Engine:
    """Return an engine for a config database whose migrations are applied.

    Raises:
        RosettaError: unreachable, a wrong URL, or a migration that fails or was changed after it was applied.
    """
    from cdc_runner.catalog.migrations import apply_migrations

    engine = create_catalog_engine(url, application_name=application_name)
    apply_migrations(engine)
    return engine


@contextmanager
def session_scope(engine: Engine) -> Iterator[Session]:
    """Yield a session that commits when the block ends and rolls back when it raises.

    Raises:
        RosettaError: the config database is unreachable, or refuses what was written (the constraint is named).
    """
    factory = sessionmaker(engine, expire_on_commit=False)
    with catalog_errors(), factory.begin() as session:
        yield session


@contextmanager
def catalog_errors() -> Iterator[None]:
    """Turn SQLAlchemy's errors into RosettaErrors."""
    try:
        yield
    except SQLAlchemyError as error:
        raise classify_catalog_error(error) from None


_CONSTRAINTS = {
    "sources_name_key": "a source of this name exists already",
    "destinations_name_key": "a destination of this name exists already",
    "pipelines_name_key": "a pipeline of this name exists already",
    "sources_server_slot_key": "another source uses this slot on the same server; a slot can have one reader only",
    "pipelines_source_key": (
        "the source has a pipeline already; one pipeline feeds many destinations, so add the destination to that one"
    ),
    "pipeline_destinations_pair_key": "the pipeline has this destination already",
    "pipelines_source_id_fkey": "the source is used by a pipeline",
    "pipeline_destinations_destination_id_fkey": "the destination is used by a pipeline",
    "table_sync_declared_key": "the table is listed twice with the same target",
}


def classify_catalog_error(error: SQLAlchemyError) -> RosettaError:
    """Return the RosettaError of an error of the config database; never a value, never the URL."""
    diagnostics = getattr(getattr(error, "orig", None), "diag", None)
    if isinstance(error, IntegrityError):
        constraint = getattr(diagnostics, "constraint_name", None) or ""
        text = _CONSTRAINTS.get(constraint, f"the config database refuses the value (constraint {constraint or '?'})")
        return RosettaError(ErrorKind.CONFLICT, text, {"constraint": constraint})
    if isinstance(error, PoolTimeoutError):
        return RosettaError(ErrorKind.CONFIG_DATABASE_UNAVAILABLE, "no free connection to the config database")
    if isinstance(error, OperationalError | InterfaceError):
        reason = " ".join(str(error.orig).split())[:300]
        return RosettaError(ErrorKind.CONFIG_DATABASE_UNAVAILABLE, f"the config database is not usable: {reason}")
    if isinstance(error, DBAPIError):
        primary = getattr(diagnostics, "message_primary", None) or type(error).__name__
        return RosettaError(ErrorKind.INTERNAL, f"the config database refuses a statement: {primary}")
    return RosettaError(ErrorKind.INTERNAL, f"config database: {type(error).__name__}")
