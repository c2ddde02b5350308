"""What is wrong, or looks wrong, with a user's own data (:mod:`metricgold.data.folder_spec`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metricgold.data.depth_kind import DepthKind, patch_votes, verdict
from metricgold.data.folder_spec import (
    SPEC_FILE,
    CameraFile,
    FolderError,
    FolderSpec,
    PixelCamera,
    decode_depth,
    flat,
    match_names,
    parse_camera,
    parse_spec,
)
from metricgold.geometry import Array
from metricgold.imaging import ImageError, load_rgb
from metricgold.progress import progress_bar

USUAL_DEPTH_M = (0.2, 150.0)
"""Where the median depth of a set of indoor or outdoor pictures lies."""
USUAL_FOV_DEG = (15.0, 140.0)
OFF_CENTRE = 0.2
"""How far the principal point may lie from the centre, as a share of the side."""
FEW_VALID = 0.05

_KIND_NAMES: dict[DepthKind, str] = {
    "z": "z-depth",
    "ray": "distance along the ray",
    "inverse": "inverse depth",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (``error``) or looks wrong (``warning``); ``code`` names it."""

    level: str
    code: str
    message: str


@dataclass(frozen=True)
class _Pair:
    name: str
    rgb: Path
    depth: Path
    camera: Path | None


_Size = tuple[int, int]


def load_spec(folder: Path) -> FolderSpec:
    """``dataset.yaml`` of ``folder``.

    Raises:
        FolderError: it is missing, is not YAML, or has a wrong, unknown or missing key.
    """
    path = folder / SPEC_FILE
    try:
        return parse_spec(path.read_text("utf-8"), str(path))
    except FileNotFoundError:
        raise FolderError(f"{path}: no such file; it says where everything is") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FolderError(f"{path}: not readable as YAML ({flat(error)})") from None


def check_folder(folder: Path, frames: int = 20) -> list[Finding]:
    """Everything wrong that ``frames`` evenly spaced frames and all file names show.

    Raises:
        FolderError: ``dataset.yaml`` cannot be used, or no frame has both files.
    """
    spec = load_spec(folder)
    pairs, findings = _pair(folder, spec)
    chosen = np.unique(np.linspace(0, len(pairs) - 1, frames).round().astype(int)).tolist()
    statistics = _Statistics()
    for index in progress_bar(chosen, description="checking", unit="frame"):
        try:
            findings += statistics.add(pairs[index], spec)
        except (FolderError, ImageError) as error:
            findings.append(Finding("error", "unreadable", str(error)))
    return findings + statistics.findings(spec)


class _Statistics:
    """What is judged over all frames together."""

    def __init__(self) -> None:
        self.medians: list[float] = []
        self.valid: list[float] = []
        self.votes: Counter[DepthKind] = Counter()
        self.cameras: list[tuple[_Size, Array]] = []

    def add(self, pair: _Pair, spec: FolderSpec) -> list[Finding]:
        """Take in a frame; returns what is wrong with this one alone."""
        rgb, stored = load_rgb(pair.rgb), decode_depth(pair.depth.read_bytes(), str(pair.depth))
        height, width = stored.shape
        if rgb.shape[:2] != stored.shape:
            sizes = f"{rgb.shape[1]}x{rgb.shape[0]} and {width}x{height} px"
            return [
                Finding("error", "size", f"{pair.name}: picture and depth differ in size ({sizes})")
            ]
        found = []
        if (stored < 0).any():
            found.append(
                Finding("error", "negative", f"{pair.depth}: {int((stored < 0).sum())} pixels < 0")
            )
        usable = np.isfinite(stored) & (stored > 0) & (stored != spec.sky_value)
        self.valid.append(float(usable.mean()))
        if not usable.any():
            return [*found, Finding("error", "empty", f"{pair.depth}: no pixel has depth")]
        values = stored[usable] * spec.depth_unit_m
        self.medians.append(
            float(np.median(1 / values if spec.depth_kind == "inverse" else values))
        )
        intrinsics = _intrinsics(pair, spec, (height, width))
        if intrinsics is not None:
            self.cameras.append(((height, width), intrinsics))
            self.votes += patch_votes(stored, usable, intrinsics)
        return found

    def findings(self, spec: FolderSpec) -> list[Finding]:
        """What is wrong with the set as a whole."""
        judges: tuple[Callable[[FolderSpec], list[Finding]], ...] = (
            self._unit, self._kind, self._camera, self._coverage,
        )  # fmt: skip
        return [finding for judge in judges for finding in judge(spec)] if self.medians else []

    def _unit(self, spec: FolderSpec) -> list[Finding]:
        low, high = USUAL_DEPTH_M
        median = float(np.median(self.medians))
        if low <= median <= high:
            return []
        factors = {0.001: "millimetres", 0.01: "centimetres", 1000.0: "kilometres"}
        fitting = [f for f in factors if low <= median * f <= high]
        hint = "is depth_unit_m right?"
        if fitting and spec.depth_kind != "inverse":
            factor = fitting[0]
            unit = factors[factor]
            wanted = f"{spec.depth_unit_m * factor:g}"
            hint = f"are these {unit} taken for metres? Then depth_unit_m is {wanted}"
        return [Finding("warning", "unit", f"the median depth is {median:.3g} m; {hint}")]

    def _kind(self, spec: FolderSpec) -> list[Finding]:
        kind = verdict(self.votes)
        if kind is None or kind == spec.depth_kind:
            return []
        share = f"{self.votes[kind]} of {sum(self.votes.values())} planar patches"
        return [
            Finding(
                "warning",
                "kind",
                f"depth is declared to be {_KIND_NAMES[spec.depth_kind]}, but {share} look like "
                f"{_KIND_NAMES[kind]}; set depth_kind: {kind}, or check the camera",
            )
        ]

    def _camera(self, spec: FolderSpec) -> list[Finding]:
        if spec.camera is None:
            message = (
                "no camera is given: the focal length is unknown, and with it what size things "
                "have; add camera: {fx, fy, cx, cy} or {fov_x_deg}"
            )
            return [Finding("warning", "camera-missing", message)]
        found = []
        sizes = sorted({(width, height) for (height, width), _ in self.cameras})
        if len(sizes) > 1 and isinstance(spec.camera, PixelCamera):
            told = ", ".join(f"{w}x{h}" for w, h in sizes)
            found.append(
                Finding("error", "camera-size", f"one camera in pixels for pictures of {told} px")
            )
        odd = (finding for size, matrix in self.cameras for finding in _odd_camera(size, matrix))
        first_of_each = {finding.code: finding for finding in reversed(list(odd))}
        return found + list(first_of_each.values())

    def _coverage(self, spec: FolderSpec) -> list[Finding]:
        mean = float(np.mean(self.valid))
        if mean >= FEW_VALID:
            return []
        return [Finding("warning", "few-valid", f"only {mean:.1%} of the pixels have depth")]


