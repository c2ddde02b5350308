"""Stage ``cache_latents``: every frame encoded once an augmentation variant.

One HDF5 file a dataset; row r of every array belongs to one (frame, variant). The file
carries the hash of the weights that made it, and a reader refuses any other.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from diffusers import AutoencoderKL

from metricgold.config import CacheLatentsConfig, OptimizerConfig, ProfileConfig
from metricgold.data.frames import FrameBank, collate
from metricgold.data.hdf5_writing import new_hdf5
from metricgold.data.transforms import NO_AUGMENTATION, TrainSample
from metricgold.depth_codec import DepthCodec, latent_mask
from metricgold.errors import UserError
from metricgold.files import replaced_folder
from metricgold.model import LOADING, encode, encode_depth_norm, vae_factor
from metricgold.progress import progress_bar
from metricgold.training.accelerator import autocast, default_device, use_all_cores
from metricgold.training.banks import depth_norm_of, mixing_sampler, open_banks
from metricgold.training.base_model import BaseModel
from metricgold.training.loader import Batch, BatchLoader, loader_workers
from metricgold.workspace import Workspace

CACHE_VERSION = 2


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
        for name, rows in cached_rows(config, banks).items():
            path = folder / f"{name}.h5"
            with new_hdf5(path, track_order=False) as file:
                file.attrs["version"] = CACHE_VERSION
                file.attrs["weights"] = cache_hash(workspace)
                _encode_rows(config, name, rows, image_vae, depth_vae, codec, file)


@torch.no_grad()
def _encode_rows(
    config: ProfileConfig,
    name: str,
    samples: CachedRows,
    image_vae: AutoencoderKL,
    depth_vae: AutoencoderKL,
    codec: DepthCodec,
    file: h5py.File,
) -> None:
    section = config.cache_latents
    total = len(samples)
    batches = _EncodeBatches(samples, section.batch_size)
    workers = loader_workers(config.loader.workers, image_vae.device)
    loader = BatchLoader(batches, range(len(batches)), workers)
    bar = progress_bar(loader, description=f"latents {name}", total=len(batches), unit="batch")
    start = 0
    for batch in bar:
        norm, valid = depth_norm_of(codec, batch["depth"], batch["valid_mask"])
        with autocast(section.precision, image_vae.device):
            rgb_latent = encode(image_vae, batch["rgb"].to(image_vae.device))
            depth_latent = encode_depth_norm(depth_vae, norm.to(depth_vae.device))
        rows = {
            "rgb_latent": rgb_latent.cpu().half(),
            "depth_latent": depth_latent.cpu().half(),
            "latent_mask": latent_mask(valid | batch["sky_mask"], vae_factor(depth_vae)),
            "depth_norm": norm.half(),
            "valid_mask": valid,
            "sky_mask": batch["sky_mask"],
            "fov_y_deg": batch["fov_y_deg"],
        }
        for key, value in rows.items():
            _write_rows(file, key, value.numpy(), start, total)
        start += len(norm)


class CachedRows:
    """The (variant, frame) samples of a bank, in the order in which they are cached.

    A pure function of the frames, the section and the seed: they can be made again.
    """

    def __init__(
        self, bank: FrameBank, section: CacheLatentsConfig, seed: tuple[int, int, int]
    ) -> None:
        self._bank, self._section, self._seed = bank, section, seed

    def __len__(self) -> int:
        return len(self._bank) * self._section.variants

    def __getitem__(self, row: int) -> TrainSample:
        variant, index = divmod(row, len(self._bank))
        if not variant:
            return self._bank.sample(index, NO_AUGMENTATION)
        rng = np.random.default_rng([*self._seed, row])
        return self._bank.sample(index, self._section.augment, rng)


def cached_rows(config: ProfileConfig, banks: Mapping[str, FrameBank]) -> dict[str, CachedRows]:
    """What the latent cache of every dataset is made of."""
    return {
        name: CachedRows(bank, config.cache_latents, (config.seed, 13, number))
        for number, (name, bank) in enumerate(banks.items())
    }


class _EncodeBatches:
    """All rows of a bank, some at a time."""

    def __init__(self, rows: CachedRows, batch_size: int) -> None:
        self._rows, self._batch_size = rows, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self._rows) / self._batch_size)

    def __getitem__(self, number: int) -> Batch:
        start = number * self._batch_size
        rows = range(start, min(start + self._batch_size, len(self._rows)))
        return collate([self._rows[row] for row in rows])


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
        self._path, self._file, self._owner = path, h5py.File(path, "r"), os.getpid()
        made_with, version = self._file.attrs.get("weights"), self._file.attrs.get("version")
        if made_with != weights or version != CACHE_VERSION:
            raise StaleLatentsError(
                f"{path}: made with other VAE weights than the present ones, or by other code; "
                "run 'dvc repro cache_latents'"
            )
        size = sum(d.nbytes for d in self._file.values())
        self._length = len(self._file["fov_y_deg"])
        self._kept: dict[str, Any] = {}
        if size <= memory_limit_bytes:
            self._kept = {k: d[...] for k, d in self._file.items()}

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_owner": 0}

    @property
    def _arrays(self) -> Any:
        """The arrays by name; a handle on the file is this process's own."""
        if self._kept:
            return self._kept
        if self._owner != os.getpid():
            self._file, self._owner = h5py.File(self._path, "r"), os.getpid()
        return self._file

    def batch(self, indices: np.ndarray, keys: tuple[str, ...]) -> Batch:
        """Rows ``indices`` of the named arrays as tensors (floats in fp32)."""
        order = np.argsort(indices)
        back = np.argsort(order)
        unique, inverse = np.unique(indices[order], return_inverse=True)
        out = {}
        for key in keys:
            rows = torch.from_numpy(self._arrays[key][unique][inverse][back])
            out[key] = rows if rows.dtype == torch.bool else rows.float()
        return out


