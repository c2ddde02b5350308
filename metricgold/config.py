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
EngineComponent = Literal["vae_encoder", "unet_step", "depth_decoder"]
"""Graphs of variable shape, by the names of :data:`export.specs.COMPONENTS`."""


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


class LightVaeConfig(_Section):
    """Size of the light autoencoder, an ``AutoencoderTiny`` of diffusers; the default is TAESD's.

    ``width``: channels at every level. ``encoder_blocks``: residual blocks of each level from
    pixels to latents; ``decoder_blocks`` from latents to pixels. A level more halves the sides.
    """

    width: PositiveInt = 64
    encoder_blocks: tuple[Annotated[int, Field(ge=0)], ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[Annotated[int, Field(ge=0)], ...] = (3, 3, 3, 1)

    @model_validator(mode="after")
    def _of_one_factor(self) -> LightVaeConfig:
        if len(self.encoder_blocks) != len(self.decoder_blocks):
            raise ValueError(
                f"encoder_blocks has {len(self.encoder_blocks)} levels, decoder_blocks "
                f"{len(self.decoder_blocks)}; they must be as many"
            )
        return self


class TrainLightConfig(_Section):
    """The light autoencoder, distilled after stage C; all other networks stay as they are.

    It starts at random with the size of ``network``, or from ``pretrained`` (a repository of the
    hub or a folder, with ``revision``), such as ``madebyollin/taesd``. ``latent_phase`` trains
    encoder and decoder apart, on the full ones' latents; then they are trained through the U-Net.
    ``latent_loss_weight``: there, of the L1 between pictures' latents beside stage C's metric loss.
    """

    network: LightVaeConfig | None = None
    pretrained: str | None = None
    revision: str | None = None
    latent_phase: OptimizerConfig
    optimizer: OptimizerConfig
    latent_loss_weight: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _one_of(self) -> TrainLightConfig:
        if (self.network is None) == (self.pretrained is None):
            raise ValueError("train_light needs exactly one of 'network' and 'pretrained'")
        if self.latent_phase.shard or self.optimizer.shard:
            raise ValueError("train_light: nothing so small is divided; leave out 'shard'")
        return self


class EvaluateConfig(_Section):
    """Held-out evaluation; steps and ensemble as in diffusers' Marigold pipeline."""

    num_inference_steps: PositiveInt
    ensemble_size: PositiveInt
    processing_resolution: PositiveInt
    max_frames: PositiveInt | None = None
    pictures: PositiveInt


class EngineProfileConfig(_Section):
    """Pictures that one profile of an engine takes: sizes in pixels, and pictures at a time.

    Between ``min`` and ``max`` on either side; kernels are chosen for ``opt``. ``batch`` has the
    least, the best and the most.
    """

    min: Size
    opt: Size
    max: Size
    batch: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 1, 1)

    @model_validator(mode="after")
    def _in_order(self) -> EngineProfileConfig:
        axes = {"height": 0, "width": 1}
        rows = {name: (self.min[i], self.opt[i], self.max[i]) for name, i in axes.items()}
        for name, row in (rows | {"batch": self.batch}).items():
            if list(row) != sorted(row):
                low, best, high = row
                raise ValueError(f"{name} needs min <= opt <= max, got {low}, {best}, {high}")
        return self


class EnginesConfig(_Section):
    """How TensorRT and TensorRT-RTX engines are built; what a library lacks is said and left out.

    ``profiles``: for every graph of variable shape; none: one around ``engine_size``.
    ``components``: other profiles for one graph. ``optimization_level``: how long to search,
    0 to 5; none: the library's default. ``version_compatible``: loads with later versions too.
    ``hardware_compatibility``: other GPUs than the one at hand. ``weight_streaming``: weights may
    stay in the host's memory when the engine runs. ``timing_cache``: keep what was timed.
    """

    profiles: tuple[EngineProfileConfig, ...] = ()
    components: dict[EngineComponent, tuple[EngineProfileConfig, ...]] = {}
    workspace_gib: PositiveFloat = 4.0
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    timing_cache: bool = True
    version_compatible: bool = False
    hardware_compatibility: Literal["none", "same_compute_capability", "ampere_plus"] = "none"
    weight_streaming: bool = False


OPSETS = range(18, 25)
"""Of ONNX, that graphs can be exported at."""


class ExportConfig(_Section):
    """Exported graphs: opset, precision, and what parity is checked on.

    ``fused``: of a one-step model also one graph from picture to metres, at ``engine_size``.
    ``attention``: arithmetic inside attention in float16: ``fp32``, or ``auto``, where it would
    overflow. ``light``: graphs of the light autoencoder in place of the full ones.
    ``parity_frames``: held-out frames of each dataset whose errors are compared; 0: none.
    """

    opset: Annotated[int, Field(ge=OPSETS[0], le=OPSETS[-1])]
    precision: Literal["fp32", "fp16"]
    dynamic: bool
    parity_sizes: tuple[Size, ...]
    engine_size: Size
    fused: bool = False
    attention: Literal["auto", "fp32"] = "auto"
    light: bool = False
    parity_frames: Annotated[int, Field(ge=0)] = 24
    engines: EnginesConfig = EnginesConfig()


Margin = Annotated[float, Field(ge=0)]


