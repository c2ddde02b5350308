"""TensorRT and TensorRT-RTX behind one door: same builder, parser and runtime interface.

TensorRT needs the GPU it builds for. TensorRT-RTX builds ahead of time for named compute
capabilities with no GPU present; running an engine needs one either way.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from export.driver import compute_capability, cuda_driver_problem
from export.manifest import BackendUnavailableError


@dataclass(frozen=True, kw_only=True)
class TrtLibrary:
    """One of the two libraries.

    Attributes:
        name: how back-ends, folders and manifests call it.
        module: what is imported.
        extra: which extra of this project installs it.
        ahead_of_time: compute capabilities engines are built for without asking a GPU;
            empty when the library builds for the GPU at hand. 7.5 (Turing) is left out:
            it has no kernels for the U-Net's fp32 matrix products.
    """

    name: str
    module: str
    extra: str
    ahead_of_time: tuple[str, ...] = ()

    def load(self) -> Any:
        """The imported library.

        Raises:
            BackendUnavailableError: it is not installed or cannot be loaded.
        """
        try:
            return importlib.import_module(self.module)
        except (ImportError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BackendUnavailableError(
                f"{self.name}: '{self.module}' cannot be imported ({reason}); "
                f"install the '{self.extra}' extra"
            ) from None

    def load_for_building(self) -> Any:
        """The library if it can build here; raises :class:`BackendUnavailableError`."""
        if not self.ahead_of_time:
            self._require_driver()
        return self.load()

    def load_for_running(self) -> Any:
        """The library if it can execute here; raises :class:`BackendUnavailableError`."""
        self._require_driver()
        return self.load()

    def target_capabilities(self) -> tuple[str, ...]:
        """Compute capabilities a build is for, such as ``8.9``."""
        return self.ahead_of_time or (gpu_capability(),)

    def _require_driver(self) -> None:
        problem = cuda_driver_problem()
        if problem:
            raise BackendUnavailableError(f"{self.name}: {problem}")


TENSORRT = TrtLibrary(name="tensorrt", module="tensorrt", extra="gpu")
TENSORRT_RTX = TrtLibrary(
    name="tensorrt-rtx",
    module="tensorrt_rtx",
    extra="rtx",
    ahead_of_time=("8.0", "8.6", "8.9", "12.0", "12.1"),
)
LIBRARIES: Mapping[str, TrtLibrary] = {lib.name: lib for lib in (TENSORRT, TENSORRT_RTX)}


def gpu_capability() -> str:
    """Compute capability of the first GPU, such as ``9.0``; needs a driver."""
    major, minor = compute_capability()
    return f"{major}.{minor}"


def make_logger(trt: Any, messages: list[str], log: TextIO | None = None) -> Any:
    """A TensorRT logger that writes nothing to the terminal.

    Args:
        messages: gets every error.
        log: gets everything, a line a message.
    """
    errors = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)

    class Collector(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in errors:
                messages.append(" ".join(message.split()))
            if log is not None:
                log.write(f"{severity.name.lower()}: {message.rstrip()}\n")

    return Collector()
