"""Parity on held-out frames: the evaluation's metrics and limits, back-ends that are not here."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from made_frames import make_frame, write_shards
from test_components import profile
from toy import toy_model

from export import driver, parity
from export.accuracy import Accuracy, compare_on_frames, session_predictor, torch_predictor
from export.manifest import ExportError, ShapeError, read_manifest, sha256_of
from export.parity import ParityError, Report, run
from export.runtime import BACKENDS, open_session
from export.specs import DEPTH_DECODER
from metricgold.config import ExportConfig, ProfileConfig
from metricgold.evaluation.metrics import depth_metrics
from metricgold.workspace import Workspace

CPU = "onnxruntime-cpu"
DATASETS = ("hypersim", "virtual_kitti", "tartanair")


@pytest.fixture
def ws(exported: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The exported toy with three held-out frames of each dataset, on a machine without a GPU."""
    monkeypatch.setattr(driver, "load_driver", lambda: "no NVIDIA driver on this machine")
    made = Workspace(tmp_path)
    shutil.copytree(exported.model, made.model)
    shutil.copytree(exported.onnx, made.onnx)
    for number, name in enumerate(DATASETS):
        frames = [make_frame(number, i, (20, 28)) for i in range(3)]
        write_shards(made.shards(name), "holdout", frames)
    return made


@pytest.fixture
def config(export_config: ExportConfig) -> ProfileConfig:
    return profile(
        export_config.model_copy(update={"parity_frames": 2, "parity_sizes": ((16, 24),)})
    )


def damage(ws: Workspace, factor: float) -> None:
    """Multiply the decoder's largest weight, and let the manifest agree."""
    path = ws.onnx / DEPTH_DECODER.file
    graph = onnx.load(path)
    weight = max(graph.graph.initializer, key=lambda t: len(t.raw_data))
    values = onnx.numpy_helper.to_array(weight) * np.float32(factor)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(graph, path)
    manifest = read_manifest(ws.onnx)
    manifest.components[DEPTH_DECODER.name].files[path.name] = sha256_of(path)
    replace(manifest, fused=None).write(ws.onnx)


def written(ws: Workspace) -> dict[str, Any]:
    return json.loads((ws.metrics / "parity.json").read_text())


def row(**figures: float) -> Accuracy:
    same = {"abs_rel": 0.2, "reference_abs_rel": 0.2, "delta1": 0.7, "reference_delta1": 0.7}
    others = {"median_relative": 0.0, "max_relative": 0.0, "seconds": 1.0, "reference_seconds": 1.0}
    return Accuracy(dataset="hypersim", frames=2, **(same | others | figures))


def test_frames_are_compared_by_the_evaluations_metrics(
    ws: Workspace, config: ProfileConfig
) -> None:
    run(config, ws)
    found = written(ws)
    assert found["passed"] is True
    assert found["faults"] == []
    assert list(found["accuracy"][CPU]) == list(DATASETS)
    for name in DATASETS:
        figures = found["accuracy"][CPU][name]
        assert figures["frames"] == 2
        assert abs(figures["abs_rel_change"]) < 1e-4
        assert 0 <= figures["median_relative"] <= figures["max_relative"] < 1e-3
    assert found["backends"][CPU] == "compared"
    for name in set(BACKENDS) - {CPU}:
        assert "no NVIDIA driver" in found["backends"][name]


def test_the_figures_are_those_of_the_predictions(ws: Workspace) -> None:
    session, frame = open_session(ws.onnx, CPU), make_frame(1, 0, (20, 28))
    limits = (0.1, 80.0)
    own = session_predictor(session, 24)
    shifted = lambda f: own(f) * np.float32(1.25)  # noqa: E731
    found = compare_on_frames("made", [frame], shifted, own, limits)
    truth = depth_metrics(own(frame), frame.depth, frame.valid_mask)
    assert found.reference_abs_rel == pytest.approx(truth["abs_rel"])
    assert found.median_relative == pytest.approx(0.25, rel=1e-5)
    worse = depth_metrics(shifted(frame), frame.depth, frame.valid_mask)
    assert found.abs_rel_change == pytest.approx(worse["abs_rel"] - truth["abs_rel"])
    with pytest.raises(ExportError, match="none of 1 frames has a true depth between 70 and 80 m"):
        compare_on_frames("made", [frame], own, own, (70.0, 80.0))


