"""The evaluation stage from shards to files, on a tiny random model and tiny frames."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from made_frames import make_frame, write_shards
from PIL import Image
from toy import toy_model

from metricgold.config import ProfileConfig, load_config
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.evaluation import benchmark, pictures
from metricgold.geometry import fov_y_deg
from metricgold.model import CheckpointError
from metricgold.workspace import Workspace

PARAMS = Path(__file__).parents[2] / "params.yaml"


def read_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def config() -> ProfileConfig:
    demo = load_config(PARAMS, "demo")
    hypersim = demo.datasets["hypersim"].model_copy(update={"train_size": (16, 24)})
    tartanair = demo.datasets["tartanair"].model_copy(update={"weight": 0.0})
    datasets = {**demo.datasets, "hypersim": hypersim, "tartanair": tartanair}
    evaluate = demo.evaluate.model_copy(update={"pictures": 3})
    return demo.model_copy(update={"datasets": datasets, "evaluate": evaluate})


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path)
    folder = made.shards("hypersim")
    folder.mkdir(parents=True)
    write_shards(folder, "train", [make_frame(s, i, (16, 24)) for s in (5, 6) for i in range(3)])
    holdout = [make_frame(s, i, (16, 24)) for s in (0, 1, 2) for i in range(2)]
    holdout.append(make_frame(3, 0, (20, 32)))  # another size in the same shard
    write_shards(folder, "holdout", holdout)
    toy_model(fov_matters=True).save_pretrained(made.model)
    return made


def test_all_outputs(config: ProfileConfig, workspace: Workspace) -> None:
    benchmark.run(config, workspace, "hypersim")
    summary = json.loads((workspace.metrics / "evaluate_hypersim.json").read_text())
    assert (summary["frames"], summary["scenes"]) == (7, 4)
    assert all(isinstance(v, int | float) for v in summary.values())
    assert summary["abs_rel_low"] <= summary["abs_rel"] <= summary["abs_rel_high"]
    assert summary["affine_abs_rel"] < summary["abs_rel"]
    assert summary["unknown_fov_abs_rel"] != summary["abs_rel"]
    ratio = summary["abs_rel"] / summary["constant_abs_rel"]
    assert summary["ratio_to_constant"] == pytest.approx(ratio, abs=1e-3)
    # scenes 5 and 6 of the training shards hold 6..13 and 7..15 m; the held-out ones less
    assert 6.0 < summary["constant_depth_m"] <= summary["constant_median_depth_m"] < 15.0

    folder = workspace.predictions / "hypersim"
    rows = read_rows(folder / "per_frame.csv")
    assert [r["key"] for r in rows][:2] == ["scene_0/000", "scene_0/001"]
    for name in ("abs_rel", "delta1", "boundary_f1", "unknown_fov_delta1"):
        mean = np.mean([float(r[name]) for r in rows])
        assert summary[name] == pytest.approx(mean, abs=2e-5)
    panels = json.loads((folder / "panels.json").read_text())
    assert [p["percentile"] for p in panels] == [0.0, 50.0, 100.0]
    assert [p["abs_rel"] for p in panels] == sorted(p["abs_rel"] for p in panels)
    for panel in panels:
        with Image.open(folder / panel["file"]) as picture:
            assert picture.mode == "RGB"

    clouds = json.loads((folder / "clouds.json").read_text())
    assert [c["percentile"] for c in clouds] == [50.0, 100.0]
    shown = json.loads((folder / clouds[0]["file"]).read_text())
    assert [c["name"] for c in shown["clouds"]] == ["truth", "metricgold"]

    reader = ShardReader(shard_paths(workspace.shards("hypersim"), "holdout"))
    valid = sum(int(reader[i].valid_mask.sum()) for i in range(len(reader)))
    for kind in ("depth", "edge"):
        by_pixel = read_rows(workspace.plots / f"evaluate_hypersim_by_{kind}.csv")
        assert sum(int(r["pixels"]) for r in by_pixel) == valid


def test_examples_are_the_first_frames_of_the_first_scenes(
    config: ProfileConfig, workspace: Workspace
) -> None:
    benchmark.run(config, workspace, "hypersim")
    folder = workspace.predictions / "hypersim"
    examples = json.loads((folder / "examples.json").read_text())
    assert [e["key"] for e in examples] == ["scene_0/000", "scene_1/000", "scene_2/000"]
    reader = ShardReader(shard_paths(workspace.shards("hypersim"), "holdout"))
    picture = np.asarray(Image.open(folder / "example_00.png"))
    np.testing.assert_array_equal(picture, reader[0].rgb)
    assert examples[0]["fov_y_deg"] == pytest.approx(fov_y_deg(reader[0].intrinsics, 16), abs=1e-3)


def test_runs_are_identical(config: ProfileConfig, workspace: Workspace) -> None:
    def outputs() -> dict[str, bytes]:
        benchmark.run(config, workspace, "hypersim")
        roots = (workspace.metrics, workspace.plots, workspace.predictions)
        return {str(p): p.read_bytes() for r in roots for p in r.rglob("*") if p.is_file()}

    first = outputs()
    assert first == outputs()
    assert not [name for name in first if name.endswith(".part")]


def test_max_frames_takes_evenly_spaced_ones(config: ProfileConfig, workspace: Workspace) -> None:
    assert benchmark.evenly_spaced(7, 3) == [0, 2, 4]
    assert benchmark.evenly_spaced(3, None) == benchmark.evenly_spaced(3, 9) == [0, 1, 2]
    evaluate = config.evaluate.model_copy(update={"max_frames": 3})
    benchmark.run(config.model_copy(update={"evaluate": evaluate}), workspace, "hypersim")
    rows = read_rows(workspace.predictions / "hypersim" / "per_frame.csv")
    assert [r["key"] for r in rows] == ["scene_0/000", "scene_1/000", "scene_2/000"]


def test_a_dataset_left_out_says_so(config: ProfileConfig, workspace: Workspace) -> None:
    benchmark.run(config, workspace, "tartanair")
    summary = json.loads((workspace.metrics / "evaluate_tartanair.json").read_text())
    assert summary["frames"] == 0
    assert "weight 0" in summary["reason"]
    assert (workspace.predictions / "tartanair" / "per_frame.csv").is_file()
    assert (workspace.plots / "evaluate_tartanair_by_depth.csv").is_file()
    assert (workspace.plots / "evaluate_tartanair_by_edge.csv").is_file()


def test_missing_model_and_missing_frames_are_named(
    config: ProfileConfig, workspace: Workspace
) -> None:
    with pytest.raises(benchmark.EvaluationError, match="virtual_kitti: no train frame"):
        benchmark.run(config, workspace, "virtual_kitti")
    (workspace.model / "model_index.json").unlink()
    with pytest.raises(CheckpointError, match="no MetricGold checkpoint"):
        benchmark.run(config, workspace, "hypersim")
    assert not (workspace.predictions / "hypersim").exists()


def test_a_diverged_model_is_named(config: ProfileConfig, workspace: Workspace) -> None:
    broken = toy_model()
    broken.depth_vae.decoder.conv_out.bias.data.fill_(float("nan"))
    broken.save_pretrained(workspace.model)
    with pytest.raises(benchmark.EvaluationError, match=r"scene_0/000: .* not finite"):
        benchmark.run(config, workspace, "hypersim")


def test_ranks_are_best_median_worst() -> None:
    errors = [0.5, 0.1, 0.9, 0.3, 0.7]
    picked = pictures.pick_ranks(errors, 3)
    assert [(r.position, r.percentile) for r in picked] == [(1, 0.0), (0, 50.0), (2, 100.0)]
    assert [r.position for r in pictures.pick_ranks(errors, 1)] == [0]
    assert [r.position for r in pictures.pick_ranks(errors, 40)] == [1, 3, 0, 4, 2]
    assert len(pictures.pick_ranks(list(range(300)), 6)) == 6
    assert pictures.pick_ranks([0.2], 6) == [pictures.Rank(0, 0.0, 0.2)]
