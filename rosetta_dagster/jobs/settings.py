"""Jobs about settings."""

# The services reach into the engine and its libraries: they are imported by a run, never by the code server.
# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from dagster import Config, OpExecutionContext, op
from pydantic import Field

from cdc_runner.catalog.settings import REGISTRY, all_settings, reset_setting, set_setting
from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.jobs.verb import table, verb_job
from rosetta_dagster.resources.catalog import catalog_session


class SettingConfig(Config):
    """One setting."""

    setting: str = Field(description="Its name as the job show_settings lists it, e.g. wal_warning_megabytes.")
    value: str = Field(default="", description="New value as text, in the setting's unit. Empty: back to the default.")


@op(name="read_settings")
def show_settings_op(context: OpExecutionContext) -> None:
    with engine_outcome(), catalog_session() as session:
        values = all_settings(session)
    rows = [
        {
            "setting": key,
            "value": "(secret)" if REGISTRY[key].secret and value else value,
            "default": REGISTRY[key].default,
            "unit": REGISTRY[key].unit,
            "per pipeline": REGISTRY[key].pipeline,
            "description": REGISTRY[key].description,
        }
        for key, value in values.items()
    ]
    columns = ("setting", "value", "default", "unit", "per pipeline", "description")
    context.add_output_metadata({"result": f"{len(rows)} settings", "settings": table(rows, columns)})


@op(name="update_setting")
def change_setting_op(context: OpExecutionContext, config: SettingConfig) -> None:
    with engine_outcome(), catalog_session() as session:
        if config.value:
            value = set_setting(session, config.setting, config.value)
        else:
            value = reset_setting(session, config.setting)
    follows = "; pipelines that read it start anew" if REGISTRY[config.setting].pipeline else ""
    context.add_output_metadata({"result": f"{config.setting} is {value} now{follows}"})


show_settings = verb_job(
    show_settings_op, name="show_settings", description="Lists every setting with value, default, unit and meaning."
)
change_setting = verb_job(
    change_setting_op, name="change_setting", description="Changes a global setting, or sets it back to its default."
)

SETTING_JOBS = [show_settings, change_setting]
