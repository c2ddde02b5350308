"""The training loop and its latent cache: resuming, refusals, rates, learning by heart."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from toy import TOY

from metricgold.config import OptimizerConfig, TrackingConfig
from metricgold.errors import UserError
from metricgold.model import build_toy_vae
from metricgold.training import checkpoint
from metricgold.training import tracking as tracking_module
from metricgold.training.accelerator import precision_on
from metricgold.training.latents import CACHE_VERSION, LatentBank, StaleLatentsError, weights_hash
from metricgold.training.loader import Batch
from metricgold.training.loop import (
    Objective,
    Run,
    TrainingError,
    learning_rate,
    loss_warning,
    micro_batch_generator,
    train,
)
from metricgold.training.optimizers import Optimizers


def optimizer_config(**changes: Any) -> OptimizerConfig:
    values: dict[str, Any] = {
        "steps": 90,
        "batch_size": 2,
        "accumulation": 2,
        "lr": 0.01,
        "warmup_steps": 3,
        "decay": "cosine",
        "final_lr_ratio": 0.1,
        "weight_decay": 0.01,
        "grad_clip": 1.0,
        "ema_decay": 0.9,
        "precision": "fp32",
        "checkpoint_every": 7,
    }
    return OptimizerConfig(**(values | changes))


def small_network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 1, 1))


def hidden_network() -> nn.Module:
    """As :func:`small_network` with a convolution wide enough for Muon."""
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(24, 1, 1),
    )


LossFunction = Callable[[int, Batch, torch.Generator], dict[str, Tensor]]


class Given(Objective):
    """An objective by a function that uses ``network``."""

    def __init__(self, network: nn.Module, loss: LossFunction) -> None:
        super().__init__(network)
        self.loss = loss

    def forward(self, number: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        return self.loss(number, batch, generator)


def denoising_loss(network: nn.Module, stop_at: int | None = None) -> LossFunction:
    """A loss whose data come from the generator; stops dead at micro-batch ``stop_at``."""

    def loss(micro_batch: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        if micro_batch == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(2, 2, 5, 5, generator=generator)
        error = (network(x) - x[:, :1] * x[:, 1:]).square().mean()
        return {"loss": error, "root": error.sqrt()}

    return loss


def run_of(folder: Path, network: nn.Module, loss: LossFunction, **changes: Any) -> Run:
    given: dict[str, Any] = {
        "name": "toy",
        "optimizer": optimizer_config(),
        "scratch": folder / "scratch",
        "seed": 1,
        "batches": [{}] * 1000,
        "curve": folder / "curve.csv",
    }
    return Run(objective=Given(network, loss), **(given | changes))


MUON = {"lr": 0.02, "momentum": 0.9}


@pytest.mark.parametrize(
    ("make_network", "changes"),
    [(small_network, {}), (small_network, {"ema_decay": 0.0}), (hidden_network, {"muon": MUON})],
)
@pytest.mark.parametrize("stop_at", [1, 16, 45, 179])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, stop_at: int, make_network: Callable[[], nn.Module], changes: dict[str, Any]
) -> None:
    """Checkpoints fall between two rows of the curve, and the stop between two checkpoints."""
    config = optimizer_config(**changes)
    whole = make_network()
    last = train(run_of(tmp_path / "whole", whole, denoising_loss(whole), optimizer=config))
    broken = make_network()
    stopping = denoising_loss(broken, stop_at)
    with pytest.raises(KeyboardInterrupt):
        train(run_of(tmp_path / "parts", broken, stopping, optimizer=config))
    resumed = make_network()
    left = checkpoint.checkpoints(tmp_path / "parts" / "scratch")
    if left:
        nn.init.zeros_(next(resumed.parameters()))  # the weights come from the checkpoint
    assert len(left) == min(stop_at // 14, checkpoint.KEPT)
    done = train(run_of(tmp_path / "parts", resumed, denoising_loss(resumed), optimizer=config))
    assert done == last
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    curves = [(tmp_path / part / "curve.csv").read_text() for part in ("whole", "parts")]
    assert curves[0] == curves[1]
    assert len(curves[0].splitlines()) == 46  # a header and a row for every 2 of 90 steps


def test_muon_takes_the_hidden_kernels_and_only_those() -> None:
    """Its step on a weight [out, in h w] is orthogonal: singular values about 1 x rate."""
    network = hidden_network()
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    optimizer = Optimizers(network, optimizer_config(muon=MUON, weight_decay=0.0, lr=1e-9))
    optimizer.set_rate(0.5)
    denoising_loss(network)(0, {}, torch.Generator().manual_seed(0))["loss"].backward()
    optimizer.step()
    assert all(p.grad is None for p in network.parameters())
    moved = {n: (p.detach() - before[n]) for n, p in network.named_parameters()}
    hidden = moved.pop("2.weight").reshape(24, -1)
    assert all(m.abs().max() <= 1e-9 for m in moved.values())
    singular = torch.linalg.svdvals(hidden) / (0.5 * 0.02)
    assert 0.5 < singular.median() < 1.3
    assert singular.max() < 1.3


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    network = small_network()
    first = train(run_of(tmp_path, network, denoising_loss(network)))
    again = small_network()
    assert train(run_of(tmp_path, again, denoising_loss(again, stop_at=0))) == first
    assert all(
        torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True)
    )
    checkpoint.discard(tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, bad: float) -> None:
    network = small_network()
    good = denoising_loss(network)

    def loss(micro_batch: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        losses = good(micro_batch, batch, generator)
        return losses | {"loss": losses["loss"] * bad} if micro_batch == 9 else losses

    told = rf"^toy: loss is {bad} at step 4, micro-batch 9, which is kept in \S+/not_finite_9\.pt; "
    with pytest.raises(TrainingError, match=told):
        train(run_of(tmp_path, network, loss, batches=[{"x": torch.tensor(n)} for n in range(99)]))
    (kept,) = torch.load(tmp_path / "scratch" / "not_finite_9.pt", weights_only=True)
    assert kept["number"] == kept["batch"]["x"].item() == 9
    assert not torch.isfinite(kept["losses"]["loss"])


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)

    def loss(micro_batch: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        return {"loss": network.weight.sum().abs().sqrt()}  # slope 0 / 0 at zero

    told = "toy: gradient norm is nan at step 0, micro-batch 0, 1, which is kept in .*lower 'lr'"
    with pytest.raises(TrainingError, match=told):
        train(run_of(tmp_path, network, loss))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"optimizer": optimizer_config(lr=0.02)},
        {"identity": "other data"},
        {"name": "other"},
    ],
)
def test_a_checkpoint_of_another_run_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    network = small_network()
    run = run_of(tmp_path, network, denoising_loss(network))
    train(run)
    other = run_of(tmp_path, network, denoising_loss(network), **change)
    assert other.fingerprint != run.fingerprint
    capsys.readouterr()
    assert checkpoint.load(other.scratch, other.fingerprint) is None
    assert "belongs to other params or data; not used" in capsys.readouterr().out
    assert checkpoint.load(run.scratch, run.fingerprint) is not None
    with pytest.raises(KeyboardInterrupt):  # it starts over, at micro-batch 0
        train(run_of(tmp_path, network, denoising_loss(network, stop_at=0), **change))


def test_the_last_two_checkpoints_of_the_present_run_are_kept(tmp_path: Path) -> None:
    """An older run's are gone with the first of a new one, however far it had come."""
    for step in (7, 14, 90):
        checkpoint.save(tmp_path, "older one", step, {})
    assert [p.name[:13] for p in checkpoint.checkpoints(tmp_path)] == [
        "step-00000090",
        "step-00000014",
    ]
    for step in (5, 10, 15):
        checkpoint.save(tmp_path, "new", step, {"a": torch.ones(2)})
        last = checkpoint.load(tmp_path, "new")
        assert last is not None
        assert last["step"] == step
    assert [p.name[:17] for p in checkpoint.checkpoints(tmp_path)] == [
        "step-00000015-new",
        "step-00000010-new",
    ]


