"""Pictures of any common kind, and the camera: as given, from EXIF, or unknown."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from metricgold.imaging import ImageError
from metricgold.pictures_in import Camera, Picture, as_pictures, cameras_of

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def with_focal_length(path: Path, focal_mm: int, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769)[0xA405] = focal_mm
    Image.fromarray(RGB).save(path, exif=exif)
    return path


@pytest.mark.parametrize(
    "same",
    [
        RGB,
        RGB.astype(np.float32) / 255,
        RGB.astype(np.float64) / 255,
        torch.from_numpy(RGB).permute(2, 0, 1),
        torch.from_numpy(RGB).permute(2, 0, 1) / 255,
        torch.from_numpy(RGB).permute(2, 0, 1)[None].double() / 255,
        Image.fromarray(RGB),
        RGB[None],
        [RGB],
    ],
    ids=["u8", "f32", "f64", "tensor", "float tensor", "tensors", "PIL", "batch", "list"],
)  # fmt: skip
def test_every_kind_is_the_same_picture(same: Any) -> None:
    (picture,) = as_pictures(same)
    assert picture.rgb.dtype == np.uint8
    np.testing.assert_array_equal(picture.rgb, RGB)
    assert picture.exif_fov_deg is None


def test_a_grey_tensor() -> None:
    grey = torch.from_numpy(RGB[..., 0])
    for tensor in (grey, grey[None], grey / 255):
        (picture,) = as_pictures(tensor)
        np.testing.assert_array_equal(picture.rgb, np.repeat(RGB[..., :1], 3, axis=-1))


def test_half_precision_is_near() -> None:
    (picture,) = as_pictures(torch.from_numpy(RGB).permute(2, 0, 1).to(torch.bfloat16) / 255)
    assert np.abs(picture.rgb.astype(int) - RGB).max() <= 1


def test_lists_mix_kinds_and_keep_the_order(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    grey = RGB[..., 0]
    pictures = as_pictures([str(tmp_path / "a.png"), grey, np.stack([RGB, RGB[:, ::-1]])])
    expected = [RGB, np.repeat(grey[..., None], 3, -1), RGB, RGB[:, ::-1]]
    for picture, rgb in zip(pictures, expected, strict=True):
        np.testing.assert_array_equal(picture.rgb, rgb)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (RGB.astype(np.float32), r"must lie in \[0, 1\]"),
        (np.full((2, 2, 3), np.nan), r"must lie in \[0, 1\]"),
        (RGB.astype(np.int32), "must be uint8, or float"),
        (np.zeros((4, 4, 4), np.uint8), r"got \[4, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"got \[0, 4, 3\]"),
        (torch.zeros(4, 6, 8), r"must be \[3, H, W\]"),
        (17, "cannot be a int"),
        (None, "cannot be a NoneType"),
    ],
)
def test_what_is_no_picture_is_told(bad: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        as_pictures(bad)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        as_pictures(tmp_path / "none.png")


@pytest.mark.parametrize("opened", [True, False])
def test_exif_gives_the_field_of_view_and_turns_the_picture(tmp_path: Path, opened: bool) -> None:
    path = with_focal_length(tmp_path / "a.png", 50, orientation=6)
    (picture,) = as_pictures(Image.open(path) if opened else path)
    np.testing.assert_array_equal(picture.rgb, np.rot90(RGB, -1))
    focal_px = 50 / math.hypot(36, 24) * math.hypot(8, 6)
    expected = math.degrees(2 * math.atan(8 / 2 / focal_px))  # upright it is 8 high
    (camera,) = cameras_of([picture])
    assert camera.source == "EXIF"
    assert camera.fov_deg == pytest.approx(expected)
    assert cameras_of([picture], fov_deg=40) == [Camera(40.0, "fov_deg")]


@given(fov=st.floats(5, 170), height=st.integers(2, 2000))
def test_three_ways_to_say_the_same_camera(fov: float, height: int) -> None:
    pictures = [Picture(np.zeros((height, 3, 3), np.uint8))]
    focal = height / 2 / math.tan(math.radians(fov) / 2)
    matrix = np.array([[focal, 0, 1], [0, focal, 1], [0, 0, 1.0]])
    for options in (
        {"fov_deg": fov},
        {"focal_length_px": focal},
        {"intrinsics": matrix},
        {"intrinsics": torch.from_numpy(matrix)[None]},
        {"intrinsics": [matrix]},
        {"intrinsics": matrix.tolist()},
        {"fov_deg": np.array([fov])},
        {"focal_length_px": torch.tensor([focal], dtype=torch.float64)},
    ):
        (camera,) = cameras_of(pictures, **options)  # type: ignore[arg-type]
        assert camera.fov_deg == pytest.approx(fov, rel=1e-6)
        assert camera.source in options


def test_cameras_may_differ_or_be_unknown() -> None:
    pictures = [Picture(RGB)] * 3
    cameras = cameras_of(pictures, fov_deg=[30.0, None, 60.0])
    assert [c.fov_deg for c in cameras] == [30.0, None, 60.0]
    assert cameras[1].source == "unknown"
    assert [c.fov_deg for c in cameras_of(pictures, fov_deg=50)] == [50.0] * 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fov_deg": 0}, "fov_deg must lie"),
        ({"fov_deg": 180}, "fov_deg must lie"),
        ({"fov_deg": math.nan}, "fov_deg must lie"),
        ({"focal_length_px": -3}, "focal_length_px must be positive"),
        ({"focal_length_px": math.inf}, "focal_length_px must be positive"),
        ({"intrinsics": np.zeros((3, 3))}, "f_y > 0"),
        ({"intrinsics": np.eye(4)}, "intrinsics must be K"),
        ({"fov_deg": 50, "focal_length_px": 9}, "focal_length_px and fov_deg say the same"),
        ({"fov_deg": [50.0, 60.0]}, "fov_deg has 2 entries for 1 pictures"),
        ({"fov_deg": np.array([50.0, 60.0])}, "fov_deg has 2 entries for 1 pictures"),
        ({"fov_deg": "wide"}, "fov_deg must be a number"),
        ({"focal_length_px": [[500.0, 500.0]]}, "focal_length_px must be a number"),
        ({"intrinsics": "K"}, r"intrinsics must be K \[3, 3\]"),
        ({"intrinsics": [[[1.0, 2.0], [3.0]]]}, r"intrinsics must be K \[3, 3\]"),
    ],
)
def test_an_impossible_camera_is_told(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        cameras_of([Picture(RGB)], **options)
