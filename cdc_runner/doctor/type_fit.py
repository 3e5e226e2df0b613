"""Whether every value of a source type fits a target type. Pure functions of `format_type`'s text."""

from __future__ import annotations

import re
from typing import Literal

Fit = Literal["equal", "wider", "narrower", "different"]

_TYPE = re.compile(
    r"^(?P<name>[^()\[\]]+?)(?:\((?P<modifiers>[-0-9, ]+)\))?"
    r"(?P<suffix> with(?:out)? time zone)?(?P<array>(?:\[\])*)$"
)
_INTEGERS = {"smallint": 5, "integer": 10, "bigint": 19}
_TEXTS = ("text", "character varying", "character")


def type_fit(source: str, target: str) -> Fit:
    """Return how a target type relates to a source type.

    `wider` means that every value fits and keeps its meaning, `narrower` that some do not fit, `different` that values
    go through their text form and may be refused or change.
    """
    if source == target:
        return "equal"
    one, two = _TYPE.match(source), _TYPE.match(target)
    if one is None or two is None or one["array"] != two["array"]:
        return "wider" if target == "text" else "different"
    source_name, target_name = (match["name"] + (match["suffix"] or "") for match in (one, two))
    source_modifiers, target_modifiers = _modifiers(one["modifiers"]), _modifiers(two["modifiers"])
    if target_name == "text" or (target_name == "character varying" and not target_modifiers):
        return "wider"
    if source_name in _INTEGERS and target_name in (*_INTEGERS, "numeric"):
        return _integers(source_name, target_name, target_modifiers)
    if source_name == target_name == "numeric":
        return _numerics(source_modifiers, target_modifiers)
    if (source_name, target_name) == ("real", "double precision"):
        return "wider"
    if (source_name, target_name) in (
        ("double precision", "real"),
        ("numeric", "real"),
        ("numeric", "double precision"),
    ):
        return "narrower"
    if source_name == "numeric" and target_name in _INTEGERS:
        return "narrower"
    if source_name in _TEXTS and target_name in _TEXTS:
        return _texts(source_name, source_modifiers, target_name, target_modifiers)
    if source_name == target_name == "bit":
        # A bit string of another length is refused, not padded.
        return "different"
    if source_name == target_name:
        return _same_name(source_modifiers, target_modifiers)
    return "different"


def _modifiers(text: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",")) if text else ()


def _integers(source: str, target: str, modifiers: tuple[int, ...]) -> Fit:
    if target != "numeric":
        return "wider" if _INTEGERS[target] > _INTEGERS[source] else "narrower"
    if not modifiers:
        return "wider"
    scale = modifiers[1] if len(modifiers) > 1 else 0
    return "wider" if scale >= 0 and modifiers[0] - scale >= _INTEGERS[source] else "narrower"


def _numerics(source: tuple[int, ...], target: tuple[int, ...]) -> Fit:
    if not target:
        return "wider"
    if not source:
        return "narrower"
    source_scale, target_scale = (pair[1] if len(pair) > 1 else 0 for pair in (source, target))
    fits = target_scale >= source_scale and target[0] - target_scale >= source[0] - source_scale
    return "wider" if fits else "narrower"


def _texts(source: str, source_length: tuple[int, ...], target: str, target_length: tuple[int, ...]) -> Fit:
    if source == "text" or (source == "character varying" and not source_length):
        return "narrower"
    # character without a length is character(1).
    longest, room = (source_length or (1,))[0], (target_length or (1,))[0]
    if target == "character" and source != "character":
        return "different"
    return "wider" if room >= longest else "narrower"


def _same_name(source: tuple[int, ...], target: tuple[int, ...]) -> Fit:
    """Compare precisions of times and lengths of bit strings; none is the greatest."""
    if not target:
        return "wider"
    if not source:
        return "narrower"
    return "wider" if target[0] >= source[0] else "narrower"