@pytest.mark.parametrize("damage", ["cut short", "empty", "a byte of the weights", "not a file"])
def test_of_a_damaged_checkpoint_the_one_before_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    for step in (3, 6):
        checkpoint.save(tmp_path, "mine", step, {"weights": torch.arange(999.0) + step})
    path, before = checkpoint.checkpoints(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "cut short":
        content = content[:-40]
    elif damage == "empty":
        content = bytearray()
    elif damage == "a byte of the weights":
        content[len(content) // 2] ^= 1
    else:
        content[:] = b"<!doctype html>"
    path.write_bytes(content)
    found = checkpoint.load(tmp_path, "mine")
    assert found is not None
    assert found["step"] == 3
    assert torch.equal(found["weights"], torch.arange(999.0) + 3)
    assert f"{path}: checkpoint is damaged" in capsys.readouterr().out
    assert set(tmp_path.iterdir()) == {path, before}  # no temporary file left


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("cosine", {5: 0.1, 10: 0.055, 15: 0.01, 99: 0.01}),
        ("exponential", {5: 0.1, 10: 0.1 * math.sqrt(0.1), 15: 0.01, 99: 0.01}),
        ("constant", {5: 0.1, 10: 0.1, 15: 0.1, 99: 0.1}),
    ],
)
def test_learning_rate_by_hand(decay: str, expected: dict[int, float]) -> None:
    config = optimizer_config(lr=0.1, steps=15, warmup_steps=5, decay=decay, final_lr_ratio=0.1)
    for step, rate in {0: 0.02, 1: 0.04, 4: 0.1, **expected}.items():
        assert learning_rate(config, step) == pytest.approx(rate), step
    at_once = config.model_copy(update={"warmup_steps": 0})
    assert learning_rate(at_once, 0) == pytest.approx(0.1)


