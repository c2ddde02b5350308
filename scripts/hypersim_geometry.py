"""How wrong Hypersim's depth gets when every scene is taken to have the nominal camera.

Usage: ``python scripts/hypersim_geometry.py CAMERAS_CSV SPLIT_CSV`` with the dataset's own
``metadata_camera_parameters.csv`` and ``metadata_images_split_scene_v1.csv``.

Hypersim stores the distance along the ray. Public pipelines turn it into z-depth with one
centred camera of 886.81 px; most scenes have another one. For every public scene the largest
relative error over all pixels of ``z_nominal / z_exact`` is written to
``docs/benchmarks/hypersim_geometry.csv``, totals to ``hypersim_geometry.json`` beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np

from metricgold import files
from metricgold.data.hypersim import parse_cameras, parse_split
from metricgold.errors import run_cli
from metricgold.geometry import hypersim_intrinsics, make_intrinsics, ray_distance_to_depth
from metricgold.progress import progress_bar

SIZE = (768, 1024)
NOMINAL_FOCAL_PX = 886.81
NOMINAL_ERROR = 1e-3
"""Below this a scene counts as nominal."""
FOLDER = Path("docs/benchmarks")


def max_relative_error(m_cam_from_uv: np.ndarray) -> float:
    """Largest ``|z_nominal / z_exact - 1|`` over the pixels of a scene's camera."""
    height, width = SIZE
    nominal = make_intrinsics(NOMINAL_FOCAL_PX, NOMINAL_FOCAL_PX, (width - 1) / 2, (height - 1) / 2)
    exact, _ = hypersim_intrinsics(m_cam_from_uv, height, width)
    distance = np.ones(SIZE)
    ratio = ray_distance_to_depth(distance, nominal) / ray_distance_to_depth(distance, exact)
    return float(np.abs(ratio - 1.0).max())


def main() -> None:
    """Measure every scene, write the table and the totals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cameras", type=Path, help="metadata_camera_parameters.csv")
    parser.add_argument("split", type=Path, help="metadata_images_split_scene_v1.csv")
    arguments = parser.parse_args()
    parts = parse_split(arguments.split.read_text(encoding="utf-8"))
    public = {scene for scene, _, _ in parts}
    cameras = {
        scene: matrix
        for scene, matrix in parse_cameras(arguments.cameras.read_text(encoding="utf-8")).items()
        if scene in public
    }
    errors = {
        scene: max_relative_error(matrix)
        for scene, matrix in progress_bar(
            sorted(cameras.items()), description="scenes", unit="scene"
        )
    }
    values = np.array(list(errors.values()))
    worst = max(errors, key=lambda scene: errors[scene])
    totals: dict[str, float | int | str] = {
        "scenes": len(errors),
        "nominal_scenes": int((values < NOMINAL_ERROR).sum()),
        "scenes_over_1_percent": int((values > 0.01).sum()),
        "scenes_over_10_percent": int((values > 0.1).sum()),
        "worst_scene": worst,
        "worst_relative_error": round(errors[worst], 4),
    }
    frames = Counter(scene for (scene, _, _), part in parts.items() if part == "train")
    over = sum(count for scene, count in frames.items() if errors[scene] > 0.01)
    totals["training_frames"] = sum(frames.values())
    totals["training_frames_over_1_percent"] = over
    totals["share_of_training_frames_over_1_percent"] = round(over / sum(frames.values()), 4)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "hypersim_geometry.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["scene", "max_relative_error"])
        writer.writerows((scene, f"{error:.6f}") for scene, error in errors.items())
    files.write_json(FOLDER / "hypersim_geometry.json", totals)
    print(json.dumps(totals, indent=2))


if __name__ == "__main__":
    run_cli(main)
