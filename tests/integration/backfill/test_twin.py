"""A table that takes another one's place is as that one was, to whoever uses it; what cannot be carried is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg2.extensions
import pytest

from cdc_runner.destinations.postgres import twin
from cdc_runner.destinations.postgres.replaceable import obstacles
from cdc_runner.errors import RosettaError
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema
from tests.support.servers import Database

pytestmark = pytest.mark.pg

PLACE = TableId("shop", "Order")
ASIDE, KEPT = TableId("_new", "Order"), TableId("_kept", "Order")
COLUMNS = ("id", "name", "n", "code", "at", "line")

RICH = """
DROP ROLE IF EXISTS reader_of_twins; DROP ROLE IF EXISTS writer_of_twins;
CREATE ROLE reader_of_twins; CREATE ROLE writer_of_twins;
CREATE SCHEMA shop;
CREATE FUNCTION shop.noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TABLE shop."Order" (
    id int PRIMARY KEY, gone int, name varchar(20) COLLATE "C" DEFAULT 'none', n numeric(8,2) NOT NULL,
    code text CONSTRAINT one_code UNIQUE, at timestamptz DEFAULT now(), line serial,
    twice numeric GENERATED ALWAYS AS (n * 2) STORED, CONSTRAINT positive CHECK (n > 0)
) WITH (fillfactor = 70, toast.autovacuum_enabled = false);
ALTER TABLE shop."Order" DROP COLUMN gone;
ALTER TABLE shop."Order" ALTER name SET STATISTICS 321, ALTER code SET STORAGE EXTERNAL;
CREATE INDEX by_name ON shop."Order" (lower(name) DESC) WITH (fillfactor = 60) WHERE n > 1;
CREATE UNIQUE INDEX "by line" ON shop."Order" (line) INCLUDE (name);
ALTER TABLE shop."Order" CLUSTER ON "by line";
ALTER TABLE shop."Order" REPLICA IDENTITY USING INDEX "Order_pkey";
CREATE TRIGGER noting AFTER INSERT OR UPDATE OF n ON shop."Order" FOR EACH ROW WHEN (NEW.n > 5)
    EXECUTE FUNCTION shop.noted();
