"""PostgreSQL's own logical decoding protocol (`pgoutput`), read without Java."""
