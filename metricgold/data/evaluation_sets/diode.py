"""DIODE, the validation set: 325 indoor and 446 outdoor frames of 768x1024, laser depth.

``val.tar.gz`` holds ``val/{indoors,outdoor}/scene_*/scan_*/`` with ``X.png``,
``X_depth.npy`` (float32 [H, W, 1] metres, z-depth) and ``X_depth_mask.npy`` (1 valid).
The frames are those in the archive: ``diode_meta.json`` lists only 612 of the 771.

Checked on generated files only; the names are checked against the official list.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np

from metricgold.data.evaluation_sets.base import (
    EvaluationRef,
    EvaluationSet,
    FrameFiles,
    PublishedFile,
    sorted_refs,
)
from metricgold.data.evaluation_sets.decoders import decode_npy, decode_rgb
from metricgold.data.evaluation_sets.tree import FileTree
from metricgold.data.sample import Frame
from metricgold.geometry import make_intrinsics

Part = Literal["all", "indoor", "outdoor"]
FRAMES: dict[Part, int] = {"all": 771, "indoor": 325, "outdoor": 446}
DEPTH_RANGES_M: dict[Part, tuple[float, float]] = {
    "all": (0.6, 350.0),
    "indoor": (0.6, 25.0),
    "outdoor": (0.6, 350.0),
}
"""What the scanner measures; indoors the 25 m of the metric comparisons."""
INTRINSICS = make_intrinsics(886.81, 927.06, 512.0, 384.0)
"""The devkit's; the two focal lengths do differ."""

_FRAME = re.compile(
    r"(?:^|/)(?P<scan>(?P<place>indoors|outdoor)/scene_\d{5}/scan_\d{5})/"
    r"(?P<name>\d{5}_\d{5}_(?:indoors|outdoor)_\d{3}_\d{3})"
    r"(?P<role>\.png|_depth\.npy|_depth_mask\.npy)$"
)
_ROLES = {"rgb": ".png", "depth": "_depth.npy", "mask": "_depth_mask.npy"}


class Diode(EvaluationSet):
    """Indoor and outdoor, or one of both."""

    licence = "MIT: keep the copyright notice"
    homepage = "https://diode-dataset.org"
    citation = "Vasiljevic et al., DIODE: A Dense Indoor and Outdoor DEpth Dataset, 2019"
    frame_size = (768, 1024)
    lists_all = False

    def __init__(self, part: Part) -> None:
        self.name = "diode" if part == "all" else f"diode_{part}"
        self.expected_frames = FRAMES[part]
        self.depth_range_m = DEPTH_RANGES_M[part]
        self._places = {"indoor": {"indoors"}, "outdoor": {"outdoor"}}.get(
            part, {"indoors", "outdoor"}
        )

    def remote_files(self) -> list[PublishedFile]:
        """One tar.gz."""
        return [
            PublishedFile(
                "val.tar.gz",
                ("https://diode-dataset.s3.amazonaws.com/val.tar.gz",),
                expected_bytes=2_774_625_282,
                checksum="md5:5c895d09201b88973c8fe4552a67dd85",
                unpacked_bytes=8_000_000_000,
            )
        ]

    def frames(self, raw: Path) -> list[EvaluationRef]:
        """Every frame of the validation folder: see ``EvaluationSet``."""
        tree = FileTree(raw)
        found = {
            (match["scan"], match["name"])
            for match in tree.matching(_FRAME)
            if match["place"] in self._places
        }
        refs = []
        for scan, name in found:
            wanted = {role: f"{scan}/{name}{end}" for role, end in _ROLES.items()}
            parts, missing = tree.gather(**wanted)
            refs.append(EvaluationRef(f"{scan}/{name}", scan, parts, missing))
        return sorted_refs(refs)

    def _read(self, raw: Path, ref: EvaluationRef) -> Frame:
        files = FrameFiles(raw, ref)
        depth = np.squeeze(files.take("depth", decode_npy))
        mask = np.squeeze(files.take("mask", decode_npy)) > 0
        return self.masked(ref, files.take("rgb", decode_rgb), depth, INTRINSICS, mask)
