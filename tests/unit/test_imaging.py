"""Any usable picture is read rightly, any other refused by name; sizes stay sensible."""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from metricgold import imaging
from metricgold.imaging import ImageError, load_rgb

RAMP = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


@given(
    st.integers(1, 20_000),
    st.integers(1, 20_000),
    st.integers(0, 2048),
    st.sampled_from([4, 8, 16, 64]),
)
def test_processing_size_is_near_the_asked_one(
    h: int, w: int, long_side: int, multiple: int
) -> None:
    size = imaging.processing_size(h, w, long_side, multiple)
    scale = long_side / max(h, w) if long_side else 1.0
    for side, result in zip((h, w), size, strict=True):
        assert result % multiple == 0
        assert result >= multiple
        assert result == multiple or abs(result - side * scale) <= multiple / 2 + 1e-6
    assert max(size) <= max(long_side or max(h, w), multiple) + multiple / 2


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1, 5000), (16, 96)), ((5000, 1), (96, 16)), ((1, 1), (96, 96)), ((375, 1242), (32, 96))],
)
def test_extreme_shapes(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert imaging.processing_size(*size, 96, 16) == expected


def test_modes_are_converted(tmp_path: Path) -> None:
    rgb = Image.fromarray(RAMP)
    np.testing.assert_array_equal(load_rgb(save(tmp_path / "a.png", rgb)), RAMP)
    grey = np.asarray(rgb.convert("L"))
    for name, image in {
        "l.png": rgb.convert("L"),
        "la.png": rgb.convert("LA"),
        "l.gif": rgb.convert("L"),
        "l.bmp": rgb.convert("L"),
    }.items():
        np.testing.assert_array_equal(load_rgb(save(tmp_path / name, image))[..., 0], grey)
    assert load_rgb(save(tmp_path / "bits.png", rgb.convert("1"))).max() in (0, 255)
    palette = rgb.quantize(64)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(load_rgb(save(tmp_path / "p.png", palette)), expected)


def test_cmyk(tmp_path: Path) -> None:
    flat = np.full((8, 8, 3), (200, 40, 90), np.uint8)
    path = save(tmp_path / "c.jpg", Image.fromarray(flat).convert("CMYK"), quality=100)
    assert np.abs(load_rgb(path).astype(int) - flat).max() <= 6


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_16_bit_grey_in_either_byte_order(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    path = save(tmp_path / f"deep.{suffix}", Image.fromarray(values))
    np.testing.assert_array_equal(load_rgb(path)[0, :, 0], [0, 1, 128, 255])
    if suffix == "tif":
        big = Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes())
        path = save(tmp_path / "big.tif", big)
        np.testing.assert_array_equal(load_rgb(path)[0, :, 0], [0, 1, 128, 255])


def png_16_bit_rgb(values: Any) -> bytes:
    """A 16-bit RGB PNG, which Pillow reads but cannot write."""
    height, width, _ = values.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def test_16_bit_rgb_png(tmp_path: Path) -> None:
    (tmp_path / "deep.png").write_bytes(png_16_bit_rgb(RAMP.astype(np.uint16) * 257))
    np.testing.assert_array_equal(load_rgb(tmp_path / "deep.png"), RAMP)


@pytest.mark.parametrize(("peak", "expected"), [(1.0, 255), (255.0, 255), (65535.0, 255)])
def test_float_grey_by_its_range(tmp_path: Path, peak: float, expected: int) -> None:
    values = np.array([[0.0, peak / 2, peak, np.nan]], np.float32)
    path = save(tmp_path / "f.tif", Image.fromarray(values))
    np.testing.assert_allclose(load_rgb(path)[0, :, 1], [0, expected / 2, expected, 0], atol=0.5)


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    rgb = load_rgb(save(tmp_path / "a.png", Image.fromarray(rgba)))
    np.testing.assert_array_equal(rgb[0], [[10, 20, 30], [255, 255, 255]])
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 90, 90, 90])
    palette.putpixel((1, 0), 1)
    rgb = load_rgb(save(tmp_path / "p.png", palette, transparency=1))
    np.testing.assert_array_equal(rgb[0], [[10, 20, 30], [255, 255, 255]])


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), c) for c in ((250, 0, 0), (0, 0, 250))]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert load_rgb(path)[0, 0, 0] > 240


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_exif_rotation(tmp_path: Path, orientation: int, turns: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "r.png", Image.fromarray(RAMP), exif=exif)
    np.testing.assert_array_equal(load_rgb(path), np.rot90(RAMP, turns))


