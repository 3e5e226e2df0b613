"""The Debezium engine's configuration for one source."""

from __future__ import annotations

from collections.abc import Iterable

from cdc_runner.capture.debezium import convert
from cdc_runner.schema import TableId
from cdc_runner.spec import PostgresAddress, SourceSpec

TOPIC_PREFIX = "r"

_ALWAYS = {
    "name": "rosetta",
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "topic.prefix": TOPIC_PREFIX,
    "plugin.name": "pgoutput",
    "slot.drop.on.stop": "false",
    "slot.max.retries": "0",
    "publication.autocreate.mode": "disabled",
    "snapshot.mode": "no_data",
    "offset.storage": "org.apache.kafka.connect.storage.MemoryOffsetBackingStore",
    "offset.flush.interval.ms": "0",
    "offset.mismatch.strategy": "trust_offset",
    "lsn.flush.mode": "connector",
    "status.update.interval.ms": "5000",
    "provide.transaction.metadata": "true",
    "skipped.operations": "none",
    "tombstones.on.delete": "false",
    "extended.headers.enabled": "false",
    "column.propagate.source.type": ".*",
    "max.batch.size": "2048",
    "max.queue.size": "4096",
    "poll.interval.ms": "10",
    "errors.max.retries": "0",
    "skip.messages.without.change": "false",
}
"""What is the same for each source."""


def engine_properties(
    source: SourceSpec, tables: Iterable[TableId], marker: str, heap_megabytes: int = 192
) -> dict[str, str]:
    """Return the properties of an engine that streams some tables from an existing slot.

    The engine keeps no offset of its own between runs: it starts where the slot was confirmed, which only moves when
    `ChangeStream.acknowledge` was told so, and destinations skip what they hold by position. The password is in the
    result: hand it to the engine and to nothing else.
    """
    return {
        **_ALWAYS,
        **_server(source.address),
        "slot.name": source.slot,
        "publication.name": source.publication,
        "table.include.list": ",".join(_exactly(table) for table in sorted(tables)),
        # A batch is at most what the queue holds, and is in the heap three times before it leaves: as records, as
        # messages by table, and joined. All of it fits into the survivors of the young generation.
        "max.queue.size.in.bytes": str(heap_megabytes * (1 << 20) // 96),
        **convert.properties(marker),
    }


def _server(address: PostgresAddress) -> dict[str, str]:
    certificates = {
        "database.sslrootcert": address.sslrootcert,
        "database.sslcert": address.sslcert,
        "database.sslkey": address.sslkey,
    }
    return {
        "database.hostname": address.host,
        "database.port": str(address.port),
        "database.dbname": address.database,
        "database.user": address.username,
        "database.password": address.password.get_secret_value(),
        "database.sslmode": address.sslmode,
        **{name: value for name, value in certificates.items() if value},
    }


def _exactly(table: TableId) -> str:
    """Return a regular expression for one table.

    Debezium parts the list at commas and trims each part, so that a name's blanks and signs stand as their code points.
    """
    return "".join(
        character if character.isascii() and character.isalnum() else f"\\x{{{ord(character):x}}}"
        for character in f"{table.schema}.{table.name}"
    )
