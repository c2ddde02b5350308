"""Training as a program: killed at any moment, and in two processes."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import trained
from torch import Tensor
from toy import TOY

from metricgold.model import build_toy_vae

TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
PROGRAM = Path(trained.__file__)
KILLS = 3
SAME = (("adamw", 1e-5, 1e-5), ("muon", 1e-3, 1e-3))
"""How far losses and weights may be apart: sums in another order, Muon's products in bfloat16."""


def start(folder: Path, *arguments: str, launch: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """The program in ``folder``; one thread a process and no GPU."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, *launch, str(PROGRAM), str(folder), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What it printed, once it has ended well."""
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    return printed


def weights(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "weights.pt", weights_only=True)


def losses(folder: Path) -> list[float]:
    with (folder / "curve.csv").open(newline="") as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream)]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_killed_at_random_and_started_again_it_ends_with_the_same_weights(
    tmp_path: Path, workers: str
) -> None:
    """SIGKILL some time after training has begun, drawn anew each time; bit for bit the same."""
    finished(start(tmp_path / "whole", "2"))
    broken, draw = tmp_path / "broken", random.Random()
    for _ in range(KILLS):
        # 40 steps of 0.1 s, a checkpoint every five
        process = start(broken, "2", "muon", workers, "0.05")
        assert process.stdout is not None
        seen = ""
        while "toy:" not in seen and (letter := process.stdout.read(1)):  # the progress bar
            seen += letter
        assert "toy:" in seen, seen
        time.sleep(draw.uniform(0.6, 1.1))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL  # it was not done
    told = finished(start(broken, "2", "muon", workers))
    assert "toy: resuming at step" in told
    assert not list((broken / "scratch").glob(".step*"))  # what was half-written is gone
    first, second = weights(tmp_path / "whole"), weights(broken)
    assert all(torch.equal(first[name], second[name]) for name in first)
    curves = [(tmp_path / name / "curve.csv").read_text() for name in ("whole", "broken")]
    assert curves[0] == curves[1]


@pytest.mark.parametrize(("optimizer", "loss_apart", "weight_apart"), SAME)
def test_two_processes_give_what_one_gives(
    tmp_path: Path, optimizer: str, loss_apart: float, weight_apart: float
) -> None:
    """By torchrun over gloo: a step's four micro-batches are shared, their gradients averaged."""
    finished(start(tmp_path / "one", "4", optimizer))
    printed = finished(start(tmp_path / "two", "4", optimizer, launch=TWO))
    assert printed.count(f"toy: {trained.STEPS} steps in") == 1  # the main process alone tells
    alone, together = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert alone[0] > 1.5 * alone[-1]
    assert together == pytest.approx(alone, rel=loss_apart)
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=weight_apart)


def reconstruction(folder: Path) -> Tensor:
    vae = build_toy_vae(TOY)
    vae.load_state_dict(weights(folder))
    with torch.no_grad():
        return vae(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))).sample


def test_two_processes_that_share_one_network_give_what_one_gives(tmp_path: Path) -> None:
    """FSDP. What the networks do is compared: a bias before a norm has no gradient but rounding,
    which AdamW makes steps of."""
    finished(start(tmp_path / "one", "4", "sharded"))
    finished(start(tmp_path / "two", "4", "sharded", launch=TWO))
    alone, together = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert alone[0] > 1.1 * alone[-1]
    assert together == pytest.approx(alone, rel=1e-5)
    torch.testing.assert_close(
        reconstruction(tmp_path / "two"), reconstruction(tmp_path / "one"), rtol=0, atol=1e-3
    )


@pytest.mark.slow
def test_two_processes_that_share_one_network_go_on_where_they_were_killed(tmp_path: Path) -> None:
    """FSDP: checkpoints are whole, so that a new pair of processes divides them again."""
    finished(start(tmp_path / "whole", "2", "sharded", launch=TWO))
    broken = tmp_path / "broken"
    process = start(broken, "2", "sharded", "0", "0.2", launch=TWO)
    deadline = time.monotonic() + 120
    while not list((broken / "scratch").glob("step-*.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for each in (*psutil.Process(process.pid).children(recursive=True), process):
        each.kill()
    process.communicate()
    told = finished(start(broken, "2", "sharded", launch=TWO))
    assert "toy: resuming at step" in told
    first, second = weights(tmp_path / "whole"), weights(broken)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_step_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    process = start(tmp_path / "two", "3", launch=TWO)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode != 0
    told = "a step's 3 micro-batches ('accumulation') cannot be shared by 2 processes"
    assert told in printed
