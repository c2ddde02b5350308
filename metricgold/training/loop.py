"""The one training loop: every stage hands it parameters and a loss, nothing else differs."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import math
import os
import resource
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from metricgold.config import OptimizerConfig, TrackingConfig
from metricgold.errors import UserError
from metricgold.progress import progress_bar
from metricgold.training import checkpoint, sharding, tracking
from metricgold.training.accelerator import is_main, make_accelerator, wait_for_everyone
from metricgold.training.loader import Batch, BatchLoader, MicroBatches, loader_workers
from metricgold.training.optimizers import Optimizers

CURVE_POINTS = 40
"""Rows of a learning curve."""

DIVERGED, SPAN, FALL = 3.0, 10, 0.01
"""A loss this many times its least one diverges; it stands still if over the last SPAN rows it is
not less by the share FALL than over the SPAN before."""


class TrainingError(UserError):
    """Training cannot go on; the message names the stage, the step and what happened."""


class Objective(nn.Module, ABC):
    """What a run minimises. ``network`` is trained and checkpointed; other parts are frozen."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @abstractmethod
    def forward(self, number: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Named scalars of one micro-batch; ``loss`` is minimised, the others are for the curve.

        Args:
            number: of the micro-batch, from 0.
            batch: what it holds, on the CPU.
            generator: its random numbers, on the CPU; there are no others.
        """


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run.

    Attributes:
        name: the stage.
        objective: what is minimised.
        optimizer: its section of params.yaml.
        batches: the micro-batches, ``steps * accumulation`` of them.
        scratch: folder for checkpoints while it runs.
        curve: CSV file for the learning curve, or None.
        workers: processes that read ahead, see :func:`loader_workers`; results do not depend on it.
        tracking: who else is told the losses, see :mod:`metricgold.training.tracking`.
        validate: called with the step every ``tracking.validate_every``; figures for trackers.
        seed: decides every random number together with the micro-batch number.
        identity: whatever else must match for a checkpoint to be resumed.
    """

    name: str
    objective: Objective
    optimizer: OptimizerConfig
    batches: MicroBatches
    scratch: Path
    seed: int
    identity: str = ""
    curve: Path | None = None
    workers: int | None = None
    tracking: TrackingConfig | None = None
    validate: Callable[[int], dict[str, float]] | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the run: a checkpoint of another run is not resumed."""
        text = f"{self.name}|{self.seed}|{self.optimizer.model_dump_json()}|{self.identity}"
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class _Part:
    """One micro-batch of a step and its losses."""

    number: int
    batch: Batch
    losses: dict[str, Tensor]


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


class Average:
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

    def load(self, values: list[Tensor]) -> None:
        """What ``values`` held at a checkpoint, where the parameters are."""
        pairs = zip(values, self.parameters, strict=False)
        self.values = [sharding.divided_like(value, p.detach()) for value, p in pairs]

    @torch.no_grad()
    def apply(self) -> None:
        """Put the average in place of the weights."""
        for parameter, value in zip(self.parameters, self.values, strict=False):
            parameter.copy_(value)


def compile_network(network: nn.Module) -> None:
    """Let torch compile a network in place; a VAE by its parts, which are what is called."""
    if isinstance(network, AutoencoderKL | AutoencoderTiny):
        network.encoder.compile()
        network.decoder.compile()
    else:
        network.compile()


def train(run: Run) -> dict[str, float]:
    """Train the network in place; resumes from ``run.scratch``; returns the last means.

    With several processes each takes its share of every step's micro-batches. The last
    checkpoint stays in ``run.scratch`` until the stage has written its output and calls
    ``checkpoint.discard``.

    Raises:
        TrainingError: the loss or a gradient is not finite, or the micro-batches of a step cannot
            be shared evenly.
    """
    config = run.optimizer
    accelerator = make_accelerator(config.precision, run.tracking)
    if run.tracking:
        tracking.start(accelerator, run.tracking, run.name, config.model_dump())
    given = run.objective.network
    network = _placed(run, accelerator)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = Optimizers(network, config)
    objective = optimizer.prepare(accelerator, run.objective, sharding.is_divided(network))
    average = Average(parameters, config.ema_decay)
    rows, window, start = _resume(run, optimizer, average, accelerator)
    loader = _loader(run, start, accelerator)
    batches = iter(loader)
    began = time.perf_counter()
    bar = progress_bar(description=run.name, total=config.steps, unit="step", disable=not is_main())
    bar.update(start)
    for step in range(start, config.steps):
        optimizer.set_rate(learning_rate(config, step) / config.lr)
        means, parts = _accumulate(run, objective, step, batches, accelerator)
        if not math.isfinite(means["loss"]):
            _stop(run, f"loss is {means['loss']}", step, parts)
        norm = float(sharding.whole(accelerator.clip_grad_norm_(parameters, config.grad_clip)))
        if not math.isfinite(norm) and config.precision != "fp16":  # fp16 skips such steps
            _stop(run, f"gradient norm is {norm}", step, parts)
        optimizer.step()
        average.update(step)
        window.append({**means, "grad_norm": norm})
        bar.update(1)
        bar.set_postfix(_shown(means["loss"], step + 1 - start, run, began), refresh=False)
        if run.tracking and (step + 1) % run.tracking.every == 0:
            accelerator.log({**means, "grad_norm": norm}, step + 1)
        _validate(run, accelerator, step + 1, bar)
        if (step + 1) % max(1, config.steps // CURVE_POINTS) == 0 or step + 1 == config.steps:
            rows.append(_row(step + 1, window, learning_rate(config, step)))
            window.clear()
            _warn(run, rows, bar)
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            _save(run, step + 1, _state(run, optimizer, average, accelerator, rows, window))
    bar.close()
    average.apply()
    _finish(run, accelerator, given)
    if is_main():
        _write_curve(run.curve, rows)
        seconds = time.perf_counter() - began
        waited = f"{loader.waited_s:.1f} s of them waiting for data"
        print(f"{run.name}: {config.steps - start} steps in {seconds:.1f} s, {waited}", flush=True)
    return rows[-1] if rows else {}


def _finish(run: Run, accelerator: Accelerator, given: nn.Module) -> None:
    """Close the trackers; a divided network's weights go back to the one that was ``given``."""
    for tracker in accelerator.trackers:
        tracker.finish()
    trained = run.objective.network
    if trained is not given:
        given.load_state_dict(sharding.whole(trained.state_dict()))
        run.objective.network = given.to(accelerator.device)


def _placed(run: Run, accelerator: Accelerator) -> nn.Module:
    """The network where and as it is trained; with ``shard`` a copy, divided."""
    if run.optimizer.shard and accelerator.num_processes > 1:
        run.objective.network = sharding.sharded_copy(
            run.objective.network, accelerator.device, accelerator.num_processes
        )
    network = run.objective.to(accelerator.device).network
    if run.optimizer.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if run.optimizer.compile:
        compile_network(network)
    return network


def _save(run: Run, step: int, state: dict[str, Any]) -> None:
    """Let the main process write a checkpoint; no process goes on before."""
    if is_main():
        checkpoint.save(run.scratch, run.fingerprint, step, state)
    wait_for_everyone()


def _validate(run: Run, accelerator: Accelerator, step: int, bar: Any) -> None:
    """Let the main process look at some predictions when it is time."""
    if run.validate is None or run.tracking is None or step % run.tracking.validate_every:
        return
    if sharding.is_divided(run.objective.network):
        return  # nobody has it whole
    if is_main():
        found = run.validate(step)
        accelerator.log(found, step)
        told = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        bar.write(f"{run.name}: step {step}: {told}")
    accelerator.wait_for_everyone()


def _own_parts(run: Run, accelerator: Accelerator) -> range:
    """Which of a step's micro-batches this process takes."""
    parts, processes = run.optimizer.accumulation, accelerator.num_processes
    if parts % processes:
        raise TrainingError(
            f"{run.name}: a step's {parts} micro-batches ('accumulation') cannot be shared by "
            f"{processes} processes; make it a multiple of them"
        )
    return range(accelerator.process_index, parts, processes)


def _loader(run: Run, start: int, accelerator: Accelerator) -> BatchLoader:
    """This process's micro-batches from step ``start`` on."""
    config, own = run.optimizer, _own_parts(run, accelerator)
    numbers = [
        step * config.accumulation + part for step in range(start, config.steps) for part in own
    ]
    return BatchLoader(run.batches, numbers, loader_workers(run.workers, accelerator.device))


def _accumulate(
    run: Run,
    objective: nn.Module,
    step: int,
    batches: Iterator[Batch],
    accelerator: Accelerator,
) -> tuple[dict[str, float], list[_Part]]:
    """Forward and backward over the micro-batches of one step.

    Returns:
        The means of their losses over all processes, and what this process has seen.
    """
    own = _own_parts(run, accelerator)
    parts = []
    for part in own:
        number = step * run.optimizer.accumulation + part
        batch, generator = next(batches), micro_batch_generator(run.seed, number)
        sharding.synchronise(run.objective.network, part == own[-1])
        with nullcontext() if part == own[-1] else accelerator.no_sync(objective):
            losses = objective(number, batch, generator)
            accelerator.backward(losses["loss"] / len(own))
        parts.append(_Part(number, batch, {n: v.detach().float() for n, v in losses.items()}))
    values = torch.stack([torch.stack(list(part.losses.values())) for part in parts]).mean(0)
    means = accelerator.reduce(values, "mean").tolist()  # the one time the GPU is waited for
    return dict(zip(parts[0].losses, means, strict=True)), parts


def _stop(run: Run, what: str, step: int, parts: list[_Part]) -> NoReturn:
    """End the run, its micro-batches saved for a look."""
    bad = [p for p in parts if not torch.isfinite(p.losses["loss"])]
    if "loss" in what and not bad:
        raise TrainingError(f"{run.name}: {what} at step {step} in another process")
    kept = bad[:1] or parts
    numbers = ", ".join(str(part.number) for part in kept)
    path = run.scratch / f"not_finite_{kept[0].number}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save([dataclasses.asdict(part) for part in kept], path)
    raise TrainingError(
        f"{run.name}: {what} at step {step}, micro-batch {numbers}, which is kept in {path}; look "
        "at its depth, or lower 'lr'"
    )


def _shown(loss: float, steps: int, run: Run, began: float) -> dict[str, str]:
    """What stands behind the progress bar: loss, samples a second, memory."""
    samples = steps * run.optimizer.batch_size * run.optimizer.accumulation
    rate = samples / (time.perf_counter() - began)
    device = run.objective.device
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"loss": f"{loss:.4f}", "samples/s": f"{rate:.1f}", "GB": f"{memory / 1e9:.1f}"}


