"""Cameras under any chain of crops, resizes and flips, on made-up and on genuine depth.

A plane in z-depth stays a plane under *any* K (1 / z is affine in the pixel, and K only changes
by which affine function), so planarity alone would tell nothing of K: what must stay is the
plane itself, its normal and its distance in metres.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricgold import geometry as geo
from metricgold.config import AugmentConfig, DatasetConfig
from metricgold.data import hypersim
from metricgold.data.dataset import FrameRef, Part, crop_bottom_centre
from metricgold.data.registry import get_dataset
from metricgold.data.sample import Frame
from metricgold.data.transforms import TrainSample, to_training_size
from metricgold.geometry import Array

MIRROR = np.diag([-1.0, 1.0, 1.0])
exactly = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@st.composite
def cameras(draw: st.DrawFn, size: tuple[int, int] = (48, 64)) -> Array:
    """Skewed, with the principal point anywhere, even outside of the picture."""
    height, width = size
    matrix = geo.make_intrinsics(
        draw(st.floats(0.4, 3)) * width,
        draw(st.floats(0.4, 3)) * height,
        draw(st.floats(-0.3, 1.3)) * width,
        draw(st.floats(-0.3, 1.3)) * height,
    )
    matrix[0, 1] = draw(st.floats(-0.2, 0.2)) * width
    return matrix


# --- chains of crop, resize and flip --------------------------------------------------------


@dataclass(frozen=True)
class View:
    """A picture's size and camera, how far it is mirrored, and where its pixels went."""

    size: tuple[int, int]
    intrinsics: Array
    mirrored: bool = False
    move: Callable[[Array], Array] = lambda pixels: pixels

    def moved(self, **changes: object) -> View:
        return View(**(self.__dict__ | changes))  # type: ignore[arg-type]


def cropped(view: View, top: float, left: float, share: float) -> View:
    height, width = view.size
    rows, columns = int(top * height / 2), int(left * width / 2)
    size = max(1, int((height - rows) * share)), max(1, int((width - columns) * share))
    return view.moved(
        size=size,
        intrinsics=geo.crop_intrinsics(view.intrinsics, rows, columns),
        move=lambda pixels: view.move(pixels) - [columns, rows],
    )


def resized(view: View, size: tuple[int, int]) -> View:
    scale = np.array([size[1] / view.size[1], size[0] / view.size[0]])
    return view.moved(
        size=size,
        intrinsics=geo.resize_intrinsics(view.intrinsics, view.size, size),
        move=lambda pixels: (view.move(pixels) + 0.5) * scale - 0.5,
    )


def flipped(view: View) -> View:
    width = view.size[1]
    return view.moved(
        intrinsics=geo.flip_intrinsics(view.intrinsics, width),
        mirrored=not view.mirrored,
        move=lambda pixels: view.move(pixels) * [-1, 1] + [width - 1, 0],
    )


shares = st.floats(0, 1)
steps = st.one_of(
    st.builds(
        lambda *args: functools.partial(cropped, top=args[0], left=args[1], share=args[2]),
        shares, shares, st.floats(0.5, 1),
    ),
    st.builds(
        lambda *size: functools.partial(resized, size=size), st.integers(7, 90), st.integers(7, 90)
    ),
    st.just(flipped),
)  # fmt: skip
chains = st.lists(steps, max_size=6)


def apply(chain: list[Callable[[View], View]], view: View) -> View:
    return functools.reduce(lambda found, step: step(found), chain, view)


def pixel_grid(size: tuple[int, int]) -> Array:
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    return np.stack([x, y], axis=-1)


@exactly
@given(matrix=cameras(), chain=chains, seed=st.integers(0, 1000))
def test_a_point_lands_where_its_pixel_went(
    matrix: Array, chain: list[Callable[[View], View]], seed: int
) -> None:
    view = apply(chain, View((48, 64), matrix))
    depth = np.random.default_rng(seed).uniform(0.1, 80, (48, 64))
    points = geo.unproject(depth, matrix) @ (MIRROR if view.mirrored else np.eye(3))
    expected = view.move(pixel_grid((48, 64)))
    np.testing.assert_allclose(geo.project(points, view.intrinsics), expected, atol=1e-7, rtol=1e-9)


