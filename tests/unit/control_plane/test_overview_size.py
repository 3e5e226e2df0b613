"""The overview of many pipelines stays small: its page asks for a hundred of its events at once."""

from __future__ import annotations

from typing import Any

from dagster._serdes import serialize_value

from rosetta_dagster.assets.overview import overview_event
from rosetta_dagster.monitoring.overview import Overview
from rosetta_dagster.monitoring.source_states import SourceState
from rosetta_dagster.resources.pipeline_health import PipelineHealth

PIPELINES = 200
MAX_BYTES = 16_000


def test_many_pipelines_in_trouble_are_listed_by_the_worst_and_counted() -> None:
    health = [
        PipelineHealth(f"p{n:03}", f"s{n:03}", "START", "ERROR", "the source does not answer", (), ())
        for n in range(PIPELINES)
    ]
    sources = tuple(SourceState(f"s{n:03}", "ERROR", 7, 5.0, "the source does not answer") for n in range(PIPELINES))
    event = overview_event(health, {}, Overview((), (), (), (), sources=sources), "200 pipelines: 200 ERROR")
    assert len(serialize_value(event)) < MAX_BYTES
    numbers: dict[str, Any] = {name: value.value for name, value in event.metadata.items()}
    assert numbers["pipelines in error"] == PIPELINES
    attention: Any = event.metadata["needs attention"]
    listed = [record.data for record in attention.records]
    assert listed[0]["pipeline"] == "p000"
    assert listed[-1] == {"pipeline": "", "check": "", "why": "and 388 more: see the checks of each pipeline"}


def test_few_are_all_listed() -> None:
    health = [PipelineHealth("shop", "s", "START", "ERROR", "away", (), ())]
    attention: Any = overview_event(health, {}, Overview((), (), (), ()), "").metadata["needs attention"]
    assert [record.data["pipeline"] for record in attention.records] == ["shop", "shop"]
