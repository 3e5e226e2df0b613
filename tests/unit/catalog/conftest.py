"""A migrated and empty config database for each test, and a configuration file to apply to it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest
from psycopg2 import sql
from sqlalchemy import Engine, text
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from cdc_runner.catalog.credentials import Keyring, generate_key
from cdc_runner.catalog.database import create_catalog_engine, session_scope
from cdc_runner.catalog.migrations import apply_migrations
from cdc_runner.catalog.models import Base, Destination, Pipeline, PipelineDestination, Source
from cdc_runner.catalog.pipelines import destination_place, source_place
from cdc_runner.catalog.plan import Plan
from cdc_runner.services.apply import apply_path

SHOP = """
sources:
  shop:
    host: 127.0.0.1
    port: 5434
    database: shop
    username: rosetta
    password: {env: SHOP_PASSWORD}
    tables: ["public.*", "sales.order_*"]
destinations:
  warehouse:
    type: postgres
    host: 127.0.0.1
    port: 5435
    database: warehouse
    username: rosetta
    password: {file: warehouse.secret}
    schema: shop
  lake:
    type: snowflake
    account: ACME-EU1
    user: ROSETTA
    private_key: {file: key.p8}
    private_key_passphrase: {env: RSA_PASSPHRASE}
    database: ANALYTICS
    schema: SHOP
pipelines:
  shop_to_warehouse:
    source: shop
    status: START
    settings: {load_workers: 2, drop_columns: true}
    destinations:
      - destination: warehouse
        tables:
          - table: public.orders
            target: orders_eu
            tags: [finance, PII]
          - table: "sales.*"
"""
ONLY_SHOP = "sources:" + SHOP.partition("sources:")[2].partition("destinations:")[0]

Apply = Callable[..., Plan]


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> URL:
    """URL of a superuser on a server that may be written to."""
    server = request.getfixturevalue("config_server")
    return URL.create("postgresql+psycopg2", server.username, server.password, server.host, server.port, "postgres")


def execute(url: URL, statement: sql.Composable | str) -> None:
    connection = psycopg2.connect(
        host=url.host, port=url.port, user=url.username, password=url.password, dbname="postgres"
    )
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()


def create_database(url: URL) -> URL:
    name = f"catalog_{uuid.uuid4().hex[:12]}"
    statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
    execute(url, statement)
    return url.set(database=name)


def drop_database(url: URL) -> None:
    execute(url, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(str(url.database))))


@pytest.fixture
def empty_url(server_url: URL) -> Iterator[URL]:
    """A database without any table."""
    url = create_database(server_url)
    yield url
    drop_database(url)


@pytest.fixture(scope="session")
def migrated(server_url: URL) -> Iterator[Engine]:
    url = create_database(server_url)
    engine = create_catalog_engine(url)
    apply_migrations(engine)
    yield engine
    engine.dispose()
    drop_database(url)


@pytest.fixture
def engine(migrated: Engine) -> Engine:
    """A config database without rows; emptied before each test, which is faster than a database each."""
    tables = ", ".join(f'"{name}"' for name in Base.metadata.tables)
    with migrated.begin() as connection:
        connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
    return migrated


@pytest.fixture
def catalog_url(engine: Engine) -> URL:
    return engine.url


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with session_scope(engine) as session:
        yield session


@pytest.fixture
def keyring() -> Keyring:
    return Keyring(bytes(range(32)))


@pytest.fixture
def pipeline_id(engine: Engine, keyring: Keyring) -> int:
    """A pipeline of one source and one destination."""
    with session_scope(engine) as session:
        source = Source(
            id=1001, name="shop", host="127.0.0.1", port=5434, database_name="shop", username="rosetta",
            password=keyring.encrypt("source-secret", source_place(1001)), publication_name="rosetta_shop",
            slot_name="rosetta_shop", table_patterns=["public.*"],
        )  # fmt: skip
        destination = Destination(
            id=2001,
            name="warehouse",
            type="postgres",
            config={
                "host": "127.0.0.1",
                "port": 5435,
                "database": "warehouse",
                "username": "rosetta",
                "schema": "shop",
            },
            secrets={"password": keyring.encrypt("target-secret", destination_place(2001, "password"))},
        )
        pipeline = Pipeline(id=3001, name="shop_to_warehouse", source=source)
        pipeline.destinations.append(PipelineDestination(id=4001, destination=destination))
        session.add(pipeline)
    return 3001


@pytest.fixture
def apply(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apply:
    """Apply a configuration file's text, with all secrets that `SHOP` refers to."""
    monkeypatch.setenv("CREDENTIAL_ENCRYPTION_KEY", generate_key())
    monkeypatch.setenv("SHOP_PASSWORD", "canary-shop")
    monkeypatch.setenv("RSA_PASSPHRASE", "canary-passphrase")
    (tmp_path / "warehouse.secret").write_text("canary-warehouse\n")
    (tmp_path / "key.p8").write_text("canary-key line one\ncanary-key line two\n")

    def run(content: str, **options: bool) -> Plan:
        path = tmp_path / "rosetta.yaml"
        path.write_text(content, encoding="utf-8")
        return apply_path(engine, path, **options)

    return run


def actions(plan: Plan) -> dict[str, str]:
    """Return what a plan does, by kind and name."""
    return {f"{change.kind} {change.name}": change.action for change in plan.changes}


def everything(engine: Engine) -> list[object]:
    """Return all rows that a configuration file writes, except its channels."""
    tables = ("sources", "destinations", "pipelines", "pipeline_destinations", "pipelines_destination_table_sync")
    with engine.connect() as connection:
        return [connection.execute(text(f"SELECT * FROM {table} ORDER BY id")).all() for table in tables]
