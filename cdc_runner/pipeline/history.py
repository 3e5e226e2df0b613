"""Remember which history of the source the positions of a pipeline belong to, and stop when it is another one."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from sqlalchemy import Engine

from cdc_runner.capture.identity import ServerIdentity, check_same_history, read_history
from cdc_runner.catalog import reporting
from cdc_runner.catalog.database import session_scope
from cdc_runner.position import Position
from cdc_runner.spec import PipelineSpec

log = structlog.get_logger()


def check_history(catalog: Engine, spec: PipelineSpec, positions: Sequence[Position]) -> None:
    """Make sure that the destinations' positions were reached in the source's present history, and remember it.

    Args:
        catalog: the config database.
        spec: the pipeline.
        positions: of its destinations; empty for one that was never loaded, or is loaded again.

    Raises:
        RosettaError: SLOT_AHEAD when they were not; the source's and the config database's kinds.
    """
    now = read_history(spec.source.address)
    with session_scope(catalog) as session:
        stored = reporting.source_identity(session, spec.id)
    if stored == str(now.identity):
        return
    if stored is not None and positions:
        check_same_history(ServerIdentity.parse(stored), now, positions)
        log.info("source.history_goes_on", pipeline=spec.name, timeline=now.identity.timeline)
    with session_scope(catalog) as session:
        reporting.report_source_identity(session, spec.id, str(now.identity))
