"""Assets of the Dagster pages, made from the catalog: one a replicated table, one a source table, one a pipeline."""
