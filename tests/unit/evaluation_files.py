"""Evaluation sets made on the spot, byte for byte laid out as their publishers do, but small."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

Files = dict[str, bytes]


@dataclass(frozen=True)
class Truth:
    """What went in: rgb [H, W, 3], depth [H, W] metres (0 or infinity: unknown), K [3, 3]."""

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float64]
    intrinsics: NDArray[np.float64]


def made(height: int, width: int, low: float, high: float, seed: int, fx: float = 500.0) -> Truth:
    """Noise for a picture, log-uniform depth with a fifth unknown (0), an uncentred camera."""
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    depth = np.exp(rng.uniform(np.log(low), np.log(high), (height, width)))
    depth = depth.astype(np.float32).astype(np.float64)
    depth[rng.random((height, width)) < 0.2] = 0
    camera = np.array([[fx, 0, width / 2 + 3.25], [0, fx + 2, height / 2 - 1.5], [0, 0, 1.0]])
    return Truth(rgb, depth, camera)


def png(values: NDArray[np.generic]) -> bytes:
    """A PNG, 8 or 16 bit."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def jpeg(values: NDArray[np.uint8]) -> bytes:
    """A JPEG; :func:`opened` tells what a reader sees."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def opened(data: bytes) -> NDArray[np.uint8]:
    """A picture's pixels."""
    return np.asarray(Image.open(io.BytesIO(data)))


def npy(values: NDArray[np.generic]) -> bytes:
    """An .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def text_matrix(matrix: NDArray[np.floating]) -> bytes:
    """Rows of numbers."""
    return "\n".join(" ".join(f"{v:.10g}" for v in row) for row in matrix).encode()


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Each path below ``folder``."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    """A deflated zip."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar_gz(path: Path, files: Mapping[str, bytes]) -> Path:
    """A gzipped tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


# --- NYU Depth v2 ---------------------------------------------------------------------------


def write_nyuv2(
    folder: Path, scenes: Sequence[str], test: Sequence[int], frames: Mapping[int, Truth]
) -> None:
    """``scenes`` of all frames in order; ``test`` and ``frames`` count from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    size = len(scenes), 640, 480
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w") as file:
        options = {"chunks": (1, 640, 480), "compression": "gzip", "compression_opts": 1}
        images = file.create_dataset(
            "images", (size[0], 3, 640, 480), "u1", **{**options, "chunks": (1, 3, 640, 480)}
        )
        depths = file.create_dataset("rawDepths", size, "f4", **options)
        file.create_dataset("depths", size, "f4", **options)
        references = np.empty((1, len(scenes)), h5py.ref_dtype)
        for i, scene in enumerate(scenes):
            text = np.array([[ord(letter)] for letter in scene], np.uint16)
            references[0, i] = file.create_dataset(f"#refs#/{i:04d}", data=text).ref
        file.create_dataset("scenes", data=references)
        for number, truth in frames.items():
            images[number - 1] = truth.rgb.transpose(2, 1, 0)
            depths[number - 1] = truth.depth.T.astype(np.float32)
    train = [n for n in range(1, len(scenes) + 1) if n not in test]
    splits = {"testNdxs": np.array([test]).T, "trainNdxs": np.array([train]).T}
    scipy.io.savemat(folder / "splits.mat", splits)


# --- KITTI ----------------------------------------------------------------------------------


def kitti_files(drive: str, part: str, frame: int, truth: Truth) -> tuple[Files, Files, Files]:
    """Members of the drive's zip, of data_depth_annotated.zip and of the day's calibration."""
    name, date = f"image_02/data/{frame:010d}.png", drive[:10]
    pictures = {f"{date}/{drive}/{name}": png(truth.rgb)}
    values = np.rint(truth.depth * 256).astype(np.uint16)
    depth = {f"{part}/{drive}/proj_depth/groundtruth/image_02/{frame:010d}.png": png(values)}
    k = truth.intrinsics
    row = [k[0, 0], 0, k[0, 2], 44.857, 0, k[1, 1], k[1, 2], 0.2163, 0, 0, 1, 0.0027]
    lines = [
        "calib_time: 09-Jan-2012 13:57:47",
        "P_rect_00: " + " ".join(["1.0"] * 12),
        "S_rect_02: 1.242000e+03 3.750000e+02",
        "P_rect_02: " + " ".join(f"{value:.10e}" for value in row),
        "P_rect_03: " + " ".join(["2.0"] * 12),
    ]
    return pictures, depth, {f"{date}/calib_cam_to_cam.txt": "\n".join(lines).encode()}


