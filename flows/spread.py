"""Preprocess or evaluate from URI to URI, without DVC: ``python -m flows.spread``.

``preprocess`` reads what the stage ``download`` left (archives and ``manifest.json``) and writes
the dataset's shards and ``report.json``; ``evaluate`` reads such shards and a checkpoint and writes
figures, ``per_frame.csv`` and pictures. Settings are those of params.yaml. A target that was made
from the same, by the same code, is left as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flows._environment import prepare_environment
from flows._process import exit_on_sigterm
from flows._spread import chosen_spread
from metricgold.config import DATASET_NAMES, DatasetName, ProfileConfig, load_config
from metricgold.errors import UserError, run_cli
from metricgold.places import Place
from metricgold.spread import Spread, code_hash, hashed
from metricgold.workspace import Workspace

STAMP = "stamp.json"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.spread", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    preprocess = commands.add_parser("preprocess", help="archives to shards")
    preprocess.add_argument("--source", required=True, help="folder that 'download' left")
    evaluate = commands.add_parser("evaluate", help="shards and a checkpoint to figures")
    evaluate.add_argument("--shards", required=True, help="folder that 'preprocess' left")
    evaluate.add_argument("--model", required=True, help="folder of the checkpoint")
    for command in (preprocess, evaluate):
        command.add_argument("--dataset", required=True, choices=DATASET_NAMES)
        command.add_argument("--target", required=True, help="folder to write")
        command.add_argument("--runner", default="", help="as METRICGOLD_RUNNER; default threads")
        command.add_argument("--shared", help="folder that all machines reach; beside the target")
    return parser.parse_args(arguments)


def main() -> None:
    """Do what the command line says."""
    prepare_environment()
    exit_on_sigterm()
    options, config = parse(), load_config()
    if not config.datasets[options.dataset].enabled:
        raise UserError(f"{options.dataset}: weight 0 in this profile; give it one in params.yaml")
    target = Place(options.target)
    work = f"{options.command}@{options.dataset}"
    threads = config.preprocess.workers if options.command == "preprocess" else 1
    shared = options.shared or f"{options.target.rstrip('/')}.pieces"
    spread = chosen_spread(work, threads, options.runner, shared) or chosen_spread(
        work, threads, "threads", shared
    )
    assert spread is not None
    if options.command == "preprocess":
        preprocess(config, options.dataset, Place(options.source), target, spread)
    else:
        evaluate(
            config, options.dataset, Place(options.shards), Place(options.model), target, spread
        )


def preprocess(
    config: ProfileConfig, dataset: DatasetName, source: Place, target: Place, spread: Spread
) -> None:
    """Shards of what ``source`` has, in ``target``; see :func:`metricgold.data.preprocess.run`."""
    from metricgold.data import preprocess as stage
    from metricgold.data.conversion import settings_that_matter

    manifest = (source / "manifest.json").read()
    if manifest is None:
        raise UserError(f"{source}: no manifest.json; run the stage 'download' and copy its folder")
    stamp = _stamp([settings_that_matter(config, dataset), manifest.decode()])
    if _is_made(target, stamp):
        return
    with TemporaryDirectory(prefix="metricgold-") as folder:
        workspace = Workspace(Path(folder))
        stage.run(config, workspace, dataset, spread, source)
        _publish(workspace.shards(dataset), target, stamp)


def evaluate(
    config: ProfileConfig,
    dataset: DatasetName,
    shards: Place,
    model: Place,
    target: Place,
    spread: Spread,
) -> None:
    """Figures of ``model`` on ``shards``; see :func:`metricgold.evaluation.benchmark.run`."""
    from metricgold.data.files import sha256_of
    from metricgold.evaluation import benchmark
    from metricgold.memory import keep_freed_memory

    with TemporaryDirectory(prefix="metricgold-") as folder:
        workspace = Workspace(Path(folder))
        origins = _fetched(shards, workspace.shards(dataset)) | _fetched(model, workspace.model)
        content = [
            [path.relative_to(folder).as_posix(), sha256_of(path)] for path in sorted(origins)
        ]
        stamp = _stamp([dataset, config.model_dump(mode="json"), content])
        if _is_made(target, stamp):
            return
        keep_freed_memory()
        benchmark.run(config, workspace, dataset, replace(spread, origins=origins))
        made = workspace.predictions / dataset
        for figures in (*workspace.metrics.iterdir(), *workspace.plots.iterdir()):
            figures.rename(made / figures.name)
        _publish(made, target, stamp)


def _fetched(place: Place, folder: Path) -> dict[Path, Place]:
    """Bring all files of ``place`` to ``folder``; where each comes from."""
    origins = {folder / name: place.absolute / name for name in place.names()}
    if not origins:
        raise UserError(f"{place}: there is nothing")
    for path, origin in origins.items():
        if origin.local is None:
            origin.get(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(origin.local)
    return origins


def _stamp(parts: list[Any]) -> bytes:
    return json.dumps({"made_from": hashed([*parts, code_hash()])}).encode()


def _is_made(target: Place, stamp: bytes) -> bool:
    if (target / STAMP).read() != stamp:
        return False
    print(f"{target}: up to date")
    return True


def _publish(folder: Path, target: Place, stamp: bytes) -> None:
    """Make ``target`` hold the files of ``folder`` and nothing else; the stamp comes last."""
    (target / STAMP).remove()
    names = Place(str(folder)).names()
    for name in set(target.names()) - set(names):
        (target / name).remove()
    for name in names:
        (target / name).put(folder / name)
    (target / STAMP).write(stamp)
    print(f"{target}: {len(names)} files")


if __name__ == "__main__":
    run_cli(main)
