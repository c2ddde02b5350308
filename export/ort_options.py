"""How ONNX Runtime is opened: threads, memory, graph optimisation, a cache of optimised graphs."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from export.manifest import ExportError

Level = Literal["all", "extended", "basic", "none"]
_LEVELS: dict[Level, str] = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "none": "ORT_DISABLE_ALL",
}


@dataclass(frozen=True, kw_only=True)
class OrtOptions:
    """Settings of a session; the defaults are ONNX Runtime's own, but for the cores it may use, and
    that its threads rest when a graph has run.

    ``scripts/bench_runtime.py`` times them against each other.

    Attributes:
        threads: that one graph runs on; None: as many as this process may use cores.
        spinning: idle threads wait busily while their graph runs: quicker, but others miss the
            cores.
        arena: memory is kept for the next picture in place of being handed back.
        level: how far graphs are optimised when they are opened.
        cache: folder for optimised graphs, so that the next session opens sooner; None: no cache.
            Its files fit this machine and this version only and are named accordingly.
        profile: folder that ONNX Runtime writes the time of every operator to; None: no profile.
    """

    threads: int | None = None
    spinning: bool = True
    arena: bool = True
    level: Level = "all"
    cache: Path | None = None
    profile: Path | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ExportError(f"threads must be 1 or more, got {self.threads}")

    def session_options(self, ort: Any, component: str) -> Any:
        """ONNX Runtime's own object, but for the cache."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads or usable_cores()
        options.inter_op_num_threads = 1  # the graphs are chains
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[self.level])
        options.enable_cpu_mem_arena = self.arena
        options.add_session_config_entry(
            "session.intra_op.allow_spinning", "1" if self.spinning else "0"
        )
        # Else this graph's threads go on waiting busily while the next graph runs on the same
        # cores: one step of the demo's three graphs then takes up to 1.9 times as long.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.profile is not None:
            self.profile.mkdir(parents=True, exist_ok=True)
            options.enable_profiling = True
            options.profile_file_prefix = str(self.profile / component)
        return options

    def cache_folder(self, ort: Any, component: str, sha256: str) -> Path | None:
        """Where the optimised form of a graph is or will be; None without a cache."""
        if self.cache is None:
            return None
        made_by = f"{sha256} {ort.__version__} {self.level} {_processor()}"
        return self.cache / f"{component}-{hashlib.sha256(made_by.encode()).hexdigest()[:24]}"


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    """What optimised graphs depend on: the processor's model and its instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kept = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return " ".join(sorted(set(kept)))
