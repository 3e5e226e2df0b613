"""The config database: what is to be replicated, how far it is, and what was observed.

    environment   the one place that reads environment variables
    database      engine and sessions
    migrations    applies migrations/*.sql, once each
    models        SQLAlchemy models of every table
    repositories  look-ups by natural key
    settings      typed settings with bounds and defaults
    credentials   AES-256-GCM of stored secrets
    pipelines     the specification of a pipeline; the one function that changes its status
    reporting     what a pipeline process writes back
    leases        who runs a pipeline

Times are UTC, LSNs are integers; errors are RosettaErrors.
"""
