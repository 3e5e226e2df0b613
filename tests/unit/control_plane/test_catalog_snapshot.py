from __future__ import annotations

from pathlib import Path

from cdc_runner.errors import ErrorKind, RosettaError
from rosetta_dagster.assets.snapshot import (
    CatalogSnapshot,
    PipelineRow,
    current_snapshot,
    load_stored_snapshot,
    snapshot_of_rows,
)

ROW = PipelineRow(name="shop_copy", source="shop", source_database="shop", capture_engine="debezium")
GOOD = CatalogSnapshot(pipelines=(ROW,), fingerprint="abc")


def away() -> CatalogSnapshot:
    raise RosettaError(ErrorKind.CONFIG_DATABASE_UNAVAILABLE, "the config database is not usable: refused")


def test_outage_gives_the_last_good_copy_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "home" / "catalog.json"
    assert current_snapshot(lambda: GOOD, path) == GOOD
    during = current_snapshot(away, path)
    assert during.pipelines == (ROW,)
    assert during.problem == "the config database is not usable: refused"
    # The copy on disk stays good: the next start during the outage needs it too.
    assert load_stored_snapshot(path) == GOOD


def test_outage_before_the_first_read_gives_an_empty_catalog(tmp_path: Path) -> None:
    snapshot = current_snapshot(away, tmp_path / "catalog.json")
    assert snapshot.pipelines == ()
    assert snapshot.problem


def test_unreadable_copy_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "catalog.json"
    for content in ("", "{", '{"pipelines": 5}', '{"unknown": 1}'):
        path.write_text(content)
        assert load_stored_snapshot(path) is None
        assert current_snapshot(away, path).pipelines == ()


def test_home_that_cannot_be_written_does_not_stop_the_pages(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    snapshot = current_snapshot(lambda: GOOD, tmp_path / "file" / "catalog.json")
    assert snapshot.pipelines == (ROW,)
    assert snapshot.problem and "not written" in snapshot.problem


def test_columns_of_an_unknown_form_are_left_out() -> None:
    pipelines = [{"name": "p", "source": "s", "source_database": "d", "capture_engine": "debezium"}]
    base: dict[str, object] = {
        "pipeline": "p", "destination": "w", "destination_type": "postgres", "destination_database": "d",
        "source_schema": "public", "target_schema": "public", "filter_sql": None, "custom_sql": None, "shape": {},
        "known": None,
        "tags": ["x"],
    }  # fmt: skip
    schemas: list[object] = [None, [], {"columns": 5}, {"columns": [{"name": "id"}]}, {"columns": [None]}]
    tables = [
        {**base, "source_table": f"t{n}", "target_table": f"t{n}", "schema_table": schema}
        for n, schema in enumerate(schemas)
    ]
    good = {"columns": [{"name": "id", "type_text": "bigint", "not_null": True}], "primary_key": ["id"]}
    tables.append({**base, "source_table": "good", "target_table": "good", "schema_table": good})
    (row,) = snapshot_of_rows(pipelines, tables, "f").pipelines
    assert [len(table.columns) for table in row.tables] == [0, 0, 0, 0, 0, 1]
    assert row.tables[-1].columns[0].in_key
