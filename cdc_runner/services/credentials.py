"""Stores credentials with the current key again, after a change of CREDENTIAL_ENCRYPTION_KEY."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from cdc_runner.catalog.channel_entry import channel_place
from cdc_runner.catalog.credentials import CredentialPlace, Keyring
from cdc_runner.catalog.models import Destination, NotificationChannel
from cdc_runner.catalog.pipelines import destination_place, mask_key_place, source_place
from cdc_runner.catalog.repositories import list_destinations, list_sources, lock_configuration


@dataclass(frozen=True, slots=True)
class Rotation:
    """How many credentials were stored again, and how many had the current key already."""

    rotated: int
    unchanged: int


def rotate_credentials(session: Session, keyring: Keyring | None = None) -> Rotation:
    """Store every credential of an older key with the current one, in the caller's transaction.

    All or nothing: killed half way, each credential is still readable with the keys at hand. Can be repeated. Pipelines
    that use a rotated credential are started anew.

    Raises:
        RosettaError: CREDENTIAL_UNREADABLE, its key is neither the current one nor among the old ones.
    """
    lock_configuration(session)
    keys = keyring or Keyring.from_environment()
    rotated = unchanged = 0
    for source in list_sources(session):
        if source.mask_key is not None and not keys.is_current(source.mask_key):
            place = mask_key_place(source.id)
            source.mask_key = keys.encrypt(keys.decrypt(source.mask_key, place), place)
            rotated += 1
        if keys.is_current(source.password):
            unchanged += 1
            continue
        place = source_place(source.id)
        source.password = keys.encrypt(keys.decrypt(source.password, place), place)
        rotated += 1
    holders: list[Destination | NotificationChannel] = [*list_destinations(session)]
    holders += session.scalars(select(NotificationChannel).order_by(NotificationChannel.name))
    for holder in holders:
        stored = dict(holder.secrets)
        for name, value in holder.secrets.items():
            if keys.is_current(value):
                unchanged += 1
                continue
            place = _place(holder, name)
            stored[name] = keys.encrypt(keys.decrypt(value, place), place)
            rotated += 1
        if stored != holder.secrets:
            holder.secrets = stored
    session.flush()
    return Rotation(rotated, unchanged)


def _place(holder: Destination | NotificationChannel, name: str) -> CredentialPlace:
    return (
        channel_place(holder.id, name)
        if isinstance(holder, NotificationChannel)
        else destination_place(holder.id, name)
    )
