"""Fills the demo's source database: the shop, and the tables of pgbench."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from cdc_runner.connections import connect
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.spec import PostgresAddress

PGBENCH_SCALE = 1
"""100,000 accounts."""
INITIALISE_SECONDS = 120


def prepare_source(address: PostgresAddress, pgbench: Path) -> None:
    """Create and fill the demo's tables where they are absent; what is there stays.

    Args:
        address: of the demo's source database, as a superuser.
        pgbench: the program.

    Raises:
        RosettaError: the database is unreachable, or pgbench failed.
    """
    connection = connect(address, application_name="rosetta demo")
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT to_regclass('shop.customers') IS NULL, to_regclass('public.pgbench_history') IS NULL"
            )
            row = cursor.fetchone()
            assert row is not None
            shop_absent, pgbench_absent = row
            if shop_absent:
                # One statement string is one transaction: half a shop is never left behind.
                cursor.execute(Path(__file__).with_name("schema.sql").read_text(encoding="utf-8"))
            if pgbench_absent:
                _initialise_pgbench(address, pgbench)
                cursor.execute("ALTER TABLE pgbench_history REPLICA IDENTITY FULL")
    finally:
        connection.close()


def libpq_environment(address: PostgresAddress) -> dict[str, str]:
    """Return an environment for a libpq program; so the password is not in its argument list."""
    return {
        **os.environ,
        "PGHOST": address.host,
        "PGPORT": str(address.port),
        "PGDATABASE": address.database,
        "PGUSER": address.username,
        "PGPASSWORD": address.password.get_secret_value(),
        "PGSSLMODE": address.sslmode,
    }


def _initialise_pgbench(address: PostgresAddress, pgbench: Path) -> None:
    command = [str(pgbench), "--initialize", "--quiet", "--scale", str(PGBENCH_SCALE)]
    try:
        done = subprocess.run(
            command,
            env=libpq_environment(address),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=INITIALISE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RosettaError(ErrorKind.INTERNAL, f"pgbench could not be run: {type(error).__name__}") from None
    if done.returncode != 0:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise RosettaError(ErrorKind.INTERNAL, f"pgbench could not fill its tables: {''.join(last)[:200]}")
