"""Custom SQL that looks rows up at the destination: right with each change of a row, a clear stop without a table."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import pytest

from cdc_runner.custom_sql.types import lookup_kind
from cdc_runner.destinations.postgres.lookups import PostgresLookups
from cdc_runner.doctor.run import examine
from cdc_runner.schema import TableId
from cdc_runner.spec import DestinationSpec, PipelineSpec, SourceSpec, TableShape, TableSync
from tests.support.custom_sql import compare
from tests.support.pipelines import PipelineHarness
from tests.support.servers import Database

pytestmark = [pytest.mark.pg, pytest.mark.timeout(600)]

NEEDS_PERSON = 78
SOURCE = """
CREATE TABLE customers (id int PRIMARY KEY, name text, region text, part int);
CREATE TABLE orders (id int PRIMARY KEY, customer_id bigint, currency char(3), amount numeric(12,2), country text);
INSERT INTO customers SELECT i, 'c' || i, (ARRAY['north', 'south', 'none'])[i % 3 + 1], i % 2
    FROM generate_series(1, 30) i;
INSERT INTO orders SELECT i, i % 33, (ARRAY['EUR', 'USD', 'XXX', NULL])[i % 4 + 1], i / 3.0, 'c' || i
    FROM generate_series(1, 300) i;
"""
# A table of the same name as one of the source is another one.
LOOKED_UP = """
CREATE SCHEMA ref;
CREATE TABLE ref.rates (code varchar(3) PRIMARY KEY, rate numeric(10,4));
CREATE TABLE ref.customers (region varchar(20), part bigint, manager uuid, PRIMARY KEY (region, part));
CREATE TABLE ref.managers (id uuid PRIMARY KEY, who text);
INSERT INTO ref.rates VALUES ('EUR', 1), ('USD', 0.9);
INSERT INTO ref.customers SELECT r, p, md5(r || p)::uuid
    FROM unnest(ARRAY['north', 'south']) r, generate_series(0, 1) p;
