"""Copy tables again beside the running stream, exactly.

    rows        what is read of a source table, through the sync's shape
    window      one snapshot of the source, and the watch of the target that goes with it
    merge       a chunk of rows into the target, leaving out what the stream has touched since the snapshot
    extra       rows of the target that the source does not have
    turn        one backfill for as long as one window lasts

A chunk is read under the snapshot of a temporary slot, whose position S is exact, into a temporary table beside the
target. When the destination has applied all up to S, the rows that differ are written in short transactions under the
lock of the position, without the keys that the journal says were touched after S. Chunks are rows in the config
database; what was interrupted is read again under another snapshot, which does no harm.
"""
