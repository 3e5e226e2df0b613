"""Pre-flight: everything that a pipeline needs on its source and destinations, checked without changing anything.

examine_pipeline(session, name)   a Report: findings with level, what, and what to do, with the SQL statement
"""
