"""Typed view of ``params.yaml``: frozen, keyword-only, unknown keys refused by name.

DVC reads the same file to decide what is stale; this module is the only place
in Python that parses it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from metricgold.errors import UserError

DatasetName = Literal["hypersim", "virtual_kitti", "tartanair", "folder"]
DATASET_NAMES: tuple[DatasetName, ...] = get_args(DatasetName)

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
CropShare = Annotated[float, Field(gt=0, le=1)]
Size = tuple[PositiveInt, PositiveInt]
"""Height, width in pixels."""


class ConfigError(UserError):
    """``params.yaml`` cannot be used; the message names the key, the value and the file."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class CodecConfig(_Section):
    """Depth range of the log codec in metres."""

    depth_min_m: PositiveFloat
    depth_max_m: PositiveFloat

    @model_validator(mode="after")
    def _ordered(self) -> CodecConfig:
        if self.depth_max_m <= self.depth_min_m:
            raise ValueError(
                f"depth_max_m ({self.depth_max_m}) must exceed depth_min_m ({self.depth_min_m})"
            )
        return self


class ProceduralConfig(_Section):
    """How much of the procedural world to render, in a dataset's native format."""

    train_scenes: PositiveInt
    holdout_scenes: PositiveInt
    frames_per_scene: PositiveInt
    size: Size


class DatasetConfig(_Section):
    """One dataset: where it comes from, what is taken, how it is split.

    ``weight`` is the mixture probability (relative); 0 leaves the dataset out. ``mirrors`` are
    base URLs or folders tried in order; ``$NAME`` is replaced by the environment variable.
    ``procedural`` renders the archives instead. ``releases`` is TartanAir's: V1, its successor
    V2, or both. ``splits``, ``frame_stride``, ``include`` and ``exclude`` (scenes, environments)
    choose a part of the dataset. ``streaming`` downloads, converts and deletes one group of files
    after the other, so that the archives are never on disk together.
    """

    weight: Annotated[float, Field(ge=0)]
    mirrors: tuple[str, ...] = ()
    procedural: ProceduralConfig | None = None
    crop: Size | None = None
    train_size: Size
    releases: tuple[Literal["v1", "v2"], ...] = ("v1",)
    splits: tuple[Literal["train", "holdout"], ...] = ("train", "holdout")
    frame_stride: PositiveInt = 1
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    holdout: tuple[str, ...] = ()
    holdout_last_frames: Annotated[int, Field(ge=0)] = 0
    streaming: bool = False
    max_missing_share: Fraction = 0.01

    @property
    def enabled(self) -> bool:
        """Whether the dataset takes part in the mixture."""
        return self.weight > 0

    @model_validator(mode="after")
    def _has_source(self) -> DatasetConfig:
        if self.weight > 0 and not self.mirrors and self.procedural is None:
            raise ValueError("a dataset with weight > 0 needs 'mirrors' or 'procedural'")
        return self


class DownloadConfig(_Section):
    """Network behaviour, the same for every dataset.

    ``parallel`` files at once, ``per_host`` of them from one host. ``max_disk_gb`` (10^9 bytes):
    a dataset that needs more at once is refused before anything is fetched; None: what is free.
    """

    retries: PositiveInt
    timeout_s: PositiveFloat
    backoff_s: PositiveFloat
    parallel: PositiveInt
    per_host: PositiveInt = 4
    max_disk_gb: PositiveFloat | None = None


class PreprocessConfig(_Section):
    """Filters on frames and the shard encoding."""

    min_valid_ratio: Fraction
    min_depth_range_m: Annotated[float, Field(ge=0)]
    rgb_quality: Annotated[int, Field(ge=1, le=100)]
    workers: PositiveInt


class LoaderConfig(_Section):
    """``workers``: processes that read training data ahead of the step; by the machine if None.

    Nothing that is trained depends on it.
    """

    workers: Annotated[int, Field(ge=0)] | None = None


class TrackingConfig(_Section):
    """Where training can be watched while it runs, by name; a point every ``every`` steps.

    Every ``validate_every`` steps stages B and C predict a few held-out frames and leave a
    picture. Files go to ``folder``/stage. Nothing that is trained depends on any of it.
    """

    trackers: tuple[Literal["dvclive", "tensorboard", "wandb", "mlflow"], ...] = ("dvclive",)
    every: PositiveInt = 50
    validate_every: PositiveInt = 1000
    folder: str = ".work/tracking"


