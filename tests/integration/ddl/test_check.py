"""What is said of an existing target table before the first write."""

from __future__ import annotations

import pytest

from cdc_runner.destinations.postgres import check, ddl
from cdc_runner.destinations.postgres.check import Problem, check_table
from cdc_runner.schema import TableId
from tests.integration.ddl.conftest import Pair

pytestmark = pytest.mark.pg

SOURCE = """CREATE TABLE t (id int PRIMARY KEY, name varchar(20), n numeric(8,2), at timestamptz,
            twice int GENERATED ALWAYS AS (id * 2) STORED)"""


def problems(pair: Pair, target: str, source: str = SOURCE) -> list[Problem]:
    pair.at_source(source)
    pair.at_target(target)
    schema = pair.schema()
    return check_table(pair.target, pair.place(schema), schema, pair.schema_map)


def test_table_that_rosetta_made_has_no_problem(pair: Pair) -> None:
    pair.at_source("CREATE TYPE mood AS ENUM ('a')", "CREATE DOMAIN d AS numeric(5,2)", "CREATE EXTENSION citext")
    pair.at_source("CREATE TABLE t (id int, m mood[], d d, c citext, g int GENERATED ALWAYS AS (id) STORED, "
                   "v varchar(3), code text NOT NULL, PRIMARY KEY (id))",
                   "CREATE UNIQUE INDEX codes ON t (code)",
                   "ALTER TABLE t REPLICA IDENTITY USING INDEX codes")  # fmt: skip
    schema = pair.create()
    assert check_table(pair.target, pair.place(schema), schema, pair.schema_map) == []


def test_wider_columns_and_extra_nullable_ones_are_no_problem(pair: Pair) -> None:
    assert problems(
        pair,
        """CREATE TABLE t (extra text, id bigint PRIMARY KEY, name text, n numeric(12,4), at timestamptz,
           filled int NOT NULL DEFAULT 1, twice int GENERATED ALWAYS AS (id * 2) STORED)""",
    ) == []  # fmt: skip


