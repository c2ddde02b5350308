"""`metricgold data`: what a shard holds, that damage is found, and a picture of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from metricgold.cli import app
from metricgold.data.inspection import find_shards, preview, summarise, verify
from metricgold.data.sample import Frame
from metricgold.data.shard_writer import ShardWriter
from metricgold.data.shards import ShardError, ShardReader, encode_frame
from metricgold.errors import UserError
from metricgold.visualize import NO_DEPTH

HEIGHT, WIDTH = 16, 24


def frame(scene: str, index: int, focal: float) -> Frame:
    """The left third sky, the right third not valid; depth rises with the index."""
    rng = np.random.default_rng(index)
    sky, valid = np.zeros((2, HEIGHT, WIDTH), bool)
    sky[:, : WIDTH // 3], valid[:, WIDTH // 3 : 2 * WIDTH // 3] = True, True
    depth = np.where(valid, 1.0 + index + rng.random((HEIGHT, WIDTH)), 0).astype(np.float32)
    rgb = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    k = np.array([[focal, 0, 11.5], [0, focal, 7.5], [0, 0, 1.0]])
    return Frame(f"{scene}/{index:03d}", scene, rgb, depth, valid, sky, k)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with ShardWriter(tmp_path / "set", "train") as writer:
        for scene, focal in (("a", 8.0), ("b", 16.0)):
            for index in range(3):
                writer.add(encode_frame(frame(scene, index, focal), 95))
    with ShardWriter(tmp_path / "set", "holdout") as writer:
        writer.add(encode_frame(frame("c", 7, 8.0), 95))
    return tmp_path / "set"


def shard(folder: Path) -> Path:
    return folder / "train-000.h5"


def test_summary_says_what_was_written(folder: Path) -> None:
    assert [p.name for p in find_shards(folder.parent)] == ["holdout-000.h5", "train-000.h5"]
    assert find_shards(shard(folder)) == [shard(folder)]
    s = summarise(shard(folder))
    assert (s.scenes, s.frames, s.sizes) == (2, 6, ((HEIGHT, WIDTH),))
    # 2 atan(16 / (2 * 16)) = 53.13 degrees and 2 atan(16 / (2 * 8)) = 90 degrees
    np.testing.assert_allclose(s.fov_y_deg, (53.130, 71.565, 90.0), atol=1e-3)
    np.testing.assert_allclose(s.valid_ratio, (1 / 3,) * 3, atol=1e-6)
    assert s.bytes == shard(folder).stat().st_size
    jpegs = [len(encode_frame(frame(n, i, 8.0), 95).rgb) for n in "ab" for i in range(3)]
    assert s.rgb_bytes == pytest.approx(np.mean(jpegs))
    assert 0 < s.depth_bytes < HEIGHT * WIDTH * 2


def test_whole_shards_verify(folder: Path) -> None:
    assert list(verify(shard(folder))) == [None] * 6


def test_a_flipped_bit_in_any_table_is_named(folder: Path) -> None:
    for name in ("depth", "sky", "rgb", "intrinsics", "crc32", "valid_ratio"):
        path = folder / f"{name}.h5"
        path.write_bytes(shard(folder).read_bytes())
        with h5py.File(path, "r+") as file:
            values = file["b"][name]
            flat = values[()].copy()
            row = int(file["b"]["rgb_end"][0]) if name == "rgb" else 1  # frame 1 of the scene
            as_bytes = flat[row : row + 1].view(np.uint8).reshape(-1)
            as_bytes[as_bytes.size // 2] ^= 0x10
            values[...] = flat
        found = list(verify(path))
        assert [i for i, message in enumerate(found) if message] == [4], name
        assert f"{path}: frame b/001 " in str(found[4])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
@example(at=0.5, bit=0, cut=False)
def test_damage_anywhere_is_found_or_harmless(folder: Path, at: float, bit: int, cut: bool) -> None:
    """Whatever byte is hit, also of HDF5's own tables: a message, or the very same frames."""
    content = bytearray(shard(folder).read_bytes())
    offset = int(at * len(content))
    content[offset] ^= 1 << bit
    path = folder / "hit.h5"
    path.write_bytes(content[:offset] if cut else content)
    if any(verify(path)):
        return
    original, damaged = ShardReader([shard(folder)]), ShardReader([path])
    assert damaged.keys == original.keys
    for before, after in zip(original, damaged, strict=True):
        np.testing.assert_array_equal(after.rgb, before.rgb)
        np.testing.assert_array_equal(after.depth, before.depth)
        np.testing.assert_array_equal(after.sky_mask, before.sky_mask)
        np.testing.assert_array_equal(after.intrinsics, before.intrinsics)


def test_preview_shows_picture_depth_and_mask(folder: Path) -> None:
    sheet = preview([shard(folder)], frames=2)
    assert sheet.shape[1] == 3 * (13 * WIDTH + 8) + 8  # three tiles of 13 x 24 px
    colours = {tuple(c) for c in sheet.reshape(-1, 3).tolist()}
    assert {NO_DEPTH, (236, 236, 230), (112, 168, 214)} <= colours
    assert preview([shard(folder)], frames=50).shape[0] > sheet.shape[0] * 2  # all six, once each
    with pytest.raises(ValueError, match="1 or more, got 0"):
        preview([shard(folder)], frames=0)


def test_command_line(folder: Path) -> None:
    run = CliRunner().invoke
    shown = run(app, ["data", "inspect", str(folder)])
    assert shown.exit_code == 0
    assert f"{shard(folder)}: 6 frames of 16x24 px in 2 scenes" in shown.output
    assert "vertical field of view 53.1° to 90.0°, mean 71.6°" in shown.output
    whole = run(app, ["data", "verify", str(folder)])
    assert (whole.exit_code, "7 frames in 2 shards, all whole" in whole.output) == (0, True)
    out = folder / "pictures" / "sheet.png"
    written = run(app, ["data", "preview", str(folder), "--out", str(out), "--frames", "3"])
    assert written.exit_code == 0
    with Image.open(out) as picture:
        assert f"wrote {out} ({picture.width}x{picture.height} px)" in written.output
    assert [p.name for p in out.parent.iterdir()] == ["sheet.png"]
    again = run(app, ["data", "preview", str(folder), "--out", str(out)])
    assert isinstance(again.exception, UserError)
    assert "exists already; name another file or add --force" in str(again.exception)
    assert run(app, ["data", "preview", str(folder), "--out", str(out), "--force"]).exit_code == 0
    other = run(app, ["data", "preview", str(folder), "--out", str(folder / "x.bmp")])
    assert "only .png" in str(other.exception)


def test_nothing_there_is_said(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShardError, match=r"no shard \(\*\.h5\) below this folder"):
        find_shards(tmp_path / "empty")
    with pytest.raises(ShardError, match="no such file or folder"):
        find_shards(tmp_path / "nowhere")
    (folder / "text.h5").write_text("not HDF5")
    with pytest.raises(ShardError, match=r"text\.h5: not an HDF5 file or cut short"):
        summarise(folder / "text.h5")
    assert "not an HDF5 file or cut short" in str(next(verify(folder / "text.h5")))


def test_module_says_damage_in_one_line_and_fails(folder: Path) -> None:
    with h5py.File(shard(folder), "r+") as file:
        file["a"]["crc32"][0] ^= 1
    command = [sys.executable, "-m", "metricgold", "data", "verify", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "frame a/000 is damaged (CRC32 differs)" in ended.stdout + ended.stderr
    assert ended.stderr.splitlines()[-1] == (
        f"error: {folder}: 1 of 7 frames or shards are damaged; see above"
    )
    assert "Traceback" not in ended.stderr
