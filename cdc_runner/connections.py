"""Connections to source and destination databases, and what their errors mean.

    connect(address, application_name=...)   a psycopg2 connection with fixed session settings
    classify(error, side)                    the RosettaError of a psycopg2 error

Every connection has the same session settings, so that a value has one text form everywhere. An error's text never
holds a password nor a value of a row: PostgreSQL's DETAIL and CONTEXT lines carry rows, and so do some primary
messages, hence only names from the diagnostics and the parts of the primary message that hold no value are kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import psycopg2
import psycopg2.extensions

from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.spec import PostgresAddress

Side = Literal["source", "destination"]

CONNECT_TIMEOUT_SECONDS = 10

SESSION_SETTINGS: dict[str, str] = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "client_encoding": "UTF8",
    "lc_monetary": "C",
    "array_nulls": "on",
    "xmloption": "content",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}
"""Session settings under which the text form of every value is exact and the same on both sides, without time limits.

A database or a role may have others: with `array_nulls` off a NULL in an array of text would become the text `NULL`.
"""

_KEEPALIVE: dict[str, Any] = {
    "keepalives": 1,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    # Unacknowledged data on a dead link would otherwise wait for the kernel's own limit, about 15 minutes.
    "tcp_user_timeout": 35_000,
}


def connect(
    address: PostgresAddress,
    *,
    application_name: str,
    side: Side = "source",
    connect_timeout_seconds: int = CONNECT_TIMEOUT_SECONDS,
    connection_factory: type[psycopg2.extensions.connection] | None = None,
    settings: dict[str, str] | None = None,
) -> psycopg2.extensions.connection:
    """Open a connection with keepalives and the fixed session settings.

    Args:
        address: where to connect and as whom.
        application_name: shown in `pg_stat_activity`.
        side: which side errors are charged to.
        connect_timeout_seconds: limit for each address that the host name resolves to.
        connection_factory: for example `psycopg2.extras.LogicalReplicationConnection`.
        settings: more session settings, by name; they win over the fixed ones.

    Raises:
        RosettaError: unreachable, refused, or wrong user or password; the text names host, port, database and user.
    """
    try:
        connection: psycopg2.extensions.connection = psycopg2.connect(
            connection_factory=connection_factory or psycopg2.extensions.connection,
            **connection_parameters(address),
            application_name=application_name,
            connect_timeout=connect_timeout_seconds,
            options=session_options({**SESSION_SETTINGS, **(settings or {})}),
            **_KEEPALIVE,
        )
        return connection
    except (psycopg2.Error, ValueError, UnicodeError) as error:
        # `from None`: the driver's error may hold what the message leaves out, and a traceback would print it.
        raise _connect_error(error, side, address) from None


def connection_parameters(address: PostgresAddress) -> dict[str, Any]:
    """Return libpq parameters of an address, with the password; for keywords of a driver, never for one text."""
    parameters: dict[str, Any] = {
        "host": address.host,
        "port": address.port,
        "dbname": address.database,
        "user": address.username,
        "password": address.password.get_secret_value(),
        "sslmode": address.sslmode,
        # Kerberos is not used, and its probing costs a round trip where a ticket cache exists.
        "gssencmode": "disable",
    }
    for name in ("sslrootcert", "sslcert", "sslkey"):
        value = getattr(address, name)
        if value:
            parameters[name] = value
    return parameters


def session_options(settings: dict[str, str]) -> str:
    """Return the `options` parameter that sets session settings at the start of a connection."""
    return " ".join(f"-c {name}={_escape_option(value)}" for name, value in settings.items())


def _escape_option(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


def describe(address: PostgresAddress) -> str:
    """Return host, port, database and user for a message; never the password."""
    return f"{address.host}:{address.port}/{address.database} as {address.username}"


def classify(error: BaseException, side: Side) -> RosettaError:
    """Return the RosettaError of a driver error.

    The kind follows from the SQLSTATE; the message holds the SQLSTATE, names from the diagnostics and the value-free
    part of the primary message. A RosettaError is returned as it is.
    """
    if isinstance(error, RosettaError):
        return error
    if not isinstance(error, psycopg2.Error):
        return RosettaError(ErrorKind.INTERNAL, f"unexpected {type(error).__name__} on the {side} side")
    sqlstate = error.pgcode or ""
    if not sqlstate:
        return _without_sqlstate(error, side)
    diagnostics = error.diag
    primary = diagnostics.message_primary or ""
    names = {
        "schema": diagnostics.schema_name,
        "table": diagnostics.table_name,
        "column": diagnostics.column_name,
        "constraint": diagnostics.constraint_name,
        "data_type": diagnostics.datatype_name,
    }
    known = {name: value for name, value in names.items() if value}
    text = safe_message(sqlstate, primary)
    # The constraint is mostly named in the primary message already; the table is not always.
    missing = ", ".join(f"{name} {value}" for name, value in known.items() if value not in text)
    message = f"{side}: {text}{f' ({missing})' if missing else ''} [SQLSTATE {sqlstate}]"
    return RosettaError(_kind(sqlstate, primary, side), message, {"sqlstate": sqlstate, **known})


def classify_fields(sqlstate: str, primary: str, side: Side) -> RosettaError:
    """Return the RosettaError of an error that came past the driver, from its SQLSTATE and primary message."""
    message = f"{side}: {safe_message(sqlstate, primary)} [SQLSTATE {sqlstate}]"
    return RosettaError(_kind(sqlstate, primary, side), message, {"sqlstate": sqlstate})


def refusal_text(sqlstate: str, primary: str, names: Sequence[str | None]) -> str:
    """Return why a target refused a row, without a value of it.

    Args:
        sqlstate: of the error.
        primary: its primary message.
        names: what the diagnostics name: schema, table, column, constraint, type; empty where they name none.
    """
    text = safe_message(sqlstate, primary)
    labels = ("schema", "table", "column", "constraint", "data_type")
    missing = [f"{label} {name}" for label, name in zip(labels, names, strict=True) if name and name not in text]
    details = f" ({', '.join(missing)})" if missing else ""
    return f"{text}{details} [SQLSTATE {sqlstate}]"


_SENSITIVE_CLASSES = ("21", "22", "38", "39", "F0", "HV", "P0")
"""SQLSTATE classes whose primary message may hold a value of a row."""

_GENERIC = {
    "P0": "a trigger or function raised an error",
    "38": "an external routine failed",
    "39": "an external routine failed",
    "HV": "a foreign data wrapper failed",
    "F0": "a configuration file is wrong",
}


def safe_message(sqlstate: str, primary: str) -> str:
    """Return the part of a primary message that cannot hold a value of a row."""
    line = primary.strip().partition("\n")[0]
    kind = sqlstate[:2]
    if kind not in _SENSITIVE_CLASSES:
        return line
    if kind in _GENERIC:
        return _GENERIC[kind]
    # `invalid input syntax for type integer: "value"`, `value "value" is out of range for type smallint`,
    # `invalid byte sequence for encoding "UTF8": 0xff`: what stands in quotes or behind a colon is left out.
    first, last = line.find('"'), line.rfind('"')
    if first >= 0:
        line = f"{line[:first]}...{line[last + 1 :]}" if last > first else line[:first]
    return line.partition(":")[0].strip()


_EXACT: dict[str, tuple[ErrorKind, ErrorKind]] = {
    "28000": (ErrorKind.SOURCE_AUTHENTICATION, ErrorKind.DESTINATION_AUTHENTICATION),
    "28P01": (ErrorKind.SOURCE_AUTHENTICATION, ErrorKind.DESTINATION_AUTHENTICATION),
    "42501": (ErrorKind.SOURCE_PERMISSION, ErrorKind.DESTINATION_PERMISSION),
    "53100": (ErrorKind.SOURCE_UNAVAILABLE, ErrorKind.DESTINATION_FULL),
    # A row, or a key in an index, that is too large for a page.
    "54000": (ErrorKind.CAPTURE_FAILED, ErrorKind.DESTINATION_ROW_REJECTED),
    "53400": (ErrorKind.SOURCE_SETTING, ErrorKind.DESTINATION_UNAVAILABLE),
    "55006": (ErrorKind.SLOT_IN_USE, ErrorKind.DESTINATION_CONFLICT),
    "55P03": (ErrorKind.CAPTURE_FAILED, ErrorKind.DESTINATION_CONFLICT),
    "57014": (ErrorKind.SOURCE_UNAVAILABLE, ErrorKind.DESTINATION_UNAVAILABLE),
    "25006": (ErrorKind.SOURCE_UNAVAILABLE, ErrorKind.DESTINATION_UNAVAILABLE),
    "58P01": (ErrorKind.SLOT_INVALIDATED, ErrorKind.DESTINATION_UNAVAILABLE),
    "42601": (ErrorKind.INTERNAL, ErrorKind.INTERNAL),
}

_BY_CLASS: dict[str, tuple[ErrorKind, ErrorKind]] = {
    "08": (ErrorKind.SOURCE_UNAVAILABLE, ErrorKind.DESTINATION_UNAVAILABLE),
    "0A": (ErrorKind.SOURCE_TABLE_UNSUPPORTED, ErrorKind.DESTINATION_SCHEMA),
    "21": (ErrorKind.CAPTURE_FAILED, ErrorKind.DESTINATION_ROW_REJECTED),
    "22": (ErrorKind.CAPTURE_FAILED, ErrorKind.DESTINATION_ROW_REJECTED),
    "23": (ErrorKind.CAPTURE_FAILED, ErrorKind.DESTINATION_ROW_REJECTED),
    "28": (ErrorKind.SOURCE_AUTHENTICATION, ErrorKind.DESTINATION_AUTHENTICATION),
    "38": (ErrorKind.CAPTURE_FAILED, ErrorKind.DESTINATION_ROW_REJECTED),
    "39": (ErrorKind.CAPTURE_FAILED, ErrorKind.DESTINATION_ROW_REJECTED),
    "3D": (ErrorKind.SOURCE_UNAVAILABLE, ErrorKind.DESTINATION_UNAVAILABLE),
    "3F": (ErrorKind.CAPTURE_FAILED, ErrorKind.DESTINATION_SCHEMA),
    "40": (ErrorKind.CAPTURE_FAILED, ErrorKind.DESTINATION_CONFLICT),
    "42": (ErrorKind.CAPTURE_FAILED, ErrorKind.DESTINATION_SCHEMA),
    "44": (ErrorKind.CAPTURE_FAILED, ErrorKind.DESTINATION_ROW_REJECTED),
    "53": (ErrorKind.SOURCE_UNAVAILABLE, ErrorKind.DESTINATION_UNAVAILABLE),
    "54": (ErrorKind.CAPTURE_FAILED, ErrorKind.DESTINATION_SCHEMA),
    "55": (ErrorKind.SOURCE_SETTING, ErrorKind.DESTINATION_SCHEMA),
    "57": (ErrorKind.SOURCE_UNAVAILABLE, ErrorKind.DESTINATION_UNAVAILABLE),
    "58": (ErrorKind.SOURCE_UNAVAILABLE, ErrorKind.DESTINATION_UNAVAILABLE),
    "P0": (ErrorKind.CAPTURE_FAILED, ErrorKind.DESTINATION_ROW_REJECTED),
}


def _kind(sqlstate: str, primary: str, side: Side) -> ErrorKind:
    lowered = primary.lower()
    if side == "source":
        if sqlstate == "42704" and "publication" in lowered:
            return ErrorKind.PUBLICATION_MISSING
        if sqlstate == "42704" and "replication slot" in lowered:
            return ErrorKind.SLOT_MISSING
        if sqlstate == "55000" and "slot" in lowered and "wal_level" not in lowered:
            return ErrorKind.SLOT_INVALIDATED
    pair = _EXACT.get(sqlstate) or _BY_CLASS.get(sqlstate[:2]) or (ErrorKind.CAPTURE_FAILED, ErrorKind.INTERNAL)
    return pair[0] if side == "source" else pair[1]


# libpq gives no SQLSTATE for a failed connection, so the server's words decide (tests hold the real messages).
_AUTHENTICATION = re.compile(
    r"password authentication failed|no password supplied|no pg_hba\.conf entry|role \".*\" does not exist"
    r"|role \".*\" is not permitted to log in|authentication failed|pg_hba\.conf rejects"
)
_PERMISSION = re.compile(r"permission denied|must be superuser|not permitted to start|only roles with the REPLICATION")


def _without_sqlstate(error: psycopg2.Error, side: Side) -> RosettaError:
    text = " ".join(str(error).split())
    kind = ErrorKind.SOURCE_UNAVAILABLE if side == "source" else ErrorKind.DESTINATION_UNAVAILABLE
    if isinstance(error, psycopg2.ProgrammingError):
        return RosettaError(ErrorKind.INTERNAL, f"{side}: the driver refused a call ({type(error).__name__})")
    # Such texts come from libpq (network, TLS, start of the session), never from a statement, so hold no row.
    return RosettaError(kind, f"{side}: {text[:500] or 'the connection is closed'}")


def _connect_error(error: Exception, side: Side, address: PostgresAddress) -> RosettaError:
    where = f"{side} {describe(address)}"
    source = side == "source"
    if not isinstance(error, psycopg2.OperationalError):
        return RosettaError(
            ErrorKind.CONFIG_INVALID, f"cannot connect to {where}: a connection parameter is not acceptable"
        )
    text = " ".join(str(error).split())
    password = address.password.get_secret_value()
    if len(password) >= 4 and password not in (address.username, address.database, address.host):
        text = text.replace(password, "***")
    kind = ErrorKind.SOURCE_UNAVAILABLE if source else ErrorKind.DESTINATION_UNAVAILABLE
    if _AUTHENTICATION.search(text):
        kind = ErrorKind.SOURCE_AUTHENTICATION if source else ErrorKind.DESTINATION_AUTHENTICATION
    elif _PERMISSION.search(text):
        kind = ErrorKind.SOURCE_PERMISSION if source else ErrorKind.DESTINATION_PERMISSION
    elif "number of requested standby connections exceeds" in text:
        kind = ErrorKind.SOURCE_SETTING
    return RosettaError(kind, f"cannot connect to {where}: {text[:500]}", {"host": address.host, "port": address.port})