def test_random_numbers_belong_to_the_micro_batch() -> None:
    def draw(seed: int, micro_batch: int) -> list[float]:
        return torch.rand(3, generator=micro_batch_generator(seed, micro_batch)).tolist()

    assert draw(1, 7) == draw(1, 7)
    assert len({tuple(draw(seed, part)) for seed in range(3) for part in range(4)}) == 12


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    path = tmp_path / "toy.h5"
    with h5py.File(path, "w") as file:
        file.attrs["version"], file.attrs["weights"] = CACHE_VERSION, "these"
        file["rgb_latent"] = np.arange(24, dtype=np.float16).reshape(6, 4)
        file["latent_mask"] = np.arange(6) % 2 == 0
        file["fov_y_deg"] = np.arange(6, dtype=np.float32)
    return path


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_latents_come_in_the_order_asked_for(cache: Path, limit: int) -> None:
    """From memory and from the file alike; a row may be asked for twice."""
    bank = LatentBank(cache, "these", memory_limit_bytes=limit)
    assert len(bank) == 6
    rows = bank.batch(np.array([4, 0, 4, 3]), ("rgb_latent", "latent_mask", "fov_y_deg"))
    assert rows["fov_y_deg"].tolist() == [4, 0, 4, 3]
    assert rows["rgb_latent"].dtype == torch.float32
    assert rows["rgb_latent"][:, 0].tolist() == [16, 0, 16, 12]
    assert rows["latent_mask"].tolist() == [True, True, True, False]


def test_latents_of_other_weights_are_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(StaleLatentsError, match=r"toy\.h5: made with other VAE weights"):
        LatentBank(cache, "those")
    with pytest.raises(StaleLatentsError, match="no latent cache; run 'dvc repro cache_latents'"):
        LatentBank(tmp_path / "none.h5", "these")
    with h5py.File(cache, "r+") as file:
        file.attrs["version"] = CACHE_VERSION + 1
    with pytest.raises(StaleLatentsError, match="dvc repro"):
        LatentBank(cache, "these")


def test_the_hash_of_weights_follows_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = build_toy_vae(TOY)
    vae.save_pretrained(tmp_path / "first")
    vae.save_pretrained(tmp_path / "copy")
    with torch.no_grad():
        vae.decoder.conv_out.bias[0] += 1e-3
    vae.save_pretrained(tmp_path / "changed")
    first, copy, changed = (weights_hash(tmp_path / n) for n in ("first", "copy", "changed"))
    assert first == copy
    assert first != changed


