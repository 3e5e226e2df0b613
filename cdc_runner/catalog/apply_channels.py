"""The channels of a configuration file, brought into the config database.

A file without a section `notifications` leaves channels alone, even when it prunes: they belong to the
installation, and most files describe one source.
"""

from __future__ import annotations

from sqlalchemy import select

from cdc_runner.catalog.application import Application, shown, stored_secret
from cdc_runner.catalog.channel_entry import AnyChannel, channel_options, channel_place
from cdc_runner.catalog.models import NotificationChannel
from cdc_runner.catalog.plan import SECRET, Change, action_of, differences
from cdc_runner.catalog.repositories import next_id


def check_channels(run: Application) -> list[str]:
    """Return a problem for each channel that would become one of another kind."""
    stored = _stored(run)
    return [
        f"notifications.{name}.type: cannot change from {stored[name].type} to {entry.type}; give it another name"
        for name, entry in (run.file.notifications or {}).items()
        if name in stored and stored[name].type != entry.type
    ]


def apply_channels(run: Application) -> None:
    """Create and change the channels of the file; list those that it does not name, or remove them to prune."""
    stored = _stored(run)
    for name, entry in (run.file.notifications or {}).items():
        _apply(run, name, entry, stored.get(name))
    for name, row in stored.items():
        if run.file.notifications is not None and name not in run.file.notifications:
            run.plan.changes.append(Change("channel", name, "remove" if run.prune else "left alone"))
            if run.prune:
                run.session.delete(row)


def _stored(run: Application) -> dict[str, NotificationChannel]:
    rows = run.session.scalars(select(NotificationChannel).order_by(NotificationChannel.name))
    return {row.name: row for row in rows}


def _apply(run: Application, name: str, entry: AnyChannel, row: NotificationChannel | None) -> None:
    config, references = channel_options(entry)
    wanted = {"minimum_severity": entry.minimum_severity, "enabled": entry.enabled, **config}
    old: dict[str, str | None] = {}
    new: dict[str, str | None] = {"type": entry.type, **{field: shown(value) for field, value in wanted.items()}}
    if row is None:
        row = NotificationChannel(id=next_id(run.session, "notification_channels"), name=name, type=entry.type)
        row.secrets = {}
        run.session.add(row)
    else:
        present = {"minimum_severity": row.minimum_severity, "enabled": row.enabled, **row.config}
        old = {"type": row.type, **{field: shown(value) for field, value in present.items()}}
    kept: dict[str, str] = {}
    for secret in references:
        value, place = run.secrets[("notifications", name, secret)], channel_place(row.id, secret)
        known = row.secrets.get(secret)
        mark = None if known is None else stored_secret(run, known, place, value)
        if known is not None and mark is None:
            kept[secret] = known
            continue
        kept[secret] = run.keyring.encrypt(value, place)
        if mark is not None:
            old[secret] = mark
        new[secret] = SECRET
    for secret in row.secrets.keys() - kept.keys():
        old[secret] = SECRET
    fields = tuple(one for one in differences(old, new) if one.new is not None or one.old is not None)
    if fields:
        row.minimum_severity, row.enabled, row.config, row.secrets = entry.minimum_severity, entry.enabled, config, kept
    run.plan.changes.append(Change("channel", name, action_of(not old, fields), fields))
