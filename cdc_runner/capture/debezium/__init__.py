"""Change capture through the Debezium engine, in this process."""
