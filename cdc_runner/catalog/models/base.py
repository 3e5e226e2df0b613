"""Base class and column types that the models share."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar

from sqlalchemy import BigInteger, DateTime, Identity, Text, func
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

identifier = Annotated[int, mapped_column(BigInteger, Identity(), primary_key=True)]
big = Annotated[int, mapped_column(BigInteger)]


class Base(DeclarativeBase):
    """Base of all models: text without length, times with zone."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text(),
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(),
        dict[str, str]: JSONB(),
        list[str]: ARRAY(Text()),
    }


class Created:
    """`created_at`, set by the database."""

    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Timestamps(Created):
    """`created_at` and `updated_at`; a trigger sets the latter."""

    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), server_onupdate=func.now())