INSERT INTO ref.managers SELECT manager, 'm ' || region FROM ref.customers WHERE part = 0;
"""
STATEMENTS = {
    "worth": "SELECT o.id, o.amount, r.rate, o.amount * r.rate AS worth FROM orders o "
    "LEFT JOIN destination.ref.rates r ON r.code = o.currency",
    "priced": "SELECT o.id, o.amount * rate AS worth FROM orders o "
    "JOIN destination.ref.rates ON o.currency = rates.code AND rate < 2 WHERE o.amount > 5",
    "managed": "SELECT o.id AS number, c.name, m.who FROM orders o JOIN customers c ON c.id = o.customer_id "
    "JOIN destination.ref.customers g ON g.part = c.part AND g.region = c.region "
    "LEFT JOIN destination.ref.managers m ON g.manager = m.id",
}
CHANGES = [
    "UPDATE orders SET currency = 'USD' WHERE id BETWEEN {low} AND {low} + 9",
    "UPDATE orders SET currency = NULL, amount = 9 WHERE id BETWEEN {low} AND {low} + 3",
    "UPDATE orders SET customer_id = {one} WHERE id BETWEEN {low} AND {low} + 9",
    "UPDATE orders SET id = id + {fresh} WHERE id = {low}",
    "DELETE FROM orders WHERE id BETWEEN {low} AND {low} + 5",
    "INSERT INTO orders SELECT {fresh} + i, {one}, 'EUR', i, 'x' FROM generate_series(1, 9) i",
    "UPDATE customers SET region = 'south', name = name || 'x' WHERE id = {one}",
    "UPDATE customers SET part = NULL WHERE id = {one}",
    "DELETE FROM customers WHERE id = {one}",
    "BEGIN; DELETE FROM orders WHERE id = {low}; UPDATE customers SET part = 1 WHERE id < {one}; COMMIT",
]


@pytest.fixture(autouse=True)
def _engine(pipeline: PipelineHarness) -> None:
    pipeline.engine = "pgoutput"


def _at_source() -> dict[str, str]:
    """Return the statements as the source can run them, which has a copy of the tables that are looked up."""
    return {target: sql.replace("destination.", "") for target, sql in STATEMENTS.items()}


def _set_up(pipeline: PipelineHarness) -> None:
    pipeline.source.execute(SOURCE + LOOKED_UP)
    pipeline.targets["target"].execute(LOOKED_UP)
    pipeline.configure(
        tables=["public.*"],
        syncs=[{"table": "public.orders", "target": target, "custom_sql": sql} for target, sql in STATEMENTS.items()],
    )
    pipeline.start()
    pipeline.wait_caught_up()
    compare(pipeline, _at_source())


def test_targets_are_the_statements_results_after_random_changes_and_kills(pipeline: PipelineHarness) -> None:
    """The tables that are looked up keep still: then a target is what its statement gives."""
    chance = random.Random(11)
    _set_up(pipeline)
    for number in range(4):
        if number % 2:
            pipeline.kill()
        with closing(pipeline.source.connect()) as connection, connection.cursor() as cursor:
            for _ in range(12):
                numbers = {
                    "low": chance.randint(1, 300),
                    "one": chance.randint(0, 32),
                    "fresh": chance.randint(400, 10**8),
                }
                cursor.execute(chance.choice(CHANGES).format(**numbers))
        if number == 2:
            pipeline.kill()
        pipeline.ensure_running()
        pipeline.wait_caught_up(revive=True)
        compare(pipeline, _at_source())


def test_a_changed_lookup_reaches_a_row_with_its_next_change(pipeline: PipelineHarness) -> None:
    """As documented: until then the row stays, and a lookup that cannot be done stops with its name."""
    source, target = pipeline.source, pipeline.targets["target"]
    _set_up(pipeline)
    before = target.execute("SELECT id, rate FROM worth ORDER BY 1")
    changed = (
        "UPDATE ref.rates SET rate = 1.5 WHERE code = 'EUR'; DELETE FROM ref.rates WHERE code = 'USD';"
        "INSERT INTO ref.rates VALUES ('XXX', 3); DELETE FROM ref.customers WHERE region = 'north'"
    )
    for side in (source, target):
        side.execute(changed)
    one, two, three = (
        source.execute(f"SELECT max(id) FROM orders WHERE currency = '{code}'")[0][0] for code in ("EUR", "USD", "XXX")
    )
    source.execute(f"UPDATE orders SET amount = 90 WHERE id IN ({one}, {two}, {three})")
    pipeline.wait_caught_up()
    after = dict(target.execute("SELECT id, rate::text FROM worth"))
    assert (after[one], after[two], after[three]) == ("1.5000", None, "3.0000")
    untouched = [row for row in before if row[0] not in (one, two, three)]
    found = target.execute(f"SELECT id, rate FROM worth WHERE id NOT IN ({one}, {two}, {three}) ORDER BY 1")
    assert found == untouched, "others keep what was looked up for them"
    priced = f"SELECT id, worth::int FROM priced WHERE id IN ({one}, {two}, {three})"
    assert target.execute(priced) == [(one, 135)], "an inner join without a row takes the target's away"

    source.execute("UPDATE customers SET name = name; UPDATE orders SET amount = amount")
    pipeline.wait_caught_up()
    compare(pipeline, _at_source())

    target.execute("ALTER TABLE ref.rates RENAME rate TO other")
    source.execute(f"DELETE FROM orders WHERE id = {one}; UPDATE orders SET amount = 1 WHERE id = {two}")
    assert pipeline.wait_exit(90) == NEEDS_PERSON, pipeline.log_text()[-2000:]
    error = str(pipeline.config.execute("SELECT last_error FROM pipeline_metadata")[0][0])
    assert "target public." in error and "rate" in error, error
    assert target.execute(f"SELECT count(*) FROM worth WHERE id = {one} AND amount = 90") == [(1,)], "nothing went over"
    target.execute("ALTER TABLE ref.rates RENAME TO gone")
    pipeline.ensure_running()
    assert pipeline.wait_exit(90) == NEEDS_PERSON, pipeline.log_text()[-2000:]
    error = str(pipeline.config.execute("SELECT last_error FROM pipeline_metadata")[0][0])
    assert "the destination has no ordinary table ref.rates" in error
    target.execute("ALTER TABLE ref.gone RENAME TO rates; ALTER TABLE ref.rates RENAME other TO rate")
    pipeline.ensure_running()
    pipeline.wait_caught_up(revive=True)
    compare(pipeline, _at_source())


def test_only_the_wanted_keys_are_read(target_database: Database) -> None:
    """By probes of the key's index, whatever its type, and without statistics of the table."""
    target_database.execute(
        "CREATE TABLE big (a int, b char(9), c varchar(9), d uuid, e date, f numeric(9,2), note text, "
        "PRIMARY KEY (a, b, c, d, e, f)) WITH (autovacuum_enabled = off);"
        "INSERT INTO big SELECT i, 'b' || i, 'c' || i, md5(i::text)::uuid, '2024-01-01'::date + i, i / 4.0, 'n' || i "
        "FROM generate_series(1, 20000) i"
    )
    with closing(target_database.connect()) as connection, connection.cursor() as cursor:
        connection.autocommit = False
        table = TableId("public", "big")
        lookups = PostgresLookups(cursor)
        schema = lookups.schemas([table, TableId("public", "none")])[table]
        cursor.execute("SELECT a::text, b, c, d::text, e::text, f::text FROM big WHERE a % 8 = 0 ORDER BY a")
        keys = cursor.fetchall()
        cursor.execute("SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'big'")
        before = cursor.fetchall()
        kinds = [str(lookup_kind(schema.column(name))) for name in schema.key]
        found = lookups.rows(schema, ["note", "a"], kinds, [*keys, *keys[:5], ("1", "no", *keys[0][2:])])
        assert found == [("n" + key[0], key[0]) for key in keys]
        cursor.execute("SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'big'")
        assert cursor.fetchall() == before


