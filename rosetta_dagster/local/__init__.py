"""Everything of Rosetta on this machine: embedded servers, the runner, Dagster.

LocalRosetta(home).start() / .stop()   what `rosetta up` and `rosetta down` do
DagsterServer                          code location, daemon and webserver, as one process group
"""
