"""A Debezium converter, made inside the running JVM, that keeps each value as PostgreSQL's own text.

Debezium's built-in conversion loses values whatever its settings: nested arrays become `[null, null]`, lower bounds,
the length of a varbit, `time '24:00'`, and whole columns of `interval[]` or `money[]` disappear. All of that happens
after the decoder has resolved the value, and a converter of Debezium's public interface `CustomConverter` is given the
resolved value, in which nearly every type is still the text that the server sent. Only `timetz` is already changed.

No compiler comes with a Java runtime, so the class is assembled by Javassist, which is among Debezium's own jars. It
replaces Debezium's conversion of every column; each value leaves the JVM as a JSON string or null.
"""

from __future__ import annotations

from typing import Any

CLASS_NAME = "io.debezium.connector.postgresql.RosettaTextConverter"
"""Lives in Debezium's package because Javassist defines a class beside one that is loaded already."""

_NEIGHBOUR = "io.debezium.connector.postgresql.UnchangedToastedReplicationMessageColumn"

_IMPORTS = (
    "java.math",
    "java.time",
    "java.util",
    "io.debezium.connector.postgresql",
    "io.debezium.data",
    "io.debezium.spi.converter",
    "org.apache.kafka.connect.data",
    "org.postgresql.geometric",
    "org.postgresql.jdbc",
    "org.postgresql.util",
)

_FIELDS = ("private String unchanged;",)

