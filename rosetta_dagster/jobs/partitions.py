"""The names that the Dagster launchpad offers in its pickers; two sensors keep them in step with the catalog."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from dagster import (
    AddDynamicPartitionsRequest,
    DeleteDynamicPartitionsRequest,
    DynamicPartitionsDefinition,
    PartitionedConfig,
)

PIPELINES = DynamicPartitionsDefinition(name="pipelines")
SOURCES = DynamicPartitionsDefinition(name="sources")
DESTINATIONS = DynamicPartitionsDefinition(name="destinations")
CHANNELS = DynamicPartitionsDefinition(name="notification_channels")
TABLES = DynamicPartitionsDefinition(name="tables")
"""Source tables of pipelines, as `pipeline|schema.table`."""

_PICKERS = {
    "pipelines": PIPELINES,
    "sources": SOURCES,
    "destinations": DESTINATIONS,
    "notification_channels": CHANNELS,
    "tables": TABLES,
}

PartitionRequest = AddDynamicPartitionsRequest | DeleteDynamicPartitionsRequest


def one_at_a_time(picker: DynamicPartitionsDefinition, kind: str) -> PartitionedConfig:
    """Return a job's configuration that lets one run of a kind at a time take a name of a picker.

    The runs carry the tag `rosetta/KIND`, which dagster.yaml limits. Kinds do not wait for each other: whoever compares
    a pipeline for hours must not keep anybody from pausing it.
    """
    return PartitionedConfig(
        partitions_def=picker,
        run_config_for_partition_key_fn=lambda _: {},
        tags_for_partition_key_fn=lambda name: {f"rosetta/{kind}": name},
    )


def table_key(pipeline: str, table: str) -> str:
    """Return the partition of a source table of a pipeline."""
    return f"{pipeline}|{table}"


def split_table_key(key: str) -> tuple[str, str]:
    """Return pipeline and `schema.table` of a partition."""
    pipeline, _, table = key.partition("|")
    return pipeline, table


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
    have, want = set(known), set(wanted)
    added = [name for name in wanted if name not in have]
    removed = [name for name in known if name not in want]
    requests: list[PartitionRequest] = []
    if added:
        requests.append(definition.build_add_request(added))
    if removed:
        requests.append(definition.build_delete_request(removed))
    return requests
