"""Rosetta's replication engine: capture, shaping and destinations. Never imports Dagster."""