@exactly
@given(matrix=cameras(), chain=chains, seed=st.integers(0, 1000))
def test_project_undoes_unproject_after_any_chain(
    matrix: Array, chain: list[Callable[[View], View]], seed: int
) -> None:
    view = apply(chain, View((48, 64), matrix))
    depth = np.random.default_rng(seed).uniform(0.1, 80, view.size)
    points = geo.unproject(depth, view.intrinsics)
    np.testing.assert_array_equal(points[..., 2], depth)
    back = geo.project(points, view.intrinsics)
    np.testing.assert_allclose(back, pixel_grid(view.size), atol=1e-7, rtol=1e-9)


@exactly
@given(matrix=cameras(), chain=chains)
def test_a_chain_keeps_k_a_camera_matrix(
    matrix: Array, chain: list[Callable[[View], View]]
) -> None:
    """Upper triangular with positive focal lengths, whatever the skew; its input untouched."""
    before = matrix.copy()
    view = apply(chain, View((48, 64), matrix))
    np.testing.assert_array_equal(matrix, before)
    np.testing.assert_array_equal(np.tril(view.intrinsics, -1), 0)
    assert (np.diag(view.intrinsics) > 0).all()
    assert view.intrinsics[2, 2] == 1


@exactly
@given(matrix=cameras(), chain=chains, seed=st.integers(0, 1000))
def test_ray_distance_round_trip_after_any_chain(
    matrix: Array, chain: list[Callable[[View], View]], seed: int
) -> None:
    view = apply(chain, View((48, 64), matrix))
    depth = np.random.default_rng(seed).uniform(0.1, 80, view.size)
    distance = geo.depth_to_ray_distance(depth, view.intrinsics)
    points = geo.unproject(depth, view.intrinsics)
    np.testing.assert_allclose(distance, np.linalg.norm(points, axis=-1), rtol=1e-12)
    assert (distance >= depth * (1 - 1e-12)).all()
    back = geo.ray_distance_to_depth(distance, view.intrinsics)
    np.testing.assert_allclose(back, depth, rtol=1e-12)


@exactly
@given(matrix=cameras(), top=st.integers(0, 20), left=st.integers(0, 30), flip=st.booleans())
def test_ray_distance_of_a_pixel_survives_crops_and_flips(
    matrix: Array, top: int, left: int, flip: bool
) -> None:
    depth = np.random.default_rng(0).uniform(0.1, 80, (48, 64))
    whole = geo.depth_to_ray_distance(depth, matrix)[top:, left:]
    part, moved = depth[top:, left:], geo.crop_intrinsics(matrix, top, left)
    if flip:
        whole, part = whole[:, ::-1], part[:, ::-1]
        moved = geo.flip_intrinsics(moved, part.shape[1])
    np.testing.assert_allclose(geo.depth_to_ray_distance(part, moved), whole, rtol=1e-12)


# --- the transforms of training -------------------------------------------------------------

NATIVE = (96, 132)
AUGMENTATIONS = {
    "resize": {},
    "crop": {"crop": 1.0},
    "uncrop": {"uncrop": 1.0},
    "flip": {"flip": 1.0},
    "crop and flip": {"crop": 1.0, "flip": 1.0},
    "uncrop and flip": {"uncrop": 1.0, "flip": 1.0},
}
augmentations = st.sampled_from(list(AUGMENTATIONS.values()))
sizes = st.tuples(st.integers(9, 60), st.integers(9, 60))


def augmentation(changes: dict[str, float]) -> AugmentConfig:
    values = {"flip": 0.0, "crop": 0.0, "uncrop": 0.0, "colour": 0.0, "crop_min_scale": 0.4}
    return AugmentConfig(**(values | {"uncrop_max_scale": 2.0} | changes))


def frame_of(depth: Array, matrix: Array) -> Frame:
    valid = np.ones(depth.shape, bool)
    rgb = np.zeros((*depth.shape, 3), np.uint8)
    return Frame(
        "s/0", "s", rgb, depth.astype(np.float32), valid, ~valid, np.asarray(matrix, np.float64)
    )


