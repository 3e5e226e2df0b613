"""The names that the Dagster launchpad offers in its pickers; two sensors keep them in step with the catalog."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from dagster import AddDynamicPartitionsRequest, DeleteDynamicPartitionsRequest, DynamicPartitionsDefinition

PIPELINES = DynamicPartitionsDefinition(name="pipelines")
SOURCES = DynamicPartitionsDefinition(name="sources")
DESTINATIONS = DynamicPartitionsDefinition(name="destinations")
CHANNELS = DynamicPartitionsDefinition(name="notification_channels")

_PICKERS = {"pipelines": PIPELINES, "sources": SOURCES, "destinations": DESTINATIONS, "notification_channels": CHANNELS}

PartitionRequest = AddDynamicPartitionsRequest | DeleteDynamicPartitionsRequest


def picker_requests(
    wanted: Mapping[str, Collection[str]], known: Callable[[str], Collection[str]]
) -> list[PartitionRequest]:
    """Return what makes the names in every picker the wanted ones; `known` gives those that a picker has now."""
    requests: list[PartitionRequest] = []
    for picker, names in wanted.items():
        requests += _requests(_PICKERS[picker], names, known(picker))
    return requests


def _requests(
    definition: DynamicPartitionsDefinition, wanted: Collection[str], known: Collection[str]
) -> list[PartitionRequest]:
    added = [name for name in wanted if name not in known]
    removed = [name for name in known if name not in wanted]
    requests: list[PartitionRequest] = []
    if added:
        requests.append(definition.build_add_request(added))
    if removed:
        requests.append(definition.build_delete_request(removed))
    return requests
