"""Ray intersections with the world's primitives, vectorised over rays.

World frame: x right, y forward, z up, metres. Rays are three float32 arrays a
component; the parameter t of a primary ray is its z-depth, since its direction has
camera z = 1. A miss is ``inf``. Solids only: a ray that starts inside misses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from metricgold.data.world.textures import Material

Values = NDArray[np.float32]
Rays = tuple[Values, Values, Values]
EPSILON = np.float32(1e-3)
MISS = np.float32(np.inf)


class Shape(Protocol):
    """A primitive: where rays hit it, and the surface there."""

    @property
    def material(self) -> Material:
        """What it is made of."""
        ...

    def intersect(self, origin: Rays, direction: Rays) -> Values:
        """Ray parameter of the first hit, ``inf`` for a miss; shape of the rays."""
        ...

    def surface(self, x: Values, y: Values, z: Values) -> tuple[Rays, Values, Values]:
        """Outward normal (nx, ny, nz) and texture coordinates (u, v) in metres at hit points."""
        ...

    def bounds(self) -> tuple[float, float, float]:
        """Circle (x, y, radius) on the ground that holds the primitive."""
        ...


@dataclass(frozen=True)
class Box:
    """Box standing with any yaw: centre, half sizes, yaw in radians."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    material: Material
    yaw: float = 0.0

    def _local(self, x: Values, y: Values) -> tuple[Values, Values]:
        if self.yaw == 0.0:
            return x, y
        c, s = np.float32(math.cos(self.yaw)), np.float32(math.sin(self.yaw))
        return c * x + s * y, c * y - s * x

    def intersect(self, origin: Rays, direction: Rays) -> Values:
        """See :class:`Shape`."""
        cx, cy, cz = self.centre
        ox, oy = self._local(origin[0] - np.float32(cx), origin[1] - np.float32(cy))
        dx, dy = self._local(direction[0], direction[1])
        near = far = None
        for o, d, h in ((ox, dx, self.half[0]), (oy, dy, self.half[1]),
                        (origin[2] - np.float32(cz), direction[2], self.half[2])):  # fmt: skip
            inverse = 1.0 / d
            middle, reach = -o * inverse, np.abs(np.float32(h) * inverse)
            low, high = middle - reach, middle + reach
            near = low if near is None else np.maximum(near, low, out=near)
            far = high if far is None else np.minimum(far, high, out=far)
        assert near is not None
        assert far is not None
        return np.where((near <= far) & (near > EPSILON), near, MISS)

    def surface(self, x: Values, y: Values, z: Values) -> tuple[Rays, Values, Values]:
        """See :class:`Shape`; u, v run along the face that was hit."""
        lx, ly = self._local(x - np.float32(self.centre[0]), y - np.float32(self.centre[1]))
        lz = z - np.float32(self.centre[2])
        face = np.argmax(
            np.abs(np.stack([lx / self.half[0], ly / self.half[1], lz / self.half[2]])), axis=0
        )
        sx = np.where(face == 0, np.sign(lx), 0.0)
        sy = np.where(face == 1, np.sign(ly), 0.0)
        nz = np.where(face == 2, np.sign(lz), 0.0).astype(np.float32)
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        normal = ((c * sx - s * sy).astype(np.float32), (s * sx + c * sy).astype(np.float32), nz)
        u = np.where(face == 0, ly, lx)
        v = np.where(face == 2, ly, z - np.float32(self.centre[2] - self.half[2]))
        return normal, u, v

    def bounds(self) -> tuple[float, float, float]:
        """See :class:`Shape`."""
        return self.centre[0], self.centre[1], math.hypot(self.half[0], self.half[1])


@dataclass(frozen=True)
class Sphere:
    """Sphere: centre and radius."""

    centre: tuple[float, float, float]
    radius: float
    material: Material

    def intersect(self, origin: Rays, direction: Rays) -> Values:
        """See :class:`Shape`."""
        dx, dy, dz = direction
        ox, oy, oz = (o - np.float32(c) for o, c in zip(origin, self.centre, strict=True))
        a = dx * dx + dy * dy + dz * dz
        half_b = ox * dx + oy * dy + oz * dz
        c = ox * ox + oy * oy + oz * oz - np.float32(self.radius**2)
        return _first_root(a, half_b, c)

    def surface(self, x: Values, y: Values, z: Values) -> tuple[Rays, Values, Values]:
        """See :class:`Shape`."""
        r = np.float32(self.radius)
        normal = tuple((p - np.float32(c)) / r for p, c in zip((x, y, z), self.centre, strict=True))
        angle = np.arctan2(normal[1], normal[0])
        return normal, angle * r, z - np.float32(self.centre[2])  # type: ignore[return-value]

    def bounds(self) -> tuple[float, float, float]:
        """See :class:`Shape`."""
        return self.centre[0], self.centre[1], self.radius