class PromotionConfig(_Section):
    """When a new model takes the champion's place: rules on figures of the same frames.

    Each rule is a figure and a margin in the figure's own unit, and holds for the interval at
    ``level`` of the improvement, by ``resamples`` paired bootstrap samples of whole scenes.

    ``better``: the whole interval is above the margin. ``not_worse``: it is above minus the
    margin. ``not_worse_on_any``: likewise, on each dataset alone. ``min_scenes``: with fewer, no
    interval is believed and nothing is promoted.
    """

    better: Annotated[dict[str, Margin], Field(min_length=1)] = {"abs_rel": 0.0, "delta1": 0.0}
    not_worse: dict[str, Margin] = {}
    not_worse_on_any: dict[str, Margin] = {}
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    resamples: PositiveInt = 10_000
    min_scenes: PositiveInt = 20
    seed: int = 0


class ProfileConfig(_Section):
    """Everything one profile says; ``train_light: null`` for no light autoencoder."""

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
    train_light: TrainLightConfig | None
    evaluate: EvaluateConfig
    export: ExportConfig
    promotion: PromotionConfig = PromotionConfig()

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


class RetryConfig(_Section):
    """What is tried again after the network or a server failed, and only then.

    ``attempts`` after the first; the pause before them is ``backoff_s``, doubled each time.
    """

    attempts: Annotated[int, Field(ge=0, le=50)] = 3
    backoff_s: PositiveFloat = 10.0


class ScheduleConfig(_Section):
    """When training is run anew: a cron line in a time zone (its name in the IANA database)."""

    cron: str
    timezone: str = "UTC"


class QualityConfig(_Section):
    """How good the model must stay: ``metric`` on the shards in ``data``, on which it is evaluated.

    ``model`` as ``metricgold evaluate --model`` takes it. The bound is ``at_most`` for an error,
    ``at_least`` for an accuracy.
    """

    data: str
    metric: str
    at_most: float | None = None
    at_least: float | None = None
    model: str = "artifacts/metricgold"
    frames: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> QualityConfig:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("quality needs exactly one of 'at_most' and 'at_least'")
        return self


class LaunchConfig(_Section):
    """The processes that share a training stage's work.

    ``processes`` on each of ``hosts``; none: on this machine. The first host is where DVC runs;
    they meet on its ``port``, and wait ``wait_s`` seconds for each other.
    """

    hosts: list[str] = []
    processes: PositiveInt = 1
    port: Annotated[int, Field(ge=1, le=65535)] = 29500
    wait_s: PositiveFloat = 1800.0


class OrchestrationConfig(_Section):
    """How flows run the stages. It decides no number, so it makes no stage stale.

    ``timeout_s`` (seconds) and ``parallel`` (at once) by the stage's name without its dataset;
    a stage that is not named has no time limit, and runs alone beside those that are parallel.
    ``watch_minutes``: how often sources, and the quality, are looked at; None: never.
    ``secrets``: environment variables of the stages, and the Prefect Secret blocks they come from.
    ``runner``: machines that preprocess and evaluate, as ``flows/_spread.py`` reads it; None: the
    one that runs the stage. ``shared``: a path or URI that all of them reach. ``piece_mb`` (of
    archives) and ``piece_frames``: what one of them does at a time, and what is lost with it.
    ``launch``: in how many processes, and where, the training stages run.
    """

    schedule: ScheduleConfig | None = None
    retry: RetryConfig = RetryConfig()
    timeout_s: dict[str, PositiveFloat] = {}
    parallel: dict[str, PositiveInt] = {"download": 4}
    watch_minutes: PositiveFloat | None = None
    quality: QualityConfig | None = None
    secrets: dict[str, str] = {}
    runner: str | None = None
    shared: str = ".work/spread"
    piece_mb: PositiveFloat = 250.0
    piece_frames: PositiveInt = 64
    launch: LaunchConfig = LaunchConfig()


class _Params(_Section):
    profile: str
    profiles: dict[str, ProfileConfig]
    orchestration: OrchestrationConfig = OrchestrationConfig()


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


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run from the repository root") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def profile_names(path: Path | str = "params.yaml") -> tuple[str, list[str]]:
    """The chosen profile and the names of all; nothing of what they say is checked.

    Raises:
        ConfigError: the file is missing, or is not YAML.
    """
    raw = _read_yaml(Path(path)) or {}
    return str(raw.get("profile")), sorted(raw.get("profiles") or [])


def load_orchestration(path: Path | str = "params.yaml") -> OrchestrationConfig:
    """Read the section ``orchestration`` alone; what is not given has its default.

    Raises:
        ConfigError: the file is missing, is not YAML, or the section holds a wrong key or value.
    """
    section = (_read_yaml(Path(path)) or {}).get("orchestration", {})
    try:
        return OrchestrationConfig.model_validate(section)
    except ValidationError as error:
        raise ConfigError(_one_line(error, Path(f"{path}: orchestration"))) from None


def load_config(path: Path | str = "params.yaml", profile: str | None = None) -> ProfileConfig:
    """Read one profile of ``path``; ``profile`` overrides the file's ``profile`` key.

    Raises:
        ConfigError: the file is missing, is not YAML, names an unknown profile,
            or holds an unknown, missing or out-of-range key.
    """
    path = Path(path)
    raw = _read_yaml(path)
    try:
        params = _Params.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_one_line(error, path)) from None
    name = profile or os.environ.get("METRICGOLD_PROFILE") or params.profile
    if name not in params.profiles:
        known = ", ".join(sorted(params.profiles))
        raise ConfigError(f"{path}: unknown profile '{name}'; known profiles: {known}")
    return params.profiles[name]
