"""Many pictures from files to files, in batches; a bad one does not stop the others.

Free of torch: the pipeline and the exported runtime are both run by it.
"""

from __future__ import annotations

import glob
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from metricgold import geometry, imaging
from metricgold.errors import UserError, memory_short
from metricgold.outputs import Prediction, existing, write_outputs
from metricgold.progress import progress_bar

Item = TypeVar("Item")

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
"""What is taken for a picture in a folder."""


@dataclass(frozen=True)
class Source:
    """A picture's file, and what its results are called below the folder for results."""

    path: Path
    name: str


@dataclass(frozen=True)
class CameraOptions:
    """What the command line says of every picture's camera; at most one of both."""

    fov_deg: float | None = None
    focal_px: float | None = None

    def __post_init__(self) -> None:
        if self.fov_deg is not None and not 0 < self.fov_deg < 180:
            raise UserError(f"--fov-deg must lie between 0 and 180 degrees, got {self.fov_deg:g}")
        if self.focal_px is not None and not 0 < self.focal_px < float("inf"):
            raise UserError(f"--focal-px must be positive, got {self.focal_px:g}")
        if self.fov_deg is not None and self.focal_px is not None:
            raise UserError("--fov-deg and --focal-px say the same thing; give one of them")

    def fov_of(self, height: int) -> tuple[float | None, str]:
        """Vertical field of view of pictures of that height, and the option that says it."""
        if self.focal_px is None:
            return self.fov_deg, "--fov-deg"
        matrix = geometry.make_intrinsics(self.focal_px, self.focal_px, 0, 0)
        return geometry.fov_y_deg(matrix, height), "--focal-px"


@dataclass(frozen=True)
class Loaded:
    """A picture [H, W, 3], the vertical field of view in degrees (None: unknown), and whence."""

    source: Source
    rgb: NDArray[np.uint8]
    fov_deg: float | None
    fov_source: str

    @property
    def fov_told(self) -> str:
        """For people."""
        if self.fov_deg is None:
            return "field of view unknown (give --fov-deg or --focal-px for a surer scale)"
        return f"vertical field of view {self.fov_deg:.1f}° from {self.fov_source}"


Predict = Callable[[Sequence[Loaded]], Sequence[tuple[Prediction, str]]]
"""Pictures to predictions, and what is to be said of each, such as times."""


def find_pictures(inputs: Sequence[str | Path]) -> list[Source]:
    """Files as they are; what is in folders, below them too; what patterns such as ``*.jpg`` match.

    Results are called like the file, and in folders keep the path below the folder.

    Raises:
        UserError: a folder without pictures, or a pattern that matches nothing.
    """
    found: list[Source] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not below:
                raise UserError(f"{path}: no picture in this folder ({', '.join(SUFFIXES)})")
            found += [Source(p, str(p.relative_to(path).with_suffix(""))) for p in below]
        elif glob.has_magic(str(given)) and not path.exists():
            matches = sorted(Path(m) for m in glob.glob(str(given), recursive=True))
            if not matches:
                raise UserError(f"{given}: matches no file")
            found += [Source(p, p.stem) for p in matches if p.is_file()]
        else:
            found.append(Source(path, path.stem))
    return found


def load(source: Source, camera: CameraOptions) -> Loaded:
    """Read a picture; its camera from the command line, else from EXIF, else unknown."""
    rgb = imaging.load_rgb(source.path)
    height, width = rgb.shape[:2]
    fov_deg, told = camera.fov_of(height)
    if fov_deg is not None:
        return Loaded(source, rgb, fov_deg, told)
    return Loaded(source, rgb, imaging.exif_fov_y_deg(source.path, height, width), "EXIF")


def run(
    sources: Sequence[Source],
    predict: Predict,
    *,
    camera: CameraOptions,
    out: Path,
    formats: Sequence[str],
    force: bool = False,
    batch_size: int = 1,
) -> int:
    """Predict and write them all, a few lines each; how many were refused.

    What is refused is told on stderr and does not stop the others; errors that concern every
    picture are raised.
    """
    taken: dict[str, Path] = {}
    refused = 0
    with progress_bar(
        description="pictures", total=len(sources), unit="picture", disable=len(sources) < 2
    ) as bar:
        for part in parts(sources, batch_size):
            loaded: list[Loaded] = []
            for source in part:
                try:
                    _refuse_name(source, taken, out, formats, force)
                    loaded.append(load(source, camera))
                except UserError as error:
                    refused += 1
                    bar.write(f"error: {error}", file=sys.stderr)
            started = time.perf_counter()
            try:
                predictions = predict(loaded) if loaded else []
            except MemoryError as error:
                refused += len(loaded)
                for one in loaded:
                    bar.write(f"error: {one.source.path}: {memory_short(error)}", file=sys.stderr)
                bar.update(len(part))
                continue
            seconds = (time.perf_counter() - started) / max(1, len(loaded))
            for one, (prediction, said) in zip(loaded, predictions, strict=True):
                left_out: list[str] = []
                try:
                    written = write_outputs(
                        out, one.source.name, prediction, formats, force, left_out.append
                    )
                except UserError as error:
                    refused += 1
                    bar.write(f"error: {one.source.path}: {error}", file=sys.stderr)
                    continue
                bar.write(_summary(one, prediction, f"{said}, {seconds:.2f} s", written, left_out))
            bar.update(len(part))
    if refused and len(sources) > 1:
        print(f"{refused} of {len(sources)} pictures refused", file=sys.stderr)
    return refused


def parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """``size`` of them at a time, in their order; the last ones may be fewer."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _refuse_name(
    source: Source, taken: dict[str, Path], out: Path, formats: Sequence[str], force: bool
) -> None:
    """Refuse what would replace results, before anything is computed."""
    earlier = taken.setdefault(source.name, source.path)
    if earlier is not source.path:
        raise UserError(
            f"{source.path}: its results would replace those of {earlier} of the same name; "
            "run it by itself with another --out"
        )
    there = existing(out, source.name, formats)
    if there and not force:
        raise UserError(f"{there[0]}: exists already; name another --out or add --force")


def _summary(
    one: Loaded,
    prediction: Prediction,
    said: str,
    written: Sequence[Path],
    left_out: Sequence[str],
) -> str:
    depth, unsure = prediction.depth, prediction.uncertainty
    height, width = depth.shape
    give_or_take = "" if unsure is None else f", give or take {np.median(unsure):.2f} m"
    return "\n  ".join(
        (
            f"{one.source.path}: depth min {depth.min():.2f} m, median {np.median(depth):.2f} m, "
            f"max {depth.max():.2f} m{give_or_take} ({width}x{height})",
            f"{one.fov_told}; {said}",
            *left_out,
            f"wrote {', '.join(str(path) for path in written)}",
        )
    )
