"""Debezium made to hand on each value as the text that the server sent.

Debezium parses every value into a Java object and converts that into its own forms. Both steps lose values whatever the
settings: `timetz` forgets its offset, nested arrays become `[null, null]`, lower bounds and the length of a varbit are
gone, intervals are limited to 32-bit hours, and columns of `interval[]` or `money[]` disappear. Two changes stop that:

    the resolver   `ReplicationMessageColumnValueResolver.resolveValue` returns the value's text instead of an object
    the converter  a `CustomConverter` (Debezium's public interface), registered for every column, passes the text on
                   as a string, and a placeholder of ours for a large value that an update left unchanged

The first is made in memory, before Debezium's class is loaded, by Javassist, which is among Debezium's own jars and
which compiles the converter too: a Java runtime has no compiler. Debezium's version is pinned, and `install` fails when
the method is not the one that is expected.
"""

from __future__ import annotations

from typing import Any

CLASS_NAME = "io.debezium.connector.postgresql.RosettaTextConverter"
"""In a package of Debezium's, because Javassist defines a class beside one that is loaded already."""

_CONVERTER_NEIGHBOUR = "io.debezium.connector.postgresql.UnchangedToastedReplicationMessageColumn"
_RESOLVER = "io.debezium.connector.postgresql.connection.ReplicationMessageColumnValueResolver"
_RESOLVER_NEIGHBOUR = "io.debezium.connector.postgresql.connection.ReplicationMessage"
_RESOLVER_SIGNATURE = (
    "(Ljava/lang/String;Lio/debezium/connector/postgresql/PostgresType;Ljava/lang/String;"
    "Lio/debezium/connector/postgresql/connection/ReplicationMessage$ColumnValue;"
    "Lio/debezium/connector/postgresql/PostgresStreamingChangeEventSource$PgConnectionSupplier;Z"
    "Lio/debezium/connector/postgresql/TypeRegistry;)Ljava/lang/Object;"
)

# $4 is the fourth argument, the value as it came.
_RESOLVER_BODY = "{ if ($4.isNull()) return null; return $4.asString(); }"

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


def install() -> None:
    """Make both changes in the running JVM; does nothing when they are made. Call it before an engine is built.

    Sets the JVM's default time zone to UTC as well: the JDBC driver asks the server for that zone, and the text of
    every timestamptz is in it.

    Raises:
        RuntimeError: no JVM runs in this process, or Debezium's resolver is not the expected one or is loaded already.
    """
    import jpype

    if not jpype.isJVMStarted():
        raise RuntimeError("start the JVM before its classes are made")
    zone = jpype.JClass("java.util.TimeZone")
    zone.setDefault(zone.getTimeZone("UTC"))
    try:
        jpype.JClass(CLASS_NAME)
    except TypeError:
        neighbour = jpype.JClass(_CONVERTER_NEIGHBOUR).class_
        pool = jpype.JClass("javassist.ClassPool")()
        pool.appendClassPath(jpype.JClass("javassist.LoaderClassPath")(neighbour.getClassLoader()))
        _change_resolver(jpype, pool)
        _define_converter(jpype, pool, neighbour)


def _change_resolver(jpype: Any, pool: Any) -> None:
    """Load Debezium's resolver with another body of its one method."""
    try:
        resolver = pool.get(_RESOLVER)
        resolver.getMethod("resolveValue", _RESOLVER_SIGNATURE).setBody(_RESOLVER_BODY)
        resolver.toClass(jpype.JClass(_RESOLVER_NEIGHBOUR).class_)
    except jpype.JException as error:
        raise RuntimeError(f"this version of Debezium resolves values in another way: {error}") from error


def _define_converter(jpype: Any, pool: Any, neighbour: Any) -> None:
    """Compile the converter and load it beside its neighbour."""
    made = pool.makeClass(CLASS_NAME)
    made.addInterface(pool.get("io.debezium.spi.converter.CustomConverter"))
    made.addInterface(pool.get("io.debezium.spi.converter.CustomConverter$Converter"))
    field, method = jpype.JClass("javassist.CtField"), jpype.JClass("javassist.CtNewMethod")
    made.addConstructor(jpype.JClass("javassist.CtNewConstructor").defaultConstructor(made))
    for source in _FIELDS:
        made.addField(field.make(source, made))
    for source in _METHODS:
        made.addMethod(method.make(source, made))
    made.toClass(neighbour)