@pytest.fixture
def role(target_database: Database) -> Iterator[Database]:
    """The target database as a role that may make tables there, and read none of the others."""
    name = f"{target_database.name}_role"
    target_database.execute(
        f"CREATE ROLE {name} LOGIN PASSWORD 'a role''s password'; GRANT CREATE ON SCHEMA public TO {name};"
        f"GRANT CREATE, TEMPORARY ON DATABASE {target_database.name} TO {name}"
    )
    server = dataclasses.replace(target_database.server, username=name, password="a role's password")
    yield dataclasses.replace(target_database, server=server)
    target_database.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def _findings(source: Database, destination: Database, sql: str) -> dict[str, list[str]]:
    """Return what the doctor says of custom SQL of table t, by level."""
    syncs = (TableSync(1, "public.t", "named", TableShape(custom_sql=sql)), TableSync(2, "public.t"))
    report = examine(
        PipelineSpec(
            1, "p", "p", 1, SourceSpec(1, "shop", source.address(), "pub", "slot", ("public.*",), "pgoutput"),
            (DestinationSpec(1, 1, "wh", "postgres", destination.address(), None, syncs),),
        )
    )  # fmt: skip
    told = [one for one in report.findings if one.check in ("shape", "lookups")]
    return {level: [one.what + one.solution for one in told if one.level == level] for level in ("error", "ok")}


def test_the_right_to_read_is_missed_by_the_doctor_and_at_run_time(pipeline: PipelineHarness, role: Database) -> None:
    """With the statement that gives it; and a table that the pipeline writes is not one to look up."""
    source, target = pipeline.source, pipeline.targets["target"]
    findings = partial(_findings, source, role)
    source.execute("CREATE TABLE t (id int PRIMARY KEY, code int); INSERT INTO t VALUES (1, 1)")
    target.execute("CREATE SCHEMA ref; CREATE TABLE ref.names (code int PRIMARY KEY, name text)")
    target.execute("INSERT INTO ref.names VALUES (1, 'one')")
    sql = "SELECT t.id, n.name FROM t LEFT JOIN destination.ref.names n ON n.code = t.code"

    (error,) = findings(sql)["error"]
    assert "target public.named: custom SQL: the destination's role may not read table ref.names" in error
    assert f'GRANT SELECT ON "ref"."names" TO "{role.server.username}"' in error, error
    assert "one that this pipeline writes" in findings(sql.replace("ref.names", "public.t"))["error"][0]
    assert "has no ordinary table ref.none" in findings(sql.replace("ref.names", "ref.none"))["error"][0]
    target.execute(f"GRANT USAGE ON SCHEMA ref TO {role.server.username}")
    assert "may not read table ref.names" in findings(sql)["error"][0]
    target.execute(f"GRANT SELECT (code, name) ON ref.names TO {role.server.username}")
    found = findings(sql)
    assert not found["error"] and "looks rows up in ref.names of the destination" in found["ok"][0]

    pipeline.targets = {"target": role}
    pipeline.secrets["TARGET_PASSWORD"] = role.server.password
    pipeline.configure(syncs=[{"table": "public.t", "target": "named", "custom_sql": sql}])
    pipeline.start()
    pipeline.wait_caught_up()
    assert target.execute("SELECT id, name FROM named") == [(1, "one")]
    target.execute(f"REVOKE SELECT (code, name) ON ref.names FROM {role.server.username}")
    source.execute("UPDATE t SET code = 2; INSERT INTO t VALUES (2, 1)")
    assert pipeline.wait_exit(90) == NEEDS_PERSON, pipeline.log_text()[-2000:]
    error = str(pipeline.config.execute("SELECT last_error FROM pipeline_metadata")[0][0])
    assert "target public.named: custom SQL: the destination's role may not read table ref.names" in error
    assert target.execute("SELECT id, name FROM named") == [(1, "one")]
    target.execute(f"GRANT SELECT ON ref.names TO {role.server.username}")
    pipeline.ensure_running()
    pipeline.wait_caught_up(revive=True)
    assert target.execute("SELECT id, name FROM named ORDER BY 1") == [(1, None), (2, "one")]
