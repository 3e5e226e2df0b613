"""The asset that shows everything at a glance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from dagster import AssetKey, AssetMaterialization, AssetSpec, MetadataValue, TableColumn, TableRecord, TableSchema

from rosetta_dagster.assets.numbers import Cell, readable
from rosetta_dagster.assets.snapshot import CatalogSnapshot
from rosetta_dagster.assets.specs import pipeline_key
from rosetta_dagster.monitoring.overview import Overview
from rosetta_dagster.monitoring.verdicts import verdicts
from rosetta_dagster.resources.pipeline_health import PipelineHealth

# Not below "rosetta": a pipeline may be called overview.
OVERVIEW_KEY = AssetKey(["overview"])
PICTURES_KEY = AssetKey(["overview_pictures"])
_LISTED_PIPELINES = 12
"""Also of sources and of what needs attention, the worst first. The page asks for all events that are kept, with their
tables, a hundred at a time: with forty rows in each an answer took seconds."""
_LISTED_TABLES = 20


def overview_spec(snapshot: CatalogSnapshot) -> AssetSpec:
    """Return the asset: downstream of every pipeline."""
    return AssetSpec(
        key=OVERVIEW_KEY,
        deps=[pipeline_key(pipeline.name) for pipeline in snapshot.pipelines],
        group_name="overview",
        description="Everything at a glance, each minute: pipelines by state, rows today and yesterday, lag, WAL kept "
        "by slots, recent events, runners, the busiest tables, and whether the monitors work. Choose Plots for "
        "history; overview_pictures shows the last days.",
        kinds={"dashboard"},
        tags={"rosetta/role": "overview"},
    )


def pictures_spec() -> AssetSpec:
    """Return the asset that carries the pictures: rows and credits by day, lag and WAL over a day."""
    return AssetSpec(
        key=PICTURES_KEY,
        deps=[OVERVIEW_KEY],
        group_name="overview",
        description="Pictures of the last days, drawn each hour and by the job overview_pictures: rows and Snowflake "
        "credits by day, lag of the slowest pipelines and WAL kept for the slots over 24 hours.",
        kinds={"dashboard"},
        tags={"rosetta/role": "overview"},
    )


def overview_event(
    health: Sequence[PipelineHealth], rates: Mapping[str, float | None], overview: Overview, line: str
) -> AssetMaterialization:
    """Return the event of this minute; `rates` are rows per second by pipeline, `line` is the one-line status."""
    flows = {flow.pipeline: flow for flow in overview.flows}
    metadata: dict[str, MetadataValue] = {
        "status": MetadataValue.text(line),
        "needs attention": _attention(health),
        "recent events": _events(overview),
        "pipelines by state": MetadataValue.text(_by_state(health)),
        "pipelines": _pipelines(health, rates, overview),
        "sources": _sources(overview),
        "rows today": MetadataValue.int(sum(flow.today for flow in flows.values())),
        "rows yesterday": MetadataValue.int(sum(flow.yesterday for flow in flows.values())),
        "pipelines running": MetadataValue.int(sum(one.state == "RUNNING" for one in health)),
        "pipelines in error": MetadataValue.int(sum(one.state == "ERROR" for one in health)),
        "runners": _table(
            ("runner", "state", "heartbeat s", "up min"),
            [
                (one.runner_id, one.state, round(one.age_seconds), round(one.uptime_seconds / 60))
                for one in overview.runners[:_LISTED_PIPELINES]
            ],
        ),
        "busiest tables today": _table(
            ("pipeline", "table", "rows"), [(one.pipeline, one.table, one.today) for one in overview.top]
        ),
        "monitors": _table(
            ("monitor", "last run s ago", "error"),
            [(one.name, round(one.age_seconds), one.error or "") for one in overview.monitors],
        ),
        "dead letters": MetadataValue.int(sum(table.dead_letters for one in health for table in one.tables)),
        "open notifications": MetadataValue.int(overview.open_notifications),
        "pictures": MetadataValue.asset(PICTURES_KEY),
        "jobs": _links(),
    }
    metadata |= _numbers(overview) | _totals(health, rates)
    return AssetMaterialization(asset_key=OVERVIEW_KEY, description=line, metadata=metadata)


def _totals(health: Sequence[PipelineHealth], rates: Mapping[str, float | None]) -> dict[str, MetadataValue]:
    """Return sums and maxima over the pipelines, each where there is something to tell."""
    found: dict[str, MetadataValue] = {}
    parked = sum(stream.parked_bytes for one in health for stream in one.streams)
    if parked:
        found["parked bytes"] = MetadataValue.int(parked)
    if waiting := _dead_letters(health):
        found["dead letters by table"] = waiting
    known = [rate for rate in rates.values() if rate is not None]
    if known:
        found["rows per second"] = MetadataValue.float(round(sum(known), 2))
    lags = [one.worst_lag_ms for one in health if one.worst_lag_ms is not None]
    if lags:
        found["worst lag ms"] = MetadataValue.int(max(lags))
    kept = [one.retained_wal_bytes for one in health if one.retained_wal_bytes is not None]
    if kept:
        found["most slot WAL bytes"] = MetadataValue.int(max(kept))
    return found


def _dead_letters(health: Sequence[PipelineHealth]) -> MetadataValue | None:
    """Return the tables of which changes wait, those with most first; None when none waits."""
    tables = sorted(
        (table for one in health for table in one.tables if table.dead_letters), key=lambda table: -table.dead_letters
    )
    rows = [
        (
            f"{table.pipeline}/{table.destination}",
            f"{table.target_schema}.{table.target_table}",
            table.dead_letters,
            table.dead_letter_keys,
            table.dead_letters_lost,
            table.dead_letter_reason or "",
        )
        for table in tables[:_LISTED_TABLES]
    ]
    return _table(("pipeline", "table", "changes", "keys", "lost in Redis", "reason"), rows) if rows else None


def _sources(overview: Overview) -> MetadataValue:
    rows = [
        (
            one.source,
            one.state,
            "" if one.retained_wal_bytes is None else round(one.retained_wal_bytes / 1048576, 1),
            "" if one.age_seconds is None else age(one.age_seconds),
            one.problem or "",
        )
        for one in overview.sources[:_LISTED_PIPELINES]
    ]
    return _table(("source", "state", "WAL MB", "seen ago", "problem"), rows)


def _by_state(health: Sequence[PipelineHealth]) -> str:
    counts = Counter(one.state for one in health)
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none"


def _events(overview: Overview) -> MetadataValue:
    # The page breaks a line at an ordinary space before it makes the long column narrower.
    rows = [(age(one.age_seconds).replace(" ", "\N{NO-BREAK SPACE}"), one.severity, one.status, one.title)
            for one in overview.events]  # fmt: skip
    return _table(("ago", "severity", "status", "what"), rows)


def age(seconds: float) -> str:
    """Return a time span as a person says it: 40 s, 12 min, 5 h, 3 d."""
    for limit, unit in ((172_800, 86_400), (7200, 3600), (120, 60)):
        if seconds >= limit:
            return f"{seconds / unit:.0f} {'d' if unit == 86_400 else 'h' if unit == 3600 else 'min'}"
    return f"{max(0.0, seconds):.0f} s"


def _numbers(overview: Overview) -> dict[str, MetadataValue]:
    """Return what is told only where it is known, or where there is something to tell."""
    found: dict[str, MetadataValue] = {}
    if overview.backfills:
        found["backfills"] = _table(("status", "backfills"), list(overview.backfills))
    if overview.loads:
        found["initial loads"] = _table(
            ("pipeline", "destination", "tables", "%", "rows"),
            [
                (one.pipeline, one.destination, f"{one.tables_done} of {one.tables}", one.percent, one.rows_loaded)
                for one in overview.loads
            ],
        )
    if overview.backfill_progress:
        names = ("pipeline", "destination", "table", "mode", "status", "rows", "total", "percent", "eta", "note")
        told = [
            {**one, "eta": None if one["eta_seconds"] is None else age(one["eta_seconds"])}
            for one in overview.backfill_progress
        ]
        rows = [tuple("" if one[name] is None else one[name] for name in names) for one in told]
        found["open backfills"] = _table(names, rows)
    if overview.unsent:
        found["unsent notifications"] = MetadataValue.int(overview.unsent)
    used = {
        "this week": overview.credits_week,
        "last week": overview.credits_last_week,
        "this month": overview.credits_month,
        "last month": overview.credits_last_month,
    }
    for when, credits in used.items():
        if credits is not None:
            found[f"Snowflake credits {when}"] = MetadataValue.float(round(credits, 3))
    if overview.host_cpu is not None:
        found["host CPU %"] = MetadataValue.float(round(overview.host_cpu, 1))
    if overview.host_memory is not None:
        found["host memory %"] = MetadataValue.float(round(overview.host_memory, 1))
    return found


_JOBS = (
    "start_pipeline",
    "pause_pipeline",
    "refresh_pipeline",
    "create_source",
    "create_pipeline",
    "list_notifications",
)


def _links() -> MetadataValue:
    links = (f"[{name}](/locations/rosetta/jobs/{name}/playground)" for name in _JOBS)
    return MetadataValue.md(" · ".join((*links, "[sensors](/automation)", "[runs](/runs)")))


def _pipelines(
    health: Sequence[PipelineHealth], rates: Mapping[str, float | None], overview: Overview
) -> MetadataValue:
    flows = {flow.pipeline: flow for flow in overview.flows}
    rows: list[tuple[Cell, ...]] = []
    # Those in trouble first. Few and narrow columns: the page cuts a wide table off.
    for one in sorted(health, key=lambda one: (one.keeps_up, one.pipeline))[:_LISTED_PIPELINES]:
        flow, rate = flows.get(one.pipeline), rates.get(one.pipeline)
        rows.append(
            (
                one.pipeline,
                one.state,
                "" if one.worst_lag_ms is None else one.worst_lag_ms,
                "" if rate is None else rate,
                flow.today if flow else 0,
                "" if one.retained_wal_bytes is None else round(one.retained_wal_bytes / 1048576, 1),
            )
        )
    return _table(("pipeline", "state", "lag ms", "rows/s", "rows today", "WAL MB"), rows)


def _attention(health: Sequence[PipelineHealth]) -> MetadataValue:
    """Return what a person should look at: a line for each failed check."""
    failed = [(one.pipeline, verdict) for one in health for verdict in verdicts(one) if not verdict.passed]
    rows = [(pipeline, verdict.name, verdict.reason) for pipeline, verdict in failed[:_LISTED_PIPELINES]]
    if len(failed) > len(rows):
        rows.append(("", "", f"and {len(failed) - len(rows)} more: see the checks of each pipeline"))
    return _table(("pipeline", "check", "why"), rows) if rows else MetadataValue.text("nothing")


def _table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> MetadataValue:
    if not rows:
        return MetadataValue.text("none")
    return MetadataValue.table(
        [TableRecord(dict(zip(columns, map(readable, row), strict=True))) for row in rows],
        TableSchema(columns=[TableColumn(name) for name in columns]),
    )
