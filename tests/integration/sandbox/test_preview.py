"""Preview of a source's tables: types, masks, refusals."""

from __future__ import annotations

import pytest

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.database import open_catalog, session_scope
from cdc_runner.catalog.environment import read_environment
from cdc_runner.services.preview import as_json, plan_preview, preview
from tests.support.pipelines import PipelineHarness

pytestmark = [pytest.mark.pg, pytest.mark.timeout(300)]


def test_preview_reads_samples_with_masks_and_refuses_the_rest(pipeline: PipelineHarness) -> None:
    source = pipeline.source
    source.execute("CREATE TABLE orders (id int PRIMARY KEY, email text, amount numeric(10,2), any_digits numeric)")
    source.execute("INSERT INTO orders SELECT i, 'canary' || i, i / 4.0, i / 3.0 FROM generate_series(1, 50) i")
    source.execute("CREATE SCHEMA two; CREATE TABLE two.twice (id int); CREATE TABLE twice (id int)")
    pipeline.configure(syncs=[{"table": "public.orders", "mask": {"email": "hash"}}])
    keyring = Keyring.from_environment(
        read_environment({"CREDENTIAL_ENCRYPTION_KEY": pipeline.environment["CREDENTIAL_ENCRYPTION_KEY"]})
    )
    engine = open_catalog(pipeline.config.url())
    with session_scope(engine) as session:
        plan = plan_preview(session, "shop", keyring)
    engine.dispose()
    found = as_json(preview(plan, "SELECT sum(amount) AS total, count(*), min(email) AS mail FROM orders", 20))
    assert found["state"] == "COMPLETED", found
    assert found["columns"][0] == {"name": "total", "type": "DECIMAL(38,2)"}
    total, count, mail = found["rows"][0]
    assert (total, count) == ("52.50", "20") and len(mail) == 64
    assert as_json(preview(plan, "SELECT any_digits FROM orders WHERE id = 1"))["columns"][0]["type"] == "VARCHAR"
    assert preview(plan, "SELECT * FROM twice").state == "REFUSED", "two schemas have it"
    assert preview(plan, "SELECT * FROM pg_class").state == "REFUSED"
    assert preview(plan, "SELECT * FROM read_text('/etc/passwd')").state == "REFUSED"
    many = preview(plan, "SELECT a.id FROM orders a, orders b")
    assert many.truncated and many.rows is not None and many.rows.num_rows == 100
