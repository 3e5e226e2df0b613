"""Checks of a source server: version, settings, free slots and senders, rights of the role, slot."""

from __future__ import annotations

import psycopg2
import psycopg2.extensions
import psycopg2.extras

from cdc_runner.capture.publication import SlotState, read_slot
from cdc_runner.connections import classify, connect
from cdc_runner.doctor.finding import Findings
from cdc_runner.errors import RosettaError
from cdc_runner.schema import quote_identifier
from cdc_runner.spec import SourceSpec

MINIMUM_VERSION = 120000

Connection = psycopg2.extensions.connection


def check_server(connection: Connection, spec: SourceSpec, found: Findings, *, streamed: bool, held: bool) -> None:
    """Check what concerns the server as a whole.

    Args:
        connection: to the source, in autocommit.
        spec: the source.
        found: takes the findings.
        streamed: whether the pipeline has streamed before, so that its slot must exist.
        held: whether a runner of ours holds the pipeline, so that its slot is rightly in use.
    """
    version = connection.server_version
    if version < MINIMUM_VERSION:
        found.error(
            "version", f"PostgreSQL {_version(version)} is too old", "Upgrade the source to PostgreSQL 12 or later."
        )
    else:
        found.ok("version", f"PostgreSQL {_version(version)}")
    _check_wal_level(connection, found)
    _check_recovery(connection, found)
    slot = read_slot(connection, spec.slot)
    _check_replication_right(connection, spec, found)
    _check_free_places(connection, found, slot)
    _check_slot(slot, spec, found, streamed=streamed, held=held)
    _check_retention(connection, found)
    _check_standbys(connection, found)


def _version(number: int) -> str:
    return f"{number // 10000}.{number % 10000}"


def setting(connection: Connection, name: str) -> str | None:
    """Return a server setting, None when the server does not know it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting(%s, true)", (name,))
        row = cursor.fetchone()
    return None if row is None else row[0]


def scalar(connection: Connection, statement: str, parameters: tuple[object, ...] = ()) -> object:
    """Return the first column of the first row, None when there is none."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        row = cursor.fetchone()
    return None if row is None else row[0]


def _check_wal_level(connection: Connection, found: Findings) -> None:
    level = setting(connection, "wal_level")
    if level == "logical":
        found.ok("wal_level", "wal_level is logical")
    else:
        found.error(
            "wal_level",
            f"wal_level is {level}; changes can be read with logical only",
            "ALTER SYSTEM SET wal_level = 'logical'; then restart the server"
            " (on a managed service: the parameter for logical replication, rds.logical_replication = 1 on RDS)",
        )


def _check_recovery(connection: Connection, found: Findings) -> None:
    if scalar(connection, "SELECT pg_is_in_recovery()"):
        found.error("standby", "the server is a standby", "Use the address of the primary server.")


def _check_replication_right(connection: Connection, spec: SourceSpec, found: Findings) -> None:
    role = quote_identifier(spec.address.username)
    allowed = scalar(
        connection,
        """
        SELECT r.rolreplication OR r.rolsuper OR EXISTS (
            SELECT FROM pg_roles g WHERE g.rolname IN ('rds_replication', 'rds_superuser')
            AND pg_has_role(current_user, g.oid, 'MEMBER'))
        FROM pg_roles r WHERE r.rolname = current_user
        """,
    )
    if not allowed:
        found.error(
            "replication_right",
            f"role {spec.address.username} may not read the change stream",
            f"ALTER ROLE {role} REPLICATION; (on RDS: GRANT rds_replication TO {role};)",
        )
        return
    try:
        replication = connect(
            spec.address,
            application_name="rosetta doctor",
            connection_factory=psycopg2.extras.LogicalReplicationConnection,
        )
        replication.close()
        found.ok("replication_right", f"role {spec.address.username} may read the change stream")
    except RosettaError as error:
        found.failure("replication_connection", error)


