"""PostgreSQL's own logical replication between the same servers."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bench.pipeline import reader
from bench.servers import Database
from bench.waiting import wait_until
from bench.workloads import ACCOUNTS_DDL
from cdc_runner.position import parse_lsn
from cdc_runner.schema import quote_literal


class Subscription:
    """A subscription, with its publication."""

    def __init__(self, source: Database, target: Database, tables: Sequence[str], ddl: str = ACCOUNTS_DDL) -> None:
        self._source, self._target = source, target
        self.name = f"native_{secrets.token_hex(4)}"
        target.execute(ddl)
        source.execute(f"CREATE PUBLICATION {self.name} FOR TABLE {', '.join(tables)}")

    def create(self) -> None:
        """Create the subscription, which starts its copy."""
        self._target.execute(
            f"CREATE SUBSCRIPTION {self.name} CONNECTION {quote_literal(self._source.dsn())} PUBLICATION {self.name}"
        )

    def copy(self, timeout_seconds: float) -> float:
        """Create the subscription and return the seconds that its copy took.

        From the first table in state `d` (being copied) until all tables are `r` (ready).
        """
        begun = 0.0
        with reader(self._target) as read:

            def ready() -> bool:
                nonlocal begun
                states = {str(row[0]) for row in read("SELECT srsubstate FROM pg_subscription_rel")}
                if not begun and states & set("dfsr"):
                    begun = time.monotonic()
                return states == {"r"}

            self.create()
            return wait_until(ready, timeout_seconds, "the subscription's copy") - begun

    @contextmanager
    def position(self) -> Iterator[Callable[[], int]]:
        """Give a function that reads the end of the last transaction that was applied."""
        query = (
            "SELECT p.remote_lsn::text FROM pg_replication_origin_status p "
            f"JOIN pg_subscription s ON p.external_id = 'pg_' || s.oid WHERE s.subname = {quote_literal(self.name)}"
        )
        with reader(self._target) as read:

            def position() -> int:
                rows = read(query)
                return parse_lsn(str(rows[0][0])) if rows and rows[0][0] is not None else 0

            yield position

    def enable(self) -> None:
        """Let it apply."""
        self._target.execute(f"ALTER SUBSCRIPTION {self.name} ENABLE")

    def disable(self) -> None:
        """Stop it, and wait until its workers have ended."""
        self._target.execute(f"ALTER SUBSCRIPTION {self.name} DISABLE")
        with reader(self._target) as read:
            query = f"SELECT 1 FROM pg_stat_subscription WHERE subname = {quote_literal(self.name)} AND pid IS NOT NULL"
            wait_until(lambda: not read(query), 30, "the subscription's workers to end")

    def drop(self) -> None:
        """Drop the subscription with its slot, and the publication."""
        self._target.execute(f"DROP SUBSCRIPTION IF EXISTS {self.name}")
        self._source.execute(f"DROP PUBLICATION IF EXISTS {self.name}")