ALTER TABLE shop."Order" ENABLE ALWAYS TRIGGER noting;
COMMENT ON TABLE shop."Order" IS 'it''s 100 % ours';
COMMENT ON COLUMN shop."Order".n IS 'amount';
COMMENT ON INDEX shop.by_name IS 'for search';
COMMENT ON CONSTRAINT positive ON shop."Order" IS 'no refunds';
COMMENT ON TRIGGER noting ON shop."Order" IS 'audit';
GRANT SELECT ON shop."Order" TO reader_of_twins;
GRANT SELECT, INSERT ON shop."Order" TO writer_of_twins WITH GRANT OPTION;
GRANT UPDATE (name) ON shop."Order" TO reader_of_twins;
INSERT INTO shop."Order" SELECT i, 'n' || i, i + 1, 'c' || i FROM generate_series(1, 50) i;
"""


def _schema() -> TableSchema:
    columns = tuple(
        Column(name, "integer", "int4", "pg_catalog", "b", "N", None, False, False, None, number=number)
        for number, name in enumerate(COLUMNS, 1)
    )
    return TableSchema(PLACE, columns, ("id",), ("id",), ReplicaIdentity.DEFAULT, False)


@pytest.fixture
def session(target_database: Database) -> Iterator[psycopg2.extensions.connection]:
    with closing(target_database.connect()) as connection:
        connection.autocommit = True
        yield connection
        with connection.cursor() as cursor:
            cursor.execute("ROLLBACK")
            cursor.execute("DROP OWNED BY reader_of_twins, writer_of_twins") if _has_roles(cursor) else None
            cursor.execute("DROP ROLE IF EXISTS reader_of_twins; DROP ROLE IF EXISTS writer_of_twins")


def _has_roles(cursor: psycopg2.extensions.cursor) -> bool:
    cursor.execute("SELECT count(*) = 2 FROM pg_roles WHERE rolname IN ('reader_of_twins', 'writer_of_twins')")
    row = cursor.fetchone()
    return row is not None and bool(row[0])


def _exchange(session: psycopg2.extensions.connection) -> None:
    with session.cursor() as cursor:
        twin.make_twin(cursor, PLACE, ASIDE, _schema())
        cursor.execute(f"INSERT INTO {ASIDE.quoted} SELECT id, name, n, code, at, line FROM {PLACE.quoted}")
        for statement in twin.missing_indexes(cursor, PLACE, ASIDE):
            cursor.execute(statement)
        assert twin.missing_indexes(cursor, PLACE, ASIDE) == []
        cursor.execute("BEGIN")
        twin.exchange(cursor, PLACE, ASIDE, KEPT)
        cursor.execute("COMMIT")


def test_everything_that_belongs_to_a_table_belongs_to_the_one_in_its_place(
    session: psycopg2.extensions.connection,
) -> None:
    with session.cursor() as cursor:
        cursor.execute(RICH)
        # What a role gives away by itself must not come on top.
        cursor.execute("ALTER DEFAULT PRIVILEGES GRANT DELETE ON TABLES TO reader_of_twins")
        before = _seen(cursor)
        assert obstacles(cursor, PLACE, COLUMNS) == []
        _exchange(session)
        after = _seen(cursor)
        assert after["oid"] != before["oid"]
        assert {**after, "oid": None} == {**before, "oid": None}
        # The sequence counts on, and does not go with the old table.
        cursor.execute('DROP TABLE _kept."Order"; INSERT INTO shop."Order" (id, n) VALUES (51, 9) RETURNING line')
        assert cursor.fetchone() == (51,)
        cursor.execute("ALTER DEFAULT PRIVILEGES REVOKE DELETE ON TABLES FROM reader_of_twins")


_SEEN = {
    "oid": "SELECT 'shop.\"Order\"'::regclass::oid",
    "rows": 'SELECT count(*), sum(n), sum(twice), sum(line) FROM shop."Order"',
    "columns": "SELECT column_name, data_type, column_default, is_nullable, collation_name, generation_expression "
    "FROM information_schema.columns WHERE table_schema = 'shop' ORDER BY ordinal_position",
    "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'shop' ORDER BY 1",
    "constraints": "SELECT conname, contype, convalidated, pg_get_constraintdef(oid) FROM pg_constraint "
    "WHERE conrelid = 'shop.\"Order\"'::regclass ORDER BY 1",
    "triggers": "SELECT tgname, tgenabled, pg_get_triggerdef(oid), obj_description(oid, 'pg_trigger') FROM pg_trigger "
    "WHERE tgrelid = 'shop.\"Order\"'::regclass",
    "comments": "SELECT obj_description('shop.\"Order\"'::regclass), col_description('shop.\"Order\"'::regclass, "
    "(SELECT attnum FROM pg_attribute WHERE attrelid = 'shop.\"Order\"'::regclass AND attname = 'n')), "
    "obj_description('shop.by_name'::regclass), (SELECT obj_description(oid, 'pg_constraint') FROM pg_constraint "
    "WHERE conname = 'positive' AND conrelid = 'shop.\"Order\"'::regclass)",
    "rights": "SELECT grantee, privilege_type, is_grantable FROM information_schema.table_privileges "
    "WHERE table_schema = 'shop' ORDER BY 1, 2",
    "column rights": "SELECT grantee, column_name, privilege_type FROM information_schema.column_privileges "
    "WHERE table_schema = 'shop' ORDER BY 1, 2, 3",
    "storage": "SELECT c.reloptions, t.reloptions, c.relreplident FROM pg_class c JOIN pg_class t "
    "ON t.oid = c.reltoastrelid WHERE c.oid = 'shop.\"Order\"'::regclass",
    "details": "SELECT attname, attstattarget, attstorage FROM pg_attribute "
    "WHERE attrelid = 'shop.\"Order\"'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
    "marks": "SELECT indexrelid::regclass::text, indisclustered, indisreplident FROM pg_index "
    "WHERE indrelid = 'shop.\"Order\"'::regclass ORDER BY 1",
}


def _seen(cursor: psycopg2.extensions.cursor) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, query in _SEEN.items():
        cursor.execute(query)
        found[name] = cursor.fetchall()
    return found


def test_what_is_not_known_how_to_carry_stops_the_exchange(session: psycopg2.extensions.connection) -> None:
    with session.cursor() as cursor:
        cursor.execute(RICH)
        twin.make_twin(cursor, PLACE, ASIDE, _schema())
        for statement in twin.missing_indexes(cursor, PLACE, ASIDE):
            cursor.execute(statement)
        cursor.execute('ALTER TABLE shop."Order" ALTER code SET STORAGE PLAIN')
        cursor.execute("BEGIN")
        with pytest.raises(RosettaError, match="what is set for column code would be lost"):
            twin.exchange(cursor, PLACE, ASIDE, KEPT)
        cursor.execute("ROLLBACK")
        cursor.execute('SELECT count(*) FROM shop."Order"')
        assert cursor.fetchone() == (50,)


PLAIN = "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE other (id int PRIMARY KEY)"


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("CREATE VIEW v AS SELECT id FROM t", "view v depends on it"),
        ("CREATE MATERIALIZED VIEW m AS SELECT * FROM t", "materialized view m depends on it"),
        ("CREATE TABLE child (id int REFERENCES t)", "foreign key child_id_fkey of child"),
        ("ALTER TABLE t ADD FOREIGN KEY (v) REFERENCES other", "foreign key t_v_fkey of t"),
        ("CREATE TABLE uses (one t)", "column one of table uses depends on it"),
        ("CREATE TABLE uses (many t[])", "column many of table uses depends on it"),
        ("CREATE FUNCTION f() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM t; END", "function f() depends on it"),
        ("CREATE FUNCTION f(t) RETURNS int LANGUAGE sql AS 'SELECT 1'", "function f(t) depends on it"),
        ("CREATE PUBLICATION twins FOR TABLE t", "publication twins"),
        ("ALTER TABLE t ENABLE ROW LEVEL SECURITY", "row security"),
        ("CREATE POLICY p ON t USING (true)", "policy p"),
        ("CREATE RULE r AS ON DELETE TO t DO ALSO NOTHING", "rule r"),
        ("CREATE TABLE part () INHERITS (t)", "inheritance with part"),
        ("ALTER TABLE t ADD CONSTRAINT x EXCLUDE (v WITH =)", "exclusion constraint x"),
        ("ALTER TABLE t ADD CONSTRAINT u UNIQUE (v) DEFERRABLE", "deferrable constraint u"),
        ("ALTER TABLE t ADD CONSTRAINT later CHECK (v > 0) NOT VALID", "constraint later, which is not validated"),
        ("CREATE STATISTICS s ON id, v FROM t", "statistics object s"),
        ("ALTER TABLE t SET UNLOGGED", "unlogged"),
        ("ALTER TABLE t ADD extra text", "column extra holds values"),
        ("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v int) PARTITION BY RANGE (id)", "partitioned"),
        ("DROP TABLE t", "does not exist"),
    ],
)
def test_what_stands_in_the_way_is_named(session: psycopg2.extensions.connection, statement: str, reason: str) -> None:
    with session.cursor() as cursor:
        cursor.execute(PLAIN)
        assert obstacles(cursor, TableId("public", "t"), ("id", "v")) == []
        cursor.execute(statement)
        found = obstacles(cursor, TableId("public", "t"), ("id", "v"))
        assert len(found) == 1
        assert reason in found[0]
