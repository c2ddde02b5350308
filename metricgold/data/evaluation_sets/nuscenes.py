"""nuScenes, the front camera's key frames of the 150 validation scenes: 6,019 of 900x1600.

Read without its devkit, from the official tables ``v1.0-trainval/*.json`` (``scene``,
``sample``, ``sample_data``, ``calibrated_sensor``, ``ego_pose``, ``sensor``; ``v1.0-mini`` is
taken where they are not there) and the files that these name, ``samples/CAM_FRONT/*.jpg`` and
``samples/LIDAR_TOP/*.pcd.bin`` (float32 x, y, z, intensity, ring). The tables take several GB
of memory, as they do in the devkit.

Points go from the scanner over the vehicle at the scan's time and the world into the vehicle
at the picture's time and the camera; those nearer than 1 m are left out, as in the devkit.
Pixel coordinates are rounded to the nearest, the nearest point of a pixel counts.

Checked on generated files only; the list of scenes is the devkit's.
"""

from __future__ import annotations

import json
from pathlib import Path
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
from metricgold.data.evaluation_sets.decoders import decode_rgb
from metricgold.data.evaluation_sets.lidar import depth_picture, move, pose_matrix
from metricgold.data.evaluation_sets.lists import listed
from metricgold.data.evaluation_sets.tree import FileTree
from metricgold.data.sample import Frame

VERSIONS = ("v1.0-trainval", "v1.0-mini")
CAMERA, SCANNER = "CAM_FRONT", "LIDAR_TOP"
LEAST_DEPTH_M = 1.0
_Rows = dict[str, dict[str, Any]]


class _Geometry(NamedTuple):
    """K [3, 3], and the motions [4, 4] of scanner and camera: into the vehicle, into the world."""

    intrinsics: NDArray[np.float64]
    scanner_to_vehicle: NDArray[np.floating]
    vehicle_to_world_at_scan: NDArray[np.floating]
    camera_to_vehicle: NDArray[np.floating]
    vehicle_to_world_at_picture: NDArray[np.floating]


class NuScenes(EvaluationSet):
    """Driving in Boston and Singapore, day and night."""

    name = "nuscenes"
    licence = "CC BY-NC-SA 4.0 and the nuScenes Terms of Use: registration, no commercial use"
    homepage = "https://www.nuscenes.org/nuscenes"
    citation = "Caesar et al., nuScenes: A Multimodal Dataset for Autonomous Driving, CVPR 2020"
    depth_range_m = (LEAST_DEPTH_M, 80.0)
    expected_frames = 6019
    frame_size = (900, 1600)
    lists_all = False
    supply = (
        "register at nuscenes.org, download the trainval metadata and its key-frame blobs, unpack "
        "them into one folder and name it"
    )

    def frames(self, raw: Path) -> list[EvaluationRef]:
        """The key frames of the validation scenes: see ``EvaluationSet``."""
        tree = FileTree(raw)
        tables = _Tables(tree, self.supply)
        scenes = {f"scene-{number}" for number in listed("nuscenes_val.txt")["val"]}
        refs = []
        for token, sensors in tables.key_frames().items():
            sample = tables.sample[token]
            scene = tables.scene[sample["scene_token"]]["name"]
            if scene not in scenes or CAMERA not in sensors:
                continue
            picture, scan = sensors[CAMERA], sensors.get(SCANNER)
            files = {"rgb": picture["filename"]} | ({"points": scan["filename"]} if scan else {})
            parts, missing = tree.gather(**files)
            geometry = tables.geometry(picture, scan) if scan else None
            missing = missing if scan else (*missing, f"the {SCANNER} scan of sample {token}")
            key = f"{scene}/{sample['timestamp']}"
            refs.append(EvaluationRef(key, scene, parts, missing, geometry))
        return sorted_refs(refs)

    def _read(self, raw: Path, ref: EvaluationRef) -> Frame:
        files, geometry = FrameFiles(raw, ref), ref.about
        rgb, points = files.take("rgb", decode_rgb), files.take("points", decode_points)
        world = move(move(points, geometry.scanner_to_vehicle), geometry.vehicle_to_world_at_scan)
        vehicle = move(world, np.linalg.inv(geometry.vehicle_to_world_at_picture))
        seen = move(vehicle, np.linalg.inv(geometry.camera_to_vehicle))
        size = (rgb.shape[0], rgb.shape[1])
        depth = depth_picture(seen, geometry.intrinsics, size, "nearest", LEAST_DEPTH_M)
        return self.masked(ref, rgb, depth, geometry.intrinsics)


class _Tables:
    """The tables that are needed, by token."""

    def __init__(self, tree: FileTree, supply: str) -> None:
        self._tree, self._supply = tree, supply
        self._version = next((v for v in VERSIONS if tree.find(f"{v}/sample.json")), VERSIONS[0])
        self.scene, self.sample = self._load("scene"), self._load("sample")
        self._calibration, self._pose = self._load("calibrated_sensor"), self._load("ego_pose")
        self._sensor, self._data = self._load("sensor"), self._load("sample_data")

    def _load(self, table: str) -> _Rows:
        path = f"{self._version}/{table}.json"
        part = self._tree.find(path)
        if part is None:
            raise DatasetError(f"{self._tree.root}: {path} is missing; {self._supply}")
        try:
            return {row["token"]: row for row in json.loads(read_part(self._tree.root, part))}
        except (ValueError, KeyError, TypeError) as error:
            raise undecodable(f"{self._tree.root}: {path}", error) from None

    def key_frames(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Sample token to channel to its row of ``sample_data``."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for row in self._data.values():
            sensor = self._sensor[self._calibration[row["calibrated_sensor_token"]]["sensor_token"]]
            if row["is_key_frame"] and sensor["channel"] in (CAMERA, SCANNER):
                found.setdefault(row["sample_token"], {})[sensor["channel"]] = row
        return found

    def geometry(self, picture: dict[str, Any], scan: dict[str, Any]) -> _Geometry:
        """What takes the scan's points into the picture."""
        camera = self._calibration[picture["calibrated_sensor_token"]]
        scanner = self._calibration[scan["calibrated_sensor_token"]]
        return _Geometry(
            np.array(camera["camera_intrinsic"], np.float64),
            _pose(scanner),
            _pose(self._pose[scan["ego_pose_token"]]),
            _pose(camera),
            _pose(self._pose[picture["ego_pose_token"]]),
        )


def _pose(row: dict[str, Any]) -> NDArray[np.floating]:
    return pose_matrix(row["rotation"], row["translation"])


def decode_points(data: bytes) -> NDArray[np.float64]:
    """Points [N, 3] in metres of a ``.pcd.bin``, in the scanner's frame."""
    if len(data) % 20:
        raise ValueError(f"{len(data)} bytes are no whole number of points of five floats")
    return np.frombuffer(data, "<f4").reshape(-1, 5)[:, :3].astype(np.float64)
