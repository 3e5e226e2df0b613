"""Sensors: what looks after the replication every few seconds. A body decides nothing; it reads, asks and reports."""
