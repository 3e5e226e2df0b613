"""Jobs: one a verb, launched from the Dagster pages or by `dagster job launch`."""
