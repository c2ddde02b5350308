"""What each part of the method is worth: the demo without it, judged on validation worlds.

Usage: python scripts/ablations.py [--scale 0.3] [--only name,name] [--render 1.0]

Needs the shards of a finished demo run (``dvc repro preprocess``). Every variant trains on the
demo's own frames with the demo's settings but for one thing; the steps of stages B and C are scaled
by ``--scale``. It is judged on worlds of a third set of seeds, which are in neither split of the
profile: held-out scenes stay unseen. Everything lies in ``.work/ablations``; what is finished there
is not made again. Table: ``docs/benchmarks/ablations.json`` and, on the screen, Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from metricgold.config import ProfileConfig, load_config
from metricgold.data import download, preprocess, procedural_source, source
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.depth_codec import DepthCodec
from metricgold.errors import UserError, run_cli
from metricgold.evaluation.engine import evaluate
from metricgold.evaluation.metrics import METRIC_NAMES, mean_over_images
from metricgold.evaluation.predictors import PipelinePredictor
from metricgold.model import build_toy_vae
from metricgold.pipeline import MetricGoldPipeline
from metricgold.progress import progress_bar
from metricgold.training import base_model, latents, one_step, unet, vae
from metricgold.training.autoencoder import set_scaling_factor
from metricgold.training.banks import depth_norm_of, first_frames, open_banks
from metricgold.training.base_model import BaseModel
from metricgold.workspace import Workspace

WORK = Path(".work/ablations")
RESULT = Path("docs/benchmarks/ablations.json")
FIGURES = (*METRIC_NAMES, "boundary_f1")
VALIDATION_SEED = 2_000_000
"""Validation worlds begin here; held-out ones at 1,000,000, training ones below."""

Change = Callable[[ProfileConfig], ProfileConfig]


class LinearCodec(DepthCodec):
    """Depth, not its logarithm, to [-1, 1]."""

    def encode(self, depth: Any) -> Any:
        """As the log codec's, linear in metres."""
        log_norm = super().encode(depth)  # also takes care of what is no depth
        metres = super().decode(log_norm)
        return 2 * (metres - self.depth_min_m) / (self.depth_max_m - self.depth_min_m) - 1

    def decode(self, depth_norm: Any) -> Any:
        """The inverse."""
        clip = np.clip if isinstance(depth_norm, np.ndarray) else torch.clamp
        share = (clip(depth_norm, -1.0, 1.0) + 1) / 2
        return self.depth_min_m + share * (self.depth_max_m - self.depth_min_m)


def unchanged(config: ProfileConfig) -> ProfileConfig:
    """The demo as it is."""
    return config


@dataclass(frozen=True)
class Variant:
    """The demo with one thing changed.

    Attributes:
        name, what: short, and in words.
        change: of the configuration.
        codec: ``log`` or ``linear``.
        depth_vae: ``tuned``; ``image``: the image VAE as it is; ``scratch``: trained from random
            weights instead of the image VAE's.
        one_step: whether stage C follows stage B.
        inference_steps: the numbers of steps it is judged at.
        camera: whether the camera is told at evaluation.
    """

    name: str
    what: str
    change: Change = unchanged
    codec: str = "log"
    depth_vae: str = "tuned"
    one_step: bool = True
    inference_steps: tuple[int, ...] = (1,)
    camera: bool = True


def section(name: str, **changes: Any) -> Change:
    """Change keys of one section."""

    def change(config: ProfileConfig) -> ProfileConfig:
        new = getattr(config, name).model_copy(update=changes)
        return config.model_copy(update={name: new})

    return change


def both(*changes: Change) -> Change:
    """One change after the other."""

    def change(config: ProfileConfig) -> ProfileConfig:
        for one in changes:
            config = one(config)
        return config

    return change


