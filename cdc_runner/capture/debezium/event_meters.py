"""Debezium's JMX meters of single events, taken out of the way of the change stream.

For each event Debezium formats a description of it with a JSON mapper of its own, for the attribute `LastEvent`, and
hands its age to another thread for a histogram. Nothing here reads JMX. Measured over 150,000 updates: 41 % of the
connector thread's CPU time, and 30 % of the process's.

As in `text_converter` the method is replaced in memory, before its class is loaded; Debezium's version is pinned.
"""

from __future__ import annotations

from functools import cache
from typing import Any

_METRICS = "io.debezium.pipeline.metrics.DefaultStreamingChangeEventSourceMetrics"
_NEIGHBOUR = "io.debezium.pipeline.metrics.PipelineMetrics"
_SIGNATURE = (
    "(Lio/debezium/pipeline/spi/Partition;Lio/debezium/spi/schema/DataCollectionId;"
    "Lio/debezium/pipeline/spi/OffsetContext;Ljava/lang/Object;Lorg/apache/kafka/connect/data/Struct;"
    "Lio/debezium/data/Envelope$Operation;)V"
)


@cache
def remove() -> None:
    """Make Debezium count no single events in the running JVM. Call it before an engine is built.

    Raises:
        RuntimeError: no JVM runs in this process, or Debezium's meters are not the expected ones or are loaded already.
    """
    import jpype

    if not jpype.isJVMStarted():
        raise RuntimeError("start the JVM before its classes are changed")
    neighbour: Any = jpype.JClass(_NEIGHBOUR).class_
    pool = jpype.JClass("javassist.ClassPool")()
    pool.appendClassPath(jpype.JClass("javassist.LoaderClassPath")(neighbour.getClassLoader()))
    try:
        metrics = pool.get(_METRICS)
        metrics.getMethod("onEvent", _SIGNATURE).setBody("{}")
        metrics.toClass(neighbour)
    except jpype.JException as error:
        raise RuntimeError(f"this version of Debezium meters events in another way: {error}") from error
