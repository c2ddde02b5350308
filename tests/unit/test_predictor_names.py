"""Models by name, as a command line gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import toy_model

from metricgold.errors import UserError
from metricgold.evaluation.predictor_names import PredictorName
from metricgold.evaluation.predictors import Invariance, PipelinePredictor


def two_metres(rgb: Any, camera: Any) -> Any:
    return np.full(rgb.shape[:2], 2.0 if camera is None else 3.0)


@pytest.mark.parametrize(
    ("text", "label", "kind", "target", "options"),
    [
        ("runs/best", "runs/best", "metricgold", "runs/best", {}),
        ("ours=runs/best?steps=4", "ours", "metricgold", "runs/best", {"steps": "4"}),
        ("marigold:prs-eth/x", "marigold:prs-eth/x", "marigold", "prs-eth/x", {}),
        ("m=marigold:a/b?ensemble=3&steps=1", "m", "marigold", "a/b",
         {"ensemble": "3", "steps": "1"}),
        ("metricgold:a?camera=unknown", "metricgold:a?camera=unknown", "metricgold", "a",
         {"camera": "unknown"}),
        ("f=function:my.module:depth", "f", "function", "my.module:depth", {}),
        ("C:/models/x", "C:/models/x", "metricgold", "C:/models/x", {}),
    ],
)  # fmt: skip
def test_a_name_taken_apart(
    text: str, label: str, kind: str, target: str, options: dict[str, str]
) -> None:
    assert PredictorName.parse(text) == PredictorName(label, kind, target, options)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ours=", "says no model"),
        ("constant:2?steps=3", "constant has no option 'steps'; it has: none"),
        ("x?step=3", "metricgold has no option 'step'; it has: steps, ensemble"),
    ],
)
def test_a_name_that_says_nothing(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        PredictorName.parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("constant:far", "constant:far: could not convert"),
        ("constant:-1", "constant:-1: a constant depth must be finite and positive"),
        ("function:json:nothing", "function:json:nothing: cannot be imported"),
        ("function:json", "function:json: cannot be imported"),
        ("folder:.?invariance=ray", r"invariance=ray cannot be read \(take metric or depth or"),
        ("folder:nowhere", "nowhere: no such folder of predictions"),
        ("./none", "no MetricGold checkpoint"),
    ],
)
def test_a_model_that_cannot_be_opened(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        PredictorName.parse(text).open()


def test_they_open(tmp_path: Path) -> None:
    rgb = np.zeros((16, 24, 3), np.uint8)
    assert (PredictorName.parse("constant:2.5").open()(rgb) == 2.5).all()
    function = PredictorName.parse("function:test_predictor_names:two_metres").open()
    assert (function(rgb) == 2).all()
    assert (function(rgb, np.eye(3)) == 3).all()
    folder = PredictorName.parse(f"folder:{tmp_path}?invariance=disparity").open()
    assert folder.invariance is Invariance.AFFINE_DISPARITY
    toy_model().save_pretrained(tmp_path)
    name = PredictorName.parse(f"{tmp_path}?steps=3&ensemble=2&camera=unknown")
    model = name.open("cpu")
    assert isinstance(model, PipelinePredictor)
    assert (model.num_inference_steps, model.ensemble_size, model.use_fov) == (3, 2, False)
    assert model.parameters == sum(
        p.numel() for part in (model.pipeline.unet, model.pipeline.image_vae,
                               model.pipeline.depth_vae) for p in part.parameters()
    )  # fmt: skip
    assert name.with_options(steps=1).options["steps"] == "1"
    assert name.with_options(steps=1).label == name.label
