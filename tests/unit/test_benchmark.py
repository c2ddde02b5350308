"""The evaluation stage from shards to files, on a tiny random model and tiny frames."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy import toy_model

from metricgold.config import ProfileConfig, load_config
from metricgold.data.sample import Frame
from metricgold.data.shard_writer import ShardWriter
from metricgold.data.shards import ShardReader, encode_frame, shard_paths
from metricgold.depth_codec import DepthCodec
from metricgold.evaluation import benchmark, pictures
from metricgold.evaluation.baselines import ConstantDepths
from metricgold.geometry import fov_y_deg, intrinsics_from_fov
from metricgold.model import CheckpointError
from metricgold.workspace import Workspace

PARAMS = Path(__file__).parents[2] / "params.yaml"


def make_frame(scene: int, index: int, size: tuple[int, int]) -> Frame:
    rng = np.random.default_rng([scene, index])
    depth = rng.uniform(1.0 + scene, 3.0 + 2 * scene, size).astype(np.float32)
    valid = rng.random(size) > 0.2
    rgb = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    sky = np.zeros(size, bool)
    camera = intrinsics_from_fov(50.0 + 5 * scene, *size)
    scene_name = f"scene_{scene}"
    return Frame(f"{scene_name}/{index:03d}", scene_name, rgb, depth, valid, sky, camera)


def write_shards(folder: Path, split: str, frames: list[Frame]) -> None:
    with ShardWriter(folder, split) as writer:  # type: ignore[arg-type]
        for frame in frames:
            writer.add(encode_frame(frame, 95))


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

    by_range = read_rows(workspace.plots / "evaluate_hypersim.csv")
    reader = ShardReader(shard_paths(workspace.shards("hypersim"), "holdout"))
    valid = sum(int(reader[i].valid_mask.sum()) for i in range(len(reader)))
    assert sum(int(r["pixels"]) for r in by_range) == valid


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
    assert (workspace.plots / "evaluate_tartanair.csv").is_file()


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


def test_batches_keep_order_and_size() -> None:
    sizes = [(8, 8)] * 20 + [(8, 12)] + [(1024, 1024)] * 2
    frames = [(i, make_frame(0, i, size)) for i, size in enumerate(sizes)]
    grouped = list(benchmark.batches(frames))
    assert [len(b) for b in grouped] == [benchmark.MAX_BATCH, 4, 1, 1, 1]
    assert [i for b in grouped for i, _ in b] == list(range(23))


def test_a_perfect_prediction_has_perfect_figures() -> None:
    frame = make_frame(1, 0, (16, 24))
    constants = ConstantDepths(median_m=3.0, best_abs_rel_m=2.0, frames=1)
    truth = np.where(frame.valid_mask, frame.depth, 1.0).astype(np.float32)
    figures = benchmark.frame_figures(frame, truth, 2 * truth, constants, DepthCodec())
    assert figures["abs_rel"] == figures["rmse"] == 0.0
    assert figures["delta1"] == figures["boundary_f1"] == 1.0
    assert figures["unknown_fov_abs_rel"] == pytest.approx(1.0)
    assert figures["affine_abs_rel"] == pytest.approx(0.0, abs=1e-9)
    assert figures["affine_disparity_abs_rel"] == pytest.approx(0.0, abs=1e-6)
    depth = frame.depth[frame.valid_mask]
    assert figures["constant_abs_rel"] == pytest.approx(np.mean(np.abs(2 - depth) / depth), 1e-6)


def test_truth_outside_the_codec_range_is_not_evaluated() -> None:
    frame = make_frame(1, 0, (16, 24))
    frame.depth[:8] = 150.0
    constants = ConstantDepths(3.0, 2.0, 1)
    guess = np.where(frame.depth > 80, 80.0, frame.depth).astype(np.float32)
    assert benchmark.frame_figures(frame, guess, guess, constants, DepthCodec())["abs_rel"] == 0.0


def test_ranks_are_best_median_worst() -> None:
    errors = [0.5, 0.1, 0.9, 0.3, 0.7]
    picked = pictures.pick_ranks(errors, 3)
    assert [(r.position, r.percentile) for r in picked] == [(1, 0.0), (0, 50.0), (2, 100.0)]
    assert [r.position for r in pictures.pick_ranks(errors, 1)] == [0]
    assert [r.position for r in pictures.pick_ranks(errors, 40)] == [1, 3, 0, 4, 2]
    assert len(pictures.pick_ranks(list(range(300)), 6)) == 6
    assert pictures.pick_ranks([0.2], 6) == [pictures.Rank(0, 0.0, 0.2)]
