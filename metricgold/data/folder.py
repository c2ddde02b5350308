"""A user's own pictures and depth as a dataset: a folder, or its copy on a server.

``dataset.yaml`` in it says where everything is (:mod:`metricgold.data.folder_spec`). A server
cannot be asked what it has, so there a file ``files.txt`` must name every file, a path a line.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np

from metricgold.config import DatasetConfig
from metricgold.data.dataset import (
    Dataset,
    DatasetError,
    FrameRef,
    Part,
    ReadMetadata,
    RemoteFile,
    is_selected,
    masked_frame,
    on_stride,
)
from metricgold.data.folder_check import check_folder, list_files, load_spec
from metricgold.data.folder_spec import (
    SPEC_FILE,
    CameraFile,
    FolderSpec,
    FovCamera,
    PixelCamera,
    decode_depth,
    match_names,
    parse_camera,
    parse_spec,
    to_depth,
)
from metricgold.data.mirror_server import LISTING
from metricgold.data.sample import Frame
from metricgold.imaging import rgb_from_bytes

ONLY_SCENE = "all"
"""Scene of frames whose names hold no folder."""
_HELD_OUT = 10
"""Without ``holdout`` and ``holdout_last_frames`` one scene in so many is held out."""


class Folder(Dataset):
    """Pictures, depth and camera of each frame in files of their own."""

    name = "folder"
    licence = "the owner's; keep to it"
    shard_share = 1.0

    def remote_files(self, config: DatasetConfig, read: ReadMetadata) -> list[RemoteFile]:
        """``dataset.yaml`` and the files of every frame that is wanted: see ``Dataset``."""
        spec = parse_spec(read(SPEC_FILE).decode("utf-8", "replace"), SPEC_FILE)
        listed = read(LISTING).decode("utf-8", "replace").splitlines()
        _check_complete(spec, listed, config)
        paths: dict[str, None] = {SPEC_FILE: None}
        for _, _, files in _frames(spec, dict.fromkeys(spec.patterns(), listed), config):
            paths |= dict.fromkeys(files.values())
        return [RemoteFile(path) for path in paths]

    def frames(self, raw: Path, config: DatasetConfig) -> list[FrameRef]:
        """Frames with all their files; one scene in ten (or the last tenth of the only scene) is
        held out where the configuration does not say: see ``Dataset``."""
        spec = load_spec(raw)
        if spec.camera is None:
            raise DatasetError(
                f"{raw / SPEC_FILE}: no camera is given, and without the focal length nothing says "
                "how large things are; add camera: {fx, fy, cx, cy}, {fov_x_deg} or {file}"
            )
        listed = {key: list_files(raw, pattern) for key, pattern in spec.patterns().items()}
        refs = [
            _ref(raw, spec, scene, number, files)
            for scene, number, files in _frames(spec, listed, config)
        ]
        return _held_out(refs)

    def decode(
        self, ref: FrameRef, rgb_bytes: bytes, depth_bytes: bytes, depth_max_m: float
    ) -> Frame:
        """Colour and z-depth in metres, whatever kind and unit the files have: see ``Dataset``."""
        spec = _spec(ref.note)
        rgb = rgb_from_bytes(rgb_bytes)
        stored = decode_depth(depth_bytes, ref.depth.archive)
        if isinstance(spec.camera, FovCamera):
            intrinsics = spec.camera.intrinsics(*stored.shape)
        else:
            intrinsics = np.array(ref.camera).reshape(3, 3)
        depth = to_depth(stored, spec, intrinsics)
        sky = stored == spec.sky_value
        return masked_frame(ref, rgb, depth, (depth > 0) & (depth < depth_max_m), sky, intrinsics)

    def findings(self, raw: Path) -> list[str]:
        """What ``metricgold data check`` finds: see ``Dataset``."""
        found = check_folder(raw)
        if errors := [finding.message for finding in found if finding.level == "error"]:
            raise DatasetError(f"{raw}: {'; '.join(errors)}")
        return [finding.message for finding in found]


@lru_cache(maxsize=1)
def _spec(note: str) -> FolderSpec:
    return FolderSpec.model_validate_json(note)


def _frames(
    spec: FolderSpec, listed: Mapping[str, Iterable[str]], config: DatasetConfig
) -> Iterator[tuple[str, int, dict[str, str]]]:
    """(scene, number in it, path of each file) of every frame that is wanted and complete."""
    files = {key: match_names(listed[key], p) for key, p in spec.patterns().items()}
    names = sorted(set.intersection(*(set(found) for found in files.values())))
    for scene, group in groupby(sorted(names, key=_scene_first), key=scene_of):
        if is_selected(scene, config):
            for name in group:
                number = number_of(name)
                if on_stride(number, config):
                    yield scene, number, {key: found[name] for key, found in files.items()}


def _check_complete(spec: FolderSpec, listed: Sequence[str], config: DatasetConfig) -> None:
    """Tell which frames lack a file; too many are refused."""
    files = {key: match_names(listed, p) for key, p in spec.patterns().items()}
    every = {
        name for found in files.values() for name in found if is_selected(scene_of(name), config)
    }
    for key, found in files.items():
        lacking = sorted(every - found.keys())
        if not lacking:
            continue
        names = ", ".join(lacking[:3]) + (", …" if len(lacking) > 3 else "")
        told = f"folder: {len(lacking)} of {len(every)} frames have no file '{key}': {names}"
        if len(lacking) > config.max_missing_share * len(every):
            raise DatasetError(f"{told}; max_missing_share allows {config.max_missing_share:.1%}")
        print(f"{told}; left out")


def scene_of(name: str) -> str:
    """Scene of the frame called ``name``: its folder."""
    return name.rpartition("/")[0] or ONLY_SCENE


def number_of(name: str) -> int:
    """The last number in a frame's name, or one made from the name if it holds none."""
    digits = re.findall(r"\d+", name.rpartition("/")[2])
    return int(digits[-1]) if digits else zlib.crc32(name.encode())


