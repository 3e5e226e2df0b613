"""Extensions that own types, created at the target when absent."""

from __future__ import annotations

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from cdc_runner.connections import safe_message
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import quote_identifier


def ensure_extension(target: psycopg2.extensions.connection, name: str, schema: str, needed_by: str) -> str | None:
    """Create an extension, with those it requires, unless the target has it; return its schema if it was created.

    Args:
        target: a connection in the caller's transaction.
        name: name of the extension.
        schema: where to put it; an extension that names its own schema goes there.
        needed_by: what needs it, for the error.

    Raises:
        RosettaError: DESTINATION_SCHEMA, the server lacks the extension or the role may not create it; names the
            statement to run.
    """
    with target.cursor() as cursor:
        cursor.execute("SELECT FROM pg_extension WHERE extname = %s", (name,))
        if cursor.rowcount:
            return None
        cursor.execute(
            "SELECT v.schema FROM pg_available_extensions e JOIN pg_available_extension_versions v "
            "ON v.name = e.name AND v.version = e.default_version WHERE e.name = %s",
            (name,),
        )
        row = cursor.fetchone()
        if row is None:
            raise _refused(
                name,
                f"{needed_by} needs extension {name}, which the destination's server does not have: install its files "
                f"there, then run CREATE EXTENSION {quote_identifier(name)}",
            )
        place = row[0] or schema
        cursor.execute("SELECT FROM pg_namespace WHERE nspname = %s", (place,))
        present = bool(cursor.rowcount)
        statement = f"CREATE EXTENSION {quote_identifier(name)} SCHEMA {quote_identifier(place)} CASCADE"
        try:
            if not present:
                cursor.execute(f"CREATE SCHEMA {quote_identifier(place)}")
            cursor.execute(statement)
        except psycopg2.Error as error:
            reason = safe_message(error.pgcode or "", error.diag.message_primary or "")
            raise _refused(
                name,
                f"{needed_by} needs extension {name}, which could not be created at the destination ({reason}): run "
                f"{statement} there as a role that may",
            ) from None
    return str(place)


def _refused(name: str, message: str) -> RosettaError:
    return RosettaError(ErrorKind.DESTINATION_SCHEMA, message, {"extension": name})