# Javassist compiles one method at a time, so each may only call those above it. It knows neither generics nor
# boxing, and takes a variable for a method of the same name.
_METHODS = (
    """
    public void configure(Properties properties) {
        this.unchanged = properties.getProperty("unchanged");
        if (this.unchanged == null) throw new IllegalArgumentException("the placeholder of unchanged values is not set");
    }
    """,
    """
    public void converterFor(ConvertedField field, io.debezium.spi.converter.CustomConverter$ConverterRegistration registration) {
        registration.register(SchemaBuilder.string().optional(), (io.debezium.spi.converter.CustomConverter.Converter) this);
    }
    """,
    # float4out and float8out: Ryu's shortest digits, exponent form outside 1e-4 <= |x| < 1e6 or 1e15. Java finds the
    # same digits, but writes at least two of them: 4.9E-324 where PostgreSQL writes 5e-324.
    """
    private static String number(String text, boolean single) {
        char last = text.charAt(text.length() - 1);
        if (last == 'N' || last == 'y') return text;
        boolean negative = text.charAt(0) == '-';
        String plain = negative ? text.substring(1) : text;
        int e = plain.indexOf('E');
        int point = plain.indexOf('.');
        if (e < 0 && (!single || point < 7)) return text.endsWith(".0") ? text.substring(0, text.length() - 2) : text;
        int exponent = e < 0 ? point - 1 : Integer.parseInt(plain.substring(e + 1));
        String digits = plain.substring(0, point) + plain.substring(point + 1, e < 0 ? plain.length() : e);
        int end = digits.length();
        while (end > 1 && digits.charAt(end - 1) == '0') end--;
        digits = digits.substring(0, end);
        if (end == 2) {
            int head = digits.charAt(0) - '0' + (digits.charAt(1) >= '5' ? 1 : 0);
            String shorter = head + "E" + exponent;
            boolean same = single ? Float.parseFloat(shorter) == Float.parseFloat(plain)
                : Double.parseDouble(shorter) == Double.parseDouble(plain);
            if (same) {
                digits = head == 10 ? "1" : String.valueOf(head);
                if (head == 10) exponent++;
            }
        }
        StringBuilder out = new StringBuilder(32);
        if (negative) out.append('-');
        if (exponent >= -4 && exponent < 0) {
            out.append("0.");
            for (int i = exponent + 1; i < 0; i++) out.append('0');
            out.append(digits);
        } else if (exponent >= 0 && exponent < (single ? 6 : 15)) {
            int whole = exponent + 1;
            if (digits.length() <= whole) {
                out.append(digits);
                for (int i = digits.length(); i < whole; i++) out.append('0');
            } else out.append(digits.substring(0, whole)).append('.').append(digits.substring(whole));
        } else {
            out.append(digits.charAt(0));
            if (digits.length() > 1) out.append('.').append(digits.substring(1));
            out.append('e').append(exponent < 0 ? '-' : '+');
            int size = Math.abs(exponent);
            if (size < 10) out.append('0');
            out.append(size);
        }
        return out.toString();
    }
    """,
    """
    private static void two(StringBuilder out, int number) {
        if (number < 10) out.append('0');
        out.append(number);
    }
    """,
    """
    private static void fraction(StringBuilder out, int micros) {
        if (micros == 0) return;
        out.append('.');
        int divisor = 100000;
        while (micros > 0) {
            out.append((char) ('0' + micros / divisor));
            micros = micros % divisor;
            divisor = divisor / 10;
        }
    }
    """,
    """
    private static void date(StringBuilder out, LocalDate date) {
        int year = date.getYear();
        if (year <= 0) year = 1 - year;
        if (year < 1000) out.append(year < 10 ? "000" : year < 100 ? "00" : "0");
        out.append(year).append('-');
        two(out, date.getMonthValue());
        out.append('-');
        two(out, date.getDayOfMonth());
    }
    """,
    """
    private static String moment(LocalDateTime moment, String zone) {
        StringBuilder out = new StringBuilder(36);
        date(out, moment.toLocalDate());
        out.append(' ');
        two(out, moment.getHour());
        out.append(':');
        two(out, moment.getMinute());
        out.append(':');
        two(out, moment.getSecond());
        fraction(out, moment.getNano() / 1000);
        out.append(zone);
        if (moment.getYear() <= 0) out.append(" BC");
        return out.toString();
    }
    """,
    # The infinities are sentinels far outside PostgreSQL's range of years, so no value can be taken for one.
    """
    private static String date(LocalDate value) {
        if (value.equals(PostgresValueConverter.POSITIVE_INFINITY_LOCAL_DATE)) return "infinity";
        if (value.equals(PostgresValueConverter.NEGATIVE_INFINITY_LOCAL_DATE)) return "-infinity";
        StringBuilder out = new StringBuilder(16);
        date(out, value);
        if (value.getYear() <= 0) out.append(" BC");
        return out.toString();
    }
    """,
    """
    private static String timestamp(Instant instant) {
        if (instant.equals(PostgresValueConverter.POSITIVE_INFINITY_INSTANT)) return "infinity";
        if (instant.equals(PostgresValueConverter.NEGATIVE_INFINITY_INSTANT)) return "-infinity";
        return moment(LocalDateTime.ofEpochSecond(instant.getEpochSecond(), instant.getNano(), ZoneOffset.UTC), "");
    }
    """,
    """
    private static String timestamptz(OffsetDateTime value) {
        if (value.equals(PostgresValueConverter.POSITIVE_INFINITY_OFFSET_DATE_TIME)) return "infinity";
        if (value.equals(PostgresValueConverter.NEGATIVE_INFINITY_OFFSET_DATE_TIME)) return "-infinity";
        return moment(value.withOffsetSameInstant(ZoneOffset.UTC).toLocalDateTime(), "+00");
    }
    """,
    # interval_out in the style postgres: a part that follows a negative one carries its plus sign.
    """
    private static int part(StringBuilder out, int before, int number, String unit) {
        if (number == 0) return before;
        if (out.length() > 0) out.append(' ');
        if (before < 0 && number > 0) out.append('+');
        out.append(number).append(unit);
        if (number != 1) out.append('s');
        return number < 0 ? -1 : 1;
    }
    """,
    """
    private static String interval(PGInterval interval) {
        StringBuilder out = new StringBuilder(40);
        int before = part(out, 0, interval.getYears(), " year");
        before = part(out, before, interval.getMonths(), " mon");
        before = part(out, before, interval.getDays(), " day");
        int hours = interval.getHours();
        int minutes = interval.getMinutes();
        int seconds = interval.getWholeSeconds();
        int micros = interval.getMicroSeconds();
        if (out.length() > 0 && hours == 0 && minutes == 0 && seconds == 0 && micros == 0) return out.toString();
        if (out.length() > 0) out.append(' ');
        if (hours < 0 || minutes < 0 || seconds < 0 || micros < 0) out.append('-');
        else if (before < 0) out.append('+');
        two(out, Math.abs(hours));
        out.append(':');
        two(out, Math.abs(minutes));
        out.append(':');
        two(out, Math.abs(seconds));
        fraction(out, Math.abs(micros));
        return out.toString();
    }
    """,
    # cash_out with lc_monetary=C, which the connection sets.
    """
    private static String money(BigDecimal amount) {
        String digits = amount.abs().setScale(2).toPlainString();
        StringBuilder out = new StringBuilder(32);
        out.append(amount.signum() < 0 ? "-$" : "$");
        int whole = digits.length() - 3;
        for (int i = 0; i < digits.length(); i++) {
            if (i > 0 && i < whole && (whole - i) % 3 == 0) out.append(',');
            out.append(digits.charAt(i));
        }
        return out.toString();
    }
    """,
    """
    private static String number(double value) { return number(Double.toString(value), false); }
    """,
    """
    private static String points(PGpoint[] points, String open, String close) {
        StringBuilder out = new StringBuilder(open);
        for (int i = 0; i < points.length; i++) {
            if (i > 0) out.append(',');
            out.append('(').append(number(points[i].x)).append(',').append(number(points[i].y)).append(')');
        }
        return out.append(close).toString();
    }
    """,
    """
    private static String geometric(Object value) {
        if (value instanceof PGpoint) return points(new PGpoint[] {(PGpoint) value}, "", "");
        if (value instanceof PGbox) return points(((PGbox) value).point, "", "");
        if (value instanceof PGlseg) return points(((PGlseg) value).point, "[", "]");
        if (value instanceof PGpolygon) return points(((PGpolygon) value).points, "(", ")");
        if (value instanceof PGpath) {
            PGpath path = (PGpath) value;
            return path.open ? points(path.points, "[", "]") : points(path.points, "(", ")");
        }
        if (value instanceof PGcircle) {
            PGcircle circle = (PGcircle) value;
            return points(new PGpoint[] {circle.center}, "<", ",") + number(circle.radius) + ">";
        }
        PGline line = (PGline) value;
        return "{" + number(line.a) + "," + number(line.b) + "," + number(line.c) + "}";
    }
    """,
    # The order is by how often a class is met. An unknown class fails the event: nothing is guessed.
    """
    public Object convert(Object value) {
        if (value == null) return null;
        if (UnchangedToastedReplicationMessageColumn.isUnchangedToastedValue(value)) return this.unchanged;
        if (value instanceof String || value instanceof Integer || value instanceof Long || value instanceof Boolean
            || value instanceof PgArray) return value.toString();
        if (value instanceof SpecialValueDecimal) {
            Optional digits = ((SpecialValueDecimal) value).getDecimalValue();
            if (digits.isPresent()) return ((BigDecimal) digits.get()).toPlainString();
            return number(((SpecialValueDecimal) value).toDouble());
        }
        if (value instanceof OffsetDateTime) return timestamptz((OffsetDateTime) value);
        if (value instanceof Instant) return timestamp((Instant) value);
        if (value instanceof LocalDate) return date((LocalDate) value);
        if (value instanceof Double) return number(value.toString(), false);
        if (value instanceof Float) return number(value.toString(), true);
        if (value instanceof byte[]) return "\\\\x" + HexFormat.of().formatHex((byte[]) value);
        if (value instanceof PGInterval) return interval((PGInterval) value);
        if (value instanceof BigDecimal) return money((BigDecimal) value);
        if (value instanceof PGpoint || value instanceof PGbox || value instanceof PGlseg || value instanceof PGpath
            || value instanceof PGpolygon || value instanceof PGcircle || value instanceof PGline)
            return geometric(value);
        throw new IllegalArgumentException("no PostgreSQL text is known for " + value.getClass().getName());
    }
    """,
)


