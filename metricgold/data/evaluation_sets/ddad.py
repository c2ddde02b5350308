"""DDAD, the front camera of the 50 validation scenes: 3,950 frames of 1216x1936.

Read without its devkit, from the files of the official ``DDAD.tar`` in TRI's DGP layout:
``ddad.json`` (``scene_splits["1"].filenames``), ``{scene}/scene_*.json`` (``samples`` with
``datum_keys`` and ``calibration_key``; ``data`` with file names and poses),
``{scene}/calibration/{key}.json`` (``names``, ``intrinsics``), ``rgb/CAMERA_01/*.png`` and
``point_cloud/LIDAR/*.npz`` (``data`` [N, 4+] or with fields X, Y, Z).

Points go from the scanner's pose to the world and into the camera's pose; pixel coordinates
are rounded down, as DGP does. Of several points in a pixel the nearest counts (DGP: the last).

Checked on files generated after DGP's own test scene only.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metricgold.data.archives import read_part
from metricgold.data.dataset import DatasetError
from metricgold.data.evaluation_sets.base import (
    EvaluationRef,
    EvaluationSet,
    FrameFiles,
    sorted_refs,
    undecodable,
)
from metricgold.data.evaluation_sets.decoders import decode_npz, decode_rgb
from metricgold.data.evaluation_sets.lidar import depth_picture, move, named_pose
from metricgold.data.evaluation_sets.tree import FileTree
from metricgold.data.sample import Frame
from metricgold.geometry import make_intrinsics

INDEX = "ddad.json"
VALIDATION = "1"
CAMERA, SCANNER = "camera_01", "lidar"


class _Poses(NamedTuple):
    camera: dict[str, Any]
    scanner: dict[str, Any]


class Ddad(EvaluationSet):
    """Driving, long range."""

    name = "ddad"
    licence = "CC BY-NC-SA 4.0: name the authors, no commercial use, share alike"
    homepage = "https://github.com/TRI-ML/DDAD"
    citation = "Guizilini et al., 3D Packing for Self-Supervised Depth Estimation, CVPR 2020"
    depth_range_m = (0.05, 120.0)
    expected_frames = 3950
    frame_size = (1216, 1936)
    supply = (
        "download and unpack the official DDAD.tar (257 GB, see the homepage) and name the folder "
        "that holds ddad.json"
    )

    def frames(self, raw: Path) -> list[EvaluationRef]:
        """The samples of the validation scenes: see ``EvaluationSet``."""
        tree, refs = FileTree(raw), []
        index = _read_json(tree, INDEX)
        if index is None:
            raise DatasetError(f"{raw}: {INDEX} is missing; {self.supply}")
        try:
            for path in sorted(index["scene_splits"][VALIDATION]["filenames"]):
                folder = PurePosixPath(path).parent.as_posix()
                refs += _scene_refs(tree, folder, _read_json(tree, path), path)
        except (KeyError, TypeError, IndexError) as error:
            raise undecodable(f"{raw}: {INDEX} or a scene's index", error) from None
        return sorted_refs(refs)

    def _read(self, raw: Path, ref: EvaluationRef) -> Frame:
        files = FrameFiles(raw, ref)
        rgb = files.take("rgb", decode_rgb)
        points = files.take("points", decode_points)
        intrinsics = files.take("calibration", parse_calibration)
        world = move(points, named_pose(ref.about.scanner))
        seen = move(world, np.linalg.inv(named_pose(ref.about.camera)))
        depth = depth_picture(seen, intrinsics, (rgb.shape[0], rgb.shape[1]), "down")
        return self.masked(ref, rgb, depth, intrinsics)


def _scene_refs(
    tree: FileTree, folder: str, scene: dict[str, Any] | None, path: str
) -> list[EvaluationRef]:
    """The frames of one scene; a scene whose index is missing is one frame that is missing."""
    name = PurePosixPath(folder).name
    if scene is None:
        return [EvaluationRef(f"{name}/000000", name, {}, (path,))]
    data = {datum["key"]: datum for datum in scene["data"]}
    refs = []
    for number, sample in enumerate(scene["samples"]):
        named = {
            data[key]["id"]["name"].lower(): data[key]["datum"]
            for key in sample["datum_keys"]
            if key in data
        }
        camera, scanner = named[CAMERA]["image"], named[SCANNER]["point_cloud"]
        parts, missing = tree.gather(
            rgb=f"{folder}/{camera['filename']}",
            points=f"{folder}/{scanner['filename']}",
            calibration=f"{folder}/calibration/{sample['calibration_key']}.json",
        )
        poses = _Poses(camera["pose"], scanner["pose"])
        refs.append(EvaluationRef(f"{name}/{number:06d}", name, parts, missing, poses))
    return refs


def _read_json(tree: FileTree, path: str) -> Any:
    """A JSON file of the tree; None where it is missing."""
    part = tree.find(path)
    if part is None:
        return None
    try:
        return json.loads(read_part(tree.root, part))
    except ValueError as error:
        raise undecodable(f"{tree.root}: {path}", error) from None


def decode_points(data: bytes) -> NDArray[np.float64]:
    """Points [N, 3] in metres, in the scanner's frame."""
    values = decode_npz(data)
    if values.dtype.fields is not None:
        return np.stack([values[name].ravel() for name in "XYZ"], axis=1).astype(np.float64)
    if values.ndim != 2 or values.shape[1] < 3:
        raise ValueError(f"points [N, 3 or more] are expected, got {values.shape}")
    return values[:, :3].astype(np.float64)


def parse_calibration(data: bytes) -> NDArray[np.floating]:
    """K [3, 3] of the front camera."""
    calibration = json.loads(data)
    number = [name.lower() for name in calibration["names"]].index(CAMERA)
    camera = calibration["intrinsics"][number]
    intrinsics = make_intrinsics(camera["fx"], camera["fy"], camera["cx"], camera["cy"])
    intrinsics[0, 1] = camera.get("skew", 0.0)
    return intrinsics