def transformed(
    depth: Array, matrix: Array, size: tuple[int, int], changes: dict[str, float], seed: int
) -> TrainSample:
    rng = np.random.default_rng(seed)
    return to_training_size(frame_of(depth, matrix), size, augmentation(changes), rng)


def sampled_pixels(
    native: tuple[int, int], size: tuple[int, int], changes: dict[str, float], seed: int
) -> tuple[Array, Array]:
    """(x, y) of the native pixel that each training pixel shows, and where there is one.

    The transform itself tells: it is run on depth that counts columns, then rows.
    """
    columns, rows = (pixel_grid(native)[..., i] + 1 for i in (0, 1))
    shown = [transformed(d, np.eye(3), size, changes, seed) for d in (columns, rows)]
    return np.stack([s.depth for s in shown], axis=-1) - 1.0, shown[0].valid_mask


def looks_at(sample: TrainSample, native_k: Array, flip: bool) -> Array:
    """(x, y) in the native picture at which each training pixel's ray looks, by both K."""
    rays = geo.pixel_rays(sample.intrinsics, *sample.depth.shape)
    return geo.project(rays @ (MIRROR if flip else np.eye(3)), native_k)


@exactly
@given(
    matrix=cameras(NATIVE), size=sizes, changes=augmentations, seed=st.integers(0, 10**6)
)  # fmt: skip
def test_each_training_pixel_shows_the_native_pixel_that_its_ray_meets(
    matrix: Array, size: tuple[int, int], changes: dict[str, float], seed: int
) -> None:
    """Of all native pixels the nearest, for every one of up to 3,600 rays: K is right to a small
    part of a pixel, and the flip mirrors it."""
    sample = transformed(np.ones(NATIVE), matrix, size, changes, seed)
    shown, valid = sampled_pixels(NATIVE, size, changes, seed)
    np.testing.assert_array_equal(valid, sample.valid_mask)
    seen = looks_at(sample, matrix, "flip" in changes)
    off = np.abs(seen - shown)[valid]
    assert valid.any()
    assert off.max() <= 0.5 + 1e-6
    inner = ((seen > -0.5) & (seen < np.array(NATIVE[::-1]) - 0.5)).all(axis=-1)
    edge = (np.abs(np.abs(seen - np.rint(seen)) - 0.5) < 1e-6).any(axis=-1)
    np.testing.assert_array_equal((valid != inner)[~edge], False)


@exactly
@given(matrix=cameras(NATIVE), changes=augmentations, seed=st.integers(0, 10**6))
def test_the_same_check_finds_a_k_that_is_a_fifth_of_a_pixel_off(
    matrix: Array, changes: dict[str, float], seed: int
) -> None:
    """So the property above says something: the wrong K is caught by it."""
    size = (45, 60)
    sample = transformed(np.ones(NATIVE), matrix, size, changes, seed)
    shown, valid = sampled_pixels(NATIVE, size, changes, seed)
    k = sample.intrinsics
    for wrong in (
        k + np.array([[0, 0, 0.2], [0, 0, 0], [0, 0, 0]]),
        k + np.array([[0, 0, 0], [0, 0, -0.2], [0, 0, 0]]),
        np.array([[1, 0, 30], [0, 1, 22], [0, 0, 1]])  # 2 % wider, about the middle
        @ np.diag([1.02, 1.02, 1.0])
        @ np.array([[1, 0, -30], [0, 1, -22], [0, 0, 1]])
        @ k,
    ):
        rays = geo.pixel_rays(wrong, *size) @ (MIRROR if "flip" in changes else np.eye(3))
        off = np.abs(geo.project(rays, matrix) - shown)[valid]
        assert off.max() > 0.5 + 1e-3


planes = st.tuples(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4), st.floats(1.5, 9)).map(
    lambda p: np.array([p[0], p[1], 1.0]) / p[2]
)
"""m of the plane m . X = 1."""


def plane_depth(plane: Array, matrix: Array, size: tuple[int, int]) -> Array:
    """z-depth [H, W] of the plane; not positive where a ray does not meet it."""
    return 1.0 / (geo.pixel_rays(matrix, *size) @ plane)


