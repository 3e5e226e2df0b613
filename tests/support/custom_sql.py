"""Targets with custom SQL against what their statements give at the source."""

from __future__ import annotations

from collections.abc import Mapping

from tests.support.pipelines import PipelineHarness


def compare(pipeline: PipelineHarness, statements: Mapping[str, str]) -> None:
    """Fail, naming rows, when a target is not its statement's result over the source.

    Args:
        pipeline: caught up.
        statements: by target, as PostgreSQL understands them.
    """
    different = {}
    for target, sql in statements.items():
        wanted = pipeline.source.execute(f"SELECT q::text FROM ({sql}) q ORDER BY 1")
        found = pipeline.targets["target"].execute(f"SELECT t::text FROM {target} t ORDER BY 1")
        if wanted != found:
            lost, extra = sorted(set(wanted) - set(found))[:3], sorted(set(found) - set(wanted))[:3]
            different[target] = (len(wanted), len(found), lost, extra)
    assert not different, f"{different}\n{pipeline.log_text()[-2500:]}"
