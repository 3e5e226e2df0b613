"""Runs a preview as an operator asked for it: from the cache, or when its turn has come; it can be cancelled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from cdc_runner.dead_letter.store import LetterStore
from cdc_runner.sandbox.run import SandboxResult
from cdc_runner.sandbox.turns import PREVIEWS, TurnCancelled, Turns
from cdc_runner.services.preview import Cancellation, PreviewPlan, as_json, cancelled_result, preview
from cdc_runner.services.preview_cache import PreviewCache


@dataclasses.dataclass(frozen=True, slots=True)
class PreviewRequest:
    """What is asked for.

    Attributes:
        plan: of `plan_preview`.
        sql: one SELECT of DuckDB.
        sample_rows: rows read of each table.
        use_cache: whether a result of the last minutes will do; a new one is kept in any case.
        at_once: most statements that run at once on this host.
        home: directory of local state, for the turns.
        redis_url: of the cache; None for none.
    """

    plan: PreviewPlan
    sql: str
    sample_rows: int
    use_cache: bool
    at_once: int
    home: Path
    redis_url: SecretStr | None


@dataclasses.dataclass(frozen=True, slots=True)
class PreviewOutcome:
    """What became of it.

    Attributes:
        result: of the sandbox, now or when it was kept.
        cached_seconds: age of a result from the cache; None for a new one.
        waited_seconds: for its turn.
        cache_problem: why there was no cache; None when there was.
    """

    result: SandboxResult
    cached_seconds: float | None
    waited_seconds: float
    cache_problem: str | None

    def as_json(self) -> dict[str, Any]:
        """Return it for machines."""
        cached = None if self.cached_seconds is None else round(self.cached_seconds, 1)
        return {
            **as_json(self.result),
            "cached_seconds": cached,
            "waited_seconds": round(self.waited_seconds, 1),
            "cache_problem": self.cache_problem,
        }


def run_preview(request: PreviewRequest, on_wait: Callable[[int], None] | None = None) -> PreviewOutcome:
    """Run a preview. An exception in the calling thread, such as Ctrl-C, ends its query and its process at once.

    Args:
        request: what is asked for.
        on_wait: told, from another thread, how many statements stand before this one.

    Raises:
        RosettaError: as `preview`; CONFLICT when too many wait.
    """
    cancellation = Cancellation()
    with ThreadPoolExecutor(1, thread_name_prefix="preview") as pool:
        future = pool.submit(_run, request, cancellation, on_wait)
        try:
            return future.result()
        except BaseException:
            cancellation.cancel()
            raise


def _run(request: PreviewRequest, cancellation: Cancellation, on_wait: Callable[[int], None] | None) -> PreviewOutcome:
    store = LetterStore(request.redis_url, binary=True)
    cache = PreviewCache(store)
    digest = request.plan.digest(request.sql, request.sample_rows)
    turns = Turns(request.home / PREVIEWS, request.at_once)
    try:
        found = cache.find(digest) if request.use_cache else None
        if found is not None:
            return PreviewOutcome(found.result, found.age_seconds, 0.0, None)
        with turns.turn(cancellation.event, on_wait) as waited:
            # Of a hundred requests for the same, one is computed.
            found = cache.find(digest) if request.use_cache and waited > 0.1 else None
            if found is not None:
                return PreviewOutcome(found.result, found.age_seconds, waited, None)
            result = preview(request.plan, request.sql, request.sample_rows, cancellation=cancellation)
            cache.keep(digest, result)
            return PreviewOutcome(result, None, waited, cache.problem)
    except TurnCancelled:
        return PreviewOutcome(cancelled_result(), None, 0.0, cache.problem)
    finally:
        store.close()
