"""Single-row transactions at a steady rate: `python -m bench.writer`, so that the probe has its own interpreter.

Reads `{"dsn": …, "rate": transactions a second, "seconds": …, "rows": rows of the table, "durable": bool}` from its
input and writes `{"written": …, "seconds": …}`.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import psycopg2

_CONNECTIONS = 8


def main() -> None:
    """Write until the time is over."""
    order = json.load(sys.stdin)
    started = time.monotonic() + 0.2
    counts = [0] * _CONNECTIONS
    failures: list[str] = []

    def work(place: int) -> None:
        try:
            counts[place] = write(order, place, started)
        except psycopg2.Error as error:
            failures.append(str(error))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(_CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit(failures[0])
    print(json.dumps({"written": sum(counts), "seconds": time.monotonic() - started}))


def write(order: dict[str, object], place: int, started: float) -> int:
    """Write every eighth transaction, each at its time on the schedule; return how many were written."""
    rate, seconds, rows = float(str(order["rate"])), float(str(order["seconds"])), int(str(order["rows"]))
    connection = psycopg2.connect(str(order["dsn"]))
    connection.autocommit = True
    written = 0
    with connection.cursor() as cursor:
        if not order["durable"]:
            cursor.execute("SET synchronous_commit = off")
        sequence = place
        while sequence / rate < seconds:
            pause = started + sequence / rate - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            cursor.execute(
                "UPDATE clock SET seq = %s, at = %s WHERE id = %s", (sequence + 1, time.time(), sequence % rows)
            )
            written += 1
            sequence += _CONNECTIONS
            if time.monotonic() - started > seconds + 5:
                break
    connection.close()
    return written


if __name__ == "__main__":
    main()
