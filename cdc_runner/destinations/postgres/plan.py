"""Planning of initial loads: targets made or emptied, and cut into chunks; kept so that a load survives a restart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import psycopg2
import psycopg2.extensions

from cdc_runner.destinations.base import Computed, TableLoad, TableState
from cdc_runner.destinations.chunks import plan_chunks
from cdc_runner.destinations.postgres import check, ddl, membership, state, target_table, types, waiting
from cdc_runner.destinations.postgres.type_names import SchemaMap
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position, format_lsn
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.columns import LSN, OPERATION, ColumnPlan, column_plan
from cdc_runner.shaping.evolution import diff
from cdc_runner.spec import PipelineSettings, ResolvedSync, SyncMode


class LoadPlanner:
    """Plans the loads of one pipeline into one destination, in a transaction of the caller's."""

    def __init__(
        self,
        source: psycopg2.extensions.connection,
        session: psycopg2.extensions.connection,
        pipeline: str,
        settings: PipelineSettings,
        map_schema: SchemaMap,
    ) -> None:
        """Args:
        source: to measure tables and to read their types.
        session: of the destination.
        pipeline: identity under which the plan is kept.
        settings: size of chunks, and what happens to dropped columns.
        map_schema: source schema to target schema.
        """
        self._source = source
        self._session = session
        self._pipeline = pipeline
        self._settings = settings
        self._map_schema = map_schema

    def plan(
        self,
        wanted: Sequence[tuple[ResolvedSync, TableSchema]],
        known: Mapping[TableId, TableState],
        computed: Mapping[TableId, Computed],
    ) -> list[TableLoad]:
        """Make the targets that are not there, and return the loads of tables that are not ready."""
        if computed:
            with self._session.cursor() as cursor:
                membership.create(cursor)
        fresh = [one for one in wanted if not _is_loaded(known.get(one[0].target), one[0])]
        if not fresh:
            return []
        copied = [(sync, schema) for sync, schema in wanted if sync.target not in computed]
        plans = {sync.target: column_plan(sync, schema) for sync, schema in copied}
        shaped = [(schema, plans[sync.target]) for sync, schema in copied]
        targets = [schema if plan is None else plan.target for schema, plan in shaped]
        types.ensure_types(self._source, self._session, targets, self._map_schema)
        return [
            self._plan_computed(sync, one, computed[sync.target], known.get(sync.target))
            if sync.target in computed
            else self._plan_table(sync, one, plans[sync.target], known.get(sync.target))
            for sync, one in fresh
        ]

    def _keep_history(
        self, cursor: psycopg2.extensions.cursor, known: TableState, schema: TableSchema, *, begun: bool
    ) -> None:
        """Bring a history that is loaded again to its present schema; its rows stay.

        Args:
            cursor: of the transaction.
            known: its state.
            schema: the present one.
            begun: the load before was cut off, so that its rows have to go.
        """
        table = known.sync.target
        if target_table.read_target(self._session, table) is None:
            ddl.create_table(self._session, table, schema, self._map_schema, with_key=False)
            return
        if begun:
            cursor.execute(
                f"DELETE FROM {table.quoted} WHERE {OPERATION} = 'r' AND {LSN} = %s::pg_lsn",
                (format_lsn(known.snapshot.lsn),),
            )
        changes = diff(known.schema, schema)
        if changes:
            drop = self._settings.drop_columns
            ddl.evolve(self._session, table, changes, schema, self._map_schema, drop_columns=drop)

    def _plan_computed(
        self, sync: ResolvedSync, origin: TableSchema, computed: Computed, known: TableState | None
    ) -> TableLoad:
        schema = computed.target_schema(origin)
        if known is None:
            _make_target(self._session, self._map_schema, sync, schema)
        else:
            with self._session.cursor() as cursor:
                waiting.forget_target(cursor, self._pipeline, sync.target)
                state.forget_chunks(cursor, self._pipeline, sync.target)
            _empty_target(self._session, self._map_schema, known, schema, drop_columns=True)
        fingerprint = sync.shape.fingerprint
        table = TableState(sync, False, Position(0), schema, source_schema=origin, shape=fingerprint)
        return TableLoad(table, (), resumed=False, computed=computed)

    def _plan_table(
        self, sync: ResolvedSync, origin: TableSchema, shape: ColumnPlan | None, known: TableState | None
    ) -> TableLoad:
        session, pipeline = self._session, self._pipeline
        schema = origin if shape is None else shape.target
        same_shape = known is not None and known.shape == sync.shape.fingerprint
        if known is None:
            _make_target(session, self._map_schema, sync, schema)
        with session.cursor() as cursor:
            chunks = state.read_chunks(cursor, pipeline, sync.target) if known is not None else []
            resumed = known is not None and known.schema == schema and any(c.row_count is not None for c in chunks)
            if known is not None and resumed and same_shape and schema.key:
                ddl.add_key(session, sync.target, schema)
                return TableLoad(known, chunks, resumed=True, plan=shape)
            if known is not None:
                # So does what waits of an earlier load.
                waiting.forget_target(cursor, pipeline, sync.target)
                # What a former shape let through must not stay.
                drop_columns = self._settings.drop_columns or not same_shape
                if same_shape and sync.shape.mode is SyncMode.HISTORY:
                    self._keep_history(cursor, known, schema, begun=bool(chunks))
                else:
                    _empty_target(session, self._map_schema, known, schema, drop_columns=drop_columns)
            chunks = plan_chunks(self._source, origin, self._settings.load_chunk_bytes)
            state.write_chunks(cursor, pipeline, sync.target, chunks)
        made_for, fingerprint = (None, "") if shape is None else (origin, sync.shape.fingerprint)
        table = TableState(sync, False, Position(0), schema, source_schema=made_for, shape=fingerprint)
        return TableLoad(table, chunks, resumed=False, plan=shape)


