"""Connections: exact session settings, any password, and errors that name without telling values."""

from __future__ import annotations

import dataclasses

import psycopg2
import pytest
from pydantic import SecretStr

from cdc_runner.connections import SESSION_SETTINGS, classify, connect, safe_message
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import quote_literal
from tests.support.servers import Database, PostgresServer

pytestmark = pytest.mark.pg

CANARY = "canary-value"


def test_every_connection_has_the_exact_text_settings(target_database: Database):
    target_database.execute(f"ALTER DATABASE {target_database.name} SET DateStyle = 'German'")
    target_database.execute(f"ALTER DATABASE {target_database.name} SET extra_float_digits = 0")
    connection = connect(target_database.address(), application_name="it's a test\\")
    with connection.cursor() as cursor:
        for name, value in SESSION_SETTINGS.items():
            cursor.execute(f"SHOW {name}")
            assert cursor.fetchone() == (value,)
        cursor.execute("SHOW application_name")
        assert cursor.fetchone() == ("it's a test\\",)
    connection.close()


@pytest.mark.parametrize(
    "password",
    ["it's", 'say "x"', "back\\slash", "@/:?#%&=", "two words ", " lead", "Sandi é 世界", "x" * 1000, "host=evil", "'"],
)
def test_any_password_connects(target_server: PostgresServer, target_database: Database, password: str):
    role = f"{target_database.name}_role"
    # SCRAM compares after SASLprep; these texts are stable under it.
    target_server.execute(f"CREATE ROLE {role} LOGIN PASSWORD {quote_literal(password)}")
    try:
        address = dataclasses.replace(target_database.address(), username=role, password=SecretStr(password))
        connect(address, application_name="test").close()
        wrong = dataclasses.replace(address, password=SecretStr(password + "x"))
        with pytest.raises(RosettaError) as caught:
            connect(wrong, application_name="test")
        assert caught.value.kind is ErrorKind.SOURCE_AUTHENTICATION
    finally:
        target_server.execute(f"DROP ROLE {role}")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"password": SecretStr(CANARY)}, ErrorKind.DESTINATION_AUTHENTICATION),
        ({"username": "nobody_here"}, ErrorKind.DESTINATION_AUTHENTICATION),
        ({"port": 1}, ErrorKind.DESTINATION_UNAVAILABLE),
        ({"host": "nowhere.invalid"}, ErrorKind.DESTINATION_UNAVAILABLE),
        ({"database": "nothing"}, ErrorKind.DESTINATION_UNAVAILABLE),
        ({"sslmode": "verify-full"}, ErrorKind.DESTINATION_UNAVAILABLE),
        ({"password": SecretStr("nul\x00nul")}, ErrorKind.CONFIG_INVALID),
        ({"password": SecretStr("surrogate \ud800")}, ErrorKind.CONFIG_INVALID),
    ],
)
def test_a_failed_connection_names_the_address_and_no_password(
    target_database: Database, change: dict[str, object], kind: ErrorKind
):
    address = dataclasses.replace(target_database.address(), **change)  # type: ignore[arg-type]  # typed by the table
    with pytest.raises(RosettaError) as caught:
        connect(address, application_name="test", side="destination")
    error = caught.value
    assert error.kind is kind
    assert f"{address.host}:{address.port}/{address.database} as {address.username}" in error.message
    for secret in (CANARY, target_database.server.password):
        assert secret not in error.message
    # The driver's error, which may hold more, is not shown in a traceback.
    assert error.__suppress_context__