def install() -> None:
    """Define the converter class in the running JVM; does nothing when it is there already.

    Sets the JVM's default time zone to UTC as well: the JDBC driver asks the server for that zone, and values that
    stay as text (timestamptz inside arrays, ranges and composites) are written in it.

    Raises:
        RuntimeError: no JVM runs in this process.
    """
    import jpype  # noqa: PLC0415 - loading it must stay out of every process that runs no JVM

    if not jpype.isJVMStarted():
        raise RuntimeError("start the JVM before its classes are made")
    zone = jpype.JClass("java.util.TimeZone")
    zone.setDefault(zone.getTimeZone("UTC"))
    try:
        jpype.JClass(CLASS_NAME)
    except TypeError:
        _define(jpype)


def _define(jpype: Any) -> None:
    """Compile the class and load it beside its neighbour."""
    neighbour = jpype.JClass(_NEIGHBOUR).class_
    pool = jpype.JClass("javassist.ClassPool")()
    pool.appendClassPath(jpype.JClass("javassist.LoaderClassPath")(neighbour.getClassLoader()))
    for package in _IMPORTS:
        pool.importPackage(package)
    made = pool.makeClass(CLASS_NAME)
    made.addInterface(pool.get("io.debezium.spi.converter.CustomConverter"))
    made.addInterface(pool.get("io.debezium.spi.converter.CustomConverter$Converter"))
    field, method = jpype.JClass("javassist.CtField"), jpype.JClass("javassist.CtNewMethod")
    for source in _FIELDS:
        made.addField(field.make(source, made))
    for source in _METHODS:
        made.addMethod(method.make(source, made))
    made.toClass(neighbour)
