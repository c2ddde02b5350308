"""iBims-1, 100 indoor frames of 480x640 with laser depth.

``ibims1_core_raw.zip``: ``rgb/X.png``, ``depth/X.png`` (16 bit, 65535 = 50 m, 0 unknown),
``mask_invalid/X.png`` and ``mask_transp/X.png`` (0: leave out), ``calib/X.txt``
(fx, fy, cx, cy). ``ibims1_core_mat.zip`` holds the same, depth in metres, one MATLAB file a
frame; it is read where the other is not there. The frames are those in the archive.

Checked on generated files only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricgold.data.evaluation_sets.base import (
    EvaluationRef,
    EvaluationSet,
    FrameFiles,
    PublishedFile,
    sorted_refs,
)
from metricgold.data.evaluation_sets.decoders import (
    decode_mask,
    decode_mat,
    decode_numbers,
    decode_png16,
    decode_rgb,
)
from metricgold.data.evaluation_sets.tree import FileTree
from metricgold.data.sample import Frame
from metricgold.geometry import make_intrinsics

DEPTH_SCALE = 50.0 / 65535.0
_URL = "https://dataserv.ub.tum.de/s/m1455541/download?path=%2F&files="
_PICTURE = re.compile(r"^(?P<base>(?:.*\bibims1_core_raw/)?)rgb/(?P<name>[^/]+)\.png$")
_MATLAB = re.compile(r"^(?P<base>(?:.*\bibims1_core_mat/)?)(?P<name>[^/]+)\.mat$")
_SHA512 = (
    "2641a837c82909e58a34af43d779051c38d57a848308733b10cda747f1e8347d"
    "a035a0cf591422f0448b4c5dba6eff92ae6289aa5ba73e6d79003d33315a80c8"
)


class Ibims1(EvaluationSet):
    """Rooms, glass and mirrors masked out."""

    name = "ibims1"
    licence = "said to be CC BY-NC-SA 4.0: no commercial use; see the homepage before use"
    homepage = "https://www.asg.ed.tum.de/lmf/ibims1/"
    citation = "Koch et al., Evaluation of CNN-based Single-Image Depth Estimation, ECCVW 2018"
    depth_range_m = (5e-3, 25.0)
    expected_frames = 100
    frame_size = (480, 640)
    lists_all = False

    def remote_files(self) -> list[PublishedFile]:
        """The raw archive."""
        name = "ibims1_core_raw.zip"
        checksum = f"sha512:{_SHA512}"
        return [PublishedFile(name, (_URL + name,), None, 55_000_000, checksum=checksum)]

    def frames(self, raw: Path) -> list[EvaluationRef]:
        """Every frame of the raw archive, else of the MATLAB files: see ``EvaluationSet``."""
        tree, refs = FileTree(raw), []
        for name, base in {m["name"]: m["base"] for m in tree.matching(_PICTURE)}.items():
            parts, missing = tree.gather(
                rgb=f"{base}rgb/{name}.png",
                depth=f"{base}depth/{name}.png",
                mask_invalid=f"{base}mask_invalid/{name}.png",
                mask_transp=f"{base}mask_transp/{name}.png",
                calibration=f"{base}calib/{name}.txt",
            )
            refs.append(EvaluationRef(f"{name}/0", name, parts, missing))
        if not refs:
            for name, base in {m["name"]: m["base"] for m in tree.matching(_MATLAB)}.items():
                parts, missing = tree.gather(matlab=f"{base}{name}.mat")
                refs.append(EvaluationRef(f"{name}/0", name, parts, missing))
        return sorted_refs(refs)

    def _read(self, raw: Path, ref: EvaluationRef) -> Frame:
        files = FrameFiles(raw, ref)
        if "matlab" in ref.parts:
            data = files.take("matlab", decode_mat)["data"]
            masks = _field(data, "mask_invalid") * _field(data, "mask_transp") != 0
            rgb, depth = _field(data, "rgb"), _field(data, "depth")
            return self.masked(ref, rgb, depth, _upright(_field(data, "calib")), masks)
        depth = files.take("depth", decode_png16) * DEPTH_SCALE
        masks = files.take("mask_invalid", decode_mask) & files.take("mask_transp", decode_mask)
        intrinsics = make_intrinsics(*files.take("calibration", decode_numbers)[:4])
        return self.masked(ref, files.take("rgb", decode_rgb), depth, intrinsics, masks)


def _field(data: Any, name: str) -> NDArray[Any]:
    """A field of the 1 x 1 struct that a MATLAB file holds."""
    return data[name][0, 0]


def _upright(intrinsics: NDArray[np.floating]) -> NDArray[np.floating]:
    """K [3, 3]; MATLAB's toolbox keeps it transposed, with the centre in the last row."""
    return intrinsics.T if intrinsics[2, 0] != 0 else intrinsics