def _intrinsics(pair: _Pair, spec: FolderSpec, size: _Size) -> Array | None:
    """K [3, 3] of a frame in pixels, if it is known."""
    if pair.camera is not None:
        return parse_camera(pair.camera.read_text("utf-8", "replace"), str(pair.camera))
    if spec.camera is None or isinstance(spec.camera, CameraFile):
        return None
    return spec.camera.intrinsics(*size)


def _odd_camera(size: _Size, matrix: Array) -> list[Finding]:
    """What is unusual about K [3, 3] for a picture of this size (height, width)."""
    height, width = size
    found = []
    fov = float(np.degrees(2 * np.arctan(width / (2 * matrix[0, 0]))))
    if not USUAL_FOV_DEG[0] <= fov <= USUAL_FOV_DEG[1]:
        message = (
            f"a horizontal field of view of {fov:.0f}° at {width} px is unusual; are fx and fy in "
            "pixels of this very size?"
        )
        found.append(Finding("warning", "camera-fov", message))
    x, y = float(matrix[0, 2]) / (width - 1) - 0.5, float(matrix[1, 2]) / (height - 1) - 0.5
    if max(abs(x), abs(y)) > OFF_CENTRE:
        message = (
            f"the principal point ({matrix[0, 2]:g}, {matrix[1, 2]:g}) is far from the centre "
            f"of {width}x{height} px; does the camera belong to another resolution?"
        )
        found.append(Finding("warning", "camera-centre", message))
    return found


def _pair(folder: Path, spec: FolderSpec) -> tuple[list[_Pair], list[Finding]]:
    patterns = spec.patterns()
    files = {key: match_names(list_files(folder, p), p) for key, p in patterns.items()}
    every = set.intersection(*(set(names) for names in files.values()))
    if not every:
        counts = ", ".join(f"{len(files[key])} match '{p}'" for key, p in patterns.items())
        raise FolderError(
            f"{folder}: no frame has all its files: {counts}, and no {{id}} is in all"
        )
    found = []
    seen = set.union(*(set(names) for names in files.values()))
    for key, what in (("depth", "depth"), ("rgb", "picture"), ("camera.file", "camera file")):
        missing = sorted(seen - files[key].keys()) if key in files else []
        if missing:
            names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            found.append(
                Finding("error", "unpaired", f"{len(missing)} frames have no {what}: {names}")
            )
    pairs = []
    for name in sorted(every):
        paths = {key: folder / names[name] for key, names in files.items()}
        pairs.append(_Pair(name, paths["rgb"], paths["depth"], paths.get("camera.file")))
    return pairs, found


def list_files(folder: Path, pattern: str) -> list[str]:
    """Paths below ``folder`` that ``pattern`` may name; the pattern's own folder may be a link."""
    top = folder / pattern.split("{id}")[0].rpartition("/")[0]
    return [path.relative_to(folder).as_posix() for path in top.rglob("*") if path.is_file()]
