"""A destination's server that goes away in any call is an outage with a name, never a bare error of the driver."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cdc_runner.capture.fetch import SourceRows
from cdc_runner.destinations.postgres.destination import PostgresDestination
from cdc_runner.errors import ErrorKind, Reaction, RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import TableId
from cdc_runner.spec import DestinationSpec, PipelineSettings
from tests.support.servers import Database

pytestmark = pytest.mark.pg

CALLS: dict[str, Callable[[PostgresDestination], object]] = {
    "position": lambda one: one.position(),
    "start_at": lambda one: one.start_at(Position(1)),
    "remember_all": lambda one: one.remember_all([]),
    "load_again": lambda one: one.load_again(TableId("public", "t")),
    "reset": lambda one: one.reset(),
    "reload_states": lambda one: one.reload_states(),
    "refresh_types": lambda one: one.refresh_types(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_session_that_the_server_ended_is_an_outage_that_is_tried_again(
    call: Callable[[PostgresDestination], object],
    target_database: Database,
    source_database: Database,
    tmp_path: Path,
) -> None:
    source = SourceRows(source_database.address(), "test")
    spec = DestinationSpec(1, 1, "target", "postgres", target_database.address(), None)
    destination = PostgresDestination(
        spec, "shop", PipelineSettings(), directory=tmp_path, fetch=source.fetch, source=source.connection
    )
    try:
        destination.open()
        ended = target_database.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'rosetta shop'"
        )
        assert ended == [(True,)]
        with pytest.raises(RosettaError) as caught:
            call(destination)
        assert caught.value.kind is ErrorKind.DESTINATION_UNAVAILABLE
        assert caught.value.policy.reaction is Reaction.RETRY
        destination.open()
        assert destination.position() is None
    finally:
        destination.close()
        source.close()
