"""What a depth map holds: z-depth, the distance along the ray, or the inverse of depth?

On a plane seen by a pinhole camera exactly one of three quantities is an affine function of
the pixel's position: ``1 / m`` if the map m is z-depth, ``|r| / m`` if it is the distance along
the ray r = K^-1 [x, y, 1], and ``m`` itself if it is inverse depth. Rooms and streets are full
of planes, so many patches of a frame are fitted under each reading, and those that one reading
explains much better than the others vote. Scale plays no part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from metricgold.geometry import pixel_rays

DepthKind = Literal["z", "ray", "inverse"]
KINDS: tuple[DepthKind, ...] = get_args(DepthKind)

PLANAR = 5e-3
"""A patch counts as a plane below this residual, a share of the fitted quantity's mean."""
ROUNDING = 1e-5
"""Residuals below this tell nothing: two readings that fit so well fit equally."""
CLEARER = 2.0
"""How many times worse than the best reading every other one must fit for a patch to vote."""
MIN_VOTES = 8
MAJORITY = 0.7
_PATCHES_A_SIDE = (4, 6, 9)
"""Patches of a quarter, a sixth and a ninth of each side, overlapping by half."""
_SAMPLES = 24
"""Pixels of a patch along each axis that are fitted."""

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]


def patch_votes(values: Array, valid_mask: Mask, intrinsics: Array) -> Counter[DepthKind]:
    """Votes of one map's planar patches.

    Args:
        values: the map [H, W] as stored, in any unit.
        valid_mask: pixels with a value; only patches that are wholly valid count.
        intrinsics: K [3, 3] in pixels of this size.
    """
    usable = valid_mask & np.isfinite(values) & (values > 0)
    m = np.where(usable, values, 1.0).astype(np.float64)
    length = np.linalg.norm(pixel_rays(intrinsics, *m.shape), axis=-1)
    readings = (1.0 / m, length / m, m)  # in the order of KINDS
    votes: Counter[DepthKind] = Counter()
    for rows, columns in _patches(m.shape):
        grid = np.ix_(rows, columns)
        if not usable[grid].all():
            continue
        patch = np.stack([reading[grid].ravel() for reading in readings])
        residual = np.maximum(_affine_residual(patch, len(rows), len(columns)), ROUNDING)
        best, second = np.sort(residual)[:2]
        if best < PLANAR and second > CLEARER * best:
            votes[KINDS[int(np.argmin(residual))]] += 1
    return votes


def verdict(votes: Counter[DepthKind]) -> DepthKind | None:
    """The kind that a clear majority voted for; None if too few voted or they disagree."""
    total = sum(votes.values())
    if total < MIN_VOTES:
        return None
    kind, count = votes.most_common(1)[0]
    return kind if count >= MAJORITY * total else None


def _patches(shape: tuple[int, ...]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Row and column numbers of each patch's samples."""
    for parts in _PATCHES_A_SIDE:
        sides = [n // parts for n in shape]
        if min(sides) < 8:
            continue
        samples = [np.linspace(0, s - 1, min(s, _SAMPLES)).round().astype(np.intp) for s in sides]
        for top in range(0, shape[0] - sides[0] + 1, max(1, sides[0] // 2)):
            for left in range(0, shape[1] - sides[1] + 1, max(1, sides[1] // 2)):
                yield top + samples[0], left + samples[1]


def _affine_residual(patch: Array, height: int, width: int) -> Array:
    """RMS residual [R] of an affine fit to each of R rows of samples, a share of its mean."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    design = np.stack([np.ones(x.size), x.ravel(), y.ravel()], axis=1)  # orthogonal columns
    coefficients = (patch @ design) / (design**2).sum(axis=0)
    rest = patch - coefficients @ design.T
    return np.sqrt((rest**2).mean(axis=1)) / np.abs(patch.mean(axis=1))
