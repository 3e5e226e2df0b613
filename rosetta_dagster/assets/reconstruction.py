"""The one place that imports Dagster's private loading interface.

Runs and steps are new interpreters that load the definitions again. They must see the catalog that the code server saw,
and must not read the config database once more each; so the code server hands its copy on through Dagster.
"""

from __future__ import annotations

from collections.abc import Callable

from dagster import Definitions
from dagster._core.definitions.definitions_load_context import DefinitionsLoadContext, DefinitionsLoadType

from rosetta_dagster.assets.snapshot import CatalogSnapshot

_KEY = "rosetta_catalog"


def definitions_of_catalog(
    fetch: Callable[[], CatalogSnapshot], build: Callable[[CatalogSnapshot], Definitions]
) -> Definitions:
    """Build definitions from the catalog: read once by the code server, handed on to every run and step."""
    context = DefinitionsLoadContext.get()
    snapshot: CatalogSnapshot | None = None
    if context.load_type == DefinitionsLoadType.RECONSTRUCTION:
        carried = context.reconstruction_metadata.get(_KEY)
        snapshot = CatalogSnapshot.model_validate_json(carried) if carried is not None else None
    if snapshot is None:
        snapshot = fetch()
    text = snapshot.model_dump_json()
    # Both are needed: without the first, every run reads the config database again.
    context.add_to_pending_reconstruction_metadata(_KEY, text)
    return build(snapshot).with_reconstruction_metadata({_KEY: text})
