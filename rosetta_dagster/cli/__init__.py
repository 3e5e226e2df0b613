"""The command line `rosetta`: one of three equal doors to the config database.

Commands are imported when they are called, so that `rosetta --help` is fast and none of them loads Dagster for nothing.
"""
