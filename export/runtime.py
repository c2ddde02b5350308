"""From a picture to depth in metres without torch: numpy, Pillow and one inference library.

The counterpart of :class:`metricgold.pipeline.MetricGoldPipeline` over exported graphs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import numpy_sampler
from export.backends import Backend, OnnxRuntimeBackend, OnnxRuntimeCudaBackend
from export.manifest import (
    BackendUnavailableError,
    ExportError,
    GraphFile,
    Manifest,
    read_manifest,
    verify_graphs,
)
from export.specs import DEPTH_DECODER, ONE_STEP, UNET_STEP, VAE_ENCODER
from export.trt_library import LIBRARIES
from metricgold import geometry, imaging
from metricgold.errors import UserError
from metricgold.views import mirrored_views

AUTO = "auto"
BACKENDS = (*LIBRARIES, OnnxRuntimeCudaBackend.name, OnnxRuntimeBackend.name)
"""In the order in which ``auto`` tries them."""

Array = NDArray[np.float32]


class InferenceError(UserError):
    """A request that cannot be served; names the argument and its accepted range."""


@dataclass(frozen=True, kw_only=True)
class DepthResult:
    """Depth of one picture.

    Attributes:
        depth: float32 [H, W], z-depth in metres, at the picture's own size.
        uncertainty: float32 [H, W] in metres, or None for a single prediction.
        backend: what ran the graphs.
        size: (height, width) in pixels the networks worked at.
        seconds: wall-clock time by stage.
    """

    depth: Array
    uncertainty: Array | None
    backend: str
    size: tuple[int, int]
    seconds: dict[str, float]


class DepthSession:
    """An opened model; create with :func:`open_session`."""

    def __init__(self, manifest: Manifest, backend: Backend, fused: bool = False) -> None:
        self.manifest = manifest
        self.backend = backend
        self.fused = fused

    def infer(
        self,
        rgb: NDArray[np.uint8],
        *,
        fov_deg: float | None = None,
        steps: int | None = None,
        ensemble_size: int = 1,
        processing_resolution: int | None = None,
        seed: int = 0,
        initial_latents: Array | None = None,
    ) -> DepthResult:
        """Depth of one picture.

        Args:
            rgb: uint8 [H, W, 3], sRGB.
            fov_deg: vertical field of view in degrees; None if unknown.
            steps: DDIM steps; default is what the weights were trained for.
            ensemble_size: predictions fused by the median in log-depth: from different noise, or
                of a one-step model, which starts from the camera's rays, of the picture and its
                mirror image, two at most.
            processing_resolution: long side in pixels, 0 for the picture's own size.
            seed: of the initial noise.
            initial_latents: [E, C, h, w] in place of the seeded noise.

        Raises:
            InferenceError: an argument is out of range.
        """
        steps = self.manifest.num_inference_steps if steps is None else steps
        self._check(rgb, fov_deg, steps, ensemble_size)
        size = self._size(rgb, processing_resolution)
        seconds: dict[str, float] = {}
        if self.fused:
            if initial_latents is not None or (steps, ensemble_size) != (1, 1):
                raise InferenceError("the fused graph makes one prediction in one step from rays")
            depths = [self._one_step(rgb, size, fov_deg, seconds)]
            return self._result(depths, rgb, size, seconds)
        if initial_latents is None:
            starts, ways = self._starts(size, steps, ensemble_size, fov_deg, seed)
        else:
            starts, ways = initial_latents, [False] * ensemble_size
        fov = numpy_sampler.fov_features(fov_deg, self.manifest.fov)
        encoded = {way: self._encode(rgb, size, way, seconds) for way in dict.fromkeys(ways)}
        depths = []
        for start, mirrored in zip(starts, ways, strict=True):
            with _timed(seconds, "denoise"):
                latent = self._denoise(encoded[mirrored], start[None], fov, steps)
            with _timed(seconds, "decode"):
                depth = self.backend.run(DEPTH_DECODER.name, {"depth_latent": latent})[0, 0]
            depths.append(depth[:, ::-1] if mirrored else depth)
        return self._result(depths, rgb, size, seconds)

    def _result(
        self,
        depths: list[Array],
        rgb: NDArray[np.uint8],
        size: tuple[int, int],
        seconds: dict[str, float],
    ) -> DepthResult:
        """Of predictions [h, w] in metres."""
        with _timed(seconds, "postprocess"):
            depth, uncertainty = self._fuse(np.stack(depths), rgb.shape[:2])
        return DepthResult(
            depth=depth,
            uncertainty=uncertainty,
            backend=self.backend.name,
            size=size,
            seconds=seconds,
        )

    def _starts(
        self,
        size: tuple[int, int],
        steps: int,
        ensemble_size: int,
        fov_deg: float | None,
        seed: int,
    ) -> tuple[Array, list[bool]]:
        """What the members start from, [E, C, h, w], and whether each sees the mirror image."""
        factor, channels = self.manifest.latent_factor, self.manifest.latent_channels
        grid = size[0] // factor, size[1] // factor
        if not steps == self.manifest.num_inference_steps == 1:
            return _noise((ensemble_size, channels, *grid), seed), [False] * ensemble_size
        ways = _views(ensemble_size)
        known = np.full(ensemble_size, math.nan if fov_deg is None else fov_deg)
        return geometry.ray_latent(known, grid, channels), ways

    def _one_step(
        self,
        rgb: NDArray[np.uint8],
        size: tuple[int, int],
        fov_deg: float | None,
        seconds: dict[str, float],
    ) -> Array:
        """Depth [h, w] in metres by the fused graph."""
        with _timed(seconds, "preprocess"):
            image = _network_input(rgb, size)
        with _timed(seconds, "fused"):
            fov = np.array([fov_deg or 0.0], np.float32)
            return self.backend.run(ONE_STEP.name, {"rgb": image, "fov_y_deg": fov})[0, 0]

    def _encode(
        self,
        rgb: NDArray[np.uint8],
        size: tuple[int, int],
        mirrored: bool,
        seconds: dict[str, float],
    ) -> Array:
        """Latent [1, C, h, w] of a picture, worked at ``size``."""
        with _timed(seconds, "preprocess"):
            image = _network_input(rgb[:, ::-1] if mirrored else rgb, size)
        with _timed(seconds, "encode"):
            return self.backend.run(VAE_ENCODER.name, {"rgb": image})

    def _denoise(self, rgb_latent: Array, initial: Array, fov: Array, steps: int) -> Array:
        def velocity(noisy: Array, timestep: int) -> Array:
            inputs: dict[str, NDArray[Any]] = {
                "rgb_latent": rgb_latent,
                "noisy_depth_latent": noisy.astype(np.float32),
                "timestep": np.array([timestep], np.int64),
                "fov": fov,
            }
            return self.backend.run(UNET_STEP.name, inputs)

        return numpy_sampler.sample(velocity, initial, self.manifest.scheduler, steps)

    def _fuse(self, depths: Array, out_size: tuple[int, int]) -> tuple[Array, Array | None]:
        """Depths [E, h, w] to depth and uncertainty at ``out_size``: medians in log-depth."""
        if not np.isfinite(depths).all():
            raise ExportError(
                f"{self.backend.name} gave non-finite depth; export again with --precision fp32"
            )
        if len(depths) == 1:
            return imaging.resize_depth_log(depths[0], out_size), None
        codec = self.manifest.codec
        norm = codec.encode(depths)
        centre = np.median(norm, axis=0)
        mad = np.median(np.abs(norm - centre), axis=0)
        depth = imaging.resize_depth_log(codec.decode(centre), out_size)
        spread = imaging.resize_plain(mad, out_size) * np.float32(codec.log_range / 2.0)
        return depth, depth * spread

    def _size(self, rgb: NDArray[np.uint8], processing_resolution: int | None) -> tuple[int, int]:
        fixed: Sequence[int] | None = self.manifest.static_size
        if self.fused:
            assert self.manifest.fused is not None
            fixed = self.manifest.fused.size
        if fixed is not None:
            if processing_resolution is not None:
                raise InferenceError(
                    f"this model was exported for {fixed[0]}x{fixed[1]} pixels only; leave "
                    "processing_resolution out or take the graphs of a model exported with "
                    "'dynamic: true'"
                )
            return fixed[0], fixed[1]
        long_side = processing_resolution
        if long_side is None:
            long_side = self.manifest.processing_resolution
        if long_side < 0:
            raise InferenceError(f"processing_resolution must be 0 or more, got {long_side}")
        height, width = rgb.shape[:2]
        return imaging.processing_size(height, width, long_side, self.manifest.size_multiple)

    def _check(
        self, rgb: NDArray[np.uint8], fov_deg: float | None, steps: int, ensemble_size: int
    ) -> None:
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
            raise InferenceError(f"rgb must be uint8 [H, W, 3], got {rgb.dtype} {rgb.shape}")
        if fov_deg is not None and not 0 < fov_deg < 180:
            raise InferenceError(f"fov_deg must lie between 0 and 180, got {fov_deg}")
        last = self.manifest.scheduler.num_train_timesteps
        if not 1 <= steps <= last:
            raise InferenceError(f"steps must lie in 1..{last}, got {steps}")
        if ensemble_size < 1:
            raise InferenceError(f"ensemble_size must be 1 or more, got {ensemble_size}")


def open_session(
    folder: Path | str,
    backend: str = AUTO,
    *,
    engines: Path | str | None = None,
    fused: bool = False,
    report: Callable[[str], None] = print,
) -> DepthSession:
    """Open an export folder.

    Args:
        folder: what ``export.onnx_export`` wrote; every file is checked against its sha256.
        backend: one of ``BACKENDS``, which is then used or refused, or ``auto``: the first
            of them that works here.
        engines: what ``export.build_engine`` wrote; default ``engines`` beside ``folder``.
        fused: take the one graph from picture to metres in place of the three.
        report: told in one line which back-end ``auto`` took, and why not those before it.

    Raises:
        ExportError: missing, stale or foreign files, or no usable back-end.
    """
    folder = Path(folder)
    if backend != AUTO and backend not in BACKENDS:
        raise ExportError(f"unknown back-end '{backend}'; known: {AUTO}, {', '.join(BACKENDS)}")
    manifest = read_manifest(folder)
    verify_graphs(folder, manifest)
    if fused and manifest.fused is None:
        raise ExportError(
            f"{folder}: there is no fused graph; export with 'fused: true' (a one-step model)"
        )
    graphs = manifest.components
    if fused:
        graphs = {ONE_STEP.name: manifest.graphs()[ONE_STEP.name]}
    engines = Path(engines) if engines is not None else folder.parent / "engines"
    if backend != AUTO:
        return DepthSession(manifest, _open(backend, folder, engines, graphs), fused)
    refused: dict[str, list[str]] = {}
    for name in BACKENDS:
        try:
            opened = _open(name, folder, engines, graphs)
        except ExportError as error:
            refused.setdefault(str(error).removeprefix(f"{name}: "), []).append(name)
            continue
        report(f"back-end {name}" + (f"; not {_reasons(refused)}" if refused else ""))
        return DepthSession(manifest, opened, fused)
    raise BackendUnavailableError(f"no back-end works here: {_reasons(refused)}")


def _reasons(refused: dict[str, list[str]]) -> str:
    """Back-ends grouped by the reason they were refused for, in one line."""
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in refused.items())


def _open(name: str, folder: Path, engines: Path, graphs: Mapping[str, GraphFile]) -> Backend:
    if name in LIBRARIES:
        from export.trt_runtime import EngineBackend

        return EngineBackend(LIBRARIES[name], engines, graphs)
    if name == OnnxRuntimeCudaBackend.name:
        return OnnxRuntimeCudaBackend(folder, graphs)
    return OnnxRuntimeBackend(folder, graphs)


def _network_input(rgb: NDArray[np.uint8], size: tuple[int, int]) -> Array:
    """A picture as the networks take it: [1, 3, h, w] in [-1, 1]."""
    resized = imaging.resize_rgb(rgb, size)
    return np.ascontiguousarray(resized.transpose(2, 0, 1)[None]) * np.float32(2) - 1


def _noise(shape: tuple[int, ...], seed: int) -> Array:
    """Gaussian initial latents [E, C, h, w]."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def _views(count: int) -> list[bool]:
    try:
        return mirrored_views(count)
    except ValueError as error:
        raise InferenceError(str(error)) from None


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
