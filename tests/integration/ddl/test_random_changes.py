"""Random sequences of schema changes end with the source's rows at the target."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from cdc_runner.destinations.postgres import ddl
from cdc_runner.destinations.postgres.target_table import read_target
from cdc_runner.schema import TableSchema, quote_identifier
from tests.integration.ddl.conftest import Pair

pytestmark = pytest.mark.pg

_NAMES = [*"abcdef", "Select", 'q"uote', "é" * 31]
_TYPES = {
    "int": ["bigint", "numeric", "text"],
    "bigint": ["numeric(30,5)", "varchar"],
    "varchar(5)": ["varchar(9)", "text"],
    "numeric(6,2)": ["numeric(9,3)", "numeric"],
    "date": ["timestamp"],
    "mood": ["text"],
    "int[]": ["bigint[]"],
}
_DEFAULTS = {"int": "5", "bigint": "-1", "varchar(5)": "'x y'", "numeric(6,2)": "1.50", "date": "'infinity'",
             "mood": "'so-so'", "int[]": "'{1,NULL}'"}  # fmt: skip


def change(pair: Pair, chance: random.Random, types: dict[str, str]) -> None:
    """Make one change at the source; `types` are the present columns but the key."""
    free = [name for name in _NAMES if name not in types]
    kind = chance.choice(["add", "add", "drop", "rename", "swap", "widen", "key"])
    if kind == "add" and free:
        name, type_ = chance.choice(free), chance.choice(list(_TYPES))
        default = chance.choice(["", f" DEFAULT {_DEFAULTS[type_]}", f" NOT NULL DEFAULT {_DEFAULTS[type_]}"])
        pair.at_source(f"ALTER TABLE t ADD {quote_identifier(name)} {type_}{default}")
        types[name] = type_
    elif kind == "drop" and types:
        name = chance.choice(list(types))
        pair.at_source(f"ALTER TABLE t DROP {quote_identifier(name)}")
        del types[name]
    elif kind == "rename" and types and free:
        before, after = chance.choice(list(types)), chance.choice(free)
        pair.at_source(f"ALTER TABLE t RENAME {quote_identifier(before)} TO {quote_identifier(after)}")
        types[after] = types.pop(before)
    elif kind == "swap" and len(types) > 1:
        one, other = chance.sample(list(types), 2)
        for before, after in ((one, "in between"), (other, one), ("in between", other)):
            pair.at_source(f"ALTER TABLE t RENAME {quote_identifier(before)} TO {quote_identifier(after)}")
        types[one], types[other] = types[other], types[one]
    elif kind == "widen":
        wider = [name for name, type_ in types.items() if type_ in _TYPES]
        if wider:
            name = chance.choice(wider)
            types[name] = chance.choice(_TYPES[types[name]])
            column = quote_identifier(name)
            pair.at_source(f"ALTER TABLE t ALTER {column} DROP DEFAULT, ALTER {column} TYPE {types[name]}")
    elif kind == "key":
        pair.at_source("ALTER TABLE t DROP CONSTRAINT t_pkey")
        columns = chance.choice(["id, other", "other, id", "id", "other"])
        pair.at_source(f"ALTER TABLE t ADD CONSTRAINT t_pkey PRIMARY KEY ({columns})")


def compare(pair: Pair, schema: TableSchema) -> None:
    pair.assert_equal(schema)
    target = read_target(pair.target, pair.place(schema))
    assert target is not None and target.unique_on(schema.key)
    texts = {column.name: column.type_text for column in schema.columns}
    assert texts == {name: there.column.type_text for name, there in target.columns.items() if not there.kept}


@pytest.mark.parametrize("seed", range(10))
def test_random_changes_end_equal(make_pair: Callable[..., Pair], seed: int) -> None:
    chance = random.Random(seed)
    pair = make_pair()
    pair.at_source("CREATE TYPE mood AS ENUM ('a', 'so-so')", "CREATE TABLE t (id int PRIMARY KEY, other int NOT NULL)",
                   "INSERT INTO t SELECT i, 10 - i FROM generate_series(1, 3) i")  # fmt: skip
    old = pair.create()
    pair.copy(old)
    types: dict[str, str] = {}
    drop_columns = chance.random() < 0.5
    followed = 0
    for _ in range(12):
        for _ in range(chance.randint(1, 4)):
            change(pair, chance, types)
        pair.at_target("SAVEPOINT before")
        try:
            pair.evolve(old, drop_columns=drop_columns)
            followed += 1
            old = pair.schema()
        except ddl.ReloadNeeded:
            # A type change wrote the table anew, with it the default of a column that is new.
            pair.at_target("ROLLBACK TO SAVEPOINT before", "DROP TABLE t")
            old = pair.create()
            pair.copy(old)
        compare(pair, old)
    assert followed > 3
