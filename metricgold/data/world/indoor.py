"""Rooms: true-size furniture, doors, tiles, planks and people under lamps."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from metricgold.data.world.scene import Light, Opening, Room, Viewpoint, World
from metricgold.data.world.shapes import Box, Cylinder, Rays, Shape, Sphere
from metricgold.data.world.textures import Colour, Material

Rng = np.random.Generator
DOOR_WIDTH, DOOR_HEIGHT = 0.9, 2.0
TABLE_HEIGHT, SEAT_HEIGHT = 0.75, 0.45


def colour(rng: Rng, low: float = 0.05, high: float = 0.9, tint: float = 0.35) -> Colour:
    """A random linear colour: a brightness and a tint."""
    base = rng.uniform(low, high)
    r, g, b = np.clip(base * (1 + tint * rng.uniform(-1, 1, 3)), 0.02, 0.95)
    return float(r), float(g), float(b)


def wood(rng: Rng) -> Colour:
    """A wooden colour, light to dark."""
    base = rng.uniform(0.08, 0.5)
    return base, base * rng.uniform(0.55, 0.75), base * rng.uniform(0.25, 0.5)


def _seed(rng: Rng) -> int:
    return int(rng.integers(1 << 16))


def floor_material(rng: Rng) -> Material:
    """Tiles of 30/45/60 cm, planks of 14 cm, or carpet."""
    pick = rng.random()
    if pick < 0.4:
        side = float(rng.choice([0.3, 0.45, 0.6]))
        c = colour(rng, 0.15, 0.8, 0.2)
        r, g, b = (min(1.0, v * rng.uniform(0.3, 0.7)) for v in c)
        return Material("tiles", c, (r, g, b), (side, side), 0.012, _seed(rng))
    if pick < 0.75:
        c = wood(rng)
        dark = (c[0] * 0.4, c[1] * 0.4, c[2] * 0.4)
        return Material("planks", c, dark, (1.4, 0.14), 0.006, _seed(rng))
    return Material(
        "noise", colour(rng, 0.1, 0.5), colour(rng, 0.1, 0.5), (0.03, 0.03), 0, _seed(rng)
    )


def wall_material(rng: Rng) -> Material:
    """Paint, bricks of 25 x 7.5 cm, wall tiles, panelling or wallpaper."""
    pick = rng.random()
    if pick < 0.55:
        return Material("plain", colour(rng, 0.3, 0.9, 0.25), seed=_seed(rng))
    if pick < 0.7:
        c = colour(rng, 0.2, 0.6, 0.4)
        return Material("bricks", c, (0.55, 0.53, 0.5), (0.25, 0.075), 0.012, _seed(rng))
    if pick < 0.8:
        return Material(
            "tiles", colour(rng, 0.4, 0.9), (0.3, 0.3, 0.3), (0.15, 0.15), 0.006, _seed(rng)
        )
    if pick < 0.9:
        return Material("planks", wood(rng), (0.05, 0.04, 0.03), (2.4, 0.12), 0.008, _seed(rng))
    width = float(rng.uniform(0.1, 0.3))
    return Material(
        "stripes", colour(rng, 0.3, 0.8), colour(rng, 0.3, 0.8), (width, 1), 0, _seed(rng)
    )


def _single(x: float, y: float, z: float) -> Rays:
    """One ray's components as arrays of one."""
    return np.array([x], np.float32), np.array([y], np.float32), np.array([z], np.float32)


def _plain(rng: Rng, make: Callable[[Rng], Colour] = colour) -> Material:
    return Material("plain", make(rng), seed=_seed(rng))


def table(rng: Rng, x: float, y: float, yaw: float) -> list[Shape]:
    """A table 0.75 m high on two side panels."""
    length, width = rng.uniform(0.9, 2.0), rng.uniform(0.6, 1.0)
    m = _plain(rng, wood if rng.random() < 0.7 else colour)
    c, s = math.cos(yaw), math.sin(yaw)
    parts: list[Shape] = [Box((x, y, TABLE_HEIGHT - 0.02), (length / 2, width / 2, 0.02), m, yaw)]
    for side in (-1, 1):
        reach = side * (length / 2 - 0.08)
        centre = (x + c * reach, y + s * reach, (TABLE_HEIGHT - 0.04) / 2)
        parts.append(Box(centre, (0.03, width / 2 - 0.05, (TABLE_HEIGHT - 0.04) / 2), m, yaw))
    if rng.random() < 0.6:
        r = rng.uniform(0.05, 0.15)
        parts.append(Sphere((x, y, TABLE_HEIGHT + r), r, _plain(rng)))
    return parts


