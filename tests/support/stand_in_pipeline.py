"""A program that keeps the contract of a pipeline process and does nothing else; loads in a moment.

    stand_in_pipeline.py DIRECTORY PIPELINE_ID

DIRECTORY/PIPELINE_ID.mode says how it behaves: `run`, `deaf` (ignores SIGTERM), `exit N`, `heap`, `raise`. What
happens to it is written to DIRECTORY/PIPELINE_ID.events, one line each: `start PID`, `eof`, `stopped`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path


def main() -> None:
    directory, name = Path(sys.argv[1]), sys.argv[2]
    stopped = threading.Event()

    def note(line: str) -> None:
        with (directory / f"{name}.events").open("a") as stream:
            stream.write(line + "\n")

    def end_of_input() -> None:
        while os.read(0, 4096):
            pass
        note("eof")
        stopped.set()

    mode = (directory / f"{name}.mode").read_text().split()
    if mode[0] == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    note(f"start {os.getpid()}")
    if mode[0] == "exit":
        sys.exit(int(mode[1]))
    if mode[0] == "heap":
        os.write(1, b'{"heap_megabytes": 192}\nTerminating due to java.lang.OutOfMemoryError: Java heap space\n')
        os._exit(3)
    if mode[0] == "raise":
        raise LookupError("the row 4711 holds a secret")
    threading.Thread(target=end_of_input, daemon=True).start()
    stopped.wait()
    note("stopped")


if __name__ == "__main__":
    main()
