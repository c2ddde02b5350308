"""SUN RGB-D, the official test split without the frames it shares with NYU Depth v2.

``allsplit.mat`` of the toolbox lists the folders (``alltest``, 5,050); those below
``kv1/NYUdata`` (654) are left out. A folder holds ``image/*.jpg``, ``depth/*.png`` and
``intrinsics.txt`` (K row by row). Depth is the sensor's own, as the toolbox reads it, not the
in-painted ``depth_bfx``: 16 bit with the three lowest bits rotated to the top, millimetres.

The depth decoding is checked on a genuine picture, the rest on generated files only.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metricgold.data.archives import read_part
from metricgold.data.dataset import DatasetError, Part
from metricgold.data.evaluation_sets.base import (
    EvaluationRef,
    EvaluationSet,
    FrameFiles,
    PublishedFile,
    sorted_refs,
    undecodable,
)
from metricgold.data.evaluation_sets.decoders import (
    decode_mat,
    decode_matrix3,
    decode_png16,
    decode_rgb,
)
from metricgold.data.evaluation_sets.tree import FileTree
from metricgold.data.sample import Frame

SPLIT = "traintestSUNRGBD/allsplit.mat"
SHARED_WITH_NYU = "kv1/NYUdata/"
_BASE = "https://rgbd.cs.princeton.edu/data"
_FOLDER = r"(?P<folder>(?:kv1|kv2|realsense|xtion)/.+)"
_FILE = re.compile(
    rf"(?:^|/){_FOLDER}/(?:(?P<rgb>image/[^/]+\.jpg)|(?P<depth>depth/[^/]+\.png)"
    r"|(?P<intrinsics>intrinsics\.txt))$"
)
_LISTED = re.compile(rf"(?:^|/)SUNRGBD/{_FOLDER}$")


class SunRgbd(EvaluationSet):
    """Indoor, four kinds of depth camera; every frame is a scene of its own."""

    name = "sun_rgbd"
    licence = "no licence stated; research use, cite SUN RGB-D, NYUv2, B3DO and SUN3D"
    homepage = "https://rgbd.cs.princeton.edu"
    citation = "Song et al., SUN RGB-D: A RGB-D Scene Understanding Benchmark Suite, CVPR 2015"
    depth_range_m = (5e-3, 8.0)
    expected_frames = 4396
    frame_size = (530, 730)

    def remote_files(self) -> list[PublishedFile]:
        """All pictures, and the split out of the toolbox."""
        toolbox, pictures = "SUNRGBDtoolbox.zip", "SUNRGBD.zip"
        member = f"SUNRGBDtoolbox/{SPLIT}"
        return [
            PublishedFile(toolbox, (f"{_BASE}/{toolbox}",), (member,), 200_000),
            PublishedFile(pictures, (f"{_BASE}/{pictures}",), None, 6_885_481_608),
        ]

    def frames(self, raw: Path) -> list[EvaluationRef]:
        """``alltest`` of the split without NYU's frames: see ``EvaluationSet``."""
        tree = FileTree(raw)
        split = tree.find(SPLIT)
        if split is None:
            raise DatasetError(
                f"{raw}: {SPLIT} of SUNRGBDtoolbox.zip is missing; sun_rgbd needs it"
            )
        try:
            listed = [str(entry[0]) for entry in decode_mat(read_part(raw, split))["alltest"][0]]
            folders = {frame_folder(path) for path in listed}
        except Exception as error:
            raise undecodable(f"{raw}/{split.archive}: {SPLIT}", error) from None
        places = _places(tree)
        refs = []
        for folder in folders:
            if not folder.startswith(SHARED_WITH_NYU):
                parts = places.get(folder, {})
                missing = tuple(
                    f"{folder}/{role}"
                    for role in ("rgb", "depth", "intrinsics")
                    if role not in parts
                )
                refs.append(EvaluationRef(f"{folder}/0", folder, parts, missing))
        return sorted_refs(refs)

    def _read(self, raw: Path, ref: EvaluationRef) -> Frame:
        files = FrameFiles(raw, ref)
        depth = unrotate(files.take("depth", decode_png16)) / 1000.0
        intrinsics = files.take("intrinsics", decode_matrix3)
        return self.masked(ref, files.take("rgb", decode_rgb), depth, intrinsics)


def unrotate(values: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Millimetres from the stored value, whose lowest three bits stand on top: 16-bit rotation."""
    return (values >> np.uint16(3)) | (values << np.uint16(13))


def frame_folder(path: str) -> str:
    """``/n/fs/…/SUNRGBD/kv1/x//`` to ``kv1/x``.

    Raises:
        ValueError: the path is not below ``SUNRGBD``.
    """
    match = _LISTED.search(re.sub("/+", "/", path).rstrip("/"))
    if match is None:
        raise ValueError(f"unexpected folder '{path}'")
    return match["folder"]


def _places(tree: FileTree) -> dict[str, dict[str, Part]]:
    """Folder of a frame to the places of its files, in one pass over some 100,000 paths."""
    places: dict[str, dict[str, Part]] = defaultdict(dict)
    for match in tree.matching(_FILE):
        role = str(match.lastgroup)
        places[match["folder"]].setdefault(role, tree.part(match.string))
    return places
