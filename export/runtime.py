"""From a picture to depth in metres without torch: numpy, Pillow and one inference library.

The counterpart of :class:`metricgold.pipeline.MetricGoldPipeline` over exported graphs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
from export.ort_options import OrtOptions
from export.quantised import measured
from export.resident import resident
from export.specs import DEPTH_DECODER, ONE_STEP, UNET_STEP, VAE_ENCODER, ComponentSpec
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
    """An opened model; create with :func:`open_session`.

    Several threads may use one session: at the same time where the back-end can, else in turn.
    Several sessions may be open. As a context manager it closes itself.
    """

    def __init__(self, manifest: Manifest, backend: Backend, fused: bool = False) -> None:
        self.manifest = manifest
        self.backend = backend
        self.fused = fused
        self._values = resident(backend)
        concurrent = getattr(backend, "concurrent", False)
        self._turn: AbstractContextManager[Any] = nullcontext() if concurrent else Lock()
        self._closed = False

    def close(self) -> None:
        """Hand back graphs, engines and their memory; what is asked for later is refused."""
        self._closed = True
        if hasattr(self.backend, "close"):
            self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
            InferenceError: an argument is out of range, or the session is closed.
            ExportError: the back-end fails, or gives what is no depth.
        """
        steps = self.manifest.num_inference_steps if steps is None else steps
        self._check(rgb, fov_deg, steps, ensemble_size)
        size = self.working_size(rgb, processing_resolution)
        if self.fused:
            if initial_latents is not None or (steps, ensemble_size) != (1, 1):
                raise InferenceError("the fused graph makes one prediction in one step from rays")
            return self._infer_fused(rgb, size, fov_deg)
        starts = None if initial_latents is None else initial_latents[:, None]
        return self._infer_equal([rgb], [fov_deg], size, steps, ensemble_size, seed, starts)[0]

    def infer_many(
        self,
        pictures: Sequence[NDArray[np.uint8]],
        *,
        fov_deg: Sequence[float | None],
        steps: int | None = None,
        ensemble_size: int = 1,
        processing_resolution: int | None = None,
        seed: int = 0,
    ) -> list[DepthResult]:
        """Depth of several pictures, of any sizes, in their order.

        Pictures of one working size go through the networks together, as many as the back-end
        takes at once; the results are those of :meth:`infer`. The times of each are its share.

        Args:
            pictures: each uint8 [H, W, 3], sRGB.
            fov_deg: one for each picture, see :meth:`infer`, as are the options, for all of them.

        Raises:
            InferenceError, ExportError: as :meth:`infer`; of arguments before anything is computed.
        """
        steps = self.manifest.num_inference_steps if steps is None else steps
        groups: dict[tuple[int, int], list[int]] = {}
        for index, (rgb, fov) in enumerate(zip(pictures, fov_deg, strict=True)):
            self._check(rgb, fov, steps, ensemble_size)
            groups.setdefault(self.working_size(rgb, processing_resolution), []).append(index)
        if self.fused:  # a graph for one picture
            infer = partial(self.infer, steps=steps, ensemble_size=ensemble_size)
            return [infer(rgb, fov_deg=fov) for rgb, fov in zip(pictures, fov_deg, strict=True)]
        results: dict[int, DepthResult] = {}
        for size, members in groups.items():
            most = self.backend.max_batch or len(members)
            for first in range(0, len(members), most):
                part = members[first : first + most]
                rgbs, fovs = [pictures[i] for i in part], [fov_deg[i] for i in part]
                found = self._infer_equal(rgbs, fovs, size, steps, ensemble_size, seed)
                results.update(zip(part, found, strict=True))
        return [results[index] for index in range(len(pictures))]

    def _infer_equal(
        self,
        pictures: Sequence[NDArray[np.uint8]],
        fovs: Sequence[float | None],
        size: tuple[int, int],
        steps: int,
        ensemble_size: int,
        seed: int,
        starts: Array | None = None,
    ) -> list[DepthResult]:
        """Of pictures with one working size, in one batch; ``starts`` [E, B, C, h, w]."""
        seconds: dict[str, float] = {}
        ways = [False] * ensemble_size
        if starts is None:
            starts, ways = self._starts(size, steps, ensemble_size, fovs, seed)
        fov = np.concatenate([numpy_sampler.fov_features(f, self.manifest.fov) for f in fovs])
        members = []
        with self._turn:
            encoded = {w: self._encode(pictures, size, w, seconds) for w in dict.fromkeys(ways)}
            for start, mirrored in zip(starts, ways, strict=True):
                with _timed(seconds, "denoise"):
                    latent = self._denoise(encoded[mirrored], start, fov, steps)
                with _timed(seconds, "decode"):
                    depth = self._run(DEPTH_DECODER, {"depth_latent": latent})[:, 0]
                members.append(depth[:, :, ::-1] if mirrored else depth)
        shared = {stage: time / len(pictures) for stage, time in seconds.items()}
        depths = np.stack(members, axis=1)  # [B, E, h, w]
        return [
            self._result(own, rgb, size, dict(shared))
            for own, rgb in zip(depths, pictures, strict=True)
        ]

    def _result(
        self,
        depths: Array,
        rgb: NDArray[np.uint8],
        size: tuple[int, int],
        seconds: dict[str, float],
    ) -> DepthResult:
        """Of predictions [E, h, w] in metres."""
        with _timed(seconds, "postprocess"):
            depth, uncertainty = self._fuse(depths, rgb.shape[:2])
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
        fovs: Sequence[float | None],
        seed: int,
    ) -> tuple[Array, list[bool]]:
        """What the members start from, [E, B, C, h, w], and whether each sees the mirror image."""
        factor, channels = self.manifest.latent_factor, self.manifest.latent_channels
        grid = size[0] // factor, size[1] // factor
        if not steps == self.manifest.num_inference_steps == 1:
            noise = _noise((ensemble_size, 1, channels, *grid), seed)
            return noise.repeat(len(fovs), axis=1), [False] * ensemble_size
        ways = _views(ensemble_size)
        known = np.array([math.nan if f is None else f for f in fovs])
        rays = geometry.ray_latent(known, grid, channels)
        return rays[None].repeat(len(ways), axis=0), ways

    def _infer_fused(
        self, rgb: NDArray[np.uint8], size: tuple[int, int], fov_deg: float | None
    ) -> DepthResult:
        """By the fused graph."""
        seconds: dict[str, float] = {}
        with _timed(seconds, "preprocess"):
            image = _network_input([rgb], size)
        with self._turn, _timed(seconds, "fused"):
            fov = np.array([fov_deg or 0.0], np.float32)
            depths = self._run(ONE_STEP, {"rgb": image, "fov_y_deg": fov})[:, 0]
        return self._result(depths, rgb, size, seconds)

    def _encode(
        self,
        pictures: Sequence[NDArray[np.uint8]],
        size: tuple[int, int],
        mirrored: bool,
        seconds: dict[str, float],
    ) -> Any:
        """Latents [B, C, h, w] of pictures, worked at ``size``, where the back-end keeps them."""
        with _timed(seconds, "preprocess"):
            seen = [rgb[:, ::-1] if mirrored else rgb for rgb in pictures]
            image = _network_input(seen, size)
        with _timed(seconds, "encode"):
            return self._values.run_resident(VAE_ENCODER.name, {"rgb": image})

    def _denoise(self, rgb_latent: Any, initial: Array, fov: Array, steps: int) -> Any:
        def velocity(noisy: Any, timestep: int) -> Any:
            inputs = {
                "rgb_latent": rgb_latent,
                "noisy_depth_latent": noisy,
                "timestep": np.full(len(fov), timestep, np.int64),
                "fov": fov,
            }
            return self._values.run_resident(UNET_STEP.name, inputs)

        start, table = initial.astype(np.float32), self.manifest.scheduler
        return numpy_sampler.sample(velocity, start, table, steps, self._values.combine)

    def _run(self, graph: ComponentSpec, inputs: Mapping[str, Any]) -> Array:
        """A graph whose output is wanted here."""
        return self._values.to_host(self._values.run_resident(graph.name, inputs))

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

    def working_size(
        self, rgb: NDArray[np.uint8], processing_resolution: int | None = None
    ) -> tuple[int, int]:
        """Height and width in pixels the networks work at for a picture [H, W, 3].

        Raises:
            InferenceError: ``processing_resolution`` is negative, or the graphs have one size.
        """
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
        if self._closed:
            raise InferenceError("the session is closed; open another one")
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
    options: OrtOptions | None = None,
    weight_streaming_mib: float | None = None,
    report: Callable[[str], None] = print,
) -> DepthSession:
    """Open an export folder.

    Args:
        folder: what ``export.onnx_export`` wrote; every file is checked against its sha256.
        backend: one of ``BACKENDS``, which is then used or refused, or ``auto``: the first
            of them that works here.
        engines: what ``export.build_engine`` wrote; default ``engines`` beside ``folder``.
        fused: take the one graph from picture to metres in place of the three.
        options: how ONNX Runtime is opened; TensorRT knows none of them.
        weight_streaming_mib: see :class:`export.trt_runtime.EngineBackend`.
        report: told in one line which back-end ``auto`` took, and why not those before it; of
            quantised graphs also how accurate they are.

    Raises:
        ExportError: missing, stale or foreign files, no usable back-end, or quantised graphs
            without their measured accuracy.
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
    if accuracy := measured(folder, manifest):
        report(accuracy)
    graphs = manifest.components
    if fused:
        graphs = {ONE_STEP.name: manifest.graphs()[ONE_STEP.name]}
    engines = Path(engines) if engines is not None else folder.parent / "engines"
    streaming = weight_streaming_mib
    if backend != AUTO:
        opened = _open(backend, folder, engines, graphs, options, streaming)
        return DepthSession(manifest, opened, fused)
    refused: dict[str, list[str]] = {}
    for name in BACKENDS:
        try:
            opened = _open(name, folder, engines, graphs, options, streaming)
        except ExportError as error:
            refused.setdefault(str(error).removeprefix(f"{name}: "), []).append(name)
            continue
        report(f"back-end {name}" + (f"; not {_reasons(refused)}" if refused else ""))
        return DepthSession(manifest, opened, fused)
    raise BackendUnavailableError(f"no back-end works here: {_reasons(refused)}")


def _reasons(refused: dict[str, list[str]]) -> str:
    """Back-ends grouped by the reason they were refused for, in one line."""
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in refused.items())


def _open(
    name: str,
    folder: Path,
    engines: Path,
    graphs: Mapping[str, GraphFile],
    options: OrtOptions | None,
    weight_streaming_mib: float | None,
) -> Backend:
    if name in LIBRARIES:
        from export.trt_runtime import EngineBackend

        streaming = weight_streaming_mib
        return EngineBackend(LIBRARIES[name], engines, graphs, weight_streaming_mib=streaming)
    if name == OnnxRuntimeCudaBackend.name:
        return OnnxRuntimeCudaBackend(folder, graphs, options)
    return OnnxRuntimeBackend(folder, graphs, options)


def _network_input(pictures: Sequence[NDArray[np.uint8]], size: tuple[int, int]) -> Array:
    """Pictures as the networks take them: [B, 3, h, w] in [-1, 1].

    Bytes are turned round before they become floats: a tenth of the time of
    :func:`metricgold.imaging.resize_rgb` and a transpose, and the same to float32's rounding.
    """
    images = np.empty((len(pictures), 3, *size), np.float32)
    for image, rgb in zip(images, pictures, strict=True):
        if rgb.shape[:2] != size:
            resampling = imaging.RESAMPLING["bilinear"]
            rgb = np.asarray(Image.fromarray(rgb).resize(size[::-1], resampling))
        np.multiply(rgb.transpose(2, 0, 1), np.float32(2 / 255), out=image)
        image -= 1
    return images


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