def fitted_plane(points: Array) -> Array:
    """m of the plane m . X = 1 nearest to ``points`` [..., 3]."""
    flat = points.reshape(-1, 3)
    return np.linalg.lstsq(flat, np.ones(len(flat)), rcond=None)[0]


@exactly
@given(
    plane=planes,
    factor=st.sampled_from([1, 3, 5]),
    flip=st.booleans(),
    centre=st.tuples(st.floats(20, 110), st.floats(20, 70)),
    skew=st.floats(-20, 20),
)
def test_a_plane_stays_that_plane_where_samples_are_exact(
    plane: Array, factor: int, flip: bool, centre: tuple[float, float], skew: float
) -> None:
    """Shrunk by an odd factor, each pixel's centre is a native pixel's centre: nothing is lost."""
    native = (75, 105)
    matrix = geo.make_intrinsics(120.0, 110.0, *centre)
    matrix[0, 1] = skew
    depth = plane_depth(plane, matrix, native)
    size = native[0] // factor, native[1] // factor
    changes = {"flip": 1.0} if flip else {}
    sample = transformed(depth, matrix, size, changes, 0)
    points = geo.unproject(sample.depth.astype(np.float64), sample.intrinsics)
    mirror = MIRROR if flip else np.eye(3)
    np.testing.assert_allclose(points @ mirror @ plane, 1.0, atol=1e-6)  # float32 depth
    np.testing.assert_allclose(fitted_plane(points @ mirror), plane, atol=1e-5)
    stale = geo.unproject(sample.depth.astype(np.float64), matrix) @ mirror @ plane
    if factor > 1 and abs(plane[:2] * plane[2]).max() > 0.02:
        assert np.abs(stale - 1).max() > 1e-3


@exactly
@given(plane=planes, matrix=cameras(NATIVE), changes=augmentations, seed=st.integers(0, 10**6))
def test_a_plane_stays_that_plane_at_the_sampled_pixels(
    plane: Array, matrix: Array, changes: dict[str, float], seed: int
) -> None:
    """Through crops, un-crops, flips and any resize: depth is the plane's on the ray through the
    sampled pixel, and off on the pixel's own ray by no more than half a native pixel's slope."""
    size = (33, 47)
    inverse = geo.pixel_rays(matrix, *NATIVE) @ plane
    depth = np.where(inverse > 0.02, 1 / np.maximum(inverse, 0.02), 0)
    sample = transformed(depth, matrix, size, changes, seed)
    shown, valid = sampled_pixels(NATIVE, size, changes, seed)
    hit = valid & (sample.depth > 0)
    x, y = shown[hit].astype(int).T
    np.testing.assert_array_equal(sample.depth[hit], depth.astype(np.float32)[y, x])
    rays = geo.pixel_rays(sample.intrinsics, *size) @ (MIRROR if "flip" in changes else np.eye(3))
    slope = np.abs(np.linalg.inv(matrix).T @ plane)[:2].sum()  # of 1 / z over a native pixel
    off = np.abs(1 / sample.depth[hit].astype(np.float64) - (rays @ plane)[hit])
    assert off.max(initial=0) <= 0.5 * slope + 1e-5


@exactly
@given(plane=planes, matrix=cameras((75, 105)), top=st.integers(0, 30), cut=st.integers(0, 20))
def test_the_crop_of_a_dataset_keeps_the_plane(
    plane: Array, matrix: Array, top: int, cut: int
) -> None:
    depth = plane_depth(plane, matrix, (75, 105))
    frame = frame_of(np.clip(depth, 0, 1e4), matrix)
    part = crop_bottom_centre(frame, (75 - top, 105 - 2 * cut))
    points = geo.unproject(part.depth.astype(np.float64), part.intrinsics)
    inside = (part.depth > 0.05) & (part.depth < 1e3)
    np.testing.assert_allclose((points @ plane)[inside], 1.0, atol=1e-4)


# --- genuine depth --------------------------------------------------------------------------

WINDOW = 80
MOST_PATCHES = 24
SEEDS = 5
TARTANAIR_FRAMES = (0, 8, 16, 24, 32)


