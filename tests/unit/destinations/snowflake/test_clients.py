"""Keys and tokens, statements that take their time, requests within their limits."""

from __future__ import annotations

import itertools
import random

import duckdb
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import SecretStr

from cdc_runner.destinations.snowflake.auth import (
    KeyPairTokens,
    account_url,
    expiry_of,
    load_private_key,
    token_account,
)
from cdc_runner.destinations.snowflake.pace import Budget
from cdc_runner.destinations.snowflake.pack import Packer
from cdc_runner.destinations.snowflake.rows import MAX_COMPRESSED_BYTES, RowWriter, Shape
from cdc_runner.destinations.snowflake.sql import SqlSession, literal
from cdc_runner.destinations.snowflake.streaming import Rows
from cdc_runner.destinations.snowflake.transport import Transport
from cdc_runner.destinations.snowflake.types import TEXT, TypeRules, carried, widens
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import Column
from cdc_runner.spec import SnowflakeAddress
from tests.support.snowflake_events import ITEM, address_of, events
from tests.support.snowflake_key import private_key
from tests.support.snowflake_server import SnowflakeServer


def test_keys_are_read_encrypted_or_not_and_never_shown():
    plain, encrypted = SecretStr(private_key()), SecretStr(private_key("canary"))
    assert load_private_key(plain, None).key_size == 2048
    assert load_private_key(SecretStr(private_key().replace("\n", "\\n")), None).key_size == 2048
    assert load_private_key(encrypted, SecretStr("canary")).key_size == 2048
    curve = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for key, passphrase, reason in (
        (encrypted, None, "give private_key_passphrase"),
        (encrypted, SecretStr("canary-wrong"), "the passphrase is wrong"),
        (plain, SecretStr("canary"), "not encrypted"),
        (SecretStr("canary"), None, "not a PEM"),
        (SecretStr(curve.decode()), None, "not an RSA key"),
    ):
        with pytest.raises(RosettaError, match=reason) as caught:
            load_private_key(key, passphrase)
        assert caught.value.kind is ErrorKind.CREDENTIAL_UNREADABLE
        assert "canary" not in str(caught.value)


def test_a_token_is_kept_until_it_is_about_to_expire():
    now = [1_000_000.0]
    address = SnowflakeAddress("xy12345.eu-west-1", "me", SecretStr(private_key()), "D", "S")
    tokens = KeyPairTokens(address, clock=lambda: now[0])
    first = tokens.token()
    assert expiry_of(first) == 1_003_480
    now[0] += 3_000
    assert tokens.token() == first
    now[0] += 300
    assert tokens.token() != first
    assert token_account(address.account) == "XY12345"


def test_hosts_have_dashes_and_are_reached_by_https():
    def url(account: str, host: str | None) -> str:
        return account_url(SnowflakeAddress(account, "U", SecretStr(""), "D", "S", host=host))

    assert url("My_Org-Acc", None) == "https://my-org-acc.snowflakecomputing.com"
    assert url("A", "a.privatelink.example") == "https://a.privatelink.example"
    with pytest.raises(RosettaError, match="https"):
        url("A", "http://example.org")


def test_a_slow_statement_is_asked_for_and_cancelled_after_its_limit(snowflake: SnowflakeServer):
    address = address_of(snowflake)
    transport = Transport(sleep=lambda seconds: None)
    now = [0.0]

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    session = SqlSession(address, KeyPairTokens(address), transport, clock=lambda: now[0], sleep=pass_time)
    snowflake.polls = 4
    assert session.run("SELECT 1 AS one, NULL AS nothing", "count").rows == [["1", None]]
    snowflake.polls = 10_000
    with pytest.raises(RosettaError, match="cancelled") as caught:
        session.run("SELECT 1", "count", limit_seconds=30)
    assert caught.value.kind is ErrorKind.DESTINATION_UNAVAILABLE
    assert len(snowflake.cancelled) == 1
    transport.close()


