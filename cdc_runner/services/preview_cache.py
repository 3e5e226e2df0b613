"""Results of previews in Redis, for five minutes: a JSON line, then the rows as an Arrow stream.

The key is a hash of everything that a result depends on but the rows themselves, masks and the key of their hashes
among it: with another mask no older result is found. A cache that is away, or holds something else, is none.
"""

from __future__ import annotations

import dataclasses
import io
import json
import time

import pyarrow as pa

from cdc_runner.dead_letter.store import LetterStore
from cdc_runner.errors import RosettaError
from cdc_runner.sandbox.run import SandboxResult

KEPT_SECONDS = 300
MAX_BYTES = 256 * 1024
"""Of one result: a larger one is computed again, as Redis holds the dead letters, too."""

_PREFIX = "preview:"


@dataclasses.dataclass(frozen=True, slots=True)
class Cached:
    """A result and its age."""

    result: SandboxResult
    age_seconds: float


class PreviewCache:
    """Results of previews."""

    def __init__(self, store: LetterStore) -> None:
        """Args:
        store: a binary connection to Redis.
        """
        self._store = store
        self.problem: str | None = None if store.configured else "REDIS_URL is not set"

    def find(self, digest: str) -> Cached | None:
        """Return a result that is not older than KEPT_SECONDS; None when there is none, or the cache is away."""
        if self.problem is not None:
            return None
        try:
            with self._store.client() as client:
                found = client.get(_PREFIX + digest)
        except RosettaError as error:
            self.problem = error.message
            return None
        return None if found is None else _read(found)

    def keep(self, digest: str, result: SandboxResult) -> None:
        """Keep a completed result, if it is not too large; when the cache is away, nothing is kept."""
        if self.problem is not None or result.state != "COMPLETED":
            return
        content = _written(result)
        if len(content) > MAX_BYTES:
            return
        try:
            with self._store.client() as client:
                client.set(_PREFIX + digest, content, ex=KEPT_SECONDS)
        except RosettaError as error:
            self.problem = error.message


def _written(result: SandboxResult) -> bytes:
    header = {field.name: getattr(result, field.name) for field in dataclasses.fields(result) if field.name != "rows"}
    sink = io.BytesIO()
    if result.rows is not None:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(sink, result.rows.schema, options=options) as writer:
            writer.write_table(result.rows)
    return json.dumps({"kept_at": time.time(), "result": header}).encode() + b"\n" + sink.getvalue()


def _read(content: bytes) -> Cached | None:
    line, _, rest = content.partition(b"\n")
    try:
        header = json.loads(line)
        fields = header["result"]
        rows = pa.ipc.open_stream(io.BytesIO(rest)).read_all() if rest else None
        result = SandboxResult(
            **{
                **fields,
                "tables": tuple(fields["tables"]),
                "columns": tuple((name, kind) for name, kind in fields["columns"]),
                "rows": rows,
            }
        )
        return Cached(result, max(0.0, time.time() - float(header["kept_at"])))
    except (ValueError, KeyError, TypeError, pa.ArrowException):
        # Of another version, or not ours.
        return None
