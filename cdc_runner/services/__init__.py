"""What the operator can do, shared by every door: command line, Dagster jobs, configuration file.

Each function takes a session of the config database and changes it in that session's transaction.
"""
