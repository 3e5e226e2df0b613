"""`python -m bench [--quick] [--only PART …]`: measure, write one JSON file, print a table."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import growth, latency, load, machine, peers, report, stream
from bench.servers import Servers, servers
from bench.settings import ALL, Sizes

_PARTS: dict[str, Callable[[Servers, Sizes, Callable[[str], None]], dict[str, Any]]] = {
    "initial_load": lambda servers, sizes, note: load.measure(servers, sizes),
    "peers": peers.measure,
    "stream": stream.measure,
    "latency": lambda servers, sizes, note: latency.measure(servers, sizes, "debezium"),
    "latency_pgoutput": lambda servers, sizes, note: latency.measure(servers, sizes, "pgoutput"),
    "growth": lambda servers, sizes, note: growth.measure(servers, sizes),
}
_RESULT = Path(__file__).parent / "results" / "latest.json"


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="bench", description="Speed and size of Rosetta against its references.")
    parser.add_argument("--size", choices=sorted(ALL), default="full")
    parser.add_argument("--quick", action="store_const", const="quick", dest="size", help="at most 3 minutes")
    parser.add_argument("--only", nargs="+", choices=sorted(_PARTS), default=sorted(_PARTS), metavar="PART")
    parser.add_argument("--output", type=Path, default=_RESULT)
    arguments = parser.parse_args()
    result = run(ALL[arguments.size], arguments.only)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{report.table(result)}\n\n{arguments.output}")


def run(sizes: Sizes, parts: list[str]) -> dict[str, Any]:
    """Measure some parts; return the figures, then what they were made from."""
    started = time.monotonic()

    def note(text: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {text}", flush=True)

    busy = machine.load_average()
    detail: dict[str, Any] = {}
    with servers() as own:
        about = machine.describe(own.database("source"))
        for name, part in _PARTS.items():
            if name in parts:
                note(name)
                detail[name] = part(own, sizes, note)
    return {
        **report.figures(detail),
        "size": sizes.name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": machine.revision(),
        "seconds": round(time.monotonic() - started),
        "machine": {**about, "load_average_before": busy, "load_average_after": machine.load_average()},
        "detail": detail,
    }


if __name__ == "__main__":
    main()
