"""Where in the stream each event belongs: its transaction and its order there, read from Debezium's events."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from cdc_runner.capture.base import STAMPS
from cdc_runner.capture.debezium.decode import parse_end
from cdc_runner.errors import ErrorKind, RosettaError

_TRANSACTION = re.compile(rb'"transaction":\{"id":"(\d+):[^"]*","total_order":\d+,"data_collection_order":(\d+)\}')
"""Once in each event: quotes within values are escaped, so no value of a row looks like this."""

_XID = re.compile(r"(\d+):")


def transaction_ends(lines: Iterable[bytes]) -> dict[int, tuple[int, float]]:
    """Return end LSN and commit time (seconds since the epoch) of the END events among transaction events, by xid."""
    ends: dict[int, tuple[int, float]] = {}
    for data in lines:
        for line in data.split(b"\n"):
            if b'"status":"END"' in line:
                text = line.decode()
                match = _XID.match(json.loads(text)["id"])
                assert match is not None, "a transaction has a number"
                ends[int(match.group(1))] = parse_end(text)
    return ends


def stamped(rows: pa.Table, data: bytes, ends: Mapping[int, tuple[int, float]]) -> pa.Table:
    """Return decoded rows with the columns `STAMPS`.

    The order is that among the events of one table in one transaction: it stays the same whichever other tables are
    captured.

    Args:
        rows: decoded from `data`; `ord` is twice the number of the line, and one more for a second row of an event.
        data: events joined by line feeds.
        ends: of every transaction among them.

    Raises:
        RosettaError: CAPTURE_FAILED when an event does not say where it belongs.
    """
    found = _TRANSACTION.findall(data)
    if len(found) != data.count(b"\n") + 1:
        raise RosettaError(ErrorKind.CAPTURE_FAILED, "Debezium sent events without their place in a transaction")
    pairs = np.array(found, dtype="S20").astype(np.int64)
    place = rows.column("ord").to_numpy()
    line = place // 2
    xids = pairs[line, 0]
    unique, inverse = np.unique(xids, return_inverse=True)
    missing = [int(xid) for xid in unique if int(xid) not in ends]
    if missing:
        raise RosettaError(ErrorKind.CAPTURE_FAILED, f"the stream did not say where transaction {missing[0]} ends")
    lsns = np.array([ends[int(xid)][0] for xid in unique], dtype=np.int64)[inverse]
    times = np.array([ends[int(xid)][1] for xid in unique], dtype=np.float64)[inverse]
    values = (lsns, pairs[line, 1] * 2 + place % 2, xids, times)
    for name, value in zip(STAMPS, values, strict=True):
        rows = rows.append_column(name, pa.array(value))
    return rows
