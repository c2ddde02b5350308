"""``metricgold train``: the training stages of the pipeline, by DVC."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from metricgold.errors import UserError

STAGES = (
    "base_model",
    "train_vae",
    "cache_latents",
    "train_unet",
    "train_one_step",
    "train_light",
)


def train(
    profile: Annotated[
        str | None, typer.Option(help="Of params.yaml: smoke, demo, sd2, ... Default: its own.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-S", help="KEY=VALUE below the profile, as train_unet.optimizer.lr=1e-5."
        ),
    ] = None,
    until: Annotated[str, typer.Option(help=f"The last stage: {', '.join(STAGES)}.")] = STAGES[-1],
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Say what it will take, and leave.")
    ] = False,
) -> None:
    """Train a profile: depth VAE, U-Net, one step, light autoencoder; what is done is left alone.

    Run in a clone of the project. Without --profile and --set this is 'dvc repro' up to a stage;
    with them an experiment ('dvc exp show' compares those), whose values are written into
    params.yaml. Interrupted, it continues where it was when started again. The checkpoint is
    artifacts/metricgold; 'dvc repro' adds evaluation, export and report.
    """
    from metricgold.config import load_config
    from metricgold.training.accelerator import default_device
    from metricgold.training.plan import describe, plan

    if until not in STAGES:
        raise UserError(f"--until {until}: no training stage; take {', '.join(STAGES)}")
    if not Path("dvc.yaml").is_file():
        raise UserError(
            f"{Path.cwd()}: no dvc.yaml here; run this in a clone of the project (see its README)"
        )
    params = Path("params.yaml")
    config = load_config(params, profile)
    for line in describe(plan(config), default_device(), 1):
        print(line, flush=True)
    if plan_only:
        return
    arguments = command(chosen_profile(params, profile), profile, overrides or [], until)
    print("$", " ".join(["dvc", *arguments]), flush=True)
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)


def chosen_profile(params: Path, profile: str | None) -> str:
    """The profile that will be trained."""
    import yaml

    return profile or yaml.safe_load(params.read_text(encoding="utf-8"))["profile"]


def command(name: str, profile: str | None, overrides: list[str], until: str) -> list[str]:
    """What DVC is asked for.

    Raises:
        UserError: an override is not KEY=VALUE.
    """
    settings = [f"profile={profile}"] if profile else []
    for override in overrides:
        if not override.partition("=")[1]:
            raise UserError(f"--set {override}: write KEY=VALUE, as train_unet.optimizer.lr=1e-5")
        settings.append(f"profiles.{name}.{override}")
    if not settings:
        return ["repro", until]
    return ["exp", "run", *(word for one in settings for word in ("-S", one)), until]
