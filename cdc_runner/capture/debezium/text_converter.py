"""Debezium made to hand on each value as the text that the server sent.

Debezium parses every value into a Java object and converts that into its own forms. Both steps lose values whatever the
settings: `timetz` forgets its offset, nested arrays become `[null, null]`, lower bounds and the length of a varbit are
gone, intervals are limited to 32-bit hours, and columns of `interval[]` or `money[]` disappear. Two changes stop that:

    the resolver   `ReplicationMessageColumnValueResolver.resolveValue` returns the value's text instead of an object
    the converter  a `CustomConverter` (Debezium's public interface), registered for every column, passes the text on
                   as a string, and a placeholder of ours for a large value that an update left unchanged

Both are made in memory (see `java_classes`), before Debezium's resolver is loaded. Debezium's version is pinned, and
`install` fails when the method is not the one that is expected.
"""

from __future__ import annotations

from functools import cache

from cdc_runner.capture.debezium import java_classes
from cdc_runner.capture.debezium.java_classes import ChangedClass, NewClass

CLASS_NAME = "io.debezium.connector.postgresql.RosettaTextConverter"

_RESOLVER = "io.debezium.connector.postgresql.connection.ReplicationMessageColumnValueResolver"
_RESOLVER_CHANGE = ChangedClass(
    _RESOLVER,
    "io.debezium.connector.postgresql.connection.ReplicationMessage",
    (
        (
            "resolveValue",
            "(Ljava/lang/String;Lio/debezium/connector/postgresql/PostgresType;Ljava/lang/String;"
            "Lio/debezium/connector/postgresql/connection/ReplicationMessage$ColumnValue;"
            "Lio/debezium/connector/postgresql/PostgresStreamingChangeEventSource$PgConnectionSupplier;Z"
            "Lio/debezium/connector/postgresql/TypeRegistry;)Ljava/lang/Object;",
            # $4 is the fourth argument, the value as it came.
            "{ if ($4.isNull()) return null; return $4.asString(); }",
        ),
    ),
)

_FIELDS = ("private String unchanged;", "private Object standard;")

_METHODS = (
    """
    public void configure(java.util.Properties properties) {
        this.unchanged = properties.getProperty("unchanged");
        if (this.unchanged == null) throw new IllegalArgumentException("the text for unchanged values is not set");
    }
    """,
    """
    public void converterFor(io.debezium.spi.converter.ConvertedField field,
                             io.debezium.spi.converter.CustomConverter$ConverterRegistration registration) {
        io.debezium.connector.postgresql.RosettaTextConverter column =
            new io.debezium.connector.postgresql.RosettaTextConverter();
        column.unchanged = this.unchanged;
        column.standard = ((io.debezium.spi.converter.RelationalColumn) field).defaultValue();
        registration.register(org.apache.kafka.connect.data.SchemaBuilder.string().optional(),
                              (io.debezium.spi.converter.CustomConverter.Converter) column);
    }
    """,
    # Debezium's markers of an unchanged large value are recognised by identity: no user value is one. A column's
    # default, which Debezium reads over JDBC for its schema, is the only other object; it has no use here. Anything
    # else fails the event: nothing is guessed.
    """
    public Object convert(Object value) {
        if (value == null || value instanceof String) return value;
        if (io.debezium.connector.postgresql.UnchangedToastedReplicationMessageColumn.isUnchangedToastedValue(value))
            return this.unchanged;
        if (value == this.standard || value.equals(this.standard)) return null;
        throw new IllegalArgumentException("a value arrived as " + value.getClass().getName() + ", not as text");
    }
    """,
)

_CONVERTER = NewClass(
    CLASS_NAME,
    "io.debezium.connector.postgresql.UnchangedToastedReplicationMessageColumn",
    _FIELDS,
    _METHODS,
    interfaces=("io.debezium.spi.converter.CustomConverter", "io.debezium.spi.converter.CustomConverter$Converter"),
)


@cache
def install() -> None:
    """Make both changes in the running JVM; does nothing when they are made. Call it before an engine is built.

    Sets the JVM's default time zone to UTC as well: the JDBC driver asks the server for that zone, and the text of
    every timestamptz is in it.

    Raises:
        RuntimeError: no JVM runs in this process, or Debezium's resolver is not the expected one or is loaded already.
    """
    import jpype

    java_classes.load(_RESOLVER_CHANGE, _CONVERTER, otherwise="resolves values in another way")
    zone = jpype.JClass("java.util.TimeZone")
    zone.setDefault(zone.getTimeZone("UTC"))
