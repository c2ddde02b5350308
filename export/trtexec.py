"""Command lines of NVIDIA's own tools for the engines that :mod:`export.build_engine` builds."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from export.engine_manifest import Profile, profile_of
from export.manifest import Manifest
from export.specs import GRAPHS


def command_lines(
    onnx: Path, engines: Path, graphs: Manifest, engine_size: tuple[int, int]
) -> list[str]:
    """For each graph: ``trtexec`` builds its engine, ``polygraphy`` compares it with ONNX Runtime.

    Profiles are those of ``build_engine``. Engines are strongly typed: precision is the graph's.
    TensorRT 11 knows no other and no flag for it; leave the flag out there.
    """
    lines = []
    for name, graph in graphs.graphs().items():
        profile = profile_of(name, graphs, engine_size)
        source, engine = onnx / graph.onnx_file, engines / "trtexec" / f"{name}.engine"
        lines.append(trtexec(source, engine, profile))
        lines.append(polygraphy(source, profile, GRAPHS[name].tolerance[graphs.arithmetic]))
    return lines


def trtexec(source: Path, engine: Path, profile: Profile) -> str:
    """Build an engine and time it."""
    words = ["trtexec", f"--onnx={source}", f"--saveEngine={engine}", "--stronglyTyped"]
    for limit in _limits(profile):
        shapes = ",".join(f"{n}:{'x'.join(map(str, s))}" for n, s in _shapes(profile, limit))
        words.append(f"--{limit}Shapes={shapes}")
    return shlex.join(words)


def polygraphy(source: Path, profile: Profile, tolerance: float) -> str:
    """Run a graph by TensorRT and by ONNX Runtime on the same random inputs and compare."""
    words = ["polygraphy", "run", str(source), "--trt", "--onnxrt", "--strongly-typed"]
    words += ["--rtol", f"{tolerance:g}", "--atol", f"{tolerance:g}"]
    for limit in _limits(profile):
        words.append(f"--trt-{limit}-shapes")
        words += [f"{name}:{shape}".replace(" ", "") for name, shape in _shapes(profile, limit)]
    if profile:
        words.append("--input-shapes")
        words += [f"{name}:{shape}".replace(" ", "") for name, shape in _shapes(profile, "opt")]
    return shlex.join(words)


def _limits(profile: Mapping[str, object]) -> tuple[str, ...]:
    return ("min", "opt", "max") if profile else ()


def _shapes(profile: Profile, limit: str) -> list[tuple[str, list[int]]]:
    return [(name, shapes[limit]) for name, shapes in profile.items()]