def test_a_refused_statement_is_named_without_its_text(snowflake: SnowflakeServer):
    address = address_of(snowflake)
    transport = Transport(sleep=lambda seconds: None)
    session = SqlSession(address, KeyPairTokens(address), transport)
    with pytest.raises(RosettaError, match="could not look at canaries") as caught:
        session.run("SELECT 'secret' FROM nowhere", "look at canaries")
    assert "secret" not in str(caught.value)
    snowflake.violations.clear()
    snowflake.fail("sql", "503", "429")
    assert session.run("SELECT 2", "count").value == "2"
    transport.close()


def test_an_answer_of_something_on_the_way_is_no_result(snowflake: SnowflakeServer):
    address = address_of(snowflake)
    transport = Transport(sleep=lambda seconds: None)
    session = SqlSession(address, KeyPairTokens(address), transport)
    snowflake.fail("sql", "proxy")
    with pytest.raises(RosettaError, match=r"did not answer when asked to count \(what came is no JSON") as caught:
        session.run("SELECT 1", "count")
    assert caught.value.kind is ErrorKind.DESTINATION_UNAVAILABLE
    assert session.run("SELECT 2", "count").value == "2"
    transport.close()


def test_a_wait_that_the_service_asks_for_is_kept(snowflake: SnowflakeServer):
    waits: list[float] = []
    address = address_of(snowflake)
    transport = Transport(sleep=waits.append)
    snowflake.fail("sql", "429", "503")
    SqlSession(address, KeyPairTokens(address), transport).run("SELECT 1", "count")
    assert waits == [0.02, 0.01]
    transport.close()


def test_a_budget_lets_a_burst_through_and_then_so_many_a_second():
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    budget = Budget(10, 10, clock=lambda: now[0], sleep=sleep)
    for _ in range(35):
        budget.take()
    assert sum(slept) == pytest.approx(2.5)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_requests_are_cut_by_size_and_stay_in_order(compression: str):
    chance = random.Random(5)
    rows = [("u", None, str(number), chance.randbytes(200).hex(), "1.00") for number in range(3_000)]
    change = events(ITEM, 10, rows)
    writer = RowWriter(compression, request_bytes=100_000)
    columns = {name: name.upper() for name in ITEM.stream_names}
    made = list(writer.requests(Shape(ITEM, columns), change.rows, None))
    assert sum(one.count for one in made) == 3_000
    assert all(one.raw_bytes <= 100_000 and len(one.body) < one.raw_bytes for one in made)
    assert all(before.last < after.first for before, after in itertools.pairwise(made))
    above = made[10].last
    rest = list(writer.requests(Shape(ITEM, columns), change.rows, above))
    assert sum(one.count for one in rest) == 3_000 - sum(one.count for one in made[:11])
    writer.close()


def test_a_row_beyond_the_limit_is_refused_by_position():
    writer = RowWriter("zstd")
    huge = random.Random(1).randbytes(MAX_COMPRESSED_BYTES).hex()
    columns = {name: name.upper() for name in ITEM.stream_names}
    with pytest.raises(RosettaError, match="at most 4000000") as caught:
        list(writer.requests(Shape(ITEM, columns), events(ITEM, 10, [("u", None, "1", huge, "1.00")]).rows, None))
    assert caught.value.kind is ErrorKind.DESTINATION_ROW_REJECTED
    writer.close()


def test_lines_of_a_copy_become_requests_of_whole_lines():
    sent: list[Rows] = []
    packer = Packer("gzip", sent.append, lambda row: f"{row:06d}")
    data = b"".join(b'{"n":%d,"v":"%s"}\n' % (n, b"x" * 500) for n in range(20_000))
    for start in range(0, len(data), 65_537):
        packer.write(data[start : start + 65_537])
    packer.flush()
    assert packer.rows == 20_000
    assert [one.first for one in sent[1:]] == [f"{int(one.last) + 1:06d}" for one in sent[:-1]]
    assert all(one.raw_bytes <= 3_800_000 for one in sent)


def _column(text: str, name: str, kind: str = "b", category: str = "U") -> Column:
    return Column("c", text, name, type_kind=kind, type_category=category)


