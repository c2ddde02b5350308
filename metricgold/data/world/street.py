"""Streets: lanes, kerbs, façades, cars, poles, trees and people under sun or clouds."""

from __future__ import annotations

import math

import numpy as np

from metricgold.data.world.indoor import colour, person
from metricgold.data.world.scene import Light, Viewpoint, World
from metricgold.data.world.shapes import Box, Cylinder, Ground, Shape, Sphere
from metricgold.data.world.textures import Colour, Material

Rng = np.random.Generator
KERB_HEIGHT, STOREY = 0.14, 3.0


def _seed(rng: Rng) -> int:
    return int(rng.integers(1 << 16))


def car(rng: Rng, x: float, y: float, yaw: float) -> list[Shape]:
    """A car 4.2 m long, 1.8 m wide and 1.5 m high on wheels of 0.62 m."""
    paint = Material("plain", colour(rng, 0.03, 0.8, 0.9))
    glass = Material("plain", (0.03, 0.04, 0.05))
    tyre = Material("plain", (0.02, 0.02, 0.02))
    c, s = math.cos(yaw), math.sin(yaw)
    length = float(rng.uniform(3.9, 4.6))

    def at(along: float, z: float) -> tuple[float, float, float]:
        return (x - s * along, y + c * along, z)

    return [
        Box(at(0, 0.575), (0.88, length / 2, 0.325), paint, yaw),
        Box(at(-0.2, 1.17), (0.78, length * 0.26, 0.28), glass, yaw),
        Box(at(-0.2, 1.475), (0.76, length * 0.24, 0.025), paint, yaw),
        Box(at(length * 0.3, 0.31), (0.9, 0.31, 0.31), tyre, yaw),
        Box(at(-length * 0.3, 0.31), (0.9, 0.31, 0.31), tyre, yaw),
    ]


def truck(rng: Rng, x: float, y: float, yaw: float) -> list[Shape]:
    """A lorry or bus: 2.5 m wide, 3..3.6 m high, 7..11 m long."""
    half_length, height = float(rng.uniform(3.5, 5.5)), float(rng.uniform(3.0, 3.6))
    skin = Material(
        "windows", colour(rng, 0.2, 0.8, 0.6), (0.04, 0.05, 0.06), (1.4, 1.5), seed=_seed(rng)
    )
    tyre = Material("plain", (0.02, 0.02, 0.02))
    return [
        Box((x, y, 0.5 + (height - 0.5) / 2), (1.25, half_length, (height - 0.5) / 2), skin, yaw),
        Box((x, y, 0.45), (1.2, half_length * 0.8, 0.45), tyre, yaw),
    ]


def tree(rng: Rng, x: float, y: float) -> list[Shape]:
    """A trunk of 2..3 m under one or two round crowns."""
    trunk = float(rng.uniform(1.8, 3.2))
    green = Material(
        "noise",
        (0.05, rng.uniform(0.1, 0.3), 0.03),
        (0.02, 0.06, 0.01),
        (0.12, 0.12),
        seed=_seed(rng),
    )
    bark = Material("noise", (0.12, 0.08, 0.05), (0.05, 0.03, 0.02), (0.05, 0.05), seed=_seed(rng))
    r = float(rng.uniform(1.0, 2.2))
    parts: list[Shape] = [
        Cylinder(x, y, float(rng.uniform(0.1, 0.25)), 0.0, trunk + 0.5, bark),
        Sphere((x, y, trunk + r * 0.8), r, green),
    ]
    if rng.random() < 0.5:
        parts.append(Sphere((x + r * 0.5, y, trunk + r * 1.5), r * 0.7, green))
    return parts


def lamp_post(rng: Rng, x: float, y: float, towards: float) -> list[Shape]:
    """A pole of 6..8 m with an arm over the road."""
    grey = Material("plain", (0.25, 0.25, 0.27))
    height = float(rng.uniform(6, 8))
    arm = Box((x + towards * 0.7, y, height), (0.7, 0.06, 0.06), grey)
    return [Cylinder(x, y, 0.09, 0.0, height, grey), arm]


