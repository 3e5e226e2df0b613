"""Credentials in configuration files: read, kept in cipher, and with another key."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from cdc_runner.catalog.credentials import Keyring, generate_key, parse_key
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.file_format import parse_configuration
from cdc_runner.catalog.models import Destination, Pipeline
from cdc_runner.catalog.pipelines import load_pipeline
from cdc_runner.catalog.secret_source import read_secrets
from cdc_runner.errors import ErrorKind, RosettaError
from tests.unit.catalog.conftest import ONLY_SHOP, SHOP, Apply, actions, everything

pytestmark = pytest.mark.pg


def test_a_multi_line_secret_keeps_its_lines(engine: Engine, apply: Apply):
    apply(SHOP)
    keyring = Keyring.from_environment()
    from cdc_runner.catalog.pipelines import destination_place

    with session_scope(engine) as session:
        lake = session.query(Destination).filter_by(name="lake").one()
        stored = lake.secrets["private_key"]
        plain = keyring.decrypt(stored, destination_place(lake.id, "private_key")).get_secret_value()
    assert plain == "canary-key line one\ncanary-key line two"


def test_secrets_are_never_in_a_plan_and_never_stored_in_clear(
    engine: Engine, apply: Apply, monkeypatch: pytest.MonkeyPatch
):
    plans = [apply(SHOP)]
    monkeypatch.setenv("SHOP_PASSWORD", "canary-other")
    plans.append(apply(SHOP))
    changed = [change for change in plans[1].changes if change.action == "change"]
    assert [str(one) for change in changed for one in change.fields] == ["password: (secret) changed"]
    assert actions(apply(SHOP))["source shop"] == "nothing"
    for plan in plans:
        assert "canary" not in plan.as_text()
        assert "canary" not in repr(plan.as_json())
    assert "canary" not in repr(everything(engine))


def test_another_key_is_refused_and_credentials_can_be_replaced(
    engine: Engine, apply: Apply, monkeypatch: pytest.MonkeyPatch
):
    apply(SHOP)
    before = everything(engine)
    key = generate_key()
    monkeypatch.setenv("CREDENTIAL_ENCRYPTION_KEY", key)
    with pytest.raises(RosettaError) as caught:
        apply(SHOP)
    assert caught.value.kind is ErrorKind.CREDENTIAL_UNREADABLE
    assert everything(engine) == before
    apply(SHOP, replace_credentials=True)
    with session_scope(engine) as session:
        spec = load_pipeline(session, session.query(Pipeline).one().id, Keyring(parse_key(key)))
    assert spec.source.address.password.get_secret_value() == "canary-shop"


def test_applying_after_a_rotation_stores_with_the_new_key(
    engine: Engine, apply: Apply, monkeypatch: pytest.MonkeyPatch
):
    import os

    apply(SHOP)
    old = os.environ["CREDENTIAL_ENCRYPTION_KEY"]
    monkeypatch.setenv("CREDENTIAL_ENCRYPTION_KEYS_OLD", old)
    monkeypatch.setenv("CREDENTIAL_ENCRYPTION_KEY", generate_key())
    apply(SHOP)
    monkeypatch.delenv("CREDENTIAL_ENCRYPTION_KEYS_OLD")
    assert not apply(SHOP).changes_anything


@pytest.mark.parametrize(
    "password", ["it's", 'say "x"', "back\\slash", "@/:?#%&=", "two words ", "Kata Sandi é 世界", "x" * 4096]
)
def test_secrets_of_any_text_are_read_as_they_are(tmp_path: Path, password: str):
    file = parse_configuration(ONLY_SHOP)
    assert (
        read_secrets(file, tmp_path, {"SHOP_PASSWORD": password})[("sources", "shop", "password")].get_secret_value()
        == password
    )
