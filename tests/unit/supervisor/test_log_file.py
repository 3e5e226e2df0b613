from __future__ import annotations

import os
from pathlib import Path

import pytest

from cdc_runner.supervisor.log_file import exhausted_heap, last_error_class, open_log, rotate


def test_rotation_keeps_a_writer_that_has_the_file_open(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "pipeline-a.log"
    descriptor = open_log(path)
    try:
        os.write(descriptor, b"x" * 100)
        assert not rotate(path, limit_bytes=100)
        os.write(descriptor, b"y")
        assert rotate(path, limit_bytes=100, kept=2)
        os.write(descriptor, b"after\n")
        # Not behind a hole of 101 zero bytes: the file is open for appending.
        assert path.read_bytes() == b"after\n"
        assert path.with_name("pipeline-a.log.1").read_bytes() == b"x" * 100 + b"y"
    finally:
        os.close(descriptor)
    assert path.stat().st_mode & 0o777 == 0o600


def test_rotation_keeps_so_many_files(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    for number in range(5):
        path.write_text(f"{number}" * 10)
        rotate(path, limit_bytes=1, kept=3)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2", "a.log.3"]
    assert path.with_name("a.log.1").read_text() == "4" * 10


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Traceback (most recent call last):\n  File\nLookupError: the row 4711", "LookupError"),
        ("x\npsycopg2.errors.UniqueViolation: Key\nfoo.bar.ProxyError: row 12\n", "ProxyError"),
        ("Fatal Python error: Segmentation fault\n", "fatal error of the interpreter or the JVM"),
        ("all is well\n", None),
        ("", None),
    ],
)
def test_the_class_of_the_last_error_is_told_without_its_text(tmp_path: Path, text: str, expected: str | None) -> None:
    path = tmp_path / "a.log"
    path.write_text(text)
    assert last_error_class(path) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '{"heap_megabytes": 64}\n{"heap_megabytes": 192}\n'
            "Terminating due to java.lang.OutOfMemoryError: Java heap space\n",
            192,
        ),
        ("Terminating due to java.lang.OutOfMemoryError: Java heap space", 0),
        ('{"heap_megabytes": 64}\nTerminating due to java.lang.OutOfMemoryError: Metaspace\n', None),
        ("Terminating due to java.lang.OutOfMemoryError: Java heap space\nstarted again\n", None),
        ("", None),
    ],
)
def test_a_full_heap_is_told_by_the_last_words(tmp_path: Path, text: str, expected: int | None) -> None:
    path = tmp_path / "a.log"
    path.write_text(text)
    assert exhausted_heap(path) == expected


def test_a_missing_log_has_no_error(tmp_path: Path) -> None:
    assert last_error_class(tmp_path / "none.log") is None
    assert not rotate(tmp_path / "none.log")
