"""NYU Depth v2, the 654 labelled test frames.

``nyu_depth_v2_labeled.mat`` is HDF5 with MATLAB's axes reversed: ``images`` [N, 3, W, H],
``rawDepths`` [N, W, H] float32 metres (0 unknown; ``depths`` are in-painted and not used),
``scenes`` [1, N] references to strings. ``testNdxs`` of ``splits.mat`` count from 1.

The depth decoding and the mask are checked on genuine frames, the layout of the two MATLAB
files on generated ones only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from metricgold.data.dataset import DatasetError
from metricgold.data.evaluation_sets.base import (
    EvaluationRef,
    EvaluationSet,
    PublishedFile,
    sorted_refs,
    undecodable,
    window_mask,
)
from metricgold.data.evaluation_sets.decoders import decode_mat
from metricgold.data.evaluation_sets.tree import FileTree
from metricgold.data.sample import Frame
from metricgold.geometry import make_intrinsics

LABELED, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
EIGEN_ROWS, EIGEN_COLUMNS = (45, 471), (41, 601)
INTRINSICS = make_intrinsics(518.857901, 519.469611, 325.582449, 253.736166)
"""Of the colour camera, from the data set's toolbox; the same for every frame."""
_BASE = "http://horatio.cs.nyu.edu/mit/silberman"


class NyuV2(EvaluationSet):
    """Indoor, 480x640, Kinect; the Eigen crop is a mask, the picture stays whole."""

    name = "nyuv2"
    licence = "no licence stated; research use with citation"
    homepage = "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"
    citation = "Silberman et al., Indoor Segmentation and Support Inference, ECCV 2012"
    depth_range_m = (1e-3, 10.0)
    expected_frames = 654
    frame_size = (480, 640)

    def remote_files(self) -> list[PublishedFile]:
        """Both MATLAB files."""
        return [
            PublishedFile(
                LABELED,
                (f"{_BASE}/nyu_depth_v2/{LABELED}",),
                expected_bytes=2_972_037_809,
                checksum="md5:520609c519fba3ba5ac58c8fefcc3530",
            ),
            PublishedFile(
                SPLITS,
                (f"{_BASE}/indoor_seg_sup/{SPLITS}",),
                expected_bytes=2_626,
                checksum="md5:08e3c3aea27130ac7c01ffd739a4535f",
            ),
        ]

    def frames(self, raw: Path) -> list[EvaluationRef]:
        """``testNdxs`` of the splits: see ``EvaluationSet``."""
        parts, missing = FileTree(raw).gather(labeled=LABELED, splits=SPLITS)
        if missing:
            raise DatasetError(f"{raw}: {missing[0]} is missing; {self.name} needs it")
        splits = raw / parts["splits"].archive
        try:
            numbers = decode_mat(splits.read_bytes())["testNdxs"].ravel().astype(int)
        except Exception as error:
            raise undecodable(f"{splits}", error) from None
        path = raw / parts["labeled"].archive
        try:
            with h5py.File(path, "r") as file:
                scenes = [_text(file, file["scenes"][0, i - 1]) for i in numbers]
        except Exception as error:
            raise undecodable(f"{path}", error) from None
        return sorted_refs(
            [
                EvaluationRef(f"{scene}/{number:04d}", scene, parts, about=int(number) - 1)
                for scene, number in zip(scenes, numbers, strict=True)
            ]
        )

    def _read(self, raw: Path, ref: EvaluationRef) -> Frame:
        with h5py.File(raw / ref.parts["labeled"].archive, "r") as file:
            rgb = file["images"][ref.about].transpose(2, 1, 0)  # [H, W, 3]
            depth = file["rawDepths"][ref.about].T  # [H, W]
        return self.frame(ref, rgb, depth)

    def frame(
        self, ref: EvaluationRef, rgb: NDArray[np.uint8], depth: NDArray[np.floating]
    ) -> Frame:
        """One frame from its picture [480, 640, 3] and raw depth [480, 640] in metres."""
        eigen = window_mask(depth.shape, EIGEN_ROWS, EIGEN_COLUMNS)
        return self.masked(ref, rgb, depth, INTRINSICS, eigen)


def _text(file: h5py.File, reference: Any) -> str:
    return "".join(map(chr, file[reference][()].ravel()))
