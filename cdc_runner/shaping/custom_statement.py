"""The statement of a table sync and the tables that it means, bound as these are now."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager

from cdc_runner.custom_sql.plan import CustomPlan, bind, find_tables
from cdc_runner.custom_sql.query import CustomSqlRefused, parse_query
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.sandbox.session import SandboxSession
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.custom_source import Masks, look_up
from cdc_runner.shaping.net import Lookups
from cdc_runner.spec import ResolvedSync

OpenLookups = Callable[[], AbstractContextManager[Lookups]]
"""Opens a session at the destination, to look at the tables in which rows are looked up."""


class Statement:
    """A statement that can be kept right, as far as that shows without the columns of its tables.

    Attributes:
        reads: the tables of the source.
        looks_up: the tables of the destination.
    """

    def __init__(
        self, sync: ResolvedSync, captured: Collection[TableId], masks: Masks, sandbox: SandboxSession
    ) -> None:
        """Args:
        sync: with its SQL.
        captured: the tables of the source that are captured.
        masks: of the columns that the statement must not see.
        sandbox: parses it.

        Raises:
            CustomSqlRefused: naming the reason.
            RosettaError: CONFIG_INVALID, a table is not captured.
        """
        self._sync = sync
        self._masks = masks
        self._sandbox = sandbox
        self._query = parse_query(sync.shape.custom_sql or "", sandbox)
        self._tables = find_tables(self._query, sync.source, captured)
        uses = list(zip(self._tables, self._query.tables, strict=True))
        self.reads = frozenset(table for table, use in uses if use.lookup is None)
        self.looks_up = tuple(table for table, use in uses if use.lookup is not None)
        missing = sorted(self.reads - set(captured))
        if missing:
            raise RosettaError(ErrorKind.CONFIG_INVALID, f"table {missing[0]} is not captured")

    def bind_first(
        self, present: Mapping[TableId, TableSchema], lookups: OpenLookups, written: Collection[TableId]
    ) -> CustomPlan:
        """Return the statement bound to its tables, after a look at those of the destination.

        Args:
            present: tables of the source.
            lookups: asked only where the statement looks rows up.
            written: the targets of the pipeline at the destination.

        Raises:
            RosettaError: CONFIG_INVALID, naming the reason; DESTINATION_PERMISSION, the role may not read what is to be
                looked up.
        """
        if not self.looks_up:
            return self.bind(present, {})
        for table in self.looks_up:
            if table in written:
                raise CustomSqlRefused(
                    f"table {table} of the destination is one that this pipeline writes: join its table of the source, "
                    "whose changes are followed"
                )
        with lookups() as there:
            plan = self.bind(present, there.schemas(self.looks_up))
            for one in plan.tables:
                if one.lookup:
                    look_up(there, one, [])
        return plan

    def bind(self, present: Mapping[TableId, TableSchema], looked_up: Mapping[TableId, TableSchema]) -> CustomPlan:
        """Return the statement bound to tables.

        Args:
            present: of the source.
            looked_up: of the destination.

        Raises:
            RosettaError: CONFIG_INVALID, naming the reason.
        """
        schemas = []
        for table, use in zip(self._tables, self._query.tables, strict=True):
            schema = (present if use.lookup is None else looked_up).get(table)
            if schema is None and use.lookup is not None:
                raise CustomSqlRefused(f"the destination has no ordinary table {table}, which it reads")
            if schema is None:
                raise CustomSqlRefused(f"table {table}, which it reads, is gone")
            schemas.append(schema)
        return bind(self._query, schemas, self._masks.columns, self._sync.shape.key, self._sandbox)