def steps(config: ProfileConfig, b: int | None = None, scale: float = 1.0) -> ProfileConfig:
    """Stage B with ``b`` steps; all steps of B and C scaled."""

    def scaled(optimizer: Any, number: int | None = None) -> Any:
        count = max(1, round((number or optimizer.steps) * scale))
        return optimizer.model_copy(
            update={"steps": count, "warmup_steps": min(optimizer.warmup_steps, count // 5)}
        )

    c = config.train_one_step
    changed = section("train_unet", optimizer=scaled(config.train_unet.optimizer, b))(config)
    phases = {"latent_phase": scaled(c.latent_phase), "optimizer": scaled(c.optimizer)}
    return section("train_one_step", **phases)(changed)


def all_steps_to_b(config: ProfileConfig) -> ProfileConfig:
    """As many steps of stage B as B and C have together."""
    c = config.train_one_step
    total = config.train_unet.optimizer.steps + c.latent_phase.steps + c.optimizer.steps
    return steps(config, b=total)


PLAIN = section("train_one_step", scale_loss_weight=0.0, relative_loss_weight=0.0)
NO_AUXILIARY = section("train_one_step", auxiliary_loss_weight=0.0)
NO_FOV = both(section("train_unet", fov_dropout=1.0), section("train_one_step", fov_dropout=1.0))
VARIANTS = (
    Variant("demo", "everything as it is"),
    Variant("plain-loss", "log codec, L1 and gradients alone in stage C", PLAIN),
    Variant("no-auxiliary", "latent phase without the head that gives depth", NO_AUXILIARY),
    Variant("linear", "linear codec, the same loss", PLAIN, codec="linear"),
    Variant("image-vae", "depth through the image VAE, not fine-tuned", depth_vae="image"),
    Variant("scratch-vae", "depth VAE trained from random weights", depth_vae="scratch"),
    Variant("no-camera", "field of view never told", NO_FOV, camera=False),
    Variant("no-stage-b", "stage C from the base model", lambda c: steps(c, b=1)),
    Variant(
        "no-stage-c",
        "stage B alone, with all the steps",
        all_steps_to_b,
        one_step=False,
        inference_steps=(1, 4, 10),
    ),
)


def prepare_data(config: ProfileConfig, render: float) -> Workspace:
    """The demo's training shards, and shards of validation worlds as ``holdout``."""
    made, done = Workspace(WORK / "data"), WORK / "data" / "done"
    if done.exists():
        return made
    shutil.rmtree(WORK / "data", ignore_errors=True)
    rendered = Workspace(WORK / "rendered")
    with mock.patch.object(procedural_source, "HOLDOUT_SEED", VALIDATION_SEED):
        for name, dataset in config.enabled_datasets().items():
            if not shard_paths(Workspace().shards(name), "train"):
                raise UserError(f"{Workspace().shards(name)}: no shards; run 'dvc repro' first")
            assert dataset.procedural is not None
            holdout = max(1, round(dataset.procedural.holdout_scenes * render))
            few = dataset.procedural.model_copy(
                update={"train_scenes": 1, "holdout_scenes": holdout}
            )
            datasets = {**config.datasets, name: dataset.model_copy(update={"procedural": few})}
            small = config.model_copy(update={"datasets": datasets})
            source.run(small, rendered, name)
            download.run(small, rendered, name)
            preprocess.run(small, rendered, name)
            made.shards(name).mkdir(parents=True)
            for path in shard_paths(Workspace().shards(name), "train"):
                (made.shards(name) / path.name).symlink_to(path.resolve())
            for path in shard_paths(rendered.shards(name), "holdout"):
                shutil.move(path, made.shards(name) / path.name)
    shutil.rmtree(WORK / "rendered")
    done.touch()
    return made


def link(target: Path, path: Path) -> None:
    """``path`` shows what ``target`` holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_symlink():
        path.symlink_to(target.resolve())


def once(folder: Path, make: Callable[[], None]) -> None:
    """Make a folder that is not there yet."""
    if not folder.exists():
        make()


@contextlib.contextmanager
def codec_of(variant: Variant) -> Iterator[None]:
    """Every module's depth codec is the variant's inside the block."""
    if variant.codec == "log":
        yield
        return
    places = ("training.vae", "training.latents", "pretrained", "evaluation.floor")
    with contextlib.ExitStack() as stack:
        for place in places:
            stack.enter_context(mock.patch(f"metricgold.{place}.DepthCodec", LinearCodec))
        yield


def make_depth_vae(variant: Variant, config: ProfileConfig, workspace: Workspace) -> None:
    """The variant's depth VAE into ``workspace.depth_vae``."""
    if variant.depth_vae == "tuned":
        vae.run(config, workspace)
        return
    if variant.depth_vae == "scratch":
        own = Workspace(workspace.root / "scratch")
        model = BaseModel.load(workspace.base_model)
        assert config.base_model.toy is not None
        torch.manual_seed(config.seed)
        replace(model, image_vae=build_toy_vae(config.base_model.toy)).save(own.base_model)
        for name in config.enabled_datasets():
            link(workspace.shards(name), own.shards(name))
        vae.run(config, own)
        link(own.depth_vae, workspace.depth_vae)
        return
    image_vae = BaseModel.load(workspace.base_model).image_vae
    codec = DepthCodec(config.codec.depth_min_m, config.codec.depth_max_m)
    known = first_frames(open_banks(config, workspace, "train"), vae.FLOOR_FRAMES).values()
    norms = [depth_norm_of(codec, b["depth"], b["valid_mask"])[0] for b in known]
    set_scaling_factor(image_vae, [n.expand(-1, 3, -1, -1) for n in norms])
    image_vae.save_pretrained(workspace.depth_vae)


def train_variant(variant: Variant, config: ProfileConfig, data: Workspace) -> Workspace:
    """All stages of a variant; autoencoders and latents are shared where they are the same."""
    workspace = Workspace(WORK / variant.name)
    for name in config.enabled_datasets():
        link(data.shards(name), workspace.shards(name))
    shared = Workspace(WORK / "shared")
    for name in config.enabled_datasets():
        link(data.shards(name), shared.shards(name))
    once(shared.base_model, lambda: base_model.run(config, shared))
    link(shared.base_model, workspace.base_model)
    ordinary = variant.codec == "log" and variant.depth_vae == "tuned"
    if ordinary:
        once(shared.depth_vae, lambda: vae.run(config, shared))
        once(shared.latents, lambda: latents.run(config, shared))
        link(shared.depth_vae, workspace.depth_vae)
        link(shared.latents, workspace.latents)
    else:
        once(workspace.depth_vae, lambda: make_depth_vae(variant, config, workspace))
        once(workspace.latents, lambda: latents.run(config, workspace))
    once(workspace.unet, lambda: unet.run(config, workspace))
    if variant.one_step:
        once(workspace.one_step, lambda: one_step.run(config, workspace))
    return workspace


def judge(
    variant: Variant, config: ProfileConfig, workspace: Workspace, inference_steps: int
) -> dict[str, float]:
    """Means over the validation frames, at native resolution and with no alignment."""
    folder = workspace.one_step if variant.one_step else workspace.unet
    pipeline = MetricGoldPipeline.from_pretrained(str(folder))
    codec = DepthCodec(config.codec.depth_min_m, config.codec.depth_max_m)
    rows = []
    for name, dataset in config.enabled_datasets().items():
        predictor = PipelinePredictor(
            pipeline,
            num_inference_steps=inference_steps,
            processing_resolution=max(dataset.train_size),
            use_fov=variant.camera,
        )
        reader = ShardReader(shard_paths(workspace.shards(name), "holdout"))
        limits = (codec.depth_min_m, codec.depth_max_m)
        scores = evaluate(reader, range(len(reader)), {"": predictor}, limits).scores[""]
        rows += [{name: row[name] for name in FIGURES} for row in scores.rows()]
    return mean_over_images(rows) | {"frames": float(len(rows))}


def main() -> None:
    """Train and judge the variants; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=0.3)
    parser.add_argument("--render", type=float, default=1.0, help="share of validation worlds")
    parser.add_argument("--only", default=",".join(v.name for v in VARIANTS))
    arguments = parser.parse_args()
    base = load_config("params.yaml", "demo")
    data = prepare_data(base, arguments.render)
    wanted = arguments.only.split(",")
    unknown = set(wanted) - {v.name for v in VARIANTS}
    if unknown:
        raise UserError(f"no variant {', '.join(sorted(unknown))}")
    result: dict[str, Any] = {"scale": arguments.scale, "variants": {}}
    if RESULT.exists():
        before = json.loads(RESULT.read_text(encoding="utf-8"))
        result["variants"] = before["variants"] if before["scale"] == arguments.scale else {}
    for variant in progress_bar(
        [v for v in VARIANTS if v.name in wanted], description="ablations", unit="variant"
    ):
        config = steps(variant.change(base), scale=arguments.scale)
        began = time.perf_counter()
        with codec_of(variant):
            workspace = train_variant(variant, config, data)
            seconds = time.perf_counter() - began
            for number in variant.inference_steps:
                figures = judge(variant, config, workspace, number)
                entry = {k: round(v, 4) for k, v in figures.items()}
                label = variant.name if number == 1 else f"{variant.name}, {number} steps"
                result["variants"][label] = {
                    "what": variant.what,
                    "inference_steps": number,
                    "seconds": round(seconds, 1),
                    **entry,
                }
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print("| variant | inference steps | AbsRel | δ1 | boundary F1 | what |")
    print("|---|---|---|---|---|---|")
    for label, row in result["variants"].items():
        figures = f"{row['abs_rel']:.3f} | {row['delta1']:.3f} | {row['boundary_f1']:.3f}"
        print(f"| {label} | {row['inference_steps']} | {figures} | {row['what']} |")


if __name__ == "__main__":
    run_cli(main)
