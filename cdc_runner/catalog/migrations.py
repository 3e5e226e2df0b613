"""Applies `migrations/NNN_name.sql` to the config database: in order, once each, under an advisory lock.

Every program that needs the config database calls `apply_migrations` when it starts; concurrent starts wait for each
other. The checksum of an applied file is recorded, and a file that was changed afterwards is an error.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import psycopg2
from sqlalchemy import Connection, Engine, text

from cdc_runner.catalog.database import catalog_errors
from cdc_runner.errors import ErrorKind, RosettaError

# Any fixed number will do; all Rosetta programs use this one.
_LOCK = 0x524F5345545441

_NAME = re.compile(r"^(\d{3})_[a-z0-9_]+\.sql$")

_HISTORY = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version    text PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One migration file."""

    version: str
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the file, line ends normalised."""
        return hashlib.sha256(self.sql.replace("\r\n", "\n").encode()).hexdigest()


def migrations_directory() -> Path:
    """Return the directory of the migrations: in the checkout, or inside the installed package.

    Raises:
        RosettaError: there is none.
    """
    here = Path(__file__).resolve()
    # The wheel's own first: site-packages may hold a `migrations` of somebody else.
    for candidate in (here.parent / "migrations", here.parents[2] / "migrations"):
        if candidate.is_dir() and any(candidate.glob("[0-9]*.sql")):
            return candidate
    raise RosettaError(ErrorKind.INTERNAL, "the migrations directory is missing from the installation")


def read_migrations(directory: Path | None = None) -> list[Migration]:
    """Return the migrations of a directory in the order of their numbers.

    Raises:
        RosettaError: a file name is not NNN_name.sql, or a number is used twice.
    """
    found: dict[str, Migration] = {}
    for path in sorted((directory or migrations_directory()).glob("*.sql")):
        match = _NAME.match(path.name)
        if match is None:
            raise RosettaError(ErrorKind.INTERNAL, f"migration {path.name} is not named NNN_name.sql")
        if match[1] in found:
            raise RosettaError(ErrorKind.INTERNAL, f"two migrations have the number {match[1]}")
        found[match[1]] = Migration(match[1], path.name, path.read_text(encoding="utf-8"))
    return list(found.values())


def apply_migrations(engine: Engine, directory: Path | None = None) -> list[str]:
    """Apply what was not applied yet and return the names of the files applied now.

    Safe to call from many processes at once. A file is applied in one transaction with its record: a failure leaves the
    database at the file before.

    Raises:
        RosettaError: unreachable database, a changed or missing file, or a statement that fails.
    """
    migrations = read_migrations(directory)
    applied_now: list[str] = []
    with catalog_errors(), engine.connect() as connection:
        if _is_current(connection, migrations):
            return []
        connection.rollback()
        # Held across several transactions, hence a session lock; it ends with the connection at the latest.
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
        connection.commit()
        try:
            connection.execute(text(_HISTORY))
            connection.commit()
            history = _history(connection)
            connection.commit()
            _check_history(history, migrations)
            for migration in migrations:
                if migration.version not in history:
                    _apply(connection, migration)
                    applied_now.append(migration.name)
        finally:
            # Not returned to the pool: session lock and timeout end with the connection.
            connection.invalidate()
    return applied_now


def _is_current(connection: Connection, migrations: list[Migration]) -> bool:
    if connection.execute(text("SELECT to_regclass('schema_migrations')")).scalar() is None:
        return False
    history = _history(connection)
    _check_history(history, migrations)
    return all(migration.version in history for migration in migrations)


def _history(connection: Connection) -> dict[str, str]:
    rows = connection.execute(text("SELECT version, checksum FROM schema_migrations"))
    return {row.version: row.checksum for row in rows}


def _check_history(history: dict[str, str], migrations: list[Migration]) -> None:
    known = {migration.version: migration for migration in migrations}
    for version, checksum in sorted(history.items()):
        migration = known.get(version)
        if migration is None:
            raise RosettaError(
                ErrorKind.CONFLICT,
                f"the config database has migration {version}, which this version of Rosetta does not know:"
                " it was upgraded by a newer one",
            )
        if migration.checksum != checksum:
            raise RosettaError(ErrorKind.CONFLICT, f"migration {migration.name} was changed after it was applied")


def _apply(connection: Connection, migration: Migration) -> None:
    # The driver's own cursor: the file holds several statements and colons that text() would take as parameters.
    with connection.begin():
        cursor = connection.connection.cursor()
        try:
            cursor.execute(migration.sql)
        except psycopg2.Error as error:
            reason = error.diag.message_primary or type(error).__name__
            raise RosettaError(ErrorKind.INTERNAL, f"migration {migration.name} fails: {reason}") from None
        finally:
            cursor.close()
        connection.execute(
            text("INSERT INTO schema_migrations (version, name, checksum) VALUES (:version, :name, :checksum)"),
            {"version": migration.version, "name": migration.name, "checksum": migration.checksum},
        )
