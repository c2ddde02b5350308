"""The opened model and what is asked of it; the only part of the service that knows a session."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.backends import Arrays, Backend
from export.manifest import read_manifest
from export.ort_options import OrtOptions
from export.quantised import measured
from export.resident import resident
from export.runtime import DepthResult, DepthSession, InferenceError, open_session
from export.service.batching import Abandoned
from export.service.limits import BATCH_MEGAPIXELS, MAX_RESOLUTION, Limits
from export.service.schemas import ModelInfo, Size

WARM_UP_SIDE = 256


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one request wants of the model; equal options may share a batch."""

    steps: int | None = None
    ensemble: int = 1
    processing_resolution: int | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """A picture uint8 [H, W, 3], its vertical field of view in degrees (None: unknown)."""

    rgb: NDArray[np.uint8]
    fov_deg: float | None
    options: Options
    arrived: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Depth, how long it waited for the networks, and how many went through them with it."""

    result: DepthResult
    waited_s: float
    batch: int


class AbandonedError(Exception):
    """Nobody waits any more for what was being computed."""


class _Stoppable:
    """A back-end that stops before the next graph once what it computes is abandoned."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self._values = backend, resident(backend)
        self.name = backend.name
        self.max_batch = backend.max_batch
        self.abandoned: Abandoned = lambda: False

    def run(self, component: str, inputs: Arrays) -> NDArray[np.float32]:
        """Output of a graph."""
        self._go_on(component)
        return self._backend.run(component, inputs)

    def run_resident(self, component: str, inputs: Mapping[str, Any]) -> Any:
        """The same where the back-end keeps values, see :mod:`export.resident`."""
        self._go_on(component)
        return self._values.run_resident(component, inputs)

    def combine(self, latent: Any, velocity: Any, of_latent: float, of_velocity: float) -> Any:
        """The back-end's own."""
        return self._values.combine(latent, velocity, of_latent, of_velocity)

    def to_host(self, value: Any) -> NDArray[np.float32]:
        """The back-end's own."""
        return self._values.to_host(value)

    def close(self) -> None:
        """Hand back graphs and their memory."""
        if hasattr(self._backend, "close"):
            self._backend.close()

    def _go_on(self, component: str) -> None:
        if self.abandoned():
            raise AbandonedError(component)


class Model:
    """Opened by :meth:`open` in the thread that will run it.

    Args:
        folder: what ``export.onnx_export`` wrote.
        counted: told how many pictures each batch has.

    Raises:
        ExportError: there is no export in the folder, or a quantised one whose accuracy is not
            known; the graphs themselves are opened later.
    """

    def __init__(
        self,
        folder: Path,
        backend: str,
        limits: Limits,
        *,
        engines: Path | None = None,
        threads: int | None = None,
        report: Callable[[str], None] = print,
        counted: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.manifest = read_manifest(folder)
        self._accuracy = measured(folder, self.manifest)
        self.limits = limits
        self._counted = counted
        self._open = lambda: open_session(
            folder, backend, engines=engines, options=OrtOptions(threads=threads), report=report
        )
        self._session: DepthSession | None = None

    @property
    def ready(self) -> bool:
        """Whether it is loaded and warmed up."""
        return self._session is not None

    @property
    def max_batch(self) -> int:
        """Pictures at once: what is allowed, or fewer where the graphs take fewer."""
        taken = self.session.backend.max_batch
        return self.limits.max_batch if taken is None else min(taken, self.limits.max_batch)

    @property
    def session(self) -> DepthSession:
        """The opened session; the service answers 503 before there is one."""
        assert self._session is not None, "the model is not open yet"
        return self._session

    def open(self) -> None:
        """Load the graphs, check their hashes, and predict once.

        Raises:
            ExportError: missing, stale or foreign files, or no usable back-end.
        """
        session = self._open()
        static = self.manifest.static_size
        height, width = static or (WARM_UP_SIDE * 3 // 4, WARM_UP_SIDE)
        session.infer(np.full((height, width, 3), 127, np.uint8))
        self._stoppable = _Stoppable(session.backend)
        self._session = DepthSession(session.manifest, self._stoppable, session.fused)

    def batch_key(self, rgb: NDArray[np.uint8], options: Options) -> tuple[object, ...]:
        """Requests with equal keys may go through the networks together.

        Raises:
            InferenceError: the networks cannot, or may not, work at that size.
        """
        size = self.session.working_size(rgb, options.processing_resolution)
        if self.manifest.static_size is None and max(size) > MAX_RESOLUTION:
            raise InferenceError(
                f"the networks would work at {size[1]}x{size[0]} px; at most {MAX_RESOLUTION} px "
                "are allowed here: give a smaller processing_resolution"
            )
        return options, size

    def predict(self, requests: Sequence[Request], abandoned: Abandoned) -> list[Answer]:
        """Depth of requests with one key; a request's time-out stops the networks, too."""
        self._stoppable.abandoned = abandoned
        first = requests[0]
        height, width = self.session.working_size(first.rgb, first.options.processing_resolution)
        most = max(1, int(BATCH_MEGAPIXELS * 1e6 / (height * width)))
        parts = [requests[i : i + most] for i in range(0, len(requests), most)]
        return [answer for part in parts for answer in self._predict_part(part)]

    def _predict_part(self, requests: Sequence[Request]) -> list[Answer]:
        began = time.monotonic()
        options = requests[0].options
        results = self.session.infer_many(
            [r.rgb for r in requests],
            fov_deg=[r.fov_deg for r in requests],
            steps=options.steps,
            ensemble_size=options.ensemble,
            processing_resolution=options.processing_resolution,
        )
        self._counted(len(requests))
        return [
            Answer(result=result, waited_s=began - request.arrived, batch=len(requests))
            for request, result in zip(requests, results, strict=True)
        ]

    def info(self) -> ModelInfo:
        """What is being served."""
        m, static = self.manifest, self.manifest.static_size
        return ModelInfo(
            depth_min_m=m.depth_min_m,
            depth_max_m=m.depth_max_m,
            precision=m.precision,
            accuracy=self._accuracy,
            opset=m.opset,
            backend=self.session.backend.name,
            max_batch=self.max_batch,
            steps=m.num_inference_steps,
            processing_resolution=m.processing_resolution,
            size_multiple=m.size_multiple,
            dynamic=m.dynamic,
            static_size=None if static is None else Size(width=static[1], height=static[0]),
            licence=m.metadata().get("licence"),
            checkpoint_sha256=m.checkpoint_sha256,
            graphs={name: graph.onnx_sha256 for name, graph in m.components.items()},
            versions=m.versions,
        )
