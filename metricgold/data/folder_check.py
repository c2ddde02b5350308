"""A user's own data: a folder of pictures and depth described by ``dataset.yaml``, and what is
wrong with it.

``rgb`` and ``depth`` are paths below the folder with ``{id}`` where a frame's name stands::

    rgb: rgb/{id}.jpg
    depth: depth/{id}.png       # 16-bit PNG or float .npy
    depth_unit_m: 0.001         # metres a stored unit (inverse: 1/m a stored unit)
    depth_kind: z               # or ray (distance along the ray), or inverse
    camera: {fx: 320, fy: 320, cx: 319.5, cy: 239.5}   # or {fov_x_deg: 90}
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from metricgold.data.depth_kind import DepthKind, patch_votes, verdict
from metricgold.errors import UserError
from metricgold.geometry import intrinsics_from_fov, make_intrinsics
from metricgold.imaging import ImageError, load_rgb
from metricgold.progress import progress_bar

SPEC_FILE = "dataset.yaml"
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


class FolderError(UserError):
    """The folder or its ``dataset.yaml`` cannot be used; names the file or key and what to do."""


class PixelCamera(BaseModel):
    """Focal lengths and principal point in pixels of the pictures' own size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fx: PositiveFloat
    fy: PositiveFloat
    cx: float
    cy: float

    def intrinsics(self, height: int, width: int) -> NDArray[np.floating]:
        """K [3, 3] in pixels, whatever the size."""
        return make_intrinsics(self.fx, self.fy, self.cx, self.cy)


class FovCamera(BaseModel):
    """A centred camera with square pixels and this horizontal field of view."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fov_x_deg: Annotated[float, Field(gt=0, lt=180)]

    def intrinsics(self, height: int, width: int) -> NDArray[np.floating]:
        """K [3, 3] in pixels for pictures of this size."""
        return intrinsics_from_fov(self.fov_x_deg, height, width)


class FolderSpec(BaseModel):
    """``dataset.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rgb: str
    depth: str
    depth_unit_m: PositiveFloat = 1.0
    depth_kind: DepthKind = "z"
    camera: PixelCamera | FovCamera | None = None


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


def load_spec(folder: Path) -> FolderSpec:
    """``dataset.yaml`` of ``folder``.

    Raises:
        FolderError: it is missing, is not YAML, or has a wrong, unknown or missing key.
    """
    path = folder / SPEC_FILE
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise FolderError(f"{path}: no such file; it says where everything is") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FolderError(f"{path}: not readable as YAML ({_flat(error)})") from None
    try:
        spec = FolderSpec.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise FolderError(f"{path}: {key}: {first['msg']}") from None
    for key in ("rgb", "depth"):
        if getattr(spec, key).count("{id}") != 1:
            raise FolderError(f"{path}: {key}: needs {{id}} once, where a frame's name stands")
    return spec


def read_depth(path: Path) -> NDArray[np.float64]:
    """A stored depth map [H, W], in stored units: one-channel PNG or TIFF, or .npy.

    Raises:
        FolderError: it cannot be read, or is not one two-dimensional map.
    """
    try:
        if path.suffix.lower() == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                values = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise FolderError(f"{path}: depth cannot be read ({_flat(error)})") from None
    if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "uif":
        raise FolderError(
            f"{path}: depth must be one map of numbers [H, W], found {values.dtype} {values.shape}"
        )
    return values.astype(np.float64)


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
        self.sizes: Counter[tuple[int, int]] = Counter()

    def add(self, pair: _Pair, spec: FolderSpec) -> list[Finding]:
        """Take in a frame; returns what is wrong with this one alone."""
        rgb, stored = load_rgb(pair.rgb), read_depth(pair.depth)
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
        usable = np.isfinite(stored) & (stored > 0)
        self.sizes[height, width] += 1
        self.valid.append(float(usable.mean()))
        if not usable.any():
            return [*found, Finding("error", "empty", f"{pair.depth}: no pixel has depth")]
        values = stored[usable] * spec.depth_unit_m
        self.medians.append(
            float(np.median(1 / values if spec.depth_kind == "inverse" else values))
        )
        if spec.camera is not None:
            self.votes += patch_votes(stored, usable, spec.camera.intrinsics(height, width))
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
        (height, width), _ = self.sizes.most_common(1)[0]
        matrix = spec.camera.intrinsics(height, width)
        fov = float(np.degrees(2 * np.arctan(width / (2 * matrix[0, 0]))))
        found = []
        if len(self.sizes) > 1 and isinstance(spec.camera, PixelCamera):
            sizes = ", ".join(f"{w}x{h}" for h, w in sorted(self.sizes))
            found.append(
                Finding("error", "camera-size", f"one camera in pixels for pictures of {sizes} px")
            )
        if not USUAL_FOV_DEG[0] <= fov <= USUAL_FOV_DEG[1]:
            found.append(
                Finding(
                    "warning",
                    "camera-fov",
                    f"a horizontal field of view of {fov:.0f}° at {width} px is unusual; are fx "
                    "and fy in pixels of this very size?",
                )
            )
        x, y = float(matrix[0, 2]) / (width - 1) - 0.5, float(matrix[1, 2]) / (height - 1) - 0.5
        if max(abs(x), abs(y)) > OFF_CENTRE:
            message = (
                f"the principal point ({matrix[0, 2]:g}, {matrix[1, 2]:g}) is far from the centre "
                f"of {width}x{height} px; does the camera belong to another resolution?"
            )
            found.append(Finding("warning", "camera-centre", message))
        return found

    def _coverage(self, spec: FolderSpec) -> list[Finding]:
        mean = float(np.mean(self.valid))
        if mean >= FEW_VALID:
            return []
        return [Finding("warning", "few-valid", f"only {mean:.1%} of the pixels have depth")]


def _pair(folder: Path, spec: FolderSpec) -> tuple[list[_Pair], list[Finding]]:
    rgb, depth = (_files(folder, pattern) for pattern in (spec.rgb, spec.depth))
    both = sorted(rgb.keys() & depth.keys())
    if not both:
        raise FolderError(
            f"{folder}: no frame has both files: {len(rgb)} match '{spec.rgb}', {len(depth)} "
            f"match '{spec.depth}', and no {{id}} is in both"
        )
    found = []
    for here, there, what in ((rgb, depth, "depth"), (depth, rgb, "picture")):
        missing = sorted(here.keys() - there.keys())
        if missing:
            names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            found.append(
                Finding("error", "unpaired", f"{len(missing)} frames have no {what}: {names}")
            )
    return [_Pair(name, rgb[name], depth[name]) for name in both], found


def _files(folder: Path, pattern: str) -> dict[str, Path]:
    """``{id}`` to file, for every file that matches; the pattern's own folder may be a link."""
    before, after = pattern.split("{id}")
    top, _, stem = before.rpartition("/")
    regex = re.compile(re.escape(stem) + "(.+)" + re.escape(after))
    found = {}
    for path in sorted(p for p in (folder / top).rglob("*") if p.is_file()):
        match = regex.fullmatch(path.relative_to(folder / top).as_posix())
        if match:
            found[match[1]] = path
    return found


def _flat(error: Any) -> str:
    return " ".join(str(error).split())[:200]
