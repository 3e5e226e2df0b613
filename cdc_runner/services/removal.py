"""Removes what Rosetta made on a source server: the slot and the publication."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg2
import psycopg2.extensions

from cdc_runner.capture.publication import drop_publication, drop_slot, read_slot
from cdc_runner.connections import classify, connect
from cdc_runner.errors import RosettaError
from cdc_runner.schema import quote_identifier, quote_literal
from cdc_runner.spec import PostgresAddress


@dataclass(slots=True)
class Removal:
    """What was removed, and what is left with the statement to run by hand.

    Attributes:
        removed: descriptions of what was removed.
        left_over: one line each: what, where, why, and the SQL statement.
        kept: what stays on purpose.
    """

    removed: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """Return it for machines."""
        return {"removed": self.removed, "left_over": self.left_over, "kept": self.kept}

    def as_lines(self) -> list[str]:
        """Return it for a person."""
        return [
            *(f"removed: {one}" for one in self.removed),
            *(f"kept: {one}" for one in self.kept),
            *(f"LEFT OVER: {one}" for one in self.left_over),
        ]


def slot_statement(slot: str) -> str:
    """Return the statement that drops a slot."""
    return f"SELECT pg_drop_replication_slot({quote_literal(slot)});"


def publication_statement(publication: str) -> str:
    """Return the statement that drops a publication."""
    return f"DROP PUBLICATION {quote_identifier(publication)};"


def remove_from_source(
    address: PostgresAddress, slot: str, publication: str, *, publication_shared_with: str | None = None
) -> Removal:
    """Drop a slot and a publication on a source; what cannot be dropped is listed, never passed over.

    A publication FOR ALL TABLES was not made by Rosetta, and one that another source uses is needed: both stay.
    """
    result = Removal()
    where = f"{address.host}:{address.port}/{address.database}"
    try:
        connection = connect(address, application_name="rosetta remove")
    except RosettaError as error:
        result.left_over.append(f"slot {slot} on {where}, if it exists ({error.message}): {slot_statement(slot)}")
        result.left_over.append(
            f"publication {publication} on {where}, if it exists: {publication_statement(publication)}"
        )
        return result
    try:
        _attempt(result, f"slot {slot} on {where}", slot_statement(slot), lambda: _drop_slot(connection, slot))
        if publication_shared_with is not None:
            result.kept.append(f"publication {publication} on {where}: source {publication_shared_with} uses it too")
        elif _for_all_tables(connection, publication):
            result.kept.append(
                f"publication {publication} on {where}: it is FOR ALL TABLES and was not made by Rosetta;"
                f" to drop it: {publication_statement(publication)}"
            )
        else:
            _attempt(
                result,
                f"publication {publication} on {where}",
                publication_statement(publication),
                lambda: drop_publication(connection, publication),
            )
    finally:
        connection.close()
    return result


def _drop_slot(connection: psycopg2.extensions.connection, slot: str) -> bool:
    state = read_slot(connection, slot)
    connection.rollback()
    return state is not None and drop_slot(connection, slot)


def _for_all_tables(connection: psycopg2.extensions.connection, publication: str) -> bool:
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT puballtables FROM pg_publication WHERE pubname = %s", (publication,))
            row = cursor.fetchone()
    except psycopg2.Error:
        return False
    return bool(row and row[0])


def _attempt(result: Removal, what: str, statement: str, action: Callable[[], bool]) -> None:
    try:
        if action():
            result.removed.append(what)
    except (psycopg2.Error, RosettaError) as error:
        result.left_over.append(f"{what} ({classify(error, 'source').message}): {statement}")
