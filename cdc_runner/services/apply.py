"""Applies a configuration file to the config database, and cleans source servers of what was pruned."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from cdc_runner.catalog.apply_file import apply_configuration
from cdc_runner.catalog.channel_entry import channel_options
from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.entry_fields import ConfigurationProblems
from cdc_runner.catalog.file_format import ConfigurationFile, parse_configuration
from cdc_runner.catalog.models import Destination, Pipeline, Source
from cdc_runner.catalog.plan import Plan
from cdc_runner.catalog.repositories import list_pipelines, list_sources, lock_configuration
from cdc_runner.catalog.secret_source import Secrets, read_secrets
from cdc_runner.catalog.settings import get_setting
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.services.notification import check_channel_address
from cdc_runner.services.pipeline import clean_source, forget_at_destination
from cdc_runner.services.removal import Removal

MAX_FILE_BYTES = 10 * 1024 * 1024


class _DryRun(Exception):
    """Rolls a dry run's transaction back."""


def apply_path(
    engine: Engine, path: Path, *, dry_run: bool = False, prune: bool = False, replace_credentials: bool = False
) -> Plan:
    """Apply a configuration file in one transaction and return what was done, or would be.

    Raises:
        RosettaError: nothing was changed.
    """
    file = parse_configuration(_read(path))
    # Both are checked before the database is touched.
    secrets = read_secrets(file, path.parent)
    keyring = Keyring.from_environment()
    plan = Plan()
    try:
        with session_scope(engine) as session:
            lock_configuration(session)
            _check_addresses(session, file, secrets)
            pruned = _sources_to_clean(session, file) if prune else []
            forgotten = _positions_to_forget(session, file) if prune else []
            plan = apply_configuration(
                session, file, secrets, keyring, prune=prune, replace_credentials=replace_credentials
            )
            if dry_run:
                raise _DryRun
            for source in pruned:
                removal = clean_source(session, source, keyring)
                plan.left_over.extend(removal.left_over)
            for pipeline, destination in forgotten:
                removal = Removal()
                forget_at_destination(pipeline, destination, keyring, removal)
                plan.left_over.extend(removal.left_over)
    except _DryRun:
        pass
    return plan


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise RosettaError(ErrorKind.CONFIG_INVALID, f"{path} is longer than {MAX_FILE_BYTES} bytes")
        return content.decode()
    except OSError as error:
        raise RosettaError(ErrorKind.CONFIG_INVALID, f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RosettaError(ErrorKind.CONFIG_INVALID, f"{path} is not UTF-8 text") from None


def _check_addresses(session: Session, file: ConfigurationFile, secrets: Secrets) -> None:
    allow_internal = bool(get_setting(session, "notification_allow_internal"))
    problems: list[str] = []
    for name, entry in (file.notifications or {}).items():
        config, _ = channel_options(entry)
        try:
            url = secrets.get(("notifications", name, "url"))
            check_channel_address(entry.type, config, url, allow_internal=allow_internal)
        except RosettaError as error:
            problems.append(f"notifications.{name}: {error.message}")
    if problems:
        raise ConfigurationProblems(problems)


def _sources_to_clean(session: Session, file: ConfigurationFile) -> list[Source]:
    """Return the sources whose pipeline, or which themselves, are about to be pruned."""
    gone = {pipeline.source_id for pipeline in list_pipelines(session) if pipeline.name not in file.pipelines}
    kept = {pipeline.source_id for pipeline in list_pipelines(session) if pipeline.name in file.pipelines}
    named = {entry.source for entry in file.pipelines.values()}
    return [
        source
        for source in list_sources(session)
        if source.id not in kept and source.name not in named and (source.id in gone or source.name not in file.sources)
    ]


def _positions_to_forget(session: Session, file: ConfigurationFile) -> list[tuple[Pipeline, Destination]]:
    """Return the pipelines' destinations that are about to be pruned."""
    found: list[tuple[Pipeline, Destination]] = []
    for pipeline in list_pipelines(session):
        entry = file.pipelines.get(pipeline.name)
        named = {one.destination for one in entry.destinations} if entry else set()
        found.extend((pipeline, row.destination) for row in pipeline.destinations if row.destination.name not in named)
    return found