def _scene_first(name: str) -> tuple[str, str]:
    return scene_of(name), name


def _ref(raw: Path, spec: FolderSpec, scene: str, number: int, files: dict[str, str]) -> FrameRef:
    camera: tuple[float, ...] = ()
    if isinstance(spec.camera, CameraFile):
        path = raw / files["camera.file"]
        camera = tuple(parse_camera(path.read_text("utf-8", "replace"), str(path)).ravel().tolist())
    elif isinstance(spec.camera, PixelCamera):
        camera = tuple(spec.camera.intrinsics(0, 0).ravel().tolist())
    rgb, depth = (
        Part(files[key], files[key], 0, (raw / files[key]).stat().st_size)
        for key in ("rgb", "depth")
    )
    name = match_names([files["rgb"]], spec.rgb).popitem()[0]
    key = name if name.startswith(f"{scene}/") else f"{scene}/{name}"
    note = spec.model_dump_json()
    return FrameRef(key, scene, "train", rgb, depth, camera, number=number, note=note)


def _held_out(refs: list[FrameRef]) -> list[FrameRef]:
    """The default split: one scene in ten by the hash of its name, but at least one; of a single
    scene the last tenth of the frames."""
    scenes = sorted({ref.scene for ref in refs}, key=_hash)
    if len(scenes) > 1:
        held = set(scenes[: -(-len(scenes) // _HELD_OUT)])
        return [replace(r, split="holdout") if r.scene in held else r for r in refs]
    first = len(refs) - -(-len(refs) // _HELD_OUT)
    return [replace(r, split="holdout") if i >= first else r for i, r in enumerate(refs)]


def _hash(scene: str) -> str:
    return hashlib.sha256(scene.encode()).hexdigest()
