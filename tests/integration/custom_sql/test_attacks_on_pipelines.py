"""The attacks on a preview, through custom SQL and filters of a pipeline: refused when the file is read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cdc_runner.custom_sql.query import CustomSqlRefused, parse_query
from cdc_runner.row_filter.sql import FilterRefused, parse_filter
from cdc_runner.sandbox.session import SandboxFailed, SandboxSession, SessionLimits
from tests.integration.sandbox.test_attacks import ENDED, ORDERS, REFUSED


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxSession]:
    session = SandboxSession(SessionLimits(seconds=4.0, memory_megabytes=128))
    yield session
    session.close()


@pytest.mark.parametrize("sql", [*REFUSED, *ENDED], ids=range(len(REFUSED) + len(ENDED)))
def test_an_attack_is_refused_when_it_is_saved(sandbox: SandboxSession, sql: str) -> None:
    with pytest.raises(CustomSqlRefused):
        parse_query(sql, sandbox)
    for condition in (sql, f"id = ({sql.rstrip(';')})"):
        try:
            written = parse_filter(condition).sql
        except FilterRefused:
            continue
        # CHECKPOINT and VACUUM are names that a column may have.
        assert written.strip("()") in (f'"{sql.lower()}"', f'"id" = ("{sql.lower()}"'), written


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT id, repeat('x', 2000000000) AS x FROM orders",
        "SELECT id, (SELECT content FROM read_text('/etc/passwd')) AS x FROM orders",
        "SELECT id, getvariable('x') AS x FROM orders",
        "SELECT o.id FROM orders o JOIN '/etc/passwd' p ON p.id = o.id",
    ],
)
def test_so_is_one_inside_a_statement_that_could_be_kept_right(sandbox: SandboxSession, sql: str) -> None:
    with pytest.raises(CustomSqlRefused):
        parse_query(sql, sandbox)


def test_a_tree_that_was_not_checked_is_checked_before_it_runs(sandbox: SandboxSession) -> None:
    """What runs comes from the config database, where somebody may have written it past the check."""
    statement = parse_query("SELECT id, region FROM orders", sandbox).statement
    statement["node"]["from_table"]["table_name"] = "/etc/passwd"
    with pytest.raises(SandboxFailed, match="not among those it may read"):
        sandbox.run([statement], [ORDERS])


def test_what_takes_too_long_is_killed_and_the_next_request_is_answered(sandbox: SandboxSession) -> None:
    grown = "region"
    for _ in range(5):
        grown = f"replace({grown}, 'E', '{'E' * 500}')"
    slow = parse_query(f"SELECT id, length({grown}) AS s FROM orders", sandbox)
    with pytest.raises(SandboxFailed, match=r"took longer|memory"):
        sandbox.run([slow.statement], [ORDERS])
    plain = parse_query("SELECT id, region FROM orders", sandbox)
    rows = sandbox.run([plain.statement], [ORDERS])[0].rows
    assert rows is not None and rows.to_pylist()[0] == {"c0": "1", "c1": "EU"}
