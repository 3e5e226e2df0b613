"""Custom SQL of a table sync: what a SELECT must look like so that its target can be kept right, change by change."""
