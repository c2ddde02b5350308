"""Damaged and hostile input: refused by name, or left out and counted, and nothing else changes.

Every case runs the stage itself on archives of one dataset with one fault. A frame that stays
must be, bit for bit, what it is without the fault.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from corrupted import (
    Change,
    Clean,
    change_member,
    cut,
    damaged_copy,
    flip,
    instead,
    make_clean,
    npy,
    npy_version_2,
    on_hdf5,
    on_npy,
    on_picture,
    read_victim,
    repaired_png,
    then,
    with_settings,
    written,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from metricgold.config import DownloadConfig, ProfileConfig
from metricgold.data import dataset, download, preprocess, source
from metricgold.data.archives import read_part
from metricgold.data.conversion import DAMAGED
from metricgold.data.dataset import FrameError
from metricgold.data.hypersim import CAMERA_CSV, SPLIT_CSV
from metricgold.data.sample import Frame
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.data.transfer import DownloadError
from metricgold.data.virtual_kitti import DEPTH_TAR, RGB_TAR, TEXT_TAR
from metricgold.errors import UserError
from metricgold.files import write_json
from metricgold.workspace import Workspace

HTML = b"<!DOCTYPE html><html><body>503 Service Unavailable</body></html>"
DATASETS = ("hypersim", "virtual_kitti", "tartanair")
Numbers = NDArray[Any]


@pytest.fixture(scope="session")
def cleans(
    tmp_path_factory: pytest.TempPathFactory, tiny_data_config: ProfileConfig
) -> dict[str, Clean]:
    return {
        name: make_clean(tmp_path_factory.mktemp(name), tiny_data_config, name) for name in DATASETS
    }


# --- one frame's files ----------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A fault in one frame's picture (``rgb``) or depth, and what is said of it.

    ``says``: of the error that names the frame; ``reason``: in the report.
    """

    name: str
    dataset: str
    part: str
    change: Change
    says: str = ""
    reason: str = DAMAGED


def _partly(value: float) -> Callable[[Numbers], Numbers]:
    def change(values: Numbers) -> Numbers:
        values = values.copy()
        values[:4] = value
        return values

    return change


def _every(value: float) -> Callable[[Numbers], Numbers]:
    return lambda values: np.full_like(values, value)


def _huge_png(data: bytes) -> bytes:
    """Declares 60,000 x 60,000 pixels, with right checksums."""
    side = (60_000).to_bytes(4, "big")
    return repaired_png(data[:16] + side + side + data[24:])


def _without_end(data: bytes) -> bytes:
    return data[: data.index(b"IEND") - 4]


def _in_pixels(data: bytes) -> int:
    return data.index(b"IDAT") + 40


def _pickled(_: bytes) -> bytes:
    return npy(np.array([[{"a": 1}] * 32] * 24, dtype=object))


def _header(old: bytes, new: bytes) -> Change:
    """Other text in an npy header, padded to the same length."""

    def change(data: bytes) -> bytes:
        assert data.count(old) == 1
        start, end = data.index(old), data.index(b"\n")
        text = (new + data[start + len(old) : end]).rstrip()
        return data[:start] + text.ljust(end - start) + data[end:]

    return change


def _saved(draw: Callable[[h5py.File], None]) -> Change:
    def change(_: bytes) -> bytes:
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            draw(file)
        return buffer.getvalue()

    return change


def _external(file: h5py.File) -> None:
    """The numbers lie in another file of this computer."""
    here = str(Path(__file__).resolve())
    file.create_dataset("dataset", (24, 32), np.float16, external=[(here, 0, h5py.h5f.UNLIMITED)])


def _linked(file: h5py.File) -> None:
    file["dataset"] = h5py.ExternalLink("elsewhere.hdf5", "/dataset")


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((24, 32), np.float16)
    layout[:] = h5py.VirtualSource("elsewhere.hdf5", "dataset", (24, 32))
    file.create_virtual_dataset("dataset", layout)


