"""What a prediction costs: time, memory, parameters; each model alone in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection

from metricgold.errors import UserError
from metricgold.evaluation.predictor_names import PredictorName
from metricgold.evaluation.predictors import Observation

STEPS = (1, 4, 10)
"""Denoising steps that diffusion models are timed with."""
WARM_UP = 2


@dataclass(frozen=True)
class Cost:
    """Of one picture, from uint8 to metres at its own size.

    Attributes:
        steps: denoising steps, or None where there is no such thing.
        milliseconds: median over the pictures, after :data:`WARM_UP`.
        peak_bytes: most memory at once: of the GPU, else of the whole process.
        parameters: of the model, None if unknown.
        device: what it ran on.
    """

    steps: int | None
    milliseconds: float
    peak_bytes: int
    parameters: int | None
    device: str


def costs(name: PredictorName, pictures: Sequence[Observation], device: str) -> list[Cost]:
    """Of a model on these pictures, one at a time; a diffusion model at each of :data:`STEPS`.

    Raises:
        UserError: it cannot be loaded, or its process died (too little memory, for one).
    """
    if "steps" in name.accepted:
        return [_apart(name.with_options(steps=n), n, pictures, device) for n in STEPS]
    return [_apart(name, None, pictures, device)]


def _apart(
    name: PredictorName, steps: int | None, pictures: Sequence[Observation], device: str
) -> Cost:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_measure, args=(there, name, steps, list(pictures), device))
    process.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:
        process.join()
        raise UserError(f"{name.label}: its process ended with {process.exitcode}") from None
    finally:
        here.close()
    process.join()
    if isinstance(found, str):
        raise UserError(found)
    return Cost(**found)


def _measure(
    answer: Connection,
    name: PredictorName,
    steps: int | None,
    pictures: list[Observation],
    device: str,
) -> None:
    """Runs in the other process; answers with a :class:`Cost` as a dictionary, or a reason."""
    try:
        answer.send(asdict(_cost(name, steps, pictures, device)))
    except UserError as error:
        answer.send(str(error))
    finally:
        answer.close()


def _cost(name: PredictorName, steps: int | None, pictures: list[Observation], device: str) -> Cost:
    import torch

    predictor = name.open(device)
    on_gpu = device.startswith("cuda")
    times = []
    for one in [*pictures[:1] * WARM_UP, *pictures]:
        gc.collect()
        began = time.perf_counter()
        predictor.predict([one])
        times.append(time.perf_counter() - began)
    return Cost(
        steps=steps,
        milliseconds=1000 * statistics.median(times[WARM_UP:]),
        peak_bytes=torch.cuda.max_memory_allocated(device) if on_gpu else _peak_of_process(),
        parameters=predictor.parameters,
        device=torch.cuda.get_device_name(device) if on_gpu else device,
    )


def _peak_of_process() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
