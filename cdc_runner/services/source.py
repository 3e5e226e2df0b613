"""Sources: list, show, test, remove."""

from __future__ import annotations

from typing import Any

import psycopg2
from sqlalchemy import func
from sqlalchemy.orm import Session

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.models import Source
from cdc_runner.catalog.pipelines import source_address
from cdc_runner.catalog.repositories import get_source, list_sources, lock_configuration
from cdc_runner.connections import Side, classify, connect, describe
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.services.pipeline import clean_source
from cdc_runner.services.removal import Removal
from cdc_runner.spec import PostgresAddress


def describe_sources(session: Session) -> list[dict[str, Any]]:
    """Return all sources, without secrets."""
    return [describe_source_row(source) for source in list_sources(session)]


def describe_source(session: Session, name: str) -> dict[str, Any]:
    """Return a source, without secrets.

    Raises:
        RosettaError: NOT_FOUND.
    """
    return describe_source_row(get_source(session, name))


def describe_source_row(source: Source) -> dict[str, Any]:
    """Return a source, without secrets."""
    return {
        "name": source.name,
        "type": source.type,
        "host": source.host,
        "port": source.port,
        "database": source.database_name,
        "username": source.username,
        "sslmode": source.sslmode,
        "publication": source.publication_name,
        "slot": source.slot_name,
        "tables": source.table_patterns,
        "capture_engine": source.capture_engine,
        "pipelines": [pipeline.name for pipeline in source.pipelines],
        "last_checked_at": source.last_checked_at.isoformat() if source.last_checked_at else None,
        "last_error": source.last_error,
    }


def check_source(session: Session, name: str, keyring: Keyring | None = None) -> dict[str, Any]:
    """Connect to a source and return what was found; the result is stored as its last check.

    Raises:
        RosettaError: NOT_FOUND, CREDENTIAL_*.
    """
    source = get_source(session, name)
    result = check_address(source_address(source, keyring or Keyring.from_environment()), "source")
    source.last_checked_at = func.now()
    source.last_error = result["error"]
    if result["server_version_number"]:
        source.server_version = result["server_version_number"]
    session.flush()
    return {"name": name, **result}


def check_address(address: PostgresAddress, side: Side) -> dict[str, Any]:
    """Connect to a database and return whether it works, its version, and the error text otherwise."""
    result: dict[str, Any] = {
        "ok": False,
        "address": describe(address),
        "server_version": None,
        "server_version_number": None,
        "encrypted": None,
        "error": None,
        "solution": None,
    }
    try:
        connection = connect(address, application_name="rosetta test", side=side)
        try:
            with connection.cursor() as cursor:
                cursor.execute("SHOW server_version")
                row = cursor.fetchone()
            result["server_version"] = row[0] if row else None
            result["server_version_number"] = connection.server_version
            result["encrypted"] = bool(connection.info.ssl_in_use)
            result["ok"] = True
        finally:
            connection.close()
    except (psycopg2.Error, RosettaError) as error:
        named = classify(error, side)
        result["error"], result["solution"] = named.message, named.policy.solution
    return result


def remove_source(session: Session, name: str, keyring: Keyring | None = None, *, keep_slot: bool = False) -> Removal:
    """Remove a source, with what is left of its slot and publication.

    Raises:
        RosettaError: NOT_FOUND, or CONFLICT while a pipeline uses it.
    """
    lock_configuration(session)
    source = get_source(session, name)
    if source.pipelines:
        raise RosettaError(
            ErrorKind.CONFLICT, f"source {name} is used by pipeline {source.pipelines[0].name}; remove that first"
        )
    result = clean_source(session, source, keyring, keep=keep_slot)
    session.delete(source)
    session.flush()
    result.removed.insert(0, f"source {name}")
    return result
