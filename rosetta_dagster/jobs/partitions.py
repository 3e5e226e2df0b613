"""The names that the Dagster launchpad offers in its picker; two sensors keep them in step with the catalog."""

from __future__ import annotations

from collections.abc import Collection

from dagster import AddDynamicPartitionsRequest, DeleteDynamicPartitionsRequest, DynamicPartitionsDefinition

PIPELINES = DynamicPartitionsDefinition(name="pipelines")


def partition_requests(
    wanted: Collection[str], known: Collection[str]
) -> list[AddDynamicPartitionsRequest | DeleteDynamicPartitionsRequest]:
    """Return what makes the known names of pipelines the wanted ones."""
    added = [name for name in wanted if name not in known]
    removed = [name for name in known if name not in wanted]
    requests: list[AddDynamicPartitionsRequest | DeleteDynamicPartitionsRequest] = []
    if added:
        requests.append(PIPELINES.build_add_request(added))
    if removed:
        requests.append(PIPELINES.build_delete_request(removed))
    return requests
