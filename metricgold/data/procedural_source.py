"""Which procedural worlds a dataset consists of, and rendering them into native archives.

A *scene* here is one Hypersim zip, one block of a Virtual KITTI 2 sequence, or one TartanAir
trajectory. Training and held-out worlds have disjoint seeds.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metricgold.config import ProceduralConfig
from metricgold.data import hypersim, tartanair, virtual_kitti
from metricgold.data.archive_writer import ArchiveSet, Member
from metricgold.data.dataset import named_in
from metricgold.data.native_formats import (
    hypersim_camera_csv,
    hypersim_camera_matrix,
    hypersim_members,
    hypersim_split_csv,
    tartanair_members,
    virtual_kitti_intrinsics,
    virtual_kitti_members,
)
from metricgold.data.procedural import WorldKind, random_fov_x_deg, render_scene
from metricgold.geometry import hypersim_intrinsics, intrinsics_from_fov
from metricgold.progress import progress_bar

HOLDOUT_SEED = 1_000_000
HOLDOUT_FRAMES = 2
FRAMES_PER_CAMERA = 1
"""Of a training scene of Hypersim: every frame shows a world of its own."""
WORKERS = 2
_SEED_OFFSET = {"hypersim": 0, "virtual_kitti": 200_000, "tartanair": 400_000}
_CAMERA_STRIDE = 20_000
"""Seeds between two cameras of a scene: more than there are scenes, so none coincide."""
_RUN_STRIDE = 10_000_000
STREET_ENVIRONMENTS = ("neighborhood", "japanesealley", "soulcity", "oldtown")
INDOOR_ENVIRONMENTS = ("hospital", "office", "carwelding", "office2")


@dataclass(frozen=True)
class World:
    """One world to render: its camera slot in the scene and its first frame number there."""

    kind: WorldKind
    seed: int
    camera: str
    first_frame: int
    frames: int
    intrinsics: tuple[float, ...]

    @property
    def matrix(self) -> NDArray[np.float64]:
        """K [3, 3] in pixels."""
        return np.array(self.intrinsics).reshape(3, 3)


@dataclass(frozen=True)
class Scene:
    """One task of the render pool."""

    dataset: str
    name: str
    size: tuple[int, int]
    worlds: tuple[World, ...]


@dataclass(frozen=True)
class Plan:
    """All scenes of a dataset, and the text files that describe their cameras."""

    scenes: list[Scene]
    texts: list[Member]
    files: dict[str, str]


def plan_scenes(dataset: str, config: ProceduralConfig, seed: int) -> Plan:
    """What to render for ``dataset``; the same for the same configuration and seed.

    Held-out worlds depend neither on ``seed`` nor on how many training scenes there are.
    """
    planner = {"hypersim": _hypersim, "virtual_kitti": _virtual_kitti, "tartanair": _tartanair}
    return planner[dataset](config, _SEED_OFFSET[dataset], (seed % 100) * _RUN_STRIDE)


def render_archives(plan: Plan, folder: Path) -> None:
    """Render every scene in a pool and write the archives below ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in plan.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    context = multiprocessing.get_context("spawn")
    with (
        ArchiveSet(folder) as archives,
        ProcessPoolExecutor(WORKERS, mp_context=context) as pool,
    ):
        rendered = pool.map(render_members, plan.scenes, chunksize=2)
        for members in progress_bar(
            rendered, description="rendering", total=len(plan.scenes), unit="scene"
        ):
            for member in members:
                archives.add(member)
            if members and members[0].archive.startswith("scenes/"):
                archives.finish(members[0].archive)
        for member in plan.texts:
            archives.add(member)


def render_members(scene: Scene) -> list[Member]:
    """Render one scene and pack it; runs in a worker process."""
    members: list[Member] = []
    for world in scene.worlds:
        frames = render_scene(world.kind, world.seed, world.matrix, scene.size, world.frames)
        if scene.dataset == "hypersim":
            members += hypersim_members(scene.name, world.camera, frames)
        elif scene.dataset == "virtual_kitti":
            members += virtual_kitti_members(scene.name, world.camera, world.first_frame, frames)
        else:
            members += tartanair_members(scene.name, frames)
    return members


def _seeds(config: ProceduralConfig, offset: int, shift: int) -> Iterator[tuple[int, bool, int]]:
    """(position among its kind, held out?, world seed) of every scene, training first."""
    for i in range(config.train_scenes):
        yield i, False, shift + offset + i
    for i in range(config.holdout_scenes):
        yield i, True, HOLDOUT_SEED + offset + i


def _flat(matrix: NDArray[np.floating]) -> tuple[float, ...]:
    return tuple(matrix.ravel().tolist())


