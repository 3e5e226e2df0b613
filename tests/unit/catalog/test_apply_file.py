"""Applying configuration files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, text

from cdc_runner.catalog.credentials import Keyring, generate_key, parse_key
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.entry_fields import ConfigurationProblems
from cdc_runner.catalog.file_format import parse_configuration
from cdc_runner.catalog.models import Destination, NotificationChannel, Pipeline, PipelineMetadata, Source
from cdc_runner.catalog.pipelines import load_pipeline, set_status
from cdc_runner.catalog.plan import Plan
from cdc_runner.catalog.secret_source import read_secrets
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.notification.channel import open_channel
from cdc_runner.services.apply import apply_path
from cdc_runner.services.presets import list_presets

pytestmark = pytest.mark.pg

SHOP = """
sources:
  shop:
    host: 127.0.0.1
    port: 5434
    database: shop
    username: rosetta
    password: {env: SHOP_PASSWORD}
    tables: ["public.*", "sales.order_*"]
destinations:
  warehouse:
    type: postgres
    host: 127.0.0.1
    port: 5435
    database: warehouse
    username: rosetta
    password: {file: warehouse.secret}
    schema: shop
  lake:
    type: snowflake
    account: ACME-EU1
    user: ROSETTA
    private_key: {file: key.p8}
    private_key_passphrase: {env: RSA_PASSPHRASE}
    database: ANALYTICS
    schema: SHOP
pipelines:
  shop_to_warehouse:
    source: shop
    status: START
    settings: {load_workers: 2, drop_columns: true}
    destinations:
      - destination: warehouse
        tables:
          - table: public.orders
            target: orders_eu
            tags: [finance, PII]
          - table: "sales.*"