@pytest.fixture(scope="module")
def genuine(real_samples: Path) -> dict[str, list[Frame]]:
    config = DatasetConfig(weight=1, mirrors=("unused",), train_size=(8, 8))
    reader, raw = get_dataset("tartanair"), real_samples / "tartanair"
    refs = reader.index(raw, config)
    tables = (real_samples / "hypersim/metadata_camera_parameters.csv").read_text()
    matrix = hypersim.parse_cameras(tables)["ai_037_002"]
    part = Part("", "")
    ref = FrameRef(
        "ai_037_002/cam_00/0000", "ai_037_002/cam_00", "train", part, part,
        tuple(matrix.ravel().tolist()),
    )  # fmt: skip
    folder = "hypersim/scenes/ai_037_002/images/scene_cam_00_geometry_hdf5"
    colour = (real_samples / "hypersim/third_party_color/frame.0000.color.hdf5").read_bytes()
    depth = (real_samples / folder / "frame.0000.depth_meters.hdf5").read_bytes()
    return {
        "tartanair": [reader.read(raw, refs[i], config, 80.0) for i in TARTANAIR_FRAMES],
        "hypersim": [hypersim.Hypersim().decode(ref, colour, depth, 80.0)],
    }


@dataclass(frozen=True)
class Patch:
    """A window of a genuine frame that lies on the plane m . X = 1, ``off`` at most."""

    frame: Frame
    top: int
    left: int
    plane: Array
    off: float


