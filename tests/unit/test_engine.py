"""Frames past several models: order, threads, memory, errors, statistics."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from made_frames import make_frame, write_shards

from metricgold.data.evaluation_sets import kitti, nyuv2
from metricgold.data.evaluation_sets.base import EvaluationRef
from metricgold.data.evaluation_sets.decoders import decode_png16, decode_rgb
from metricgold.data.evaluation_sets.registry import get_evaluation_set
from metricgold.data.sample import Frame
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.evaluation import engine
from metricgold.evaluation.engine import TEMPORAL, EvaluationError, evaluate
from metricgold.evaluation.metrics import METRIC_NAMES, bootstrap_interval
from metricgold.evaluation.predictors import (
    ConstantPredictor,
    Estimate,
    Invariance,
    Observation,
    Predictor,
)
from metricgold.evaluation.temporal import temporal_error

RANGE_M = (0.1, 80.0)


class Told(Predictor):
    """Says what it is given for a key; remembers what it was asked."""

    def __init__(self, answers: dict[str, Estimate]) -> None:
        self.answers, self.asked = answers, list[list[str]]()

    def predict(self, observations: Sequence[Observation]) -> list[Estimate]:
        self.asked.append([o.key for o in observations])
        return [self.answers[o.key] for o in observations]


def truthful(frames: Sequence[Frame], factor: float = 1.0) -> Told:
    return Told(
        {
            f.key: Estimate(np.where(f.valid_mask, factor * f.depth, 1).astype(np.float32))
            for f in frames
        }
    )


FRAMES = [make_frame(scene, i, (16, 24)) for scene in (1, 2, 3) for i in range(4)]


def test_figures_are_in_order_whatever_the_number_of_threads() -> None:
    predictors = {"exact": truthful(FRAMES), "constant": ConstantPredictor(3.0)}
    one, many = (evaluate(FRAMES, range(12), predictors, RANGE_M, workers=w) for w in (1, 7))
    assert one.keys == many.keys == [f.key for f in FRAMES]
    assert one.scenes[4] == "scene_2"
    for name in predictors:
        for figure in one.scores[name].names:
            np.testing.assert_array_equal(
                one.scores[name].column(figure), many.scores[name].column(figure)
            )
    errors = [
        float(np.mean(np.abs(3 - f.depth[f.valid_mask]) / f.depth[f.valid_mask])) for f in FRAMES
    ]
    np.testing.assert_allclose(many.scores["constant"].column("abs_rel"), errors, rtol=1e-6)
    assert many.scores["exact"].mean("abs_rel") == 0
    assert tuple(many.scores["exact"].names[: len(METRIC_NAMES)]) == METRIC_NAMES  # not a set's
    assert many.scores["constant"].rows()[3]["abs_rel"] == pytest.approx(errors[3], rel=1e-6)


def test_reading_predicting_and_measuring_are_on_threads_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, set[str]] = {"read": set(), "predict": set(), "measure": set()}

    class Frames(list[Frame]):
        def __getitem__(self, index: int) -> Frame:  # type: ignore[override]
            seen["read"].add(threading.current_thread().name)
            return super().__getitem__(index)

    class Watched(ConstantPredictor):
        def predict(self, observations: Sequence[Observation]) -> list[Estimate]:
            seen["predict"].add(threading.current_thread().name)
            return super().predict(observations)

    measure = engine._measure

    def watched(*arguments: object) -> object:
        seen["measure"].add(threading.current_thread().name)
        return measure(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "_measure", watched)
    evaluate(Frames(FRAMES), range(12), {"": Watched(2.0)}, RANGE_M, workers=2)
    assert seen["predict"] == {threading.current_thread().name}
    assert len(seen["read"]) == 1
    assert not seen["read"] & seen["predict"]
    assert seen["measure"]
    assert not seen["measure"] & (seen["read"] | seen["predict"])


def test_batches_keep_order_and_size() -> None:
    sizes = [(8, 8)] * 20 + [(8, 12)] + [(1024, 1024)] * 2
    frames = [(i, make_frame(0, i, size)) for i, size in enumerate(sizes)]
    grouped = list(engine.batches(iter(frames)))
    assert [len(b) for b in grouped] == [engine.MAX_BATCH, 4, 1, 1, 1]
    assert [i for b in grouped for i, _ in b] == list(range(23))


def test_frames_without_truth_are_left_out() -> None:
    frames = list(FRAMES[:3])
    far = make_frame(9, 0, (16, 24))
    far.depth[:] = 500.0
    frames.insert(1, far)
    found = evaluate(frames, range(4), {"": ConstantPredictor(2.0)}, RANGE_M)
    assert found.indices == [0, 2, 3]
    with pytest.raises(EvaluationError, match=r"none of the 1 frames has a true depth .* 80 m"):
        evaluate([far], [0], {"": ConstantPredictor(2.0)}, RANGE_M)


def test_a_bad_estimate_names_model_and_frame() -> None:
    told = truthful(FRAMES)
    told.answers[FRAMES[5].key] = Estimate(np.full((16, 24), np.nan, np.float32))
    with pytest.raises(EvaluationError, match=r"^broken: scene_2/001: depth is not finite"):
        evaluate(FRAMES, range(12), {"broken": told}, RANGE_M)

    class Short(ConstantPredictor):
        def predict(self, observations: Sequence[Observation]) -> list[Estimate]:
            return super().predict(observations)[1:]

    with pytest.raises(EvaluationError, match="short: 11 estimates for 12 pictures"):
        evaluate(FRAMES, range(12), {"short": Short(2.0)}, RANGE_M)


def test_an_error_of_a_predictor_ends_the_evaluation() -> None:
    told = truthful(FRAMES[:6])
    with pytest.raises(KeyError, match="scene_2/002"):
        evaluate(FRAMES, range(12), {"": told}, RANGE_M)


def test_figures_of_sequences() -> None:
    flicker = truthful(FRAMES)
    for i, frame in enumerate(FRAMES):
        scale = 1.1 if i % 2 else 1.0
        depth = scale * np.where(frame.valid_mask, frame.depth, 1).astype(np.float32)
        flicker.answers[frame.key] = Estimate(depth)
    predictors = {"flicker": flicker, "twice": truthful(FRAMES, 2.0)}
    found = evaluate(FRAMES, range(12), predictors, RANGE_M, sequences=True)
    column = found.scores["flicker"].column(TEMPORAL)
    assert np.isnan(column[[0, 4, 8]]).all()  # the first frame of each scene
    np.testing.assert_allclose(np.delete(column, [0, 4, 8]), np.log(1.1), rtol=1e-5)
    assert found.scores["flicker"].mean(TEMPORAL) == pytest.approx(np.log(1.1), rel=1e-5)
    assert found.scores["twice"].mean(TEMPORAL) == pytest.approx(0, abs=1e-6)
    pair = [flicker.answers[f.key].depth for f in FRAMES[:2]]
    alone = temporal_error(
        np.stack(pair),
        np.stack([f.depth for f in FRAMES[:2]]),
        np.stack([f.valid_mask for f in FRAMES[:2]]),
    )
    assert column[1] == pytest.approx(alone)
    every_second = evaluate(FRAMES, range(0, 12, 2), predictors, RANGE_M, sequences=True)
    assert TEMPORAL not in every_second.scores["flicker"].names


def test_paired_differences_are_of_the_same_frames() -> None:
    predictors = {"a": truthful(FRAMES, 1.2), "b": truthful(FRAMES, 1.1)}
    found = evaluate(FRAMES, range(12), predictors, RANGE_M)
    difference, low, high = found.difference("a", "b", "abs_rel", seed=3)
    assert (difference, low, high) == pytest.approx((0.1, 0.1, 0.1), rel=1e-5)
    assert found.interval("a", "abs_rel", 3) == bootstrap_interval(
        found.scores["a"].column("abs_rel").tolist(), found.scenes, seed=3
    )


def test_a_relative_model_has_no_metric_figures() -> None:
    relative = truthful(FRAMES)
    relative.invariance = Invariance.AFFINE_DEPTH
    found = evaluate(FRAMES, range(12), {"relative": relative}, RANGE_M)
    assert "abs_rel" not in found.scores["relative"].names
    assert found.scores["relative"].mean("affine_abs_rel") == pytest.approx(0, abs=1e-6)


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    """216 frames more take less than 20 of them; what is in flight varies with the load."""
    size = (256, 256)
    write_shards(tmp_path, "holdout", [make_frame(1, i, size) for i in range(8)])
    reader = ShardReader(shard_paths(tmp_path, "holdout"))

    def peak(frames: int) -> int:
        tracemalloc.start()
        chosen = [i % 8 for i in range(frames)]
        evaluate(reader, chosen, {"": ConstantPredictor(2.0)}, RANGE_M, workers=2)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(16)
    few, many = peak(24), peak(240)
    one = reader[0]
    frame_bytes = one.rgb.nbytes + one.depth.nbytes + one.valid_mask.nbytes + one.sky_mask.nbytes
    assert many - few < 20 * frame_bytes


def test_genuine_frames_past_models(real_samples: Path) -> None:
    """NYU and KITTI files, protocol, engine and figures together, against plain numpy."""
    rooms, roads = get_evaluation_set("nyuv2"), get_evaluation_set("kitti_garg")
    assert isinstance(rooms, nyuv2.NyuV2)
    assert isinstance(roads, kitti.Kitti)
    depth = decode_png16((real_samples / "nyuv2/depth/sync_depth_00000.png").read_bytes()) / 1000.0
    rgb = decode_rgb((real_samples / "nyuv2/rgb/rgb_00000.jpg").read_bytes())
    room = rooms.frame(EvaluationRef("a/1", "a"), rgb, depth)
    points = decode_png16((real_samples / "kitti/depth/0000000050.png").read_bytes())
    rgb = decode_rgb((real_samples / "kitti/rgb/0000000050.png").read_bytes())
    road = roads.frame(EvaluationRef("b/1", "b"), rgb, points, np.diag([707.0, 707.0, 1.0]))
    found = evaluate([room, road], [0, 1], {"flat": ConstantPredictor(3.0)}, (1e-3, 80.0))
    expected = [
        np.mean(np.abs(3.0 - f.depth[f.valid_mask]) / f.depth[f.valid_mask]) for f in (room, road)
    ]
    scores = found.scores["flat"]
    np.testing.assert_allclose(scores.column("abs_rel"), expected, rtol=1e-6)
    boundary = scores.column("boundary_f1")
    assert boundary[0] == 0  # a flat prediction has no edges
    assert np.isnan(boundary[1])  # LiDAR points have none to find