"""

Apply = Callable[..., Plan]


@pytest.fixture
def apply(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apply:
    monkeypatch.setenv("CREDENTIAL_ENCRYPTION_KEY", generate_key())
    monkeypatch.setenv("SHOP_PASSWORD", "canary-shop")
    monkeypatch.setenv("RSA_PASSPHRASE", "canary-passphrase")
    (tmp_path / "warehouse.secret").write_text("canary-warehouse\n")
    (tmp_path / "key.p8").write_text("canary-key line one\ncanary-key line two\n")

    def run(content: str, **options: bool) -> Plan:
        path = tmp_path / "rosetta.yaml"
        path.write_text(content, encoding="utf-8")
        return apply_path(engine, path, **options)

    return run


def actions(plan: Plan) -> dict[str, str]:
    return {f"{change.kind} {change.name}": change.action for change in plan.changes}


def everything(engine: Engine) -> list[object]:
    tables = ("sources", "destinations", "pipelines", "pipeline_destinations", "pipelines_destination_table_sync")
    with engine.connect() as connection:
        return [connection.execute(text(f"SELECT * FROM {table} ORDER BY id")).all() for table in tables]


def test_a_file_is_created_then_unchanged(engine: Engine, apply: Apply):
    assert set(actions(apply(SHOP)).values()) == {"create"}
    before = everything(engine)
    again = apply(SHOP)
    assert set(actions(again).values()) == {"nothing"}
    assert not again.changes_anything
    assert everything(engine) == before


def test_what_was_applied_is_what_the_engine_reads(engine: Engine, apply: Apply):
    apply(SHOP)
    with session_scope(engine) as session:
        pipeline = session.query(Pipeline).one()
        assert session.query(PipelineMetadata).one().status == "PAUSED"
        spec = load_pipeline(session, pipeline.id)
    assert pipeline.status == "START"
    assert spec.source.slot == spec.source.publication == "rosetta_shop"
    assert spec.source.tables == ("public.*", "sales.order_*")
    assert spec.source.capture_engine == "debezium"
    assert spec.source.address.password.get_secret_value() == "canary-shop"
    (destination,) = spec.destinations
    assert destination.address.password.get_secret_value() == "canary-warehouse"
    assert [(sync.table, sync.target) for sync in destination.syncs] == [
        ("public.orders", "orders_eu"),
        ("sales.*", None),
    ]
    assert (spec.settings.load_workers, spec.settings.drop_columns) == (2, True)


def test_a_multi_line_secret_keeps_its_lines(engine: Engine, apply: Apply):
    apply(SHOP)
    keyring = Keyring.from_environment()
    from cdc_runner.catalog.pipelines import destination_place

    with session_scope(engine) as session:
        lake = session.query(Destination).filter_by(name="lake").one()
        stored = lake.secrets["private_key"]
        plain = keyring.decrypt(stored, destination_place(lake.id, "private_key")).get_secret_value()
    assert plain == "canary-key line one\ncanary-key line two"


def test_a_dry_run_shows_the_same_and_changes_nothing(engine: Engine, apply: Apply):
    empty = everything(engine)
    dry = apply(SHOP, dry_run=True)
    assert everything(engine) == empty
    assert actions(dry) == actions(apply(SHOP))


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


def test_differences_are_named_by_field(apply: Apply, engine: Engine):
    apply(SHOP)
    plan = apply(SHOP.replace("port: 5434", "port: 6000").replace("target: orders_eu", "target: orders_asia"))
    fields = {change.name: [str(one) for one in change.fields] for change in plan.changes if change.fields}
    assert fields["shop"] == ["port: 5434 -> 6000"]
    assert "orders_eu" in fields["shop_to_warehouse/warehouse"][0]
    assert "orders_asia" in fields["shop_to_warehouse/warehouse"][0]
    with session_scope(engine) as session:
        pipeline = session.query(Pipeline).one()
        declared = [sync.table_name_target for sync in pipeline.destinations[0].table_syncs]
    assert sorted(declared, key=str) == [None, "orders_asia"]


def test_tags_follow_the_file(apply: Apply, engine: Engine):
    def tags() -> list[str]:
        with session_scope(engine) as session:
            syncs = session.query(Pipeline).one().destinations[0].table_syncs
            return [tag.tag for sync in syncs for tag in sync.tags]

    apply(SHOP)
    assert tags() == ["finance", "pii"]
    apply(SHOP.replace("[finance, PII]", "[finance]"))
    assert tags() == ["finance"]
    apply(SHOP.replace("            tags: [finance, PII]\n", ""))
    assert tags() == []
    apply(SHOP)
    moved = SHOP.replace("            tags: [finance, PII]\n", "") + "            tags: [finance, new]\n"
    apply(moved)
    assert tags() == ["finance", "new"]
    with session_scope(engine) as session:
        known = list(session.scalars(text("SELECT tag FROM tbltag_list ORDER BY 1")))
    assert known == ["finance", "new"], "what no table carries is gone"


def test_presets_follow_the_file_and_stay_without_the_field(apply: Apply, engine: Engine):
    def presets() -> dict[str, list[str]]:
        with session_scope(engine) as session:
            return {row["preset"]: row["tables"] for row in list_presets(session, "shop")}

    apply(SHOP)
    line = '    tables: ["public.*", "sales.order_*"]\n'
    with_presets = SHOP.replace(line, line + "    presets: {core: [public.orders, 'sales.*'], rest: [public.items]}\n")
    plan = apply(with_presets)
    assert {(change.name, change.action) for change in plan.changes if change.kind == "preset"} == {
        ("shop/core", "create"), ("shop/rest", "create")}  # fmt: skip
    assert presets() == {"core": ["public.orders", "sales.*"], "rest": ["public.items"]}
    assert not apply(with_presets).changes_anything
    fewer = with_presets.replace(", rest: [public.items]", "").replace("'sales.*'", "sales.x")
    plan = apply(fewer)
    assert {(change.name, change.action) for change in plan.changes if change.kind == "preset"} == {
        ("shop/core", "change"), ("shop/rest", "left alone")}  # fmt: skip
    assert presets() == {"core": ["public.orders", "sales.x"], "rest": ["public.items"]}
    assert not apply(SHOP).changes_anything
    assert len(presets()) == 2
    with pytest.raises(ConfigurationProblems, match=r"sources\.shop\.presets\.core\[0\]: must be schema\.table"):
        parse_configuration(with_presets.replace("public.orders, 'sales.*'", "'a.b.c'"))


ONLY_SHOP = "sources:" + SHOP.partition("sources:")[2].partition("destinations:")[0]


def test_what_the_file_does_not_name_is_left_alone_and_said(engine: Engine, apply: Apply):
    apply(SHOP)
    plan = apply(ONLY_SHOP)
    assert actions(plan) == {
        "source shop": "nothing",
        "pipeline shop_to_warehouse": "left alone",
        "destination warehouse": "left alone",
        "destination lake": "left alone",
    }
    assert "left alone" in plan.as_text()


def test_prune_removes_and_lists_the_slot_that_it_cannot_drop(engine: Engine, apply: Apply):
    apply(SHOP.replace("port: 5434", "port: 1").replace("status: START", "status: PAUSE"))
    before = everything(engine)
    shop = ONLY_SHOP.replace("port: 5434", "port: 1")
    assert actions(apply(shop, prune=True, dry_run=True))["pipeline shop_to_warehouse"] == "remove"
    assert everything(engine) == before
    plan = apply(shop, prune=True)
    assert actions(plan)["destination warehouse"] == "remove"
    assert "SELECT pg_drop_replication_slot('rosetta_shop')" in plan.left_over[0]
    assert 'DROP PUBLICATION "rosetta_shop"' in plan.left_over[1]
    with session_scope(engine) as session:
        assert session.query(Pipeline).count() == session.query(Destination).count() == 0
        assert session.query(Source).count() == 1


def test_prune_refuses_what_runs(engine: Engine, apply: Apply):
    apply(SHOP)
    before = everything(engine)
    with pytest.raises(RosettaError, match="pause shop_to_warehouse"):
        apply(ONLY_SHOP, prune=True)
    assert everything(engine) == before


def test_a_status_that_is_not_given_is_left_as_it_is(engine: Engine, apply: Apply):
    without = SHOP.replace("    status: START\n", "")
    apply(without)
    with session_scope(engine) as session:
        pipeline = session.query(Pipeline).one()
        assert pipeline.status == "PAUSE"
        set_status(session, pipeline.id, "START")
    assert not apply(without).changes_anything
    apply(SHOP.replace("status: START", "status: PAUSE"))
    with session_scope(engine) as session:
        assert session.query(Pipeline).one().status == "PAUSE"


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


def test_the_slot_of_a_used_source_does_not_change(engine: Engine, apply: Apply):
    apply(SHOP)
    before = everything(engine)
    with pytest.raises(RosettaError, match=r"sources\.shop\.slot: cannot change while pipeline shop_to_warehouse"):
        apply(SHOP.replace("    database: shop\n", "    database: shop\n    slot: another\n"))
    assert everything(engine) == before


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("{env: SHOP_PASSWORD}", "canary-literal"), r"sources\.shop\.password: a literal secret is refused"),
        (("{env: SHOP_PASSWORD}", "{env: NOT_SET_HERE}"), r"sources\.shop\.password: .*NOT_SET_HERE is not set"),
        (
            ("{file: warehouse.secret}", "{file: nowhere}"),
            r"destinations\.warehouse\.password: the file nowhere cannot",
        ),
        (("port: 5434", "port: abc"), r"sources\.shop\.port: must be a whole number"),
        (("port: 5434", "port: '5434'"), r"sources\.shop\.port: must be a whole number"),
        (("port: 5434", "port: 70000"), r"sources\.shop\.port: must be less than"),
        (("host: 127.0.0.1", "host: ''"), r"sources\.shop\.host: must not be empty"),
        (("username: rosetta", "user: rosetta"), r"sources\.shop\.user: is not a known field"),
        (("status: START", "status: REFRESH"), r"pipelines\.shop_to_warehouse\.status: must be"),
        (("status: START", "statuss: START"), r"pipelines\.shop_to_warehouse\.statuss: is not a known field"),
        (("source: shop", "source: shopp"), r"pipelines\.shop_to_warehouse\.source: no source 'shopp'"),
        (("destination: warehouse", "destination: x"), r"destinations\[0\]\.destination: no destination 'x'"),
        (("load_workers: 2", "load_workers: -2"), r"settings\.load_workers: .* is not between 1 and 64"),
        (("load_workers: 2", "load_workers: 2000000000"), r"settings\.load_workers: .* is not between 1 and 64"),
        (("load_workers: 2", "wal_error_megabytes: 2"), r"settings\.wal_error_megabytes: no setting"),
        (
            ("target: orders_eu", "filter: \"region = 'EU' OR now() > at\""),
            r"\.filter: function current_time",
        ),
        (("target: orders_eu", 'filter: "\' OR 1=1 --"'), r"tables\[0\]\.filter: it cannot be read"),
        (("target: orders_eu", "mask: {email: sha}"), r"tables\[0\]\.mask: a mask is hash, null"),
        (("target: orders_eu", "mode: delete"), r"tables\[0\]\.mode: must be"),
        (('table: "sales.*"', 'table: "sales.*"\n            exclude: [a]'), r"tables\[1\]: a pattern of several"),
        (("target: orders_eu", "custom_sql: SELECT 1"), r"tables\[0\]\.custom_sql: FROM must name the table"),
        (("target: orders_eu", "custom_sql: SELECT * FROM read_csv('/x')"), r"\.custom_sql: table function read_csv"),
        (
            ("target: orders_eu", "custom_sql: SELECT id FROM orders_eu\n            filter: id = 1"),
            "takes none of filter",
        ),
        (("target: orders_eu", "key: [id]"), "key belongs to custom_sql"),
        (('table: "sales.*"', 'table: "sales.*"\n            target: x'), r"tables\[1\]: a pattern of several tables"),
        (('table: "sales.*"', "table: sales.orders_eu"), r"tables\[1\]: .*tables\[0\] writes to the same target"),
        (('"public.*"', '"a.b.c"'), r"sources\.shop\.tables\[0\]: must be schema.table"),
        (("  shop:\n", "  shop; DROP TABLE x:\n"), "the name may hold letters"),
        (("    host: 127.0.0.1\n    port: 5434", "    host: a\n    host: b\n    port: 5434"), "a key is given twice"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_changed(
    engine: Engine, apply: Apply, change: tuple[str, str], problem: str
):
    empty = everything(engine)
    content = SHOP.replace(*change, 1)
    assert content != SHOP
    with pytest.raises(RosettaError, match=problem) as caught:
        apply(content)
    assert "canary" not in str(caught.value)
    assert everything(engine) == empty


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigurationProblems) as caught:
        parse_configuration(SHOP.replace("port: 5434", "port: x").replace("status: START", "status: GO"))
    assert len(caught.value.problems) == 2


def test_two_pipelines_of_one_source_and_two_sources_of_one_slot_are_refused(engine: Engine, apply: Apply):
    second = SHOP + "  second:\n    source: shop\n    destinations: [{destination: lake}]\n"
    with pytest.raises(RosettaError, match="one pipeline feeds many destinations"):
        apply(second)
    twin = """
