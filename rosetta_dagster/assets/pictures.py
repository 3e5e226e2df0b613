"""Draws the pictures of the overview. Only runs import this: matplotlib takes a second and 60 MB."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import matplotlib
from matplotlib import dates as matplotlib_dates
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from rosetta_dagster.monitoring.history import DaySeries, History, TimeSeries

matplotlib.use("Agg")
# Ships without annotations.
_dates: Any = matplotlib_dates

_SIZE = (8.4, 2.9)
_DOTS = 90
# Distinct for most kinds of colour blindness (Okabe and Ito), and grey for the others.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_OTHERS = "#999999"


def rows_per_day(history: History) -> str | None:
    """Return rows by day and pipeline as Markdown with the picture in it; None when there is nothing to draw."""
    return _picture(f"Rows per day ({history.zone})", _stacked, history.rows) if history.rows else None


def credits_per_day(history: History) -> str | None:
    """Return Snowflake credits by day and service; None when there are none."""
    return _picture("Snowflake credits per day", _stacked, history.credits) if history.credits else None


def lag_over_time(history: History) -> str | None:
    """Return the lag of the slowest pipelines over a day; None when there is nothing to draw."""
    return _time_picture("Lag in ms, worst of 15 minutes", history.lag_ms, history.zone, logarithmic=True)


def wal_over_time(history: History) -> str | None:
    """Return the WAL kept for the slots over a day; None when there is nothing to draw."""
    return _time_picture("WAL kept for slots in MB", history.wal_megabytes, history.zone, logarithmic=False)


def _picture(title: str, draw: Callable[[Axes, DaySeries], None], series: DaySeries) -> str:
    figure = Figure(_SIZE, dpi=_DOTS, layout="constrained")
    axes = figure.add_subplot()
    draw(axes, series)
    return _finished(figure, axes, title, len(series))


def _stacked(axes: Axes, series: DaySeries) -> None:
    days = sorted({day for values in series.values() for day in values})
    every = [days[0] + timedelta(days=number) for number in range((days[-1] - days[0]).days + 1)]
    bottom = [0.0] * len(every)
    for number, (name, values) in enumerate(series.items()):
        heights = [values.get(day, 0.0) for day in every]
        axes.bar(
            [_noon(day) for day in every], heights, bottom=bottom, label=name, color=_colour(number, name), width=0.8
        )
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set_xticks([_noon(day) for day in every[:: max(1, len(every) // 10)]])
    axes.xaxis.set_major_formatter(_dates.DateFormatter("%d %b"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def _noon(day: date) -> float:
    return float(_dates.date2num(day))


def _time_picture(title: str, series: TimeSeries, zone: str, *, logarithmic: bool) -> str | None:
    if not series:
        return None
    figure = Figure(_SIZE, dpi=_DOTS, layout="constrained")
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(series.items()):
        # A lag of 0 has no place on a logarithmic axis.
        values = [max(value, 1.0) if logarithmic else value for _, value in points]
        moments = [_dates.date2num(moment) for moment, _ in points]
        axes.plot(moments, values, label=name, color=_colour(number, name), marker="o", markersize=2.5, linewidth=1.4)
    if logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    locator = _dates.AutoDateLocator(tz=ZoneInfo(zone))
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(_dates.ConciseDateFormatter(locator, tz=ZoneInfo(zone)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    return _finished(figure, axes, title, len(series))


def _colour(number: int, name: str) -> str:
    return _OTHERS if name == "others" else _COLOURS[number % len(_COLOURS)]


def _finished(figure: Figure, axes: Axes, title: str, series: int) -> str:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    if series:
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return f"![{title}](data:image/png;base64,{base64.b64encode(content.getvalue()).decode()})"


def short_number(value: float) -> str:
    """Return a number as a person says it: 950, 1.2k, 3.4M."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"
