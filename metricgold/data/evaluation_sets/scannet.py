"""ScanNet, the 800 validation frames that Marigold's authors sampled.

Files as the official ``SensReader`` exports them: ``{scene}/color/N.jpg``,
``{scene}/depth/N.png`` (16 bit, millimetres, 0 unknown) and
``{scene}/intrinsic/intrinsic_depth.txt`` (4 x 4); frame numbers may be padded to six digits.
Depth is registered to colour; the picture (968x1296) is scaled to depth's 480x640, whose K
is used.

Checked on generated files only; the list is checked against the published one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from metricgold.data.evaluation_sets.base import (
    EvaluationRef,
    EvaluationSet,
    FrameFiles,
    sorted_refs,
)
from metricgold.data.evaluation_sets.decoders import decode_matrix3, decode_png16, decode_rgb
from metricgold.data.evaluation_sets.lists import listed
from metricgold.data.evaluation_sets.tree import FileTree
from metricgold.data.sample import Frame


class ScanNet(EvaluationSet):
    """Indoor, structure sensor on a tablet."""

    name = "scannet"
    licence = "ScanNet Terms of Use: signed agreement, non-commercial research only"
    homepage = "http://www.scan-net.org"
    citation = "Dai et al., ScanNet: Richly-annotated 3D Reconstructions, CVPR 2017"
    depth_range_m = (1e-3, 10.0)
    expected_frames = 800
    frame_size = (480, 640)
    supply = (
        "sign the ScanNet Terms of Use, download the .sens files of the validation scenes, export "
        "colour, depth and intrinsics with the official SensReader, and name that folder"
    )

    def frames(self, raw: Path) -> list[EvaluationRef]:
        """The 800 sampled frames: see ``EvaluationSet``."""
        tree, refs = FileTree(raw), []
        for scene, numbers in listed("scannet.txt").items():
            for number in map(int, numbers):
                parts, missing = tree.gather(
                    rgb=_either(f"{scene}/color", number, "jpg"),
                    depth=_either(f"{scene}/depth", number, "png"),
                    intrinsics=f"{scene}/intrinsic/intrinsic_depth.txt",
                )
                refs.append(EvaluationRef(f"{scene}/{number:06d}", scene, parts, missing))
        return sorted_refs(refs)

    def _read(self, raw: Path, ref: EvaluationRef) -> Frame:
        files = FrameFiles(raw, ref)
        depth = files.take("depth", decode_png16) / 1000.0
        picture = Image.fromarray(files.take("rgb", decode_rgb))
        size = (depth.shape[1], depth.shape[0])
        rgb = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
        return self.masked(ref, rgb, depth, files.take("intrinsics", decode_matrix3))


def _either(folder: str, number: int, kind: str) -> tuple[str, str]:
    return f"{folder}/{number}.{kind}", f"{folder}/{number:06d}.{kind}"
