"""Statements at Snowflake destinations, for monitors."""

from __future__ import annotations

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.models import Destination
from cdc_runner.catalog.pipelines import snowflake_address


def run_statement(destination: Destination, keyring: Keyring, statement: str) -> list[list[str | None]]:
    """Run one statement at a Snowflake destination and return its rows, values as text.

    The view `SNOWFLAKE.ACCOUNT_USAGE.METERING_DAILY_HISTORY`, which holds the credits of an account, needs IMPORTED
    PRIVILEGES on the database SNOWFLAKE.

    Raises:
        RosettaError: CONFIG_INVALID for a destination of another type, CREDENTIAL_*, or a destination kind.
    """
    from cdc_runner.destinations.snowflake.administration import run_once

    return run_once(snowflake_address(destination, keyring), statement)