sources:
  twin: {host: 127.0.0.1, port: 5434, database: d, username: u, password: {env: SHOP_PASSWORD}, slot: rosetta_shop}
"""
    with pytest.raises(RosettaError, match=r"sources\.shop\.slot: .*uses this slot on the same server"):
        apply(twin + SHOP.replace("sources:", ""))
    apply(SHOP)
    with pytest.raises(RosettaError, match=r"sources\.twin\.slot: source shop uses this slot"):
        apply(twin)
    with pytest.raises(RosettaError, match="uses this source already"):
        apply("pipelines: {second: {source: shop, destinations: [{destination: lake}]}}")


@pytest.mark.parametrize("content", ["", "- 1", "a: [", "x: \x01", "sources: 1", "&a [*a]"])
def test_what_is_not_a_configuration_is_refused(content: str):
    with pytest.raises(ConfigurationProblems):
        parse_configuration(content)


@pytest.mark.parametrize(
    "password", ["it's", 'say "x"', "back\\slash", "@/:?#%&=", "two words ", "Kata Sandi é 世界", "x" * 4096]
)
def test_secrets_of_any_text_are_read_as_they_are(tmp_path: Path, password: str):
    file = parse_configuration(ONLY_SHOP)
    assert (
        read_secrets(file, tmp_path, {"SHOP_PASSWORD": password})[("sources", "shop", "password")].get_secret_value()
        == password
    )


CHANNELS = """
notifications:
  ops:
    type: webhook
    url: {env: HOOK_URL}
    signing_secret: {file: warehouse.secret}
  phone:
    type: telegram
    bot_token: {env: BOT_TOKEN}
    chat_id: -100123
    minimum_severity: ERROR
