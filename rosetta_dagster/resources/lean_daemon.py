"""Dagster's daemon without a reading of all definitions each minute, and of all freshness twice a minute.

The daemon asks the code server once a minute for everything that it defines: with a thousand tables five megabytes of
JSON, made, sent twice and taken apart again. It need not: a thread of its own watches the code server, and loads the
definitions anew when that has other ones, was away, or could not be read. The minute is from before that thread.

Each 30 seconds it asks for the freshness of every asset, most of which have no policy. That cost more than all sensors
together with a thousand tables, and an asset of ours turns stale after 5 minutes.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from dagster._core.remote_origin import GrpcServerCodeLocationOrigin
from dagster._core.workspace.context import WorkspaceProcessContext

REFRESH_SECONDS = 900.0
"""Between two readings of all definitions while nothing tells that they have changed."""

FRESHNESS_SECONDS = 120
"""Between two looks at freshness, unless Dagster's own variable says otherwise."""

_CONTROLLER = "dagster._daemon.controller"
_FRESHNESS_VARIABLE = "FRESHNESS_DAEMON_INTERVAL_SECONDS"


def refresh_seldom() -> bool:
    """Make this process's daemon read the definitions each REFRESH_SECONDS; return whether it is a daemon's process.

    Raises:
        AttributeError: this version of Dagster has another daemon.
    """
    module: Any = sys.modules.get(_CONTROLLER)
    if module is None:
        return False
    controller = module.DagsterDaemonController
    usual = controller.check_workspace_freshness
    if getattr(usual, "seldom", False):
        return True

    def check_workspace_freshness(self: Any, last_workspace_update_time: float) -> float:
        recent = time.time() - last_workspace_update_time < REFRESH_SECONDS
        if recent and is_watched(self._workspace_process_context):
            return last_workspace_update_time
        return float(usual(self, last_workspace_update_time))

    check_workspace_freshness.seldom = True  # type: ignore[attr-defined]  # marks it: an instance is made more than once
    controller.check_workspace_freshness = check_workspace_freshness
    return True


def judge_freshness_seldom() -> bool:
    """Make this process's daemon judge freshness each FRESHNESS_SECONDS; return whether it is a daemon's process.

    Raises:
        AttributeError: this version of Dagster has another daemon.
    """
    module: Any = sys.modules.get(_CONTROLLER)
    if module is None:
        return False
    usual: Any = module.FreshnessDaemon
    if getattr(usual, "seldom", False):
        return True

    class SeldomFreshnessDaemon(usual):  # type: ignore[misc]  # the class is the process's own, if it has one
        seldom = True

        def __init__(self, interval_seconds: int | None = None) -> None:
            own = int(os.environ.get(_FRESHNESS_VARIABLE, FRESHNESS_SECONDS))
            super().__init__(interval_seconds=own if interval_seconds is None else interval_seconds)

    module.FreshnessDaemon = SeldomFreshnessDaemon
    return True


def is_watched(context: WorkspaceProcessContext) -> bool:
    """Tell whether every code location is loaded, and on a server that Dagster's own thread watches."""
    return all(
        isinstance(one.origin, GrpcServerCodeLocationOrigin) and one.code_location is not None
        for one in context.get_current_workspace().code_location_entries.values()
    )
