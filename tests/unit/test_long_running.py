"""Many pictures through one session: memory stays flat, bad input leaves no trace.

The bound on growth between the hundredth and the last picture is 4 MiB. One depth map of these
pictures is 75 KiB, so that keeping one a picture would be 13 MiB over 180 of them (the quick test)
and 66 MiB over 900; what the allocator still settles after a hundred pictures was under 1 MiB.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from export.backends import OnnxRuntimeBackend
from export.manifest import ExportError
from export.runtime import DepthSession, InferenceError, open_session
from metricgold import imaging
from metricgold.errors import UserError
from metricgold.workspace import Workspace

ROOT = Path(__file__).parents[2]
CPU = OnnxRuntimeBackend.name
MOST_GROWTH_MIB = 4.0
_MEMORY = """
import sys
import numpy as np
from export.runtime import open_session

def resident_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

session = open_session(sys.argv[1], "onnxruntime-cpu")
rng = np.random.default_rng(0)
for number in range(1, int(sys.argv[2]) + 1):
    rgb = rng.integers(0, 256, (120 + number % 3, 160, 3), dtype=np.uint8)
    result = session.infer(rgb, fov_deg=50.0, ensemble_size=1 + number % 2)
    assert np.isfinite(result.depth).all()
    if number == 100:
        early = resident_mib()
print(resident_mib() - early)
"""
needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="there is no /proc")


def growth_mib(exported: Workspace, pictures: int) -> float:
    """Resident memory after all of them less that after the hundredth."""
    command = [sys.executable, "-c", _MEMORY, str(exported.onnx), str(pictures)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@needs_proc
def test_memory_is_flat(exported: Workspace) -> None:
    assert growth_mib(exported, 280) < MOST_GROWTH_MIB


@needs_proc
@pytest.mark.slow
def test_memory_is_flat_over_a_thousand_pictures(exported: Workspace) -> None:
    assert growth_mib(exported, 1000) < MOST_GROWTH_MIB


def good(index: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(index)
    return rng.integers(0, 256, (30 + index, 40, 3), dtype=np.uint8)


def corrupt_file(session: DepthSession, folder: Path) -> None:
    path = folder / "corrupt.png"
    Image.fromarray(good(0)).save(path)
    path.write_bytes(path.read_bytes()[:500])
    session.infer(imaging.load_rgb(path))


def not_a_number(session: DepthSession, folder: Path) -> None:
    size = session.working_size(good(0))
    factor, channels = session.manifest.latent_factor, session.manifest.latent_channels
    shape = (1, channels, size[0] // factor, size[1] // factor)
    session.infer(good(0), initial_latents=np.full(shape, np.nan, np.float32))


def wrong_type(session: DepthSession, folder: Path) -> None:
    session.infer(good(0).astype(np.float64))


def of_no_size(session: DepthSession, folder: Path) -> None:
    session.infer(good(0)[:0])


def too_large_a_file(session: DepthSession, folder: Path) -> None:
    path = folder / "huge.png"
    Image.new("1", (20_000, 10_000)).save(path)
    session.infer(imaging.load_rgb(path))


def impossible_camera(session: DepthSession, folder: Path) -> None:
    session.infer(good(0), fov_deg=float("nan"))


def latents_of_another_size(session: DepthSession, folder: Path) -> None:
    shape = (1, session.manifest.latent_channels, 3, 5)
    session.infer(good(0), initial_latents=np.zeros(shape, np.float32))


def one_of_many(session: DepthSession, folder: Path) -> None:
    session.infer_many([good(0), good(1)[..., :2]], fov_deg=[None, None])


@pytest.mark.parametrize(
    ("poison", "error"),
    [
        (corrupt_file, imaging.ImageError),
        (not_a_number, ExportError),
        (wrong_type, InferenceError),
        (of_no_size, InferenceError),
        (too_large_a_file, imaging.ImageError),
        (impossible_camera, InferenceError),
        (latents_of_another_size, ExportError),
        (one_of_many, InferenceError),
    ],
)
def test_bad_input_between_good_ones_leaves_no_trace(
    exported: Workspace,
    tmp_path: Path,
    poison: Callable[[DepthSession, Path], None],
    error: type[UserError],
) -> None:
    with open_session(exported.onnx, CPU) as clean:
        expected = [clean.infer(good(i), fov_deg=50.0).depth for i in range(3)]
    with open_session(exported.onnx, CPU) as session:
        for index, depth in enumerate(expected):
            with pytest.raises(error) as raised:
                poison(session, tmp_path)
            assert "\n" not in str(raised.value)
            np.testing.assert_array_equal(session.infer(good(index), fov_deg=50.0).depth, depth)


def test_a_huge_picture_between_small_ones(exported: Workspace) -> None:
    huge = np.tile(good(2), (120, 100, 1))  # 3840x4000 pixels
    with open_session(exported.onnx, CPU) as session:
        before = session.infer(good(1)).depth
        result = session.infer(huge)
        assert result.depth.shape == huge.shape[:2]
        assert np.isfinite(result.depth).all()
        np.testing.assert_array_equal(session.infer(good(1)).depth, before)
