"""What one frame is, wherever it comes from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frame:
    """One RGB-D frame in native resolution.

    Attributes:
        key: dataset-wide unique name, ``scene/index``; the shard groups by ``scene``.
        scene: path of the sequence, such as ``hospital/Easy/P000``; train and holdout share
            none, unless ``holdout_last_frames`` cuts sequences.
        rgb: uint8 [H, W, 3], sRGB.
        depth: float32 [H, W], z-depth in metres; 0 where there is none.
        valid_mask: bool [H, W].
        sky_mask: bool [H, W]; sky is never valid.
        intrinsics: float64 [3, 3], K in pixels.
    """

    key: str
    scene: str
    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]
    valid_mask: NDArray[np.bool_]
    sky_mask: NDArray[np.bool_]
    intrinsics: NDArray[np.float64]

    def __post_init__(self) -> None:
        height, width = self.depth.shape
        if self.rgb.shape != (height, width, 3) or self.rgb.dtype != np.uint8:
            raise ValueError(
                f"{self.key}: rgb {self.rgb.dtype}{self.rgb.shape} does not fit depth "
                f"{self.depth.shape}; expected uint8 [H, W, 3]"
            )
        for name, mask in (("valid_mask", self.valid_mask), ("sky_mask", self.sky_mask)):
            if mask.shape != (height, width) or mask.dtype != np.bool_:
                raise ValueError(f"{self.key}: {name} must be bool {height}x{width}")
        if self.intrinsics.shape != (3, 3):
            raise ValueError(f"{self.key}: intrinsics must be [3, 3]")

    @property
    def valid_ratio(self) -> float:
        """Share of valid pixels, 0 to 1."""
        return float(self.valid_mask.mean())
