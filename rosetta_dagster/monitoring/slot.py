"""The replication slot and the WAL of a source: what the server says, and how bad that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2.extras import RealDictCursor

from cdc_runner.connections import classify, connect
from cdc_runner.errors import RosettaError
from cdc_runner.spec import PostgresAddress

CONNECT_SECONDS = 5
STATEMENT_MILLISECONDS = 5000
_MEGABYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class SlotReading:
    """What a source says about its WAL and our slot; sizes in bytes, positions as numbers.

    Attributes:
        exists: the slot does; the other fields about it are None when it does not.
        wal_status: reserved, extended, unreserved or lost.
        retained_bytes: WAL between what the slot still needs and the present end.
        safe_bytes: WAL that may still be written before the slot is lost; None without a limit at the server.
        directory_bytes: size of pg_wal; None where the role may not look.
        missing_operations: what the publication leaves out of insert, update, delete, truncate; None without it.
    """

    wal_lsn: int
    exists: bool
    active: bool | None = None
    wal_status: str | None = None
    restart_lsn: int | None = None
    confirmed_flush_lsn: int | None = None
    retained_bytes: int | None = None
    safe_bytes: int | None = None
    directory_bytes: int | None = None
    missing_operations: tuple[str, ...] | None = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """OK, WARNING or ERROR, and why in one sentence; None when all is well."""

    status: str
    reason: str | None = None


_SLOT = """
    SELECT current.lsn - '0/0' AS wal_lsn, s.slot_name IS NOT NULL AS exists, s.active, s.wal_status,
           s.restart_lsn - '0/0' AS restart_lsn, s.confirmed_flush_lsn - '0/0' AS confirmed_flush_lsn,
           greatest(0, current.lsn - s.restart_lsn) AS retained_bytes, s.safe_wal_size AS safe_bytes,
           p.pubname IS NOT NULL AS published, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate,
           has_function_privilege('pg_ls_waldir()', 'execute') AS may_list
    FROM (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn)
         AS current
    LEFT JOIN pg_replication_slots s ON s.slot_name = %(slot)s AND s.database = current_database()
    LEFT JOIN pg_publication p ON p.pubname = %(publication)s
"""


def read_slot(address: PostgresAddress, slot: str, publication: str) -> SlotReading:
    """Ask a source about our slot; takes about 10 s at the most.

    Raises:
        RosettaError: unreachable, refused or too slow.
    """
    connection = connect(
        address,
        application_name="rosetta wal monitor",
        side="source",
        connect_timeout_seconds=CONNECT_SECONDS,
        settings={"statement_timeout": str(STATEMENT_MILLISECONDS)},
    )
    try:
        connection.autocommit = True
        with connection.cursor(cursor_factory=RealDictCursor) as cursor:
            cursor.execute(_SLOT, {"slot": slot, "publication": publication})
            row: Any = cursor.fetchone()
            directory = _directory_bytes(cursor) if row["may_list"] else None
    except psycopg2.Error as error:
        raise classify(error, "source") from None
    finally:
        connection.close()
    return _reading(row, directory)


def judge(
    reading: SlotReading | RosettaError, *, warning_megabytes: int, error_megabytes: int, wanted: bool, started: bool
) -> Verdict:
    """Return how bad a reading is.

    Args:
        reading: or the reason why there is none.
        warning_megabytes: retained WAL from which it is a WARNING.
        error_megabytes: and an ERROR.
        wanted: the pipeline is to run, so that somebody should read the slot.
        started: the pipeline has applied something before, so that the slot should exist.
    """
    if isinstance(reading, RosettaError):
        return Verdict("ERROR", str(reading))
    if not reading.exists:
        return Verdict("ERROR", "the slot is gone: refresh the pipeline") if started else Verdict("OK", "no slot yet")
    if reading.wal_status == "lost":
        return Verdict("ERROR", "the server has removed WAL that the slot needed: refresh the pipeline")
    if reading.missing_operations is None:
        return Verdict("ERROR", "the publication is gone: changes are lost as long as it is")
    if reading.missing_operations:
        return Verdict("ERROR", f"the publication leaves out {', '.join(reading.missing_operations)}")
    retained = (reading.retained_bytes or 0) // _MEGABYTE
    if retained >= error_megabytes:
        return Verdict("ERROR", f"the slot keeps {retained} MB of WAL (limit {error_megabytes} MB)")
    if reading.wal_status == "unreserved":
        return Verdict("ERROR", "the slot is about to lose WAL that it needs (max_slot_wal_keep_size)")
    if retained >= warning_megabytes:
        return Verdict("WARNING", f"the slot keeps {retained} MB of WAL (limit {warning_megabytes} MB)")
    if wanted and not reading.active:
        return Verdict("WARNING", "nobody reads the slot")
    return Verdict("OK")


def _reading(row: Any, directory_bytes: int | None) -> SlotReading:
    operations = ("insert", "update", "delete", "truncate")
    missing = tuple(name for name in operations if not row[f"pub{name}"]) if row["published"] else None

    def number(name: str) -> int | None:
        return None if row[name] is None else int(row[name])

    return SlotReading(
        wal_lsn=int(row["wal_lsn"]),
        exists=row["exists"],
        active=row["active"],
        wal_status=row["wal_status"],
        restart_lsn=number("restart_lsn"),
        confirmed_flush_lsn=number("confirmed_flush_lsn"),
        retained_bytes=number("retained_bytes"),
        safe_bytes=number("safe_bytes"),
        directory_bytes=directory_bytes,
        missing_operations=missing,
    )


def _directory_bytes(cursor: Any) -> int:
    cursor.execute("SELECT coalesce(sum(size), 0)::bigint AS size FROM pg_ls_waldir()")
    return int(cursor.fetchone()["size"])
