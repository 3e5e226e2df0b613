"""What the entries of a configuration file are made of: names, texts, and references to secrets."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints
from pydantic_core import PydanticCustomError

from cdc_runner.errors import ErrorKind, RosettaError

NAME_RULE = "the name may hold letters, digits, - and _ only, and begins with a letter or digit"


class ConfigurationProblems(RosettaError):
    """Everything that is wrong with a configuration file."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(ErrorKind.CONFIG_INVALID, "; ".join(problems), {"problems": len(problems)})
        self.problems = tuple(problems)


def storable(value: object) -> object:
    """Refuse text that PostgreSQL cannot store; for a BeforeValidator."""
    if isinstance(value, str) and ("\x00" in value or not _is_unicode(value)):
        raise PydanticCustomError("text", "holds a character that PostgreSQL cannot store")
    return value


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _secret(value: object) -> object:
    if not isinstance(value, dict):
        raise PydanticCustomError("literal_secret", "a literal secret is refused; write {env: NAME} or {file: PATH}")
    if len(value) != 1 or next(iter(value)) not in ("env", "file"):
        raise PydanticCustomError("secret_form", "must be {env: NAME} or {file: PATH}")
    return value


Text = Annotated[str, BeforeValidator(storable), StringConstraints(min_length=1, max_length=1024)]
Name = Annotated[
    str, BeforeValidator(storable), StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=63)
]


STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)
"""Of every entry: no unknown fields, no guessed types, no values in its errors."""


class SecretReference(BaseModel):
    """Where a secret is to be read from."""

    model_config = STRICT

    env: Text | None = None
    file: Text | None = None


Secret = Annotated[SecretReference, BeforeValidator(_secret)]


def check_name(name: str) -> None:
    """Refuse a name that no source, destination, pipeline or channel may have.

    Raises:
        ConfigurationProblems: it holds other characters than the rule allows.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", name):
        raise ConfigurationProblems([f"name: {NAME_RULE}"])
