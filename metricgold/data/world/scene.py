"""What a world is: shapes, an optional room shell, lights, and where a camera may stand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from metricgold.data.world.shapes import Rays, Shape, Values
from metricgold.data.world.textures import Colour, Material

FLOOR, CEILING = 4, 5
"""Face numbers of a room: 0 x=0, 1 x=width, 2 y=0, 3 y=length, 4 floor, 5 ceiling."""


@dataclass(frozen=True)
class Opening:
    """A doorway (leads into the space behind) or a window (shows outdoors) in a wall.

    ``start`` and ``end`` run along the wall, ``sill`` and ``head`` are heights, metres.
    """

    face: int
    start: float
    end: float
    sill: float
    head: float
    window: bool


@dataclass(frozen=True)
class Room:
    """A box seen from inside, [0, width] x [0, length] x [0, height] metres.

    ``beyond`` is how far the space behind each of the four walls reaches;
    ``outdoors_m`` the distance of what windows show, ``inf`` for open sky.
    """

    width: float
    length: float
    height: float
    faces: tuple[Material, ...]
    openings: tuple[Opening, ...]
    beyond: tuple[float, float, float, float]
    outdoors_m: float

    def exit(
        self, origin: Rays, direction: Rays, grow: bool = False
    ) -> tuple[Values, NDArray[np.int8]]:
        """Where rays from inside leave the room (or the larger space around it): t, face."""
        b = self.beyond if grow else (0.0, 0.0, 0.0, 0.0)
        low = (-b[0], -b[2], 0.0)
        high = (self.width + b[1], self.length + b[3], self.height)
        best: Values | None = None
        face: NDArray[np.int8] | None = None
        for axis in range(3):
            d = direction[axis]
            ahead = np.where(d > 0, np.float32(high[axis]), np.float32(low[axis]))
            t = (ahead - origin[axis]) / d
            number = np.where(d > 0, 2 * axis + 1, 2 * axis).astype(np.int8)
            if axis == 2:
                number = np.where(d > 0, CEILING, FLOOR).astype(np.int8)
            if best is None or face is None:
                best, face = t, number
            else:
                face = np.where(t < best, number, face)
                best = np.minimum(best, t)
        assert best is not None
        assert face is not None
        return best, face

    def through(
        self, face: NDArray[np.int8], along: Values, z: Values, window: bool
    ) -> NDArray[np.bool_]:
        """Which hits on the walls fall into an opening of the given sort: bool."""
        inside = np.zeros(face.shape, bool)
        for o in self.openings:
            if o.window == window:
                inside |= (
                    (face == o.face) & (along > o.start) & (along < o.end)
                    & (z > o.sill) & (z < o.head)
                )  # fmt: skip
        return inside


@dataclass(frozen=True)
class Light:
    """A lamp at a position (indoors), or the sun in a direction (``directional``)."""

    position: tuple[float, float, float]
    colour: Colour
    power: float
    directional: bool = False
    shadows: bool = True


@dataclass(frozen=True)
class Viewpoint:
    """Camera position [m], yaw (0 looks along +y), pitch (down positive) and roll in radians."""

    position: tuple[float, float, float]
    yaw: float
    pitch: float
    roll: float

    def rotation(self) -> NDArray[np.float64]:
        """Camera (OpenCV) to world rotation, [3, 3]."""
        cy, sy = math.cos(self.yaw), math.sin(self.yaw)
        cp, sp = math.cos(self.pitch), math.sin(self.pitch)
        cr, sr = math.cos(self.roll), math.sin(self.roll)
        roll = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
        pitch = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
        level = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])  # camera axes in the world, yaw 0
        yaw = np.array([[cy, sy, 0], [-sy, cy, 0], [0, 0, 1]])
        return np.asarray(yaw @ level @ pitch @ roll)


@dataclass(frozen=True)
class World:
    """A scene to be rendered; ``viewpoint`` draws a place for the camera."""

    shapes: tuple[Shape, ...]
    lights: tuple[Light, ...]
    ambient: Colour
    viewpoint: Callable[[np.random.Generator], Viewpoint]
    room: Room | None = None
    sky: tuple[Colour, Colour] = ((0.6, 0.7, 0.9), (0.25, 0.45, 0.9))
    haze_m: float = math.inf
    _blocked: tuple[tuple[float, float, float], ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "_blocked", tuple(s.bounds() for s in self.shapes))

    def clear(self, x: float, y: float, margin: float) -> bool:
        """Whether a camera at (x, y) keeps ``margin`` metres from everything."""
        return all(math.hypot(x - bx, y - by) > r + margin for bx, by, r in self._blocked)