class ToyModelConfig(_Section):
    """Stable Diffusion's architecture at toy width."""

    vae_channels: tuple[PositiveInt, ...]
    vae_layers: PositiveInt
    unet_channels: tuple[PositiveInt, ...]
    unet_layers: PositiveInt
    attention_levels: tuple[bool, ...]
    attention_head_dim: PositiveInt
    cross_attention_dim: PositiveInt
    norm_groups: PositiveInt
    latent_channels: Annotated[int, Field(ge=4)] = 4


Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""Of products in training; ``auto``: bf16 where the device multiplies it faster, else fp32."""


class MuonConfig(_Section):
    """Muon for the hidden weights of a network; everything else stays with AdamW.

    ``ns_steps``: Newton-Schulz iterations that make a step orthogonal; 5 are usual.
    """

    lr: PositiveFloat
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    ns_steps: PositiveInt = 5


class OptimizerConfig(_Section):
    """AdamW at ``lr``, and Muon where asked; linear warm-up, then decay to ``final_lr_ratio``.

    ``accumulation``: micro-batches of ``batch_size`` in a step, over all processes. ``adam_8bit``
    keeps AdamW's state in 8 bits (package bitsandbytes, GPU). ``compile``: torch.compile.
    ``shard`` divides weights, gradients and optimizer state among the processes (FSDP).
    """

    steps: PositiveInt
    batch_size: PositiveInt
    accumulation: PositiveInt = 1
    lr: PositiveFloat
    muon: MuonConfig | None = None
    adam_8bit: bool = False
    warmup_steps: Annotated[int, Field(ge=0)]
    decay: Literal["cosine", "exponential", "constant"]
    final_lr_ratio: Fraction
    weight_decay: Annotated[float, Field(ge=0)]
    grad_clip: PositiveFloat
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    precision: Precision
    gradient_checkpointing: bool = False
    compile: bool = False
    channels_last: bool = False
    shard: bool = False
    checkpoint_every: PositiveInt

    @model_validator(mode="after")
    def _precision_of_muon(self) -> OptimizerConfig:
        if self.muon and self.precision == "fp16":
            raise ValueError("muon does not go with precision fp16; take bf16 or fp32")
        return self

    @model_validator(mode="after")
    def _what_can_be_divided(self) -> OptimizerConfig:
        if self.shard and (self.muon or self.adam_8bit or self.precision == "fp16"):
            raise ValueError("shard goes with AdamW in bf16 or fp32 only; leave out the others")
        return self


class BaseModelConfig(_Section):
    """Either a hub checkpoint (``hub_id`` + ``revision``) or a toy one trained from scratch.

    ``crop``: the toy's image VAE sees a random part of every batch, this share of its sides.
    """

    hub_id: str | None = None
    revision: str | None = None
    toy: ToyModelConfig | None = None
    optimizer: OptimizerConfig | None = None
    crop: CropShare = 1.0

    @model_validator(mode="after")
    def _one_of(self) -> BaseModelConfig:
        if (self.hub_id is None) == (self.toy is None):
            raise ValueError("base_model needs exactly one of 'hub_id' and 'toy'")
        if self.toy is not None and self.optimizer is None:
            raise ValueError("base_model.toy needs base_model.optimizer")
        return self


class TrainVaeConfig(_Section):
    """Stage A: what of the VAE is trained, on what, and its loss weights.

    ``crop``: a random part of every batch, this share of its sides. ``latent_mixup``: the share
    of a batch whose latents are mixed with another frame's, so that the decoder is near affine.
    """

    optimizer: OptimizerConfig
    train_encoder: bool
    crop: CropShare = 1.0
    latent_mixup: Fraction = 0.0
    gradient_loss_weight: Annotated[float, Field(ge=0)]
    kl_weight: Annotated[float, Field(ge=0)]


class AugmentConfig(_Section):
    """Augmentations; probabilities in [0, 1], scales relative to the frame.

    ``colour``: amount of brightness, contrast, saturation and balance. ``blur``, ``jpeg``:
    probabilities of a Gaussian blur and of compression.
    """

    flip: Fraction
    crop: Fraction
    crop_min_scale: Annotated[float, Field(gt=0, le=1)]
    uncrop: Fraction
    uncrop_max_scale: Annotated[float, Field(ge=1)]
    colour: Annotated[float, Field(ge=0)]
    blur: Fraction = 0.0
    jpeg: Fraction = 0.0


class CacheLatentsConfig(_Section):
    """How many augmentation variants a frame are encoded (the first is un-augmented)."""

    variants: PositiveInt
    batch_size: PositiveInt
    precision: Precision = "fp32"
    augment: AugmentConfig


class LoraConfig(_Section):
    """Low-rank updates in place of full ones, for GPUs of 12 GB or less (package peft).

    The attention's projections of the U-Net get updates of rank ``rank``, scaled by ``alpha`` /
    ``rank``; its first convolution and the camera's embedding, which are new, train whole.
    """

    rank: PositiveInt = 16
    alpha: PositiveInt = 16


class TrainUnetConfig(_Section):
    """Stage B: v-prediction on cached latents."""

    optimizer: OptimizerConfig
    noise_strength: Fraction
    fov_dropout: Fraction
    lora: LoraConfig | None = None


class ConfidenceConfig(_Section):
    """A head that says how wrong each depth is likely to be; the U-Net is not changed by it.

    ``width``: its channels, a multiple of 8.
    """

    width: Annotated[int, Field(gt=0, multiple_of=8)] = 64
    optimizer: OptimizerConfig


class TrainOneStepConfig(_Section):
    """Stage C: one step, end to end, metric loss in log-depth.

    ``latent_phase`` runs first: the same step, compared in latent space and, with
    ``auxiliary_loss_weight``, by the metric loss on the depth of a head of its own.
    ``confidence`` runs last, if given.
    """

    latent_phase: OptimizerConfig
    optimizer: OptimizerConfig
    gradient_loss_weight: Annotated[float, Field(ge=0)]
    scale_loss_weight: Annotated[float, Field(ge=0)]
    scale_loss_lambda: Fraction
    relative_loss_weight: Annotated[float, Field(ge=0)] = 0.0
    latent_loss_weight: PositiveFloat = 1.0
    auxiliary_loss_weight: Annotated[float, Field(ge=0)] = 0.0
    fov_dropout: Fraction
    lora: LoraConfig | None = None
    confidence: ConfidenceConfig | None = None


class EvaluateConfig(_Section):
    """Held-out evaluation; steps and ensemble as in diffusers' Marigold pipeline."""

    num_inference_steps: PositiveInt
    ensemble_size: PositiveInt
    processing_resolution: PositiveInt
    max_frames: PositiveInt | None = None
    pictures: PositiveInt