def planar_patches(frame: Frame, limit: float = 2e-3) -> list[Patch]:
    """The flattest windows that are not parallel to the picture, hence tell of K."""
    points = geo.unproject(frame.depth.astype(np.float64), frame.intrinsics)
    found = []
    for top in range(0, frame.depth.shape[0] - WINDOW + 1, WINDOW // 2):
        for left in range(0, frame.depth.shape[1] - WINDOW + 1, WINDOW // 2):
            window = (slice(top, top + WINDOW), slice(left, left + WINDOW))
            if not frame.valid_mask[window].all():
                continue
            plane = fitted_plane(points[window])
            off = float(np.abs(points[window] @ plane - 1).max())
            if off < limit and np.linalg.norm(plane[:2]) > 0.3 * np.linalg.norm(plane):
                found.append(Patch(frame, top, left, plane, off))
    return sorted(found, key=lambda patch: patch.off)[:MOST_PATCHES]


def plane_error(
    patch: Patch, sample: TrainSample, matrix: Array, shown: Array, flip: bool
) -> tuple[float, float]:
    """(largest distance to the patch's plane, most that the sampling explains), both relative,
    over the training pixels that show the patch; ``matrix`` is taken for their camera."""
    corner = np.array([patch.left, patch.top])
    inside = ((shown >= corner) & (shown < corner + WINDOW)).all(axis=-1) & sample.valid_mask
    if inside.sum() < 30:
        return 0.0, 0.0
    points = geo.unproject(sample.depth.astype(np.float64), matrix)[inside]
    error = np.abs(points @ (MIRROR if flip else np.eye(3)) @ patch.plane - 1).max()
    slope = np.abs(np.linalg.inv(patch.frame.intrinsics).T @ patch.plane)[:2].sum()
    return float(error), float(patch.off + 0.5 * slope * sample.depth[inside].max())


@pytest.fixture(scope="module")
def patches(genuine: dict[str, list[Frame]]) -> dict[str, list[list[Patch]]]:
    return {name: [planar_patches(f) for f in frames] for name, frames in genuine.items()}


@pytest.mark.parametrize("name", ["tartanair", "hypersim"])
@pytest.mark.parametrize("change", list(AUGMENTATIONS))
@pytest.mark.parametrize("size", [(120, 160), (97, 211), (300, 400)])
def test_genuine_planes_stay_where_they_are(
    patches: dict[str, list[list[Patch]]], name: str, change: str, size: tuple[int, int]
) -> None:
    """With the new K every planar patch is on its plane; with the old K hardly one is."""
    changes, checked, fooled = AUGMENTATIONS[change], 0, 0
    flip = "flip" in changes
    for seed, on_frame in enumerate(patches[name] * (SEEDS if name == "hypersim" else 1)):
        frame = on_frame[0].frame
        rng = np.random.default_rng(seed)
        sample = to_training_size(frame, size, augmentation(changes), rng)
        shown, _ = sampled_pixels(frame.depth.shape, size, changes, seed)
        for patch in on_frame:
            error, allowed = plane_error(patch, sample, sample.intrinsics, shown, flip)
            assert error <= 1.001 * allowed + 1e-6
            if allowed and np.abs(sample.intrinsics - frame.intrinsics).max() > 5.0:
                stale, _ = plane_error(patch, sample, frame.intrinsics, shown, flip)
                checked += 1
                fooled += stale <= 1.001 * allowed + 1e-6
    assert checked >= 8
    assert fooled <= 0.1 * checked


def test_patches_of_genuine_frames_are_many(patches: dict[str, list[list[Patch]]]) -> None:
    assert [len(found) for found in patches["tartanair"]] == [MOST_PATCHES] * len(TARTANAIR_FRAMES)
    assert len(patches["hypersim"][0]) > 10


# --- Hypersim's cameras ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def public_cameras(real_samples: Path) -> dict[str, Array]:
    urls = (real_samples / "hypersim/hypersim_zip_urls.txt").read_text().split()
    tables = (real_samples / "hypersim/metadata_camera_parameters.csv").read_text()
    cameras_ = hypersim.parse_cameras(tables)
    return {s: cameras_[s] for s in (url.rsplit("/", 1)[-1].removesuffix(".zip") for url in urls)}


def test_every_genuine_camera_has_an_upper_triangular_k(public_cameras: dict[str, Array]) -> None:
    assert len(public_cameras) == 457
    for matrix in public_cameras.values():
        intrinsics, rotation = geo.hypersim_intrinsics(matrix)
        np.testing.assert_array_equal(np.tril(intrinsics, -1), 0)
        assert (np.diag(intrinsics) > 0).all()
        assert intrinsics[2, 2] == 1
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1.0, abs=1e-12)


def test_rays_of_every_genuine_camera_are_the_scenes_own(public_cameras: dict[str, Array]) -> None:
    """From the table's definition, without the code's factors: uv of pixel centres, y up, the
    camera looking down -z; turned upright by Q they are K's rays."""
    x, y = np.meshgrid(np.linspace(0, 1023, 12), np.linspace(0, 767, 9))
    uv = np.stack([2 * (x + 0.5) / 1024 - 1, 1 - 2 * (y + 0.5) / 768, np.ones_like(x)], axis=-1)
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1)
    worst = 0.0
    for matrix in public_cameras.values():
        intrinsics, rotation = geo.hypersim_intrinsics(matrix)
        theirs = uv @ matrix.T * [1, -1, -1]
        ours = pixels @ np.linalg.inv(intrinsics).T @ rotation.T
        units = [rays / np.linalg.norm(rays, axis=-1, keepdims=True) for rays in (theirs, ours)]
        worst = max(worst, float(np.abs(units[0] - units[1]).max()))
    assert worst < 1e-9


def test_196_genuine_cameras_are_nominal(public_cameras: dict[str, Array]) -> None:
    nominal = np.array([[886.81, 0, 511.5], [0, 886.81, 383.5], [0, 0, 1]])
    off = [np.abs(geo.hypersim_intrinsics(m)[0] - nominal).max() for m in public_cameras.values()]
    assert sum(error < 2.0 for error in off) == 196
    assert sum(2.0 <= error < 10.0 for error in off) < 20  # the two kinds are far apart


def test_depth_of_every_genuine_camera_survives_the_way_through_ray_distance(
    public_cameras: dict[str, Array],
) -> None:
    depth = np.random.default_rng(0).uniform(0.1, 60, (12, 16))
    skewed = 0
    for matrix in public_cameras.values():
        intrinsics, _ = geo.hypersim_intrinsics(matrix, 12, 16)
        skewed += abs(intrinsics[0, 1]) > 0.01
        distance = geo.depth_to_ray_distance(depth, intrinsics)
        back = geo.ray_distance_to_depth(distance, intrinsics)
        np.testing.assert_allclose(back, depth, rtol=1e-12)
    assert skewed > 10