def chair(rng: Rng, x: float, y: float, yaw: float) -> list[Shape]:
    """A chair: seat at 0.45 m, back to 0.9 m."""
    m = _plain(rng)
    c, s = math.cos(yaw), math.sin(yaw)
    back = (x - s * 0.21, y + c * 0.21, 0.68)
    return [
        Box((x, y, SEAT_HEIGHT / 2), (0.21, 0.21, SEAT_HEIGHT / 2), m, yaw),
        Box(back, (0.21, 0.02, 0.23), m, yaw),
    ]


def cabinet(rng: Rng, x: float, y: float, yaw: float) -> list[Shape]:
    """Worktop (0.9 m), wardrobe (2.1 m) or book shelf; 0.3 to 0.6 m deep."""
    height = float(rng.choice([0.9, 1.2, 2.1]))
    half = (rng.uniform(0.4, 1.0), rng.uniform(0.15, 0.3), height / 2)
    if rng.random() < 0.35:
        m = Material("books", colour(rng, 0.2, 0.7, 0.9), wood(rng), (0.04, 0.33), 0, _seed(rng))
    else:
        m = Material("tiles", colour(rng), (0.1, 0.1, 0.1), (0.6, height / 2), 0.012, _seed(rng))
    return [Box((x, y, height / 2), half, m, yaw)]


def bed(rng: Rng, x: float, y: float, yaw: float) -> list[Shape]:
    """A bed of 2.0 x 1.0..1.8 m, 0.5 m high."""
    return [Box((x, y, 0.25), (rng.uniform(0.5, 0.9), 1.0, 0.25), _plain(rng), yaw)]


def person(rng: Rng, x: float, y: float, yaw: float = 0.0) -> list[Shape]:
    """A standing person: a body 1.55..1.9 m tall with a head of 0.24 m."""
    height = float(np.clip(rng.normal(1.72, 0.09), 1.5, 1.95))
    body = Cylinder(x, y, 0.2, 0.0, height - 0.2, _plain(rng), round_ends=True)
    skin = Material("plain", (0.5, 0.3, 0.2) if rng.random() < 0.6 else (0.15, 0.08, 0.05))
    return [body, Sphere((x, y, height - 0.12), 0.12, skin)]


def small_things(rng: Rng, x: float, y: float, yaw: float) -> list[Shape]:
    """A ball, a bin or a cardboard box."""
    pick = rng.random()
    if pick < 0.4:
        r = float(rng.uniform(0.11, 0.4))
        return [Sphere((x, y, r), r, _plain(rng))]
    if pick < 0.7:
        return [
            Cylinder(
                x, y, float(rng.uniform(0.12, 0.2)), 0.0, float(rng.uniform(0.3, 0.7)), _plain(rng)
            )
        ]
    half_x, half_y, half_z = (float(h) for h in rng.uniform(0.15, 0.4, 3))
    return [Box((x, y, half_z), (half_x, half_y, half_z), _plain(rng, wood), yaw)]


FURNITURE = (table, table, chair, chair, cabinet, cabinet, bed, person, small_things, small_things)


def _openings(rng: Rng, width: float, length: float, height: float) -> tuple[Opening, ...]:
    found = []
    for face in range(4):
        along = length if face < 2 else width
        start = rng.uniform(0.2, 0.8)
        while start + 1.2 < along:
            pick = rng.random()
            if pick < 0.35:
                found.append(
                    Opening(face, start, start + DOOR_WIDTH, 0.0, DOOR_HEIGHT, window=False)
                )
            elif pick < 0.6:
                wide = min(float(rng.uniform(0.8, 1.8)), along - start - 0.2)
                head = min(2.1, height - 0.15)
                found.append(Opening(face, start, start + wide, 0.9, head, window=True))
            start += rng.uniform(1.5, 4.0)
    return tuple(found)


def _closed_doors(rng: Rng, width: float, length: float) -> list[Shape]:
    """Doors of 2.0 x 0.9 m standing 3 cm before the walls."""
    doors: list[Shape] = []
    material = Material(
        "door", colour(rng, 0.15, 0.8), (0.05, 0.05, 0.05), (DOOR_WIDTH, DOOR_HEIGHT)
    )
    for face in range(4):
        if rng.random() < 0.4:
            along = length if face < 2 else width
            at = rng.uniform(0.7, max(0.71, along - 0.7))
            thick, wide, high = 0.03, DOOR_WIDTH / 2, DOOR_HEIGHT / 2
            half = (thick, wide, high) if face < 2 else (wide, thick, high)
            x, y = (
                (0.0 if face == 0 else width, at)
                if face < 2
                else (at, 0.0 if face == 2 else length)
            )
            doors.append(Box((x, y, DOOR_HEIGHT / 2), half, material))
    return doors


