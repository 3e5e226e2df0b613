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

As in `text_converter` the methods are replaced in memory, before their classes are loaded; Debezium's version is
pinned, and `install` fails when a method is not the one that is expected. Measured over 150,000 updates: the meters are
41 % of the connector thread's CPU time, the rest half of what remains.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from cdc_runner.capture.debezium import large_values


@dataclass(frozen=True, slots=True)
class _Change:
    """A class whose methods get other bodies.

    Attributes:
        name: the class.
        neighbour: a class of the same package that may be loaded.
        bodies: name, signature and new body of each method.
        members: declarations of fields that the bodies use.
    """

    name: str
    neighbour: str
    bodies: tuple[tuple[str, str, str], ...]
    members: tuple[str, ...] = ()


_STRUCT = "org.apache.kafka.connect.data.Struct"
_MAP = "java.util.concurrent.ConcurrentHashMap"
_ROW_BYTES = 1000
"""About what an event takes beside its values: records, offsets, the source block."""

_CHANGES = (
    # These three first: the neighbours of the others load them.
    _Change(
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
    _Change(
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
    _Change(
        "io.debezium.connector.postgresql.PostgresConnectorConfig",
        "io.debezium.connector.postgresql.UnchangedToastedReplicationMessageColumn",
        (("includeUnknownDatatypes", "()Z", "{ return true; }"),),
    ),
    _Change(
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
    _Change(
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
    _Change(
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
    _Change(
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
    _Change(
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
    _Change(
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
    import jpype

    if not jpype.isJVMStarted():
        raise RuntimeError("start the JVM before its classes are changed")
    pool = large_values.install()
    field = jpype.JClass("javassist.CtField")
    for change in _CHANGES:
        try:
            made = pool.get(change.name)
            for source in change.members:
                made.addField(field.make(source, made))
            for name, signature, body in change.bodies:
                made.getMethod(name, signature).setBody(body)
            made.toClass(jpype.JClass(change.neighbour).class_)
        except jpype.JException as error:
            raise RuntimeError(f"this version of Debezium does something else in {change.name}: {error}") from error
