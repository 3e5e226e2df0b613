"""Dagster's entry point: everything is made in rosetta_dagster, from the catalog."""

from __future__ import annotations

from dagster import Definitions, definitions

from rosetta_dagster.assets.reconstruction import definitions_of_catalog
from rosetta_dagster.control_plane import build_definitions, fetch_catalog


@definitions
def rosetta() -> Definitions:
    return definitions_of_catalog(fetch_catalog, build_definitions)
