"""A real account, where one is named: what the stand-ins cannot tell.

    ROSETTA_SNOWFLAKE_ACCOUNT, _USER, _PRIVATE_KEY_FILE, _DATABASE, _SCHEMA; also _PASSPHRASE, _ROLE, _WAREHOUSE, _HOST

Tables of random names are made in that schema, and everything is dropped again.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.snowflake.administration import forget_pipeline
from cdc_runner.destinations.snowflake.destination import SnowflakeDestination
from cdc_runner.doctor.finding import Findings
from cdc_runner.doctor.snowflake import check_snowflake
from cdc_runner.position import Position
from cdc_runner.schema import Column, TableId, TableSchema
from cdc_runner.shaping.net import NetChange
from cdc_runner.spec import DestinationSpec, PipelineSettings, ResolvedSync, SnowflakeAddress
from tests.support.snowflake_events import events, table

PREFIX = "ROSETTA_SNOWFLAKE_"
NEEDED = ("ACCOUNT", "USER", "PRIVATE_KEY_FILE", "DATABASE", "SCHEMA")
MISSING = [PREFIX + name for name in NEEDED if not os.environ.get(PREFIX + name)]

pytestmark = [
    pytest.mark.snowflake_live,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(MISSING), reason=f"no Snowflake account to try: {', '.join(MISSING)} not set"),
]


def setting(name: str) -> str | None:
    return os.environ.get(PREFIX + name) or None


def live_address() -> SnowflakeAddress:
    """The account of the environment."""
    passphrase = setting("PASSPHRASE")
    return SnowflakeAddress(
        account=str(setting("ACCOUNT")),
        user=str(setting("USER")),
        private_key=SecretStr(Path(str(setting("PRIVATE_KEY_FILE"))).read_text()),
        private_key_passphrase=None if passphrase is None else SecretStr(passphrase),
        database=str(setting("DATABASE")),
        schema=str(setting("SCHEMA")),
        role=setting("ROLE"),
        warehouse=setting("WAREHOUSE"),
        host=setting("HOST"),
        # Merges are run by the test.
        merge_seconds=86_400,
    )


class Live:
    """A destination on the account, with one table."""

    def __init__(self) -> None:
        self.address = live_address()
        self.pipeline = f"live_{secrets.token_hex(4)}"
        self.spec = DestinationSpec(1, 1, "lake", "snowflake", self.address, self.address.schema)
        self.made: list[SnowflakeDestination] = []

    def opened(self) -> SnowflakeDestination:
        def none(*_: Any) -> Any:
            raise AssertionError("no source is needed")

        made = SnowflakeDestination(
            self.spec, self.pipeline, PipelineSettings(), directory=Path("/nonexistent"), fetch=none, source=none
        )
        made.open()
        self.made.append(made)
        return made

    def sync(self, schema: TableSchema) -> ResolvedSync:
        return ResolvedSync(None, schema.table, TableId(self.address.schema, schema.table.name))

    def apply(self, made: SnowflakeDestination, lsn: int, change: NetChange) -> None:
        made.apply([[(self.sync(change.version.schema), change)]], Position(lsn), 1_700_000_000.0)


@pytest.fixture
def live() -> Iterator[Live]:
    made = Live()
    yield made
    for one in made.made:
        one.close()
    dropped = made.opened()
    session = dropped._open_session()
    for state in dropped.table_states():
        session.sql.run(
            f"DROP TABLE IF EXISTS {session.naming.table(state.sync.target).target.quoted}", "drop a target"
        )
    dropped.close()
    forget_pipeline(made.address, made.pipeline, "lake")


def test_a_real_account_takes_rows_once_and_merges_them(live: Live) -> None:
    schema = table(
        Column("id", "integer", "int4", number=1),
        Column("name", "text", "text", number=2),
        Column("price", "numeric(10,2)", "numeric", number=3),
        Column("at", "timestamp with time zone", "timestamptz", number=4),
        Column("data", "jsonb", "jsonb", number=5),
        Column("raw", "bytea", "bytea", number=6),
        Column("tags", "text[]", "_text", type_category="A", element="text", number=7),
        name=live.pipeline,
    )
    found = Findings("destination lake")
    check_snowflake(live.spec, live.pipeline, [live.sync(schema)], {schema.table: schema}, found)
    assert not [one for one in found.items if one.level == "error"], found.items
    made = live.opened()
    session = made._open_session()
    shape = session.objects.shape(schema, live.sync(schema))
    made.start_at(Position(1))
    session.objects.make(live.sync(schema), shape, None)
    made.remember_all([TableState(live.sync(schema), True, Position(1), schema)])
    row = (
        "u",
        None,
        "1",
        'a\n"b\\é😀',
        "1.10",
        "2024-02-29 23:59:59.123456+00",
        '{"a": [1, null]}',
        "\\x00ff",
        '{a,NULL,"b,c"}',
    )
    live.apply(made, 10, events(schema, 10, [row, ("u", None, "2", *[None] * 6)]))
    again = live.opened()  # another runner: what is durable is not sent again
    live.apply(again, 20, events(schema, 10, [row, ("u", None, "2", *[None] * 6)]))
    live.apply(again, 30, events(schema, 30, [("u", "0100000", "1", None, "2.00", *row[5:]), ("d", None, "2")]))
    session = again._open_session()
    landing = session.naming.table(live.sync(schema).target)
    assert session.sql.run(f"SELECT COUNT(*) FROM {landing.landing.quoted}", "count").value == "4"
    session.objects.merge(live.sync(schema), shape)
    rows = session.sql.run(
        f'SELECT "ID", "NAME", "PRICE", TO_VARCHAR("AT", \'YYYY-MM-DD HH24:MI:SS.FF6 TZH:TZM\'), TO_JSON("DATA"), '
        f'TO_VARCHAR("RAW"), TO_JSON("TAGS") FROM {landing.target.quoted}',
        "read the target",
    ).rows
    assert rows == [
        ["1", row[3], "2.00", "2024-02-29 23:59:59.123456 +00:00", '{"a":[1,null]}', "00FF", '["a",null,"b,c"]']
    ]
    assert session.sql.run(f"SELECT COUNT(*) FROM {landing.landing.quoted}", "count").value == "0"
