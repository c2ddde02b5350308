"""KITTI, Eigen's test split with the annotated depth of 2017: 697 frames, 652 with ground truth.

Depth is a 16-bit PNG, metres = value / 256, 0 unknown. Picture, depth and K are cut to the
benchmark's 352x1216, bottom rows and centre columns; the mask is a window of that crop.
Only the wanted members are taken out of the zips, about 0.7 GB of more than 100 GB.

Decoding, crop and masks are checked on genuine frames, the list against the official one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metricgold.data.dataset import crop_bottom_centre
from metricgold.data.evaluation_sets.base import (
    EvaluationRef,
    EvaluationSet,
    FrameFiles,
    PublishedFile,
    sorted_refs,
    window_mask,
)
from metricgold.data.evaluation_sets.decoders import decode_png16, decode_rgb
from metricgold.data.evaluation_sets.lists import listed
from metricgold.data.evaluation_sets.tree import FileTree
from metricgold.data.sample import Frame

CROP = (352, 1216)
MaskName = Literal["garg", "eigen"]
MASK_SHARES: dict[MaskName, tuple[float, float, float, float]] = {
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "eigen": (0.3324324, 0.91351351, 0.03594771, 0.96405229),
}
"""First and last row, first and last column, as shares of the crop's height and width."""
DEPTH_SCALE = 256.0
DEPTH_ZIP = "data_depth_annotated.zip"
_BASE = "https://s3.eu-central-1.amazonaws.com/avg-kitti"
_RGB_BYTES, _DEPTH_BYTES, _CALIBRATION_BYTES = 850_000, 160_000, 4_100


class EigenFrame(NamedTuple):
    """One line of Eigen's list; ``folder`` is that of the drive's ground truth, train or val."""

    drive: str
    folder: str
    frame: int
    has_depth: bool

    @property
    def date(self) -> str:
        """Day of the drive, which names its calibration."""
        return self.drive[:10]

    @property
    def rgb(self) -> str:
        """Path of the picture in the drive's zip."""
        return f"{self.date}/{self.drive}/image_02/data/{self.frame:010d}.png"

    @property
    def depth(self) -> str:
        """Path of the ground truth below its folder."""
        return f"{self.drive}/proj_depth/groundtruth/image_02/{self.frame:010d}.png"


def eigen_split() -> list[EigenFrame]:
    """All 697 frames of Eigen's list, sorted by drive and frame."""
    return [
        EigenFrame(drive, folder, int(word.rstrip("-")), not word.endswith("-"))
        for drive, (folder, *words) in listed("kitti_eigen.txt").items()
        for word in words
    ]


class Kitti(EvaluationSet):
    """Driving, left colour camera; ``mask`` is the window that is evaluated.

    Metric papers use ``garg``; Marigold's affine-invariant protocol uses ``eigen``.
    """

    licence = "CC BY-NC-SA 3.0: name the authors, no commercial use, share alike"
    homepage = "https://www.cvlibs.net/datasets/kitti/eval_depth_all.php"
    citation = "Uhrig et al., Sparsity Invariant CNNs, 3DV 2017; split of Eigen et al., NIPS 2014"
    depth_range_m = (1e-3, 80.0)
    expected_frames = 652
    frame_size = CROP

    def __init__(self, mask: MaskName) -> None:
        self.name = f"kitti_{mask}"
        self._mask = mask

    def remote_files(self) -> list[PublishedFile]:
        """The wanted members of the drives and of the depth, and the days' calibrations."""
        wanted = [line for line in eigen_split() if line.has_depth]
        files = [
            _published(f"raw_data/{date}_calib.zip", [_calibration(date)], _CALIBRATION_BYTES)
            for date in sorted({line.date for line in wanted})
        ]
        for drive in sorted({line.drive for line in wanted}):
            pictures = [line.rgb for line in wanted if line.drive == drive]
            path = f"raw_data/{drive.removesuffix('_sync')}/{drive}.zip"
            files.append(_published(path, pictures, _RGB_BYTES))
        depths = [f"{line.folder}/{line.depth}" for line in wanted]
        return [*files, _published(DEPTH_ZIP, depths, _DEPTH_BYTES)]

    def frames(self, raw: Path) -> list[EvaluationRef]:
        """The 652 frames with ground truth: see ``EvaluationSet``."""
        tree, refs = FileTree(raw), []
        for line in eigen_split():
            if line.has_depth:
                parts, missing = tree.gather(
                    rgb=line.rgb, depth=line.depth, calibration=_calibration(line.date)
                )
                key = f"{line.drive}/{line.frame:010d}"
                refs.append(EvaluationRef(key, line.drive, parts, missing))
        return sorted_refs(refs)

    def _read(self, raw: Path, ref: EvaluationRef) -> Frame:
        files = FrameFiles(raw, ref)
        return self.frame(
            ref,
            files.take("rgb", decode_rgb),
            files.take("depth", decode_png16),
            files.take("calibration", parse_calibration),
        )

    def frame(
        self,
        ref: EvaluationRef,
        rgb: NDArray[np.uint8],
        values: NDArray[np.uint16],
        intrinsics: NDArray[np.floating],
    ) -> Frame:
        """The cropped frame from the whole picture [H, W, 3], 16-bit depth [H, W] and K."""
        whole = self.masked(ref, rgb, values / DEPTH_SCALE, intrinsics)
        cut = crop_bottom_centre(whole, CROP)
        window = evaluation_window(cut.depth.shape, self._mask)
        return self.masked(ref, cut.rgb, cut.depth, cut.intrinsics, window)


def evaluation_window(shape: tuple[int, ...], mask: MaskName) -> NDArray[np.bool_]:
    """The Garg or the Eigen window of a crop [H, W]; edges are rounded down."""
    top, bottom, left, right = MASK_SHARES[mask]
    height, width = shape
    rows, columns = (top * height, bottom * height), (left * width, right * width)
    return window_mask(shape, (int(rows[0]), int(rows[1])), (int(columns[0]), int(columns[1])))


def parse_calibration(data: bytes) -> NDArray[np.float64]:
    """K [3, 3] of the left colour camera: ``P_rect_02`` of ``calib_cam_to_cam.txt``."""
    for line in data.decode("ascii").splitlines():
        if line.startswith("P_rect_02:"):
            numbers = [float(word) for word in line.split()[1:]]
            return np.array(numbers, np.float64).reshape(3, 4)[:, :3]
    raise ValueError("no line P_rect_02")


def _calibration(date: str) -> str:
    return f"{date}/calib_cam_to_cam.txt"


def _published(path: str, members: list[str], bytes_each: int) -> PublishedFile:
    expected = bytes_each * len(members)
    return PublishedFile(path, (f"{_BASE}/{path}",), tuple(members), expected)
