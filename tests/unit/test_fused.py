"""The one graph from picture to metres: the pipeline's depth, and what it is not for."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from toy import toy_model

from export.comparison import compare_end_to_end
from export.manifest import ExportError, read_manifest
from export.onnx_export import export_checkpoint
from export.runtime import DepthSession, InferenceError, open_session
from export.specs import ONE_STEP
from metricgold.config import ExportConfig
from metricgold.workspace import Workspace

CPU = "onnxruntime-cpu"
SIZE = (16, 24)
RGB = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def session(exported: Workspace) -> DepthSession:
    return open_session(exported.onnx, CPU, fused=True)


def test_many_pictures_go_through_it_one_by_one(session: DepthSession) -> None:
    found = session.infer_many([RGB, RGB[::-1]], fov_deg=[None, 40.0])
    for one, rgb, fov in zip(found, (RGB, RGB[::-1]), (None, 40.0), strict=True):
        np.testing.assert_array_equal(one.depth, session.infer(rgb, fov_deg=fov).depth)


@pytest.mark.parametrize("fov_deg", [None, 30.0, 95.0])
def test_it_gives_the_pipelines_metres(session: DepthSession, fov_deg: float | None) -> None:
    expected = toy_model(fov_matters=True)(RGB, fov_deg=fov_deg).prediction[0, ..., 0]
    result = session.infer(RGB, fov_deg=fov_deg)
    np.testing.assert_allclose(result.depth, expected, rtol=1e-3)
    assert result.size == SIZE
    assert set(result.seconds) == {"preprocess", "fused", "postprocess"}


def test_a_picture_of_another_size_comes_back_at_its_own(session: DepthSession) -> None:
    large = RGB.repeat(3, axis=0).repeat(2, axis=1)
    assert session.infer(large, fov_deg=60.0).depth.shape == (48, 48)


def test_the_graph_alone_tells_what_it_needs(exported: Workspace) -> None:
    """As a user without this package meets it: shapes by name, 0 for an unknown camera."""
    graph = onnxruntime.InferenceSession(exported.onnx / "one_step.onnx")
    assert {i.name: i.shape for i in graph.get_inputs()} == {
        "rgb": [1, 3, *SIZE],
        "fov_y_deg": [1],
    }
    assert "size_multiple" in graph.get_modelmeta().custom_metadata_map["metricgold"]
    rgb = RGB.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1
    depths = [
        graph.run(None, {"rgb": rgb, "fov_y_deg": np.array([fov], np.float32)})[0]
        for fov in (0.0, 60.0)
    ]
    expected = toy_model(fov_matters=True)(RGB).prediction[0, ..., 0]
    np.testing.assert_allclose(depths[0][0, 0], expected, rtol=1e-3)
    assert np.abs(depths[1] / depths[0] - 1).max() > 1e-2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 2}, "one prediction in one step"),
        ({"ensemble_size": 2}, "one prediction in one step"),
        ({"initial_latents": np.zeros((1, 4, 8, 12), np.float32)}, "one prediction in one step"),
        ({"processing_resolution": 12}, "exported for 16x24 pixels only"),
    ],
)
def test_what_it_is_not_for_is_told(
    session: DepthSession, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InferenceError, match=said):
        session.infer(RGB, **options)


def test_it_is_part_of_parity(exported: Workspace, session: DepthSession) -> None:
    found = compare_end_to_end(toy_model(fov_matters=True), session, SIZE)
    assert found.component == ONE_STEP.name
    assert found.passed


def test_a_folder_without_it_is_told(exported: Workspace, tmp_path: Path) -> None:
    shutil.copytree(exported.onnx, tmp_path / "onnx")
    replace(read_manifest(exported.onnx), fused=None).write(tmp_path / "onnx")
    with pytest.raises(ExportError, match="there is no fused graph; export with 'fused: true'"):
        open_session(tmp_path / "onnx", CPU, fused=True)
    assert open_session(tmp_path / "onnx", CPU).infer(RGB).size == SIZE


def test_a_model_of_several_steps_has_none(tmp_path: Path, export_config: ExportConfig) -> None:
    model = toy_model()
    model.register_to_config(default_denoising_steps=4)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ExportError, match="this one takes 4 steps"):
        export_checkpoint(tmp_path / "model", tmp_path / "onnx", export_config)
    assert not (tmp_path / "onnx").exists()