STATEMENTS = [
    ("SELECT 'canary-value'::int", ErrorKind.DESTINATION_ROW_REJECTED),
    ("SELECT 'canary-value'::date", ErrorKind.DESTINATION_ROW_REJECTED),
    ("SELECT 'canary-value'::json", ErrorKind.DESTINATION_ROW_REJECTED),
    ("SELECT '\"canary-value'::inet", ErrorKind.DESTINATION_ROW_REJECTED),
    ("SELECT '{canary-value'::int[]", ErrorKind.DESTINATION_ROW_REJECTED),
    ("DO $$ BEGIN RAISE EXCEPTION 'canary-value'; END $$", ErrorKind.DESTINATION_ROW_REJECTED),
    ("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '22000', MESSAGE = 'bad \"canary-value\": canary-value'; END $$",
     ErrorKind.DESTINATION_ROW_REJECTED),
    ("INSERT INTO t VALUES ('canary-value'), ('canary-value')", ErrorKind.DESTINATION_ROW_REJECTED),
    ("INSERT INTO t VALUES (NULL)", ErrorKind.DESTINATION_ROW_REJECTED),
    ("INSERT INTO t VALUES ('canary-value-that-is-too-long-for-the-column')", ErrorKind.DESTINATION_ROW_REJECTED),
    ("INSERT INTO checked VALUES ('canary-value')", ErrorKind.DESTINATION_ROW_REJECTED),
    ("COPY t FROM PROGRAM 'echo canary-value; echo canary-value'", ErrorKind.DESTINATION_ROW_REJECTED),
    ("SELECT * FROM absent", ErrorKind.DESTINATION_SCHEMA),
    ("SELECT absent FROM t", ErrorKind.DESTINATION_SCHEMA),
    ("SET statement_timeout = 1; SELECT pg_sleep(5)", ErrorKind.DESTINATION_UNAVAILABLE),
    ("SET default_transaction_read_only = on; COMMIT; CREATE TABLE z ()", ErrorKind.DESTINATION_UNAVAILABLE),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "kind"), STATEMENTS)
def test_an_error_has_its_kind_and_no_row_value(target_database: Database, statement: str, kind: ErrorKind):
    target_database.execute("CREATE TABLE t (a varchar(20) PRIMARY KEY)")
    target_database.execute("CREATE TABLE checked (a text CHECK (a <> 'canary-value'))")
    connection = target_database.connect()
    with pytest.raises(psycopg2.Error) as caught, connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()
    error = classify(caught.value, "destination")
    assert error.kind is kind
    assert "canary" not in error.message
    assert "canary" not in repr(error.detail)
    assert f"[SQLSTATE {caught.value.pgcode}]" in error.message


def test_constraint_and_column_are_named(target_database: Database):
    target_database.execute("CREATE TABLE t (a int CONSTRAINT no_zero CHECK (a <> 0))")
    with pytest.raises(psycopg2.Error) as caught:
        target_database.execute("INSERT INTO t VALUES (0)")
    error = classify(caught.value, "destination")
    assert error.detail["constraint"] == "no_zero"
    assert "no_zero" in error.message


def test_a_closed_connection_is_unavailable(target_database: Database):
    connection = target_database.connect()
    connection.close()
    with pytest.raises(psycopg2.Error) as caught:
        connection.cursor()
    assert classify(caught.value, "source").kind is ErrorKind.SOURCE_UNAVAILABLE


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("SELECT pg_drop_replication_slot('absent')", ErrorKind.SLOT_MISSING),
        ("DROP PUBLICATION absent", ErrorKind.PUBLICATION_MISSING),
    ],
)
def test_source_objects_are_told_apart(source_database: Database, statement: str, kind: ErrorKind):
    with pytest.raises(psycopg2.Error) as caught:
        source_database.execute(statement)
    assert classify(caught.value, "source").kind is kind


# What PostgreSQL's own message texts look like, and what is kept of them.
@pytest.mark.parametrize(
    ("sqlstate", "message", "kept"),
    [
        ("22P02", 'invalid input syntax for type integer: "abc"', "invalid input syntax for type integer"),
        ("22003", 'value "99999999999" is out of range for type integer', "value ... is out of range for type integer"),
        ("22021", 'invalid byte sequence for encoding "UTF8": 0xff 0xfe', "invalid byte sequence for encoding ..."),
        ("22P02", 'malformed array literal: "{"a"', "malformed array literal"),
        ("22001", "value too long for type character varying(3)", "value too long for type character varying(3)"),
        ("P0001", "customer 4711 is blocked", "a trigger or function raised an error"),
        ("23505", 'duplicate key value violates unique constraint "t_pkey"',
         'duplicate key value violates unique constraint "t_pkey"'),
        ("42P01", 'relation "absent" does not exist\nLINE 1: x', 'relation "absent" does not exist'),
    ],
)  # fmt: skip
def test_value_free_part_of_a_message(sqlstate: str, message: str, kept: str):
    assert safe_message(sqlstate, message) == kept


def test_other_exceptions_are_internal_and_silent():
    error = classify(ValueError(CANARY), "source")
    assert error.kind is ErrorKind.INTERNAL
    assert CANARY not in error.message
