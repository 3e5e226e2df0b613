"""Statements that bring a type of the target to what the source has by now, each with a line that says so. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cdc_runner.destinations.postgres.type_catalog import UserType
from cdc_runner.schema import quote_identifier, quote_literal

Statements = list[tuple[str, str]]


def change_labels(name: str, wanted: Sequence[str], present: Sequence[str], *, rename: bool) -> Statements:
    """Return statements that give an enum the labels it lacks, in the places that they have at the source.

    Args:
        name: the enum, quoted.
        wanted: labels of the source, in order.
        present: labels of the target, in order.
        rename: take a label that only the target has, and that stands where the source has one that is new, as renamed.
            The source's rows show the new label without any change in the stream.
    """
    done: Statements = []
    labels = list(present)
    if rename:
        for before, after in _renamed(wanted, present):
            statement = f"ALTER TYPE {name} RENAME VALUE {quote_literal(before)} TO {quote_literal(after)}"
            done.append((statement, f"label {before} of enum {name} was renamed to {after}"))
            labels[labels.index(before)] = after
    known = set(labels)
    previous: str | None = None
    for label in wanted:
        if label not in known:
            place = ""
            if previous is not None:
                place = f" AFTER {quote_literal(previous)}"
            elif (follower := next((other for other in wanted if other in known), None)) is not None:
                place = f" BEFORE {quote_literal(follower)}"
            done.append(
                (f"ALTER TYPE {name} ADD VALUE {quote_literal(label)}{place}", f"enum {name} got the label {label}")
            )
            known.add(label)
        previous = label
    return done


def add_attributes(name: str, attributes: Sequence[tuple[str, str]]) -> Statements:
    """Return statements that append attributes, by name and type, to a composite type."""
    return [
        (
            f"ALTER TYPE {name} ADD ATTRIBUTE {quote_identifier(attribute)} {type_}",
            f"composite type {name} got the attribute {attribute}",
        )
        for attribute, type_ in attributes
    ]


def relax_domain(name: str, wanted: UserType, present: UserType) -> Statements:
    """Return statements that take from a domain what the source's does not ask any more."""
    done: Statements = []
    if present.not_null and not wanted.not_null:
        done.append((f"ALTER DOMAIN {name} DROP NOT NULL", f"domain {name} takes NULL now"))
    for constraint, definition in present.checks:
        if (constraint, definition) not in wanted.checks:
            statement = f"ALTER DOMAIN {name} DROP CONSTRAINT {quote_identifier(constraint)}"
            done.append((statement, f"constraint {constraint} of domain {name} was dropped"))
    return done


def _renamed(wanted: Sequence[str], present: Sequence[str]) -> list[tuple[str, str]]:
    """Return old and new names of labels: as many unknown ones between the same neighbours on both sides."""
    common = [label for label in wanted if label in set(present)]
    if common != [label for label in present if label in set(wanted)]:
        return []
    renamed: list[tuple[str, str]] = []
    for ours, theirs in zip(_gaps(wanted, common), _gaps(present, common), strict=True):
        if len(ours) == len(theirs):
            renamed += zip(theirs, ours, strict=True)
    return renamed


def _gaps(labels: Sequence[str], common: Sequence[str]) -> list[list[str]]:
    """Return the labels before, between and after the common ones."""
    gaps: list[list[str]] = [[]]
    for label in labels:
        if label in common:
            gaps.append([])
        else:
            gaps[-1].append(label)
    return gaps
