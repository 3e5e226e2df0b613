"""Errors of the engine and what is done about each kind.

    RosettaError(kind, message, detail=..., cause=...)
      kind     an ErrorKind: which side failed and why
      message  what failed, in one line; never a row value, never a secret
      policy   POLICIES[kind]: retry, pause, dead letter or stop, and one sentence for the operator

One class and one table, so that the command line, the Dagster pages and the notifications say the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Reaction(StrEnum):
    """What the engine does by itself when a kind of error is met."""

    RETRY = "retry"
    """Back off and try again for as long as it takes."""
    PAUSE = "pause"
    """Stop the pipeline and wait for a person."""
    DEAD_LETTER = "dead_letter"
    """Put the row aside with its reason; other rows flow."""
    REFUSE = "refuse"
    """Do nothing at all: the request itself is wrong."""


class ErrorKind(StrEnum):
    """Side and cause of a failure."""

    CONFIG_INVALID = "config_invalid"
    CONFIG_DATABASE_UNAVAILABLE = "config_database_unavailable"
    CREDENTIAL_KEY_INVALID = "credential_key_invalid"
    CREDENTIAL_UNREADABLE = "credential_unreadable"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    SOURCE_UNAVAILABLE = "source_unavailable"
    SOURCE_AUTHENTICATION = "source_authentication"
    SOURCE_PERMISSION = "source_permission"
    SOURCE_SETTING = "source_setting"
    SOURCE_TABLE_UNSUPPORTED = "source_table_unsupported"
    PUBLICATION_MISSING = "publication_missing"
    PUBLICATION_DRIFT = "publication_drift"
    SLOT_MISSING = "slot_missing"
    SLOT_INVALIDATED = "slot_invalidated"
    SLOT_IN_USE = "slot_in_use"
    SLOT_AHEAD = "slot_ahead"
    CAPTURE_FAILED = "capture_failed"
    SCHEMA_CHANGE_HELD = "schema_change_held"
    DESTINATION_UNAVAILABLE = "destination_unavailable"
    DESTINATION_AUTHENTICATION = "destination_authentication"
    DESTINATION_PERMISSION = "destination_permission"
    DESTINATION_CONFLICT = "destination_conflict"
    DESTINATION_SCHEMA = "destination_schema"
    DESTINATION_ROW_REJECTED = "destination_row_rejected"
    DESTINATION_FULL = "destination_full"
    DEAD_LETTER_UNAVAILABLE = "dead_letter_unavailable"
    DEAD_LETTER_FULL = "dead_letter_full"
    PARKED_LOST = "parked_lost"
    REBUILD_REFUSED = "rebuild_refused"
    FENCED = "fenced"
    LEASE_HELD = "lease_held"
    SPILL_FAILED = "spill_failed"
    EMBEDDED_SERVER = "embedded_server"
    RUNNER_FAILED = "runner_failed"
    NOTIFICATION_FAILED = "notification_failed"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Policy:
    """The reaction to a kind of error and the sentence that tells the operator what to do."""

    reaction: Reaction
    solution: str


POLICIES: dict[ErrorKind, Policy] = {
    ErrorKind.CONFIG_INVALID: Policy(Reaction.REFUSE, "Correct the named field and apply again; nothing was changed."),
    ErrorKind.CONFIG_DATABASE_UNAVAILABLE: Policy(
        Reaction.RETRY, "Check that CONFIG_DATABASE_URL points to a running PostgreSQL server."
    ),
    ErrorKind.CREDENTIAL_KEY_INVALID: Policy(
        Reaction.REFUSE, "Set CREDENTIAL_ENCRYPTION_KEY to the base64 text that `rosetta keygen` prints."
    ),
    ErrorKind.CREDENTIAL_UNREADABLE: Policy(
        Reaction.PAUSE, "Restore the key that the credential was stored with, or store the credential again."
    ),
    ErrorKind.NOT_FOUND: Policy(Reaction.REFUSE, "Check the name; `rosetta <kind> list` shows the known ones."),
    ErrorKind.CONFLICT: Policy(Reaction.REFUSE, "Choose another name, or remove what uses it first."),
    ErrorKind.SOURCE_UNAVAILABLE: Policy(
        Reaction.RETRY, "Check host, port and network of the source; the pipeline resumes by itself."
    ),
    ErrorKind.SOURCE_AUTHENTICATION: Policy(
        Reaction.PAUSE, "Correct the source's user name or password and start the pipeline again."
    ),
    ErrorKind.SOURCE_PERMISSION: Policy(
        Reaction.PAUSE, "Grant the named right to the source role; `rosetta doctor` prints the statement."
    ),
    ErrorKind.SOURCE_SETTING: Policy(Reaction.PAUSE, "Change the named server setting; most need a restart."),
    ErrorKind.SOURCE_TABLE_UNSUPPORTED: Policy(
        Reaction.PAUSE,
        "Leave the table out, give it a replica identity, or use capture_engine pgoutput for the named columns.",
    ),
    ErrorKind.PUBLICATION_MISSING: Policy(
        Reaction.PAUSE, "Create the publication again with `rosetta pipeline refresh`, then check for a gap."
    ),
    ErrorKind.PUBLICATION_DRIFT: Policy(Reaction.PAUSE, "Restore the publication's tables and operations."),
    ErrorKind.SLOT_MISSING: Policy(
        Reaction.PAUSE, "The slot was dropped: run `rosetta pipeline refresh` to copy the tables again."
    ),
    ErrorKind.SLOT_INVALIDATED: Policy(
        Reaction.PAUSE,
        "The server removed WAL that was still needed: run `rosetta pipeline refresh` to copy the tables again.",
    ),
    ErrorKind.SLOT_IN_USE: Policy(Reaction.RETRY, "Another process reads the slot; stop it, or wait for it to end."),
    ErrorKind.SLOT_AHEAD: Policy(
        Reaction.PAUSE, "Changes are missing between the two positions: run `rosetta pipeline refresh`."
    ),
    ErrorKind.CAPTURE_FAILED: Policy(Reaction.RETRY, "Read the reason; the pipeline restarts from its last position."),
    ErrorKind.SCHEMA_CHANGE_HELD: Policy(
        Reaction.PAUSE, "Change the target table or the schema policy, then start the pipeline again."
    ),
    ErrorKind.DESTINATION_UNAVAILABLE: Policy(
        Reaction.RETRY, "Check host, port and network of the destination; it catches up by itself."
    ),
    ErrorKind.DESTINATION_AUTHENTICATION: Policy(
        Reaction.PAUSE, "Correct the destination's user name or password and start the pipeline again."
    ),
    ErrorKind.DESTINATION_PERMISSION: Policy(
        Reaction.PAUSE, "Grant the named right to the destination role; `rosetta doctor` prints the statement."
    ),
    ErrorKind.DESTINATION_CONFLICT: Policy(
        Reaction.RETRY, "A concurrent transaction was in the way; the batch is tried again."
    ),
    ErrorKind.DESTINATION_SCHEMA: Policy(
        Reaction.PAUSE, "Make the named target column or table fit the source, then start the pipeline again."
    ),
    ErrorKind.DESTINATION_ROW_REJECTED: Policy(
        Reaction.DEAD_LETTER,
        "The target refuses a row: change the constraint or the row at the target, then run `rosetta dlq replay`.",
    ),
    ErrorKind.DEAD_LETTER_UNAVAILABLE: Policy(
        Reaction.RETRY,
        "Make Redis of REDIS_URL reachable and durable (appendonly yes, maxmemory-policy noeviction); `rosetta doctor` "
        "says what is wrong. Nothing is lost: the slot waits, and the destination goes on by itself.",
    ),
    ErrorKind.DEAD_LETTER_FULL: Policy(
        Reaction.RETRY,
        "Replay or purge dead letters (`rosetta dlq list`), or raise dead_letter_max_entries; the destination goes on "
        "by itself.",
    ),
    ErrorKind.PARKED_LOST: Policy(
        Reaction.PAUSE,
        "Changes are missing that the slot does not have any more: run `rosetta pipeline refresh`.",
    ),
    ErrorKind.DESTINATION_FULL: Policy(Reaction.RETRY, "Free disk space at the destination."),
    ErrorKind.REBUILD_REFUSED: Policy(
        Reaction.REFUSE,
        "The old table stays in its place, with every change; remove what is in the way and ask for a rebuild again.",
    ),
    ErrorKind.FENCED: Policy(Reaction.RETRY, "A newer runner has taken over this pipeline; nothing needs doing."),
    ErrorKind.LEASE_HELD: Policy(Reaction.RETRY, "Another runner holds the pipeline; stop it to run here."),
    ErrorKind.SPILL_FAILED: Policy(Reaction.RETRY, "Free disk space under ROSETTA_HOME of the runner."),
    ErrorKind.EMBEDDED_SERVER: Policy(
        Reaction.REFUSE, "Correct what is named, or point the settings at servers of your own; nothing was lost."
    ),
    ErrorKind.RUNNER_FAILED: Policy(
        Reaction.RETRY, "Read logs/runner.log in ROSETTA_HOME of the runner's host; Dagster tries again by itself."
    ),
    ErrorKind.NOTIFICATION_FAILED: Policy(
        Reaction.RETRY, "Check the channel with the job test_notification; it is sent again by itself until it arrives."
    ),
    ErrorKind.INTERNAL: Policy(Reaction.RETRY, "This is a defect of Rosetta: report it with the log of the pipeline."),
}


@dataclass(slots=True)
class RosettaError(Exception):
    """A failure that Rosetta names.

    Attributes:
        kind: side and cause; decides the reaction.
        message: one line for a person, without row values and without secrets.
        detail: names and numbers for machines (never values of rows).
    """

    kind: ErrorKind
    message: str
    detail: dict[str, str | int | float | bool | None] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    @property
    def policy(self) -> Policy:
        """What is done about this error, and what the operator can do."""
        return POLICIES[self.kind]