def _check_free_places(connection: Connection, found: Findings, slot: SlotState | None) -> None:
    places = (
        ("max_replication_slots", "SELECT count(*) FROM pg_replication_slots", slot is not None, "replication slot"),
        # A walsender that is just starting or ending is counted too, as it holds its place.
        ("max_wal_senders", "SELECT count(*) FROM pg_stat_replication", bool(slot and slot.active), "WAL sender"),
    )
    for name, statement, has_one, what in places:
        limit = int(setting(connection, name) or 0)
        used = int(str(scalar(connection, statement)))
        free = limit - used
        if free > 0 or has_one:
            found.ok(name, f"{free} of {limit} {what}s are free")
        else:
            found.error(
                name,
                f"all {limit} {what}s are in use",
                f"ALTER SYSTEM SET {name} = {limit + 10}; then restart the server, or drop what is not needed"
                " (SELECT slot_name, active FROM pg_replication_slots;)",
            )


def _check_slot(slot: SlotState | None, spec: SourceSpec, found: Findings, *, streamed: bool, held: bool) -> None:
    if slot is None:
        if streamed:
            found.error(
                "slot",
                f"replication slot {spec.slot} is gone, and with it the changes since the last position",
                "Run `rosetta pipeline refresh` to copy the tables again.",
            )
        else:
            found.ok("slot", f"replication slot {spec.slot} will be made")
    elif slot.plugin != "pgoutput" or slot.database != spec.address.database:
        found.error(
            "slot",
            f"replication slot {spec.slot} belongs to database {slot.database} and plugin {slot.plugin}",
            "Choose another slot name for the source.",
        )
    elif slot.wal_status == "lost":
        found.error(
            "slot",
            f"replication slot {spec.slot} was invalidated: the server removed WAL that was still needed",
            "Run `rosetta pipeline refresh` to copy the tables again.",
        )
    elif slot.active and not held:
        found.error(
            "slot",
            f"replication slot {spec.slot} is read by server process {slot.active_pid}, which is not ours",
            "Stop the other reader, or choose another slot name for the source.",
        )
    elif slot.wal_status == "unreserved":
        found.error(
            "slot",
            f"replication slot {spec.slot} is about to lose WAL that it needs",
            "Start the pipeline at once, and raise max_slot_wal_keep_size.",
        )
    else:
        kept = "" if slot.retained_bytes is None else f", keeping {slot.retained_bytes // 2**20} MB of WAL"
        found.ok("slot", f"replication slot {spec.slot} exists{kept}")


def _check_retention(connection: Connection, found: Findings) -> None:
    keep = setting(connection, "max_slot_wal_keep_size")
    if keep == "-1":
        found.warning(
            "max_slot_wal_keep_size",
            "the server keeps WAL for a slot without limit: a pipeline that stands still fills its disk",
            "Watch the kept WAL, or set a limit that the disk can hold:"
            " ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf();"
            " a slot that passes it is lost and needs a refresh",
        )
    elif keep is not None:
        found.ok("max_slot_wal_keep_size", f"a slot that keeps more than {keep} of WAL is lost")
    timeout = setting(connection, "idle_replication_slot_timeout")
    if timeout not in (None, "0", "0s", "0min"):
        found.warning(
            "idle_replication_slot_timeout",
            f"a slot that nobody reads for {timeout} is lost",
            "Pause pipelines for less than that, or: ALTER SYSTEM SET idle_replication_slot_timeout = 0;"
            " SELECT pg_reload_conf();",
        )


def _check_standbys(connection: Connection, found: Findings) -> None:
    """A commit that waits for the pipeline's own reader is not visible to it: a row that it has to read never comes."""
    names = setting(connection, "synchronous_standby_names") or ""
    if "*" in names:
        found.warning(
            "synchronous_standby_names",
            "commits may wait for the pipeline itself, which the server counts as a synchronous standby: it stands "
            "still when it has to read a row of such a commit",
            "Name the standbys in place of *: ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (...)';"
            " SELECT pg_reload_conf();",
        )


def open_source(spec: SourceSpec, found: Findings) -> Connection | None:
    """Return a connection for the checks, or None after noting why there is none."""
    try:
        connection = connect(spec.address, application_name="rosetta doctor")
    except RosettaError as error:
        found.failure("connection", error)
        return None
    connection.autocommit = True
    address = spec.address
    found.ok("connection", f"{address.host}:{address.port}/{address.database} answers as {address.username}")
    return connection


def guarded(found: Findings, check: str, error: Exception) -> None:
    """Note an error that ended a group of checks."""
    found.failure(check, classify(error, "source"))