"""


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_URL", "https://hooks.example.com/canary-url")
    monkeypatch.setenv("BOT_TOKEN", "123:canary-token")


def channels(engine: Engine) -> list[tuple[str, str, bool]]:
    query = "SELECT name, minimum_severity, enabled FROM notification_channels ORDER BY name"
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_channels_are_created_changed_and_found_unchanged(engine: Engine, apply: Apply, hooks, monkeypatch):
    assert actions(apply(CHANNELS)) == {"channel ops": "create", "channel phone": "create"}
    assert channels(engine) == [("ops", "WARNING", True), ("phone", "ERROR", True)]
    assert not apply(CHANNELS).changes_anything
    monkeypatch.setenv("BOT_TOKEN", "124:canary-token")
    plan = apply(CHANNELS.replace("minimum_severity: ERROR", "enabled: false"))
    told = plan.as_text()
    assert "canary" not in told + repr(plan)
    assert "    bot_token: (secret) changed" in told and "    enabled: true -> false" in told
    assert channels(engine) == [("ops", "WARNING", True), ("phone", "WARNING", False)]
    with session_scope(engine) as session:
        row = session.scalars(select(NotificationChannel).where(NotificationChannel.name == "phone")).one()
        opened = open_channel(row, Keyring.from_environment())
    assert (opened.secret("bot_token"), opened.config["chat_id"]) == ("124:canary-token", "-100123")


def test_channels_are_pruned_only_by_a_file_that_has_channels(engine: Engine, apply: Apply, hooks):
    apply(CHANNELS)
    apply(SHOP, prune=True, dry_run=True)
    apply("destinations: {}", prune=True)
    assert len(channels(engine)) == 2
    without = CHANNELS[: CHANNELS.index("  phone:")]
    assert actions(apply(without))["channel phone"] == "left alone"
    assert actions(apply(without, prune=True))["channel phone"] == "remove"
    assert [name for name, _, _ in channels(engine)] == ["ops"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("{env: BOT_TOKEN}", "123:canary-literal"), r"notifications\.phone\.bot_token: a literal secret is refused"),
        (("{env: BOT_TOKEN}", "{env: NOT_SET_HERE}"), r"notifications\.phone\.bot_token: .*NOT_SET_HERE is not set"),
        (("type: telegram", "type: pager"), r"notifications\.phone\.type: must be webhook, telegram.* or apprise"),
        (("    type: telegram\n", ""), r"notifications\.phone\.type: is missing"),
        (("chat_id: -100123", "chat_id: nowhere"), r"notifications\.phone\.chat_id: "),
        (("chat_id: -100123", "chat: 1"), r"notifications\.phone\.chat: is not a known field"),
        (("minimum_severity: ERROR", "minimum_severity: LOUD"), r"notifications\.phone\.minimum_severity: must be"),
        (
            ("chat_id: -100123", "chat_id: 1\n    api_url: http://10.0.0.1"),
            r"notifications\.phone: .*must begin with https",
        ),
        (("  ops:", "  o ps:"), "the name may hold letters"),
    ],
)
def test_a_wrong_channel_is_named_and_nothing_is_changed(
    engine: Engine, apply: Apply, hooks, change: tuple[str, str], problem: str
):
    content = CHANNELS.replace(*change, 1)
    assert content != CHANNELS
    with pytest.raises(RosettaError, match=problem) as caught:
        apply(content)
    assert "canary" not in str(caught.value)
    assert channels(engine) == []
    apply(CHANNELS)
    with pytest.raises(RosettaError, match=r"notifications\.ops\.type: cannot change from webhook to slack"):
        apply("notifications: {ops: {type: slack, url: {env: HOOK_URL}}}")


def test_custom_sql_for_snowflake_is_refused_by_name(apply: Apply) -> None:
    entry = '      - destination: lake\n        tables: [{table: public.orders, custom_sql: "SELECT id FROM orders"}]\n'
    with pytest.raises(RosettaError, match=r"destination lake, table public\.orders: custom_sql is for PostgreSQL"):
        apply(SHOP + entry)