def _row(step: int, window: list[dict[str, float]], rate: float) -> dict[str, float]:
    names = window[0].keys()
    means = {n: round(sum(w[n] for w in window) / len(window), 6) for n in names}
    return {"step": step, **means, "lr": round(rate, 9)}


def loss_warning(rows: list[dict[str, float]], peak_rate: float) -> str | None:
    """What is wrong with the loss of a curve at its last row, or None.

    A loss may stand still while the rate is small, at the beginning and towards the end.
    """
    losses = [row["loss"] for row in rows]
    least = min(losses)
    if 0 < DIVERGED * least < losses[-1]:
        at = rows[losses.index(least)]["step"]
        return f"loss {losses[-1]:.4g} is far above the {least:.4g} of step {at}: it diverges"
    if len(losses) < 2 * SPAN or rows[-1]["lr"] < 0.2 * peak_rate:
        return None
    before, now = (sum(part) / SPAN for part in (losses[-2 * SPAN : -SPAN], losses[-SPAN:]))
    if before > 0 and now > (1 - FALL) * before:
        return f"loss has not fallen since step {rows[-SPAN]['step']} ({before:.4g}, now {now:.4g})"
    return None


def _warn(run: Run, rows: list[dict[str, float]], bar: Any) -> None:
    """Print a warning about the loss when it first applies."""
    now, before = (
        loss_warning(part, run.optimizer.lr) if part else None for part in (rows, rows[:-1])
    )
    known = before is not None and ("diverges" in before) == ("diverges" in str(now))
    if now and not known and is_main():
        bar.write(f"{run.name}: warning: {now}; a lower or higher 'lr' may help")


def _state(
    run: Run,
    optimizer: Optimizers,
    average: Average,
    accelerator: Accelerator,
    rows: list[dict[str, float]],
    window: list[dict[str, float]],
) -> dict[str, Any]:
    trained = {
        "network": run.objective.network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.values,
    }
    return {
        **sharding.whole(trained),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        "rows": rows,
        "window": window,
    }


def _resume(
    run: Run, optimizer: Optimizers, average: Average, accelerator: Accelerator
) -> tuple[list[dict[str, float]], list[dict[str, float]], int]:
    """Curve rows, the means since the last row, and the step to go on from."""
    state = checkpoint.load(run.scratch, run.fingerprint)
    if state is None:
        return [], [], 0
    sharding.load_whole(run.objective.network, state["network"])
    optimizer.load_state_dict(state["optimizer"])
    average.load(state["average"])
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(state["scaler"])
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
