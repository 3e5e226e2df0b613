"""A shorter `source` in each event of Debezium: what the engine itself reads, and the table.

The standard block has 14 members, which are more than half of what an event of four columns holds, and one of them
(`sequence`) is written by a JSON mapper of its own. A connector takes another maker of the block by its property
`sourceinfo.struct.maker`.
"""

from __future__ import annotations

from functools import cache

from cdc_runner.capture.debezium import java_classes
from cdc_runner.capture.debezium.java_classes import NewClass

CLASS_NAME = "io.debezium.connector.postgresql.RosettaSourceBlock"
"""In a package of Debezium's, whose classes alone may read a `SourceInfo`."""

_NEIGHBOUR = "io.debezium.connector.postgresql.SourceInfo"
_INTERFACE = "io.debezium.connector.SourceInfoStructMaker"

_FIELDS = ("private org.apache.kafka.connect.data.Schema schema;",)

# ts_ms, txId, lsn and xmin are what PostgresEventMetadataProvider asks for, by name. A message belongs to no table.
_METHODS = (
    """
    public void init(String connector, String version, io.debezium.config.CommonConnectorConfig config) {
        this.schema = org.apache.kafka.connect.data.SchemaBuilder.struct()
            .name("io.debezium.connector.postgresql.Source")
            .field("ts_ms", org.apache.kafka.connect.data.Schema.OPTIONAL_INT64_SCHEMA)
            .field("schema", org.apache.kafka.connect.data.Schema.OPTIONAL_STRING_SCHEMA)
            .field("table", org.apache.kafka.connect.data.Schema.OPTIONAL_STRING_SCHEMA)
            .field("txId", org.apache.kafka.connect.data.Schema.OPTIONAL_INT64_SCHEMA)
            .field("lsn", org.apache.kafka.connect.data.Schema.OPTIONAL_INT64_SCHEMA)
            .field("xmin", org.apache.kafka.connect.data.Schema.OPTIONAL_INT64_SCHEMA)
            .build();
    }
    """,
    "public org.apache.kafka.connect.data.Schema schema() { return this.schema; }",
    """
    public org.apache.kafka.connect.data.Struct struct(io.debezium.connector.AbstractSourceInfo any) {
        io.debezium.connector.postgresql.SourceInfo info = (io.debezium.connector.postgresql.SourceInfo) any;
        org.apache.kafka.connect.data.Struct block = new org.apache.kafka.connect.data.Struct(this.schema);
        if (info.timestamp() != null) block.put("ts_ms", (Object) Long.valueOf(info.timestamp().toEpochMilli()));
        block.put("schema", (Object) info.schemaName());
        block.put("table", (Object) info.tableName());
        block.put("txId", (Object) info.txId());
        if (info.lsn() != null) block.put("lsn", (Object) Long.valueOf(info.lsn().asLong()));
        return block;
    }
    """,
)


def properties() -> dict[str, str]:
    """Return the engine properties that select the block; `install` must have run."""
    return {"sourceinfo.struct.maker": CLASS_NAME}


@cache
def install() -> None:
    """Define the class in the running JVM. Call it before an engine is built.

    Raises:
        RuntimeError: no JVM runs in this process, or Debezium's classes are not the expected ones.
    """
    java_classes.load(
        NewClass(CLASS_NAME, _NEIGHBOUR, _FIELDS, _METHODS, interfaces=(_INTERFACE,)),
        otherwise="describes sources in another way",
    )
