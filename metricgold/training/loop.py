"""The one training loop: every stage hands it parameters and a loss, nothing else differs."""

from __future__ import annotations

import csv
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metricgold.config import OptimizerConfig
from metricgold.errors import UserError
from metricgold.progress import progress_bar
from metricgold.training import checkpoint
from metricgold.training.loader import Batch, BatchLoader, MicroBatches, loader_workers
from metricgold.training.optimizers import Optimizers

LossFunction = Callable[[int, Batch, torch.Generator], dict[str, Tensor]]
"""(micro-batch number from 0, what it holds, its generator) to named scalars with ``loss``."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingError(UserError):
    """Training cannot go on; the message names the stage, the step and what happened."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run.

    Attributes:
        name: the stage.
        network: what is trained and checkpointed.
        optimizer: its section of params.yaml.
        batches: the micro-batches, ``steps * accumulation`` of them.
        loss: see :data:`LossFunction`.
        scratch: folder for checkpoints while it runs.
        curve: CSV file for the learning curve, or None.
        workers: processes that read ahead, see :func:`loader_workers`; results do not depend on it.
        seed: decides every random number together with the micro-batch number.
        identity: whatever else must match for a checkpoint to be resumed.
    """

    name: str
    network: nn.Module
    optimizer: OptimizerConfig
    batches: MicroBatches
    loss: LossFunction
    scratch: Path
    seed: int
    identity: str = ""
    curve: Path | None = None
    workers: int | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the run: a checkpoint of another run is not resumed."""
        text = f"{self.name}|{self.seed}|{self.optimizer.model_dump_json()}|{self.identity}"
        return hashlib.sha256(text.encode()).hexdigest()


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """Rate at optimizer step ``step`` (from 0): linear warm-up, then the decay of the config."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(1, config.steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    floor = config.final_lr_ratio
    if config.decay == "constant":
        return config.lr
    if config.decay == "exponential":
        return config.lr * max(floor, 1e-8) ** progress
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def micro_batch_generator(seed: int, micro_batch: int) -> torch.Generator:
    """The random numbers of one micro-batch, whatever ran before it."""
    digest = hashlib.sha256(f"{seed}/{micro_batch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def autocast(precision: str, device: torch.device) -> Any:
    """The autocast context of a precision name (fp32: none)."""
    return torch.autocast(device.type, _DTYPES[precision], enabled=precision != "fp32")


def default_device() -> torch.device:
    """The GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_all_cores() -> None:
    """Let torch use every core this process may run on."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))


class _Average:
    """Exponential moving average of the trainable parameters (off at decay 0)."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.values = [p.detach().clone() for p in parameters] if decay else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Blend the current weights in; early steps count more."""
        if self.values:
            decay = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the average in place of the weights."""
        for parameter, value in zip(self.parameters, self.values, strict=False):
            parameter.copy_(value)


def train(run: Run) -> dict[str, float]:
    """Train ``run.network`` in place; resumes from ``run.scratch``; returns the last means.

    The last checkpoint stays in ``run.scratch`` until the stage has written its output and
    calls ``checkpoint.discard``.

    Raises:
        TrainingError: the loss or a gradient is not finite.
    """
    config = run.optimizer
    parameters = [p for p in run.network.parameters() if p.requires_grad]
    optimizer = Optimizers(run.network, config)
    average = _Average(parameters, config.ema_decay)
    rows, window, start = _resume(run, optimizer, average)
    device = parameters[0].device
    loader = _loader(run, start, device)
    batches = iter(loader)
    began = time.perf_counter()
    bar = progress_bar(description=run.name, total=config.steps, unit="step")
    bar.update(start)
    for step in range(start, config.steps):
        optimizer.set_rate(learning_rate(config, step) / config.lr)
        means = _accumulate(run, step, batches, device)
        norm = float(nn.utils.clip_grad_norm_(parameters, config.grad_clip))
        if not math.isfinite(norm):
            raise TrainingError(f"{run.name}: gradient norm is {norm} at step {step}; lower 'lr'")
        optimizer.step()
        average.update(step)
        window.append({**means, "grad_norm": norm})
        bar.update(1)
        bar.set_postfix(loss=f"{means['loss']:.4f}", refresh=False)
        if (step + 1) % max(1, config.steps // 40) == 0 or step + 1 == config.steps:
            rows.append(_row(step + 1, window, learning_rate(config, step)))
            window.clear()
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            state = _state(run, optimizer, average, rows, step + 1, window)
            checkpoint.save(run.scratch, run.fingerprint, state)
    bar.close()
    average.apply()
    _write_curve(run.curve, rows)
    seconds = time.perf_counter() - began
    waited = f"{loader.waited_s:.1f} s of them waiting for data"
    print(f"{run.name}: {config.steps - start} steps in {seconds:.1f} s, {waited}", flush=True)
    return rows[-1] if rows else {}


def _loader(run: Run, start: int, device: torch.device) -> BatchLoader:
    """The micro-batches from step ``start`` on."""
    config = run.optimizer
    numbers = range(start * config.accumulation, config.steps * config.accumulation)
    return BatchLoader(run.batches, numbers, loader_workers(run.workers, device))


def _accumulate(
    run: Run, step: int, batches: Iterator[Batch], device: torch.device
) -> dict[str, float]:
    """Forward and backward over the micro-batches of one step; their mean losses."""
    config = run.optimizer
    sums: dict[str, float] = {}
    for part in range(config.accumulation):
        micro_batch = step * config.accumulation + part
        batch, generator = next(batches), micro_batch_generator(run.seed, micro_batch)
        with autocast(config.precision, device):
            losses = run.loss(micro_batch, batch, generator)
        loss = losses["loss"]
        if not torch.isfinite(loss):
            raise TrainingError(
                f"{run.name}: loss is {loss.item()} at step {step}, micro-batch {micro_batch}"
            )
        (loss / config.accumulation).backward()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) / config.accumulation
    return sums


def _row(step: int, window: list[dict[str, float]], rate: float) -> dict[str, float]:
    names = window[0].keys()
    means = {n: round(sum(w[n] for w in window) / len(window), 6) for n in names}
    return {"step": step, **means, "lr": round(rate, 9)}


def _state(
    run: Run,
    optimizer: Optimizers,
    average: _Average,
    rows: list[dict[str, float]],
    step: int,
    window: list[dict[str, float]],
) -> dict[str, Any]:
    return {
        "network": run.network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.values,
        "rows": rows,
        "window": window,
        "step": step,
    }


def _resume(
    run: Run, optimizer: Optimizers, average: _Average
) -> tuple[list[dict[str, float]], list[dict[str, float]], int]:
    """Curve rows, the means since the last row, and the step to go on from."""
    state = checkpoint.load(run.scratch, run.fingerprint)
    if state is None:
        return [], [], 0
    run.network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    average.values = list(state["average"])
    print(f"{run.name}: resuming at step {state['step']} of {run.optimizer.steps}", flush=True)
    return list(state["rows"]), list(state["window"]), int(state["step"])


def _write_curve(path: Path | None, rows: list[dict[str, float]]) -> None:
    if path is None or not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)
