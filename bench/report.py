"""The figures of a run as one JSON object and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure to reach: at least, or at most."""

    key: str
    label: str
    at_least: float | None = None
    at_most: float | None = None

    def met(self, value: float) -> bool:
        """Tell whether a value reaches it."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def text(self) -> str:
        """Return the goal in words; empty when there is none."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return f"<= {self.at_most:g}" if self.at_most is not None else ""


GOALS = (
    Goal("initial_load_vs_native", "initial load, against the native copy", at_least=1.0),
    Goal("initial_load_vs_pgcopydb", "the same, against pgcopydb", at_least=1.0),
    Goal("initial_load_vs_dlt", "the same, against dlt", at_least=1.0),
    Goal("debezium_vs_bare_engine", "stream, against the bare Debezium engine", at_least=0.85),
    Goal("stream_vs_native_debezium", "stream with Debezium, against native apply"),
    Goal("stream_vs_native_pgoutput", "stream with pgoutput, against native apply", at_least=1.0),
    Goal("latency_p50_ms", "commit to visible at 1,000 tx/s, Debezium, p50 (ms)", at_most=100),
    Goal("latency_p99_ms", "commit to visible at 1,000 tx/s, Debezium, p99 (ms)", at_most=300),
    Goal("latency_p50_ms_pgoutput", "the same with pgoutput, p50 (ms)", at_most=100),
    Goal("latency_p99_ms_pgoutput", "the same with pgoutput, p99 (ms)", at_most=300),
    Goal("apply_growth", "apply into the large against the small table", at_most=1.2),
    Goal("apply_growth_server_alone", "the same of the server's own UPDATE"),
    Goal("apply_growth_recent", "the same, recent rows", at_most=1.2),
    Goal("rss_mb", "peak resident size of the pipeline (MB)", at_most=512),
    Goal("rss_mb_pgoutput", "the same, engine pgoutput alone (MB)", at_most=512),
    Goal("cpu_s_per_million_debezium", "CPU seconds for a million changes, Debezium"),
    Goal("cpu_s_per_million_pgoutput", "the same, pgoutput"),
    Goal("start_to_first_row_s", "process start to the first row (s)"),
)


def figures(detail: dict[str, Any]) -> dict[str, float]:
    """Return the figures of what was measured, each under its one key.

    Of the stream's workloads the least favourable one counts; of memory the largest of all.
    """
    found: dict[str, float] = {}
    if load := detail.get("initial_load"):
        found["initial_load_vs_native"] = load["ratio"]
        found["start_to_first_row_s"] = load["start_to_first_row_s"]
    if stream := detail.get("stream"):
        counted = [stream[name] for name in ("bulk", "single") if name in stream]
        found["debezium_vs_bare_engine"] = min(one["vs_bare_engine"] for one in counted)
        for engine in ("debezium", "pgoutput"):
            found[f"stream_vs_native_{engine}"] = min(one["vs_native"][engine] for one in counted)
            found[f"cpu_s_per_million_{engine}"] = max(one["cpu_s_per_million"][engine] for one in counted)
            found[f"rss_mb_{engine}"] = max(one["rss_mb"].get(engine, 0) for one in stream.values())
        found["cpu_s_per_million"] = found["cpu_s_per_million_pgoutput"]
    for part, suffix in (("latency", ""), ("latency_pgoutput", "_pgoutput")):
        if latency := detail.get(part):
            rates = sorted((int(rate) for rate in latency if rate.isdigit()), reverse=True)
            fastest = latency[str(1000 if 1000 in rates else rates[0])]
            for share in ("p50", "p99"):
                found[f"latency_{share}_ms{suffix}"] = fastest[f"{share}_ms"]
    for peer, one in detail.get("peers", {}).items():
        if "ratio" in one:
            found[f"initial_load_vs_{peer}"] = one["ratio"]
    if growth := detail.get("growth"):
        found["apply_growth"] = max(growth[name]["growth"] for name in ("spread", "recent"))
        found["apply_growth_recent"] = growth["recent"]["growth"]
        found["apply_growth_server_alone"] = growth["spread"]["server_alone"]["growth"]
    sizes = [
        *(found[key] for key in ("rss_mb_debezium", "rss_mb_pgoutput") if key in found),
        *(detail[name]["rss_mb"] for name in ("initial_load", "latency", "latency_pgoutput") if name in detail),
    ]
    if sizes:
        found["rss_mb"] = max(sizes)
    return found


def table(found: dict[str, float]) -> str:
    """Return the figures as lines of text, with the goals and whether they are reached."""
    lines = [f"{'figure':<52} {'value':>9}  {'goal':<8} reached"]
    for goal in GOALS:
        if goal.key not in found:
            continue
        value = found[goal.key]
        wanted = goal.text()
        reached = ("yes" if goal.met(value) else "no") if wanted else ""
        lines.append(f"{goal.label:<52} {value:>9.2f}  {wanted:<8} {reached}".rstrip())
    return "\n".join(lines)
