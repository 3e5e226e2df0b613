from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import Engine, inspect, text
from sqlalchemy.engine import URL

from cdc_runner.catalog.database import create_catalog_engine
from cdc_runner.catalog.migrations import apply_migrations, migrations_directory, read_migrations
from cdc_runner.catalog.models import Base
from cdc_runner.errors import ErrorKind, RosettaError

pytestmark = pytest.mark.pg


def write(directory: Path, name: str, sql: str) -> None:
    (directory / name).write_text(sql, encoding="utf-8")


def test_each_file_is_applied_once_and_in_order(empty_url: URL, tmp_path: Path):
    engine = create_catalog_engine(empty_url)
    write(tmp_path, "002_second.sql", "INSERT INTO a VALUES (2);")
    write(tmp_path, "001_first.sql", "CREATE TABLE a (n int); INSERT INTO a VALUES (1);")
    assert apply_migrations(engine, tmp_path) == ["001_first.sql", "002_second.sql"]
    assert apply_migrations(engine, tmp_path) == []
    write(tmp_path, "003_third.sql", "INSERT INTO a VALUES (3);")
    assert apply_migrations(engine, tmp_path) == ["003_third.sql"]
    with engine.connect() as connection:
        assert list(connection.scalars(text("SELECT n FROM a ORDER BY n"))) == [1, 2, 3]
    engine.dispose()


def test_concurrent_starts_apply_each_file_once(empty_url: URL):
    barrier = threading.Barrier(6)
    applied: list[list[str]] = []
    errors: list[BaseException] = []

    def start() -> None:
        engine = create_catalog_engine(empty_url)
        try:
            barrier.wait(20)
            applied.append(apply_migrations(engine))
        except BaseException as error:
            errors.append(error)
        finally:
            engine.dispose()

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert sorted(map(len, applied)) == [0, 0, 0, 0, 0, len(read_migrations())]


def test_a_changed_applied_file_is_refused(empty_url: URL, tmp_path: Path):
    engine = create_catalog_engine(empty_url)
    write(tmp_path, "001_first.sql", "CREATE TABLE a (n int);")
    apply_migrations(engine, tmp_path)
    write(tmp_path, "001_first.sql", "CREATE TABLE a (n bigint);")
    with pytest.raises(RosettaError, match=r"001_first\.sql was changed after it was applied") as caught:
        apply_migrations(engine, tmp_path)
    assert caught.value.kind is ErrorKind.CONFLICT
    engine.dispose()


def test_a_newer_database_is_refused(empty_url: URL, tmp_path: Path):
    engine = create_catalog_engine(empty_url)
    write(tmp_path, "001_first.sql", "CREATE TABLE a (n int);")
    write(tmp_path, "002_second.sql", "CREATE TABLE b (n int);")
    apply_migrations(engine, tmp_path)
    (tmp_path / "002_second.sql").unlink()
    with pytest.raises(RosettaError, match="migration 002"):
        apply_migrations(engine, tmp_path)
    engine.dispose()


def test_a_failing_file_leaves_the_one_before(empty_url: URL, tmp_path: Path):
    engine = create_catalog_engine(empty_url)
    write(tmp_path, "001_first.sql", "CREATE TABLE a (n int);")
    write(tmp_path, "002_second.sql", "CREATE TABLE b (n int); SELECT 1/0;")
    with pytest.raises(RosettaError):
        apply_migrations(engine, tmp_path)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT to_regclass('b')")) is None
        assert list(connection.scalars(text("SELECT version FROM schema_migrations"))) == ["001"]
    # The lock was given back: a corrected file applies.
    write(tmp_path, "002_second.sql", "CREATE TABLE b (n int);")
    assert apply_migrations(engine, tmp_path) == ["002_second.sql"]
    engine.dispose()


def test_names_and_numbers_are_checked(tmp_path: Path):
    write(tmp_path, "1_first.sql", "")
    with pytest.raises(RosettaError, match="NNN_name"):
        read_migrations(tmp_path)
    (tmp_path / "1_first.sql").unlink()
    write(tmp_path, "001_a.sql", "")
    write(tmp_path, "001_b.sql", "")
    with pytest.raises(RosettaError, match="number 001"):
        read_migrations(tmp_path)


def test_the_repository_has_the_first_migration():
    assert (migrations_directory() / "001_create_table.sql").is_file()


def test_models_and_migrations_describe_the_same_tables(engine: Engine):
    inspector = inspect(engine)
    assert set(inspector.get_table_names()) - {"schema_migrations"} == set(Base.metadata.tables)
    for name, table in Base.metadata.tables.items():
        columns = {column["name"]: column for column in inspector.get_columns(name)}
        assert set(columns) == set(table.columns.keys()), name
        for column in table.columns:
            found = columns[column.name]
            assert found["nullable"] == column.nullable, f"{name}.{column.name}"
            assert found["type"]._type_affinity is column.type._type_affinity, f"{name}.{column.name}"
            has_default = found["default"] is not None or bool(found.get("identity"))
            # What the model leaves to the database, the database must fill in.
            assert has_default or column.server_default is None, f"{name}.{column.name}"


def test_every_foreign_key_has_an_index(engine: Engine):
    without = """
        SELECT c.conrelid::regclass::text, c.conname FROM pg_constraint c
        WHERE c.contype = 'f' AND NOT EXISTS (
            SELECT FROM pg_index i WHERE i.indrelid = c.conrelid AND (i.indkey::int2[])[0] = c.conkey[1])
    """
    with engine.connect() as connection:
        assert connection.execute(text(without)).all() == []
