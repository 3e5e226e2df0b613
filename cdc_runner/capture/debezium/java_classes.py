"""Java classes that are made or changed in the memory of the running JVM.

By Javassist, which is among Debezium's own jars and compiles too: a Java runtime has no compiler. A class is loaded
beside a neighbour, one of its package that may be loaded already; one that is changed must not be loaded before. All
are of one pool, so that a method may use the classes that were made before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True, slots=True)
class NewClass:
    """A class that Debezium does not have.

    Attributes:
        name: the class.
        neighbour: a class of the same package.
        fields: declarations.
        methods: declarations; a method may use those before it.
        constructor: declaration; None for the one without arguments that does nothing.
        interfaces: names of those that it implements.
    """

    name: str
    neighbour: str
    fields: tuple[str, ...]
    methods: tuple[str, ...]
    constructor: str | None = None
    interfaces: tuple[str, ...] = ()

    def assemble(self, pool: Any) -> Any:
        """Return the class, not loaded yet."""
        import jpype

        field, method = jpype.JClass("javassist.CtField"), jpype.JClass("javassist.CtNewMethod")
        constructor = jpype.JClass("javassist.CtNewConstructor")
        made = pool.makeClass(self.name)
        for interface in self.interfaces:
            made.addInterface(pool.get(interface))
        for source in self.fields:
            made.addField(field.make(source, made))
        # Before the methods: they may make objects of the class.
        made.addConstructor(
            constructor.defaultConstructor(made)
            if self.constructor is None
            else constructor.make(self.constructor, made)
        )
        for source in self.methods:
            made.addMethod(method.make(source, made))
        return made


@dataclass(frozen=True, slots=True)
class ChangedClass:
    """A class of Debezium or Kafka whose methods get other bodies.

    Attributes:
        name: the class.
        neighbour: a class of the same package.
        bodies: name, signature and new body of each method.
        fields: declarations of fields that the bodies use.
    """

    name: str
    neighbour: str
    bodies: tuple[tuple[str, str, str], ...]
    fields: tuple[str, ...] = ()

    def assemble(self, pool: Any) -> Any:
        """Return the class, not loaded yet."""
        import jpype

        field = jpype.JClass("javassist.CtField")
        made = pool.get(self.name)
        for source in self.fields:
            made.addField(field.make(source, made))
        for name, signature, body in self.bodies:
            made.getMethod(name, signature).setBody(body)
        return made


def load(*classes: NewClass | ChangedClass, otherwise: str) -> None:
    """Load classes into the running JVM, one after the other.

    Args:
        classes: none of which is loaded.
        otherwise: what a version of Debezium does that they do not fit, for the error.

    Raises:
        RuntimeError: no JVM runs in this process, or Debezium's classes are not the expected ones, or loaded already.
    """
    import jpype

    if not jpype.isJVMStarted():
        raise RuntimeError("start the JVM before its classes are made")
    pool = _pool()
    try:
        for one in classes:
            made = one.assemble(pool)
            made.toClass(jpype.JClass(one.neighbour).class_)
    # JPype's word for a class that is not there is TypeError.
    except (jpype.JException, TypeError) as error:
        raise RuntimeError(f"this version of Debezium {otherwise}: {error}") from error


@cache
def _pool() -> Any:
    import jpype

    pool = jpype.JClass("javassist.ClassPool")
    made = pool()
    made.appendClassPath(jpype.JClass("javassist.LoaderClassPath")(pool.class_.getClassLoader()))
    return made
