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

from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import create_repo, snapshot_download
from torch import Tensor, nn

from metricgold.confidence import ConfidenceHead
from metricgold.depth_codec import DepthCodec
from metricgold.empty_text import EmptyText
from metricgold.model import LOADING, CheckpointError, vae_factor
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
        depth_min_m, depth_max_m: range in metres that [-1, 1] stands for, logarithmically.
        default_denoising_steps: what the weights were trained for (1 after stage C).
        default_processing_resolution: long side in pixels.
        fov_conditioning: whether the U-Net was trained with the field of view.
    """

    _optional_components: ClassVar[list[str]] = ["confidence"]

    image_vae: AutoencoderKL
    depth_vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler
    empty_text: EmptyText
    confidence: ConfidenceHead | None

    def __init__(
        self,
        image_vae: AutoencoderKL,
        depth_vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        empty_text: EmptyText,
        confidence: ConfidenceHead | None = None,
        depth_min_m: float = 0.1,
        depth_max_m: float = 80.0,
        default_denoising_steps: int = 1,
        default_processing_resolution: int = 768,
        fov_conditioning: bool = True,
        prediction_type: str = "v_prediction",
    ) -> None:
        super().__init__()
        self.register_modules(
            image_vae=image_vae,
            depth_vae=depth_vae,
            unet=unet,
            scheduler=scheduler,
            empty_text=empty_text,
            confidence=confidence,
        )
        self.register_to_config(
            depth_min_m=depth_min_m,
            depth_max_m=depth_max_m,
            default_denoising_steps=default_denoising_steps,
            default_processing_resolution=default_processing_resolution,
            fov_conditioning=fov_conditioning,
            prediction_type=prediction_type,
        )

    def freeze(self) -> Self:
        """All networks in inference mode, without gradients."""
        for part in self.components.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        return self

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
            folder: a ``Path``, or the name of an existing folder; any other name is a repository
                of the Hugging Face hub.

        Raises:
            CheckpointError: it or one of its parts is missing or damaged.
        """
        is_local = isinstance(folder, Path) or Path(folder).exists()
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
                return super().from_pretrained(str(folder), **options).freeze()
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{folder}: checkpoint cannot be read: {reason}") from error

    def save_pretrained(self, save_directory: Path | str, **options: Any) -> None:
        """Write safetensors and JSON, with a model card; ``options`` as diffusers'."""
        super().save_pretrained(str(save_directory), **options)
        path = Path(save_directory) / INDEX_FILE
        index = json.loads(path.read_text()) | {"_class_name": PIPELINE}
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
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


@contextmanager
def _no_loading_bar() -> Iterator[None]:
    shown = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            diffusers_logging.enable_progress_bar()