# --- ETH3D ----------------------------------------------------------------------------------


def eth3d_files(scene: str, numbers: Sequence[str], truths: Sequence[Truth]) -> Files:
    """Pictures, depth and calibration of one scene, cameras numbered from 3."""
    files: Files = {}
    cameras, images = ["# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"], ["# IMAGE_ID, QW, …"]
    for i, (number, truth) in enumerate(zip(numbers, truths, strict=True)):
        picture = f"dslr_images/DSC_{number}.JPG"
        height, width = truth.depth.shape
        files[f"{scene}/images/{picture}"] = jpeg(truth.rgb)
        depth = np.where(truth.depth > 0, truth.depth, np.inf).astype("<f4")
        files[f"{scene}/ground_truth_depth/{picture}"] = depth.tobytes()
        k = truth.intrinsics
        focal = f"{k[0, 0]:.9g} {k[1, 1]:.9g} {k[0, 2]:.9g} {k[1, 2]:.9g}"
        cameras.append(f"{i + 3} THIN_PRISM_FISHEYE {width} {height} {focal} .2 .1 0 0 .01 .01 0 0")
        images += [f"{i} 1 0 0 0 .1 .2 .3 {i + 3} {picture}", "10.5 20.5 -1 11.5 21.5 7"]
    folder = f"{scene}/dslr_calibration_jpg"
    files[f"{folder}/cameras.txt"] = "\n".join(cameras).encode()
    files[f"{folder}/images.txt"] = "\n".join(images).encode()
    return files


# --- DIODE ----------------------------------------------------------------------------------


def diode_files(place: str, number: int, truth: Truth, mask: NDArray[np.bool_]) -> Files:
    """One frame below ``val``; the mask as float, every other as double."""
    name = f"00019_00183_{place}_{number:03d}_010"
    base = f"val/{place}/scene_00019/scan_00183/{name}"
    return {
        f"{base}.png": png(truth.rgb),
        f"{base}_depth.npy": npy(truth.depth.astype(np.float32)[..., None]),
        f"{base}_depth_mask.npy": npy(mask.astype(np.float64 if number % 2 else np.float32)),
    }


# --- iBims-1 --------------------------------------------------------------------------------


def ibims1_files(
    name: str, truth: Truth, invalid: NDArray[np.bool_], transparent: NDArray[np.bool_]
) -> Files:
    """One frame of the raw archive; masks are 1 where a pixel counts."""
    base, k = "ibims1_core_raw", truth.intrinsics
    values = np.rint(truth.depth * 65535 / 50).astype(np.uint16)
    return {
        f"{base}/rgb/{name}.png": png(truth.rgb),
        f"{base}/depth/{name}.png": png(values),
        f"{base}/mask_invalid/{name}.png": png((~invalid).astype(np.uint8)),
        f"{base}/mask_transp/{name}.png": png((~transparent).astype(np.uint8)),
        f"{base}/calib/{name}.txt": (
            f"{k[0, 0]:.10g},{k[1, 1]:.10g},{k[0, 2]:.10g},{k[1, 2]:.10g}\n".encode()
        ),
    }


def ibims1_mat(truth: Truth, invalid: NDArray[np.bool_], transparent: NDArray[np.bool_]) -> bytes:
    """The same frame as a MATLAB file."""
    buffer = io.BytesIO()
    data = {
        "rgb": truth.rgb,
        "depth": truth.depth,
        "calib": truth.intrinsics.T,
        "mask_invalid": (~invalid).astype(np.uint8),
        "mask_transp": (~transparent).astype(np.uint8),
    }
    scipy.io.savemat(buffer, {"data": data})
    return buffer.getvalue()