def sign(rng: Rng, x: float, y: float) -> list[Shape]:
    """A traffic sign: a plate of 0.6 m at 2.2..2.8 m on a thin pole."""
    pole = Cylinder(x, y, 0.035, 0.0, 2.8, Material("plain", (0.4, 0.4, 0.4)))
    plate = Material("plain", (0.6, 0.05, 0.05) if rng.random() < 0.5 else (0.05, 0.1, 0.6))
    return [pole, Box((x, y - 0.05, 2.5), (0.3, 0.02, 0.3), plate)]


def facade(rng: Rng) -> Material:
    """Windows every 2.4..4 m and every storey of 3 m, in plaster, or bricks without windows."""
    if rng.random() < 0.25:
        return Material(
            "bricks",
            colour(rng, 0.15, 0.5, 0.5),
            (0.5, 0.48, 0.45),
            (0.25, 0.075),
            0.012,
            _seed(rng),
        )
    wall = colour(rng, 0.15, 0.8, 0.35)
    return Material(
        "windows", wall, (0.05, 0.06, 0.08), (float(rng.uniform(2.4, 4)), STOREY), seed=_seed(rng)
    )


def _houses(rng: Rng, side: int, line: float) -> list[Shape]:
    """A row of houses along the street, with gaps; doors of 2.0 x 0.9 m on the pavement."""
    shapes: list[Shape] = []
    y = float(rng.uniform(-14, -4))
    tall = rng.random() < 0.5
    while y < 95:
        width = float(rng.uniform(7, 22))
        height = STOREY * int(rng.integers(3, 9) if tall else rng.integers(1, 4)) + 0.6
        back = line + float(rng.choice([0.0, 0.0, rng.uniform(1, 6)]))
        depth = 5.0
        if rng.random() < 0.85:
            centre = (side * (back + depth), y + width / 2, height / 2)
            shapes.append(Box(centre, (depth, width / 2, height / 2), facade(rng)))
            if y < 45:
                door = Material("door", colour(rng, 0.05, 0.5, 0.6), (0.6, 0.6, 0.5), (0.9, 2.0))
                at = (side * (back + 0.02), y + width * float(rng.uniform(0.2, 0.8)), 1.0)
                shapes.append(Box(at, (0.06, 0.45, 1.0), door))
        y += width + (float(rng.uniform(1, 8)) if rng.random() < 0.3 else 0.0)
    return shapes


def _traffic(rng: Rng, half: float) -> list[Shape]:
    shapes: list[Shape] = []
    for side in (-1, 1):
        y = float(rng.uniform(2, 14))
        busy = rng.uniform(0.1, 0.7)
        while y < 60:
            if rng.random() < busy:
                build = truck if rng.random() < 0.1 else car
                shapes += build(rng, side * (half - 1.1), y, rng.normal(0, 0.03))
            y += float(rng.uniform(5.5, 9))
    for _ in range(int(rng.integers(0, 3))):
        build = truck if rng.random() < 0.15 else car
        lane = float(rng.choice([-1, 1])) * min(half * 0.35, 1.9)
        shapes += build(rng, lane, float(rng.uniform(7, 55)), rng.normal(0, 0.06))
    return shapes


def _pavement_life(rng: Rng, half: float, pavement: float) -> list[Shape]:
    shapes: list[Shape] = []
    for side in (-1, 1):
        inner = half + 0.5
        for y in np.arange(rng.uniform(2, 15), 70, rng.uniform(18, 30)):
            shapes += lamp_post(rng, side * inner, float(y), -side)
        if rng.random() < 0.5:
            for y in np.arange(rng.uniform(2, 12), 60, rng.uniform(8, 14)):
                shapes += tree(rng, side * (inner + 0.4), float(y))
        for _ in range(int(rng.integers(0, 4))):
            x = side * (half + float(rng.uniform(0.8, max(0.9, pavement - 0.4))))
            shapes += person(rng, x, float(rng.uniform(2, 30)))
        if rng.random() < 0.4:
            shapes += sign(rng, side * inner, float(rng.uniform(3, 30)))
    return shapes


