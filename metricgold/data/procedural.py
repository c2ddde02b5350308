"""A vectorised ray-caster of indoor rooms and streets with exact z-depth.

The world carries metric cues at true size (doors of 2.0 x 0.9 m, 30/45/60 cm tiles,
tables of 0.75 m, cars of 1.5 m, people, lane markings, a camera at standing height),
so that scale can be read from a picture. Everything is deterministic under its seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from metricgold import geometry
from metricgold.data.world.indoor import indoor_world
from metricgold.data.world.scene import CEILING, FLOOR, Light, Room, Viewpoint, World
from metricgold.data.world.shapes import MISS, Rays, Values
from metricgold.data.world.street import street_world
from metricgold.data.world.textures import Material, albedo

WorldKind = Literal["indoor", "street"]
Paint = Callable[[NDArray[np.intp], Material, Rays, Values, Values], None]
FOV_RANGE_DEG = (40.0, 95.0)
_OUTDOORS = Material("noise", (0.35, 0.4, 0.3), (0.6, 0.6, 0.6), (1.5, 1.5))
_LAYOUTS = {"indoor": indoor_world, "street": street_world}


@dataclass(frozen=True)
class Rendered:
    """One rendered frame.

    Attributes:
        radiance: float32 [H, W, 3], linear, unbounded.
        depth: float32 [H, W], z-depth in metres; ``inf`` where there is only sky.
        intrinsics: float64 [3, 3], K in pixels.
    """

    radiance: NDArray[np.float32]
    depth: NDArray[np.float32]
    intrinsics: NDArray[np.float64]


def random_fov_x_deg(rng: np.random.Generator) -> float:
    """A horizontal field of view in [40, 95] degrees."""
    return float(rng.uniform(*FOV_RANGE_DEG))


def render_scene(
    kind: WorldKind,
    seed: int,
    intrinsics: NDArray[np.float64],
    size: tuple[int, int],
    frames: int,
) -> list[Rendered]:
    """``frames`` views of the one world that ``seed`` describes, all with the same camera K."""
    if kind not in _LAYOUTS:
        raise ValueError(f"unknown world kind '{kind}'; known: {', '.join(_LAYOUTS)}")
    rng = np.random.default_rng([seed, 7919])
    world = _LAYOUTS[kind](rng)
    return [render(world, world.viewpoint(rng), intrinsics, size) for _ in range(frames)]


@dataclass
class _Hits:
    """Flattened first hits of a picture's rays."""

    t: Values
    shape: NDArray[np.int16]  # index into world.shapes, -1 room face or sky
    face: NDArray[np.int8]  # room face, -1 none
    lit: NDArray[np.bool_]  # whether lamps reach it (the space behind a doorway is dim)


def render(
    world: World, view: Viewpoint, intrinsics: NDArray[np.float64], size: tuple[int, int]
) -> Rendered:
    """Cast one ray a pixel from ``view`` into ``world``."""
    rays = geometry.pixel_rays(intrinsics, *size) @ view.rotation().T  # [H, W, 3], camera z = 1
    direction: Rays = tuple(  # type: ignore[assignment]
        np.where(np.abs(c) < 1e-7, np.float32(1e-7), c).astype(np.float32)
        for c in rays.reshape(-1, 3).T
    )
    origin: Rays = tuple(np.full(1, p, np.float32) for p in view.position)  # type: ignore[assignment]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        hits = _first_hits(world, origin, direction)
        radiance = _shade(world, origin, direction, hits, float(intrinsics[0, 0]))
    depth = hits.t.reshape(size)
    return Rendered(radiance.reshape(*size, 3), depth, np.asarray(intrinsics, np.float64))


def _first_hits(world: World, origin: Rays, direction: Rays) -> _Hits:
    count = direction[0].shape[0]
    t = np.full(count, MISS)
    face = np.full(count, -1, np.int8)
    lit = np.ones(count, bool)
    if world.room is not None:
        t, face, lit = _room_hits(world.room, origin, direction)
    index = np.full(count, -1, np.int16)
    for number, shape in enumerate(world.shapes):
        reach = shape.intersect(origin, direction)
        nearer = reach < t
        if nearer.any():
            t = np.where(nearer, reach, t)
            index[nearer] = number
    face[index >= 0] = -1
    lit |= index >= 0
    return _Hits(t, index, face, lit)


def _room_hits(
    room: Room, origin: Rays, direction: Rays
) -> tuple[Values, NDArray[np.int8], NDArray[np.bool_]]:
    t, face = room.exit(origin, direction)
    x, y, z = (o + t * d for o, d in zip(origin, direction, strict=True))
    along = np.where(face < 2, y, x)
    doorway = room.through(face, along, z, window=False)
    window = room.through(face, along, z, window=True)
    lit = np.ones(t.shape, bool)
    if doorway.any():
        behind, behind_face = room.exit(origin, direction, grow=True)
        t = np.where(doorway, behind, t)
        face = np.where(doorway, behind_face, face)
        lit = ~doorway
    if window.any():
        outside: Values | np.float32 = MISS
        if math.isfinite(room.outdoors_m):
            level = np.hypot(direction[0], direction[1])
            reach = (np.float32(room.outdoors_m) / level).astype(np.float32)
            height = origin[2] + reach * direction[2]
            outside = np.where((height > -3) & (height < 12), reach, MISS)
        t = np.where(window, outside, t)
        face = np.where(window, np.int8(6), face)
    return t.astype(np.float32), face.astype(np.int8), lit


