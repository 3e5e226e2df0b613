"""Conditions on the rows of a table sync: as SQL text or in builder form, checked, and written as SQL of PostgreSQL."""
