"""What training sees: which frames in which order, and pictures, depth and K kept together."""

from __future__ import annotations

import numpy as np
import pytest

from metricgold import geometry as geo
from metricgold.config import AugmentConfig
from metricgold.data.mixing import MixingSampler
from metricgold.data.sample import Frame
from metricgold.data.transforms import to_training_size

SIZES, WEIGHTS = {"a": 5, "b": 3, "left out": 4}, {"a": 2.0, "b": 1.0, "left out": 0.0}


def mixing(seed: int = 0, batch_size: int = 2) -> MixingSampler:
    return MixingSampler(SIZES, WEIGHTS, batch_size, 600, seed)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_an_epoch_visits_every_frame_once(batch_size: int) -> None:
    """Micro-batches may straddle epochs; seven is more than either dataset holds."""
    sampler = mixing(batch_size=batch_size)
    seen: dict[str, list[int]] = {"a": [], "b": []}
    for step in range(600):
        name, indices = sampler.batch(step)
        assert indices.shape == (batch_size,)
        seen[name].extend(indices.tolist())
    for name, frames in seen.items():
        size = SIZES[name]
        epochs = [frames[i : i + size] for i in range(0, len(frames) - size + 1, size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 3  # shuffled anew
    assert len(seen["a"]) / (600 * batch_size) == pytest.approx(2 / 3, abs=0.06)


def test_a_micro_batch_depends_on_seed_and_step_alone() -> None:
    forward, backward, other = mixing(3), mixing(3), mixing(4)
    late = {step: backward.batch(step) for step in reversed(range(200))}
    differs = 0
    for step in range(200):
        name, indices = forward.batch(step)
        assert name == late[step][0]
        np.testing.assert_array_equal(indices, late[step][1])
        differs += name != other.batch(step)[0]
    assert differs > 20


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no dataset"):
        MixingSampler({"a": 0, "b": 3}, {"a": 1.0, "b": 0.0}, 2, 10, 0)


NATIVE, TRAIN = (96, 128), (48, 40)
NORMAL, DISTANCE_M = np.array([0.3, -0.2, 0.9]), 5.0


def tilted_plane() -> Frame:
    """n . X = 5 m under an off-centre camera; red is the column, green the row."""
    matrix = geo.make_intrinsics(110.0, 105.0, 70.3, 41.8)
    depth = DISTANCE_M / (geo.pixel_rays(matrix, *NATIVE) @ NORMAL)
    y, x = np.mgrid[: NATIVE[0], : NATIVE[1]]
    rgb = np.stack([x, y, 0 * x], axis=-1).astype(np.uint8)
    valid, sky = np.ones(NATIVE, bool), np.zeros(NATIVE, bool)
    return Frame(
        "s/0", "s", rgb, depth.astype(np.float32), valid, sky, np.asarray(matrix, np.float64)
    )


def augmentation(**changes: float) -> AugmentConfig:
    values: dict[str, float] = {"flip": 0, "crop": 0, "uncrop": 0, "colour": 0}
    return AugmentConfig(**(values | {"crop_min_scale": 0.5, "uncrop_max_scale": 2.0} | changes))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("change", [{}, {"crop": 1}, {"uncrop": 1}])
def test_picture_depth_and_camera_stay_together(
    change: dict[str, float], flip: int, seed: int
) -> None:
    """The plane stays that plane under the new K, up to half a native pixel."""
    frame = tilted_plane()
    settings = augmentation(flip=flip, **change)
    sample = to_training_size(frame, TRAIN, settings, np.random.default_rng(seed))
    mirror = np.array([-1.0 if flip else 1.0, 1.0, 1.0])
    rays = geo.pixel_rays(sample.intrinsics, *TRAIN) * mirror
    slope = np.abs(np.linalg.inv(frame.intrinsics).T @ NORMAL / DISTANCE_M)  # of 1 / z, a pixel
    expected = (rays @ NORMAL / DISTANCE_M)[sample.valid_mask]
    off = np.abs(1 / sample.depth[sample.valid_mask] - expected)
    assert off.max() <= 0.5 * slope[:2].sum() + 1e-6
    seen = geo.project(rays, frame.intrinsics)  # where in the native picture each pixel looks
    inner = ((seen > 3) & (seen < np.array(NATIVE[::-1]) - 4)).all(axis=-1)
    assert inner.sum() > 100
    assert sample.valid_mask[inner].all()
    np.testing.assert_allclose(sample.rgb[inner][:, :2], seen[inner], atol=1.01)
    assert np.isin(sample.depth[sample.valid_mask], frame.depth).all()
    points = geo.unproject(sample.depth, sample.intrinsics)
    y, x = np.mgrid[: TRAIN[0], : TRAIN[1]]
    back = geo.project(points[sample.valid_mask], sample.intrinsics)
    np.testing.assert_allclose(back, np.stack([x, y], -1)[sample.valid_mask], atol=1e-6)


def test_crops_narrow_and_uncrops_widen_the_field_of_view() -> None:
    frame = tilted_plane()
    plain = to_training_size(frame, TRAIN)
    assert plain.fov_y_deg == pytest.approx(geo.fov_y_deg(frame.intrinsics, NATIVE[0]))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        cropped = to_training_size(frame, TRAIN, augmentation(crop=1), rng)
        widened = to_training_size(frame, TRAIN, augmentation(uncrop=1), rng)
        assert cropped.fov_y_deg < plain.fov_y_deg < widened.fov_y_deg
        for sample in (cropped, widened):
            assert sample.fov_y_deg == pytest.approx(geo.fov_y_deg(sample.intrinsics, TRAIN[0]))
        assert cropped.valid_mask.all()
        assert not widened.valid_mask.all()


def test_colours_change_nothing_but_colours() -> None:
    frame = tilted_plane()
    plain = to_training_size(frame, TRAIN, augmentation(), np.random.default_rng(1))
    other = to_training_size(frame, TRAIN, augmentation(colour=0.4), np.random.default_rng(1))
    assert not np.array_equal(plain.rgb, other.rgb)
    np.testing.assert_array_equal(plain.depth, other.depth)
    np.testing.assert_array_equal(plain.intrinsics, other.intrinsics)


@pytest.mark.parametrize("kind", ["blur", "jpeg"])
def test_blur_and_compression_change_the_picture_alone(kind: str) -> None:
    frame = tilted_plane()
    augment = AugmentConfig.model_validate(
        {"flip": 0, "crop": 0, "crop_min_scale": 1, "uncrop": 0, "uncrop_max_scale": 1, "colour": 0}
        | {kind: 1.0}
    )
    none = augment.model_copy(update={kind: 0.0})
    plain = to_training_size(frame, TRAIN, none, np.random.default_rng(1))
    one, same, other = (
        to_training_size(frame, TRAIN, augment, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.depth, plain.depth)
    np.testing.assert_array_equal(one.intrinsics, plain.intrinsics)
    np.testing.assert_array_equal(one.rgb, same.rgb)
    assert (one.rgb != other.rgb).any()
    apart = np.abs(one.rgb.astype(int) - plain.rgb)
    assert 0 < apart.mean() < 20
    assert one.rgb.dtype == np.uint8
