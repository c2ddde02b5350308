"""Command lines of NVIDIA's own tools for the engines that :mod:`export.build_engine` builds.

The same shapes and options, for whoever wants an engine, a timing or a comparison without this
project. Options as in ``trtexec --help`` of TensorRT 10.6 and polygraphy 0.53.6; neither tool has
been run on them, for want of a GPU.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from export.engine_manifest import LIMITS, Profile
from export.engine_profiles import profiles_of
from export.manifest import Manifest
from export.specs import GRAPHS
from metricgold.config import EnginesConfig, ExportConfig

_HARDWARE = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}


def command_lines(onnx: Path, engines: Path, graphs: Manifest, config: ExportConfig) -> list[str]:
    """For each graph: ``trtexec`` builds its engine, ``polygraphy`` compares it with ONNX Runtime.

    Profiles and options are those of ``build_engine``. Engines are strongly typed: precision is
    the graph's. TensorRT 11 knows no other and no flag for it; leave the flag out there.
    """
    lines = []
    for name, graph in graphs.graphs().items():
        profiles = profiles_of(name, graphs, config)
        source, engine = onnx / graph.onnx_file, engines / "trtexec" / f"{name}.engine"
        tolerance = GRAPHS[name].tolerance[graphs.arithmetic]
        lines.append(trtexec(source, engine, profiles, config.engines))
        lines.append(polygraphy(source, profiles, config.engines, tolerance))
    return lines


def trtexec(source: Path, engine: Path, profiles: Sequence[Profile], wanted: EnginesConfig) -> str:
    """Build an engine and time it, from a CUDA graph as the runtime does."""
    words = ["trtexec", f"--onnx={source}", f"--saveEngine={engine}", "--stronglyTyped"]
    words += [f"--memPoolSize=workspace:{int(wanted.workspace_gib * 1024)}M"]
    words += ["--profilingVerbosity=detailed", "--useCudaGraph"]
    if wanted.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={wanted.optimization_level}")
    if wanted.timing_cache:
        words.append(f"--timingCacheFile={engine.parent / 'timing.cache'}")
    if wanted.version_compatible:
        words.append("--versionCompatible")
    if wanted.hardware_compatibility != "none":
        words.append(f"--hardwareCompatibilityLevel={_HARDWARE[wanted.hardware_compatibility]}")
    if wanted.weight_streaming:
        words.append("--allowWeightStreaming")
    for index, profile in enumerate(profiles):
        if len(profiles) > 1:
            words.append(f"--profile={index}")
        for limit in LIMITS:
            shapes = ",".join(f"{n}:{'x'.join(map(str, s))}" for n, s in _shapes(profile, limit))
            words.append(f"--{limit}Shapes={shapes}")
    return shlex.join(words)


def polygraphy(
    source: Path, profiles: Sequence[Profile], wanted: EnginesConfig, tolerance: float
) -> str:
    """Run a graph by TensorRT and by ONNX Runtime on the same random inputs and compare."""
    words = ["polygraphy", "run", str(source), "--trt", "--onnxrt", "--strongly-typed"]
    words += ["--rtol", f"{tolerance:g}", "--atol", f"{tolerance:g}"]
    words += ["--pool-limit", f"workspace:{int(wanted.workspace_gib * 1024)}M"]
    if wanted.optimization_level is not None:
        words += ["--builder-optimization-level", str(wanted.optimization_level)]
    if wanted.version_compatible:
        words.append("--version-compatible")
    if wanted.hardware_compatibility != "none":
        words += ["--hardware-compatibility-level", wanted.hardware_compatibility]
    if wanted.weight_streaming:
        words.append("--weight-streaming")
    for profile in profiles:
        for limit in LIMITS:
            words.append(f"--trt-{limit}-shapes")
            words += _named(profile, limit)
    if profiles:
        words.append("--input-shapes")
        words += _named(profiles[0], "opt")
    return shlex.join(words)


def _named(profile: Profile, limit: str) -> list[str]:
    return [f"{name}:{shape}".replace(" ", "") for name, shape in _shapes(profile, limit)]


def _shapes(profile: Profile, limit: str) -> list[tuple[str, list[int]]]:
    return [(name, shapes[limit]) for name, shapes in profile.items()]
