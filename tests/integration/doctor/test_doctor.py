"""Pre-flight: each obstacle is named with what to do, and the statement given makes it go away."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from cdc_runner.doctor.finding import Finding, Report
from cdc_runner.doctor.run import examine
from cdc_runner.schema import quote_identifier
from cdc_runner.spec import DestinationSpec, PipelineSpec, PostgresAddress, SourceSpec, TableSync
from tests.support.servers import Database

pytestmark = pytest.mark.pg

PASSWORD = "a role's password"


def spec(source: PostgresAddress, target: PostgresAddress, **options: Any) -> PipelineSpec:
    engine = options.get("capture_engine", "debezium")
    return PipelineSpec(
        id=1,
        name="p",
        identity="p",
        generation=1,
        source=SourceSpec(
            1, "shop", source, options.get("publication", "pub"), options.get("slot", f"slot_{source.database}"),
            options.get("tables", ("public.*",)), engine,
        ),
        destinations=(
            DestinationSpec(1, 1, "wh", "postgres", target, options.get("schema"), options.get("syncs", ())),
        ),
    )  # fmt: skip


def problems(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.level == "error"]


def checks(report: Report) -> set[str]:
    return {finding.check for finding in problems(report)}


@pytest.fixture
def role(source_database: Database) -> Iterator[str]:
    """A role that may log in and nothing else."""
    name = f"{source_database.name}_role"
    source_database.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'a role''s password'")
    yield name
    source_database.execute(f"DROP OWNED BY {name}")
    source_database.execute(f"DROP ROLE {name}")


def as_role(database: Database, role: str) -> PostgresAddress:
    return dataclasses.replace(database.address(), username=role, password=SecretStr(PASSWORD))


def test_a_ready_pipeline_has_no_error(source_database: Database, target_database: Database):
    source_database.execute("CREATE TABLE orders (id bigint PRIMARY KEY, note text)")
    report = examine(spec(source_database.address(), target_database.address()))
    assert problems(report) == []
    assert report.ok
    # Nothing was made on either side.
    assert source_database.execute("SELECT count(*) FROM pg_publication") == [(0,)]
    assert target_database.execute("SELECT count(*) FROM pg_namespace WHERE nspname = '_rosetta'") == [(0,)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"password": SecretStr("canary-password")}, "password authentication failed"),
        ({"port": 1}, "Connection refused"),
        ({"database": "absent"}, "does not exist"),
        ({"sslmode": "require"}, "SSL"),
    ],
)
def test_an_unreachable_source_or_destination_is_named(
    source_database: Database, target_database: Database, change: dict[str, Any], words: str
):
    source_database.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
    source = dataclasses.replace(source_database.address(), **change)
    report = examine(spec(source, target_database.address()))
    assert [(one.subject, one.check) for one in problems(report)] == [("source shop", "connection")]
    assert words in problems(report)[0].what
    target = dataclasses.replace(target_database.address(), **change)
    report = examine(spec(source_database.address(), target))
    assert [(one.subject, one.check) for one in problems(report)] == [("destination wh", "connection")]
    assert words in problems(report)[0].what
    assert "canary" not in repr(report)


def test_a_role_without_rights_is_told_each_statement(source_database: Database, target_database: Database, role: str):
    source_database.execute("CREATE SCHEMA sales")
    source_database.execute("CREATE TABLE sales.orders (id bigint PRIMARY KEY)")
    pipeline = spec(as_role(source_database, role), target_database.address(), tables=("sales.*",))
    report = examine(pipeline)
    assert checks(report) == {"replication_right", "select_right", "publication"}
    # The statements make the errors go away, without superuser and without owning anything.
    for finding in problems(report):
        statement = finding.solution.removeprefix("As the owner of the tables: ").partition("(on RDS")[0]
        source_database.execute(statement)
    assert problems(examine(pipeline)) == []


def test_a_table_that_only_its_owner_can_publish_is_named(
    source_database: Database, target_database: Database, role: str
):
    source_database.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
    source_database.execute("CREATE TABLE later (id bigint PRIMARY KEY)")
    source_database.execute(f"GRANT SELECT ON orders, later TO {role}")
    source_database.execute(f"ALTER ROLE {role} REPLICATION")
    source_database.execute("CREATE PUBLICATION pub FOR TABLE orders")
    pipeline = spec(as_role(source_database, role), target_database.address())
    (finding,) = problems(examine(pipeline))
    assert (finding.check, "public.later" in finding.what) == ("publication", True)
    source_database.execute(finding.solution.removeprefix("As the owner: "))
    assert problems(examine(pipeline)) == []


def test_a_full_server_is_named(source_database: Database, target_database: Database):
    source_database.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
    ((limit,),) = source_database.execute("SELECT current_setting('max_replication_slots')::int")
    ((used,),) = source_database.execute("SELECT count(*) FROM pg_replication_slots")
    for number in range(limit - used):
        source_database.execute("SELECT pg_create_physical_replication_slot(%s)", (f"filler_{number}",))
    try:
        report = examine(spec(source_database.address(), target_database.address()))
        assert checks(report) == {"max_replication_slots"}
    finally:
        source_database.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'filler%'"
        )


def test_settings_of_the_server_are_checked(own_servers: Any, target_database: Database):
    server = own_servers("source").postgres("source")
    server.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
    pipeline = spec(server.address("postgres"), target_database.address())
    assert "max_slot_wal_keep_size" in {one.check for one in examine(pipeline).findings if one.level == "warning"}
    server.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'")
    server.execute("ALTER SYSTEM SET idle_replication_slot_timeout = '1h'")
    server.execute("ALTER SYSTEM SET wal_level = 'replica'")
    server.execute("ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (*)'")
    server.stop()
    server.start()
    report = examine(pipeline)
    assert checks(report) == {"wal_level"}
    (finding,) = problems(report)
    assert "ALTER SYSTEM SET wal_level = 'logical'" in finding.solution
    warned = {one.check for one in report.findings if one.level == "warning"}
    assert {"idle_replication_slot_timeout", "synchronous_standby_names"} <= warned
    assert "max_slot_wal_keep_size" not in warned


def test_slot_states_are_told_apart(source_database: Database, target_database: Database):
    source_database.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
    pipeline = spec(source_database.address(), target_database.address())
    assert checks(examine(pipeline, streamed=True)) == {"slot"}
    slot = pipeline.source.slot
    source_database.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", (slot,))
    (finding,) = problems(examine(pipeline, streamed=True))
    assert "plugin test_decoding" in finding.what
    source_database.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
    source_database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
    assert problems(examine(pipeline, streamed=True)) == []


def test_tables_that_would_break_the_source_are_refused(source_database: Database, target_database: Database):
    source_database.execute("CREATE TABLE keyed (id bigint PRIMARY KEY)")
    source_database.execute("CREATE TABLE keyless (a int)")
    source_database.execute("CREATE TABLE nothing (a int PRIMARY KEY)")
    source_database.execute("ALTER TABLE nothing REPLICA IDENTITY NOTHING")
    source_database.execute("CREATE TABLE full_row (a int)")
    source_database.execute("ALTER TABLE full_row REPLICA IDENTITY FULL")
    report = examine(spec(source_database.address(), target_database.address()))
    found = {finding.subject: finding for finding in problems(report)}
    assert set(found) == {"table public.keyless", "table public.nothing"}
    assert all(finding.check == "replica_identity" for finding in found.values())
    assert 'ALTER TABLE "public"."keyless" REPLICA IDENTITY FULL' in found["table public.keyless"].solution


def test_columns_that_cannot_be_carried_are_named(source_database: Database, target_database: Database):
    source_database.execute("CREATE TABLE orders (id bigint PRIMARY KEY, odd pg_node_tree)")
    for engine in ("debezium", "pgoutput"):
        report = examine(spec(source_database.address(), target_database.address(), capture_engine=engine))
        assert [(one.subject, one.check) for one in problems(report)] == [("table public.orders", "column_type")]
        assert "pg_node_tree" in problems(report)[0].what


def test_an_odd_publication_is_named(source_database: Database, target_database: Database):
    source_database.execute("CREATE TABLE orders (id bigint PRIMARY KEY, region text)")
    source_database.execute("CREATE TABLE parts (id bigint PRIMARY KEY) PARTITION BY RANGE (id)")
    source_database.execute(
        "CREATE PUBLICATION pub FOR TABLE orders WHERE (id > 5), parts WITH (publish = 'insert, update')"
    )
    report = examine(spec(source_database.address(), target_database.address()))
    texts = [finding.what for finding in problems(report)]
    assert any("does not publish delete, truncate" in text for text in texts)
    assert any("partitions under their own names" in text for text in texts)
    assert any("only some rows" in text for text in texts)
    assert len(texts) == 3


def test_a_pattern_without_tables_is_named(source_database: Database, target_database: Database):
    report = examine(spec(source_database.address(), target_database.address(), tables=("absent.*",)))
    assert checks(report) == {"tables"}


def test_row_security_is_noticed(source_database: Database, target_database: Database, role: str):
    source_database.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
    source_database.execute("ALTER TABLE orders ENABLE ROW LEVEL SECURITY")
    source_database.execute("CREATE PUBLICATION pub FOR TABLE orders")
    source_database.execute(f"ALTER ROLE {role} REPLICATION")
    source_database.execute(f"GRANT SELECT ON orders TO {role}")
    assert checks(examine(spec(as_role(source_database, role), target_database.address()))) == {"row_security"}


def test_existing_targets_are_compared(source_database: Database, target_database: Database):
    source_database.execute("CREATE TABLE orders (id bigint PRIMARY KEY, name varchar(20), price numeric(10,2), n int)")
    target_database.execute(
        "CREATE TABLE orders (id bigint, name varchar(10), n bigint, extra int NOT NULL, stamp int NOT NULL DEFAULT 0,"
        " other int PRIMARY KEY DEFAULT 1)"
    )
    pipeline = spec(source_database.address(), target_database.address())
    report = examine(pipeline)
    assert sorted(finding.check for finding in problems(report)) == [
        "target_column", "target_key", "target_not_null", "target_type",
    ]  # fmt: skip
    for finding in problems(report):
        if finding.check != "target_key":
            target_database.execute(finding.solution)
    target_database.execute("ALTER TABLE orders DROP COLUMN other, ADD PRIMARY KEY (id)")
    assert problems(examine(pipeline)) == []


def test_a_view_is_no_target(source_database: Database, target_database: Database):
    source_database.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
    target_database.execute("CREATE VIEW orders AS SELECT 1::bigint AS id")
    assert checks(examine(spec(source_database.address(), target_database.address()))) == {"target_kind"}


def test_a_weak_destination_role_is_told_each_statement(source_database: Database, target_database: Database):
    source_database.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
    source_database.execute("CREATE TABLE fresh (id bigint PRIMARY KEY)")
    target_database.execute("CREATE SCHEMA shop")
    target_database.execute("CREATE TABLE shop.orders (id bigint PRIMARY KEY, parent bigint REFERENCES shop.orders)")
    role = f"{target_database.name}_role"
    target_database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'a role''s password'")
    try:
        pipeline = spec(source_database.address(), as_role(target_database, role), schema="shop")
        report = examine(pipeline)
        assert checks(report) == {"schema", "target_rights"}
        for finding in problems(report):
            target_database.execute(finding.solution)
        report = examine(pipeline)
        assert problems(report) == []
        (trigger,) = [finding for finding in report.findings if finding.check == "triggers"]
        assert trigger.level == "warning"
        target_database.execute(trigger.solution.partition(";")[0])
        assert [one.level for one in examine(pipeline).findings if one.check == "triggers"] == ["ok"]
    finally:
        target_database.execute(f"DROP OWNED BY {role} CASCADE")
        target_database.execute(f"DROP ROLE {role}")


def test_a_copy_onto_itself_is_refused(source_database: Database):
    source_database.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
    address = source_database.address()
    assert checks(examine(spec(address, address))) == {"same_database"}
    assert problems(examine(spec(address, address, schema="copy"))) == []


def test_a_named_table_that_is_not_there_is_named(source_database: Database, target_database: Database):
    source_database.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
    syncs = (TableSync(1, "public.absent"),)
    report = examine(spec(source_database.address(), target_database.address(), syncs=syncs))
    assert "public.absent" in problems(report)[0].what


@pytest.mark.parametrize("name", ['odd "name"', "a.b", "SELECT", "Grüße 世界", "x; DROP TABLE y"])
def test_odd_names_are_quoted_in_statements(source_database: Database, target_database: Database, name: str):
    quoted = quote_identifier(name)
    source_database.execute(f"CREATE TABLE {quoted} (id bigint PRIMARY KEY, {quoted} text)")
    target_database.execute(f"CREATE TABLE {quoted} (id bigint PRIMARY KEY)")
    # Debezium leaves a table out whose name holds a quote; the other engine takes them all.
    pipeline = spec(source_database.address(), target_database.address(), capture_engine="pgoutput")
    (finding,) = problems(examine(pipeline))
    target_database.execute(finding.solution)
    assert problems(examine(pipeline)) == []


def test_columns_that_differ_only_in_case_are_named(source_database: Database, target_database: Database):
    source_database.execute('CREATE TABLE orders (id bigint PRIMARY KEY, "Note" text, note text)')
    report = examine(spec(source_database.address(), target_database.address()))
    assert [(one.subject, one.check) for one in problems(report)] == [("table public.orders", "left_out")]
    assert "capture_engine: pgoutput" in problems(report)[0].solution
    report = examine(spec(source_database.address(), target_database.address(), capture_engine="pgoutput"))
    assert problems(report) == []
