"""``metricgold info``: what a checkpoint is, and what this machine has."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from metricgold import __version__
from metricgold.commands.options import CHECKPOINT, CheckpointOption
from metricgold.workspace import checkpoint_of

PACKAGES = (
    "torch",
    "diffusers",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "prefect",
    "dvc",
)


def info(
    checkpoint: CheckpointOption = str(CHECKPOINT),
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What a checkpoint is: range, steps, parts and their size; and versions and devices here."""
    found: dict[str, Any] = {"metricgold": __version__, "python": platform.python_version()}
    found |= {name: version for name in PACKAGES if (version := _version(name))}
    found["device"] = _device()
    name = checkpoint_of(checkpoint)
    if isinstance(name, str) or name.exists() or checkpoint != str(CHECKPOINT):
        found["checkpoint"] = {"name": checkpoint} | _describe(name)
    else:
        found["checkpoint"] = f"none at {checkpoint}; name one with --checkpoint"
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for key, value in found.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for inner, text in value.items():
                print(f"  {inner}: {text}")
        else:
            print(f"{key}: {value}")


def _describe(checkpoint: Path | str) -> dict[str, Any]:
    from torch import nn

    from metricgold.pretrained import MetricGoldModel

    model = MetricGoldModel.from_pretrained(checkpoint)
    parts = {
        f"{name} (M parameters)": round(sum(p.numel() for p in part.parameters()) / 1e6, 3)
        for name, part in model.components.items()
        if isinstance(part, nn.Module) and any(True for _ in part.parameters())
    }
    return {
        "depth range (m)": f"{model.codec.depth_min_m:g} to {model.codec.depth_max_m:g}",
        "inference steps": model.default_denoising_steps,
        "processing resolution (px)": model.default_processing_resolution,
        "sides are multiples of (px)": model.size_multiple,
        "latent channels": model.image_vae.config.latent_channels,
        "knows the field of view": bool(model.config.fov_conditioning),
        "has a light autoencoder": model.light_vae is not None,
        **parts,
    }


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"CPU, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