def _sky_and_sun(
    rng: Rng,
) -> tuple[tuple[Light, ...], Colour, tuple[Colour, Colour], float]:
    """Lights, ambient, sky colours and haze distance for clear, overcast, low sun or fog."""
    overcast = rng.random() < 0.35
    elevation = math.radians(rng.uniform(15, 70))
    azimuth = rng.uniform(0, 2 * math.pi)
    direction = (
        math.cos(elevation) * math.sin(azimuth), math.cos(elevation) * math.cos(azimuth),
        math.sin(elevation),
    )  # fmt: skip
    warmth = math.sin(elevation)
    tone = (1.0, 0.72 + 0.26 * warmth, 0.5 + 0.45 * warmth)
    haze = float(rng.uniform(60, 300)) if rng.random() < 0.3 else math.inf
    if overcast:
        grey = rng.uniform(0.5, 0.9)
        above = grey * 0.8
        return (), (grey, grey, grey * 1.03), ((grey, grey, grey), (above, above, above)), haze
    sun = Light(direction, tone, float(rng.uniform(0.8, 1.6)), directional=True)
    ambient = rng.uniform(0.25, 0.5)
    sky = ((0.75, 0.8, 0.9), (0.2, 0.4, rng.uniform(0.7, 0.95)))
    return (sun,), (ambient * 0.85, ambient * 0.93, ambient), sky, haze


def street_world(rng: Rng) -> World:
    """A street with traffic between houses, open at the end or closed by a building."""
    half = float(rng.choice([3.0, 3.5, 5.25, 7.0]))
    pavement = float(rng.uniform(1.5, 4.5))
    asphalt = rng.uniform(0.06, 0.25)
    road = Material(
        "road", (asphalt, asphalt, asphalt * 1.03), (0.75, 0.75, 0.7), seed=_seed(rng), extent=half
    )
    slab = Material("tiles", (0.35, 0.34, 0.32), (0.15, 0.15, 0.15), (0.5, 0.5), 0.015, _seed(rng))
    shapes: list[Shape] = [Ground(road)]
    for side in (-1, 1):
        x = side * (half + pavement / 2)
        shapes.append(Box((x, 90, KERB_HEIGHT / 2), (pavement / 2, 110, KERB_HEIGHT / 2), slab))
        shapes += _houses(rng, side, half + pavement)
    if rng.random() < 0.35:
        end, height = float(rng.uniform(35, 85)), float(STOREY * rng.integers(2, 8))
        shapes.append(Box((0, end + 5, height / 2), (40, 5, height / 2), facade(rng)))
    shapes += _traffic(rng, half)
    shapes += _pavement_life(rng, half, pavement)
    lights, ambient, sky, haze = _sky_and_sun(rng)
    obstacles = [s.bounds() for s in shapes if not isinstance(s, Ground)]
    near = [(x, y, r) for x, y, r in obstacles if r < 6]

    def viewpoint(view: Rng) -> Viewpoint:
        """In a lane or on the pavement, 1.55 m above it, mostly along the street."""
        x = y = 0.0
        walking = view.random() < 0.35
        for attempt in range(30):
            side = view.choice([-1, 1])
            x = (
                side * (half + view.uniform(0.4, pavement - 0.4))
                if walking
                else view.uniform(-0.75, 0.75) * half
            )
            y = view.uniform(0, 20)
            if all(math.hypot(x - bx, y - by) > r + 0.4 * (attempt < 25) for bx, by, r in near):
                break
        spread = 0.7 if walking else 0.2
        z = float(np.clip(view.normal(1.55, 0.1), 1.2, 1.85)) + KERB_HEIGHT * walking
        return Viewpoint(
            (x, y, z), view.normal(0, spread), view.normal(0.03, 0.06), view.normal(0, 0.02)
        )

    return World(tuple(shapes), lights, ambient, viewpoint, None, sky, haze)