# --- SUN RGB-D ------------------------------------------------------------------------------


def sun_rgbd_files(folder: str, truth: Truth) -> Files:
    """One frame's folder; a second, in-painted depth map must not be read."""
    millimetres = np.rint(truth.depth * 1000).astype(np.uint16)
    rotated = (millimetres << np.uint16(3)) | (millimetres >> np.uint16(13))
    base = f"SUNRGBD/{folder}"
    return {
        f"{base}/image/0000103.jpg": jpeg(truth.rgb),
        f"{base}/depth/0000103.png": png(rotated),
        f"{base}/depth_bfx/0000103.png": png(rotated + np.uint16(8)),
        f"{base}/intrinsics.txt": text_matrix(truth.intrinsics),
        f"{base}/scene.txt": b"bedroom",
    }


def sun_rgbd_split(folders: Sequence[str]) -> Files:
    """``allsplit.mat``: a cell array of paths on the authors' machine."""
    cells = np.empty((1, len(folders)), object)
    for i, folder in enumerate(folders):
        cells[0, i] = f"/n/fs/sun3d/data/SUNRGBD/{folder}"
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"alltest": cells, "alltrain": cells[:, :0]})
    return {"SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat": buffer.getvalue()}


# --- Sintel ---------------------------------------------------------------------------------


def sintel_files(scene: str, frame: int, truth: Truth) -> tuple[Files, Files]:
    """Members of the picture zip and of the depth zip."""
    name = f"{scene}/frame_{frame:04d}"
    height, width = truth.depth.shape
    tag = struct.pack("<f", 202021.25)
    depth = tag + struct.pack("<ii", width, height) + truth.depth.astype("<f4").tobytes()
    extrinsics = np.arange(12.0).reshape(3, 4)
    camera = tag + truth.intrinsics.astype("<f8").tobytes() + extrinsics.astype("<f8").tobytes()
    pictures = {
        f"training/final/{name}.png": png(truth.rgb),
        f"training/clean/{name}.png": png(255 - truth.rgb),
    }
    return pictures, {
        f"training/depth/{name}.dpt": depth,
        f"training/depth_viz/{name}.png": png(truth.rgb[..., 0]),
        f"training/camdata_left/{name}.cam": camera,
    }


# --- Middlebury 2014 ------------------------------------------------------------------------


def middlebury_files(scene: str, truth: Truth, baseline_mm: float, doffs: float) -> Files:
    """One scene's folder; unknown depth is infinite disparity."""
    k = truth.intrinsics
    known = truth.depth > 0
    disparity = baseline_mm / 1000 * k[0, 0] / np.where(known, truth.depth, 1) - doffs
    values = np.where(known, disparity, np.inf).astype("<f4")
    height, width = values.shape
    calibration = (
        f"cam0=[{k[0, 0]} 0 {k[0, 2]}; 0 {k[1, 1]} {k[1, 2]}; 0 0 1]\n"
        f"cam1=[{k[0, 0]} 0 {k[0, 2] + doffs}; 0 {k[1, 1]} {k[1, 2]}; 0 0 1]\n"
        f"doffs={doffs}\nbaseline={baseline_mm}\nwidth={width}\nheight={height}\nndisp=280\n"
    )
    return {
        f"{scene}-perfect/im0.png": png(truth.rgb),
        f"{scene}-perfect/im1.png": png(255 - truth.rgb),
        f"{scene}-perfect/disp0.pfm": f"Pf\n{width} {height}\n-0.003922\n".encode()
        + values[::-1].tobytes(),
        f"{scene}-perfect/calib.txt": calibration.encode(),
    }


# --- ScanNet --------------------------------------------------------------------------------


