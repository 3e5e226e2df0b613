"""Asks every source at the same time: a slow one delays none of the others, and all of them at most so long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import psycopg2
import psycopg2.extensions
from sqlalchemy.orm import Session

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.models import Source
from cdc_runner.catalog.pipelines import source_address
from cdc_runner.catalog.repositories import list_sources
from cdc_runner.connections import classify, connect
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.spec import PostgresAddress

SOURCES_AT_ONCE = 16
ALL_SOURCES_SECONDS = 40.0
"""A tick has a minute; a source that hangs is left behind and told as such."""
CONNECT_SECONDS = 5
STATEMENT_MILLISECONDS = 10_000

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


def ask_all(
    items: Sequence[_Item], ask: Callable[[_Item], _Answer], *, timeout_seconds: float = ALL_SOURCES_SECONDS
) -> list[_Answer | RosettaError]:
    """Return the answer of each item in its place, or why there is none."""

    def one(item: _Item) -> _Answer | RosettaError:
        try:
            return ask(item)
        except RosettaError as error:
            return error
        except psycopg2.Error as error:
            return classify(error, "source")

    pool = ThreadPoolExecutor(SOURCES_AT_ONCE, thread_name_prefix="source")
    try:
        futures = [pool.submit(one, item) for item in items]
        wait(futures, timeout_seconds)
        late = RosettaError(ErrorKind.SOURCE_UNAVAILABLE, "the source does not answer")
        return [future.result() if future.done() else late for future in futures]
    finally:
        # Those that hang end with their own timeouts.
        pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class SourceToAsk:
    """A source with its address, or why its credentials cannot be read."""

    id: int
    name: str
    patterns: tuple[str, ...]
    publication: str
    pipelines: tuple[str, ...]
    address: PostgresAddress | RosettaError

    def connect(self, purpose: str) -> psycopg2.extensions.connection:
        """Return a connection with short limits, in autocommit; the caller closes it.

        Raises:
            RosettaError: unreachable, refused, or without readable credentials.
        """
        if isinstance(self.address, RosettaError):
            raise self.address
        connection = connect(
            self.address,
            application_name=f"rosetta {purpose}",
            side="source",
            connect_timeout_seconds=CONNECT_SECONDS,
            settings={"statement_timeout": str(STATEMENT_MILLISECONDS)},
        )
        connection.autocommit = True
        return connection


def sources_to_ask(session: Session) -> list[SourceToAsk]:
    """Return every source with its credentials decrypted.

    Raises:
        RosettaError: there is no usable key, and so no source can be asked.
    """
    keyring = Keyring.from_environment()
    return [_to_ask(source, keyring) for source in list_sources(session)]


def _to_ask(source: Source, keyring: Keyring) -> SourceToAsk:
    address: PostgresAddress | RosettaError
    try:
        address = source_address(source, keyring)
    except RosettaError as error:
        address = error
    names = tuple(pipeline.name for pipeline in source.pipelines)
    return SourceToAsk(source.id, source.name, tuple(source.table_patterns), source.publication_name, names, address)


def all_failed(answers: Sequence[object]) -> str | None:
    """Return why a look at the sources was worth nothing, when none of them answered."""
    errors = [str(answer) for answer in answers if isinstance(answer, RosettaError)]
    return f"no source answered: {errors[0]}" if errors and len(errors) == len(answers) else None
