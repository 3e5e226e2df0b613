"""Snowflake credits of a destination, by service and day."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal

from sqlalchemy import Engine, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.models import CreditSnowflake, CreditSnowflakePart, Destination
from cdc_runner.catalog.notifications import Condition, sync_conditions
from cdc_runner.catalog.repositories import list_destinations
from cdc_runner.catalog.settings import get_setting
from cdc_runner.errors import ErrorKind, RosettaError

DAYS = 14
"""Looked at again each time: Snowflake corrects the last days for hours."""

# Warehouses, serverless tasks, Snowpipe Streaming and the rest are service types of the same view. Rows of the present
# day appear after up to three hours.
STATEMENT = f"""
SELECT TO_VARCHAR(usage_date), service_type, TO_VARCHAR(SUM(credits_used))
FROM SNOWFLAKE.ACCOUNT_USAGE.METERING_DAILY_HISTORY
WHERE usage_date >= DATEADD(day, -{DAYS}, CURRENT_DATE()) GROUP BY 1, 2 ORDER BY 1, 2
"""

# A row of the other views may be hours later than the sum of the day above, which it is part of.
PARTS_STATEMENT = f"""
SELECT TO_VARCHAR(usage_date), kind, name, TO_VARCHAR(SUM(credits_used)) FROM (
    SELECT TO_DATE(start_time) AS usage_date, 'WAREHOUSE' AS kind, warehouse_name AS name, credits_used
    FROM SNOWFLAKE.ACCOUNT_USAGE.WAREHOUSE_METERING_HISTORY WHERE start_time >= DATEADD(day, -{DAYS}, CURRENT_DATE())
    UNION ALL
    SELECT TO_DATE(start_time), 'TASK', task_name, credits_used
    FROM SNOWFLAKE.ACCOUNT_USAGE.SERVERLESS_TASK_HISTORY WHERE start_time >= DATEADD(day, -{DAYS}, CURRENT_DATE()))
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""

Rows = Sequence[Sequence[str | None]]
RunStatement = Callable[[Destination, Keyring, str], Rows]
"""Runs a statement at a Snowflake destination and returns its rows, values as text."""


@dataclass(frozen=True, slots=True)
class CreditUse:
    """Credits of one service on one day."""

    day: date
    service: str
    credits: Decimal


@dataclass(frozen=True, slots=True)
class CreditPart:
    """Credits of one warehouse or serverless task (`kind` WAREHOUSE or TASK) on one day."""

    day: date
    kind: str
    name: str
    credits: Decimal


@dataclass(frozen=True, slots=True)
class CreditReport:
    """What one destination used, or why that is not known."""

    destination: str
    uses: tuple[CreditUse, ...] = ()
    parts: tuple[CreditPart, ...] = ()
    error: str | None = None

    def of_day(self, day: date) -> Decimal:
        """Credits of all services on a day."""
        return sum((use.credits for use in self.uses if use.day == day), Decimal(0))


def collect_credits(engine: Engine, run: RunStatement, keyring: Keyring | None = None) -> list[CreditReport]:
    """Ask each Snowflake destination for its credits, store them, and tell of days above the limits.

    Returns:
        One report for each Snowflake destination; nothing without one, and no key is needed then.

    Raises:
        RosettaError: the config database is away, or there is no usable key.
    """
    with session_scope(engine) as session:
        destinations = [one for one in list_destinations(session) if one.type == "snowflake"]
        if not destinations:
            return []
        keys = keyring or Keyring.from_environment()
        session.expunge_all()
    # Outside of any transaction: a warehouse may have to wake up first.
    reports = [_ask(one, keys, run) for one in destinations]
    with session_scope(engine) as session:
        for one, report in zip(destinations, reports, strict=True):
            _store(session, one.id, report)
        sync_conditions(session, "credits:", _conditions(session, reports))
    return reports


def _ask(destination: Destination, keyring: Keyring, run: RunStatement) -> CreditReport:
    try:
        rows = run(destination, keyring, STATEMENT)
        parts = run(destination, keyring, PARTS_STATEMENT)
    except RosettaError as error:
        return CreditReport(destination.name, error=error.message)
    return CreditReport(destination.name, tuple(map(parse_row, rows)), tuple(map(parse_part, parts)))


def parse_row(row: Sequence[str | None]) -> CreditUse:
    """Return the use of one row of STATEMENT.

    Raises:
        RosettaError: INTERNAL, the row has another form.
    """
    try:
        day, service, used = row
        return CreditUse(date.fromisoformat(str(day)), str(service), Decimal(used or "0"))
    except (ValueError, ArithmeticError):
        raise _other_form() from None


def parse_part(row: Sequence[str | None]) -> CreditPart:
    """Return the use of one row of PARTS_STATEMENT.

    Raises:
        RosettaError: INTERNAL, the row has another form.
    """
    try:
        day, kind, name, used = row
        return CreditPart(date.fromisoformat(str(day)), str(kind), str(name), Decimal(used or "0"))
    except (ValueError, ArithmeticError):
        raise _other_form() from None


def _other_form() -> RosettaError:
    return RosettaError(ErrorKind.INTERNAL, "Snowflake answered the question for credits in another form")


def _store(session: Session, destination_id: int, report: CreditReport) -> None:
    for use in report.uses:
        values = {"total_credit": use.credits}
        session.execute(
            insert(CreditSnowflake)
            .values(destination_id=destination_id, usage_date=use.day, service=use.service, **values)
            .on_conflict_do_update(constraint="credit_snowflake_monitoring_day_key", set_=values)
        )
    for part in report.parts:
        values = {"total_credit": part.credits}
        session.execute(
            insert(CreditSnowflakePart)
            .values(destination_id=destination_id, usage_date=part.day, kind=part.kind, name=part.name, **values)
            .on_conflict_do_update(constraint="credit_snowflake_parts_day_key", set_=values)
        )


def _conditions(session: Session, reports: Sequence[CreditReport]) -> dict[str, Condition]:
    warning = Decimal(str(get_setting(session, "credits_warning_per_day")))
    alert = Decimal(str(get_setting(session, "credits_error_per_day")))
    today = session.execute(select(func.current_date())).scalar_one()
    found: dict[str, Condition] = {}
    for report in reports:
        name = report.destination
        if report.error:
            found[f"credits:{name}/read"] = Condition(
                "WARNING", "credits", report.error, f"Credits of {name} are unknown", at_once=False
            )
        for day in (today, today - timedelta(days=1)):
            used = report.of_day(day)
            severity = "ERROR" if alert and used >= alert else "WARNING" if warning and used >= warning else None
            if severity:
                text = f"{used:.2f} credits on {day} (limits: {warning} warning, {alert} alert)"
                found[f"credits:{name}/{day}"] = Condition(
                    "ERROR" if severity == "ERROR" else "WARNING", "credits", text, f"Snowflake credits of {name}"
                )
    return found


def credits_by_day(session: Session, days: int = 30) -> list[tuple[str, date, str, Decimal]]:
    """Return destination, day, service and credits of the last days, for tables and plots."""
    rows = session.execute(
        select(Destination.name, CreditSnowflake.usage_date, CreditSnowflake.service, CreditSnowflake.total_credit)
        .join(Destination, Destination.id == CreditSnowflake.destination_id)
        .where(CreditSnowflake.usage_date >= func.current_date() - days)
        .order_by(Destination.name, CreditSnowflake.usage_date, CreditSnowflake.service)
    )
    return [(name, day, service, used) for name, day, service, used in rows]
