"""Predictions made elsewhere, in every format; what is missing or unreadable is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metricgold.errors import UserError
from metricgold.evaluation.prediction_folder import FolderPredictor
from metricgold.evaluation.predictors import Estimate, Invariance, Observation
from metricgold.outputs import Prediction, write_outputs

DEPTH = np.random.default_rng(0).uniform(0.5, 20, (4, 6)).astype(np.float32)
RGB = np.zeros((4, 6, 3), np.uint8)
KEY = "scene/a/0001"


def ask(predictor: FolderPredictor) -> Estimate:
    return predictor.predict([Observation(KEY, RGB, None)])[0]


def pfm(depth: np.ndarray) -> bytes:  # type: ignore[type-arg]
    return b"Pf\n6 4\n-1.0\n" + depth[::-1].astype("<f4").tobytes()


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("ending", [".npy", "_depth.npy", ".npz", ".pfm"])
def test_formats_and_names(tmp_path: Path, ending: str, flat: bool) -> None:
    path = tmp_path / ((KEY.replace("/", "_") if flat else KEY) + ending)
    path.parent.mkdir(parents=True, exist_ok=True)
    if ending == ".npz":
        np.savez(path, depth=DEPTH[None], uncertainty=DEPTH / 10)
    elif ending == ".pfm":
        path.write_bytes(pfm(DEPTH))
    else:
        np.save(path, DEPTH.astype(np.float64))
    found = ask(FolderPredictor(tmp_path))
    assert found.depth.dtype == np.float32
    np.testing.assert_array_equal(found.depth, DEPTH)
    assert (found.uncertainty is not None) == (ending == ".npz")


def test_what_metricgold_infer_writes_is_read(tmp_path: Path) -> None:
    prediction = Prediction(RGB, DEPTH, DEPTH / 10)
    write_outputs(tmp_path, "scene_a_0001", prediction, ("npy",))
    found = ask(FolderPredictor(tmp_path))
    assert found.uncertainty is not None
    np.testing.assert_array_equal(found.uncertainty, DEPTH / 10)
    (tmp_path / "scene_a_0001_depth.npy").unlink()
    write_outputs(tmp_path, "scene_a_0001", prediction, ("png16",))
    np.testing.assert_allclose(ask(FolderPredictor(tmp_path)).depth, DEPTH, atol=0.0006)


def test_16_bit_pictures_need_a_unit(tmp_path: Path) -> None:
    path = tmp_path / "scene_a_0001.png"
    Image.fromarray(np.full((4, 6), 512, np.uint16)).save(path)
    with pytest.raises(UserError, match=r"scene_a_0001\.png: how many metres is a step"):
        ask(FolderPredictor(tmp_path))
    assert (ask(FolderPredictor(tmp_path, metres_per_step=1 / 256)).depth == 2).all()
    path.with_suffix(".json").write_text(json.dumps({"metres_per_step": 0.5}))
    assert (ask(FolderPredictor(tmp_path, metres_per_step=1 / 256)).depth == 256).all()
    Image.fromarray(RGB).save(path)
    with pytest.raises(UserError, match=r"scene_a_0001\.png: not a depth map \(a 16-bit picture"):
        ask(FolderPredictor(tmp_path))


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: no such folder"):
        FolderPredictor(tmp_path / "none")
    predictor = FolderPredictor(tmp_path, Invariance.AFFINE_DISPARITY)
    assert predictor.invariance is Invariance.AFFINE_DISPARITY
    with pytest.raises(UserError, match="no prediction for frame scene/a/0001; looked for 0001"):
        ask(predictor)
    (tmp_path / "scene_a_0001.npy").write_bytes(b"\x93NUMPY damaged")
    with pytest.raises(UserError, match=r"scene_a_0001\.npy: not a depth map"):
        ask(predictor)
    (tmp_path / "scene_a_0001.npy").unlink()
    np.savez(tmp_path / "scene_a_0001.npz", disparity=DEPTH)
    with pytest.raises(UserError, match="has no array 'depth', only disparity"):
        ask(predictor)
