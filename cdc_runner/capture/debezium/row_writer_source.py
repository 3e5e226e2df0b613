"""The classes of `row_writer` in the Java that Javassist compiles: no generics, no autoboxing, no `for` over lists."""

from __future__ import annotations

PREFIX = 1
"""Bytes before the first tuple mark of a message: no relation is named in it."""

_PACKAGE = "io.debezium.connector.postgresql"
TABLE = f"{_PACKAGE}.RosettaTable"
WRITER = f"{_PACKAGE}.RosettaRowWriter"

TABLE_FIELDS = (
    "public int number;",
    "public org.apache.kafka.connect.data.Schema schema;",
    "public String schemaName;",
    "public String tableName;",
    # Null for records that are no rows.
    "public String[] names;",
    "public org.apache.kafka.connect.data.Field[] fields;",
    "public boolean transaction;",
    "public boolean listed;",
    "public byte[] data;",
    "public int size;",
    "public int start;",
    "public int[] lengths;",
    "public int count;",
    # Number of the transaction, order of its first message and how many, for each run.
    "public int[] runs;",
    "public int runCount;",
    "public long runOf;",
    # Number of the last transaction and of messages in it, shared by all schemas that a table has had.
    "public long[] counted;",
    # Whether the last message is a delete of which the create is still to come.
    "public boolean rekeyed;",
    # Large values that are in files: their places in `data`, the texts that name the files, and bytes of the last
    # message.
    "public java.util.ArrayList holePlaces = new java.util.ArrayList();",
    "public java.util.ArrayList holeTexts = new java.util.ArrayList();",
    "public int elsewhere;",
)

TABLE_METHODS = (
    """
    public void room(int more) {
        long wanted = (long) this.size + (long) more;
        if (wanted > (long) this.data.length) {
            // Twice the room while that is little: a large value fills the heap with what it does not need.
            long spare = Math.min((long) this.data.length, 1048576L);
            long grown = Math.max(wanted, Math.min((long) this.data.length + spare, 2147483600L));
            byte[] larger = new byte[(int) grown];
            System.arraycopy(this.data, 0, larger, 0, this.size);
            this.data = larger;
        }
    }
    """,
    """
    public void begin(int kind, org.apache.kafka.connect.data.Struct value, long serial) {
        if (this.data == null) {
            this.data = new byte[8192];
            this.lengths = new int[64];
            this.runs = new int[6];
        }
        if (this.count == this.lengths.length) this.lengths = java.util.Arrays.copyOf(this.lengths, this.count * 2);
        this.room(1);
        this.start = this.size;
        this.data[this.size] = (byte) kind;
        this.size = this.size + 1;
        this.rekeyed = false;
        if (this.counted[0] != serial) {
            this.counted[0] = serial;
            this.counted[1] = 0L;
        }
        this.counted[1] = this.counted[1] + 1L;
        if (this.runCount == 0 || this.runOf != serial) {
            if (this.runCount * 3 == this.runs.length)
                this.runs = java.util.Arrays.copyOf(this.runs, this.runCount * 6);
            this.runOf = serial;
            this.runs[this.runCount * 3] = value.getStruct("source").getInt64("txId").intValue();
            this.runs[this.runCount * 3 + 1] = (int) this.counted[1];
            this.runs[this.runCount * 3 + 2] = 0;
            this.runCount = this.runCount + 1;
        }
        this.runs[this.runCount * 3 - 1] = this.runs[this.runCount * 3 - 1] + 1;
    }
    """,
    """
    public void end() {
        this.lengths[this.count] = this.size - this.start + this.elsewhere;
        this.elsewhere = 0;
        this.count = this.count + 1;
    }
    """,
    # A value that is no text fails the event: nothing is guessed. A text holds a byte of the server's in each character
    # (`lean`), so it is copied as it is, and a large one let go at once: the record is held until its batch is done.
    # One that is in a file (`large_values`) stays there, unless the message is to be whole.
    """
    public void row(int mark, org.apache.kafka.connect.data.Struct row, String unchanged, boolean whole) {
        int width = this.names.length;
        this.room(3 + 5 * width);
        byte[] out = this.data;
        int place = this.size;
        out[place] = (byte) mark;
        out[place + 1] = (byte) (width >> 8);
        out[place + 2] = (byte) width;
        place = place + 3;
        for (int number = 0; number < width; number++) {
            String text = (String) row.getWithoutDefault(this.names[number]);
            if (text == null) {
                out[place] = (byte) 110;
                place = place + 1;
            } else if (text.equals(unchanged)) {
                out[place] = (byte) 117;
                place = place + 1;
            } else {
                int length = io.debezium.util.RosettaLargeValues.size(text);
                boolean inside = whole || !io.debezium.util.RosettaLargeValues.kept(text);
                this.size = place;
                this.room((inside ? length : 0) + 5 * (width - number));
                out = this.data;
                out[place] = (byte) 116;
                out[place + 1] = (byte) (length >> 24);
                out[place + 2] = (byte) (length >> 16);
                out[place + 3] = (byte) (length >> 8);
                out[place + 4] = (byte) length;
                place = place + 5;
                if (inside) {
                    io.debezium.util.RosettaLargeValues.copy(text, length, out, place);
                    place = place + length;
                    if (length > 65536) row.put(this.fields[number], null);
                } else {
                    this.holePlaces.add((Object) Integer.valueOf(place));
                    this.holeTexts.add((Object) text);
                    this.elsewhere = this.elsewhere + length;
                }
            }
        }
        this.size = place;
    }
    """,
    # Forget what was taken, but for the delete that waits for its create.
    """
    public void clear() {
        this.holePlaces.clear();
        this.holeTexts.clear();
        if (this.rekeyed) {
            int kept = this.lengths[this.count - 1];
            System.arraycopy(this.data, this.size - kept, this.data, 0, kept);
            this.start = 0;
            this.size = kept;
            this.lengths[0] = kept;
            this.count = 1;
            this.runs[0] = this.runs[this.runCount * 3 - 3];
            this.runs[1] = (int) this.counted[1];
            this.runs[2] = 1;
            this.runCount = 1;
        } else {
            this.size = 0;
            this.count = 0;
            this.runCount = 0;
            this.listed = false;
            // Many tables with room for a large batch each would fill the heap.
            if (this.data.length > 65536) this.data = null;
        }
    }
    """,
)