@pytest.mark.parametrize(
    ("target", "column", "message"),
    [
        ("id int PRIMARY KEY, n numeric(8,2), at timestamptz", "name", "lacks column name"),
        ("id int PRIMARY KEY, name varchar(10), n numeric(8,2), at timestamptz", "name", r"varying\(10\).*cannot"),
        ("id int PRIMARY KEY, name text, n numeric(8,1), at timestamptz", "n", r"numeric\(8,1\)"),
        ("id int PRIMARY KEY, name text, n float8, at timestamptz", "n", "double precision"),
        ("id int PRIMARY KEY, name text, n numeric, at timestamp", "at", "timestamp without time zone"),
        ("id smallint PRIMARY KEY, name text, n numeric, at timestamptz", "id", "smallint"),
        ("id int PRIMARY KEY, name text NOT NULL, n numeric, at timestamptz", "name", "NOT NULL at the destination"),
        ("id int PRIMARY KEY, name text, n numeric, at timestamptz, x int NOT NULL", "x", "NOT NULL without a default"),
        ("id int PRIMARY KEY, name text, n int GENERATED ALWAYS AS (1) STORED, at timestamptz", "n", "int"),
        ("id int PRIMARY KEY, name text GENERATED ALWAYS AS ('') STORED, n numeric, at timestamptz", "name", "is gen"),
        ("id int PRIMARY KEY, name text, n numeric, at timestamptz, twice int", "twice", "generated at the source"),
        ("id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text, n numeric, at timestamptz", "id", "ALWAYS AS"),
        ("id int, name text, n numeric, at timestamptz", None, r"has no primary key .* key \(id\)"),
        ("id int, name text, n numeric PRIMARY KEY, at timestamptz", "n", "NOT NULL at the destination"),
        ("id int, name text, n numeric, at timestamptz, x serial PRIMARY KEY", None, r"primary key \(x\).* key \(id\)"),
        ("id int UNIQUE DEFERRABLE, name text, n numeric, at timestamptz", None, "no unique index on the source's key"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_a_remedy(pair: Pair, target: str, column: str | None, message: str) -> None:
    found = problems(pair, f"CREATE TABLE t ({target})")
    errors = [one for one in found if one.is_error]
    assert errors[0].column == column
    assert errors[0].table == TableId("public", "t")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(errors[0].text)
    assert errors[0].remedy


def test_remedies_that_are_statements_work(pair: Pair) -> None:
    found = problems(
        pair,
        """CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY, name varchar(10) NOT NULL,
           at timestamptz GENERATED ALWAYS AS ('2026-01-01 00:00:00Z') STORED, x int NOT NULL)""",
    )
    assert len(found) == 7
    for problem in found:
        statement = problem.remedy.removeprefix("run ").partition(" at the destination")[0].partition(", or")[0]
        pair.at_target(statement)
    schema = pair.schema()
    assert check_table(pair.target, pair.place(schema), schema, pair.schema_map) == []


def test_unique_indexes_of_the_target_alone(pair: Pair) -> None:
    found = problems(
        pair, "CREATE TABLE t (id int PRIMARY KEY, name text UNIQUE, n numeric, at timestamptz)",
        "CREATE TABLE t (id int PRIMARY KEY, name text, n numeric, at timestamptz)",
    )  # fmt: skip
    assert [(one.is_error, "unique index t_name_key" in one.message) for one in found] == [(False, True)]


def test_target_with_a_key_for_a_source_without_one(pair: Pair) -> None:
    found = problems(pair, "CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE t (id int NOT NULL)")
    assert [one.is_error for one in found] == [True]


def test_views_are_refused(pair: Pair) -> None:
    (problem,) = problems(pair, "CREATE VIEW t AS SELECT 1 AS id")
    assert "is a view" in problem.message


def test_missing_rights_are_listed_with_the_grant(pair: Pair) -> None:
    pair.at_target(
        "CREATE ROLE plain_role", "CREATE TABLE t (id int PRIMARY KEY)", "GRANT SELECT, INSERT ON t TO plain_role",
        "SET ROLE plain_role",
    )  # fmt: skip
    found = problems(pair, "SELECT 1", "CREATE TABLE t (id int PRIMARY KEY)")
    assert [one.remedy for one in found] == [
        'run GRANT UPDATE, DELETE, TRUNCATE ON "public"."t" TO "plain_role" at the destination'
    ]


def test_row_security_is_named(pair: Pair) -> None:
    pair.at_target(
        "CREATE ROLE plain_role", "CREATE TABLE t (id int PRIMARY KEY)", "GRANT ALL ON t TO plain_role",
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY", "SET ROLE plain_role",
    )  # fmt: skip
    (problem,) = problems(pair, "SELECT 1", "CREATE TABLE t (id int PRIMARY KEY)")
    assert "row security" in problem.message


def test_missing_right_to_create_a_table_or_schema(pair: Pair) -> None:
    pair.at_source("CREATE TABLE t (id int PRIMARY KEY)")
    schema = pair.schema()
    for table in (TableId("public", "t"), TableId("dw", "t")):
        assert check_table(pair.target, table, schema, pair.schema_map) == []
    pair.at_target("CREATE ROLE plain_role", "SET ROLE plain_role")
    (first,) = check_table(pair.target, TableId("public", "t"), schema, pair.schema_map)
    (second,) = check_table(pair.target, TableId("dw", "t"), schema, pair.schema_map)
    assert 'GRANT USAGE, CREATE ON SCHEMA "public" TO "plain_role"' in first.remedy
    assert 'CREATE SCHEMA "dw" AUTHORIZATION "plain_role"' in second.remedy


def test_triggers_and_foreign_keys_count_where_the_role_cannot_turn_them_off(pair: Pair) -> None:
    pair.at_target(
        "CREATE TABLE parent (id int PRIMARY KEY)", "CREATE TABLE t (id int PRIMARY KEY REFERENCES parent)",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "CREATE TRIGGER usual BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()",
        "CREATE TRIGGER always BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()",
        "ALTER TABLE t ENABLE ALWAYS TRIGGER always", "CREATE ROLE plain_role", "GRANT ALL ON t TO plain_role",
    )  # fmt: skip
    as_superuser = problems(pair, "SELECT 1", "CREATE TABLE t (id int PRIMARY KEY)")
    assert check.may_be_replica(pair.target)
    assert [one.message.split()[:2] for one in as_superuser] == [["trigger", "always"]]
    pair.at_target("SET ROLE plain_role")
    assert not check.may_be_replica(pair.target)
    schema = pair.schema()
    plain = check_table(pair.target, TableId("public", "t"), schema, pair.schema_map)
    assert [" ".join(one.message.split()[:3]) for one in plain] == [
        "trigger always of", "trigger usual of", "foreign key t_id_fkey",
    ]  # fmt: skip
    assert not any(one.is_error for one in plain)
    pair.at_target("RESET ROLE", "GRANT SET ON PARAMETER session_replication_role TO plain_role", "SET ROLE plain_role")
    assert check.may_be_replica(pair.target)


def test_holds_rows_and_table_exists(pair: Pair) -> None:
    table = TableId("public", "t")
    assert not check.table_exists(pair.target, table)
    pair.at_source("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    schema = pair.schema()
    ddl.create_table(pair.target, table, schema, pair.schema_map)
    assert check.table_exists(pair.target, table) and not check.holds_rows(pair.target, table)
    pair.copy(schema)
    assert check.holds_rows(pair.target, table)
