"""The model card of a checkpoint: what it is, how to use it, what it cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from metricgold.pipeline import MetricGoldPipeline

CARD = """---
library_name: diffusers
pipeline_tag: depth-estimation
tags:
- depth-estimation
- metric-depth
- latent-diffusion
---

# MetricGold checkpoint

Depth in **metres** from a single picture, {min:g} m to {max:g} m, by latent diffusion in {steps}.

```python
from metricgold.pipeline import MetricGoldPipeline

pipeline = MetricGoldPipeline.from_pretrained("PATH OR REPOSITORY")
depth = pipeline("picture.jpg", fov_deg=55).prediction  # [1, H, W, 1] in metres
```

`fov_deg` is the vertical field of view; `intrinsics` or `focal_length_px` may be given instead, and
a picture's EXIF is read otherwise. {camera}

| | |
|---|---|
| range | {min:g} m to {max:g} m, logarithmic; nearer and farther is clipped |
| inference steps | {steps} |
| long side while working | {resolution} px |
| latent channels | {channels} |
| uncertainty of one prediction | {confidence} |
| light autoencoder, for speed | {light} |
{parts}

## Training

By the method of MetricGold (arXiv 2411.10886) on synthetic pictures alone: log-depth, a depth VAE,
an image-conditioned U-Net. The `dvc.lock` of its project records data, parameters and code.

## Limits

Scale is ambiguous without the focal length. Sky is predicted at the far end of the range
(`sky_mask` of the output); what is farther than that has no depth here. Mirrors and glass have none
in the training data, and nothing says what is predicted there. Not for uses where a wrong distance
can hurt.
"""


def write_model_card(folder: Path, pipeline: MetricGoldPipeline) -> None:
    """Write ``README.md`` into a checkpoint's folder, as the Hugging Face hub shows it."""
    steps = pipeline.default_denoising_steps
    parts = [
        f"| `{name}` | {sum(p.numel() for p in part.parameters()) / 1e6:,.1f} M parameters |"
        for name, part in sorted(pipeline.components.items())
        if isinstance(part, nn.Module) and any(True for _ in part.parameters())
    ]
    text = CARD.format(
        min=pipeline.config.depth_min_m,
        max=pipeline.config.depth_max_m,
        steps="one step" if steps == 1 else f"{steps} steps",
        resolution=pipeline.default_processing_resolution,
        channels=pipeline.image_vae.config.latent_channels,
        confidence="by a confidence head" if pipeline.confidence is not None else "no",
        light="yes: `from_pretrained(..., light=True)`" if pipeline.light_vae is not None else "no",
        camera=(
            "Without any the scale is a guess."
            if pipeline.config.fov_conditioning
            else "This checkpoint does not make use of it."
        ),
        parts="\n".join(parts),
    )
    (folder / "README.md").write_text(text)
