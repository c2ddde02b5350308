"""The first run of exported graphs: does ONNX Runtime load them, and are their values finite?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.backends import Arrays, Backend, OnnxRuntimeBackend
from export.half import TEST_FOV_DEG, photo_like
from export.manifest import BackendUnavailableError, ExportError, GraphFile, Manifest
from export.runtime import DepthSession
from export.specs import ONE_STEP


class RefusedError(ExportError):
    """ONNX Runtime does not load a graph."""


class FiniteBackend:
    """Another back-end that refuses to give values that are not finite."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.name, self.max_batch = backend.name, backend.max_batch

    def run(self, component: str, inputs: Arrays) -> NDArray[np.float32]:
        """Output of a graph.

        Raises:
            ExportError: it is not finite; names the graph.
        """
        result = self.backend.run(component, inputs)
        if not np.isfinite(result).all():
            raise ExportError(
                f"{component}: gives values that are not finite for a picture like a photograph; "
                "export with --precision fp32"
            )
        return result


def run(folder: Path, manifest: Manifest, size: tuple[int, int]) -> None:
    """Predict a picture of ``size`` (height, width) with the graphs, the fused one included.

    Where ONNX Runtime is not installed, that is said, and nothing is run.

    Raises:
        RefusedError: it does not load a graph.
        ExportError: a graph gives values that are not finite.
    """
    fused: dict[str, GraphFile] = {}
    if manifest.fused is not None:
        fused[ONE_STEP.name] = manifest.fused
    for graphs in filter(None, (manifest.components, fused)):
        try:
            backend = OnnxRuntimeBackend(folder, graphs)
        except BackendUnavailableError as error:
            print(f"the graphs were not tried: {error}", flush=True)
            return
        except ExportError as error:
            raise RefusedError(str(error)) from error
        session = DepthSession(manifest, FiniteBackend(backend), fused=graphs is fused)
        own_size = 0 if manifest.dynamic and graphs is not fused else None
        session.infer(
            photo_like(size), steps=1, fov_deg=TEST_FOV_DEG, processing_resolution=own_size
        )
