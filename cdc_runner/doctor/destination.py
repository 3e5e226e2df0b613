"""Checks of a PostgreSQL destination: reachable, writable, rights to make what is needed, target tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import psycopg2

from cdc_runner.connections import classify, connect
from cdc_runner.doctor.finding import Findings, names
from cdc_runner.doctor.source import MINIMUM_VERSION, Connection, scalar, setting
from cdc_runner.doctor.target_tables import check_target_table, read_targets
from cdc_runner.errors import RosettaError
from cdc_runner.schema import TableId, TableSchema, quote_identifier
from cdc_runner.spec import DestinationSpec, PostgresAddress, ResolvedSync

STATE_SCHEMA = "_rosetta"


def check_destination(
    spec: DestinationSpec,
    source: PostgresAddress,
    source_identity: str | None,
    syncs: Sequence[ResolvedSync],
    schemas: Mapping[TableId, TableSchema],
    found: Findings,
) -> None:
    """Check a destination for the tables that it is to take.

    Args:
        spec: the destination.
        source: address of the source, to notice a copy onto itself.
        source_identity: the source server's system identifier, when known.
        syncs: source and target tables.
        schemas: what the targets are to look like, by target.
        found: takes the findings.
    """
    try:
        connection = connect(spec.address, application_name="rosetta doctor", side="destination")
    except RosettaError as error:
        found.failure("connection", error)
        return
    try:
        connection.autocommit = True
        address = spec.address
        found.ok("connection", f"{address.host}:{address.port}/{address.database} answers as {address.username}")
        _check_server(connection, found)
        _check_not_source(connection, spec, source, source_identity, syncs, found)
        _check_schemas(connection, spec, syncs, found)
        targets = read_targets(connection, [sync.target for sync in syncs])
        for sync in syncs:
            target = targets.get(sync.target)
            if target is not None and sync.target in schemas:
                check_target_table(schemas[sync.target], sync.target, target, spec.address.username, found)
        existing = [sync.target for sync in syncs if sync.target in targets]
        found.ok("target_tables", f"{len(existing)} target tables exist, {len(syncs) - len(existing)} will be made")
        if any(target.has_triggers for target in targets.values()):
            _check_replication_role(connection, spec, targets, found)
    except psycopg2.Error as error:
        found.failure("checks", classify(error, "destination"))
    finally:
        connection.close()


def _check_server(connection: Connection, found: Findings) -> None:
    version = connection.server_version
    text = f"PostgreSQL {version // 10000}.{version % 10000}"
    if version < MINIMUM_VERSION:
        found.error("version", f"{text} is too old", "Upgrade the destination to PostgreSQL 12 or later.")
    elif version < 150000:
        found.warning(
            "version",
            f"{text} has no MERGE; changes are applied with INSERT ON CONFLICT and DELETE, which is slower",
            "PostgreSQL 15 or later is faster.",
        )
    else:
        found.ok("version", text)
    if scalar(connection, "SELECT pg_is_in_recovery()"):
        found.error("standby", "the server is a standby and cannot be written to", "Use the address of the primary.")
    elif setting(connection, "default_transaction_read_only") == "on":
        found.error(
            "read_only",
            "transactions are read-only by default",
            "ALTER ROLE ... SET default_transaction_read_only = off;",
        )
    encoding = setting(connection, "server_encoding")
    if encoding not in ("UTF8", "SQL_ASCII"):
        found.warning(
            "encoding",
            f"the database's encoding is {encoding}: characters outside of it are refused",
            "Use a database with encoding UTF8.",
        )


def system_identity(connection: Connection) -> str | None:
    """Return the identifier of a server's data, None when the role may not read it."""
    try:
        return str(scalar(connection, "SELECT system_identifier::text FROM pg_control_system()"))
    except psycopg2.errors.InsufficientPrivilege:
        return None


def _check_not_source(
    connection: Connection,
    spec: DestinationSpec,
    source: PostgresAddress,
    source_identity: str | None,
    syncs: Sequence[ResolvedSync],
    found: Findings,
) -> None:
    if spec.address.database != source.database or source_identity is None:
        return
    if system_identity(connection) != source_identity:
        return
    looped = [sync.source for sync in syncs if sync.source == sync.target]
    if looped:
        found.error(
            "same_database",
            f"it is the source itself: {names(looped)} would be copied onto themselves",
            "Set `schema` of the destination, or another database.",
        )


def _check_schemas(
    connection: Connection, spec: DestinationSpec, syncs: Sequence[ResolvedSync], found: Findings
) -> None:
    role = quote_identifier(spec.address.username)
    may_create = bool(scalar(connection, "SELECT has_database_privilege(current_database(), 'CREATE')"))
    for name in (STATE_SCHEMA, *sorted({sync.target.schema for sync in syncs})):
        quoted = quote_identifier(name)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT has_schema_privilege(oid, 'USAGE'), has_schema_privilege(oid, 'CREATE')"
                " FROM pg_namespace WHERE nspname = %s",
                (name,),
            )
            row = cursor.fetchone()
        if row is None and may_create:
            found.ok("schema", f"schema {name} will be made")
        elif row is None:
            found.error(
                "schema",
                f"schema {name} does not exist, and the role may not create one",
                f"CREATE SCHEMA {quoted} AUTHORIZATION {role};",
            )
        elif not all(row):
            found.error(
                "schema",
                f"the role may not use schema {name} and create tables in it",
                f"GRANT USAGE, CREATE ON SCHEMA {quoted} TO {role};",
            )
        else:
            found.ok("schema", f"schema {name} can be written to")


def _check_replication_role(
    connection: Connection, spec: DestinationSpec, targets: Mapping[TableId, object], found: Findings
) -> None:
    if connection.server_version >= 150000:
        statement = "SELECT has_parameter_privilege('session_replication_role', 'SET')"
    else:
        statement = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
    if scalar(connection, statement):
        found.ok("triggers", "triggers and foreign keys of target tables are set aside while changes are applied")
        return
    concerned = [table for table, target in targets.items() if getattr(target, "has_triggers", False)]
    found.warning(
        "triggers",
        f"triggers and foreign keys of target tables fire for copied changes and may refuse them: {names(concerned)}",
        f"GRANT SET ON PARAMETER session_replication_role TO {quote_identifier(spec.address.username)};"
        " (PostgreSQL 15 and later), or drop them at the target",
    )
