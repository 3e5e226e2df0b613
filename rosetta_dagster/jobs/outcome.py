"""How an operation of the engine ends in Dagster: its refusal is a failed run with one sentence and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dagster import Failure, MetadataValue

from cdc_runner.errors import RosettaError


@contextmanager
def engine_outcome() -> Iterator[None]:
    """Turn a RosettaError into a Failure that names the kind, the details and the operator's next step.

    Not retried by Dagster: whether trying again helps is the engine's own decision.

    Raises:
        Failure: the block raised a RosettaError.
    """
    try:
        yield
    except RosettaError as error:
        raise Failure(
            description=f"{error} — {error.policy.solution}",
            metadata={
                **{name: MetadataValue.text(str(value)) for name, value in error.detail.items()},
                "error kind": MetadataValue.text(error.kind.value),
                "what to do": MetadataValue.text(error.policy.solution),
            },
            allow_retries=False,
        ) from None