def test_exif_field_of_view(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 24
    path = save(tmp_path / "f.jpg", Image.new("RGB", (36, 24)), exif=exif)
    # A 36 x 24 mm frame behind 24 mm: 2 atan(12 / 24).
    assert imaging.exif_fov_y_deg(path, 24, 36) == pytest.approx(53.1301, abs=1e-3)
    assert imaging.exif_fov_y_deg(save(tmp_path / "n.png", Image.new("L", (2, 2))), 2, 2) is None
    exif.get_ifd(0x8769)[0xA405] = 0
    path = save(tmp_path / "z.jpg", Image.new("RGB", (36, 24)), exif=exif)
    assert imaging.exif_fov_y_deg(path, 24, 36) is None


def test_exif_field_of_view_of_cameras_that_do_not_say_it_for_film(tmp_path: Path) -> None:
    """18 mm on a sensor of 22.5 x 15 mm, 6000 x 4000 px: 6000 / 22.5 px a mm."""
    exif = Image.Exif()
    tags = exif.get_ifd(0x8769)
    tags |= {0x920A: 18.0, 0xA20E: 6000 / 22.5 * 25.4, 0xA210: 2, 0xA002: 6000, 0xA003: 4000}

    def found(height: int = 24, width: int = 36) -> float | None:
        path = save(tmp_path / "f.jpg", Image.new("RGB", (width, height)), exif=exif)
        return imaging.exif_fov_y_deg(path, height, width)

    expected = math.degrees(2 * math.atan(15 / 2 / 18))
    assert found() == pytest.approx(expected, abs=1e-2)  # scaled down since
    assert found(36, 24) == pytest.approx(math.degrees(2 * math.atan(22.5 / 2 / 18)), abs=1e-2)
    tags |= {0xA20E: 6000 / 22.5 * 10, 0xA210: 3}
    assert found() == pytest.approx(expected, abs=1e-2)
    tags[0xA20E] = 72.0  # a sensor of more than two metres
    assert found() is None
    del tags[0xA20E]
    assert found() is None


def jpeg() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def bomb() -> bytes:
    """A PNG that claims 60,000 x 60,000 pixels in a few bytes."""
    png = bytearray(png_16_bit_rgb(np.zeros((1, 1, 3), np.uint16)))
    png[16:24] = struct.pack(">II", 60_000, 60_000)
    png[29:33] = struct.pack(">I", zlib.crc32(bytes(png[12:29])))
    return bytes(png)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"just text, no picture", "not an image"),
        (jpeg()[: len(jpeg()) // 2], "damaged or cut short"),
        (jpeg()[:10], "not an image|damaged"),
        (bomb(), "scale it down"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        load_rgb(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_folder_and_endless_name(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        load_rgb(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="is a folder"):
        load_rgb(tmp_path)
    with pytest.raises(ImageError, match="cannot be opened"):
        load_rgb(tmp_path / ("x" * 4000))


def test_limit_is_what_the_message_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", Image.new("L", (10, 10)))
    monkeypatch.setattr(imaging, "MAX_PIXELS", 100)
    assert load_rgb(path).shape == (10, 10, 3)
    monkeypatch.setattr(imaging, "MAX_PIXELS", 99)
    with pytest.raises(ImageError, match="more than 99 pixels"):
        load_rgb(path)


def test_resizes_keep_values_in_range() -> None:
    depth = np.array([[0.5, 2.0], [8.0, 32.0]], np.float32)
    large = imaging.resize_depth_log(depth, (7, 9))
    assert large.shape == (7, 9)
    assert large.min() >= 0.5 - 1e-5
    assert large.max() <= 32.0 + 1e-3
    rgb = imaging.resize_rgb(RAMP, (3, 4))
    assert rgb.shape == (3, 4, 3)
    assert rgb.dtype == np.float32
    assert 0 <= rgb.min() <= rgb.max() <= 1


def test_genuine_pictures(real_samples: Path) -> None:
    assert load_rgb(real_samples / "kitti/rgb/0000000005.png").shape == (375, 1242, 3)
    assert load_rgb(real_samples / "nyuv2/rgb/rgb_00000.jpg").shape == (480, 640, 3)
