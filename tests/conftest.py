"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metricgold.config import (
    CodecConfig,
    DatasetConfig,
    DownloadConfig,
    PreprocessConfig,
    ProceduralConfig,
    ProfileConfig,
    load_config,
)
from metricgold.data.mirror_server import Faults, MirrorServer

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_samples() -> Path:
    """Folder of genuine frames: ``METRICGOLD_REAL_SAMPLES`` or ``../shared/real_samples``."""
    default = REPOSITORY.parent / "shared" / "real_samples"
    folder = Path(os.environ.get("METRICGOLD_REAL_SAMPLES", default))
    if not folder.is_dir():
        pytest.skip(f"no genuine samples at {folder}; METRICGOLD_REAL_SAMPLES names their folder")
    return folder


@pytest.fixture(scope="session")
def tiny_data_config() -> ProfileConfig:
    """The demo profile with a handful of tiny procedural scenes of every dataset."""
    demo = load_config(REPOSITORY / "params.yaml", "demo")
    sizes = {"hypersim": (24, 32), "virtual_kitti": (20, 60), "tartanair": (24, 32)}
    datasets = {
        name: DatasetConfig(
            weight=1.0,
            procedural=ProceduralConfig(
                train_scenes=2, holdout_scenes=2, frames_per_scene=6, size=size
            ),
            crop=(16, 56) if name == "virtual_kitti" else None,
            train_size=(16, 24),
        )
        for name, size in sizes.items()
    }
    return demo.model_copy(
        update={
            "codec": CodecConfig(depth_min_m=0.1, depth_max_m=80.0),
            "datasets": datasets,
            "download": DownloadConfig(retries=3, timeout_s=10, backoff_s=0.01, parallel=2),
            "preprocess": PreprocessConfig(
                min_valid_ratio=0.1, min_depth_range_m=0.1, rgb_quality=95, workers=1
            ),
        }
    )


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., MirrorServer]]:
    """Starts a server of ``tmp_path / "mirror"`` that misbehaves as told; closed afterwards."""
    opened: list[MirrorServer] = []

    def start(faults: Faults | None = None, folder: str = "mirror") -> MirrorServer:
        opened.append(MirrorServer(tmp_path / folder, faults).__enter__())
        return opened[-1]

    yield start
    for server in opened:
        server.__exit__(None, None, None)
