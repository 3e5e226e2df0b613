"""Rosetta's control plane on Dagster: assets, checks, jobs, sensors and the command line."""
