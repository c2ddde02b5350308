"""Procedural textures at true size: every pattern's period is a length in metres.

A pattern fades to its mean where a pixel's footprint on the surface exceeds its
period, as a mip map would, so nothing aliases in the distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]
Colour = tuple[float, float, float]
Kind = Literal[
    "plain", "noise", "tiles", "bricks", "planks", "stripes", "windows", "road", "books", "door"
]

_TABLE_BITS = 8
_MASK = (1 << _TABLE_BITS) - 1
_TABLE = np.random.default_rng(20241117).random((_MASK + 1, _MASK + 1), dtype=np.float32)


@dataclass(frozen=True)
class Material:
    """Two colours (linear, 0..1) and a pattern of ``size`` = (u, v) metres.

    ``gap`` is the joint's width in metres; ``seed`` shifts the noise; ``emission`` makes
    a surface glow (lamps, bright windows); ``extent`` bounds a road's half width.
    """

    kind: Kind
    colour: Colour
    second: Colour = (0.0, 0.0, 0.0)
    size: tuple[float, float] = (1.0, 1.0)
    gap: float = 0.01
    seed: int = 0
    emission: float = 0.0
    extent: float = 0.0


def _cell_hash(iu: NDArray[np.int64], iv: NDArray[np.int64], seed: int) -> Values:
    """A number in [0, 1) a lattice cell."""
    return _TABLE[(iu * 57 + seed * 131) & _MASK, (iv * 31 + iu * 7 + seed * 17) & _MASK]


def value_noise(u: Values, v: Values, period: float, seed: int) -> Values:
    """Smooth noise in [0, 1] with lattice spacing ``period`` metres."""
    pu, pv = u / np.float32(period), v / np.float32(period)
    fu, fv = np.floor(pu), np.floor(pv)
    iu, iv = fu.astype(np.int64) + seed * 37, fv.astype(np.int64) + seed * 101
    a, b = pu - fu, pv - fv
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    i0, i1, j0, j1 = iu & _MASK, (iu + 1) & _MASK, iv & _MASK, (iv + 1) & _MASK
    top = _TABLE[i0, j0] * (1 - a) + _TABLE[i1, j0] * a
    bottom = _TABLE[i0, j1] * (1 - a) + _TABLE[i1, j1] * a
    return top * (1 - b) + bottom * b


def _fade(footprint: Values, period: float) -> Values:
    """1 where a pixel resolves ``period``, 0 where it covers more than about one period."""
    return np.clip(1.6 - 2.0 * footprint / np.float32(period), 0.0, 1.0)


def _cells(
    u: Values, v: Values, size: tuple[float, float], offset_rows: float
) -> tuple[Values, Values, NDArray[np.int64], NDArray[np.int64]]:
    """Position inside a cell in metres and the cell's index; odd rows shifted."""
    row = np.floor(v / np.float32(size[1]))
    shifted = u + (row % 2) * np.float32(offset_rows * size[0])
    column = np.floor(shifted / np.float32(size[0]))
    inside_u = shifted - column * np.float32(size[0])
    inside_v = v - row * np.float32(size[1])
    return inside_u, inside_v, column.astype(np.int64), row.astype(np.int64)


def _pattern(m: Material, u: Values, v: Values, footprint: Values) -> tuple[Values, Values]:
    """Mix weight of the second colour [0, 1] and a brightness factor around 1."""
    shade = 1.0 + 0.24 * (value_noise(u, v, 0.9, m.seed) - 0.5)
    zero = np.zeros_like(u)
    if m.kind == "plain":
        return zero, shade
    if m.kind == "noise":
        period = m.size[0]
        fine = value_noise(u, v, period, m.seed) * _fade(footprint, period)
        coarse = value_noise(u, v, 7.0 * period, m.seed + 1)
        return np.clip(0.6 * fine + 0.7 * coarse - 0.2, 0, 1), shade
    if m.kind == "stripes":
        phase = np.sin(u * np.float32(2 * np.pi / m.size[0]))
        return 0.5 + 0.5 * phase * _fade(footprint, m.size[0]), shade
    if m.kind == "books":
        iu, iv, cu, cv = _cells(u, v, m.size, 0.0)
        board = (iv < 0.03).astype(np.float32)
        tint = _cell_hash(cu, cv, m.seed) * _fade(footprint, m.size[0])
        return np.maximum(board, tint), shade * (0.55 + 0.9 * _cell_hash(cu, cv, m.seed + 5))
    if m.kind == "door":
        panel = (np.abs(u) < m.size[0] * 0.32) & (np.abs(v % 1.0 - 0.5) < 0.36)
        handle = (np.abs(u - m.size[0] * 0.4) < 0.06) & (np.abs(v - 1.0) < 0.04)
        return np.where(handle, 1.0, np.where(panel, 0.25, 0.0)).astype(np.float32), shade
    offset = 0.5 if m.kind in ("bricks", "planks") else 0.0
    iu, iv, cu, cv = _cells(u, v, m.size, offset)
    if m.kind == "windows":
        margin_u, margin_v = 0.28 * m.size[0], 0.22 * m.size[1]
        inside = (np.abs(iu - m.size[0] / 2) < m.size[0] / 2 - margin_u) & (
            np.abs(iv - m.size[1] / 2) < m.size[1] / 2 - margin_v
        )
        lit = 0.7 + 0.6 * _cell_hash(cu, cv, m.seed)
        joint = inside.astype(np.float32)
        return joint, np.where(inside, lit, shade).astype(np.float32)
    joint = ((iu < m.gap) | (iv < m.gap)).astype(np.float32)
    fade = _fade(footprint, min(m.size))
    spread = 0.3 if m.kind != "tiles" else 0.12
    cell = 1.0 + spread * (_cell_hash(cu, cv, m.seed) - 0.5) * fade
    mean_joint = min(1.0, m.gap / m.size[0] + m.gap / m.size[1])
    return joint * fade + mean_joint * (1 - fade), shade * cell


def _road(m: Material, u: Values, v: Values, footprint: Values) -> tuple[Values, Values]:
    """Lane markings 0.12 m wide: solid at the edges, 3 m dashes every 9 m between lanes."""
    half = m.extent
    shade = 1.0 + 0.3 * (value_noise(u, v, 0.15, m.seed) - 0.5) * _fade(footprint, 0.15)
    shade = shade + 0.25 * (value_noise(u, v, 2.5, m.seed + 1) - 0.5)
    dash = (v % 9.0) < 3.0
    edge = np.abs(np.abs(u) - (half - 0.25)) < 0.06
    lane_width = 3.5
    lanes = max(1, round(2 * half / lane_width))
    position = (u + half) % np.float32(2 * half / lanes)
    divider = (position < 0.06) | (position > 2 * half / lanes - 0.06)
    inner = divider & dash & (np.abs(u) < half - 0.5)
    paint = ((edge | inner) & (np.abs(u) < half)).astype(np.float32)
    return paint * np.clip(0.15 / np.maximum(footprint, 0.05), 0.2, 1.0), shade


def albedo(m: Material, u: Values, v: Values, footprint: Values) -> NDArray[np.float32]:
    """Linear albedo [n, 3] at texture coordinates (u, v) [n] in metres.

    ``footprint`` [n] is the pixel's size on the surface in metres.
    """
    weight, shade = (_road if m.kind == "road" else _pattern)(m, u, v, footprint)
    first, second = np.array(m.colour, np.float32), np.array(m.second, np.float32)
    mixed = first + weight[:, None] * (second - first)
    return np.clip(mixed * shade[:, None], 0.0, 1.0)
