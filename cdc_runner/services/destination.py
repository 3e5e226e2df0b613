"""Destinations: list, show, test, remove."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.models import Destination
from cdc_runner.catalog.pipelines import destination_address, snowflake_address
from cdc_runner.catalog.repositories import get_destination, list_destinations, lock_configuration
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.services.removal import Removal
from cdc_runner.services.source import check_address
from cdc_runner.spec import SnowflakeAddress


def describe_destinations(session: Session) -> list[dict[str, Any]]:
    """Return all destinations, without secrets."""
    return [_describe(destination) for destination in list_destinations(session)]


def describe_destination(session: Session, name: str) -> dict[str, Any]:
    """Return a destination, without secrets.

    Raises:
        RosettaError: NOT_FOUND.
    """
    return _describe(get_destination(session, name))


def _describe(destination: Destination) -> dict[str, Any]:
    return {
        "name": destination.name,
        "identity": destination.identity,
        "type": destination.type,
        **destination.config,
        "stored_secrets": sorted(destination.secrets),
        "pipelines": [row.pipeline.name for row in destination.pipeline_destinations],
        "last_checked_at": destination.last_checked_at.isoformat() if destination.last_checked_at else None,
        "last_error": destination.last_error,
    }


def check_destination(session: Session, name: str, keyring: Keyring | None = None) -> dict[str, Any]:
    """Connect to a destination and return what was found; the result is stored as its last check.

    Raises:
        RosettaError: NOT_FOUND, CREDENTIAL_*.
    """
    destination = get_destination(session, name)
    keys = keyring or Keyring.from_environment()
    if destination.type == "snowflake":
        result = _check_snowflake(snowflake_address(destination, keys))
    else:
        result = check_address(destination_address(destination, keys), "destination")
    destination.last_checked_at = func.now()
    destination.last_error = result["error"]
    session.flush()
    return {"name": name, **result}


def _check_snowflake(address: SnowflakeAddress) -> dict[str, Any]:
    """Ask an account for its version, in the form of `check_address`."""
    from cdc_runner.destinations.snowflake.administration import service_version

    result: dict[str, Any] = {
        "ok": False,
        "address": f"{address.account}/{address.database} as {address.user}",
        "server_version": None,
        "server_version_number": None,
        "encrypted": True,
        "error": None,
        "solution": None,
    }
    try:
        result["server_version"] = service_version(address)
        result["ok"] = True
    except RosettaError as error:
        result["error"], result["solution"] = error.message, error.policy.solution
    return result


def remove_destination(session: Session, name: str) -> Removal:
    """Remove a destination from the config database; its tables stay.

    Raises:
        RosettaError: NOT_FOUND, or CONFLICT while a pipeline uses it.
    """
    lock_configuration(session)
    destination = get_destination(session, name)
    if destination.pipeline_destinations:
        user = destination.pipeline_destinations[0].pipeline.name
        raise RosettaError(ErrorKind.CONFLICT, f"destination {name} is used by pipeline {user}; remove that first")
    session.delete(destination)
    session.flush()
    return Removal(removed=[f"destination {name}"], kept=[f"target tables and schema _rosetta in {name}"])