class LatentBatches:
    """Micro-batches of cached rows of one dataset each: their arrays ``keys``."""

    def __init__(
        self,
        config: ProfileConfig,
        banks: dict[str, LatentBank],
        optimizer: OptimizerConfig,
        salt: int,
        keys: tuple[str, ...],
    ) -> None:
        self._banks, self._keys = banks, keys
        self._sampler = mixing_sampler(config, banks, optimizer, salt)

    def __getitem__(self, number: int) -> Batch:
        return self._rows(*self._sampler.batch(number))

    def _rows(self, name: str, indices: np.ndarray) -> Batch:
        return self._banks[name].batch(indices, self._keys)


class PictureBatches(LatentBatches):
    """The same with the rows' pictures, ``rgb`` [B, 3, H, W] in [-1, 1], made again.

    Raises:
        StaleLatentsError: the frames or their augmentation are not those of the cache.
    """

    def __init__(
        self,
        config: ProfileConfig,
        banks: dict[str, LatentBank],
        frames: dict[str, CachedRows],
        optimizer: OptimizerConfig,
        salt: int,
        keys: tuple[str, ...],
    ) -> None:
        super().__init__(config, banks, optimizer, salt, keys)
        self._frames = frames

    def _rows(self, name: str, indices: np.ndarray) -> Batch:
        batch = super()._rows(name, indices)
        found = collate([self._frames[name][int(row)] for row in indices])
        if not torch.equal(found["valid_mask"] & batch["valid_mask"], batch["valid_mask"]):
            raise StaleLatentsError(
                f"latents of {name}: made of other frames, or augmented otherwise, than the "
                "present ones; run 'dvc repro cache_latents'"
            )
        return batch | {"rgb": found["rgb"]}


def open_latents(config: ProfileConfig, workspace: Workspace) -> dict[str, LatentBank]:
    """The latent cache of every dataset in use, checked against the present VAEs."""
    weights = cache_hash(workspace)
    return {
        str(name): LatentBank(workspace.latents / f"{name}.h5", weights)
        for name in config.enabled_datasets()
    }
