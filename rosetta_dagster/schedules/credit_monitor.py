"""The hourly look at Snowflake credits."""

# The services reach into the engine and its libraries: they are imported by a run, never by the code server.
# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from dagster import (
    DefaultScheduleStatus,
    Failure,
    OpExecutionContext,
    RunRequest,
    ScheduleEvaluationContext,
    SkipReason,
    in_process_executor,
    job,
    op,
    schedule,
)

from cdc_runner.errors import RosettaError
from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.jobs.verb import table
from rosetta_dagster.resources.catalog import catalog_engine, catalog_session, has_snowflake, record_job


@op(name="read_credits")
def read_credits_op(context: OpExecutionContext) -> None:
    from cdc_runner.services.credits import collect_credits
    from cdc_runner.services.snowflake import run_statement

    with engine_outcome():
        reports = collect_credits(catalog_engine(), run_statement)
        failed = [f"{one.destination}: {one.error}" for one in reports if one.error]
        error = "; ".join(failed) if reports and len(failed) == len(reports) else None
        with catalog_session() as session:
            record_job(session, "credit_monitor", error)
    rows = [
        {"destination": report.destination, "day": use.day, "service": use.service, "credits": float(use.credits)}
        for report in reports
        for use in report.uses
    ]
    parts = [
        {"destination": report.destination, "day": part.day, "kind": part.kind, "name": part.name,
         "credits": float(part.credits)}
        for report in reports
        for part in report.parts
    ]  # fmt: skip
    if error:
        raise Failure(f"no Snowflake destination answered: {error}", allow_retries=False)
    result = f"{len(rows)} days and services of {len(reports)} destinations" if reports else "no Snowflake destination"
    columns = ("destination", "day", "service", "credits")
    by_part = table(parts[::-1], ("destination", "day", "kind", "name", "credits"))
    context.add_output_metadata({"result": result, "credits": table(rows[::-1], columns), "parts": by_part})


@job(
    name="credit_monitor",
    executor_def=in_process_executor,
    tags={"dagster/max_runtime": "900"},
    description="Reads the credits of every Snowflake destination by service and day, and by warehouse and serverless "
    "task, stores them, and tells of days above the settings credits_warning_per_day and credits_error_per_day.",
)
def credit_monitor_job() -> None:
    read_credits_op()


@schedule(
    name="credit_monitor",
    job=credit_monitor_job,
    cron_schedule="7 * * * *",
    default_status=DefaultScheduleStatus.RUNNING,
    description="Each hour, at seven minutes past. Without a Snowflake destination nothing is launched.",
)
def credit_monitor(context: ScheduleEvaluationContext) -> RunRequest | SkipReason:
    try:
        with catalog_session() as session:
            wanted = has_snowflake(session)
            if not wanted:
                record_job(session, "credit_monitor")
    except RosettaError as error:
        return SkipReason(str(error))
    return RunRequest() if wanted else SkipReason("no Snowflake destination")