class ExportConfig(_Section):
    """Exported graphs: opset, precision, and the shapes that parity is checked at.

    ``fused``: of a one-step model also one graph from picture to metres, at ``engine_size``.
    """

    opset: Annotated[int, Field(ge=18, le=24)]
    precision: Literal["fp32", "fp16"]
    dynamic: bool
    parity_sizes: tuple[Size, ...]
    engine_size: Size
    fused: bool = False


class ProfileConfig(_Section):
    """Everything one profile says."""

    seed: int
    codec: CodecConfig
    datasets: dict[DatasetName, DatasetConfig]
    download: DownloadConfig
    preprocess: PreprocessConfig
    loader: LoaderConfig = LoaderConfig()
    tracking: TrackingConfig = TrackingConfig()
    base_model: BaseModelConfig
    train_vae: TrainVaeConfig
    cache_latents: CacheLatentsConfig
    train_unet: TrainUnetConfig
    train_one_step: TrainOneStepConfig
    evaluate: EvaluateConfig
    export: ExportConfig

    @model_validator(mode="after")
    def _all_datasets(self) -> ProfileConfig:
        missing = [name for name in DATASET_NAMES if name not in self.datasets]
        if missing:
            raise ValueError(f"datasets lacks {', '.join(missing)} (weight: 0 leaves one out)")
        if not any(d.enabled for d in self.datasets.values()):
            raise ValueError("every dataset has weight 0; at least one must be used")
        return self

    def enabled_datasets(self) -> dict[DatasetName, DatasetConfig]:
        """Datasets with a positive mixture weight, in their fixed order."""
        return {n: self.datasets[n] for n in DATASET_NAMES if self.datasets[n].enabled}


class _Params(_Section):
    profile: str
    profiles: dict[str, ProfileConfig]


def _one_line(error: ValidationError, path: Path) -> str:
    parts = []
    for item in error.errors()[:3]:
        key = ".".join(str(p) for p in item["loc"]) or "(top level)"
        if item["type"] == "extra_forbidden":
            parts.append(f"unknown key '{key}'")
        elif item["type"] == "missing":
            parts.append(f"missing key '{key}'")
        else:
            shown = repr(item["input"])
            value = f" (got {shown})" if len(shown) < 80 else ""
            parts.append(f"'{key}': {item['msg'].removeprefix('Value error, ')}{value}")
    more = len(error.errors()) - len(parts)
    return f"{path}: " + "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def load_config(path: Path | str = "params.yaml", profile: str | None = None) -> ProfileConfig:
    """Read one profile of ``path``; ``profile`` overrides the file's ``profile`` key.

    Raises:
        ConfigError: the file is missing, is not YAML, names an unknown profile,
            or holds an unknown, missing or out-of-range key.
    """
    path = Path(path)
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run from the repository root") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        params = _Params.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_one_line(error, path)) from None
    name = profile or os.environ.get("METRICGOLD_PROFILE") or params.profile
    if name not in params.profiles:
        known = ", ".join(sorted(params.profiles))
        raise ConfigError(f"{path}: unknown profile '{name}'; known profiles: {known}")
    return params.profiles[name]
