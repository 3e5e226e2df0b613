"""Jobs that start and stop the replication runner on the host of the code server."""

# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from dagster import Config, MetadataValue, OpExecutionContext, in_process_executor, job, op
from pydantic import Field

from cdc_runner.catalog.environment import read_environment
from cdc_runner.catalog.settings import get_setting, set_setting
from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.resources import runner_process
from rosetta_dagster.resources.catalog import catalog_session
from rosetta_dagster.resources.runner_heartbeats import RunnerHeartbeat, read_runners

_TAGS = {"rosetta/runner": "control", "dagster/max_runtime": "180"}


class StartRunnerConfig(Config):
    """Nothing has to be given."""

    timeout_seconds: float = Field(
        default=runner_process.START_TIMEOUT_SECONDS,
        ge=5,
        le=170,
        description="How long the runner may take until it reports RUNNING, in seconds.",
    )
    keep_alive: bool = Field(
        default=True,
        description="On: also turn the setting runner_auto_start on, so that the sensor runner_alive starts the runner "
        "again after a crash. Off: start one only if that setting is on.",
    )


class StopRunnerConfig(Config):
    """Nothing has to be given."""

    timeout_seconds: float = Field(
        default=runner_process.STOP_TIMEOUT_SECONDS,
        ge=5,
        le=170,
        description="How long the runner may take to finish its batches and end, in seconds.",
    )


def _read() -> list[RunnerHeartbeat]:
    with catalog_session() as session:
        return read_runners(session)


def _set_auto_start(value: bool) -> None:
    with catalog_session() as session:
        set_setting(session, "runner_auto_start", str(value).lower())


def _is_wanted() -> bool:
    with catalog_session() as session:
        return bool(get_setting(session, "runner_auto_start"))


@op(name="start_runner_process")
def start_runner_op(context: OpExecutionContext, config: StartRunnerConfig) -> None:
    with engine_outcome():
        if config.keep_alive:
            _set_auto_start(True)
        elif not _is_wanted():
            # It was stopped on purpose while this run waited in the queue.
            context.add_output_metadata({"result": "nothing started: runner_auto_start is off"})
            return
        started = runner_process.start_runner(read_environment().home, _read, timeout_seconds=config.timeout_seconds)
    runner = started.heartbeat
    context.add_output_metadata(
        {
            "result": f"runner {runner.runner_id} is {runner.state}" + ("" if started.is_new else "; it lived already"),
            "host": runner.host,
            "process id": runner.pid,
            # It listens on the loopback address of its host only.
            "health": MetadataValue.url(f"http://127.0.0.1:{runner.health_port}/health"),
            "log": MetadataValue.path(started.log or "of the process that started it"),
        }
    )


@op(name="stop_runner_process")
def stop_runner_op(context: OpExecutionContext, config: StopRunnerConfig) -> None:
    with engine_outcome():
        # First: the sensor would start a new one while the old one drains.
        _set_auto_start(False)
        stopped = runner_process.stop_runner(_read, timeout_seconds=config.timeout_seconds)
    context.add_output_metadata(
        {
            "result": f"{len(stopped)} stopped" if stopped else "no runner lived on this host",
            "process ids": MetadataValue.json([runner.pid for runner in stopped]),
            "next": "The slots keep WAL at the sources until a runner is started again (job start_runner).",
        }
    )


@job(
    executor_def=in_process_executor,
    tags=_TAGS,
    description="Starts `rosetta runner` as a process of its own and ends when it reports RUNNING. Does nothing when "
    "one lives. The run does not hold the runner: ending the run or Dagster leaves it running.",
    metadata={"log": MetadataValue.path("ROSETTA_HOME/logs/runner.log")},
)
def start_runner() -> None:
    start_runner_op()


@job(
    executor_def=in_process_executor,
    tags=_TAGS,
    description="Asks the runner on this host to finish its batches and end, and keeps Dagster from starting it again "
    "(setting runner_auto_start). Pipelines keep their status and go on when a runner is started.",
)
def stop_runner() -> None:
    stop_runner_op()