WRITER_FIELDS = (
    "private java.util.IdentityHashMap tables = new java.util.IdentityHashMap();",
    "private java.util.HashMap counted = new java.util.HashMap();",
    f"private {TABLE} last;",
    "private java.util.ArrayList active = new java.util.ArrayList();",
    "public String unchanged;",
    "public boolean stamped;",
    "private long serial = 1L;",
    # Of what was written last: places and texts of large values that are to be put in.
    "public java.util.ArrayList holePlaces = new java.util.ArrayList();",
    "public java.util.ArrayList holeTexts = new java.util.ArrayList();",
)

WRITER_CONSTRUCTOR = """
    public RosettaRowWriter(String unchanged, boolean stamped) {
        this.unchanged = unchanged;
        this.stamped = stamped;
    }
"""

WRITER_METHODS = (
    # By identity: a changed table has another schema, be it equal to one that was there before.
    f"""
    private {TABLE} table(org.apache.kafka.connect.data.Struct value) {{
        org.apache.kafka.connect.data.Schema schema = value.schema();
        {TABLE} found = this.last;
        if (found != null && found.schema == schema) return found;
        found = ({TABLE}) this.tables.get(schema);
        if (found == null) {{
            found = new {TABLE}();
            found.number = this.tables.size();
            found.schema = schema;
            if (schema.field("after") != null && schema.field("source") != null) {{
                org.apache.kafka.connect.data.Struct source = value.getStruct("source");
                found.schemaName = source.getString("schema");
                found.tableName = source.getString("table");
                java.util.List name = java.util.Arrays.asList(new Object[] {{found.schemaName, found.tableName}});
                found.counted = (long[]) this.counted.get(name);
                if (found.counted == null) {{
                    found.counted = new long[2];
                    this.counted.put(name, found.counted);
                }}
                java.util.List fields = schema.field("after").schema().fields();
                String[] names = new String[fields.size()];
                found.fields = new org.apache.kafka.connect.data.Field[names.length];
                for (int number = 0; number < names.length; number++) {{
                    found.fields[number] = (org.apache.kafka.connect.data.Field) fields.get(number);
                    names[number] = found.fields[number].name();
                }}
                found.names = names;
            }} else {{
                found.transaction = schema.field("status") != null;
            }}
            this.tables.put(schema, found);
        }}
        this.last = found;
        return found;
    }}
    """,
    f"""
    public {TABLE} described(int number) {{
        java.util.Iterator all = this.tables.values().iterator();
        while (all.hasNext()) {{
            {TABLE} one = ({TABLE}) all.next();
            if (one.number == number) return one;
        }}
        return null;
    }}
    """,
    # Place in the list, end LSN, time of the commit in milliseconds and number, for each transaction that ends.
    f"""
    public long[] ends(java.util.List records) {{
        long[] found = new long[16];
        int count = 0;
        int size = records.size();
        for (int place = 0; place < size; place++) {{
            Object any = ((org.apache.kafka.connect.source.SourceRecord) records.get(place)).value();
            if (any != null) {{
                org.apache.kafka.connect.data.Struct value = (org.apache.kafka.connect.data.Struct) any;
                {TABLE} table = this.table(value);
                if (table.transaction && "END".equals(value.getString("status"))) {{
                    if (count + 4 > found.length) found = java.util.Arrays.copyOf(found, found.length * 2);
                    String id = value.getString("id");
                    int colon = id.indexOf(58);
                    found[count] = (long) place;
                    found[count + 1] = Long.parseLong(id.substring(id.lastIndexOf(58) + 1));
                    found[count + 2] = value.getInt64("ts_ms").longValue();
                    found[count + 3] = Long.parseLong(id.substring(0, colon));
                    count = count + 4;
                }}
            }}
        }}
        return java.util.Arrays.copyOf(found, count);
    }}
    """,
    f"""
    private void row({TABLE} table, org.apache.kafka.connect.data.Struct value,
                     org.apache.kafka.connect.source.SourceRecord record) {{
        int op = (int) value.getString("op").charAt(0);
        if (op == 99 && table.rekeyed && record.headers().lastWithName("__debezium.oldkey") != null) {{
            // c: the second half of an update of the key
            table.data[table.start] = (byte) 85;
            table.row(78, value.getStruct("after"), this.unchanged, true);
            table.lengths[table.count - 1] = table.size - table.start;
            table.rekeyed = false;
            return;
        }}
        if (table.rekeyed) throw new IllegalStateException("a changed key has no new row");
        if (!table.listed) {{
            table.listed = true;
            this.active.add(table);
        }}
        if (op == 99 || op == 114) {{
            table.begin(73, value, this.serial);
            table.row(78, value.getStruct("after"), this.unchanged, false);
            table.end();
        }} else if (op == 117) {{
            table.begin(85, value, this.serial);
            org.apache.kafka.connect.data.Struct before = value.getStruct("before");
            if (before != null) table.row(79, before, this.unchanged, false);
            table.row(78, value.getStruct("after"), this.unchanged, false);
            table.end();
        }} else if (op == 100) {{
            table.begin(68, value, this.serial);
            boolean rekeyed = record.headers().lastWithName("__debezium.newkey") != null;
            table.row(79, value.getStruct("before"), this.unchanged, rekeyed);
            table.end();
            table.rekeyed = rekeyed;
        }} else if (op == 116) {{
            table.begin(84, value, this.serial);
            table.room(1);
            table.size = table.size + 1;
            table.end();
        }} else {{
            throw new IllegalStateException("an event of an unknown kind");
        }}
    }}
    """,
    f"""
    private void records(java.util.List records, int from, int to) {{
        for (int place = from; place < to; place++) {{
            org.apache.kafka.connect.source.SourceRecord record =
                (org.apache.kafka.connect.source.SourceRecord) records.get(place);
            Object any = record.value();
            if (any != null) {{
                org.apache.kafka.connect.data.Struct value = (org.apache.kafka.connect.data.Struct) any;
                {TABLE} table = this.table(value);
                if (table.names != null) this.row(table, value, record);
                // The end of a transaction; what follows belongs to another one.
                else if (table.transaction) this.serial = this.serial + 1L;
            }}
        }}
    }}
    """,
    """
    private static int number(byte[] out, int place, int number) {
        out[place] = (byte) number;
        out[place + 1] = (byte) (number >> 8);
        out[place + 2] = (byte) (number >> 16);
        out[place + 3] = (byte) (number >> 24);
        return place + 4;
    }
    """,
    f"""
    public byte[] write(java.util.List records, int from, int to) {{
        this.holePlaces.clear();
        this.holeTexts.clear();
        this.records(records, from, to);
        int tables = this.active.size();
        long bytes = 4L;
        for (int one = 0; one < tables; one++) {{
            {TABLE} table = ({TABLE}) this.active.get(one);
            int kept = table.rekeyed ? table.lengths[table.count - 1] : 0;
            int runs = this.stamped ? 12 * table.runCount : 0;
            bytes = bytes + 32L + (long) (4 * table.count) + (long) runs + (long) (table.size - kept);
        }}
        byte[] out = new byte[(int) bytes];
        int place = number(out, 0, tables) + 12 * tables;
        for (int one = 0; one < tables; one++) {{
            {TABLE} table = ({TABLE}) this.active.get(one);
            int count = table.count;
            int size = table.size;
            int runs = this.stamped ? table.runCount : 0;
            if (table.rekeyed) {{
                count = count - 1;
                size = size - table.lengths[count];
                if (runs > 0) {{
                    int last = table.runs[table.runCount * 3 - 1] - 1;
                    table.runs[table.runCount * 3 - 1] = last;
                    if (last == 0) runs = runs - 1;
                }}
            }}
            int began = place;
            place = number(out, place, table.number);
            place = number(out, place, {PREFIX});
            place = number(out, place, count);
            place = number(out, place, runs);
            for (int run = 0; run < runs * 3; run++) place = number(out, place, table.runs[run]);
            for (int message = 0; message < count; message++) place = number(out, place, table.lengths[message]);
            System.arraycopy(table.data, 0, out, place, size);
            for (int hole = 0; hole < table.holePlaces.size(); hole++) {{
                int inside = ((Integer) table.holePlaces.get(hole)).intValue();
                this.holePlaces.add((Object) Integer.valueOf(place + inside));
                this.holeTexts.add(table.holeTexts.get(hole));
            }}
            place = number(out, place + size, 0);
            int head = number(out, 4 + 12 * one, table.number);
            head = number(out, head, count);
            number(out, head, place - began);
            table.clear();
        }}
        for (int one = tables - 1; one >= 0; one--)
            if (!(({TABLE}) this.active.get(one)).listed) this.active.remove(one);
        return out;
    }}
    """,
)
