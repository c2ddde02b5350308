"""What the manifest, and each graph's own metadata, say of a model: all that a reader needs.

Whoever has only the .onnx files and an ONNX runtime, in any language, finds here what happens
before, between and after the graphs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import onnx
import onnxscript
import torch
import yaml
from diffusers import DDIMScheduler

from export.manifest import ExportError, Manifest, SchedulerTable
from metricgold import __version__
from metricgold.config import ExportConfig
from metricgold.model import FOV_FEATURES, FOV_OCTAVES, vae_factor
from metricgold.pretrained import INDEX_FILE, MetricGoldModel

LISTED_STEPS = (1, 2, 4, 10)
NOT_STATED = "not stated"
FOV_FORMULA = (
    "[sin(p), cos(p)] with p_k = tan(fov_y / 2) * pi * 2^o_k, o evenly spaced over 'octaves', "
    "features / 2 of them; all zeros for an unknown field of view"
)
PREPROCESSING = {
    "size": (
        "scale the long side to processing_resolution, round each side to the nearest multiple of "
        "size_multiple (at least one); a model of one size (static_size) takes that one instead"
    ),
    "resize": "bilinear with antialias on 8-bit sRGB",
    "antialias": (
        "along each axis, n pixels to m: s = max(1, n / m); output i is the sum of inputs j times "
        "weights max(0, 1 - |j + 0.5 - (i + 0.5) n / m| / s), divided by their sum; width first, "
        "then height. Of 8-bit values the sum x becomes floor(x + 0.5) after each, and weights are "
        "multiples of 2^-22 (this is Pillow's BILINEAR)"
    ),
    "value_range": "rgb / 255 * 2 - 1, channels first",
    "graphs": (
        "rgb -> vae_encoder -> rgb_latent; (rgb_latent, noisy_depth_latent, timestep, fov) -> "
        "unet_step -> velocity, once a step; depth_latent, the latent after the last step, -> "
        "depth_decoder -> depth. one_step, where there is one, is all of it for one size: rgb and "
        "fov_y_deg, the vertical field of view in degrees, 0 if unknown, -> depth"
    ),
    "sampler": (
        "DDIM: z = noisy_depth_latent; for each t of timesteps, which are round(T - i T / steps) "
        "- 1 for i = 0 .. steps - 1 with T = num_train_timesteps: a = alphas_cumprod[t]; "
        "p = t - floor(T / steps); b = alphas_cumprod[p], or final_alpha_cumprod if p < 0; "
        "v = velocity; clean = sqrt(a) z - sqrt(1 - a) v; noise = sqrt(a) v + sqrt(1 - a) z; "
        "z = sqrt(b) clean + sqrt(1 - b) noise"
    ),
    "one_step_start": (
        "noisy_depth_latent of a one-step model: channels x, y, x tan(fov_y/2) w/h, y tan(fov_y/2) "
        "with x, y the cell centres in [-1, 1], both tangents zeros for an unknown field of view; "
        "zeros in any further channel"
    ),
    "start": (
        "noisy_depth_latent otherwise, and of more than one step: independent standard normal "
        "numbers"
    ),
    "output": (
        "z-depth in metres; to the picture's own size: resize ln(depth) with 'antialias' in "
        "floating point, then exp"
    ),
}


def describe(
    model: MetricGoldModel,
    config: ExportConfig,
    *,
    attention: str,
    licence: str,
    checkpoint_sha256: str,
) -> Manifest:
    """The manifest of a model, without any graph yet.

    Args:
        attention: arithmetic inside attention, ``fp32`` or ``fp16``.
    """
    return Manifest(
        precision=config.precision,
        autoencoder="light" if model.light else "full",
        attention=attention,
        opset=config.opset,
        dynamic=config.dynamic,
        static_size=None if config.dynamic else list(config.engine_size),
        depth_min_m=float(model.config.depth_min_m),
        depth_max_m=float(model.config.depth_max_m),
        size_multiple=model.size_multiple,
        latent_factor=vae_factor(model.image_vae),
        latent_channels=model.image_vae.config.latent_channels,
        processing_resolution=model.default_processing_resolution,
        num_inference_steps=model.default_denoising_steps,
        fov={"features": FOV_FEATURES, "octaves": list(FOV_OCTAVES), "formula": FOV_FORMULA},
        preprocessing=PREPROCESSING,
        versions={
            "metricgold": __version__,
            "diffusers": diffusers.__version__,
            "torch": torch.__version__.partition("+")[0],
            "onnx": onnx.__version__,
            "onnxscript": onnxscript.__version__,
        },
        licence=licence,
        checkpoint_sha256=checkpoint_sha256,
        scheduler=scheduler_table(model.scheduler),
        components={},
    )


def licence_of(checkpoint: Path) -> str:
    """What the checkpoint's model card, or else its index, says of the weights' licence."""
    for said in (_model_card(checkpoint / "README.md"), _json(checkpoint / INDEX_FILE)):
        licence = said.get("license")
        if licence:
            named = [said.get("license_name"), said.get("license_link")]
            return " ".join(str(part) for part in (licence, *named) if part)
    return NOT_STATED


def _model_card(path: Path) -> dict[str, Any]:
    """The YAML that the Hugging Face hub reads at the top of a model card."""
    if not path.is_file():
        return {}
    parts = path.read_text("utf-8").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        front = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return front if isinstance(front, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def scheduler_table(scheduler: DDIMScheduler) -> SchedulerTable:
    """What the numpy DDIM loop needs of a diffusers scheduler.

    Raises:
        ExportError: the scheduler is not v-prediction with trailing timesteps.
    """
    settings = scheduler.config
    if settings.prediction_type != "v_prediction" or settings.timestep_spacing != "trailing":
        raise ExportError(
            f"the scheduler predicts '{settings.prediction_type}' with "
            f"'{settings.timestep_spacing}' timesteps; only v_prediction with trailing "
            "timesteps can be exported: use metricgold.diffusion.make_scheduler()"
        )
    timesteps = {}
    for steps in LISTED_STEPS:
        scheduler.set_timesteps(steps)
        timesteps[str(steps)] = [int(t) for t in scheduler.timesteps]
    return SchedulerTable(
        prediction_type=settings.prediction_type,
        timestep_spacing=settings.timestep_spacing,
        num_train_timesteps=int(settings.num_train_timesteps),
        final_alpha_cumprod=float(scheduler.final_alpha_cumprod),
        timesteps=timesteps,
        alphas_cumprod=" ".join(f"{float(a):.9g}" for a in scheduler.alphas_cumprod),
    )
