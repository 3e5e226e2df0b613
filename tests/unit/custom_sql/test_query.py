"""Which statements are kept right, and why others are refused. One sandbox process parses them all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cdc_runner.capture.visibility import hidden_transactions
from cdc_runner.custom_sql.plan import CustomPlan, bind, find_tables
from cdc_runner.custom_sql.query import CustomSqlRefused, parse_query
from cdc_runner.sandbox.session import SandboxSession
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema


def _table(name: str, columns: str, *key: str) -> TableSchema:
    """Return a table of columns given as `name type, …`."""
    texts = [one.strip().split(" ", 1) for one in columns.split(",")]
    names = {"integer": "int4", "bigint": "int8", "numeric(10:2)": "numeric", "double precision": "float8"}
    parts = tuple(Column(one, kind.replace(":", ","), names.get(kind, kind)) for one, kind in texts)
    return TableSchema(TableId("public", name), parts, key, key, ReplicaIdentity.DEFAULT)


ORDERS = _table(
    "orders", "id integer, customer_id bigint, region text, amount numeric(10:2), rate double precision", "id"
)
CUSTOMERS = _table("customers", "id integer, name text, country text", "id")
COUNTRIES = _table("countries", "code text, name text", "code")
NO_KEY = _table("log", "line text")
RATES = _table("customers", "id bigint, code varchar, rate numeric(10:2), extra text", "id")
"""At the destination, where a name may mean another table."""
REGIONS = _table("regions", "code varchar, part integer, manager text, kind float8", "code", "part")
MANAGERS = _table("managers", "name text, phone text", "name")
THERE = {schema.table: schema for schema in (RATES, REGIONS, MANAGERS, NO_KEY)}
LOOKUP = "SELECT o.id FROM orders o JOIN destination.public."


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxSession]:
    session = SandboxSession()
    yield session
    session.close()


def _bound(sql: str, sandbox: SandboxSession, key: tuple[str, ...] = (), masked: str | None = None) -> CustomPlan:
    query = parse_query(sql, sandbox)
    known = {schema.table: schema for schema in (ORDERS, CUSTOMERS, COUNTRIES, NO_KEY)}
    tables = find_tables(query, ORDERS.table, known)
    hidden = {} if masked is None else {ORDERS.table: frozenset({masked}), CUSTOMERS.table: frozenset({masked})}
    uses = zip(tables, query.tables, strict=True)
    return bind(query, [(THERE if use.lookup else known)[table] for table, use in uses], hidden, key, sandbox)


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELECT id FROM orders UNION SELECT id FROM orders", "UNION, INTERSECT"),
        ("WITH o AS (SELECT id FROM orders) SELECT id FROM o", "WITH"),
        ("SELECT DISTINCT id FROM orders", "DISTINCT"),
        ("SELECT id FROM orders ORDER BY id", "ORDER"),
        ("SELECT id FROM orders LIMIT 5", "LIMIT"),
        ("SELECT id FROM orders QUALIFY row_number() OVER () = 1", "QUALIFY"),
        ("SELECT id, sum(amount) OVER () AS s FROM orders", "window function"),
        ("SELECT id, (SELECT 1) AS one FROM orders", "subquery"),
        ("SELECT o.id FROM (SELECT id FROM orders) o", "subquery in FROM"),
        ("SELECT * FROM orders", r"\* is not supported"),
        ("SELECT id, now() AS at FROM orders", "now gives another value later"),
        ("SELECT id, current_date AS at FROM orders", "current_date gives another value later"),
        ("SELECT id, age(TIMESTAMP '2024-01-01') AS a FROM orders", "age gives another value later"),
        ("SELECT id, 'today'::DATE AS at FROM orders", "mean another time later"),
        ("SELECT id, random() AS r FROM orders", "function random is not allowed"),
        ("SELECT region, first(id) AS f FROM orders GROUP BY 1", "first depends on the order"),
        ("SELECT region, list(id) AS f FROM orders GROUP BY 1", "list depends on the order"),
        ("SELECT count(*) AS n FROM orders", "an aggregate needs GROUP BY"),
        ("SELECT sum(amount) AS s FROM orders GROUP BY region", "must be a column of the result"),
        ("SELECT region, sum(amount) AS s FROM orders GROUP BY ROLLUP (region)", "ROLLUP"),
        ("SELECT id, unnest([1, 2]) AS u FROM orders", "unnest gives several rows"),
        ("SELECT id + 1 FROM orders", "needs a name"),
        ("SELECT id, region AS ID FROM orders", "two columns are named id"),
        ("SELECT o.id FROM orders o, customers c", "of joins only"),
        ("SELECT o.id FROM orders o FULL JOIN customers c ON c.id = o.customer_id", "of joins only"),
        ("SELECT o.id FROM orders o JOIN customers c USING (id)", "of joins only"),
        ("SELECT o.id FROM orders o JOIN orders p ON p.id = o.customer_id", "is used twice"),
        ("SELECT o.id FROM orders o JOIN customers c ON c.name = o.region", r"joined by its key \(id\)"),
        ("SELECT o.id FROM orders o JOIN customers c ON c.id = o.customer_id OR true", r"joined by its key \(id\)"),
        ("SELECT o.id FROM orders o JOIN countries c ON c.code = o.customer_id", "of different types"),
        ("SELECT o.id FROM orders o JOIN log l ON l.line = o.region", "has no key"),
        ("SELECT o.id FROM orders o JOIN elsewhere e ON e.id = o.id", "not among the captured tables"),
        ("SELECT c.id FROM customers c JOIN orders o ON o.id = c.id", "must stand first in FROM"),
        ("SELECT region FROM orders", "column id of table orders must be in the result"),
        ("SELECT id + 0 AS id, region FROM orders", "column id of table orders must be in the result"),
        ("SELECT id, missing FROM orders", 'column "missing" not found'),
        ("SELECT id, list_sum(amount) AS x FROM orders", "Binder Error"),
        ("SELECT lower(region) AS region, count(*) AS n FROM orders GROUP BY region", "write GROUP BY 1"),
        ("SELECT rate, count(*) AS n FROM orders GROUP BY 1", "by which rows cannot be told apart"),
        ("SELECT id, [amount] AS l FROM orders", "no type of PostgreSQL stands for"),
        ("SELECT o.id FROM orders o JOIN destination.rates r ON r.id = o.id", "stands as destination.schema.table"),
        ("SELECT o.id FROM orders o JOIN other.public.rates r ON r.id = o.id", "without database and schema"),
        ("SELECT o.id FROM destination.public.orders o", "must stand first in FROM"),
        ("SELECT o.id FROM orders o JOIN destination.public.\"/etc/passwd\" r ON r.id = o.id", "without database"),
        ("SELECT o.id FROM orders o, destination.public.customers r WHERE r.id = o.id", "of joins only"),
        ("SELECT o.id FROM orders o RIGHT JOIN destination.public.customers r ON r.id = o.id", "of joins only"),
        (LOOKUP + "customers r ON r.code = o.region", r"joined by its key \(id\)"),
        (LOOKUP + "customers r ON r.id > o.id", r"joined by its key \(id\)"),
        (LOOKUP + "customers r ON r.id = o.region", "of different types"),
        (LOOKUP + "customers r ON r.id = o.amount", "of different types"),
        (LOOKUP + "log l ON l.line = o.region", "has no key"),
        (LOOKUP + "customers r ON r.id = o.id JOIN customers c ON c.id = r.id", "a column of one of the destination"),
        (LOOKUP + "customers r ON r.id = o.id JOIN destination.public.regions g ON g.code = r.code AND g.part = o.id",
         "must be joined by columns of one table"),
        ("SELECT o.region, sum(r.rate) AS s FROM orders o JOIN destination.public.customers r ON r.id = o.customer_id "
         "GROUP BY 1", "cannot be grouped"),
        ("SELECT o.id, destination.public.customers.rate FROM orders o "
         "JOIN destination.public.customers ON customers.id = o.id", "Binder Error"),
        ("SELECT id FROM orders; COPY orders TO '/tmp/x'", "one statement|only a SELECT"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_right_is_refused_by_name(sandbox: SandboxSession, sql: str, reason: str) -> None:
    with pytest.raises(CustomSqlRefused, match=reason):
        _bound(sql, sandbox)


def test_rows_keep_the_key_of_their_table(sandbox: SandboxSession) -> None:
    plan = _bound("SELECT region, o.id AS order_id, amount * 2 AS orders_twice FROM orders o WHERE id > 3", sandbox)
    assert plan.key == plan.target.primary_key == ("order_id",)
    assert [(one.name, one.type_text) for one in plan.target.columns] == [
        ("region", "text"), ("order_id", "integer"), ("orders_twice", "numeric(18,2)"),
    ]  # fmt: skip
    assert [one.name for one in plan.base.columns] == ["id", "region", "amount"], "others are not even read"


def test_groups_may_be_computed_and_joined(sandbox: SandboxSession) -> None:
    plan = _bound(
        "SELECT k.name AS country, upper(o.region) AS r, count(*) AS n FROM orders o "
        "JOIN customers c ON o.customer_id = c.id LEFT JOIN countries k ON k.code = c.country GROUP BY ALL",
        sandbox,
        key=("r", "country"),
    )
    assert plan.key == ("country", "r") and plan.target.primary_key == ()
    assert [table.links for table in plan.tables] == [(), ((0, "customer_id"),), ((1, "country"),)]
    with pytest.raises(CustomSqlRefused, match="key must be id"):
        _bound("SELECT id, region FROM orders", sandbox, key=("region",))


def test_rows_of_the_destination_are_looked_up_by_key(sandbox: SandboxSession) -> None:
    """A table of the same name at the source is another one: its masks and its changes are not those of the lookup."""
    plan = _bound(
        "SELECT o.id, r.rate * o.amount AS worth, m.phone, c.name FROM orders o "
        "JOIN customers c ON c.id = o.customer_id "
        "LEFT JOIN Destination.public.customers r ON r.id = o.customer_id AND r.extra IS NOT NULL "
        "LEFT JOIN destination.public.managers AS m ON m.name = r.code",
        sandbox,
        masked="extra",
    )
    assert [(table.lookup, table.links) for table in plan.tables] == [
        (False, ()), (False, ((0, "customer_id"),)), (True, ((0, "customer_id"),)), (True, ((2, "code"),)),
    ]  # fmt: skip
    assert [one.name for one in plan.tables[2].columns] == ["id", "code", "rate", "extra"]
    assert [one.type_text for one in plan.target.columns] == ["integer", "numeric(18,4)", "text", "text"]
    assert plan.place_of(CUSTOMERS.table) == 1
    captured = {schema.table: schema for schema in (ORDERS, CUSTOMERS)}
    assert plan.same_tables(captured, THERE)
    assert not plan.same_tables(captured, {**THERE, RATES.table: _table("customers", "id bigint, code text", "id")})


def test_masked_columns_are_text_and_never_join_or_identify(sandbox: SandboxSession) -> None:
    plan = _bound("SELECT id, amount FROM orders", sandbox, masked="amount")
    assert plan.target.column("amount").type_text == "text"
    for sql in (
        "SELECT id, region FROM orders",
        "SELECT o.id, c.name FROM orders o JOIN customers c ON c.id = o.customer_id",
    ):
        with pytest.raises(CustomSqlRefused, match="is masked, and identifies or joins rows"):
            _bound(sql, sandbox, masked="id")


def test_a_snapshot_shows_what_it_hides() -> None:
    assert list(hidden_transactions("100:105:101,103", [99, 100, 101, 102, 103, 104, 105])) == [101, 103, 105]
    turned = 5 << 32
    snapshot = f"{turned + 10}:{turned + 20}:{turned + 12}"
    assert list(hidden_transactions(snapshot, [(1 << 32) - 5, 9, 12, 13, 25])) == [12, 25]
