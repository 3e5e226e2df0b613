"""The Debezium capture engine, run inside the pipeline process through JPype."""