def _sparse(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Change:
    """Declared, compressed, and never written."""
    return _saved(
        lambda file: file.create_dataset(
            "dataset",
            shape,
            np.float16,
            chunks=chunks,
            compression="gzip",
            maxshape=(None,) * len(shape),
        )
    )


_HDF5 = "cannot be decoded: (frame|depth|picture): "
CHUNKED = {"chunks": (24, 32), "compression": "gzip"}


def _files(name: str, dataset: str, part: str, says: str, ends: tuple[int, ...]) -> list[Case]:
    """What can happen to any file."""
    changes: dict[str, Change] = {
        "empty": instead(b""),
        "web page": instead(HTML),
        "zeros": lambda data: bytes(len(data)),
        "gone": instead(None),
        **{f"cut to {end}": cut(end) for end in ends},
        "cut in half": lambda data: data[: len(data) // 2],
    }
    return [
        Case(f"{name}, {what}", dataset, part, change, "no such member" if what == "gone" else says)
        for what, change in changes.items()
    ]


LEFT_OUT = [
    # TartanAir: npy depth
    *_files("npy", "tartanair", "depth", "depth: ", (1, 7, 9, 60, 127, 128, 500, -1)),
    Case("npy, a byte too long", "tartanair", "depth", lambda d: d + b"\0", "bytes of numbers"),
    Case("npy, magic flipped", "tartanair", "depth", flip(0), "magic string is not correct"),
    Case("npy, version 9", "tartanair", "depth", flip(6, 8), r"version \(9, 0\)"),
    Case("npy, header longer", "tartanair", "depth", flip(8, 1), "depth: "),
    Case("npy, header is a call", "tartanair", "depth", _header(b"{'descr'", b"exit()#'"), "depth"),
    Case("npy, pickled objects", "tartanair", "depth", _pickled, "found object"),
    Case("npy, uint8", "tartanair", "depth", on_npy(lambda d: d.astype(np.uint8)), "found uint8"),
    Case("npy, int32", "tartanair", "depth", on_npy(lambda d: d.astype(np.int32)), "found int32"),
    Case("npy, half", "tartanair", "depth", on_npy(lambda d: d.astype(np.float16)), "float16"),
    Case("npy, complex", "tartanair", "depth", on_npy(lambda d: d.astype(complex)), "complex128"),
    Case("npy, text", "tartanair", "depth", on_npy(lambda d: d.astype("U9")), "found <U9"),
    Case(
        "npy, fields", "tartanair", "depth", on_npy(lambda d: d.astype([("z", "f4")])), "found .*z"
    ),
    Case("npy, 1-D", "tartanair", "depth", on_npy(np.ravel), r"found float32 \[768\]"),
    Case("npy, 3-D", "tartanair", "depth", on_npy(lambda d: d[..., None]), r"\[24, 32, 1\]"),
    Case("npy, 4-D", "tartanair", "depth", on_npy(lambda d: d[None, None]), r"\[1, 1, 24, 32\]"),
    Case("npy, one number", "tartanair", "depth", on_npy(lambda d: d[0, 0]), r"float32 \[\]"),
    Case("npy, no row", "tartanair", "depth", on_npy(lambda d: d[:0]), r"found float32 \[0, 32\]"),
    Case(
        "npy, transposed", "tartanair", "depth", on_npy(lambda d: d.T.copy()),
        "size: the picture has 24x32 pixels, the depth 32x24",
    ),
    Case("npy, 1x1", "tartanair", "depth", on_npy(lambda d: d[:1, :1]), "size: .* the depth 1x1"),
    Case("npy, a row short", "tartanair", "depth", on_npy(lambda d: d[1:]), "the depth 23x32"),
    Case(
        "npy, huge shape", "tartanair", "depth", _header(b"(24, 32)", b"(999999999, 999999999)"),
        "bytes of numbers, 3,999,999,992,000,000,004 declared",
    ),
    Case("npy, negative", "tartanair", "depth", _header(b"(24, 32)", b"(-24, -32)"), "-24, -32"),
    *[
        Case(f"npy, all {value}", "tartanair", "depth", on_npy(_every(value)),
             reason="too few valid pixels")
        for value in (0.0, -3.0, np.nan, np.inf, -np.inf, 1e38)
    ],
    Case(
        "npy, all the same", "tartanair", "depth", on_npy(_every(7.0)),
        reason="depth range too small",
    ),
    # TartanAir: PNG pictures
    *_files("png", "tartanair", "rgb", "picture: ", (1, 8, 20, 33, 60, -12, -4, -1)),
    Case("png, signature flipped", "tartanair", "rgb", flip(1), "not an image"),
    Case("png, width flipped", "tartanair", "rgb", flip(19, 1), "not an image"),
    Case(
        "png, other width", "tartanair", "rgb", then(flip(19, 3), repaired_png), "damaged|size"
    ),
    Case("png, bit depth", "tartanair", "rgb", then(flip(24, 8 ^ 16), repaired_png), "picture"),
    Case("png, colour type", "tartanair", "rgb", then(flip(25, 2 ^ 3), repaired_png), "mode P"),
    Case(
        "png, a pixel flipped", "tartanair", "rgb", lambda d: flip(_in_pixels(d))(d),
        r"picture: damaged or cut short \(.*CRC32",
    ),
    Case("png, last pixel's check", "tartanair", "rgb", lambda d: flip(d.index(b"IEND") - 10)(d),
         "CRC32"),
    Case("png, without end", "tartanair", "rgb", _without_end, "the end is missing"),
    Case("png, huge", "tartanair", "rgb", _huge_png, "60000x60000: more than|bomb|pixels"),
    Case("png, palette", "tartanair", "rgb", on_picture(lambda p: p.quantize(16)), "mode P, exp"),
    Case("png, grey", "tartanair", "rgb", on_picture(lambda p: p.convert("L")), "mode L, exp"),
    Case("png, alpha", "tartanair", "rgb", on_picture(lambda p: p.convert("RGBA")), "mode RGBA"),
    Case("png, black and white", "tartanair", "rgb", on_picture(lambda p: p.convert("1")),
         "mode 1, expected RGB"),
    Case("png, 16 bit", "tartanair", "rgb", on_picture(lambda p: p.convert("I;16")), "mode I;16"),
    Case("png, cut out", "tartanair", "rgb", on_picture(lambda p: p.crop((0, 0, 9, 9))), "9x9"),
    Case("png, 1x1", "tartanair", "rgb", on_picture(lambda p: p.crop((0, 0, 1, 1))), "has 1x1"),
    Case("png, turned", "tartanair", "rgb",
         on_picture(lambda p: p.transpose(Image.Transpose.ROTATE_90)),
         "the picture has 32x24 pixels, the depth 24x32"),
    Case("png, in truth a jpeg", "tartanair", "rgb", on_picture(lambda p: p, "JPEG"),
         "not an image"),
    Case("png, in truth a gif", "tartanair", "rgb", on_picture(lambda p: p, "GIF"),
         "not an image"),
    Case("png, in truth an eps", "tartanair", "rgb", on_picture(lambda p: p, "EPS"),
         "not an image"),
    Case(
        "png, blank", "tartanair", "rgb", on_picture(lambda p: Image.new("RGB", p.size, "grey")),
        reason="picture is blank",
    ),
    # Virtual KITTI: JPEG pictures
    *_files("jpeg", "virtual_kitti", "rgb", "picture: ", (1, 2, 20, 200, 600)),
    Case("jpeg, signature flipped", "virtual_kitti", "rgb", flip(0), "not an image"),
    Case("jpeg, CMYK", "virtual_kitti", "rgb", on_picture(lambda p: p.convert("CMYK"), "JPEG"),
         "mode CMYK, expected RGB"),
    Case("jpeg, grey", "virtual_kitti", "rgb", on_picture(lambda p: p.convert("L"), "JPEG"),
         "mode L, expected RGB"),
    Case("jpeg, in truth a png", "virtual_kitti", "rgb", on_picture(lambda p: p), "not an image"),
    Case("jpeg, half as large", "virtual_kitti", "rgb", on_picture(lambda p: p.reduce(2), "JPEG"),
         "size: the picture has 10x30 pixels, the depth 20x60"),
    Case("jpeg, the depth instead", "virtual_kitti", "rgb", instead(b"\x89PNG\r\n\x1a\n"),
         "not an image"),
    # Virtual KITTI: PNG16 depth
    *_files("png16", "virtual_kitti", "depth", "depth: ", (1, 8, 20, 33, 60, -12, -1)),
    Case("png16, a pixel flipped", "virtual_kitti", "depth", lambda d: flip(_in_pixels(d))(d),
         "depth: .*CRC32"),
    Case("png16, last pixel's check", "virtual_kitti", "depth",
         lambda d: flip(d.index(b"IEND") - 10)(d), "depth: .*CRC32"),
    Case("png16, 8 bit", "virtual_kitti", "depth",
         on_picture(lambda p: Image.fromarray((np.asarray(p) >> 8).astype(np.uint8))),
         "depth: pixels are of mode L, expected I;16"),
    Case("png16, palette", "virtual_kitti", "depth",
         on_picture(lambda p: p.convert("L").quantize(9)), "mode P"),
    Case("png16, colour", "virtual_kitti", "depth", on_picture(lambda p: p.convert("RGB")),
         "mode RGB"),
    Case("png16, a tiff of floats", "virtual_kitti", "depth",
         on_picture(lambda p: p.convert("F"), "TIFF"), "not an image"),
    Case("png16, huge", "virtual_kitti", "depth", _huge_png, "more than|bomb|pixels"),
    Case("png16, cut out", "virtual_kitti", "depth", on_picture(lambda p: p.crop((0, 0, 56, 16))),
         "size: .*20x60 pixels, the depth 16x56"),
    Case("png16, nothing", "virtual_kitti", "depth",
         on_picture(lambda p: Image.fromarray(np.zeros_like(np.asarray(p)))),
         reason="too few valid pixels"),
    Case("png16, only sky", "virtual_kitti", "depth",
         on_picture(lambda p: Image.fromarray(np.full_like(np.asarray(p), 65535))),
         reason="too few valid pixels"),
    # Hypersim: HDF5 ray distance
    *_files("depth hdf5", "hypersim", "depth", _HDF5, (1, 8, 40, 96, 400, 1000, -1)),
    Case("depth hdf5, signature", "hypersim", "depth", flip(1), _HDF5),
    Case("depth hdf5, superblock", "hypersim", "depth", flip(8), _HDF5),
    Case("depth hdf5, other key", "hypersim", "depth", on_hdf5(name="depth"), _HDF5 + ".*dataset"),
    Case("depth hdf5, a folder", "hypersim", "depth", _saved(lambda f: f.create_group("dataset")),
         _HDF5),
    Case("depth hdf5, float32", "hypersim", "depth", on_hdf5(lambda d: d.astype("f4")), "float32"),
    Case("depth hdf5, int16", "hypersim", "depth", on_hdf5(lambda d: d.view("i2")), "int16"),
    Case("depth hdf5, text", "hypersim", "depth",
         _saved(lambda f: f.create_dataset("dataset", data=["a", "b"])), "not numbers"),
    Case("depth hdf5, fields", "hypersim", "depth", on_hdf5(lambda d: d.astype([("z", "f2")])),
         "not numbers"),
    Case("depth hdf5, 1-D", "hypersim", "depth", on_hdf5(np.ravel), r"float16 \[768\]"),
    Case("depth hdf5, 3-D", "hypersim", "depth", on_hdf5(lambda d: d[..., None]), r"24, 32, 1\]"),
    Case("depth hdf5, 4-D", "hypersim", "depth", on_hdf5(lambda d: d[None, None]), r"\[1, 1, 24"),
    Case("depth hdf5, one number", "hypersim", "depth", on_hdf5(lambda d: d[0, 0]), _HDF5),
    Case("depth hdf5, nothing", "hypersim", "depth",
         _saved(lambda f: f.create_dataset("dataset", data=h5py.Empty("f2"))), _HDF5),
    Case("depth hdf5, transposed", "hypersim", "depth", on_hdf5(np.transpose), "32, 24"),
    Case("depth hdf5, 1x1", "hypersim", "depth", on_hdf5(lambda d: d[:1, :1]), r"\(1, 1\) pixels"),
    Case("depth hdf5, huge", "hypersim", "depth", _sparse((10**6, 10**6), (96, 128)), "more than"),
    Case("depth hdf5, huge chunk", "hypersim", "depth", _sparse((24, 32), (99999, 99999)), _HDF5),
    Case("depth hdf5, unwritten", "hypersim", "depth", _sparse((24, 32), (24, 32)),
         "0 of 1 chunks"),
    Case("depth hdf5, in another file", "hypersim", "depth", _saved(_external), _HDF5),
    Case("depth hdf5, a link", "hypersim", "depth", _saved(_linked), _HDF5),
    Case("depth hdf5, virtual", "hypersim", "depth", _saved(_virtual), _HDF5),
    *[
        Case(f"depth hdf5, all {value}", "hypersim", "depth",
             on_hdf5(_every(value), **CHUNKED), reason="too few valid pixels")
        for value in (0.0, -3.0, np.nan, np.inf, -np.inf, 60000.0)
    ],
    # Hypersim: HDF5 colour
    *_files("colour hdf5", "hypersim", "rgb", _HDF5, (8, 96, 1000, -1)),
    Case("colour hdf5, other key", "hypersim", "rgb", on_hdf5(name="color"), _HDF5 + ".*dataset"),
    Case("colour hdf5, uint8", "hypersim", "rgb", on_hdf5(lambda c: c.astype("u1")), "uint8"),
    Case("colour hdf5, grey", "hypersim", "rgb", on_hdf5(lambda c: c[..., 0]), r"\[24, 32\]"),
    Case("colour hdf5, alpha", "hypersim", "rgb", on_hdf5(lambda c: c[..., [0, 1, 2, 2]]), "32, 4"),
    Case("colour hdf5, channels first", "hypersim", "rgb",
         on_hdf5(lambda c: c.transpose(2, 0, 1)), r"\[3, 24, 32\]"),
    Case("colour hdf5, transposed", "hypersim", "rgb", on_hdf5(lambda c: c.transpose(1, 0, 2)),
         r"colour is \(32, 24\) and depth \(24, 32\)"),
    Case("colour hdf5, cut out", "hypersim", "rgb", on_hdf5(lambda c: c[1:]), r"\(23, 32\)"),
    Case("colour hdf5, the depth instead", "hypersim", "rgb", on_hdf5(lambda c: c[..., 0]),
         r"found float16 \[24, 32\]"),
    *[
        Case(f"colour hdf5, all {value}", "hypersim", "rgb", on_hdf5(_every(value)),
             reason="picture is blank")
        for value in (0.0, -3.0)
    ],
    Case("colour hdf5, all nan", "hypersim", "rgb", on_hdf5(_every(np.nan)),
         "the colour of no valid pixel is a number"),
]  # fmt: skip


def _archive(clean: Clean, raw: Path, part: str) -> tuple[Path, str]:
    where = getattr(clean.victim, part)
    return raw / where.archive, where.member


@pytest.mark.parametrize("case", LEFT_OUT, ids=lambda case: case.name)
def test_a_faulty_frame_is_left_out_and_counted(
    cleans: dict[str, Clean], tmp_path: Path, case: Case
) -> None:
    clean = cleans[case.dataset]

    def damage(raw: Path) -> None:
        change_member(*_archive(clean, raw, case.part), case.change)

    workspace = damaged_copy(clean, tmp_path, damage)
    if case.says:
        with pytest.raises(FrameError, match=case.says) as told:
            read_victim(clean, workspace)
        assert re.match(f"{case.dataset} frame {clean.victim.key}: cannot be", str(told.value))
        assert "\n" not in str(told.value)
    report = as_downloaded(clean.config, workspace, case.dataset)
    expected = {key: crc for key, crc in clean.written.items() if key != clean.victim.key}
    assert written(workspace, case.dataset) == expected
    assert report["train"]["frames"] == clean.report["train"]["frames"] - 1
    assert report["holdout"] == clean.report["holdout"]
    ((reason, count),) = report["train"]["rejected"].items()
    assert (reason.split(":")[0], count) == (case.reason, 1)
    assert report["train"]["rejected_examples"] == {reason: [clean.victim.key]}


# --- faults that do no harm, or harm only a part --------------------------------------------


def _png_with_text(data: bytes) -> bytes:
    chunk = b"tEXtComment\0by a robot"
    return (
        data[:33]
        + repaired_png(data[:8] + (len(chunk) - 4).to_bytes(4, "big") + chunk + b"1234")[8:]
        + data[33:]
    )


HARMLESS = [
    Case("npy, float64", "tartanair", "depth", on_npy(lambda d: d.astype(np.float64))),
    Case("npy, big-endian", "tartanair", "depth", on_npy(lambda d: d.astype(">f4"))),
    Case("npy, by columns", "tartanair", "depth", on_npy(np.asfortranarray)),
    Case("npy, version 2", "tartanair", "depth", npy_version_2),
    Case("png, recompressed", "tartanair", "rgb", on_picture(lambda p: p, compress_level=9)),
    Case("png, comment", "tartanair", "rgb", _png_with_text),
    Case("png, bytes behind", "tartanair", "rgb", lambda d: d + b"junk"),
    Case("jpeg, bytes behind", "virtual_kitti", "rgb", lambda d: d + b"junk"),
    Case("png16, recompressed", "virtual_kitti", "depth", on_picture(lambda p: p)),
    Case("depth hdf5, in one piece", "hypersim", "depth", on_hdf5()),
    Case("depth hdf5, small chunks", "hypersim", "depth",
         on_hdf5(chunks=(7, 5), compression="gzip")),
    Case("depth hdf5, lzf", "hypersim", "depth", on_hdf5(chunks=(7, 5), compression="lzf")),
    Case("depth hdf5, shuffled", "hypersim", "depth",
         on_hdf5(chunks=(24, 32), compression="gzip", shuffle=True, fletcher32=True)),
    Case("depth hdf5, growing", "hypersim", "depth",
         on_hdf5(chunks=(10, 32), compression="gzip", maxshape=(None, None))),
    Case("colour hdf5, in one piece", "hypersim", "rgb", on_hdf5()),
    Case("colour hdf5, all channels a chunk", "hypersim", "rgb",
         on_hdf5(chunks=(24, 10, 3), compression="gzip", compression_opts=1)),
]  # fmt: skip


@pytest.mark.parametrize("case", HARMLESS, ids=lambda case: case.name)
def test_the_same_numbers_in_another_dress_give_the_same_shards(
    cleans: dict[str, Clean], tmp_path: Path, case: Case
) -> None:
    clean = cleans[case.dataset]
    workspace = damaged_copy(
        clean, tmp_path, lambda raw: change_member(*_archive(clean, raw, case.part), case.change)
    )
    report = as_downloaded(clean.config, workspace, case.dataset)
    assert written(workspace, case.dataset) == clean.written
    assert {k: report[k] for k in ("train", "holdout")} == {
        k: clean.report[k] for k in ("train", "holdout")
    }


@dataclass(frozen=True)
class Spot:
    """Numbers put into the first four rows of a depth map; they must not become valid depth."""

    dataset: str
    value: float
    is_sky: bool = False

    def change(self, data: bytes) -> bytes | None:
        kinds: dict[str, Callable[[Callable[[Numbers], Numbers]], Change]] = {
            "tartanair": on_npy,
            "virtual_kitti": lambda f: on_picture(lambda p: Image.fromarray(f(np.asarray(p)))),
            "hypersim": lambda f: on_hdf5(f, **CHUNKED),
        }
        return kinds[self.dataset](_partly(self.value))(data)


SPOTS = [
    *[Spot("tartanair", v, is_sky=v > 200) for v in (0.0, -3.0, np.nan, np.inf, -np.inf, 1e38)],
    Spot("virtual_kitti", 0), Spot("virtual_kitti", 65535, is_sky=True),
    Spot("virtual_kitti", 8001),
    *[Spot("hypersim", v) for v in (0.0, -3.0, np.nan, np.inf, -np.inf, 60000.0)],
]  # fmt: skip


@pytest.mark.parametrize("spot", SPOTS, ids=str)
def test_impossible_depth_is_never_valid(
    cleans: dict[str, Clean], tmp_path: Path, spot: Spot
) -> None:
    clean = cleans[spot.dataset]
    workspace = damaged_copy(
        clean, tmp_path, lambda raw: change_member(*_archive(clean, raw, "depth"), spot.change)
    )
    before, after = read_victim(clean, clean.workspace), read_victim(clean, workspace)
    rows = 4 if spot.dataset != "virtual_kitti" else 0  # four of its rows are cut off
    assert np.array_equal(after.depth[rows:], before.depth[rows:])
    assert np.array_equal(after.valid_mask[rows:], before.valid_mask[rows:])
    assert not after.valid_mask[:rows].any()
    assert (after.depth[:rows] == 0).all()
    assert (after.sky_mask[:rows] == spot.is_sky).all()
    as_downloaded(clean.config, workspace, spot.dataset)
    kept = written(workspace, spot.dataset)
    assert kept.pop(clean.victim.key) is not None
    assert kept == {k: crc for k, crc in clean.written.items() if k != clean.victim.key}
    stored = _stored(workspace, spot.dataset, clean.victim.key)
    np.testing.assert_allclose(stored.depth, after.depth, rtol=2.0**-11)
    assert np.array_equal(stored.valid_mask, after.valid_mask)


def _stored(workspace: Workspace, dataset: str, key: str) -> Frame:
    reader = ShardReader(shard_paths(workspace.shards(dataset), "train"))
    frame: Frame = reader[reader.keys.index(key)]
    reader.close()
    return frame


# --- tables: cameras and splits -------------------------------------------------------------


@dataclass(frozen=True)
class TableCase:
    """A fault in a table of text: refused with a sentence, or ``lost`` frames are left out."""

    name: str
    dataset: str
    table: str
    change: Callable[[str], str | bytes]
    says: str = ""
    lost: str = ""

    def damage(self, raw: Path) -> None:
        def change(data: bytes) -> bytes:
            changed = self.change(data.decode())
            return changed if isinstance(changed, bytes) else changed.encode()

        if self.dataset == "virtual_kitti":
            change_member(raw / TEXT_TAR, self.table, change)
        else:
            path = raw / self.table
            path.write_bytes(change(path.read_bytes()))


def _line(number: int, change: Callable[[list[str]], list[str]], comma: str = " ") -> Any:
    """Other fields in one line."""

    def changed(text: str) -> str:
        lines = text.splitlines()
        lines[number] = comma.join(change(lines[number].split(comma)))
        return "\n".join(lines) + "\n"

    return changed


def _field(place: int, value: str) -> Callable[[list[str]], list[str]]:
    return lambda fields: [*fields[:place], value, *fields[place + 1 :]]


def _columns(*fields: int) -> Callable[[str], str]:
    def changed(text: str) -> str:
        rows = [line.split() for line in text.splitlines()]
        return "\n".join(" ".join(row[i] for i in fields) for row in rows) + "\n"

    return changed


def _matrix(values: str) -> Callable[[str], str]:
    """Nine other numbers of the first scene's camera."""

    def changed(text: str) -> str:
        head, first, *rest = text.splitlines()
        start = head.split(",").index("M_cam_from_uv_00")
        fields = first.split(",")
        fields[start : start + 9] = values.split()
        return "\n".join([head, ",".join(fields), *rest]) + "\n"

    return changed


def _renamed(old: str, new: str, count: int = -1) -> Callable[[str], str]:
    def changed(text: str) -> str:
        assert old in text
        return text.replace(old, new, count)

    return changed


CLONE = "Scene02/clone/intrinsic.txt"
VICTIM_LINE = 2
"""Of frame 1, the victim, after the header and frame 0."""
UNREADABLE = r"virtual_kitti: Scene02/clone/intrinsic\.txt in .*textgt\.tar\.gz cannot be read: "
TABLES = [
    TableCase("intrinsics, no header", "virtual_kitti", CLONE, lambda t: t.split("\n", 1)[1],
              UNREADABLE + "the first line is not"),
    TableCase("intrinsics, columns changed places", "virtual_kitti", CLONE,
              _columns(0, 1, 4, 5, 2, 3), UNREADABLE + "the first line is not"),
    TableCase("intrinsics, column missing", "virtual_kitti", CLONE, _columns(0, 1, 2, 3, 4),
              UNREADABLE + "the first line is not"),
    TableCase("intrinsics, empty", "virtual_kitti", CLONE, lambda _: "",
              UNREADABLE + "the first line is not"),
    TableCase("intrinsics, web page", "virtual_kitti", CLONE, lambda _: HTML,
              UNREADABLE + "the first line is not"),
    TableCase("intrinsics, byte order mark", "virtual_kitti", CLONE, lambda t: "\ufeff" + t,
              UNREADABLE + "the first line is not"),
    TableCase("intrinsics, number missing", "virtual_kitti", CLONE,
              _line(VICTIM_LINE, lambda f: f[:-1]), UNREADABLE + "line 3 is not two whole"),
    TableCase("intrinsics, number too many", "virtual_kitti", CLONE,
              _line(VICTIM_LINE, lambda f: [*f, "1"]), UNREADABLE + "line 3 is not two whole"),
    TableCase("intrinsics, a word", "virtual_kitti", CLONE,
              _line(VICTIM_LINE, _field(3, "wide")), UNREADABLE + "line 3 is not two whole"),
    TableCase("intrinsics, half a frame", "virtual_kitti", CLONE,
              _line(VICTIM_LINE, _field(0, "1.5")), UNREADABLE + "line 3 is not two whole"),
    TableCase("intrinsics, nan", "virtual_kitti", CLONE, _line(VICTIM_LINE, _field(2, "nan")),
              UNREADABLE + "line 3 is not finite"),
    TableCase("intrinsics, inf", "virtual_kitti", CLONE, _line(VICTIM_LINE, _field(4, "inf")),
              UNREADABLE + "line 3 is not finite"),
    TableCase("intrinsics, 1e999", "virtual_kitti", CLONE, _line(VICTIM_LINE, _field(5, "1e999")),
              UNREADABLE + "line 3 is not finite"),
    TableCase("intrinsics, a frame twice", "virtual_kitti", CLONE,
              _line(VICTIM_LINE, _field(0, "0")), UNREADABLE + "line 3 .* is there twice"),
    TableCase("intrinsics, not utf-8", "virtual_kitti", CLONE, lambda t: t.encode() + b"\xff\xfe",
              r"textgt\.tar\.gz: damaged or cut short \(.*utf-8"),
    TableCase("intrinsics, utf-16", "virtual_kitti", CLONE, lambda t: t.encode("utf-16"),
              r"textgt\.tar\.gz: damaged or cut short \(.*utf-8"),
    *[
        TableCase(f"intrinsics, {name}", "virtual_kitti", CLONE,
                  _line(VICTIM_LINE, _field(place, value)),
                  "camera: fx, fy, cx, cy = .* cannot be of 60x20 pixels",
                  lost=r"Scene02/clone/Camera_0/00001")
        for name, place, value in (
            ("no focal length", 2, "0"), ("negative focal length", 3, "-40"),
            ("endless focal length", 2, "1e9"), ("tiny focal length", 2, "0.01"),
            ("centre far away", 4, "1e5"), ("centre far above", 5, "-1e4"),
        )
    ],
    TableCase("intrinsics, frame not listed", "virtual_kitti", CLONE,
              lambda t: "\n".join(t.splitlines()[:2] + t.splitlines()[3:]),
              "camera: intrinsic.txt does not list the frame", lost="Scene02/clone/Camera_0/00001"),
    TableCase("intrinsics, only the header", "virtual_kitti", CLONE, lambda t: t.split("\n")[0],
              "camera: intrinsic.txt does not list the frame", lost="Scene02/clone/"),
    TableCase("intrinsics, windows line ends", "virtual_kitti", CLONE,
              lambda t: t.replace("\n", "\r\n") + "\r\n"),
    TableCase("cameras, column missing", "hypersim", CAMERA_CSV,
              _renamed("M_cam_from_uv_12", "M_cam"), "metadata_camera_parameters.csv cannot be"),
    TableCase("cameras, scene column missing", "hypersim", CAMERA_CSV,
              _renamed("scene_name", "scene"), "metadata_camera_parameters.csv cannot be"),
    TableCase("cameras, a word", "hypersim", CAMERA_CSV, _matrix("1 0 0 0 wide 0 0 0 -1"),
              "metadata_camera_parameters.csv cannot be"),
    TableCase("cameras, cut short", "hypersim", CAMERA_CSV, lambda t: t[: t.rindex(",", 0, -300)],
              "metadata_camera_parameters.csv cannot be"),
    TableCase("cameras, not utf-8", "hypersim", CAMERA_CSV, lambda t: t.encode() + b"\xff",
              "hypersim: .*utf-8"),
    TableCase("cameras, endless field", "hypersim", CAMERA_CSV, lambda t: t + '"' + "x" * 200_000,
              "hypersim: .*field larger than"),
    TableCase("cameras, empty", "hypersim", CAMERA_CSV, lambda _: "", "hypersim: "),
    TableCase("cameras, web page", "hypersim", CAMERA_CSV, lambda _: HTML, "hypersim: "),
    *[
        TableCase(f"cameras, {name}", "hypersim", CAMERA_CSV, _matrix(values), "cannot be decoded",
                  lost="ai_001_001/")
        for name, values in (
            ("zeros", "0 0 0 0 0 0 0 0 0"), ("nan", "nan 0 0 0 0.4 0 0 0 -1"),
            ("inf", "inf 0 0 0 0.4 0 0 0 -1"), ("flat", "1 0 0 1 0 0 0 0 -1"),
            ("rank 1", "1 2 3 2 4 6 3 6 9"), ("a needle", "1e-6 0 0 0 1e-6 0 0 0 -1"),
            ("a half space", "1e6 0 0 0 1e6 0 0 0 -1"), ("all the same", "1 1 1 1 1 1 1 1 1"),
        )
    ],
    TableCase("split, column missing", "hypersim", SPLIT_CSV, _renamed("camera_name", "camera"),
              "metadata_images_split_scene_v1.csv cannot be"),
    TableCase("split, a word", "hypersim", SPLIT_CSV, _renamed("cam_00,0,", "cam_00,first,", 1),
              "metadata_images_split_scene_v1.csv cannot be"),
    TableCase("split, not utf-8", "hypersim", SPLIT_CSV, lambda t: t.encode() + b"\xff",
              "hypersim: .*utf-8"),
    TableCase("split, empty", "hypersim", SPLIT_CSV, lambda _: "", "hypersim: "),
    TableCase("split, web page", "hypersim", SPLIT_CSV, lambda _: HTML, "hypersim: "),
]  # fmt: skip


@pytest.mark.parametrize("case", TABLES, ids=lambda case: case.name)
def test_a_faulty_table_is_refused_or_costs_its_own_frames(
    cleans: dict[str, Clean], tmp_path: Path, case: TableCase
) -> None:
    clean = cleans[case.dataset]
    workspace = damaged_copy(clean, tmp_path, case.damage)
    if case.says and not case.lost:
        assert_refused(clean, workspace, case.says)
        return
    lost = {key for key in clean.written if case.lost and key.startswith(case.lost)}
    if lost:
        with pytest.raises(FrameError, match=case.says):
            read_victim(clean, workspace)
    assert_others_same(clean, workspace, lost)


def assert_refused(clean: Clean, workspace: Workspace, says: str) -> None:
    """Preprocessing ends with one sentence and leaves no shard."""
    with pytest.raises(UserError, match=says) as told:
        as_downloaded(clean.config, workspace, clean.dataset)
    assert "\n" not in str(told.value)
    assert not list(workspace.shards(clean.dataset).iterdir())


def as_downloaded(config: ProfileConfig, workspace: Workspace, dataset: str) -> dict[str, Any]:
    """Preprocess what is there as if it had been so upstream: the manifest says what is there."""
    path = workspace.raw(dataset) / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    files = [(entry, path.with_name("x").parent / entry["path"]) for entry in manifest["files"]]
    there = [entry | {"size": file.stat().st_size} for entry, file in files if file.is_file()]
    path.unlink()  # it may be a link to the clean one
    write_json(path, manifest | {"files": there})
    return preprocess.run(config, workspace, dataset)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: None, "is gone"),
        (lambda data: data[:-1], r"has \d+ instead of \d+ bytes"),
        (lambda data: data + b"x", r"has \d+ instead of \d+ bytes"),
    ],
    ids=["gone", "cut", "longer"],
)
@pytest.mark.parametrize("dataset", ["hypersim", "virtual_kitti", "tartanair"])
def test_a_download_that_changed_since_is_refused(
    cleans: dict[str, Clean], tmp_path: Path, dataset: str, change: Any, told: str
) -> None:
    clean = cleans[dataset]

    def damage(raw: Path) -> None:
        victim = raw / clean.victim.depth.archive
        data = change(victim.read_bytes())
        victim.unlink()
        if data is not None:
            victim.write_bytes(data)

    workspace = damaged_copy(clean, tmp_path, damage)
    victim = Path(clean.victim.depth.archive)
    with pytest.raises(UserError, match=f"{victim.name}: {told}; run the stage 'download' again"):
        preprocess.run(clean.config, workspace, dataset)
    assert not list(workspace.shards(dataset).iterdir())