def _is_loaded(known: TableState | None, sync: ResolvedSync) -> bool:
    """Tell whether a target holds the rows of its sync, in the sync's present shape."""
    return known is not None and known.ready and known.shape == sync.shape.fingerprint


def _make_target(
    session: psycopg2.extensions.connection, map_schema: SchemaMap, sync: ResolvedSync, schema: TableSchema
) -> None:
    """Create the target, or make sure that one which is there already fits and is empty."""
    if target_table.read_target(session, sync.target) is None:
        ddl.create_table(session, sync.target, schema, map_schema, with_key=False)
        return
    errors = [one for one in check.check_table(session, sync.target, schema, map_schema) if one.is_error]
    if errors:
        texts = "; ".join(f"{one.message} ({one.remedy})" for one in errors)
        raise RosettaError(ErrorKind.DESTINATION_SCHEMA, f"target {sync.target}: {texts}")
    if check.holds_rows(session, sync.target):
        raise RosettaError(
            ErrorKind.DESTINATION_SCHEMA,
            f"target {sync.target} holds rows already, which Rosetta did not put there: empty it or choose another",
        )


def _empty_target(
    session: psycopg2.extensions.connection,
    map_schema: SchemaMap,
    known: TableState,
    schema: TableSchema,
    *,
    drop_columns: bool,
) -> None:
    """Empty a target of ours, and bring it to the schema that the source has by now."""
    table = known.sync.target
    with session.cursor() as cursor:
        if target_table.read_target(session, table) is None:
            ddl.create_table(session, table, schema, map_schema, with_key=False)
            return
        cursor.execute(f"TRUNCATE {table.quoted}")
        changes = diff(known.schema, schema)
        if not changes:
            return
        cursor.execute("SAVEPOINT evolve")
        try:
            ddl.evolve(session, table, changes, schema, map_schema, drop_columns=drop_columns)
        except (RosettaError, psycopg2.Error):
            # It holds nothing any more, so it can be made anew.
            cursor.execute("ROLLBACK TO SAVEPOINT evolve")
            cursor.execute(f"DROP TABLE {table.quoted}")
            ddl.create_table(session, table, schema, map_schema, with_key=False)
