"""ETH3D, high-resolution multi-view, the 13 training scenes: 454 frames of 4032x6048.

Depth is bare float32 in metres, infinity where unknown, in the pixels of the *distorted*
pictures (``dslr_images``), so these are read and K is that of the distorted camera; its lens
distortion (THIN_PRISM_FISHEYE) is not expressed by K. COLMAP puts a pixel's centre at .5, so
.5 is taken off the principal point.

Checked on generated files only; the list is checked against the official one.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metricgold.data.evaluation_sets.base import (
    EvaluationRef,
    EvaluationSet,
    FrameFiles,
    PublishedFile,
    sorted_refs,
)
from metricgold.data.evaluation_sets.decoders import decode_raw_float, decode_rgb
from metricgold.data.evaluation_sets.lists import listed
from metricgold.data.evaluation_sets.tree import FileTree
from metricgold.data.sample import Frame
from metricgold.geometry import make_intrinsics

_PICTURE_BYTES, _FLOAT_BYTES = 10_000_000, 4 * 4032 * 6048
_TWO_FOCALS = {"PINHOLE", "OPENCV", "OPENCV_FISHEYE", "FULL_OPENCV", "THIN_PRISM_FISHEYE"}


class Eth3d(EvaluationSet):
    """Indoor and outdoor, laser scans seen from a single-lens reflex camera."""

    name = "eth3d"
    licence = "CC BY-NC-SA 4.0: name the authors, no commercial use, share alike"
    homepage = "https://www.eth3d.net/datasets"
    citation = "Schöps et al., A Multi-View Stereo Benchmark, CVPR 2017"
    depth_range_m = (1e-2, 50.0)
    expected_frames = 454
    frame_size = (4032, 6048)

    def remote_files(self) -> list[PublishedFile]:
        """Pictures with calibration, and depth, one 7-Zip archive a scene each."""
        files = []
        for scene, numbers in listed("eth3d.txt").items():
            for kind, size in (("jpg", _PICTURE_BYTES), ("depth", _FLOAT_BYTES)):
                path = f"{scene}_dslr_{kind}.7z"
                url = f"https://www.eth3d.net/data/{path}"
                files.append(
                    PublishedFile(path, (url,), None, None, unpacked_bytes=size * len(numbers))
                )
        return files

    def frames(self, raw: Path) -> list[EvaluationRef]:
        """The official 454 frames: see ``EvaluationSet``."""
        tree, refs = FileTree(raw), []
        for scene, numbers in listed("eth3d.txt").items():
            for number in numbers:
                picture = f"dslr_images/DSC_{number}.JPG"
                parts, missing = tree.gather(
                    rgb=f"{scene}/images/{picture}",
                    depth=f"{scene}/ground_truth_depth/{picture}",
                    cameras=f"{scene}/dslr_calibration_jpg/cameras.txt",
                    images=f"{scene}/dslr_calibration_jpg/images.txt",
                )
                key = f"{scene}/DSC_{number}"
                refs.append(EvaluationRef(key, scene, parts, missing, about=picture))
        return sorted_refs(refs)

    def _read(self, raw: Path, ref: EvaluationRef) -> Frame:
        files = FrameFiles(raw, ref)
        rgb = files.take("rgb", decode_rgb)
        depth = files.take("depth", partial(decode_raw_float, shape=rgb.shape[:2]))
        camera = files.take("images", partial(parse_camera_of, picture=ref.about))
        size = (rgb.shape[0], rgb.shape[1])
        intrinsics = files.take("cameras", partial(parse_camera, camera=camera, size=size))
        return self.masked(ref, rgb, depth, intrinsics)


def parse_camera_of(data: bytes, picture: str) -> str:
    """Number of the camera that took ``picture``, from COLMAP's ``images.txt``."""
    for line in data.decode("utf-8").splitlines():
        fields = line.split()
        if len(fields) == 10 and fields[9] == picture and not line.startswith("#"):
            return fields[8]
    raise ValueError(f"no line for {picture}")


def parse_camera(data: bytes, camera: str, size: tuple[int, int]) -> NDArray[np.floating]:
    """K [3, 3] of one camera of COLMAP's ``cameras.txt``, pixel centres at integers.

    Raises:
        ValueError: there is no such camera, it is of another model, or not of ``size`` (H, W).
    """
    for line in data.decode("utf-8").splitlines():
        fields = line.split()
        if line.startswith("#") or not fields or fields[0] != camera:
            continue
        width, height = int(fields[2]), int(fields[3])
        if fields[1] not in _TWO_FOCALS:
            raise ValueError(f"camera {camera} is of the unexpected model {fields[1]}")
        if (height, width) != size:
            raise ValueError(f"camera {camera} is {height}x{width}, the picture {size}")
        focal_x, focal_y, centre_x, centre_y = (float(word) for word in fields[4:8])
        return make_intrinsics(focal_x, focal_y, centre_x - 0.5, centre_y - 0.5)
    raise ValueError(f"no camera {camera}")