def assert_others_same(clean: Clean, workspace: Workspace, lost: set[str]) -> None:
    """Preprocessing leaves out just the ``lost`` frames, and counts them as damaged."""
    report = as_downloaded(clean.config, workspace, clean.dataset)
    expected = {key: crc for key, crc in clean.written.items() if key not in lost}
    assert written(workspace, clean.dataset) == expected
    assert sum(report[split]["frames"] for split in ("train", "holdout")) == len(expected)
    counts = report["train"]["rejected"] | report["holdout"]["rejected"]
    assert sum(counts.values()) == len(lost)
    assert {reason.split(":")[0] for reason in counts} <= {DAMAGED}


def test_more_damage_than_is_tolerated_is_refused(cleans: dict[str, Clean], tmp_path: Path) -> None:
    clean = cleans["tartanair"]
    workspace = damaged_copy(
        clean, tmp_path, lambda raw: change_member(*_archive(clean, raw, "depth"), cut(-1))
    )
    strict = replace(clean, config=with_settings(clean.config, "tartanair", max_missing_share=0.05))
    says = "tartanair: 1 of 16 frames cannot be decoded; max_missing_share allows 5.0%"
    with pytest.raises(UserError, match=says):
        as_downloaded(strict.config, workspace, "tartanair")


# --- archives that were damaged after the download ------------------------------------------