def test_one_batch_can_be_learned_by_heart(tmp_path: Path) -> None:
    network = small_network()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, 6, 6, generator=generator)
    target = x[:, :1] - 0.5 * x[:, 1:]
    before = (network(x) - target).square().mean().item()

    def loss(micro_batch: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        return {"loss": (network(x) - target).square().mean()}

    config = optimizer_config(
        steps=60, accumulation=1, lr=0.05, ema_decay=0, weight_decay=0, final_lr_ratio=0.1
    )
    last = train(run_of(tmp_path, network, loss, optimizer=config))
    after = (network(x) - target).square().mean().item()
    assert after < before / 5
    assert last["loss"] < before / 5


def rows_of(losses: list[float], rate: float = 0.01) -> list[dict[str, float]]:
    return [{"step": i + 1, "loss": loss, "lr": rate} for i, loss in enumerate(losses)]


def test_a_diverging_loss_is_told() -> None:
    falling = [1.0, 0.5, 0.4, 0.45, 0.6]
    assert loss_warning(rows_of(falling), 0.01) is None
    told = loss_warning(rows_of([*falling, 1.3]), 0.01)
    assert told == "loss 1.3 is far above the 0.4 of step 3: it diverges"


def test_a_loss_that_stands_still_is_told() -> None:
    falling = [1.0 - 0.02 * i for i in range(20)]
    still = falling + [falling[-1]] * 20
    assert loss_warning(rows_of(falling), 0.01) is None
    told = loss_warning(rows_of(still), 0.01)
    assert told == "loss has not fallen since step 31 (0.62, now 0.62)"
    assert loss_warning(rows_of(still, rate=0.001), 0.01) is None  # the rate has decayed


def test_a_warning_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = small_network()

    def loss(number: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        zero = 0 * sum(p.sum() for p in network.parameters())
        return {"loss": zero + (5.0 if number >= 60 else 1.0)}

    train(run_of(tmp_path, network, loss, optimizer=optimizer_config(accumulation=1)))
    assert capsys.readouterr().out.count("it diverges") == 1


def test_dvclive_is_told_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    pytest.importorskip("dvclive")
    network = small_network()
    tracking = TrackingConfig(every=10, folder=str(tmp_path / "watch"))
    stopping = run_of(tmp_path, network, denoising_loss(network, 120), tracking=tracking)
    with pytest.raises(KeyboardInterrupt):
        train(stopping)
    train(run_of(tmp_path, network, denoising_loss(network), tracking=tracking))
    folder = tmp_path / "watch" / "toy"
    with (folder / "plots" / "metrics" / "loss.tsv").open(newline="") as stream:
        points = [
            (int(r["step"]), float(r["loss"])) for r in csv.DictReader(stream, dialect="excel-tab")
        ]
    assert sorted({step for step, _ in points}) == list(range(10, 91, 10))
    with (tmp_path / "curve.csv").open(newline="") as stream:
        curve = {int(r["step"]): float(r["loss"]) for r in csv.DictReader(stream)}
    assert 0 < curve[90] < 2
    assert json.loads((folder / "metrics.json").read_text())["loss"] == points[-1][1]


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.97])
def test_dvclive_goes_on_from_what_a_killed_process_left(tmp_path: Path, kept: float) -> None:
    pytest.importorskip("dvclive")
    network = small_network()
    tracking = TrackingConfig(every=10, folder=str(tmp_path / "watch"))
    with pytest.raises(KeyboardInterrupt):
        train(run_of(tmp_path, network, denoising_loss(network, 120), tracking=tracking))
    folder = tmp_path / "watch" / "toy"
    points = folder / "plots" / "metrics" / "loss.tsv"
    for path in (folder / "metrics.json", folder / "params.yaml", points):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(kept * len(whole))])
    train(run_of(tmp_path, network, denoising_loss(network), tracking=tracking))
    with points.open(newline="") as stream:
        told = [
            (int(r["step"]), float(r["loss"])) for r in csv.DictReader(stream, dialect="excel-tab")
        ]
    assert told[-1][0] == 90
    assert json.loads((folder / "metrics.json").read_text())["loss"] == told[-1][1]
    assert isinstance(yaml.safe_load((folder / "params.yaml").read_text()), dict)


@pytest.mark.parametrize(
    ("tracker", "left"),
    [
        ("tensorboard", "watch/**/events.out.tfevents*"),
        ("wandb", "watch/**/*.wandb"),
        ("mlflow", "runs/**/metrics/loss"),
    ],
)
def test_other_trackers_are_told_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: Any, left: str
) -> None:
    """Each on its own files, with nothing sent anywhere."""
    if not tracking_module.installed(tracker):
        pytest.skip(f"'{tracker}' is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    network = small_network()
    tracking = TrackingConfig(trackers=(tracker,), every=10, folder=str(tmp_path / "watch"))
    train(run_of(tmp_path, network, denoising_loss(network), tracking=tracking))
    assert list(tmp_path.glob(left))


def test_a_tracker_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="names 'wandb', which is not installed; run 'pip install"):
        tracking_module.check_trackers(("wandb",))


