"""Pipelines in a config database, as the engine would have reported them."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from sqlalchemy import text

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.database import open_catalog, session_scope
from cdc_runner.catalog.models import Destination, Pipeline, PipelineDestination, Source
from cdc_runner.catalog.pipelines import destination_place, source_place
from cdc_runner.catalog.reporting import State, record_schema_change, report_position, report_state
from cdc_runner.catalog.repositories import next_id
from cdc_runner.catalog.table_reports import TableReport, report_table_states
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema
from cdc_runner.spec import ResolvedSync

KEY = base64.b64encode(bytes(range(32))).decode()
"""CREDENTIAL_ENCRYPTION_KEY of these pipelines."""


def store_pipeline(
    url: str,
    name: str,
    tables: Sequence[str] = ("orders",),
    *,
    state: State = "RUNNING",
    lag_ms: int = 80,
    port: int = 5434,
) -> int:
    """Store a pipeline of one source and one destination whose tables all stream; return its id."""
    engine, keyring = open_catalog(url), Keyring(bytes(range(32)))
    try:
        with session_scope(engine) as session:
            source_id, destination_id = next_id(session, "sources"), next_id(session, "destinations")
            source = Source(
                id=source_id, name=f"{name}-source", host="127.0.0.1", port=port, database_name="shop",
                username="rosetta", password=keyring.encrypt("canary-word", source_place(source_id)),
                publication_name="rosetta", slot_name=name.replace("-", "_").lower(), table_patterns=["public.*"],
            )  # fmt: skip
            destination = Destination(
                id=destination_id, name=f"{name}-warehouse", type="postgres",
                config={"host": "127.0.0.1", "port": port, "database": "dwh", "username": "rosetta"},
                secrets={"password": keyring.encrypt("canary-word", destination_place(destination_id, "password"))},
            )  # fmt: skip
            link = PipelineDestination(destination=destination)
            pipeline = Pipeline(name=name, source=source, status="START", destinations=[link])
            session.add(pipeline)
            session.flush()
            report_state(session, pipeline.id, state)
            report_position(
                session, pipeline_id=pipeline.id, pipeline_destination_id=link.id, captured_lsn=300, applied_lsn=300,
                acknowledged_lsn=200, lag_bytes=0, lag_ms=lag_ms, commit_time=session.scalar(text("SELECT now()")),
            )  # fmt: skip
            for table in tables:
                identity = TableId("public", table)
                record_schema_change(session, source_id, identity, "INITIAL_LOAD", None, _schema(identity))
                sync = ResolvedSync(None, identity, identity)
                report = TableReport(sync, "STREAMING", snapshot_lsn=100, loaded_rows=10)
                report_table_states(session, link.id, [report])
            return pipeline.id
    finally:
        engine.dispose()


def _schema(table: TableId) -> TableSchema:
    columns = (Column("id", "bigint", "int8", not_null=True), Column("amount", "numeric(10,2)", "numeric"))
    return TableSchema(table, columns, ("id",), ("id",), ReplicaIdentity.DEFAULT)
