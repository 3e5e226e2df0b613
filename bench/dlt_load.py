"""One bulk load by dlt; run by its own interpreter (see `peers`), so it imports nothing of this project.

Reads `{"source": SQLAlchemy URL, "target": URI, "tables": [...]}` from the variable `BENCH_DLT_ORDER`; writes the
seconds that the load took.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from importlib import import_module


def main() -> None:
    """Load the tables into the schema `public` of the target."""
    order = json.loads(os.environ["BENCH_DLT_ORDER"])
    with tempfile.TemporaryDirectory() as directory:
        os.environ.update(
            DLT_DATA_DIR=directory, RUNTIME__DLTHUB_TELEMETRY="false", RUNTIME__LOG_LEVEL="ERROR",
            NORMALIZE__DATA_WRITER__DISABLE_COMPRESSION="true",
        )  # fmt: skip
        dlt = import_module("dlt")
        sql_database = import_module("dlt.sources.sql_database").sql_database

        pipeline = dlt.pipeline(
            "bench",
            pipelines_dir=directory,
            destination=dlt.destinations.postgres(order["target"]),
            dataset_name="public",
        )
        source = sql_database(order["source"], table_names=order["tables"], backend="pyarrow", chunk_size=100_000)
        started = time.monotonic()
        pipeline.run(source, write_disposition="replace").raise_on_failed_jobs()
        print(time.monotonic() - started)


if __name__ == "__main__":
    main()
