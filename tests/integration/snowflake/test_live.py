"""The same path on a real account, when its settings are given.

    ROSETTA_SNOWFLAKE_ACCOUNT, _USER, _PRIVATE_KEY_FILE, _DATABASE, _SCHEMA, _WAREHOUSE; _PASSPHRASE and _ROLE optional

Everything is made under a table name of its own and dropped at the end.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest
from pydantic import SecretStr

from cdc_runner.destinations.snowflake.administration import forget_pipeline
from cdc_runner.destinations.snowflake.destination import SnowflakeDestination
from cdc_runner.spec import DestinationSpec, PipelineSettings, SnowflakeAddress
from tests.support.snowflake_events import ITEM, apply, events, ready, sync_of, table

pytestmark = [pytest.mark.snowflake_live, pytest.mark.timeout(900)]

_NEEDED = ("ACCOUNT", "USER", "PRIVATE_KEY_FILE", "DATABASE", "SCHEMA", "WAREHOUSE")


@pytest.fixture
def address() -> SnowflakeAddress:
    values = {name: os.environ.get(f"ROSETTA_SNOWFLAKE_{name}", "") for name in (*_NEEDED, "PASSPHRASE", "ROLE")}
    missing = [f"ROSETTA_SNOWFLAKE_{name}" for name in _NEEDED if not values[name]]
    if missing:
        pytest.skip(f"no real Snowflake account is given: {', '.join(missing)} not set")
    return SnowflakeAddress(
        values["ACCOUNT"],
        values["USER"],
        SecretStr(Path(values["PRIVATE_KEY_FILE"]).read_text()),
        values["DATABASE"],
        values["SCHEMA"],
        SecretStr(values["PASSPHRASE"]) if values["PASSPHRASE"] else None,
        role=values["ROLE"] or None,
        warehouse=values["WAREHOUSE"],
    )


def test_events_reach_a_target_once(address: SnowflakeAddress) -> None:
    schema = table(*ITEM.columns, name=f"rosetta_{secrets.token_hex(4)}")
    pipeline = f"live_{secrets.token_hex(4)}"

    def no_source() -> None:
        raise AssertionError("no source is needed")

    made = SnowflakeDestination(
        DestinationSpec(1, 1, "lake", "snowflake", address, address.schema),
        pipeline,
        PipelineSettings(),
        directory=Path(),
        fetch=lambda schema, keys: {},
        source=no_source,  # type: ignore[arg-type]
    )
    made.open()
    session = made._open_session()
    names = session.naming.table(sync_of(schema).target)
    try:
        ready(made, schema)
        first = events(schema, 10, [("u", None, "1", 'a\n"b\\é😀', "1.10"), ("u", None, "2", None, None)])
        apply(made, 10, first)
        made.open()
        apply(made, 10, first)
        apply(made, 20, events(schema, 20, [("u", "010", "1", None, "2.00"), ("d", None, "2")]))
        session = made._open_session()
        session.objects.merge(sync_of(schema), session.objects.shape(schema))
        rows = session.sql.run(f"SELECT ID, NAME, PRICE FROM {names.target.quoted}", "read the target").rows
        assert rows == [["1", 'a\n"b\\é😀', "2.00"]]
    finally:
        session.sql.run(f"DROP TABLE IF EXISTS {names.target.quoted}", "drop the target")
        made.close()
        forget_pipeline(address, pipeline, "lake")