def scannet_files(scene: str, frame: str, truth: Truth, picture: NDArray[np.uint8]) -> Files:
    """One frame as SensReader exports it, with a picture of another size."""
    matrix = np.eye(4)
    matrix[:3, :3] = truth.intrinsics
    return {
        f"{scene}/color/{frame}.jpg": jpeg(picture),
        f"{scene}/depth/{frame}.png": png(np.rint(truth.depth * 1000).astype(np.uint16)),
        f"{scene}/intrinsic/intrinsic_depth.txt": text_matrix(matrix),
        f"{scene}/intrinsic/intrinsic_color.txt": text_matrix(2 * matrix),
    }


# --- LiDAR sets -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Motion:
    """A rigid motion: quaternion (w, x, y, z) and translation in metres."""

    rotation: tuple[float, ...]
    translation: tuple[float, ...]

    @classmethod
    def random(cls, rng: np.random.Generator) -> Motion:
        """Any rotation, metres of translation."""
        x, y, z, w = Rotation.random(random_state=int(rng.integers(1 << 30))).as_quat()
        return cls((w, x, y, z), tuple(rng.uniform(-5, 5, 3)))

    def __call__(self, points: NDArray[np.floating]) -> NDArray[np.floating]:
        w, x, y, z = self.rotation
        return Rotation.from_quat([x, y, z, w]).apply(points) + self.translation

    def undone(self, points: NDArray[np.floating]) -> NDArray[np.floating]:
        """The inverse."""
        w, x, y, z = self.rotation
        return Rotation.from_quat([x, y, z, w]).inv().apply(points - np.array(self.translation))

    def dgp(self) -> dict[str, dict[str, float]]:
        """As DGP's files have it."""
        names = ("qw", "qx", "qy", "qz")
        return {
            "rotation": dict(zip(names, self.rotation, strict=True)),
            "translation": dict(zip("xyz", self.translation, strict=True)),
        }

    def nuscenes(self) -> dict[str, list[float]]:
        """As nuScenes' tables have it."""
        return {"rotation": list(self.rotation), "translation": list(self.translation)}


def seen_points(truth: Truth, offset: tuple[float, float]) -> NDArray[np.float64]:
    """Points [N, 3] in the camera's frame, one for each known pixel, ``offset`` px off it."""
    rows, columns = np.nonzero(truth.depth)
    z = truth.depth[rows, columns]
    k = truth.intrinsics
    x = (columns + offset[0] - k[0, 2]) / k[0, 0] * z
    y = (rows + offset[1] - k[1, 2]) / k[1, 1] * z
    return np.stack([x, y, z], axis=1)


def ddad_files(
    scene: str, truths: Sequence[Truth], points: Sequence[NDArray[np.floating]], seed: int
) -> Files:
    """One validation scene in DGP's layout; ``points`` are in the camera's frame."""
    rng = np.random.default_rng(seed)
    files: Files = {}
    data, samples = [], []
    for i, (truth, cloud) in enumerate(zip(truths, points, strict=True)):
        camera, scanner = Motion.random(rng), Motion.random(rng)
        in_scanner = scanner.undone(camera(cloud))
        values = np.column_stack([in_scanner, np.ones(len(cloud))])
        buffer = io.BytesIO()
        np.savez_compressed(buffer, data=values)
        stamp = f"1562179582473{i:04d}"
        picture, scan = f"rgb/CAMERA_01/{stamp}.png", f"point_cloud/LIDAR/{stamp}.npz"
        files |= {f"{scene}/{picture}": png(truth.rgb), f"{scene}/{scan}": buffer.getvalue()}
        for name, datum in (
            ("LIDAR", {"point_cloud": {"filename": scan, "pose": scanner.dgp()}}),
            ("CAMERA_01", {"image": {"filename": picture, "pose": camera.dgp()}}),
            ("CAMERA_05", {"image": {"filename": "rgb/CAMERA_05/x.png", "pose": {}}}),
        ):
            data.append({"datum": datum, "id": {"name": name}, "key": f"{name}{i}"})
        keys = [f"{name}{i}" for name in ("LIDAR", "CAMERA_01", "CAMERA_05")]
        samples.append({"calibration_key": "c0e1", "datum_keys": keys, "id": {"index": str(i)}})
    k = truths[0].intrinsics
    nothing = {"cx": 0.0, "cy": 0.0, "fx": 0.0, "fy": 0.0, "skew": 0.0}
    front = {"cx": k[0, 2], "cy": k[1, 2], "fx": k[0, 0], "fy": k[1, 1], "skew": 0.0}
    still = {"rotation": {}, "translation": {}}
    calibration = {
        "names": ["LIDAR", "CAMERA_05", "CAMERA_01"],
        "intrinsics": [nothing, nothing, front],
        "extrinsics": [still] * 3,
    }
    files[f"{scene}/calibration/c0e1.json"] = json.dumps(calibration).encode()
    files[f"{scene}/scene_1f5a.json"] = json.dumps({"data": data, "samples": samples}).encode()
    return files


