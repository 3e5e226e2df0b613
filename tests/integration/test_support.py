"""The fixtures themselves: a fault fixture that does nothing would let every fault test pass."""

from __future__ import annotations

import time

import psycopg2
import pytest

from tests.support.waiting import wait_for

pytestmark = pytest.mark.pg


def test_a_database_is_empty_and_of_this_test_alone(source_database, target_database):
    assert source_database.execute("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == [
        (0,)
    ]
    source_database.execute("CREATE TABLE t (i int)")
    assert target_database.execute("SELECT to_regclass('t')") == [(None,)]
    assert source_database.server.execute("SHOW wal_level") == [("logical",)]


def test_a_database_with_an_active_slot_and_a_session_is_dropped(source_server):
    database = source_server.create_database("with_slot")
    session = database.connect()
    database.execute("SELECT pg_create_logical_replication_slot('left_over', 'pgoutput')")
    source_server.drop_database("with_slot")
    assert source_server.execute("SELECT 1 FROM pg_database WHERE datname = 'with_slot'") == []
    assert source_server.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = 'left_over'") == []
    session.close()


def test_redis_is_durable_and_found_empty(redis_server, redis_client):
    assert redis_client.dbsize() == 0
    assert redis_client.config_get("appendonly") == {"appendonly": "yes"}
    redis_client.set("k", "v")


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_proxy_ends_open_connections_and_takes_new_ones(source_server, tcp_proxy, fault):
    proxy = tcp_proxy(source_server.host, source_server.port)
    address = {"host": proxy.host, "port": proxy.port, "user": source_server.username, "dbname": "postgres"}
    connection = psycopg2.connect(**address, password=source_server.password)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        getattr(proxy, fault)()
        with pytest.raises(psycopg2.OperationalError):
            cursor.execute("SELECT 1")
    connection.close()
    psycopg2.connect(**address, password=source_server.password).close()


def test_proxy_delays_and_stalls(source_server, tcp_proxy):
    proxy = tcp_proxy(source_server.host, source_server.port)
    connection = psycopg2.connect(
        host=proxy.host,
        port=proxy.port,
        user=source_server.username,
        password=source_server.password,
        dbname="postgres",
    )
    with connection.cursor() as cursor:
        proxy.delay(0.2)
        began = time.monotonic()
        cursor.execute("SELECT 1")
        assert time.monotonic() - began >= 0.4
        proxy.heal()
        proxy.stall()
        before = proxy.forwarded_bytes
        with pytest.raises(psycopg2.OperationalError, match="timeout expired"):
            psycopg2.connect(host=proxy.host, port=proxy.port, user="x", dbname="x", connect_timeout=2)
        assert proxy.forwarded_bytes == before
        proxy.heal()
        cursor.execute("SELECT 2")
        assert cursor.fetchone() == (2,)
    connection.close()


def test_proxy_refuses_new_connections_and_keeps_open_ones(source_server, tcp_proxy):
    proxy = tcp_proxy(source_server.host, source_server.port)
    address = {"host": proxy.host, "port": proxy.port, "user": source_server.username, "dbname": "postgres"}
    connection = psycopg2.connect(**address, password=source_server.password)
    proxy.refuse()
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(**address, password=source_server.password)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    connection.close()
    wait_for(lambda: proxy.connection_count == 0, 10, "the proxy to notice the end")


def test_own_servers_can_be_killed_and_come_back_on_the_same_port(own_servers):
    server = own_servers("target").postgres("target")
    server.execute("CREATE TABLE kept AS SELECT 1 AS i")
    server.kill()
    server.start()
    assert server.execute("SELECT i FROM kept") == [(1,)]