def test_several_steps_start_from_the_same_noise(ws: Workspace) -> None:
    session, model = open_session(ws.onnx, CPU), toy_model(fov_matters=True)
    session.manifest = replace(session.manifest, num_inference_steps=3)
    model.register_to_config(default_denoising_steps=3)
    frame = make_frame(0, 0, (20, 28))
    expected = torch_predictor(model, session.manifest, 24)(frame)
    np.testing.assert_allclose(session_predictor(session, 24)(frame), expected, rtol=1e-3)
    torch.manual_seed(7)
    np.testing.assert_array_equal(
        torch_predictor(model, session.manifest, 24)(frame), expected, "noise is not torch's own"
    )


def test_a_graph_that_is_less_accurate_fails(
    ws: Workspace, config: ProfileConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where no component's limit noticed anything."""
    damage(ws, 3.0)
    monkeypatch.setattr(parity, "_compare_backend", only_frames)
    with pytest.raises(ParityError, match=r"on hypersim .*torch"):
        run(config, ws)
    assert written(ws)["passed"] is False


def only_frames(config: Any, ws: Any, model: Any, session: Any, report: Report) -> None:
    report.accuracy[session.backend.name] = parity.compare_accuracy(config, ws, model, session)


def test_a_graph_that_gives_nan_on_frames_fails(
    ws: Workspace, config: ProfileConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(ws, math.nan)
    monkeypatch.setattr(parity, "_compare_backend", only_frames)
    with pytest.raises(ParityError, match="non-finite depth"):
        run(config, ws)
    found = written(ws)
    assert found["passed"] is False
    assert "non-finite depth" in found["faults"][0]


@pytest.mark.parametrize(
    ("precision", "figures", "said"),
    [
        ("fp32", {"abs_rel": 0.2051}, "AbsRel on hypersim is 0.2051 by the graphs"),
        ("fp32", {"abs_rel": 0.1949}, "AbsRel on hypersim"),
        ("fp32", {"abs_rel": math.nan}, "AbsRel on hypersim"),
        ("fp32", {"max_relative": 1.1e-3}, "depth on hypersim differs from torch: max_relative"),
        ("fp16", {"median_relative": 1.1e-2}, "depth on hypersim differs from torch: median"),
        ("fp32", {"abs_rel": 0.2049, "max_relative": 9e-4}, None),
        ("fp16", {"abs_rel": 0.2049, "median_relative": 9e-3, "max_relative": 0.5}, None),
    ],
)
def test_limits_on_frames(
    exported: Workspace, precision: str, figures: dict[str, float], said: str | None
) -> None:
    manifest = replace(read_manifest(exported.onnx), precision=precision)
    faults = list(Report(manifest, [], {CPU: [row(**figures)]}, {}).faults())
    assert len(faults) == (0 if said is None else 1)
    assert said is None or said in faults[0]


def test_missing_frames_are_told(ws: Workspace, config: ProfileConfig) -> None:
    shutil.rmtree(ws.shards("tartanair"))
    with pytest.raises(ParityError, match="tartanair: no holdout frame to compare depth on"):
        run(config, ws)


def test_a_size_that_a_back_end_was_not_built_for_is_noted(
    ws: Workspace, config: ProfileConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise ShapeError("vae_encoder: rgb of shape [1] lies outside the engine's range")

    monkeypatch.setattr(parity, "compare_components", refuse)
    run(config, ws)
    assert written(ws)["backends"][CPU].startswith("compared in part: vae_encoder: rgb of shape")
