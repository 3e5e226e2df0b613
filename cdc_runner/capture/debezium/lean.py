"""What Debezium does for each event that nobody reads here, taken out of the way of the change stream.

    meters        for each event Debezium formats a description of it with a JSON mapper, for the JMX attribute
                  `LastEvent`, and hands its age to another thread for a histogram
    validation    every value that is put into a record is checked against its schema; the values are texts by the
                  converter of `text_converter`, and the writer of messages fails on anything else
    transactions  each event gets a block that says its place in the transaction, and each transaction an event at its
                  begin; the event at the end, which says it all, stays
    names         the name of a table is quoted and parsed, and that of its topic is looked up, for each event
    settings      `include.unknown.datatypes`, which is on, is parsed for each value
    texts         a value is decoded from UTF-8 by way of a copy, and encoded again when it leaves the JVM; here each
                  character of a text is one byte of the server's (ISO 8859-1): one copy, and no decoding. Nobody
                  between the decoder and the writer of messages looks into a value. Large ones go to a file
    sizes         the size of each event in memory is estimated by a walk through its schema; here it is by its texts

The methods are replaced in memory (see `java_classes`), before their classes are loaded; Debezium's version is pinned,
and `install` fails when a method is not the one that is expected. Measured over 150,000 updates: the meters are 41 % of
the connector thread's CPU time, the rest half of what remains.
"""

from __future__ import annotations

from functools import cache

from cdc_runner.capture.debezium import java_classes, large_values
from cdc_runner.capture.debezium.java_classes import ChangedClass

_STRUCT = "org.apache.kafka.connect.data.Struct"
_MAP = "java.util.concurrent.ConcurrentHashMap"
_ROW_BYTES = 1000
"""About what an event takes beside its values: records, offsets, the source block."""

_CHANGES = (
    # These three first: the neighbours of the others load them.
    ChangedClass(
        _STRUCT,
        "org.apache.kafka.connect.data.Field",
        (
            (
                "put",
                "(Lorg/apache/kafka/connect/data/Field;Ljava/lang/Object;)Lorg/apache/kafka/connect/data/Struct;",
                "{ this.values[$1.index()] = $2; return this; }",
            ),
            ("validate", "()V", "{}"),
        ),
    ),
    ChangedClass(
        "io.debezium.relational.TableId",
        "io.debezium.relational.Column",
        (
            (
                "toDoubleQuotedString",
                "()Ljava/lang/String;",
                """{
                if (this.quoted == null) this.quoted = this.toQuotedString((char) 34);
                return this.quoted;
                }""",
            ),
        ),
        ("private String quoted;",),
    ),
    ChangedClass(
        "io.debezium.connector.postgresql.PostgresConnectorConfig",
        "io.debezium.connector.postgresql.UnchangedToastedReplicationMessageColumn",
        (("includeUnknownDatatypes", "()Z", "{ return true; }"),),
    ),
    ChangedClass(
        "io.debezium.connector.postgresql.connection.pgoutput.PgOutputMessageDecoder",
        "io.debezium.connector.postgresql.connection.pgoutput.PgOutputRelationMetaData",
        (
            (
                "readColumnValueAsString",
                "(Ljava/nio/ByteBuffer;)Ljava/lang/String;",
                f"{{ return {large_values.CLASS_NAME}.text($1); }}",
            ),
        ),
    ),
    ChangedClass(
        "io.debezium.pipeline.metrics.DefaultStreamingChangeEventSourceMetrics",
        "io.debezium.pipeline.metrics.PipelineMetrics",
        (
            (
                "onEvent",
                "(Lio/debezium/pipeline/spi/Partition;Lio/debezium/spi/schema/DataCollectionId;"
                "Lio/debezium/pipeline/spi/OffsetContext;Ljava/lang/Object;Lorg/apache/kafka/connect/data/Struct;"
                "Lio/debezium/data/Envelope$Operation;)V",
                "{}",
            ),
        ),
    ),
    ChangedClass(
        "io.debezium.pipeline.txmetadata.TransactionMonitor",
        "io.debezium.pipeline.txmetadata.TransactionInfo",
        (
            (
                "dataEvent",
                "(Lio/debezium/pipeline/spi/Partition;Lio/debezium/spi/schema/DataCollectionId;"
                "Lio/debezium/pipeline/spi/OffsetContext;Ljava/lang/Object;Lorg/apache/kafka/connect/data/Struct;)V",
                "{}",
            ),
            (
                "beginTransaction",
                "(Lio/debezium/pipeline/spi/Partition;Lio/debezium/pipeline/spi/OffsetContext;Ljava/time/Instant;)V",
                "{}",
            ),
        ),
    ),
    ChangedClass(
        "io.debezium.connector.postgresql.PostgresSchema",
        "io.debezium.connector.postgresql.SourceInfo",
        (
            (
                "parse",
                "(Ljava/lang/String;)Lio/debezium/relational/TableId;",
                """{
                io.debezium.relational.TableId known = (io.debezium.relational.TableId) parsed.get($1);
                if (known != null) return known;
                known = io.debezium.relational.TableId.parse($1, false);
                if (known != null && known.schema() == null)
                    known = new io.debezium.relational.TableId(known.catalog(), "public", known.table());
                if (known != null) parsed.put($1, known);
                return known;
                }""",
            ),
        ),
        (f"private static {_MAP} parsed = new {_MAP}();",),
    ),
    ChangedClass(
        "io.debezium.schema.SchemaTopicNamingStrategy",
        "io.debezium.schema.TopicSelector",
        (
            (
                "dataChangeTopic",
                "(Lio/debezium/spi/schema/DataCollectionId;)Ljava/lang/String;",
                "{ return $1.identifier(); }",
            ),
        ),
    ),
    ChangedClass(
        "io.debezium.util.ApproximateStructSizeCalculator",
        "io.debezium.util.Clock",
        (
            (
                "getApproximateRecordSize",
                "(Lorg/apache/kafka/connect/source/SourceRecord;)J",
                f"""{{
                long size = {_ROW_BYTES}L;
                Object any = $1.value();
                if (any instanceof {_STRUCT}) {{
                    {_STRUCT} value = ({_STRUCT}) any;
                    if (value.schema().field("after") != null) {{
                        for (int image = 0; image < 2; image++) {{
                            {_STRUCT} row = value.getStruct(image == 0 ? "before" : "after");
                            if (row != null) {{
                                java.util.List fields = row.schema().fields();
                                int width = fields.size();
                                for (int number = 0; number < width; number++) {{
                                    Object text = row.get((org.apache.kafka.connect.data.Field) fields.get(number));
                                    if (text instanceof String)
                                        size = size + 56L + (long) {large_values.CLASS_NAME}.size((String) text);
                                }}
                            }}
                        }}
                    }}
                }}
                return size;
                }}""",
            ),
        ),
    ),
)


@cache
def install() -> None:
    """Change the classes in the running JVM. Call it before any other class of Debezium is used but `large_values`.

    Raises:
        RuntimeError: no JVM runs in this process, or Debezium's classes are not the expected ones, or loaded already.
    """
    large_values.install()
    for change in _CHANGES:
        java_classes.load(change, otherwise=f"does something else in {change.name}")
