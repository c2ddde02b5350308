"""``pipeline.image_processor``: what code for diffusers' Marigold shows and keeps depth with.

The same methods at the same place; theirs take depth in [0, 1], these take metres.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from diffusers.pipelines.marigold.marigold_image_processing import MarigoldImageProcessor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metricgold import visualize
from metricgold.outputs import depth_to_16_bit

Depth = NDArray[np.float32]


class DepthPictures:
    """Pictures of the depth that one pipeline predicts.

    Args:
        depth_max_m: the model's farthest depth in metres.

    Every method takes predictions as the pipeline returns them, of "np" or of "pt", all of them
    or one, and raises ``ValueError`` for any other shape.
    """

    def __init__(self, depth_max_m: float) -> None:
        self.depth_max_m = depth_max_m

    def visualize_depth(
        self,
        depth: Any,
        val_min: float | None = None,
        val_max: float | None = None,
        color_map: str | None = None,
    ) -> list[Image.Image]:
        """Depth in colours along log-depth, a picture each.

        Args:
            depth: metres.
            val_min, val_max: metres of the first and the last colour; default: what shows the
                picture well (``visualize.depth_limits``).
            color_map: one of diffusers' or matplotlib's by name ("Spectral"); default: this
                project's.
        """
        found = []
        for one in _maps(depth):
            near, far = visualize.depth_limits(one)
            near, far = val_min or near, far if val_max is None else val_max
            if color_map is None:
                found.append(Image.fromarray(visualize.colourise(one, near, far)))
            else:
                share = visualize.log_share(one, near, far)[None, ..., None]
                found += MarigoldImageProcessor.visualize_depth(share, color_map=color_map)
        return found

    def export_depth_to_16bit_png(self, depth: Any) -> list[Image.Image]:
        """16-bit pictures in steps of :attr:`metres_per_step`, which ``info`` of each says too.

        A PNG file does not keep it: write it down, or let ``metricgold.outputs`` write the file.
        """
        found = []
        for one in _maps(depth):
            picture = Image.fromarray(depth_to_16_bit(one, self.depth_max_m)[0])
            picture.info["metres_per_step"] = self.metres_per_step
            found.append(picture)
        return found

    @property
    def metres_per_step(self) -> float:
        """Of 16-bit pictures: the same for all that this model predicts."""
        return depth_to_16_bit(np.zeros((1, 1), np.float32), self.depth_max_m)[1]

    def visualize_uncertainty(
        self, uncertainty: Any, saturation_percentile: float = 95
    ) -> list[Image.Image]:
        """Uncertainty in metres as grey, white from that percentile on."""
        found = []
        for one in _maps(uncertainty):
            white = max(float(np.percentile(one, saturation_percentile)), 1e-12)
            found.append(Image.fromarray(np.clip(one * 255 / white, 0, 255).astype(np.uint8)))
        return found


def _maps(values: Any) -> list[Depth]:
    """[H, W] of every picture."""
    if isinstance(values, (list, tuple)):
        return [one for part in values for one in _maps(part)]
    many = MarigoldImageProcessor.expand_tensor_or_array(values)
    if isinstance(many, Tensor):
        many = many.detach().cpu().movedim(-3, -1).numpy()  # [N, H, W, 1]
    if many.ndim != 4 or many.shape[-1] != 1:
        raise ValueError(f"expected [N, H, W, 1] or a tensor [N, 1, H, W], got {values.shape}")
    return list(many[..., 0].astype(np.float32))
