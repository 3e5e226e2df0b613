"""Asset checks that can be executed from the Dagster pages."""
