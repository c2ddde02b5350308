"""The datasets there are, by name; no folder is scanned."""

from __future__ import annotations

from metricgold.config import DatasetName
from metricgold.data.dataset import Dataset
from metricgold.data.folder import Folder
from metricgold.data.hypersim import Hypersim
from metricgold.data.tartanair import TartanAir
from metricgold.data.virtual_kitti import VirtualKitti
from metricgold.errors import UserError

DATASETS: dict[DatasetName, Dataset] = {
    "hypersim": Hypersim(),
    "virtual_kitti": VirtualKitti(),
    "tartanair": TartanAir(),
    "folder": Folder(),
}


def get_dataset(name: str) -> Dataset:
    """The dataset called ``name``.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    for known, dataset in DATASETS.items():
        if known == name:
            return dataset
    raise UserError(f"unknown dataset '{name}'; known datasets: {', '.join(DATASETS)}")