@dataclass(frozen=True)
class ArchiveCase:
    """A fault in an archive: refused with a sentence, or the victim is left out."""

    name: str
    dataset: str
    damage: Callable[[Clean, Path], None]
    says: str
    refused: bool = True


def _on_bytes(part: str, change: Callable[[bytes, str], bytes | None]) -> Any:
    """Other bytes of the archive with the victim's ``part``; ``change`` is told the member."""

    def damage(clean: Clean, raw: Path) -> None:
        path, member = _archive(clean, raw, part)
        data = change(path.read_bytes(), member)
        assert data is not None
        path.write_bytes(data)

    return damage


def _near(what: str, shift: int, bits: int = 0xFF, last: bool = False) -> Any:
    """Flip bits ``shift`` bytes from where the victim's name (or ``what``) is found."""

    def change(data: bytes, member: str) -> bytes:
        name = (what or member).encode("latin-1")
        start = data.rindex(name) if last else data.index(name)
        return flip(start + shift, bits)(data)

    return change


def _tar_with(place: int, value: bytes) -> Callable[[bytes, str], bytes]:
    """Other bytes in the victim's tar header, with its checksum made right."""

    def change(data: bytes, member: str) -> bytes:
        start = data.index(member.encode())
        header = bytearray(data[start : start + 512])
        header[place : place + len(value)] = value
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return data[:start] + bytes(header) + data[start + 512 :]

    return change