def _lamps(rng: Rng, width: float, length: float, height: float) -> tuple[list[Light], list[Shape]]:
    count = 1 + int(width * length > 30) + int(rng.random() < 0.3)
    lights, shapes = [], list[Shape]()
    warm = rng.uniform(0.6, 1.0)
    tone = (1.0, 0.75 + 0.25 * warm, 0.5 + 0.5 * warm)
    for index in range(count):
        x, y = rng.uniform(0.2, 0.8) * width, (index + rng.uniform(0.2, 0.8)) / count * length
        lights.append(
            Light((x, y, height - 0.25), tone, float(rng.uniform(1.5, 5.0)), shadows=index == 0)
        )
        glow = Material("plain", (0.9, 0.9, 0.8), emission=float(rng.uniform(1.5, 4.0)))
        shapes.append(Cylinder(x, y, 0.18, height - 0.12, height - 0.04, glow))
    return lights, shapes


def indoor_world(rng: Rng) -> World:
    """A furnished room of 2.5 x 3 m up to a hall of 14 x 30 m."""
    hall = rng.random() < 0.2
    width = float(rng.uniform(5, 14) if hall else rng.uniform(2.5, 7))
    length = float(rng.uniform(8, 30) if hall else rng.uniform(3, 9))
    height = float(rng.uniform(3, 7) if hall else rng.normal(2.6, 0.12))
    wall, other = wall_material(rng), wall_material(rng)
    walls = [wall if rng.random() < 0.7 else other for _ in range(4)]
    ceiling = Material("plain", colour(rng, 0.6, 0.92, 0.08), seed=_seed(rng))
    if rng.random() < 0.3:
        ceiling = Material("tiles", (0.8, 0.8, 0.78), (0.4, 0.4, 0.4), (0.6, 0.6), 0.02, _seed(rng))
    shapes: list[Shape] = []
    for _ in range(int(rng.integers(3, 10)) + (4 if hall else 0)):
        x, y = rng.uniform(0.4, width - 0.4), rng.uniform(0.4, length - 0.4)
        against_wall = rng.random() < 0.5
        yaw = float(rng.choice([0, math.pi / 2]) if against_wall else rng.uniform(0, math.pi))
        if against_wall:
            x = 0.35 if yaw and rng.random() < 0.5 else width - 0.35 if yaw else x
            y = y if yaw else (0.35 if rng.random() < 0.5 else length - 0.35)
        shapes += FURNITURE[int(rng.integers(len(FURNITURE)))](rng, x, y, yaw)
    if rng.random() < 0.35:
        column = Material("plain", colour(rng, 0.3, 0.8), seed=_seed(rng))
        side = float(rng.uniform(0.15, 0.6))
        x, y = rng.uniform(0.2, 0.8) * width, rng.uniform(0.3, 0.9) * length
        shapes.append(
            Box((x, y, height / 2), (side, side * rng.uniform(0.5, 3), height / 2), column)
        )
    lights, lamps = _lamps(rng, width, length, height)
    room = Room(
        width, length, height, (*walls, floor_material(rng), ceiling),
        _openings(rng, width, length, height),
        tuple(float(b) for b in rng.uniform(1.2, 7.0, 4)),  # type: ignore[arg-type]
        math.inf if rng.random() < 0.5 else float(rng.uniform(4, 40)),
    )  # fmt: skip
    light = rng.uniform(0.15, 0.5)
    ambient = (light, light * rng.uniform(0.9, 1.0), light * rng.uniform(0.8, 1.1))
    world_shapes = (*shapes, *lamps, *_closed_doors(rng, width, length))

    def viewpoint(view: Rng) -> Viewpoint:
        """Standing height, 0.35 m from everything, not facing a wall closer than 1.2 m.

        Views without content are avoided, as Hypersim's own choice of cameras does.
        """
        x = y = yaw = 0.0
        for attempt in range(40):
            x, y = view.uniform(0.3, width - 0.3), view.uniform(0.3, length - 0.3)
            yaw = math.atan2(width / 2 - x, length / 2 - y) + view.normal(0, 0.9)
            gaze = _single(math.sin(yaw), math.cos(yaw), -1e-7)
            here = _single(x, y, 1.0)
            clear = all(math.hypot(x - bx, y - by) > r + 0.35 for bx, by, r in bounds)
            if attempt > 35 or (clear and room.exit(here, gaze)[0][0] > 1.2):
                break
        z = float(np.clip(view.normal(1.55, 0.1), 1.15, min(1.85, height - 0.3)))
        return Viewpoint((x, y, z), yaw, view.normal(0.08, 0.12), view.normal(0, 0.02))

    bounds = [s.bounds() for s in shapes]
    return World(world_shapes, tuple(lights), ambient, viewpoint, room)
