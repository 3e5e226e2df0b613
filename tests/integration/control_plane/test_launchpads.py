"""What a launchpad shows when it is opened: defaults for all that can have one, and what to type for the rest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dagster import JobDefinition

from rosetta_dagster.assets.snapshot import CatalogSnapshot
from rosetta_dagster.control_plane import build_definitions

pytestmark = [pytest.mark.dagster]

NEEDS_WORDS = {
    "apply_file", "change_pipeline_settings", "change_preset", "change_setting", "create_destination",
    "create_notification_channel", "create_pipeline", "create_preset", "create_source", "duplicate_destination",
    "duplicate_source", "edit_dead_letter", "inspect_dead_letter", "preview", "remove_pipeline_table", "remove_preset",
    "remove_tag", "rename_destination", "rename_pipeline", "rename_source", "rename_tag",
    "show_tag", "tag_tables", "unregister_tables", "untag_tables",
}  # fmt: skip
"""Jobs of which a person has to say something that nobody else could know; all others open without an error."""


def required_fields(job: JobDefinition) -> Iterator[tuple[str, str]]:
    """Yield name and description of what must be typed."""
    for node in job.graph.nodes:
        schema = node.definition.config_schema
        for name, field in getattr(schema and schema.config_type, "fields", {}).items():
            if field.is_required:
                yield name, field.description or ""


def jobs() -> dict[str, JobDefinition]:
    return {job.name: job for job in build_definitions(CatalogSnapshot()).jobs or () if isinstance(job, JobDefinition)}


def test_launchpads_open_without_errors_but_for_what_only_a_person_knows() -> None:
    assert {name for name, job in jobs().items() if list(required_fields(job))} == NEEDS_WORDS


def test_what_must_be_typed_has_an_example() -> None:
    needed = [(name, field, text) for name, job in jobs().items() for field, text in required_fields(job)]
    assert len(needed) > len(NEEDS_WORDS)
    assert not [one for one in needed if "e.g. " not in one[2] and " or " not in one[2]]