def _zeroed_header(data: bytes, member: str) -> bytes:
    start = data.index(member.encode())
    return data[:start] + bytes(512) + data[start + 512 :]


def _swapped(first: str, second: str) -> Callable[[Clean, Path], None]:
    def damage(_: Clean, raw: Path) -> None:
        one, other = (raw / first).read_bytes(), (raw / second).read_bytes()
        (raw / first).write_bytes(other)
        (raw / second).write_bytes(one)

    return damage


def _copied(source: str, target: str) -> Callable[[Clean, Path], None]:
    return lambda _, raw: (raw / target).write_bytes((raw / source).read_bytes()) and None


def _bytes_of(path: str, change: Callable[[bytes], bytes]) -> Callable[[Clean, Path], None]:
    return lambda _, raw: (raw / path).write_bytes(change((raw / path).read_bytes())) and None


_NOT_ZIP = r"(image_left|depth_left|ai_001_001)\.zip: damaged or cut short \(.*"
_IN_TAR = r"vkitti_2\.0\.3_(rgb|depth)\.tar: "
ZIPS = (("tartanair", "rgb"), ("tartanair", "depth"), ("hypersim", "rgb"))
ARCHIVES = [
    *[
        ArchiveCase(f"{dataset} {part} zip, {name}", dataset, _on_bytes(part, change), _NOT_ZIP)
        for dataset, part in ZIPS
        for name, change in (
            ("empty", lambda d, _: b""), ("web page", lambda d, _: HTML),
            ("first byte only", lambda d, _: d[:1]), ("cut in half", lambda d, _: d[: len(d) // 2]),
            ("without directory", lambda d, _: d[: d.index(b"PK\1\2")]),
            ("cut in its directory", lambda d, _: d[: d.rindex(b"PK\1\2") + 20]),
            ("a byte short", lambda d, _: d[:-1]),
            ("end record flipped", lambda d, _: flip(-22)(d)),
            ("directory entry flipped", lambda d, _: flip(d.index(b"PK\1\2"))(d)),
        )
    ],
    *[
        ArchiveCase(f"{dataset} {part} zip, {name}", dataset, _on_bytes(part, change), says, False)
        for dataset, part in ZIPS
        for name, change, says in (
            ("a byte of the victim flipped", _near("", 300), "archive: .*(CRC|zlib|invalid|Error)"),
            ("the victim's local signature", _near("", -30), "archive: .*local|archive: .*header"),
            ("the victim's local name", _near("", 2, 1), "archive: .*differ"),
            ("the victim's CRC32", _near("", -30, 1, last=True), "archive: .*Bad CRC-32"),
        )
    ],
    *[
        ArchiveCase(f"{dataset} {part} zip, {name}", dataset, _on_bytes(part, change), says)
        for dataset, part in ZIPS
        for name, change, says in (
            ("the victim encrypted", _near("", -38, 1, last=True), "is encrypted"),
            ("the victim of another method", _near("", -36, 2 ** 6, last=True), "by method"),
            ("the victim grows", _near("", -19, 0x40, last=True), "would have .* bytes"),
            ("the victim reaches over", _near("", -24, 1, last=True), "shares its bytes"),
            ("the victim begins elsewhere", _near("", -2, 8, last=True), "reaches into|shares"),
        )
    ],
    ArchiveCase("tartanair, picture and depth swapped", "tartanair",
                _swapped("hospital/Easy/image_left.zip", "hospital/Easy/depth_left.zip"),
                "image_left.zip holds no picture"),
    ArchiveCase("tartanair, another place's pictures", "tartanair",
                _copied("neighborhood/Easy/image_left.zip", "hospital/Easy/image_left.zip"),
                "holds 'neighborhood/Easy/.*', which is not of hospital/Easy"),
    ArchiveCase("tartanair, another place's depth", "tartanair",
                _copied("neighborhood/Easy/depth_left.zip", "hospital/Easy/depth_left.zip"),
                "holds 'neighborhood/Easy/.*', which is not of hospital/Easy"),
    ArchiveCase("hypersim, a scene twice", "hypersim",
                _copied("scenes/ai_001_001.zip", "scenes/ai_001_009.zip"),
                "ai_001_001/cam_00/0000 is 2 times"),
    *[
        ArchiveCase(f"{part} tar, {name}", "virtual_kitti", _on_bytes(part, change),
                    _IN_TAR + says)
        for part in ("rgb", "depth")
        for name, change, says in (
            ("empty", lambda d, _: b"", "damaged or cut short \\(empty"),
            ("web page", lambda d, _: HTML, "damaged or cut short"),
            ("cut in its first header", lambda d, _: d[:300], "damaged or cut short"),
            ("cut in a header", lambda d, m: d[: d.index(m.encode()) + 200], "damaged.*end"),
            ("cut in half", lambda d, _: d[: len(d) // 2], "damaged or cut short"),
            ("without end mark", lambda d, _: d.rstrip(b"\0")[:-1], "damaged or cut short"),
            ("header checksum", _near("", 150), "damaged.*the header at byte"),
            ("header name", _near("", 3, 1), "damaged.*the header at byte"),
            ("header zeroed", _zeroed_header, "damaged.*goes on after its end"),
            ("bytes behind", lambda d, _: d + b"junk", "damaged.*goes on after its end"),
            ("two tars in one", lambda d, _: d + d, "damaged.*goes on after its end"),
            ("a file too long", _tar_with(124, b"77777777777\0"), "refused, member .* would have"),
            ("a file reaches out", _tar_with(124, b"00000777777\0"), "damaged.*beyond the end"),
            ("a negative file", _tar_with(124, b"\xff" * 12), "(refused|damaged)"),
            ("a link", _tar_with(156, b"2"), "refused, member .* is a link"),
            ("a hard link", _tar_with(156, b"1"), "refused, member .* is a link"),
            ("a device", _tar_with(156, b"3"), "refused, member .* is a link or a device"),
            ("a pipe", _tar_with(156, b"6"), "refused, member .* is a link or a device"),
            ("holes", _tar_with(156, b"S"), "(refused|damaged)"),
            ("a name that goes up", _tar_with(0, b"../../"), "refused, member .* points outside"),
            ("an absolute name", _tar_with(0, b"/"), "refused, member .* points outside"),
        )
    ],
    ArchiveCase("depth tar, a byte of the victim", "virtual_kitti",
                _on_bytes("depth", _near("", 512 + 60)), "depth: .*CRC32", False),
    ArchiveCase("tars swapped", "virtual_kitti", _swapped(RGB_TAR, DEPTH_TAR), "no frame"),
    *[
        ArchiveCase(f"text tar, {name}", "virtual_kitti", _bytes_of(TEXT_TAR, change),
                    r"textgt\.tar\.gz: (damaged or cut short|refused)")
        for name, change in (
            ("empty", lambda d: b""), ("web page", lambda d: HTML),
            ("a byte short", lambda d: d[:-1]),
            ("cut in half", lambda d: d[: len(d) // 2]), ("magic", flip(0)), ("body", flip(100)),
            ("checksum", flip(-8)), ("length", flip(-1)), ("junk behind", lambda d: d + b"junk"),
            ("not gzip", gzip.decompress),
        )
    ],
    *[
        ArchiveCase(f"{name} is not there", "virtual_kitti",
                    lambda _, raw, name=name: (raw / name).unlink(),
                    f"virtual_kitti: .*{name} was not downloaded")
        for name in (RGB_TAR, DEPTH_TAR, TEXT_TAR)
    ],
    ArchiveCase("the cameras are not there", "hypersim",
                lambda _, raw: (raw / CAMERA_CSV).unlink(), "was not downloaded"),
]  # fmt: skip


@pytest.mark.parametrize("case", ARCHIVES, ids=lambda case: case.name)
def test_a_faulty_archive_is_refused_or_costs_the_frame(
    cleans: dict[str, Clean], tmp_path: Path, case: ArchiveCase
) -> None:
    clean = cleans[case.dataset]
    workspace = damaged_copy(clean, tmp_path, lambda raw: case.damage(clean, raw))
    if case.refused:
        assert_refused(clean, workspace, case.says)
        return
    with pytest.raises(FrameError, match=case.says):
        read_victim(clean, workspace)
    assert_others_same(clean, workspace, {clean.victim.key})


def test_a_frame_of_another_size_than_its_scene_is_left_out(
    cleans: dict[str, Clean], tmp_path: Path
) -> None:
    clean = cleans["tartanair"]

    def damage(raw: Path) -> None:
        change_member(*_archive(clean, raw, "rgb"), on_picture(lambda p: p.reduce(2)))
        change_member(*_archive(clean, raw, "depth"), on_npy(lambda d: d[::2, ::2]))

    workspace = damaged_copy(clean, tmp_path, damage)
    assert read_victim(clean, workspace).depth.shape == (12, 16)
    assert_others_same(clean, workspace, {clean.victim.key})


# --- what a server sends --------------------------------------------------------------------


@dataclass(frozen=True)
class SentCase:
    """A fault in a file of a mirror, and the sentence that ends the download."""

    name: str
    dataset: str
    path: str
    change: Callable[[bytes], bytes]
    says: str


def _zeroed(start: int, length: int) -> Callable[[bytes], bytes]:
    """As a hole in a file that was interrupted."""
    return lambda data: data[:start] + bytes(length) + data[start + length :]


_SENT: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda d: b"", "(damaged|not a zip)"),
    "web page": (lambda d: HTML, "(web page|not a zip)"),
    "one byte": (lambda d: d[:1], "damaged"),
    "cut at 100": (lambda d: d[:100], "damaged"),
    "cut in half": (lambda d: d[: len(d) // 2], "damaged"),
    "a byte short": (lambda d: d[:-1], "damaged"),
}
_SENT_ZIP: dict[str, tuple[Callable[[bytes], bytes], str]] = _SENT | {
    "without directory": (lambda d: d[: d.index(b"PK\1\2")], "damaged"),
    "cut in its directory": (lambda d: d[: d.rindex(b"PK\1\2") + 9], "damaged"),
    "another directory": (lambda d: d + d[d.index(b"PK\1\2") :], "(damaged|refused)"),
    "first header": (flip(0), "damaged"),
    "first name": (flip(33, 1), "damaged"),
    "first data": (flip(300), "damaged .*(CRC|zlib|Error|invalid)"),
    "a hole": (_zeroed(400, 512), "damaged"),
    "entry flipped": (lambda d: flip(d.index(b"PK\1\2"))(d), "damaged"),
    "method flipped": (lambda d: flip(d.index(b"PK\1\2") + 10, 64)(d), "by method"),
    "encrypted": (lambda d: flip(d.index(b"PK\1\2") + 8, 1)(d), "is encrypted"),
    "a bomb": (lambda d: flip(d.index(b"PK\1\2") + 27, 0x40)(d), "would have .* bytes"),
    "overlap": (lambda d: flip(d.index(b"PK\1\2") + 22, 1)(d), "shares its bytes|damaged"),
    "crc flipped": (lambda d: flip(d.index(b"PK\1\2") + 16)(d), "damaged .*CRC-32"),
    "end flipped": (flip(-22), "damaged"),
    "directory elsewhere": (flip(-6, 8), "damaged|refused"),
}
_SENT_TAR: dict[str, tuple[Callable[[bytes], bytes], str]] = _SENT | {
    "first header": (flip(150), "damaged"),
    "without end mark": (lambda d: d.rstrip(b"\0"), "damaged"),
    "bytes behind": (lambda d: d + b"junk", "goes on after its end"),
    "a hole": (lambda d: _zeroed(d.index(b"Scene", 600), 1024)(d), "damaged"),
}
SENT = [
    *[
        SentCase(f"{path}, {name}", "tartanair", path, *case)
        for path in ("hospital/Easy/image_left.zip", "hospital/Easy/depth_left.zip")
        for name, case in _SENT_ZIP.items()
    ],
    *[
        SentCase(f"scene zip, {name}", "hypersim", "scenes/ai_001_001.zip", *case)
        for name, case in _SENT_ZIP.items()
    ],
    *[
        SentCase(f"{path}, {name}", "virtual_kitti", path, *case)
        for path in (RGB_TAR, DEPTH_TAR)
        for name, case in _SENT_TAR.items()
        if name != "a byte short"  # it is a zero, of which there are enough
    ],
    *[
        SentCase(f"text tar, {name}", "virtual_kitti", TEXT_TAR, *case)
        for name, case in {
            **_SENT, "a bit of the body": (flip(200), "damaged"), "checksum": (flip(-8), "damaged"),
            "length": (flip(-1), "damaged"), "unpacked": (gzip.decompress, "damaged"),
        }.items()
    ],
    SentCase("table, web page", "hypersim", CAMERA_CSV, lambda d: HTML, "web page"),
]  # fmt: skip


@pytest.fixture(scope="module")
def mirrors(
    cleans: dict[str, Clean], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Workspace, ProfileConfig]]:
    """A folder that is a mirror, and a workspace that knows what lies there, for each dataset."""
    found = {}
    for name, clean in cleans.items():
        mirror = tmp_path_factory.mktemp("mirror") / name
        shutil.copytree(clean.workspace.source(name), mirror)
        (mirror / "index.json").unlink()
        folders = {"/".join(path.parent.parts[-2:]) for path in mirror.rglob("image_left.zip")}
        config = with_settings(
            clean.config, name, procedural=None, mirrors=(str(mirror),), max_missing_share=0.0,
            include=tuple(sorted(folders)),
        )  # fmt: skip
        config = config.model_copy(
            update={"download": DownloadConfig(retries=1, timeout_s=10, backoff_s=0.01, parallel=1)}
        )
        workspace = Workspace(tmp_path_factory.mktemp("known"))
        source.run(config, workspace, name)
        found[name] = (mirror, workspace, config)
    return found


@pytest.mark.parametrize("name", DATASETS)
def test_what_mirrors_send_without_fault_gives_the_same_shards(
    cleans: dict[str, Clean],
    mirrors: dict[str, tuple[Path, Workspace, ProfileConfig]],
    tmp_path: Path,
    name: str,
) -> None:
    _, known, config = mirrors[name]
    workspace = Workspace(tmp_path)
    shutil.copytree(known.source(name), workspace.source(name))
    download.run(config, workspace, name)
    preprocess.run(config, workspace, name)
    assert written(workspace, name) == cleans[name].written


@pytest.mark.parametrize("case", SENT, ids=lambda case: case.name)
def test_a_faulty_file_from_a_server_is_refused(
    mirrors: dict[str, tuple[Path, Workspace, ProfileConfig]], tmp_path: Path, case: SentCase
) -> None:
    mirror, known, config = mirrors[case.dataset]
    faulty = tmp_path / "mirror"
    shutil.copytree(mirror, faulty)
    data = case.change((faulty / case.path).read_bytes())
    (faulty / case.path).write_bytes(data)
    config = with_settings(config, case.dataset, mirrors=(str(faulty),))
    workspace = Workspace(tmp_path / "project")
    shutil.copytree(known.source(case.dataset), workspace.source(case.dataset))
    index = workspace.source(case.dataset) / "index.json"
    size = (mirror / case.path).stat().st_size
    index.write_text(index.read_text().replace(f'"size": {size}', f'"size": {len(data)}'))
    with pytest.raises(DownloadError, match=case.says) as told:
        download.run(config, workspace, case.dataset)
    assert case.path.rpartition("/")[2] in str(told.value)
    assert "\n" not in str(told.value)
    assert not (workspace.raw(case.dataset) / "manifest.json").exists()
    files = workspace.scratch(f"download_{case.dataset}") / "files"
    assert not (files / case.path).exists()


# --- anything ------------------------------------------------------------------------------


def _damage_anyhow(data: bytes, cuts: float, flips: list[tuple[float, int]]) -> bytes:
    changed = bytearray(data)
    for place, bits in flips:
        changed[min(len(data) - 1, int(place * len(data)))] ^= bits
    return bytes(changed[: max(1, int(cuts * len(data)))])


places = st.floats(0, 1, exclude_max=True)
cuts = st.one_of(st.just(1.0), st.just(1.0), places)
flips = st.lists(st.tuples(places, st.integers(1, 255)), max_size=4)


def _assert_sane(frame: Frame, clean: Frame) -> None:
    assert frame.depth.dtype == np.float32
    assert np.isfinite(frame.depth).all()
    assert (frame.depth >= 0).all()
    assert ((frame.depth > 0) == frame.valid_mask).all()
    assert not (frame.valid_mask & frame.sky_mask).any()
    assert frame.rgb.shape == (*frame.depth.shape, 3)
    assert np.isfinite(frame.intrinsics).all()
    assert clean.key == frame.key


@pytest.mark.parametrize("part", ["rgb", "depth"])
@pytest.mark.parametrize("name", DATASETS)
def test_any_damage_to_a_file_gives_a_sane_frame_or_an_error_that_names_it(
    cleans: dict[str, Clean], name: str, part: str
) -> None:
    """As if a checksum had been made right: the decoder alone stands between."""
    clean = cleans[name]
    settings_, raw = clean.config.datasets[name], clean.raw  # type: ignore[index]
    before = read_victim(clean, clean.workspace)
    files = [read_part(raw, clean.victim.rgb), read_part(raw, clean.victim.depth)]
    chosen = ("rgb", "depth").index(part)

    @settings(max_examples=120, deadline=None, derandomize=True, database=None)
    @given(end=cuts, changes=flips)
    def check(end: float, changes: list[tuple[float, int]]) -> None:
        damaged = list(files)
        damaged[chosen] = _damage_anyhow(files[chosen], end, changes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                dataset, "read_part", lambda _, where: damaged[where == clean.victim.depth]
            )
            try:
                frame = clean.reader.read(raw, clean.victim, settings_, 80.0)
            except FrameError as error:
                assert clean.victim.key in str(error)  # noqa: PT017  (either outcome is right)
                return
        _assert_sane(frame, before)

    check()


WHOLE = [
    ("hypersim", "scenes/ai_001_001.zip"), ("tartanair", "hospital/Easy/image_left.zip"),
    ("tartanair", "hospital/Easy/depth_left.zip"), ("virtual_kitti", RGB_TAR),
    ("virtual_kitti", DEPTH_TAR), ("virtual_kitti", TEXT_TAR), ("hypersim", CAMERA_CSV),
    ("hypersim", SPLIT_CSV),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path"), WHOLE, ids=lambda value: value)
def test_any_damage_to_an_archive_is_refused_or_leaves_sane_frames(
    cleans: dict[str, Clean], tmp_path: Path, name: str, path: str
) -> None:
    clean = cleans[name]
    config, raw = clean.config.datasets[name], tmp_path / "raw"  # type: ignore[index]
    shutil.copytree(clean.raw, raw)
    data = (raw / path).read_bytes()
    frames = {
        ref.key: clean.reader.read(clean.raw, ref, config, 80.0)
        for ref in clean.reader.index(clean.raw, config)
    }

    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(end=cuts, changes=flips)
    def check(end: float, changes: list[tuple[float, int]]) -> None:
        (raw / path).unlink()
        (raw / path).write_bytes(_damage_anyhow(data, end, changes))
        try:
            refs = clean.reader.index(raw, config)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017  (either outcome is right)
            return
        for ref in refs:
            try:
                frame = clean.reader.read(raw, ref, config, 80.0)
            except FrameError:
                continue
            _assert_sane(frame, frame)
            if path.endswith(".zip"):  # CRC32 tells every change
                assert np.array_equal(frame.depth, frames[ref.key].depth)
                assert np.array_equal(frame.rgb, frames[ref.key].rgb)

    check()
