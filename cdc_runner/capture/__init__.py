"""The source side: tables, publication, slot, snapshot and change stream."""
