"""Environment variables that point the rest of Rosetta at embedded servers."""

from __future__ import annotations

from rosetta_dagster.embedded.binaries import java_home
from rosetta_dagster.embedded.private_file import credential_key
from rosetta_dagster.embedded.state import StackState


def environment(state: StackState) -> dict[str, str]:
    """Return the variables for the servers in a state; the credential key is made when the home has none.

    Values hold secrets: give them to child processes as environment, never as arguments, and log none.
    """
    variables = {
        "ROSETTA_HOME": str(state.home),
        "CREDENTIAL_ENCRYPTION_KEY": credential_key(state.home).get_secret_value(),
        "JAVA_HOME": str(java_home()),
    }
    config = state.postgres.get("config")
    if config is not None:
        variables |= {
            "CONFIG_DATABASE_URL": config.url("rosetta").get_secret_value(),
            "DAGSTER_PG_HOST": config.host,
            "DAGSTER_PG_PORT": str(config.port),
            "DAGSTER_PG_USER": config.username,
            "DAGSTER_PG_PASSWORD": config.password.get_secret_value(),
            "DAGSTER_PG_DB": "dagster",
        }
    if state.redis is not None:
        variables["REDIS_URL"] = state.redis.url.get_secret_value()
    return variables
