"""Flow ``train-metricgold``: the whole DVC pipeline, one task run a stage.

DVC decides what is stale; this flow shows the order, the logs and the figures, and ends the
running stages when it is cancelled. Without a server: ``python -m flows.train_metricgold``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State

from flows import _artifacts, _dvc
from flows._parameters import Datasets, Overrides, Profile, changes
from flows._process import die_with
from flows._run import OPTIONS, bring_up_to_date, skipped
from flows._stage import SERVED_BY, project_root, server_answers
from flows._stages import UP_TO_DATE
from flows.experiments import NO_GIT, experiment_name, save_experiment
from flows.promotion import promote_if_better
from metricgold.config import load_config
from metricgold.errors import UserError, run_cli

NAME = "train-metricgold"


@flow(name=NAME, **OPTIONS)
def train_metricgold(
    profile: Profile | None = None,
    datasets: Datasets | None = None,
    overrides: Overrides | None = None,
    refresh: Datasets | None = None,
    force: bool = False,
    resume: bool = True,
    promote: bool = False,
) -> dict[str, str] | State[Any]:
    """Run every stage that is stale, in the order of the DAG, in the current folder.

    Args:
        profile: a profile of params.yaml; none keeps the one that is set there.
        datasets: train on these alone (the others get weight 0); none: as params.yaml says.
        overrides: KEY=VALUE in the syntax of 'dvc exp run -S'; they stay in params.yaml.
        refresh: datasets whose source is asked anew what files there are.
        force: run every stage, stale or not.
        resume: go on from the checkpoints that an interrupted run left; else they are removed.
        promote: make the new model the champion if it is better by the margins of params.yaml.

    Returns:
        stage to 'up to date' or 'reproduced'; the state Skipped where nothing was stale.
    """
    die_with(SERVED_BY)
    root = project_root()
    change_params(root, changes(root / "params.yaml", profile, datasets, overrides or []))
    sources = {f"source@{name}" for name in refresh or []}
    done = bring_up_to_date(
        root, NAME, lambda stage: True, forced=sources, force=force, resume=resume
    )
    if set(done.values()) <= {UP_TO_DATE}:
        return skipped(done)
    _artifacts.publish_pictures(root)
    finish(root, promote)
    return done


def finish(root: Path, promote: bool) -> None:
    """What follows a run that changed something: keep it as an experiment, promote its model."""
    name = experiment_name(root)
    commit = save_experiment(root, name)
    get_run_logger().info(NO_GIT if commit is None else f"kept as the DVC experiment {name}")
    if promote:
        config = load_config(root / "params.yaml")
        decision = promote_if_better(root, config, experiment=commit)
        _artifacts.publish_decision(decision.markdown())


def change_params(root: Path, wanted: list[str]) -> None:
    """Write overrides into params.yaml, as ``dvc exp run -S`` would."""
    if wanted:
        _dvc.apply_overrides(root / "params.yaml", wanted)
        get_run_logger().info("params.yaml: set %s", ", ".join(wanted))


def main() -> None:
    """Run the flow here and now: on the server of PREFECT_API_URL, else on a temporary one."""
    api_url = os.environ.get("PREFECT_API_URL")
    if api_url and not server_answers(api_url):
        raise UserError(
            f"PREFECT_API_URL={api_url}: no Prefect server answers there; start one with "
            "'python -m flows.serve', or unset the variable"
        )
    train_metricgold()


if __name__ == "__main__":
    run_cli(main)
