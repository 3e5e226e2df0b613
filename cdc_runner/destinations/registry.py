"""The types of destinations: one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import psycopg2.extensions

from cdc_runner.destinations.base import Destination, RowFetcher, SchemaListener
from cdc_runner.destinations.postgres.destination import PostgresDestination
from cdc_runner.destinations.snowflake.destination import SnowflakeDestination
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.spec import DestinationSpec, PipelineSettings


class DestinationType(Protocol):
    """Makes a destination, not opened yet."""

    def __call__(
        self,
        spec: DestinationSpec,
        pipeline: str,
        settings: PipelineSettings,
        *,
        directory: Path,
        fetch: RowFetcher,
        source: Callable[[], psycopg2.extensions.connection],
        on_schema_change: SchemaListener | None = None,
    ) -> Destination:
        """Args:
        spec: where to write.
        pipeline: the pipeline's identity, under which positions are kept.
        settings: bounds and policies.
        directory: for short-lived files.
        fetch: reads rows from the source that the target turns out not to have.
        source: a connection to the source's catalogs.
        on_schema_change: told of each change of a source table, after the target follows it.
        """
        ...


TYPES: Mapping[str, DestinationType] = {
    "postgres": PostgresDestination,
    "snowflake": SnowflakeDestination,
}


def destination_type(spec: DestinationSpec) -> DestinationType:
    """Return the maker of a destination's type.

    Raises:
        RosettaError: CONFIG_INVALID for a type that this version does not know.
    """
    made = TYPES.get(spec.type)
    if made is None:
        raise RosettaError(
            ErrorKind.CONFIG_INVALID,
            f"destination {spec.name} is of type {spec.type}, which this version cannot write to yet",
        )
    return made
