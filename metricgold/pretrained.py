"""A checkpoint: its parts, its folder, the hub. What is done with the parts is elsewhere.

The parts are plain diffusers classes, so any diffusers user can load them one by one.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import create_repo, snapshot_download
from torch import Tensor, nn

from metricgold.confidence import ConfidenceHead
from metricgold.depth_codec import DepthCodec
from metricgold.empty_text import EmptyText
from metricgold.model import LOADING, CheckpointError, Vae, vae_factor
from metricgold.model_card import write_model_card

INDEX_FILE = "model_index.json"
FILES = ["*.json", "*.safetensors"]
"""What is read of a repository on the hub."""
PIPELINE = "MetricGoldPipeline"
"""What reads the folder, by the name that is written into its index."""


class MetricGoldModel(DiffusionPipeline):
    """All parts of a checkpoint, as a diffusers pipeline that cannot be called.

    Args:
        image_vae: encodes pictures, never trained here.
        depth_vae: encodes and decodes log-depth.
        unet: from 2 C channels (picture, noisy depth) to velocity.
        scheduler: DDIM with zero terminal SNR.
        empty_text: the empty prompt's embedding.
        confidence: head for the uncertainty of one prediction, where trained.
        light_vae: encodes pictures and decodes depth at a fraction of the cost, where trained.
        depth_min_m, depth_max_m: range in metres that [-1, 1] stands for, logarithmically.
        default_denoising_steps: what the weights were trained for (1 after stage C).
        default_processing_resolution: long side in pixels.
        fov_conditioning: whether the U-Net was trained with the field of view.
        light: whether the light autoencoder is used, see :meth:`use_light`.
    """

    _optional_components: ClassVar[list[str]] = ["confidence", "light_vae"]

    image_vae: AutoencoderKL
    depth_vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler
    empty_text: EmptyText
    confidence: ConfidenceHead | None
    light_vae: AutoencoderTiny | None

    def __init__(
        self,
        image_vae: AutoencoderKL,
        depth_vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        empty_text: EmptyText,
        confidence: ConfidenceHead | None = None,
        light_vae: AutoencoderTiny | None = None,
        depth_min_m: float = 0.1,
        depth_max_m: float = 80.0,
        default_denoising_steps: int = 1,
        default_processing_resolution: int = 768,
        fov_conditioning: bool = True,
        prediction_type: str = "v_prediction",
        light: bool = False,
    ) -> None:
        super().__init__()
        self.register_modules(
            image_vae=image_vae,
            depth_vae=depth_vae,
            unet=unet,
            scheduler=scheduler,
            empty_text=empty_text,
            confidence=confidence,
            light_vae=light_vae,
        )
        self.register_to_config(
            depth_min_m=depth_min_m,
            depth_max_m=depth_max_m,
            default_denoising_steps=default_denoising_steps,
            default_processing_resolution=default_processing_resolution,
            fov_conditioning=fov_conditioning,
            prediction_type=prediction_type,
        )
        self.use_light(light)

    def freeze(self) -> Self:
        """All networks in inference mode, without gradients."""
        for part in self.components.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        return self

    def use_light(self, light: bool = True) -> Self:
        """Encode and decode by the light autoencoder, or by the full ones again.

        Raises:
            CheckpointError: there is none, or its latents have another size.
        """
        if light and self.light_vae is None:
            raise CheckpointError(
                f"{self.name_or_path or 'this model'}: has no light autoencoder; train one by "
                "'train_light' in params.yaml, or leave 'light' out"
            )
        if light and _latents_of(self.light_vae) != _latents_of(self.image_vae):
            raise CheckpointError(
                "the light autoencoder's latents have {} channels a {} px, the full one's {} a {} "
                "px: they do not belong together".format(
                    *_latents_of(self.light_vae), *_latents_of(self.image_vae)
                )
            )
        self.register_to_config(light=light)
        return self

    @property
    def light(self) -> bool:
        """Whether the light autoencoder is used."""
        return bool(self.config.light)

    @property
    def picture_encoder(self) -> Vae:
        """What :func:`metricgold.model.encode` takes for pictures."""
        return self.light_vae if self.light else self.image_vae

    @property
    def depth_decoder(self) -> Vae:
        """What :func:`metricgold.model.decode_depth_norm` takes."""
        return self.light_vae if self.light else self.depth_vae

    @property
    def parts_in_use(self) -> dict[str, Any]:
        """``components`` without the autoencoders that are not used."""
        idle = ("image_vae", "depth_vae") if self.light else ("light_vae",)
        return {name: part for name, part in self.components.items() if name not in idle}

    @property
    def codec(self) -> DepthCodec:
        """Depth in metres to the range of the networks and back."""
        return DepthCodec(self.config.depth_min_m, self.config.depth_max_m)

    @property
    def default_denoising_steps(self) -> int:
        """Steps that the weights were trained for."""
        return int(self.config.default_denoising_steps)

    @property
    def default_processing_resolution(self) -> int:
        """Long side in pixels that the weights were trained for."""
        return int(self.config.default_processing_resolution)

    @property
    def empty_text_embed(self) -> Tensor:
        """Text embedding [1, T, C] of the empty prompt."""
        return self.empty_text.embedding

    @property
    def size_multiple(self) -> int:
        """What height and width in pixels must be multiples of: the VAE's factor.

        The U-Net takes latents of any size: on its way up it goes back to the very sizes it had
        on its way down.
        """
        return vae_factor(self.image_vae)

    @classmethod
    def from_pretrained(cls, folder: Path | str, **options: Any) -> Self:
        """Read a checkpoint; ``options`` as diffusers', or ``revision`` and ``token`` of the hub.

        Args:
            folder: a ``Path``, or the name of an existing folder, or one that begins with ``/`` or
                ``.``; any other name is a repository of the Hugging Face hub.
            options: also ``light``, whether to use the light autoencoder; what the checkpoint
                says if it is None or left out.

        Raises:
            CheckpointError: it or one of its parts is missing or damaged.
        """
        light = options.pop("light", None)
        is_local = (
            isinstance(folder, Path) or folder.startswith(("/", ".")) or Path(folder).exists()
        )
        if is_local and not (Path(folder) / INDEX_FILE).is_file():
            raise CheckpointError(
                f"{folder}: no MetricGold checkpoint there ({INDEX_FILE} is missing); "
                "run 'dvc repro', 'dvc pull', or name another folder"
            )
        hub = {name: options.pop(name) for name in ("revision", "token") if name in options}
        options = LOADING | options
        try:
            with _no_loading_bar():
                if not is_local:
                    folder = snapshot_download(str(folder), allow_patterns=FILES, **hub)
                model = super().from_pretrained(str(folder), **options).freeze()
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{folder}: checkpoint cannot be read: {reason}") from error
        return model if light is None else model.use_light(light)

    def save_pretrained(self, save_directory: Path | str, **options: Any) -> None:
        """Write safetensors and JSON, with a model card; ``options`` as diffusers'."""
        super().save_pretrained(str(save_directory), **options)
        _change_json(Path(save_directory) / INDEX_FILE, {"_class_name": PIPELINE})
        if self.light_vae is not None:  # diffusers adds a key here that it warns of when it reads
            path = Path(save_directory) / "light_vae" / "config.json"
            _change_json(path, {}, without="block_out_channels")
        write_model_card(Path(save_directory), self)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the checkpoint with its model card; ``options``: private, token, create_pr, …"""
        token = options.get("token")
        repo_id = create_repo(
            repo_id, private=options.pop("private", None), token=token, exist_ok=True
        ).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return self._upload_folder(folder, repo_id, **options)


def _change_json(path: Path, changes: dict[str, Any], without: str | None = None) -> None:
    content = json.loads(path.read_text()) | changes
    content.pop(without, None)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _latents_of(vae: Vae) -> tuple[int, int]:
    """Channels, and pixels a cell spans."""
    return int(vae.config.latent_channels), vae_factor(vae)


@contextmanager
def _no_loading_bar() -> Iterator[None]:
    shown = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            diffusers_logging.enable_progress_bar()