def _shade(
    world: World, origin: Rays, direction: Rays, hits: _Hits, focal_px: float
) -> NDArray[np.float32]:
    count = hits.t.shape[0]
    radiance = _sky(world, direction)
    solid = np.isfinite(hits.t)
    t = np.where(solid, hits.t, 1.0).astype(np.float32)
    points: Rays = tuple(o + t * d for o, d in zip(origin, direction, strict=True))  # type: ignore[assignment]
    normal = np.zeros((3, count), np.float32)
    colours = np.zeros((count, 3), np.float32)
    glow = np.zeros(count, np.float32)
    length = np.sqrt(sum(d * d for d in direction))

    def paint(chosen: NDArray[np.intp], material: Material, n: Rays, u: Values, v: Values) -> None:
        slant = np.abs(sum(a * b[chosen] for a, b in zip(n, direction, strict=True)))
        cosine = np.maximum(slant / length[chosen], 0.08)
        footprint = (t[chosen] / np.float32(focal_px) / np.sqrt(cosine)).astype(np.float32)
        colours[chosen] = albedo(material, u, v, footprint)
        normal[:, chosen] = np.stack(np.broadcast_arrays(*n))
        glow[chosen] = material.emission

    for number in np.unique(hits.shape[solid]):
        if number >= 0:
            chosen = np.flatnonzero((hits.shape == number) & solid)
            shape = world.shapes[number]
            n, u, v = shape.surface(*(p[chosen] for p in points))
            paint(chosen, shape.material, n, u, v)
    if world.room is not None:
        _paint_room(world.room, hits, solid, points, paint)
    light = _light(world, points, normal, hits.lit)
    shaded = colours * light + colours * glow[:, None]
    if math.isfinite(world.haze_m):
        clear = np.exp(-t * length / np.float32(world.haze_m))[:, None]
        shaded = shaded * clear + np.array(world.sky[0], np.float32) * (1 - clear)
    radiance[solid] = shaded[solid]
    return radiance


def _paint_room(
    room: Room, hits: _Hits, solid: NDArray[np.bool_], points: Rays, paint: Paint
) -> None:
    for face in range(7):
        chosen = np.flatnonzero((hits.face == face) & solid)
        if chosen.size == 0:
            continue
        x, y, z = (p[chosen] for p in points)
        one, zero = np.ones_like(x), np.zeros_like(x)
        if face in (FLOOR, CEILING):
            n = (zero, zero, one if face == FLOOR else -one)
            paint(chosen, room.faces[face], n, x, y)
        elif face < 2:
            paint(chosen, room.faces[face], (one if face == 0 else -one, zero, zero), y, z)
        elif face < 4:
            paint(chosen, room.faces[face], (zero, one if face == 2 else -one, zero), x, z)
        else:  # what a window shows
            angle: Values = np.arctan2(x, y)
            paint(chosen, _OUTDOORS, (zero, zero, one), angle * room.outdoors_m, z)


def _light(
    world: World, points: Rays, normal: NDArray[np.float32], lit: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Irradiance [n, 3]: ambient from above plus lamps and sun with hard shadows."""
    ambient = (0.75 + 0.25 * normal[2])[:, None] * np.array(world.ambient, np.float32)
    total = np.where(lit[:, None], ambient, 0.6 * ambient)
    for lamp in world.lights:
        to, distance = _towards(lamp, points)
        cosine = np.maximum(sum(a * b for a, b in zip(to, normal, strict=True)), 0.0)
        strength = cosine * np.float32(lamp.power)
        if not lamp.directional:
            strength = strength / (0.5 + distance * distance)
        strength = np.where(lit, strength, 0.0)
        if lamp.shadows:
            chosen = np.flatnonzero(strength > 1e-3)
            start: Rays = tuple(
                p[chosen] + 4e-3 * n[chosen] for p, n in zip(points, normal, strict=True)
            )
            along: Rays = tuple(a[chosen] + np.float32(1e-7) for a in to)  # type: ignore[assignment]
            reach = distance[chosen] - 0.3
            blocked = np.zeros(chosen.size, bool)
            for shape in world.shapes:
                if shape.material.emission == 0.0:
                    blocked |= shape.intersect(start, along) < reach
            strength[chosen[blocked]] = 0.0
        total = total + strength[:, None] * np.array(lamp.colour, np.float32)
    return total.astype(np.float32)


def _towards(lamp: Light, points: Rays) -> tuple[Rays, Values]:
    """Unit directions from points to a light, and the distances."""
    if lamp.directional:
        to = tuple(np.full_like(points[0], c) for c in lamp.position)
        return to, np.full_like(points[0], np.inf)  # type: ignore[return-value]
    offset = [np.float32(c) - p for c, p in zip(lamp.position, points, strict=True)]
    distance = np.sqrt(sum(o * o for o in offset)) + np.float32(1e-6)
    return tuple(o / distance for o in offset), distance  # type: ignore[return-value]


def _sky(world: World, direction: Rays) -> NDArray[np.float32]:
    height: Values = np.divide(direction[2], np.sqrt(sum(d * d for d in direction)))
    weight: Values = np.clip(height * 2.0, 0, 1)[:, None]
    low, high = (np.array(c, np.float32) for c in world.sky)
    return low * (1 - weight) + high * weight


def to_srgb(radiance: NDArray[np.float32], brightness: float = 0.8) -> NDArray[np.uint8]:
    """Linear radiance to 8-bit sRGB; the 90th luminance percentile maps to ``brightness``."""
    luminance = radiance @ np.array([0.3, 0.59, 0.11], np.float32)
    percentile = float(np.percentile(luminance, 90))
    scale = brightness**2.2 / max(percentile, 1e-4)
    mapped = np.clip(np.maximum(scale * radiance, 0) ** np.float32(1 / 2.2), 0, 1)
    return np.rint(mapped * 255).astype(np.uint8)
