"""What every stage's command line shares: arguments, configuration, and Prefect if it is there.

``python -m flows.<stage>`` calls the stage's function plainly and at once. When a Prefect
server is there (``PREFECT_API_URL``), the same function runs as a flow on it. Prefect is imported
only then, and not where the flow that started the stage shows it already.
"""

from __future__ import annotations

import argparse
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from flows._environment import prepare_environment
from flows._launch import check_one_folder, is_shared, launch
from flows._process import die_with_starter, exit_on_sigterm, only_one
from metricgold.config import (
    DATASET_NAMES,
    DatasetName,
    LaunchConfig,
    ProfileConfig,
    load_config,
    load_orchestration,
)
from metricgold.errors import UserError, run_cli
from metricgold.processes import die_with_parent
from metricgold.workspace import Workspace

PARENT_TASK_RUN = "METRICGOLD_PARENT_TASK_RUN_ID"
"""The task run that shows this stage, which then need not be a flow run by itself."""

TEMPORARY = 75
"""Exit status of a stage that may succeed when tried again (``EX_TEMPFAIL`` of sysexits.h)."""

SERVED_BY = "METRICGOLD_SERVED_BY"
"""Process id of ``flows.serve``, with which the flow runs that it started end."""

StageFunction = Callable[[ProfileConfig, Workspace], None]
DatasetStageFunction = Callable[[ProfileConfig, Workspace, DatasetName], None]


def stage_main(name: str, run: StageFunction, *, shareable: bool = False) -> None:
    """Command line of a stage that takes no arguments; anything but ``--help`` is refused.

    Args:
        shareable: several processes can do its work (``orchestration.launch`` in params.yaml).
    """

    def main() -> int:
        argparse.ArgumentParser(
            prog=f"python -m flows.{name}",
            description="Run this stage alone with the profile of params.yaml; "
            "'dvc repro' runs it with what it needs, and only if something changed.",
        ).parse_args()
        return execute(name, run, shareable=shareable)

    run_cli(main)


def dataset_stage_main(name: str, run: DatasetStageFunction) -> None:
    """Command line of a stage that runs once for each dataset (``--dataset NAME``)."""

    def main() -> int:
        dataset = parse_dataset(name)
        return execute(f"{name}@{dataset}", lambda c, w: run(c, w, dataset))

    run_cli(main)


def parse_dataset(name: str, arguments: Sequence[str] | None = None) -> DatasetName:
    """The value of ``--dataset``; argparse refuses an unknown one by listing the known."""
    parser = argparse.ArgumentParser(prog=f"python -m flows.{name}")
    parser.add_argument("--dataset", required=True, choices=DATASET_NAMES)
    return cast(DatasetName, parser.parse_args(arguments).dataset)


def execute(address: str, run: StageFunction, *, shareable: bool = False) -> int:
    """Run one stage in the current folder; ``address`` is its name in DVC (``stage@dataset``)."""
    prepare_environment()
    exit_on_sigterm()
    if "DVC_STAGE" in os.environ:
        die_with_starter()
        refuse_hidden_profile()
    config, workspace = load_config(), Workspace()
    processes = load_orchestration().launch if shareable else LaunchConfig()
    if is_shared(processes):
        return launch(address, processes)

    def body() -> None:
        if "RANK" in os.environ and len(processes.hosts) > 1:
            check_one_folder(workspace.scratch("hosts"))
        run(config, workspace)

    if "RANK" in os.environ:  # one of several processes
        die_with_parent()
    if int(os.environ.get("RANK", "0")) > 0:  # the first one decides
        body()
        return 0
    with only_one(address, workspace.scratch("locks")):
        try:
            if PARENT_TASK_RUN in os.environ:
                body()
            elif server_answers(os.environ.get("PREFECT_API_URL")):
                run_as_flow(address, body)
            else:
                body()
        except Exception as error:
            if not is_temporary(error):
                raise
            print(f"error: {error}", file=sys.stderr)
            return TEMPORARY
    return 0


_TEMPORARY_ERRORS = {"ConnectionError", "TimeoutError", "TransportError", "_TransientError"}
"""Of Python, of httpx, and of metricgold.data.transfer; known by name, as most stages need none."""


def is_temporary(error: BaseException) -> bool:
    """Whether the network or a server is behind an error, at any depth."""
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is None or id(link) in seen:
            continue
        if _TEMPORARY_ERRORS & {kind.__name__ for kind in type(link).__mro__}:
            return True
        seen.add(id(link))
        chain += [link.__cause__, link.__context__]
    return False


def refuse_hidden_profile() -> None:
    """Under DVC the profile is the one DVC sees, in params.yaml; the environment may not differ.

    Raises:
        UserError: METRICGOLD_PROFILE is set; DVC would record outputs of another profile.
    """
    profile = os.environ.get("METRICGOLD_PROFILE")
    if profile:
        raise UserError(
            f"METRICGOLD_PROFILE={profile} is set, which DVC cannot see: unset it and choose the "
            f"profile in params.yaml, or run 'dvc exp run -S profile={profile}'"
        )


def server_answers(api_url: str | None, timeout_s: float = 3.0) -> bool:
    """Whether a Prefect server is at ``api_url`` (its ``/health`` answers); None: no."""
    if not api_url:
        return False
    try:
        with urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=timeout_s):
            return True
    except urllib.error.HTTPError:
        return True  # somebody answers, perhaps asking for a login
    except (OSError, ValueError):
        return False


def run_as_flow(address: str, body: Callable[[], None]) -> None:
    """Run ``body`` as a flow named after the stage."""
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "metricgold,export")
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow

    stage: Any = flow(name=address.replace("_", "-"), log_prints=True, persist_result=False)(body)
    with get_client(sync_client=True) as client:
        flow_run = client.create_flow_run(stage, name=address)
    run_flow(stage, flow_run=flow_run, parameters={})


def project_root() -> Path:
    """The current folder, which must be the one that holds ``dvc.yaml``.

    Raises:
        UserError: it does not.
    """
    root = Path.cwd()
    if not (root / "dvc.yaml").is_file():
        raise UserError(f"{root}: no dvc.yaml here; run from the repository root")
    return root
