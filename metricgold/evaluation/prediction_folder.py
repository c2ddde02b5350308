"""Predictions that were made elsewhere: a folder with a file for every frame."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricgold.data.evaluation_sets.decoders import decode_pfm, decode_png16
from metricgold.errors import UserError
from metricgold.evaluation.predictors import Estimate, Invariance, Observation, Predictor

Map = NDArray[np.float32]


class FolderPredictor(Predictor):
    """Depth maps that are named as the frames' keys, slashes as folders (or as underscores).

    For the key ``scene/0001`` the first that exists of ``scene/0001`` and ``scene_0001``, followed
    by ``.npy``, ``_depth.npy``, ``.npz`` (its array ``depth``), ``.pfm``, ``.png`` or
    ``_depth_16bit.png`` (16 bits, metres a step in the ``.json`` of the same name, or
    ``metres_per_step``).
    ``<...>_uncertainty.npy`` or the array ``uncertainty`` is taken along where it is there.

    Args:
        folder: the folder.
        invariance: what the numbers leave open.
        metres_per_step: of 16-bit pictures without a ``.json``.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(
        self,
        folder: Path,
        invariance: Invariance = Invariance.METRIC,
        metres_per_step: float | None = None,
    ) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of predictions")
        self.folder, self.invariance, self.metres_per_step = folder, invariance, metres_per_step
        self._readers: dict[str, Callable[[Path], Estimate]] = {
            ".npy": _read_npy,
            "_depth.npy": _read_npy,
            ".npz": _read_npz,
            ".pfm": lambda path: Estimate(decode_pfm(path.read_bytes())),
            ".png": self._read_png,
            "_depth_16bit.png": self._read_png,
        }

    def predict(self, observations: Sequence[Observation]) -> list[Estimate]:
        """What the files say.

        Raises:
            UserError: a frame has no file, or one that cannot be read.
        """
        return [self._of(one.key) for one in observations]

    def _of(self, key: str) -> Estimate:
        stems = (self.folder / key, self.folder / key.replace("/", "_"))
        for stem in stems:
            for ending, read in self._readers.items():
                path = stem.with_name(stem.name + ending)
                if path.is_file():
                    try:
                        return read(path)
                    except UserError:
                        raise
                    except Exception as error:
                        raise UserError(f"{path}: not a depth map ({error})") from None
        raise UserError(
            f"{self.folder}: no prediction for frame {key}; looked for {stems[0].name} and "
            f"{stems[1].name} with {', '.join(self._readers)}"
        )

    def _read_png(self, path: Path) -> Estimate:
        beside = path.with_suffix(".json")
        step = self.metres_per_step
        if beside.is_file():
            step = float(json.loads(beside.read_text(encoding="utf-8"))["metres_per_step"])
        if step is None:
            raise UserError(
                f"{path}: how many metres is a step? Put metres_per_step into {beside.name}, or "
                "say ?metres_per_step=0.001 behind the folder"
            )
        steps = decode_png16(path.read_bytes())
        return Estimate(steps.astype(np.float32) * np.float32(step))


def _read_npy(path: Path) -> Estimate:
    stem = path.name.removesuffix(".npy").removesuffix("_depth")
    beside = path.with_name(f"{stem}_uncertainty.npy")
    return Estimate(
        _as_map(np.load(path, allow_pickle=False)),
        _as_map(np.load(beside, allow_pickle=False)) if beside.is_file() else None,
    )


def _read_npz(path: Path) -> Estimate:
    with np.load(path, allow_pickle=False) as arrays:
        if "depth" not in arrays:
            raise UserError(f"{path}: has no array 'depth', only {', '.join(arrays)}")
        unsure = _as_map(arrays["uncertainty"]) if "uncertainty" in arrays else None
        return Estimate(_as_map(arrays["depth"]), unsure)


def _as_map(values: NDArray[Any]) -> Map:
    return values.squeeze().astype(np.float32)