def _fov_x_deg(seed: int) -> float:
    return random_fov_x_deg(np.random.default_rng([seed, 17]))


def _hypersim(config: ProceduralConfig, offset: int, shift: int) -> Plan:
    """A zip a scene; every camera sees a world of its own."""
    names = _hypersim_names()
    scenes, matrices, split = [], {}, []
    for position, held, seed in _seeds(config, offset, shift):
        scene = next(names)
        rng = np.random.default_rng([seed, 23])
        tilt = (float(rng.uniform(-0.1, 0.1)), float(rng.uniform(-0.25, 0.25)))
        matrix = hypersim_camera_matrix(
            _fov_x_deg(seed), config.size, tilt if position % 2 else (0.0, 0.0)
        )
        intrinsics, _ = hypersim_intrinsics(matrix, *config.size)
        frames = HOLDOUT_FRAMES if held else config.frames_per_scene
        worlds = []
        count = HOLDOUT_FRAMES if held else FRAMES_PER_CAMERA
        for camera in range(frames // count):
            world_seed = seed + _CAMERA_STRIDE * camera
            name = f"cam_{camera:02d}"
            worlds.append(World("indoor", world_seed, name, 0, count, _flat(intrinsics)))
            partition = ("val", "test")[position % 2] if held else "train"
            split += [(scene, name, i, partition) for i in range(count)]
        scenes.append(Scene("hypersim", scene, config.size, tuple(worlds)))
        matrices[scene] = matrix
    files = {
        hypersim.CAMERA_CSV: hypersim_camera_csv(matrices, config.size),
        hypersim.SPLIT_CSV: hypersim_split_csv(split),
    }
    return Plan(scenes, [], files)


def _hypersim_names() -> Iterator[str]:
    for i in itertools.count():
        name = f"ai_{1 + i // 10:03d}_{1 + i % 10:03d}"
        if not named_in([bad.split(":")[0] for bad in hypersim.KNOWN_BAD], name):
            yield name


def _virtual_kitti(config: ProceduralConfig, offset: int, shift: int) -> Plan:
    """Blocks of consecutive frames, dealt out over scenes, variations and both cameras."""
    scenes = []
    next_frame: dict[tuple[str, str], int] = {}
    cameras: dict[str, list[tuple[int, int, NDArray[np.floating]]]] = {}
    for position, held, seed in _seeds(config, offset, shift):
        streets = virtual_kitti.HOLDOUT_SCENES if held else virtual_kitti.TRAIN_SCENES
        slots = list(itertools.product((0, 1), virtual_kitti.VARIATIONS, streets))
        camera, variation, street = slots[position % len(slots)]
        sequence, slot = f"{street}/{variation}", f"Camera_{camera}"
        frames = HOLDOUT_FRAMES if held else config.frames_per_scene
        first = next_frame.get((sequence, slot), 0)
        next_frame[sequence, slot] = first + frames
        intrinsics = intrinsics_from_fov(_fov_x_deg(seed), *config.size)
        cameras.setdefault(sequence, []).extend(
            (first + i, camera, intrinsics) for i in range(frames)
        )
        world = World("street", seed, slot, first, frames, _flat(intrinsics))
        scenes.append(Scene("virtual_kitti", sequence, config.size, (world,)))
    texts = [
        Member(
            virtual_kitti.TEXT_TAR,
            f"{sequence}/intrinsic.txt",
            virtual_kitti_intrinsics(rows).encode(),
        )
        for sequence, rows in sorted(cameras.items())
    ]
    return Plan(scenes, texts, {})


def _tartanair(config: ProceduralConfig, offset: int, shift: int) -> Plan:
    """Trajectories dealt out over indoor and street environments; 90 degrees by format."""
    scenes = []
    trajectories: dict[str, int] = {}
    intrinsics = _flat(tartanair.native_intrinsics(*config.size))
    environments = list(
        itertools.chain(*zip(STREET_ENVIRONMENTS, INDOOR_ENVIRONMENTS, strict=True))
    )
    for position, held, seed in _seeds(config, offset, shift):
        usable = [e for e in environments if (e in tartanair.HOLDOUT_ENVIRONMENTS) == held]
        slots = list(itertools.product(tartanair.DIFFICULTIES, usable))
        difficulty, environment = slots[position % len(slots)]
        folder = f"{environment}/{difficulty}"
        number = trajectories.get(folder, 0)
        trajectories[folder] = number + 1
        kind: WorldKind = "street" if environment in STREET_ENVIRONMENTS else "indoor"
        frames = HOLDOUT_FRAMES if held else config.frames_per_scene
        world = World(kind, seed, "left", 0, frames, intrinsics)
        scenes.append(Scene("tartanair", f"{folder}/P{number:03d}", config.size, (world,)))
    return Plan(scenes, [], {})
