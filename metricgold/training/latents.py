"""Stage ``cache_latents``: every frame encoded once an augmentation variant.

One HDF5 file a dataset; row r of every array belongs to one (frame, variant). The file
carries the hash of the weights that made it, and a reader refuses any other.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from metricgold.config import ProfileConfig
from metricgold.data.frames import FrameBank, collate
from metricgold.data.transforms import NO_AUGMENTATION
from metricgold.depth_codec import DepthCodec, latent_mask
from metricgold.errors import UserError
from metricgold.files import replaced_folder
from metricgold.model import LOADING, encode, encode_depth_norm, vae_factor
from metricgold.progress import progress_bar
from metricgold.training.banks import depth_norm_of, open_banks
from metricgold.training.base_model import BaseModel
from metricgold.training.loop import autocast, default_device, use_all_cores
from metricgold.workspace import Workspace

CACHE_VERSION = 1


class StaleLatentsError(UserError):
    """The latent cache was made with other weights; it must be made again."""


def weights_hash(*folders: Path) -> str:
    """SHA-256 over the safetensors files and configs of some model folders."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".safetensors", ".json"):
                digest.update(path.relative_to(folder).as_posix().encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def cache_hash(workspace: Workspace) -> str:
    """Hash of the two VAEs whose latents are cached."""
    return weights_hash(workspace.base_model / "image_vae", workspace.depth_vae)


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """Encode the training frames of every dataset into ``workspace.latents``."""
    use_all_cores()
    device = default_device()
    image_vae = BaseModel.load(workspace.base_model).image_vae.to(device).eval()
    depth_vae = AutoencoderKL.from_pretrained(workspace.depth_vae, **LOADING).to(device).eval()
    codec = DepthCodec(config.codec.depth_min_m, config.codec.depth_max_m)
    banks = open_banks(config, workspace, "train")
    with replaced_folder(workspace.latents) as folder:
        for number, (name, bank) in enumerate(banks.items()):
            path = folder / f"{name}.h5"
            with h5py.File(path, "w", track_order=False) as file:
                file.attrs["version"] = CACHE_VERSION
                file.attrs["weights"] = cache_hash(workspace)
                _encode_bank(config, number, name, bank, image_vae, depth_vae, codec, file)
            with path.open("rb+") as stream:
                os.fsync(stream.fileno())


@torch.no_grad()
def _encode_bank(
    config: ProfileConfig,
    number: int,
    name: str,
    bank: FrameBank,
    image_vae: AutoencoderKL,
    depth_vae: AutoencoderKL,
    codec: DepthCodec,
    file: h5py.File,
) -> None:
    section = config.cache_latents
    total = len(bank) * section.variants
    starts = range(0, total, section.batch_size)
    for start in progress_bar(starts, description=f"latents {name}", unit="batch"):
        samples = []
        for row in range(start, min(start + section.batch_size, total)):
            variant, index = divmod(row, len(bank))
            rng = np.random.default_rng([config.seed, 13, number, row]) if variant else None
            samples.append(bank.sample(index, section.augment if variant else NO_AUGMENTATION, rng))
        batch = collate(samples)
        norm, valid = depth_norm_of(codec, batch["depth"], batch["valid_mask"])
        with autocast(section.precision, image_vae.device):
            rgb_latent = encode(image_vae, batch["rgb"].to(image_vae.device))
            depth_latent = encode_depth_norm(depth_vae, norm.to(depth_vae.device))
        rows = {
            "rgb_latent": rgb_latent.cpu().half(),
            "depth_latent": depth_latent.cpu().half(),
            "latent_mask": latent_mask(valid, vae_factor(depth_vae)),
            "depth_norm": norm.half(),
            "valid_mask": valid,
            "fov_y_deg": batch["fov_y_deg"],
        }
        for key, value in rows.items():
            _write_rows(file, key, value.numpy(), start, total)


def _write_rows(file: h5py.File, key: str, values: Any, start: int, total: int) -> None:
    if key not in file:
        file.create_dataset(
            key,
            (total, *values.shape[1:]),
            dtype=values.dtype,
            chunks=(1, *values.shape[1:]) if values.ndim > 1 else (min(total, 4096),),
            track_times=False,
        )
    file[key][start : start + len(values)] = values


class LatentBank:
    """Random access to the cached rows of one dataset; in memory when they fit.

    Raises:
        StaleLatentsError: the cache is missing or was made with other VAEs.
    """

    def __init__(self, path: Path, weights: str, memory_limit_bytes: int = 4 << 30) -> None:
        if not path.is_file():
            raise StaleLatentsError(f"{path}: no latent cache; run 'dvc repro cache_latents'")
        self._file = h5py.File(path, "r")
        made_with, version = self._file.attrs.get("weights"), self._file.attrs.get("version")
        if made_with != weights or version != CACHE_VERSION:
            raise StaleLatentsError(
                f"{path}: made with other VAE weights than the present ones; "
                "run 'dvc repro cache_latents'"
            )
        size = sum(d.nbytes for d in self._file.values())
        self._arrays: dict[str, Any] = {
            k: d[...] if size <= memory_limit_bytes else d for k, d in self._file.items()
        }

    def __len__(self) -> int:
        return int(self._arrays["fov_y_deg"].shape[0])

    def batch(self, indices: np.ndarray, keys: tuple[str, ...]) -> dict[str, Tensor]:
        """Rows ``indices`` of the named arrays as tensors (floats in fp32)."""
        order = np.argsort(indices)
        back = np.argsort(order)
        unique, inverse = np.unique(indices[order], return_inverse=True)
        out = {}
        for key in keys:
            rows = torch.from_numpy(self._arrays[key][unique][inverse][back])
            out[key] = rows if rows.dtype == torch.bool else rows.float()
        return out


def open_latents(config: ProfileConfig, workspace: Workspace) -> dict[str, LatentBank]:
    """The latent cache of every dataset in use, checked against the present VAEs."""
    weights = cache_hash(workspace)
    return {
        str(name): LatentBank(workspace.latents / f"{name}.h5", weights)
        for name in config.enabled_datasets()
    }