def ddad_index(train: Sequence[str], validation: Sequence[str]) -> Files:
    """``ddad.json``."""
    splits = {
        key: {"filenames": [f"{scene}/scene_1f5a.json" for scene in scenes]}
        for key, scenes in (("0", train), ("1", validation))
    }
    return {"ddad.json": json.dumps({"metadata": {}, "scene_splits": splits}).encode()}


def nuscenes_files(
    scenes: Sequence[str], truth: Truth, points: NDArray[np.floating], seed: int
) -> Files:
    """One sample a scene, a key frame and a sweep of each sensor; points in the camera's frame."""
    rng = np.random.default_rng(seed)
    tables: dict[str, list[dict[str, object]]] = {
        name: []
        for name in ("scene", "sample", "sample_data", "calibrated_sensor", "ego_pose", "sensor")
    }
    channels = ("CAM_FRONT", "CAM_BACK", "LIDAR_TOP")
    tables["sensor"] = [{"token": f"s{c}", "channel": c} for c in channels]
    files: Files = {}
    for i, scene in enumerate(scenes):
        tables["scene"].append({"token": f"scene{i}", "name": scene})
        tables["sample"].append(
            {"token": f"sample{i}", "scene_token": f"scene{i}", "timestamp": 1532402927647951 + i}
        )
        mounts = {channel: Motion.random(rng) for channel in channels}
        vehicles = {channel: Motion.random(rng) for channel in channels}
        for channel in channels:
            camera = truth.intrinsics.tolist() if channel.startswith("CAM") else []
            tables["calibrated_sensor"].append(
                {
                    "token": f"c{i}{channel}",
                    "sensor_token": f"s{channel}",
                    "camera_intrinsic": camera,
                    **mounts[channel].nuscenes(),
                }
            )
            tables["ego_pose"].append({"token": f"e{i}{channel}", **vehicles[channel].nuscenes()})
            end = "pcd.bin" if channel == "LIDAR_TOP" else "jpg"
            for folder, key_frame in (("samples", True), ("sweeps", False)):
                tables["sample_data"].append(
                    {
                        "token": f"d{i}{channel}{folder}",
                        "sample_token": f"sample{i}",
                        "calibrated_sensor_token": f"c{i}{channel}",
                        "ego_pose_token": f"e{i}{channel}",
                        "is_key_frame": key_frame,
                        "filename": f"{folder}/{channel}/n008__{channel}__{i}.{end}",
                    }
                )
        world = vehicles["CAM_FRONT"](mounts["CAM_FRONT"](points))
        scan = mounts["LIDAR_TOP"].undone(vehicles["LIDAR_TOP"].undone(world))
        values = np.column_stack([scan, np.zeros((len(scan), 2))]).astype("<f4")
        files[f"samples/LIDAR_TOP/n008__LIDAR_TOP__{i}.pcd.bin"] = values.tobytes()
        files[f"samples/CAM_FRONT/n008__CAM_FRONT__{i}.jpg"] = jpeg(truth.rgb)
    return files | {
        f"v1.0-trainval/{name}.json": json.dumps(rows).encode() for name, rows in tables.items()
    }
