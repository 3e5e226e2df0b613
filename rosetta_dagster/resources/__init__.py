"""What the sensors, jobs and checks work with: the config database, the runner process, the Dagster instance."""
