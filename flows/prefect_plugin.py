"""Prefect plugin: ``prefect deployment run train-metricgold`` without ``<flow>/`` before it.

Prefect calls ``setup_environment`` when it is imported in a folder whose prefect.toml allows
this plugin. For the commands that talk to a server it also finds one on this machine, where
no address is set.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

from prefect.plugins import HookContext, SetupResult, register_hook

from flows._environment import prepare_environment
from flows._stage import server_answers
from flows.serve import DEFAULT_API_URL

CLIENT_COMMANDS = {"artifact", "deploy", "deployment", "flow", "flow-run", "task-run", "work-pool"}
CLIENT_COMMANDS |= {"work-queue", "worker"}


def cli_command(arguments: list[str]) -> str | None:
    """The subcommand if this process is the ``prefect`` command line, else None."""
    program = Path(arguments[0]) if arguments else Path()
    is_prefect = program.name == "prefect" or program.parts[-2:] == ("prefect", "__main__.py")
    return arguments[1] if is_prefect and len(arguments) > 1 else None


@register_hook
def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Off switches for telemetry; for the command line, the local server and bare names."""
    prepare_environment()
    command = cli_command(sys.argv)
    if command == "deployment":
        accept_bare_names()
    if command in CLIENT_COMMANDS and not ctx.api_url and server_answers(DEFAULT_API_URL, 1.0):
        return SetupResult(env={"PREFECT_API_URL": DEFAULT_API_URL}, note="local server found")
    return None


def accept_bare_names() -> None:
    """Let the client look a deployment up by its own name when no flow name is given."""
    from prefect.client.orchestration import PrefectClient

    original = PrefectClient.read_deployment_by_name

    @functools.wraps(original)
    async def by_name(self: Any, name: str) -> Any:
        return await original(self, name if "/" in name else await full_name(self, name))

    PrefectClient.read_deployment_by_name = by_name  # type: ignore[method-assign]


async def full_name(client: Any, name: str) -> str:
    """``<flow>/<deployment>`` of the one deployment called ``name``.

    Where there is none or more than one the process ends with one line saying which there are.
    """
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    found = await client.read_deployments(
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name]))
    )
    names = sorted([f"{(await client.read_flow(d.flow_id)).name}/{d.name}" for d in found])
    if len(names) == 1:
        return names[0]
    if names:
        raise SystemExit(f"error: several deployments are called {name!r}: {', '.join(names)}")
    raise SystemExit(
        f"error: no deployment is called {name!r}; is 'python -m flows.serve' running?"
    )
