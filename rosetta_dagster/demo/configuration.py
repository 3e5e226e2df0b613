"""The demo's configuration, as a file that can be read, changed and applied again with `rosetta apply`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from sqlalchemy import Engine

from cdc_runner.catalog.apply_file import apply_configuration
from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.file_format import parse_configuration
from cdc_runner.catalog.secret_source import read_secrets
from cdc_runner.schema import TableId
from cdc_runner.spec import PostgresAddress

PIPELINE = "shop_demo"
PATTERNS = ("shop.*", "public.pgbench_*", "public.demo_heartbeat")
SECOND_SCHEMA = "shop_copy"
"""The second destination takes all tables into one schema, the first keeps the source's schemas."""

_FILE = """\
# Written by `rosetta demo`.
sources:
  shop:
    type: postgres
    host: {source.host}
    port: {source.port}
    database: {source.database}
    username: {source.username}
    password: {{env: DEMO_SOURCE_PASSWORD}}
    publication: rosetta_shop
    slot: rosetta_shop
    tables: [{patterns}]
destinations:
  warehouse:
    type: postgres
    host: {first.host}
    port: {first.port}
    database: {first.database}
    username: {first.username}
    password: {{env: DEMO_WAREHOUSE_PASSWORD}}
  reporting:
    type: postgres
    host: {second.host}
    port: {second.port}
    database: {second.database}
    username: {second.username}
    password: {{env: DEMO_REPORTING_PASSWORD}}
    schema: {schema}
pipelines:
  {pipeline}:
    source: shop
    status: START
    destinations:
      - destination: warehouse
      - destination: reporting
"""


def write_configuration(
    path: Path, source: PostgresAddress, warehouse: PostgresAddress, reporting: PostgresAddress
) -> None:
    """Write the file, and set the variables that its passwords refer to in this process."""
    text = _FILE.format(
        source=source,
        first=warehouse,
        second=reporting,
        patterns=", ".join(f'"{pattern}"' for pattern in PATTERNS),
        schema=SECOND_SCHEMA,
        pipeline=PIPELINE,
    )
    path.write_text(text, encoding="utf-8")
    for name, address in (("SOURCE", source), ("WAREHOUSE", warehouse), ("REPORTING", reporting)):
        os.environ[f"DEMO_{name}_PASSWORD"] = address.password.get_secret_value()


def apply_file(engine: Engine, path: Path) -> None:
    """Apply a configuration file, as `rosetta apply` does.

    Raises:
        RosettaError: the file, a reference in it, or the config database is not right.
    """
    file = parse_configuration(path.read_text(encoding="utf-8"))
    secrets = read_secrets(file, path.parent)
    with session_scope(engine) as session:
        # The home's servers may have been made anew under an older config database's passwords.
        apply_configuration(session, file, secrets, Keyring.from_environment(), replace_credentials=True)


def target_tables(tables: Iterable[TableId]) -> dict[str, Mapping[TableId, TableId]]:
    """Return, for each destination, the target of each source table."""
    known = list(tables)
    return {
        "warehouse": {table: table for table in known},
        "reporting": {table: TableId(SECOND_SCHEMA, table.name) for table in known},
    }
