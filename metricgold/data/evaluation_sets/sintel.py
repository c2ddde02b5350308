"""MPI Sintel, the 1,064 frames of the 23 training scenes, rendered, 436x1024.

``training/final/{scene}/frame_%04d.png`` with ``depth/{scene}/frame_%04d.dpt`` and
``camdata_left/{scene}/frame_%04d.cam``. Depth is that of the film's own scale, said to be
metres; the sky is merely far away, so the range ends at 1000 m. The frames are those that
have depth.

Checked on generated files only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from metricgold.data.evaluation_sets.base import (
    EvaluationRef,
    EvaluationSet,
    FrameFiles,
    PublishedFile,
    sorted_refs,
)
from metricgold.data.evaluation_sets.decoders import decode_cam, decode_dpt, decode_rgb
from metricgold.data.evaluation_sets.tree import FileTree
from metricgold.data.sample import Frame

DEPTH_ZIP, PICTURE_ZIP = "MPI-Sintel-depth-training-20150305.zip", "MPI-Sintel-training_images.zip"
_BASE = "http://files.is.tue.mpg.de"
_DEPTH = re.compile(r"(?:^|/)depth/(?P<scene>\w+)/(?P<frame>frame_\d{4})\.dpt$")


class Sintel(EvaluationSet):
    """Computer animation with exact boundaries; ``rendering`` is final or clean."""

    name = "sintel"
    licence = "film CC BY 3.0 (Blender Foundation); data free for research with citation"
    homepage = "http://sintel.is.tue.mpg.de/depth"
    citation = "Butler et al., A Naturalistic Open Source Movie for Optical Flow, ECCV 2012"
    depth_range_m = (1e-3, 1000.0)
    expected_frames = 1064
    frame_size = (436, 1024)
    lists_all = False

    def __init__(self, rendering: Literal["final", "clean"] = "final") -> None:
        self._rendering = rendering

    def remote_files(self) -> list[PublishedFile]:
        """Depth with cameras, and pictures."""
        return [
            PublishedFile(DEPTH_ZIP, (f"{_BASE}/jwulff/sintel/{DEPTH_ZIP}",)),
            PublishedFile(PICTURE_ZIP, (f"{_BASE}/sintel/{PICTURE_ZIP}",)),
        ]

    def frames(self, raw: Path) -> list[EvaluationRef]:
        """Every frame with depth: see ``EvaluationSet``."""
        tree, refs = FileTree(raw), []
        for scene, frame in {(m["scene"], m["frame"]) for m in tree.matching(_DEPTH)}:
            parts, missing = tree.gather(
                rgb=f"{self._rendering}/{scene}/{frame}.png",
                depth=f"depth/{scene}/{frame}.dpt",
                camera=f"camdata_left/{scene}/{frame}.cam",
            )
            refs.append(EvaluationRef(f"{scene}/{frame}", scene, parts, missing))
        return sorted_refs(refs)

    def _read(self, raw: Path, ref: EvaluationRef) -> Frame:
        files = FrameFiles(raw, ref)
        depth, intrinsics = files.take("depth", decode_dpt), files.take("camera", decode_cam)
        return self.masked(ref, files.take("rgb", decode_rgb), depth, intrinsics)
