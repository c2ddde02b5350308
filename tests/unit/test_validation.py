"""Looking at predictions during training changes nothing of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy import toy_model

from metricgold.config import load_config
from metricgold.data.sample import Frame
from metricgold.data.shard_writer import ShardWriter
from metricgold.data.shards import encode_frame
from metricgold.training.validation import Validation
from metricgold.workspace import Workspace


@pytest.fixture
def validation(tmp_path: Path) -> Validation:
    """Of an untrained model, on one of two held-out frames."""
    workspace = Workspace(tmp_path / "project")
    rng = np.random.default_rng(0)
    with ShardWriter(workspace.shards("tartanair"), "holdout") as writer:
        for number in range(2):
            frame = Frame(
                f"scene/{number}",
                "scene",
                rng.integers(0, 256, (48, 64, 3), dtype=np.uint8),
                rng.uniform(1, 9, (48, 64)).astype(np.float32),
                np.ones((48, 64), bool),
                np.zeros((48, 64), bool),
                np.array([[50.0, 0, 31.5], [0, 50.0, 23.5], [0, 0, 1]]),
            )
            writer.add(encode_frame(frame, 95))
    config = load_config("params.yaml", "smoke")
    return Validation(config, workspace, toy_model(), tmp_path / "looks", 1)


def test_a_picture_and_a_figure_and_nothing_else(validation: Validation, tmp_path: Path) -> None:
    unet = validation.model.unet
    unet.train().requires_grad_(True)
    unet.conv_in.requires_grad_(False)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = validation(40), validation(80)
    assert first == second  # nothing was trained in between
    assert list(first) == ["validation_abs_rel"]
    assert 0 < first["validation_abs_rel"] < 100
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert unet.training
    assert not unet.conv_in.weight.requires_grad
    assert unet.conv_out.weight.requires_grad
    pictures = sorted(p.name for p in (tmp_path / "looks").iterdir())
    assert pictures == ["step-000040.png", "step-000080.png"]
    with Image.open(tmp_path / "looks" / pictures[0]) as picture:
        assert picture.width > picture.height / len(validation.frames)
    assert len(validation.frames) == 1
