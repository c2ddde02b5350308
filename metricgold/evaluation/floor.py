"""The VAE floor: what is left of true depth after the depth VAE alone.

No U-Net can beat it, so stage A reports it before and after its training.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from metricgold.depth_codec import DepthCodec
from metricgold.evaluation.boundaries import boundary_score, edge_mask
from metricgold.evaluation.metrics import depth_metrics, mean_over_images
from metricgold.model import decode_depth_norm, encode_depth_norm


@torch.no_grad()
def vae_round_trip(
    depth_vae: AutoencoderKL,
    codec: DepthCodec,
    depth: Tensor,
    valid_mask: Tensor,
    batch_size: int = 16,
) -> Tensor:
    """Depth [N, 1, H, W] in metres, encoded and decoded by the VAE in fp32; again in metres.

    Invalid pixels are set to +1 (far) before encoding, as in training. H and W must be
    multiples of the VAE's factor.
    """
    parameter = next(depth_vae.parameters())
    decoded = []
    for start in range(0, len(depth), batch_size):
        part = slice(start, start + batch_size)
        norm = codec.encode(depth[part])
        norm = torch.where(valid_mask[part], norm, torch.ones_like(norm)).to(parameter)
        latent = encode_depth_norm(depth_vae, norm)  # [B, C, h, w]
        decoded.append(codec.decode(decode_depth_norm(depth_vae, latent)).cpu())
    return torch.cat(decoded)


def vae_floor(
    depth_vae: AutoencoderKL,
    codec: DepthCodec,
    depth: Tensor,
    valid_mask: Tensor,
    batch_size: int = 16,
) -> dict[str, float]:
    """Errors of true depth encoded and decoded: means over images.

    Args:
        depth: z-depth [N, 1, H, W] in metres, at the training size.
        valid_mask: bool [N, 1, H, W]; pixels outside the codec's range are dropped too.

    Returns:
        ``abs_rel``, ``delta1``, ``boundary_f1``, ``abs_rel_edges`` (pixels beside a depth
        edge of more than 10 %) and ``frames``, how many images had a valid pixel.

    Raises:
        ValueError: no image has a valid pixel.
    """
    in_range = (depth >= codec.depth_min_m) & (depth <= codec.depth_max_m)
    valid_mask = valid_mask & in_range
    was_training = depth_vae.training
    depth_vae.eval()
    try:
        restored = vae_round_trip(depth_vae, codec, depth, valid_mask, batch_size)
    finally:
        depth_vae.train(was_training)
    maps = zip(restored[:, 0].numpy(), depth[:, 0].numpy(), valid_mask[:, 0].numpy(), strict=True)
    per_image, near_edges = [], []
    for pred, gt, valid in maps:
        if not valid.any():
            continue
        metrics = depth_metrics(pred, gt, valid)
        score = boundary_score(pred, gt, valid)
        per_image.append(
            {
                "abs_rel": metrics["abs_rel"],
                "delta1": metrics["delta1"],
                "boundary_f1": score.f1,
            }
        )
        edges = edge_mask(gt, valid)
        if edges.any():
            near_edges.append(depth_metrics(pred, gt, edges)["abs_rel"])
    result = mean_over_images(per_image)
    result["abs_rel_edges"] = float(np.mean(near_edges)) if near_edges else result["abs_rel"]
    result["frames"] = len(per_image)
    return result