def test_a_folder_of_its_name_is_no_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python takes any folder on its path for a package; W&B leaves one where it ran."""
    monkeypatch.setitem(tracking_module._PACKAGES, "wandb", "left_by_wandb")
    monkeypatch.syspath_prepend(tmp_path)
    assert not tracking_module.installed("wandb")
    (tmp_path / "left_by_wandb").mkdir()
    importlib.invalidate_caches()
    assert importlib.util.find_spec("left_by_wandb") is not None
    assert not tracking_module.installed("wandb")
    (tmp_path / "left_by_wandb" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert tracking_module.installed("wandb")


def test_validation_comes_when_it_is_time(tmp_path: Path) -> None:
    network = small_network()
    seen: list[int] = []

    def look(step: int) -> dict[str, float]:
        seen.append(step)
        return {"validation_abs_rel": 0.5}

    tracking = TrackingConfig(trackers=(), validate_every=40, folder=str(tmp_path / "watch"))
    watched = run_of(tmp_path, network, denoising_loss(network), tracking=tracking, validate=look)
    train(watched)
    assert seen == [40, 80]
    alone = small_network()
    train(run_of(tmp_path / "alone", alone, denoising_loss(alone)))
    for name, value in network.state_dict().items():
        assert torch.equal(alone.state_dict()[name], value)


@pytest.mark.parametrize("change", [{"channels_last": True}, {"precision": "bf16"}])
def test_options_of_speed_train_alike(tmp_path: Path, change: dict[str, Any]) -> None:
    """Another memory format or precision changes rounding, not what is learned."""
    plain, other = small_network(), small_network()
    first = train(run_of(tmp_path / "plain", plain, denoising_loss(plain)))
    config = optimizer_config(**change)
    second = train(run_of(tmp_path / "other", other, denoising_loss(other), optimizer=config))
    assert second["loss"] == pytest.approx(first["loss"], rel=0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
def test_a_compiled_network_learns_the_same(tmp_path: Path) -> None:
    plain, other = small_network(), small_network()
    first = train(run_of(tmp_path / "plain", plain, denoising_loss(plain)))
    config = optimizer_config(compile=True)
    second = train(run_of(tmp_path / "other", other, denoising_loss(other), optimizer=config))
    assert second["loss"] == pytest.approx(first["loss"], rel=0.02)


def test_8_bit_adam_learns_alike(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="'bitsandbytes' is not installed")
    plain, other = small_network(), small_network()
    first = train(
        run_of(tmp_path / "plain", plain, denoising_loss(plain), optimizer=optimizer_config())
    )
    config = optimizer_config(adam_8bit=True)
    second = train(run_of(tmp_path / "other", other, denoising_loss(other), optimizer=config))
    assert second["loss"] == pytest.approx(first["loss"], rel=0.05)


def test_8_bit_adam_says_what_it_needs() -> None:
    if importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    with pytest.raises(UserError, match="'adam_8bit' needs the extra '8bit'"):
        Optimizers(small_network(), optimizer_config(adam_8bit=True))


def test_muon_and_fp16_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="muon does not go with precision fp16"):
        optimizer_config(muon=MUON, precision="fp16")


@pytest.mark.parametrize(
    ("device", "units", "expected"),
    [
        ("cpu", {"cpu._is_amx_tile_supported"}, "bf16"),
        ("cpu", {"cpu._is_avx512_bf16_supported"}, "bf16"),
        ("cpu", set(), "fp32"),
        ("cuda", {"cuda.is_bf16_supported"}, "bf16"),
        ("cuda", set(), "fp32"),
    ],
)
def test_the_precision_is_what_the_device_multiplies_fast(
    device: str, units: set[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for asked in (
        "cpu._is_amx_tile_supported", "cpu._is_avx512_bf16_supported", "cuda.is_bf16_supported"
    ):  # fmt: skip
        monkeypatch.setattr(f"torch.{asked}", lambda asked=asked, **_: asked in units)
    assert precision_on(torch.device(device), "auto") == expected
    assert precision_on(torch.device(device), "bf16") == "bf16"
