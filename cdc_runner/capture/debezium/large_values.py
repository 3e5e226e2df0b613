"""Large values leave Debezium's heap as soon as they are decoded, and come back when their message is written.

Between the two a value would be in the heap several times over: in the connector's thread, in the queue, and in the
batch that is handed over. A large one goes to a file of the spill directory instead, and a short text stands for it
until its message is put together outside the JVM. So the heap holds of a large value no more than the server's message.

A file is removed when Java's collector has found that nothing refers to its text any more: one value may be in several
events (of a changed key), or in none (of a table that is in the publication and not in the pipeline).
"""

from __future__ import annotations

import secrets
from functools import cache
from pathlib import Path

from cdc_runner.capture.debezium import java_classes
from cdc_runner.capture.debezium.java_classes import NewClass
from cdc_runner.errors import ErrorKind, RosettaError

CLASS_NAME = "io.debezium.util.RosettaLargeValues"
LARGE_BYTES = 1 << 20
"""Values larger than this go to a file."""

CANNOT_SPILL = "cannot spill a large value"
"""How the reason begins when such a file could not be written or read."""

_FIELDS = (
    "private static String marker;",
    "private static String directory;",
    "private static long count;",
    "private static long taken;",
    "private static final java.util.HashMap files = new java.util.HashMap();",
    "private static final java.lang.ref.ReferenceQueue dropped = new java.lang.ref.ReferenceQueue();",
)

_METHODS = (
    """
    public static void begin(String newMarker, String newDirectory) {
        marker = newMarker;
        directory = newDirectory;
    }
    """,
    """
    private static RuntimeException failed(java.io.IOException error) {
        return new IllegalStateException("CANNOT_SPILL to " + directory + ": " + error.getMessage());
    }
    """,
    # In the connector's thread only.
    """
    private static String keep(byte[] data, int place, int length) {
        java.lang.ref.Reference gone = dropped.poll();
        while (gone != null) {
            java.io.File left = (java.io.File) files.remove(gone);
            if (left != null) left.delete();
            gone = dropped.poll();
        }
        // Messages of such a size go to the old generation, which is not looked at before the heap is at its limit.
        taken = taken + (long) length;
        if (taken > 16777216L) {
            taken = 0L;
            System.gc();
        }
        count = count + 1L;
        java.io.File file = new java.io.File(directory, "value-" + count + ".part");
        String text = marker + length + ":" + file.getPath();
        files.put(new java.lang.ref.PhantomReference(text, dropped), file);
        try {
            java.io.FileOutputStream out = new java.io.FileOutputStream(file);
            try {
                // Java copies what it writes at once.
                for (int done = 0; done < length; done += 1048576)
                    out.write(data, place + done, Math.min(1048576, length - done));
            } finally {
                out.close();
            }
        } catch (java.io.IOException error) {
            file.delete();
            throw failed(error);
        }
        return text;
    }
    """,
    f"""
    public static String text(java.nio.ByteBuffer buffer) {{
        int length = buffer.getInt();
        int place = buffer.position();
        buffer.position(place + length);
        if (length > {LARGE_BYTES} && marker != null) return keep(buffer.array(), buffer.arrayOffset() + place, length);
        return new String(buffer.array(), buffer.arrayOffset() + place, length,
                          java.nio.charset.StandardCharsets.ISO_8859_1);
    }}
    """,
    "public static boolean kept(String text) { return marker != null && text.startsWith(marker); }",
    """
    public static int size(String text) {
        if (!kept(text)) return text.length();
        return Integer.parseInt(text.substring(marker.length(), text.indexOf(58, marker.length())));
    }
    """,
    # The text keeps the file.
    """
    public static void copy(String text, int length, byte[] out, int place) {
        if (!kept(text)) {
            text.getBytes(0, length, out, place);
            return;
        }
        java.io.File file = new java.io.File(text.substring(text.indexOf(58, marker.length()) + 1));
        try {
            java.io.FileInputStream in = new java.io.FileInputStream(file);
            try {
                int done = 0;
                while (done < length) {
                    int step = in.read(out, place + done, Math.min(1048576, length - done));
                    if (step < 0) throw new java.io.IOException("the file is too short");
                    done = done + step;
                }
            } finally {
                in.close();
            }
        } catch (java.io.IOException error) {
            throw failed(error);
        }
        java.lang.ref.Reference.reachabilityFence(text);
    }
    """,
)


_CLASS = NewClass(
    CLASS_NAME,
    "io.debezium.util.Clock",
    _FIELDS,
    tuple(source.replace("CANNOT_SPILL", CANNOT_SPILL) for source in _METHODS),
)


@cache
def install() -> None:
    """Define the class in the running JVM, before any other change of Debezium's classes.

    Raises:
        RuntimeError: no JVM runs in this process, or Debezium's classes are not the expected ones.
    """
    java_classes.load(_CLASS, otherwise="has no place for large values")


def read(text: str) -> bytes:
    """Return the large value that a text stands for; the text must still be held by something in the JVM.

    Raises:
        RosettaError: SPILL_FAILED, the file cannot be read.
    """
    # A marker is between two signs; length and path follow it.
    path = Path(text.split("~", 2)[2].partition(":")[2])
    try:
        return path.read_bytes()
    except OSError as error:
        raise RosettaError(ErrorKind.SPILL_FAILED, f"{CANNOT_SPILL} to {path.parent}: {error.strerror}") from error


def begin(directory: Path) -> None:
    """Send large values to files of a directory from now on, whose names end with `.part`."""
    import jpype

    jpype.JClass(CLASS_NAME).begin(f"~rosetta-large-{secrets.token_hex(16)}~", str(directory))
