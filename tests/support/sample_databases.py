"""Dumps of sample databases, which this project does not hold: whoever has them names their directory.

ROSETTA_SAMPLE_DATABASES=DIRECTORY    with NAME/NAME.sql, plain text as pg_dump writes it
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import psycopg2.extensions

VARIABLE = "ROSETTA_SAMPLE_DATABASES"


def dumps() -> dict[str, Path]:
    """Return the dumps by name; empty when the variable is not set."""
    directory = os.environ.get(VARIABLE)
    return {one.stem: one for one in sorted(Path(directory).glob("*/*.sql"))} if directory else {}


def restore(connection: psycopg2.extensions.connection, dump: Path) -> None:
    """Run a dump; statements end with a semicolon at the end of a line, data follows COPY … FROM stdin."""
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement, data in _parts(dump.read_text()):
            if data is None:
                cursor.execute(statement)
            else:
                cursor.copy_expert(statement, io.StringIO(data))
        cursor.execute("RESET search_path")


def _parts(text: str) -> Iterator[tuple[str, str | None]]:
    lines = iter(text.splitlines(keepends=True))
    statement = ""
    for line in lines:
        if not statement and (not line.strip() or line.startswith(("--", "\\"))):
            continue
        statement += line
        if not line.rstrip().endswith(";"):
            continue
        if statement.startswith("COPY ") and "FROM stdin" in statement:
            rows = []
            for row in lines:
                if row.rstrip("\n") == "\\.":
                    break
                rows.append(row)
            yield statement, "".join(rows)
        else:
            yield statement, None
        statement = ""
