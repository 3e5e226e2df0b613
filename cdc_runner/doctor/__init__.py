"""Pre-flight: everything that a pipeline needs on its source and destinations, checked without changing anything.

read_subjects(session, name)   what to examine
examine_subject(subject)       a Report: findings with level, what, and what to do, with the SQL statement
"""
