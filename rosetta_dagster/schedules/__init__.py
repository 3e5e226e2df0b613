"""Schedules: daily and hourly work that is worth the record of a run."""
