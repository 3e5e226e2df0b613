"""Writes to the shop without pause: `python -m rosetta_dagster.demo.workload RATE THREADS`.

A process of its own, so that it does not disturb the measurement of latency. It connects by the variables of libpq,
stops at SIGTERM or at the end of its input, and writes the number of committed transactions to its output at the end.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import psycopg2
import psycopg2.extensions
from psycopg2.extras import Json

Cursor = psycopg2.extensions.cursor
Transaction = Callable[[Cursor, random.Random], None]

_BEHIND_SECONDS = 1.0
"""A writer that fell behind so far forgets the missed work, rather than bursting."""


class ChangedMind(Exception):
    """Makes a transaction roll back."""


def _some_order(cursor: Cursor, chance: random.Random) -> int | None:
    # No lock and no count: any existing order near a random number.
    cursor.execute(
        "SELECT id FROM shop.orders WHERE id >= (SELECT 1 + floor(%s * max(id)) FROM shop.orders) ORDER BY id LIMIT 1",
        (chance.random(),),
    )
    row = cursor.fetchone()
    return None if row is None else int(row[0])


def place_order(cursor: Cursor, chance: random.Random) -> None:
    """Insert an order with its lines, take the goods from stock, and pay for half of the orders."""
    note = "gift wrap, 'please' \u2615" if chance.random() < 0.1 else None
    cursor.execute(
        "INSERT INTO shop.orders (customer_id, note, gift) VALUES (%s, %s, %s) RETURNING id",
        (chance.randint(1, 2000), note, chance.random() < 0.1),
    )
    row = cursor.fetchone()
    assert row is not None
    order = row[0]
    # In the order of their ids, or two orders of the same goods would wait for each other.
    for number, product in enumerate(sorted(chance.sample(range(1, 501), chance.randint(1, 4))), 1):
        cursor.execute(
            "WITH taken AS (UPDATE shop.products SET stock = stock - 1 WHERE id = %(product)s RETURNING price)"
            " INSERT INTO shop.order_lines (order_id, line_number, product_id, quantity, unit_price)"
            " SELECT %(order)s, %(number)s, %(product)s, 1, price FROM taken",
            {"product": product, "order": order, "number": number},
        )
    cursor.execute(
        "UPDATE shop.orders SET total = (SELECT sum(quantity * unit_price) FROM shop.order_lines WHERE order_id = id)"
        " WHERE id = %s",
        (order,),
    )
    if chance.random() < 0.5:
        cursor.execute(
            "INSERT INTO shop.payments (order_id, amount, method, receipt, settles_in)"
            " SELECT id, total, 'card', sha256(id::text::bytea), interval '1 day 2 hours'"
            " FROM shop.orders WHERE id = %s",
            (order,),
        )


def advance_order(cursor: Cursor, chance: random.Random) -> None:
    """Move an order to another status."""
    status = chance.choice(("paid", "shipped", "delivered", "cancelled"))
    cursor.execute("UPDATE shop.orders SET status = %s WHERE id = %s", (status, _some_order(cursor, chance)))


def delete_order(cursor: Cursor, chance: random.Random) -> None:
    """Delete an order with its lines and payments."""
    cursor.execute("DELETE FROM shop.orders WHERE id = %s", (_some_order(cursor, chance),))


def renumber_lines(cursor: Cursor, chance: random.Random) -> None:
    """Change primary keys."""
    cursor.execute(
        "UPDATE shop.order_lines SET line_number = line_number + 10 WHERE order_id = %s", (_some_order(cursor, chance),)
    )


def change_customer(cursor: Cursor, chance: random.Random) -> None:
    """Update columns of jsonb, array and numeric."""
    cursor.execute(
        "UPDATE shop.customers SET preferences = preferences || %s, tags = %s, credit = credit + %s WHERE id = %s",
        (
            Json({"seen": chance.randint(1, 9999)}),
            [f"t{chance.randint(1, 9)}", None, 'a "b"'],
            chance.choice(("0.01", "-0.01")),
            chance.randint(1, 2000),
        ),
    )


def change_price(cursor: Cursor, chance: random.Random) -> None:
    """Update a row whose long text does not change, so that the WAL does not hold it."""
    cursor.execute(
        "UPDATE shop.products SET price = round((1 + random() * 50)::numeric, 2), updated_at = localtimestamp"
        " WHERE id = %s",
        (chance.randint(1, 500),),
    )


def record_events(cursor: Cursor, chance: random.Random) -> None:
    """Insert rows into the table without a key, equal ones among them."""
    cursor.execute(
        "INSERT INTO shop.events (kind, customer_id, payload, labels)"
        " SELECT 'view', %s, %s, '{x,y}' FROM generate_series(1, %s)",
        (chance.randint(1, 2000), Json({"page": chance.randint(1, 50)}), chance.randint(1, 4)),
    )


def change_event(cursor: Cursor, chance: random.Random) -> None:
    """Update one of possibly equal rows in the table without a key."""
    cursor.execute(
        "UPDATE shop.events SET kind = 'seen' WHERE ctid ="
        " (SELECT ctid FROM shop.events ORDER BY happened_at OFFSET %s LIMIT 1 FOR UPDATE SKIP LOCKED)",
        (chance.randint(0, 50),),
    )


def forget_events(cursor: Cursor, _chance: random.Random) -> None:
    """Delete the oldest rows of the table without a key."""
    cursor.execute(
        "DELETE FROM shop.events WHERE ctid IN"
        " (SELECT ctid FROM shop.events ORDER BY happened_at LIMIT 3 FOR UPDATE SKIP LOCKED)"
    )


def change_mind(cursor: Cursor, chance: random.Random) -> None:
    """Do work that is rolled back: no target may ever see it."""
    place_order(cursor, chance)
    raise ChangedMind


WEIGHTS: dict[Transaction, int] = {
    place_order: 32,
    advance_order: 25,
    change_customer: 10,
    change_price: 8,
    record_events: 12,
    change_event: 3,
    forget_events: 3,
    delete_order: 4,
    renumber_lines: 2,
    change_mind: 1,
}


class Writer(threading.Thread):
    """Writes at a bounded rate over one connection until it is told to stop."""

    def __init__(self, seed: int, interval_seconds: float, stop: threading.Event) -> None:
        super().__init__(name=f"writer-{seed}", daemon=True)
        self.committed = 0
        self._chance = random.Random(seed)
        self._interval_seconds = interval_seconds
        self._told_to_stop = stop

    def run(self) -> None:
        """Write until told to stop; conflicts between writers are a part of the work."""
        kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
        connection = psycopg2.connect(application_name="rosetta demo workload")
        next_at = time.monotonic()
        try:
            while not self._told_to_stop.wait(max(0.0, next_at - time.monotonic())):
                next_at = max(next_at + self._interval_seconds, time.monotonic() - _BEHIND_SECONDS)
                kind = self._chance.choices(kinds, weights)[0]
                try:
                    with connection, connection.cursor() as cursor:
                        kind(cursor, self._chance)
                    self.committed += 1
                except (psycopg2.extensions.TransactionRollbackError, psycopg2.errors.IntegrityError):
                    continue  # a deadlock, or an order that was deleted meanwhile
                except ChangedMind:
                    continue
        finally:
            connection.close()


def main(arguments: list[str]) -> int:
    """Write until SIGTERM or the end of the input; return the exit code."""
    rate, threads = float(arguments[0]), int(arguments[1])
    stop = threading.Event()
    # A restart with the same numbers would find the same rows; the process number makes them differ.
    writers = [Writer(os.getpid() * 100 + n, threads / rate, stop) for n in range(threads)]
    for writer in writers:
        writer.start()
    ended: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        ended.append(number)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watcher = threading.Thread(target=sys.stdin.buffer.read, daemon=True)
    watcher.start()
    while watcher.is_alive() and not ended and all(writer.is_alive() for writer in writers):
        watcher.join(0.1)
    failed = not all(writer.is_alive() for writer in writers)
    stop.set()
    for writer in writers:
        writer.join(30)
    sys.stdout.write(json.dumps({"committed": sum(writer.committed for writer in writers)}) + "\n")
    sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # The watcher may still hold the input's lock, which the interpreter's orderly end would wait for.
    os._exit(code)
