"""``manifest.json`` beside the graphs: all a runtime must know that the graphs don't say.

Free of torch. Reading checks every file's sha256, so a stale or foreign graph is refused
by name instead of giving plausible nonsense.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.specs import ONE_STEP, LatentGrid, Precision
from metricgold import files
from metricgold.depth_codec import DepthCodec
from metricgold.errors import UserError

MANIFEST_FILE = "manifest.json"
FORMAT = 4
EXPORT_HINT = "run 'dvc repro export_onnx' or 'python -m export.onnx_export'"


class ExportError(UserError):
    """An export, an engine or its folder cannot be used; names the file, why, what to do."""


class BackendUnavailableError(ExportError):
    """A back-end cannot be used on this machine; the message says what is missing."""


class MemoryShortError(ExportError, MemoryError):
    """A back-end had no memory for what it was asked."""


class ShapeError(ExportError):
    """A back-end runs the graph, but not at this shape."""


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """One exported graph. ``files`` maps every file it needs (first the .onnx) to its sha256."""

    files: dict[str, str]
    bytes: int
    inputs: dict[str, list[str | int]]
    output: dict[str, list[str | int]]

    @property
    def onnx_file(self) -> str:
        """Name of the .onnx file itself."""
        return next(iter(self.files))

    @property
    def onnx_sha256(self) -> str:
        """Hash of the .onnx file itself."""
        return self.files[self.onnx_file]


@dataclass(frozen=True, kw_only=True)
class FusedGraph(GraphFile):
    """A graph from picture to metres in one step, for pictures of one ``size`` (height, width)."""

    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class SchedulerTable:
    """Noise schedule of the v-prediction model: what the DDIM loop needs, nothing else.

    Attributes:
        alphas_cumprod: one value a training timestep, space-separated, exact in float32.
        final_alpha_cumprod: value after the last step (1: a clean latent).
        timesteps: trailing timesteps by number of steps, for readers in other languages.
    """

    prediction_type: str
    timestep_spacing: str
    num_train_timesteps: int
    final_alpha_cumprod: float
    timesteps: dict[str, list[int]]
    alphas_cumprod: str = field(repr=False)

    def alphas(self) -> NDArray[np.float32]:
        """``alphas_cumprod`` [num_train_timesteps] as float32."""
        return np.array(self.alphas_cumprod.split(), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about one exported model; ``fused`` is None where it was not asked for.

    Attributes:
        attention: arithmetic inside attention; fp32 in a graph of fp16 that would overflow there.
        autoencoder: ``full`` or ``light``, whose encoder and decoder the graphs are.
        licence: of the weights, as their model card says.
    """

    precision: str
    attention: str
    opset: int
    dynamic: bool
    static_size: list[int] | None
    depth_min_m: float
    depth_max_m: float
    size_multiple: int
    latent_factor: int
    latent_channels: int
    processing_resolution: int
    num_inference_steps: int
    fov: dict[str, Any]
    preprocessing: dict[str, str]
    versions: dict[str, str]
    licence: str
    checkpoint_sha256: str
    scheduler: SchedulerTable
    components: dict[str, GraphFile]
    fused: FusedGraph | None = None
    autoencoder: str = "full"
    format: int = FORMAT

    @property
    def arithmetic(self) -> Precision:
        """Inside the graphs."""
        return Precision(self.precision)

    @property
    def codec(self) -> DepthCodec:
        """Depth in metres to the range of the networks and back."""
        return DepthCodec(self.depth_min_m, self.depth_max_m)

    @property
    def grid(self) -> LatentGrid:
        """How the model's latents relate to the picture."""
        return LatentGrid(factor=self.latent_factor, channels=self.latent_channels)

    def metadata(self) -> dict[str, Any]:
        """What each graph carries in its own metadata: all but the hashes of the graphs."""
        return {k: v for k, v in asdict(self).items() if k not in ("components", "fused")}

    def graphs(self) -> dict[str, GraphFile]:
        """Every graph there is."""
        return self.components | ({} if self.fused is None else {ONE_STEP.name: self.fused})

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``."""
        files.write_json(folder / MANIFEST_FILE, asdict(self))


def read_json(path: Path, hint: str) -> Any:
    """Parsed JSON; :class:`ExportError` with ``hint`` (what to do) when missing or damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path}: no such file; {hint}") from None
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: cannot be read ({_flat(error)}); {hint}") from None


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_folder(folder: Path) -> str:
    """One hash over the names and contents of every file below ``folder``."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def read_manifest(folder: Path | str) -> Manifest:
    """Manifest of an export folder, not yet compared with the files.

    Raises:
        ExportError: the folder holds no manifest, or one this version cannot read.
    """
    path = Path(folder) / MANIFEST_FILE
    raw = read_json(path, EXPORT_HINT)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = raw.get("format") if isinstance(raw, dict) else None
        raise ExportError(f"{path}: format {found!r}, this version reads {FORMAT}; {EXPORT_HINT}")
    try:
        scheduler = SchedulerTable(**raw.pop("scheduler"))
        components = {n: GraphFile(**g) for n, g in raw.pop("components").items()}
        fused = raw.pop("fused")
        if fused is not None:
            fused = FusedGraph(**fused | {"size": tuple(fused["size"])})
        return Manifest(**raw, scheduler=scheduler, components=components, fused=fused)
    except (TypeError, KeyError, AttributeError) as error:
        raise ExportError(
            f"{path}: not an export manifest ({_flat(error)}); {EXPORT_HINT}"
        ) from None


def verify_files(folder: Path | str, files: dict[str, str], hint: str) -> None:
    """Compare files with the sha256s a manifest gives.

    Raises:
        ExportError: names the first file that is missing or differs.
    """
    for name, expected in files.items():
        path = Path(folder) / name
        if not path.is_file():
            raise ExportError(f"{path}: missing, though the manifest lists it; {hint}")
        if sha256_of(path) != expected:
            raise ExportError(f"{path}: differs from what the manifest lists; {hint}")


def verify_graphs(folder: Path | str, manifest: Manifest) -> None:
    """:func:`verify_files` for every exported graph."""
    for graph in manifest.graphs().values():
        verify_files(folder, graph.files, EXPORT_HINT)


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())
