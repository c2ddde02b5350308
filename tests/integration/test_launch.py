"""A training stage in several processes, on one machine and on two, by its own command line."""

from __future__ import annotations

import csv
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from torch import testing

from metricgold.config import load_config
from metricgold.workspace import Workspace
from tests.integration.service import ROOT, environment, free_port, living, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

STAGE = "train_unet"
BEFORE = ("source", "download", "preprocess", "base_model", "train_vae", "cache_latents")
LOSS_APART = WEIGHT_APART = 1e-3
"""As in tests/unit/test_training_processes.py: Muon's products are in bfloat16."""


def write_params(folder: Path, steps: int, **launch: Any) -> None:
    """The smoke profile with one dataset; a step's work in two micro-batches, to be shared."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    smoke = params["profiles"]["smoke"]
    for name, dataset in smoke["datasets"].items():
        dataset["weight"] = float(name == "hypersim")
    smoke[STAGE]["optimizer"] |= {"steps": steps, "batch_size": 2, "accumulation": 2}
    smoke["tracking"] = {"trackers": []}
    params = {"profile": "smoke", "profiles": {"smoke": smoke}, "orchestration": {"launch": launch}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which all is there that the stage needs."""
    folder = tmp_path_factory.mktemp("prepared")
    write_params(folder, steps=4)
    config = load_config(folder / "params.yaml")
    for name in BEFORE:
        stage = importlib.import_module(f"flows.{name}").run
        needs_dataset = name in BEFORE[:3]
        stage(config, Workspace(folder), *(["hypersim"] if needs_dataset else []))
    return folder


def copied(prepared: Path, folder: Path, steps: int = 4, **launch: Any) -> Path:
    shutil.copytree(prepared, folder)
    write_params(folder, steps, **launch)
    return folder


def start(folder: Path, **extra: str) -> subprocess.Popen[str]:
    """The stage as DVC's command starts it; one thread a process and no GPU."""
    return subprocess.Popen(
        [sys.executable, "-m", f"flows.{STAGE}"],
        cwd=folder,
        env=environment(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", **extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What it printed, once it has ended well."""
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    return printed


def losses(folder: Path) -> list[float]:
    with (folder / "plots" / f"{STAGE}.csv").open(newline="") as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream)]


def check_same(folder: Path, alone: Path) -> None:
    """Losses and weights as one process has them."""
    assert losses(folder) == pytest.approx(losses(alone), rel=LOSS_APART)
    file = "artifacts/unet/unet/diffusion_pytorch_model.safetensors"
    first, second = load_file(alone / file), load_file(folder / file)
    before = load_file(alone / file.replace("artifacts/unet", "artifacts/base_model", 1))
    assert first.keys() == second.keys()
    moved = [name for name in first if not before.get(name, first[name]).equal(first[name])]
    assert moved  # it was trained at all
    for name, value in first.items():
        testing.assert_close(second[name], value, rtol=0, atol=WEIGHT_APART)


@pytest.fixture(scope="module")
def alone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copied(prepared, tmp_path_factory.mktemp("alone") / "project")
    finished(start(folder))
    return folder


def test_two_processes_of_one_machine_give_what_one_gives(
    prepared: Path, alone: Path, tmp_path: Path
) -> None:
    folder = copied(prepared, tmp_path / "two", processes=2)
    printed = finished(start(folder))
    assert printed.count(f"{STAGE}: 4 steps in") == 1  # the first process alone tells
    check_same(folder, alone)


def test_what_one_process_refuses_ends_all(prepared: Path, tmp_path: Path) -> None:
    process = start(copied(prepared, tmp_path / "three", processes=3))
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 1, printed
    assert "error: train_unet: a step's 2 micro-batches" in printed
    assert "cannot be shared by 3 processes" in printed
    assert "Traceback" not in printed


def test_two_hosts_give_what_one_gives(prepared: Path, alone: Path, tmp_path: Path) -> None:
    """Each a process in the one folder; the second is there first and waits."""
    hosts = ["127.0.0.1", "127.0.0.1"]
    folder = copied(prepared, tmp_path / "hosts", hosts=hosts, port=free_port(), wait_s=120)
    second = start(folder, METRICGOLD_NODE_RANK="1")
    first = start(folder, METRICGOLD_NODE_RANK="0")
    assert finished(first).count(f"{STAGE}: 4 steps in") == 1
    assert "steps in" not in finished(second)
    check_same(folder, alone)
    assert not list((folder / ".work" / "hosts").iterdir())


def test_hosts_with_different_folders_are_told_so(prepared: Path, tmp_path: Path) -> None:
    hosts, port = ["127.0.0.1", "127.0.0.1"], free_port()
    processes = [
        start(
            copied(prepared, tmp_path / rank, hosts=hosts, port=port, wait_s=120),
            METRICGOLD_NODE_RANK=rank,
        )
        for rank in ("0", "1")
    ]
    for process in processes:
        printed, _ = process.communicate(timeout=240)
        assert process.returncode == 1, printed
        assert "does not see what the first host writes to" in printed
        assert "Traceback" not in printed
    assert not (tmp_path / "0" / "artifacts" / "unet").exists()


@pytest.mark.parametrize(
    ("rank", "said"), [("0", "not every host came to"), ("1", "no stage answ")]
)
def test_who_is_alone_ends_by_itself(tmp_path: Path, rank: str, said: str) -> None:
    write_params(tmp_path, 4, hosts=["127.0.0.1", "127.0.0.1"], port=free_port(), wait_s=2)
    process = start(tmp_path, METRICGOLD_NODE_RANK=rank)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1, printed
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, printed
    assert said in lines[0]
    assert "Traceback" not in printed


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        write_params(tmp_path, 4, hosts=["127.0.0.1", "127.0.0.1"], port=port, wait_s=5)
        process = start(tmp_path, METRICGOLD_NODE_RANK="0")
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1, printed
    assert f"error: 127.0.0.1:{port}: another program has the port" in printed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_stage(prepared: Path, tmp_path: Path, number: int) -> None:
    folder = copied(prepared, tmp_path / "two", steps=100_000, processes=2)
    process = start(folder)
    assert process.stdout is not None
    while "/100000 " not in (line := process.stdout.readline()):
        assert line, "it ended"
    assert len(living(f"flows.{STAGE}", str(folder))) == 3
    os.kill(process.pid, number)
    wait_for(lambda: not living(f"flows.{STAGE}", str(folder)), 5, "all ended")
    process.communicate()
    assert process.returncode == (128 + number if number == signal.SIGTERM else -number)
