"""`rosetta backfill` without a runner: what is queued, shown and cancelled, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rosetta_dagster.cli import main as command_line
from tests.support.catalog import KEY, store_pipeline
from tests.support.servers import Database

pytestmark = pytest.mark.pg


def test_queue_of_a_pipeline(
    config_database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIG_DATABASE_URL", config_database.url())
    monkeypatch.setenv("CREDENTIAL_ENCRYPTION_KEY", KEY)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = command_line.main(["backfill", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    def found(*arguments: str) -> Any:
        code, out, err = call(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    assert call("list")[0] == 0
    store_pipeline(config_database.url(), "shop", ("orders", "lines"))
    code, _, err = call("start", "shop")
    assert (code, "give --table, or --all" in err) == (2, True)
    code, _, err = call("start", "shop", "--table", "public.orders", "--filter", "true; DROP TABLE x")
    assert (code, "one condition" in err) == (2, True)
    assert call("start", "shop", "--table", "public.absent")[0] == 2
    assert call("start", "shop", "--all", "--destination", "nowhere")[0] == 2
    assert found("list") == []

    form = '{"column": "amount", "op": ">", "value": 5}'
    outcome = found("start", "shop", "--table", "public.ord*", "--filter", form, "--priority", "7")
    (one,) = outcome["queued"]
    assert (one["table"], one["status"], one["priority"], one["mode"]) == ("public.orders", "PENDING", 7, "BACKFILL")
    assert "> 5" in one["filter"]
    outcome = found("start", "shop", "--all", "--mode", "resync")
    assert ([row["table"] for row in outcome["queued"]], len(outcome["already_open"])) == (["public.lines"], 1)
    assert found("show", str(one["id"]))["destination"] == "shop-warehouse"
    assert call("show", "999999")[0] == 2
    assert {row["table"] for row in found("list", "shop", "--open")} == {"public.orders", "public.lines"}
    code, out, _ = call("list", "shop")
    assert (code, "RESYNC" in out) == (0, True)

    assert call("cancel", "shop")[0] == 2
    assert [row["status"] for row in found("cancel", "shop", "--table", "public.orders")] == ["CANCELLED"]
    assert len(found("cancel", "shop", "--all")) == 1
    assert call("cancel", "shop", "--all")[0] == 2
    assert found("list", "shop", "--open") == []
    assert len(found("list", "shop")) == 2
