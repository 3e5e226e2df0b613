"""Names that change, identities that do not, and configuration files that say the old or the new name."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.entry_fields import ConfigurationProblems
from cdc_runner.catalog.models import Pipeline
from cdc_runner.catalog.notifications import record_event
from cdc_runner.catalog.pipelines import load_pipeline
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.services.rename import rename_destination, rename_pipeline, rename_source
from tests.unit.catalog.conftest import SHOP, Apply, actions

pytestmark = pytest.mark.pg

_PAIRS = "SELECT string_agg(name || '=' || identity, ' ' ORDER BY name) FROM"
NAMES = f"SELECT (SELECT name FROM sources), ({_PAIRS} pipelines), ({_PAIRS} destinations)"


def _names(engine: Engine) -> tuple[str, ...]:
    with engine.connect() as connection:
        return tuple(connection.execute(text(NAMES)).one())


def _generation(session: Session) -> int:
    return int(session.execute(text("SELECT generation FROM pipelines")).scalar_one())


def test_names_change_and_identities_do_not(engine: Engine, apply: Apply) -> None:
    apply(SHOP)
    with session_scope(engine) as session:
        before = _generation(session)
        old = "shop_to_warehouse"
        told = rename_pipeline(session, old, "sales")
        assert told == {"kind": "pipeline", "name": "sales", "before": old, "identity": old}
        assert _generation(session) == before + 1
        told = rename_source(session, "shop", "orders")
        assert (told["slot"], told["publication"], told["pipelines"]) == ("rosetta_shop", "rosetta_shop", ["sales"])
        told = rename_destination(session, "warehouse", "dwh")
        assert (told["identity"], told["pipelines"]) == ("warehouse", ["sales"])
        assert _generation(session) == before + 3
        pipeline = session.query(Pipeline).one()
        spec = load_pipeline(session, pipeline.id)
    assert _names(engine) == ("orders", "sales=shop_to_warehouse", "dwh=warehouse lake=lake")
    assert (spec.name, spec.identity, spec.source.name) == ("sales", "shop_to_warehouse", "orders")
    (destination,) = spec.destinations
    assert (destination.name, destination.identity) == ("dwh", "warehouse")


@pytest.mark.parametrize(
    ("new_name", "kind", "says"),
    [
        ("a b", ErrorKind.CONFIG_INVALID, "letters, digits"),
        ("x" * 64, ErrorKind.CONFIG_INVALID, "letters, digits"),
        ("", ErrorKind.CONFIG_INVALID, "letters, digits"),
        ("lake", ErrorKind.CONFLICT, "a destination lake exists already"),
        ("warehouse", ErrorKind.CONFLICT, "has this name already"),
    ],
)
def test_names_that_are_refused(engine: Engine, apply: Apply, new_name: str, kind: ErrorKind, says: str) -> None:
    apply(SHOP)
    with pytest.raises(RosettaError, match=says) as caught, session_scope(engine) as session:
        rename_destination(session, "warehouse", new_name)
    assert caught.value.kind is kind
    assert _names(engine)[2] == "lake=lake warehouse=warehouse"


def test_the_old_name_is_not_found_and_the_error_says_the_new_one(engine: Engine, apply: Apply) -> None:
    apply(SHOP)
    with session_scope(engine) as session:
        rename_pipeline(session, "shop_to_warehouse", "sales")
        with pytest.raises(RosettaError, match="created as shop_to_warehouse is called sales now") as caught:
            rename_pipeline(session, "shop_to_warehouse", "other")
    assert caught.value.kind is ErrorKind.NOT_FOUND


def test_an_old_name_is_taken_with_an_identity_of_its_own(engine: Engine, apply: Apply) -> None:
    apply(SHOP)
    long = "d" * 63
    with session_scope(engine) as session:
        rename_destination(session, "lake", long)
        session.execute(text("INSERT INTO destinations (name, type, config) VALUES ('lake', 'snowflake', '{}')"))
        rename_destination(session, "lake", "pond")
        session.execute(text("INSERT INTO destinations (name, type, config) VALUES ('lake', 'snowflake', '{}')"))
        session.execute(text("INSERT INTO destinations (name, type, config) VALUES ('river', 'snowflake', '{}')"))
    assert _names(engine)[2] == f"{long}=lake lake=lake-3 pond=lake-2 river=river warehouse=warehouse"
    with session_scope(engine) as session:
        session.execute(text("INSERT INTO destinations (name, type, config) VALUES (:n, 'snowflake', '{}')"),
                        {"n": "e" * 63})  # fmt: skip
        rename_destination(session, "e" * 63, "short")
        session.execute(text("INSERT INTO destinations (name, type, config) VALUES (:n, 'snowflake', '{}')"),
                        {"n": "e" * 63})  # fmt: skip
        found = session.execute(text("SELECT identity FROM destinations WHERE name = :n"), {"n": "e" * 63}).scalar_one()
    assert found == "e" * 61 + "-2"


@pytest.mark.parametrize("table", ["pipelines", "destinations"])
def test_the_database_lets_nobody_change_an_identity(engine: Engine, apply: Apply, table: str) -> None:
    apply(SHOP)
    with pytest.raises(IntegrityError, match="positions are kept under it"), engine.begin() as connection:
        connection.execute(text(f"UPDATE {table} SET identity = 'other' WHERE name <> 'lake'"))


def test_a_file_with_the_new_names_finds_everything_as_it_is(engine: Engine, apply: Apply) -> None:
    apply(SHOP)
    with session_scope(engine) as session:
        rename_pipeline(session, "shop_to_warehouse", "sales")
        rename_source(session, "shop", "orders")
        rename_destination(session, "warehouse", "dwh")
    renamed = SHOP.replace("shop_to_warehouse:", "sales:").replace("\n  shop:\n", "\n  orders:\n")
    renamed = renamed.replace("source: shop", "source: orders").replace("\n  warehouse:\n", "\n  dwh:\n")
    plan = apply(renamed.replace("destination: warehouse", "destination: dwh"))
    assert set(actions(plan).values()) == {"nothing"}
    # Slot and publication are not in the file: they are not those that the new name would give.
    with engine.connect() as connection:
        assert connection.execute(text("SELECT slot_name, publication_name FROM sources")).one() == (
            "rosetta_shop", "rosetta_shop")  # fmt: skip


def test_a_file_with_an_old_name_is_refused_and_says_the_new_one(engine: Engine, apply: Apply) -> None:
    apply(SHOP)
    with session_scope(engine) as session:
        rename_pipeline(session, "shop_to_warehouse", "sales")
    with pytest.raises(ConfigurationProblems, match="pipeline sales, which was created as shop_to_warehouse"):
        apply(SHOP)
    with session_scope(engine) as session:
        rename_pipeline(session, "sales", "shop_to_warehouse")
        rename_source(session, "shop", "orders")
    with pytest.raises(ConfigurationProblems, match="source orders uses this slot"):
        apply(SHOP)
    with session_scope(engine) as session:
        rename_source(session, "orders", "shop")
        rename_destination(session, "warehouse", "dwh")
    with pytest.raises(
        ConfigurationProblems, match="warehouse of this pipeline was renamed: write its present name, dwh"
    ):
        apply(SHOP)
    assert _names(engine) == ("shop", "shop_to_warehouse=shop_to_warehouse", "dwh=warehouse lake=lake")


def test_open_conditions_go_with_the_name(engine: Engine, apply: Apply) -> None:
    apply(SHOP)
    with session_scope(engine) as session:
        for key in (
            "pipeline_error:shop_to_warehouse", "dead_letters:shop_to_warehouse/warehouse/shop.a", "wal:shop",
            "destination:shop_to_warehouse/warehouse", "pipeline_error:shop_to_warehouse2", "pipeline_error:sales",
            "wal:shop_to_warehouse", "credits:lake/read",
        ):  # fmt: skip
            record_event(session, key, "ERROR", key.partition(":")[0], f"of {key}")
        rename_pipeline(session, "shop_to_warehouse", "sales")
        rename_destination(session, "warehouse", "dwh")
        rename_destination(session, "lake", "pond")
        rename_source(session, "shop", "orders")
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT key_notification, message FROM notification_log WHERE status = 'OPEN'"))
        found = {key: message for key, message in rows}
        events = connection.execute(text("SELECT message FROM notification_log WHERE kind = 'renamed' ORDER BY id"))
        assert list(events.scalars())[:1] == ["pipeline shop_to_warehouse is called sales now"]
    assert found == {
        "pipeline_error:sales": "of pipeline_error:shop_to_warehouse",
        "dead_letters:sales/dwh/shop.a": "of dead_letters:shop_to_warehouse/warehouse/shop.a",
        "destination:sales/dwh": "of destination:shop_to_warehouse/warehouse",
        "pipeline_error:shop_to_warehouse2": "of pipeline_error:shop_to_warehouse2",
        "wal:shop_to_warehouse": "of wal:shop_to_warehouse",
        "wal:orders": "of wal:shop",
        "credits:pond/read": "of credits:lake/read",
    }