@pytest.mark.parametrize(
    ("column", "type_"),
    [
        (_column("integer", "int4"), "NUMBER(10,0)"),
        (_column("numeric(10,2)", "numeric"), "NUMBER(10,2)"),
        (_column("numeric(5,-2)", "numeric"), "NUMBER(7,0)"),
        (_column("numeric(2,5)", "numeric"), "NUMBER(5,5)"),
        (_column("numeric(50,5)", "numeric"), "VARCHAR"),
        (_column("numeric", "numeric"), "VARCHAR"),
        (Column("c", "integer[]", "_int4", type_category="A", element="int4"), "VARIANT"),
        (Column("c", "inet[]", "_inet", type_category="A", element="inet"), "VARCHAR"),
        (_column("mood", "mood", "e"), "VARCHAR"),
        (_column("interval", "interval"), "VARCHAR"),
        (_column("jsonb", "jsonb"), "VARIANT"),
    ],
)
def test_types_are_carried_exactly_or_as_text(column: Column, type_: str):
    assert carried(column).type == type_


@pytest.mark.parametrize(
    ("element", "text", "json"),
    [
        ("int4", "{1,NULL,-3}", "[1,null,-3]"),
        ("int4", "[2:3]={1,2}", "[1,2]"),
        ("float8", "{1e+20,NaN,-Infinity,0.5}", '[1e+20,"NaN","-Infinity",0.5]'),
        ("bool", "{t,f,NULL}", "[true,false,null]"),
        ("text", '{a,NULL,"NULL","b,{c}","x\\"y\\\\z",""}', '["a",null,"NULL","b,{c}","x\\"y\\\\z",""]'),
        ("text", "{{a,b},{c,d}}", '[["a","b"],["c","d"]]'),
        ("text", '{"a\nb",é😀}', '["a\\nb","é😀"]'),
        ("timestamptz", '{"2024-01-01 00:00:00+00"}', '["2024-01-01 00:00:00+00"]'),
        ("int4", "{}", "[]"),
        ("int4", None, None),
    ],
)
def test_arrays_become_json(element: str, text: str | None, json: str | None):
    how = carried(Column("c", f"{element}[]", f"_{element}", type_category="A", element=element))
    assert how.landed is not None
    assert duckdb.execute(f"SELECT {how.landed('c')} FROM (SELECT ?::VARCHAR AS c)", [text]).fetchall() == [(json,)]


def test_arrays_are_of_the_type_that_is_asked_for():
    column = Column("c", "integer[]", "_int4", type_category="A", element="int4")
    types = [carried(column, rules=TypeRules(arrays=one)).type for one in ("variant", "array", "text")]
    assert types == ["VARIANT", "ARRAY", "VARCHAR"]
    assert carried(column, rules=TypeRules(arrays="array")).value("x") == "CAST(PARSE_JSON(x) AS ARRAY)"
    assert carried(column, identifying=True, rules=TypeRules(arrays="array")).type == "VARCHAR"


def test_spatial_values_go_as_their_own_type_when_asked():
    rules = TypeRules(spatial="native")
    column = _column("geometry", "geometry")
    assert carried(column).type == "VARCHAR" and carried(column, rules=rules).type == "GEOMETRY"
    how = carried(_column("geography", "geography"), rules=rules)
    assert how.fits is not None
    flat, high, bare = "0101000020E6100000", "01010000A0E6100000", "010100000000000000"
    checks = ", ".join(how.fits(f"'{one}'") for one in (flat, high, bare))
    assert duckdb.execute(f"SELECT {checks}").fetchall() == [(True, False, False)]


def test_a_number_may_get_more_digits_and_nothing_else():
    small, large = carried(_column("numeric(10,2)", "numeric")), carried(_column("numeric(12,2)", "numeric"))
    assert widens(small, large) and not widens(large, small)
    assert not widens(small, carried(_column("numeric(12,3)", "numeric"))) and not widens(small, TEXT)
    assert widens(TEXT, carried(_column("text", "text")))


def test_literals_escape_what_snowflake_escapes():
    assert literal("it's \\n") == "'it''s \\\\n'"
    assert literal(None) == "NULL"
    assert pa.Codec.is_available("zstd")
