"""Several predictions of a picture: from what each starts, and how they become one in metres."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metricgold.views import mirrored_views

Size = tuple[int, int]
Reduction = Literal["median", "mean"]
REDUCTIONS: tuple[Reduction, ...] = ("median", "mean")
Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class View:
    """One prediction to make: of which picture, worked at which size, from which start."""

    picture: int
    size: Size
    mirrored: bool = False
    start: Tensor | None = None
    """Noise or another latent [C, h, w]; None: the camera's rays."""


def same_noise(seed: int, pictures: int) -> list[torch.Generator]:
    """A generator for each of so many pictures, all alike: each has the noise that it has alone,
    and pictures of one size have the same."""
    return [torch.Generator().manual_seed(seed) for _ in range(pictures)]


def views_of_rays(sizes: Sequence[Size], count: int) -> list[View]:
    """``count`` views of every picture for a model without noise.

    Raises:
        ValueError: there are not that many, see :func:`metricgold.views.mirrored_views`.
    """
    ways = mirrored_views(count)
    return [View(i, size, mirrored) for i, size in enumerate(sizes) for mirrored in ways]


def views_of_noise(
    sizes: Sequence[Size],
    count: int,
    latent_shape: Callable[[Size], tuple[int, int, int]],
    generators: Generators,
    shared: bool,
) -> list[View]:
    """``count`` views of every picture from noise, drawn picture by picture.

    So it does not depend on how many predictions are made at once. With ``shared`` every picture
    of the first one's size has the first one's noise.

    Raises:
        ValueError: what is no generator, or a list without one for each picture.
    """
    if isinstance(generators, Sequence) and len(generators) != len(sizes):
        raise ValueError(f"{len(generators)} generators for {len(sizes)} pictures")
    for one in generators if isinstance(generators, Sequence) else [generators]:
        if not isinstance(one, torch.Generator | None):
            raise ValueError(f"generator must be a torch.Generator, got {one!r}")
    found: list[View] = []
    for index, size in enumerate(sizes):
        generator = generators[index] if isinstance(generators, Sequence) else generators
        for member in range(count):
            if shared and index and size == sizes[0]:
                start = found[member].start
            else:
                device = None if generator is None else generator.device
                start = torch.randn(latent_shape(size), generator=generator, device=device)
            found.append(View(index, size, start=start))
    return found


def views_of_latents(
    sizes: Sequence[Size],
    count: int,
    latent_shape: Callable[[Size], tuple[int, int, int]],
    latents: Tensor | Sequence[Tensor],
) -> list[View]:
    """Views that start from ``latents`` [N * count, C, h, w], a picture's members together; a list
    of them where sizes differ.

    Raises:
        ValueError: they have another shape.
    """
    expected = [latent_shape(size) for size in sizes for _ in range(count)]
    found = [tuple(torch.as_tensor(latent).shape) for latent in latents]
    if expected != found:
        raise ValueError(f"latents are {_shapes(found)}, expected {_shapes(expected)}")
    return [View(i // count, sizes[i // count], start=x) for i, x in enumerate(latents)]


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    """One for all if they are equal."""
    if len(set(shapes)) == 1:
        return str([len(shapes), *shapes[0]])
    return " and ".join(str(list(shape)) for shape in shapes)


def fuse(
    depth_norm: Tensor, log_range: float, reduction: Reduction = "median"
) -> tuple[Tensor, Tensor]:
    """Members [E, H, W] in log-depth in [-1, 1] to one [H, W] and its relative error [H, W].

    No scale or shift is aligned. The relative error is the members' median absolute deviation
    (of the mean: their standard deviation) in ln d; times depth it is an uncertainty in metres.
    """
    if len(depth_norm) == 1:
        return depth_norm[0], torch.zeros_like(depth_norm[0])
    if reduction == "mean":
        fused = depth_norm.mean(dim=0)
        spread = (depth_norm - fused).square().mean(dim=0).sqrt()
    else:
        fused = _median(depth_norm)
        spread = _median((depth_norm - fused).abs())
    return fused, spread * (log_range / 2.0)


def _median(values: Tensor) -> Tensor:
    """Over the first axis; of an even number the mean of the middle two."""
    ordered = values.sort(dim=0).values
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2
