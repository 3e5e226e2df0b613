"""The Snowflake destination: Snowpipe Streaming into landing tables, merged into targets by tasks."""