@dataclass(frozen=True)
class Cylinder:
    """Upright cylinder from ``bottom`` to ``top`` with a lid; ``round_ends`` makes a capsule."""

    x: float
    y: float
    radius: float
    bottom: float
    top: float
    material: Material
    round_ends: bool = False
    _ends: tuple[Sphere, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        if self.round_ends:
            ends = tuple(
                Sphere((self.x, self.y, z), self.radius, self.material)
                for z in (self.bottom + self.radius, self.top - self.radius)
            )
            object.__setattr__(self, "_ends", ends)

    def intersect(self, origin: Rays, direction: Rays) -> Values:
        """See :class:`Shape`."""
        dx, dy, dz = direction
        ox, oy = origin[0] - np.float32(self.x), origin[1] - np.float32(self.y)
        t = _first_root(
            dx * dx + dy * dy, ox * dx + oy * dy, ox * ox + oy * oy - np.float32(self.radius**2)
        )
        inset = self.radius if self.round_ends else 0.0
        with np.errstate(invalid="ignore"):
            z = origin[2] + t * dz
            t = np.where((z >= self.bottom + inset) & (z <= self.top - inset), t, MISS)
        for end in self._ends:
            t = np.minimum(t, end.intersect(origin, direction))
        if not self.round_ends:
            lid = (np.float32(self.top) - origin[2]) / dz
            with np.errstate(invalid="ignore", over="ignore"):
                on_lid = (ox + lid * dx) ** 2 + (oy + lid * dy) ** 2 <= self.radius**2
            t = np.minimum(t, np.where(on_lid & (lid > EPSILON) & (dz < 0), lid, MISS))
        return t

    def surface(self, x: Values, y: Values, z: Values) -> tuple[Rays, Values, Values]:
        """See :class:`Shape`; around the axis for u, height for v."""
        lx, ly = x - np.float32(self.x), y - np.float32(self.y)
        r = np.float32(self.radius)
        if self.round_ends:
            lz = z - np.clip(z, self.bottom + self.radius, self.top - self.radius)
            normal = (lx / r, ly / r, (lz / r).astype(np.float32))
        else:
            lid = z > self.top - 2e-3
            zero = np.float32(0)
            normal = (
                np.where(lid, zero, lx / r), np.where(lid, zero, ly / r), lid.astype(np.float32)
            )  # fmt: skip
        return normal, np.arctan2(ly, lx) * r, z - np.float32(self.bottom)

    def bounds(self) -> tuple[float, float, float]:
        """See :class:`Shape`."""
        return self.x, self.y, self.radius


@dataclass(frozen=True)
class Ground:
    """The plane z = 0, seen from above."""

    material: Material

    def intersect(self, origin: Rays, direction: Rays) -> Values:
        """See :class:`Shape`."""
        t = -origin[2] / direction[2]
        return np.where((direction[2] < 0) & (t > EPSILON), t, MISS)

    def surface(self, x: Values, y: Values, z: Values) -> tuple[Rays, Values, Values]:
        """See :class:`Shape`; u = x, v = y."""
        zero = np.zeros_like(x)
        return (zero, zero, np.ones_like(x)), x, y

    def bounds(self) -> tuple[float, float, float]:
        """See :class:`Shape`; the ground is never in the way."""
        return 0.0, 0.0, -math.inf


def _first_root(a: Values, half_b: Values, c: Values) -> Values:
    """Smallest t > 0 of ``a t^2 + 2 half_b t + c = 0`` if the ray starts outside, else inf."""
    discriminant = half_b * half_b - a * c
    t = (-half_b - np.sqrt(np.maximum(discriminant, 0))) / a
    return np.where((discriminant > 0) & (t > EPSILON), t, MISS)
