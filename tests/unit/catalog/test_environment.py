from __future__ import annotations

from pathlib import Path

import pytest

from cdc_runner.catalog.database import catalog_url, parse_catalog_url
from cdc_runner.catalog.environment import read_environment
from cdc_runner.errors import ErrorKind, RosettaError


def test_defaults():
    environment = read_environment({})
    assert environment.home == Path(".rosetta")
    assert environment.health_port == 8001
    assert environment.config_database_url is None
    assert not environment.debug


def test_an_empty_variable_is_not_set():
    environment = read_environment({"CONFIG_DATABASE_URL": "", "ROSETTA_HOME": "", "ROSETTA_HEALTH_PORT": ""})
    assert environment == read_environment({})


def test_old_keys_are_separated_by_commas_or_spaces():
    environment = read_environment({"CREDENTIAL_ENCRYPTION_KEYS_OLD": "a, b c"})
    assert [key.get_secret_value() for key in environment.old_encryption_keys] == ["a", "b", "c"]


@pytest.mark.parametrize("port", ["abc", "0", "70000", "-1", "8001.5", "٣"])
def test_a_wrong_port_is_refused(port: str):
    with pytest.raises(RosettaError, match="ROSETTA_HEALTH_PORT"):
        read_environment({"ROSETTA_HEALTH_PORT": port})


def test_a_missing_url_is_named():
    with pytest.raises(RosettaError, match="CONFIG_DATABASE_URL is not set") as caught:
        catalog_url(read_environment({}))
    assert caught.value.kind is ErrorKind.CONFIG_DATABASE_UNAVAILABLE


@pytest.mark.parametrize(
    "text", ["canary", "mysql://u:canary@h/d", "postgresql://u:canary@h", "postgresql://h:canary/d"]
)
def test_a_wrong_url_is_refused_and_not_repeated(text: str):
    with pytest.raises(RosettaError) as caught:
        parse_catalog_url(text)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_every_usual_scheme_is_taken(scheme: str):
    url = parse_catalog_url(f"{scheme}://user:p%40ss@host:5433/rosetta")
    assert (url.drivername, url.host, url.port, url.password) == ("postgresql+psycopg2", "host", 5433, "p@ss")
