"""Asks the Dagster webserver to load the definitions again."""

from __future__ import annotations

import os

import httpx

from cdc_runner.errors import ErrorKind, RosettaError

LOCATION = "rosetta"
URL_VARIABLE = "ROSETTA_DAGSTER_URL"
_TIMEOUT = httpx.Timeout(30.0, connect=3.0)
_RELOAD = """
mutation Reload($location: String!) {
  reloadRepositoryLocation(repositoryLocationName: $location) {
    __typename
    ... on WorkspaceLocationEntry { locationOrLoadError { __typename ... on PythonError { message } } }
    ... on PythonError { message }
  }
}
"""


def webserver_url() -> str | None:
    """Return the address of the webserver, or None when this installation names none."""
    return os.environ.get(URL_VARIABLE) or None


def reload_definitions(url: str) -> None:
    """Have the code location loaded again; the webserver and the daemon follow.

    Raises:
        RosettaError: the webserver is unreachable, slow, or could not load the definitions.
    """
    try:
        answer = httpx.post(
            f"{url.rstrip('/')}/graphql",
            json={"query": _RELOAD, "variables": {"location": LOCATION}},
            timeout=_TIMEOUT,
            # A proxy of the environment is for the world outside, and must not carry control traffic.
            trust_env=False,
        )
        answer.raise_for_status()
        result = answer.json()["data"]["reloadRepositoryLocation"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise RosettaError(
            ErrorKind.INTERNAL, f"the Dagster webserver did not reload the definitions: {type(error).__name__}"
        ) from None
    loaded = (result.get("locationOrLoadError") or {}).get("__typename")
    if result["__typename"] != "WorkspaceLocationEntry" or loaded != "RepositoryLocation":
        raise RosettaError(ErrorKind.INTERNAL, "the Dagster webserver could not load the definitions again")
