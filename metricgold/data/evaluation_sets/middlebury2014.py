"""Middlebury stereo 2014, the left pictures of the 23 scenes with public ground truth.

``{scene}-perfect.zip``: ``im0.png``, ``disp0.pfm`` (pixels, infinity where unknown) and
``calib.txt``. Depth = baseline · focal / (disparity + doffs); the baseline is in millimetres.
The set gives no range; 100 m is far beyond every scene.

Checked on generated files only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metricgold.data.evaluation_sets.base import (
    EvaluationRef,
    EvaluationSet,
    FrameFiles,
    PublishedFile,
    sorted_refs,
)
from metricgold.data.evaluation_sets.decoders import decode_pfm, decode_rgb
from metricgold.data.evaluation_sets.tree import FileTree
from metricgold.data.sample import Frame

SCENES = (
    "Adirondack", "Backpack", "Bicycle1", "Cable", "Classroom1", "Couch", "Flowers", "Jadeplant",
    "Mask", "Motorcycle", "Piano", "Pipes", "Playroom", "Playtable", "Recycle", "Shelves",
    "Shopvac", "Sticks", "Storage", "Sword1", "Sword2", "Umbrella", "Vintage",
)  # fmt: skip
_BASE = "https://vision.middlebury.edu/stereo/data/scenes2014/zip"


class Middlebury2014(EvaluationSet):
    """Indoor, structured light, about 2000x3000."""

    name = "middlebury2014"
    licence = "no licence stated; free for research with citation"
    homepage = "https://vision.middlebury.edu/stereo/data/scenes2014/"
    citation = "Scharstein et al., High-Resolution Stereo Datasets, GCPR 2014"
    depth_range_m = (1e-3, 100.0)
    expected_frames = len(SCENES)
    frame_size = (2020, 2964)

    def remote_files(self) -> list[PublishedFile]:
        """One zip a scene."""
        paths = [f"{scene}-perfect.zip" for scene in SCENES]
        return [PublishedFile(path, (f"{_BASE}/{path}",)) for path in paths]

    def frames(self, raw: Path) -> list[EvaluationRef]:
        """One frame a scene: see ``EvaluationSet``."""
        tree, refs = FileTree(raw), []
        for scene in SCENES:
            folder = f"{scene}-perfect"
            parts, missing = tree.gather(
                rgb=f"{folder}/im0.png",
                disparity=f"{folder}/disp0.pfm",
                calibration=f"{folder}/calib.txt",
            )
            refs.append(EvaluationRef(f"{scene}/0", scene, parts, missing))
        return sorted_refs(refs)

    def _read(self, raw: Path, ref: EvaluationRef) -> Frame:
        files = FrameFiles(raw, ref)
        camera = files.take("calibration", parse_calibration)
        disparity = files.take("disparity", decode_pfm).astype(np.float64) + camera.offset_px
        shifted = np.where(disparity > 0, disparity, np.inf)
        depth = camera.baseline_m * camera.intrinsics[0, 0] / shifted
        return self.masked(ref, files.take("rgb", decode_rgb), depth, camera.intrinsics)


class StereoCamera(NamedTuple):
    """K [3, 3] of the left camera, baseline, and what is added to a disparity."""

    intrinsics: NDArray[np.float64]
    baseline_m: float
    offset_px: float


def parse_calibration(data: bytes) -> StereoCamera:
    """``calib.txt``: ``cam0=[f 0 cx; 0 f cy; 0 0 1]``, ``doffs=…``, ``baseline=…`` (mm), …"""
    pairs = (line.split("=", 1) for line in data.decode("ascii").splitlines() if "=" in line)
    values = {name.strip(): text for name, text in pairs}
    matrix = [float(word) for word in re.split(r"[\s;\[\]]+", values["cam0"]) if word]
    intrinsics = np.array(matrix, np.float64).reshape(3, 3)
    return StereoCamera(intrinsics, float(values["baseline"]) / 1000.0, float(values["doffs"]))
