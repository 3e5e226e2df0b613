"""Classes that are made in the memory of the JVM: what is said when they cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.jvm

NEW = """
from cdc_runner.capture.debezium import java_classes, jvm
from cdc_runner.capture.debezium.java_classes import NewClass
load = lambda neighbour: java_classes.load(
    NewClass("io.debezium.util.RosettaTest", neighbour, ("public int number;",), ()), otherwise="is another one"
)
"""


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("load('io.debezium.util.Clock')", "RuntimeError: start the JVM before its classes are made"),
        ("jvm.start(256); load('io.debezium.util.Nowhere')", "RuntimeError: this version of Debezium is another one"),
    ],
    ids=["no-jvm", "no-neighbour"],
)
def test_what_cannot_be_made_is_said(script: str, said: str) -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", NEW + script], cwd=root, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode != 0
    assert said in done.stderr
