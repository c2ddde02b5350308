"""Reading ahead: the same batches in the same order, and what happens when reading fails."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from metricgold.config import OptimizerConfig, load_config
from metricgold.data.frames import FrameBank
from metricgold.data.sample import Frame
from metricgold.data.shard_writer import ShardWriter
from metricgold.data.shards import ShardError, ShardReader, encode_frame
from metricgold.errors import UserError
from metricgold.training import loader as module
from metricgold.training.autoencoder import FrameBatches
from metricgold.training.latents import CACHE_VERSION, LatentBank, LatentBatches
from metricgold.training.loader import Batch, BatchLoader, loader_workers
from metricgold.training.loop import Objective, Run, train

WORKERS = (0, 1, 3)
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
OPTIMIZER = OptimizerConfig(
    steps=10, batch_size=3, accumulation=2, lr=0.01, warmup_steps=1, decay="cosine",
    final_lr_ratio=0.1, weight_decay=0.0, grad_clip=1.0, ema_decay=0.0, precision="fp32",
    checkpoint_every=4,
)  # fmt: skip


class Numbered:
    """Micro-batch ``n`` is [n]; some cannot be read, some kill their reader."""

    def __init__(self, damaged: int = -1, deadly: int = -1, seconds: float = 0.0) -> None:
        self.damaged, self.deadly, self.seconds = damaged, deadly, seconds

    def __getitem__(self, number: int) -> Batch:
        if number == self.damaged:
            raise ShardError(f"a.h5: frame {number} is damaged")
        if number == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        return {"n": torch.tensor([number])}


@pytest.fixture
def frames(tmp_path: Path) -> FrameBatches:
    """Ten small frames of one dataset in a shard, in micro-batches."""
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path, "train") as writer:
        for number in range(10):
            frame = Frame(
                f"scene/{number}",
                "scene",
                rng.integers(0, 256, (24, 32, 3), dtype=np.uint8),
                rng.uniform(1, 9, (24, 32)).astype(np.float32),
                np.ones((24, 32), bool),
                np.zeros((24, 32), bool),
                np.array([[20.0, 0, 15.5], [0, 20.0, 11.5], [0, 0, 1]]),
            )
            writer.add(encode_frame(frame, 95))
    bank = FrameBank(ShardReader([tmp_path / "train-000.h5"]), (16, 16))
    config = load_config("params.yaml", "smoke")
    return FrameBatches(config, {"hypersim": bank}, OPTIMIZER, 3, ("rgb", "depth", "valid_mask"))


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        for a, b in zip(first, second, strict=True)
    )


def test_frames_are_the_same_and_in_order_with_any_number_of_processes(
    frames: FrameBatches,
) -> None:
    direct = [frames[n] for n in range(4, 20)]
    assert direct[0]["rgb"].shape == (3, 3, 16, 16)
    assert not torch.equal(direct[0]["depth"], direct[1]["depth"])
    for workers in WORKERS:
        assert equal(list(BatchLoader(frames, range(4, 20), workers)), direct), workers


def test_frames_are_the_same_in_a_spawned_process(frames: FrameBatches) -> None:
    """Nothing read so far, no file handle and no lock travels with them."""
    direct = frames[7]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(frames.__getitem__, (7,))
    assert equal([there], [direct])


def written_cache(folder: Path) -> Path:
    """Twenty rows, each with its number for a field of view."""
    path = folder / "hypersim.h5"
    with h5py.File(path, "w") as file:
        file.attrs["version"], file.attrs["weights"] = CACHE_VERSION, "these"
        file["rgb_latent"] = np.arange(2000, dtype=np.float16).reshape(20, 100)
        file["fov_y_deg"] = np.arange(20, dtype=np.float32)
    return path


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_latents_are_the_same_with_any_number_of_processes(tmp_path: Path, limit: int) -> None:
    bank = LatentBank(written_cache(tmp_path), "these", memory_limit_bytes=limit)
    config = load_config("params.yaml", "smoke")
    rows = LatentBatches(config, {"hypersim": bank}, OPTIMIZER, 3, ("rgb_latent", "fov_y_deg"))
    direct = [rows[n] for n in range(20)]
    for workers in WORKERS:
        assert equal(list(BatchLoader(rows, range(20), workers)), direct), workers


@pytest.mark.parametrize("workers", [0, 2])
def test_training_does_not_depend_on_who_reads(
    tmp_path: Path, frames: FrameBatches, workers: int
) -> None:
    """With and without processes, whole and resumed: the same weights, bit for bit."""

    def trained(folder: str, workers: int, stop_at: int | None = None) -> nn.Module:
        torch.manual_seed(1)
        network = nn.Conv2d(3, 1, 3, padding=1)

        class Toy(Objective):
            def forward(self, number: int, batch: Batch, generator: torch.Generator) -> Batch:
                if number == stop_at:
                    raise KeyboardInterrupt
                target = batch["depth"] + torch.rand(1, generator=generator)
                return {"loss": (self.network(batch["rgb"]) - target).abs().mean()}

        train(
            Run(
                name="toy", objective=Toy(network), optimizer=OPTIMIZER, batches=frames,
                scratch=tmp_path / folder, seed=2, workers=workers,
            )
        )  # fmt: skip
        return network

    whole = trained("whole", 0)
    with pytest.raises(KeyboardInterrupt):
        trained("parts", workers, stop_at=13)
    parts = trained("parts", workers)
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value)


@pytest.mark.parametrize("workers", WORKERS)
def test_what_cannot_be_read_is_told_when_its_turn_comes(workers: int) -> None:
    batches = iter(BatchLoader(Numbered(damaged=5), range(9), workers))
    assert [next(batches)["n"].item() for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ShardError) as told:
        next(batches)
    assert str(told.value) == "a.h5: frame 5 is damaged"


def test_a_reader_that_dies_is_told_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"reads training data died .* lower 'loader\.workers'$"):
        list(BatchLoader(Numbered(deadly=3), range(9), 2))


def test_other_errors_stay_what_they_are() -> None:
    """A mistake in the code is not the user's: the traceback is wanted."""

    class Broken(Numbered):
        def __getitem__(self, number: int) -> Batch:
            raise RuntimeError("a mistake")

    for workers in (0, 1):
        with pytest.raises(RuntimeError, match="a mistake"):
            list(BatchLoader(Broken(), range(2), workers))


def test_reading_draws_no_number_from_torch() -> None:
    states = []
    for workers in WORKERS:
        torch.manual_seed(4)
        list(BatchLoader(Numbered(), range(3), workers))
        states.append(torch.get_rng_state())
    assert all(torch.equal(state, states[0]) for state in states)
    torch.manual_seed(4)
    assert torch.equal(states[0], torch.get_rng_state())


def test_time_waited_is_what_reading_took() -> None:
    """Read in line, reading is waited for whole; read ahead of a slower step, hardly."""
    waited = {}
    for workers in (0, 2):
        loader = BatchLoader(Numbered(seconds=0.02), range(12), workers)
        first = None
        for _ in loader:
            time.sleep(0.06)
            first = loader.waited_s if first is None else first  # starting processes takes a while
        assert first is not None
        waited[workers] = loader.waited_s - first
    assert waited[0] >= 11 * 0.02
    assert waited[2] < waited[0] / 2


def test_processes_by_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert loader_workers(None, cpu) == 0
    for cores, expected in ((1, 0), (2, 1), (6, 5), (64, 8)):
        monkeypatch.setattr(module.os, "sched_getaffinity", lambda _, n=cores: set(range(n)))
        assert loader_workers(None, gpu) == expected
    assert loader_workers(3, cpu) == 3 == loader_workers(3, gpu)
