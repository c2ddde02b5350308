"""A reader with the .onnx files, ONNX Runtime and numpy alone gets the session's metres.

Nothing of this project is imported by the reader below: sizes, resizing, rays, schedule and
formulas are implemented from what the files say of themselves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from export.runtime import open_session
from metricgold.workspace import Workspace

Array = NDArray[np.float32]


class Reader:
    """Inference from the files' own metadata."""

    def __init__(self, folder: Path) -> None:
        self.graphs: dict[str, Any] = {}
        self.told: dict[str, Any] = {}
        for path in folder.glob("*.onnx"):
            graph = onnxruntime.InferenceSession(path)
            metadata = graph.get_modelmeta().custom_metadata_map
            self.graphs[metadata["metricgold.graph"]] = graph
            self.told = json.loads(metadata["metricgold"])

    def run(self, name: str, **inputs: NDArray[Any]) -> Array:
        return self.graphs[name].run(None, inputs)[0]

    def size(self, height: int, width: int) -> tuple[int, int]:
        multiple = self.told["size_multiple"]
        scale = self.told["processing_resolution"] / max(height, width)
        sides = [max(1, round(side * scale / multiple)) * multiple for side in (height, width)]
        return sides[0], sides[1]

    def fov_features(self, fov_deg: float | None) -> Array:
        count, (low, high) = self.told["fov"]["features"], self.told["fov"]["octaves"]
        if fov_deg is None:
            return np.zeros((1, count), np.float32)
        phase = np.tan(np.radians(fov_deg) / 2) * np.pi * 2 ** np.linspace(low, high, count // 2)
        return np.concatenate([np.sin(phase), np.cos(phase)])[None].astype(np.float32)

    def rays(self, grid: tuple[int, int], fov_deg: float | None) -> Array:
        height, width = grid
        y, x = np.meshgrid(*((np.arange(n) + 0.5) / n * 2 - 1 for n in grid), indexing="ij")
        tangent = 0.0 if fov_deg is None else np.tan(np.radians(fov_deg) / 2)
        rays = np.zeros((1, self.told["latent_channels"], *grid))
        rays[0, :4] = x, y, x * tangent * width / height, y * tangent
        return rays.astype(np.float32)

    def sample(self, start: Array, rgb_latent: Array, fov: Array, steps: int) -> Array:
        table = self.told["scheduler"]
        alphas = np.array(table["alphas_cumprod"].split(), np.float32)
        total, z = table["num_train_timesteps"], start
        timesteps = [round(total - i * total / steps) - 1 for i in range(steps)]
        assert table["timesteps"].get(str(steps), timesteps) == timesteps
        for t in timesteps:
            v = self.run(
                "unet_step",
                rgb_latent=rgb_latent,
                noisy_depth_latent=z,
                timestep=np.array([t], np.int64),
                fov=fov,
            )
            earlier = t - total // steps
            a = alphas[t]
            b = alphas[earlier] if earlier >= 0 else np.float32(table["final_alpha_cumprod"])
            clean, noise = np.sqrt(a) * z - np.sqrt(1 - a) * v, np.sqrt(a) * v + np.sqrt(1 - a) * z
            z = np.sqrt(b) * clean + np.sqrt(1 - b) * noise
        return z.astype(np.float32)

    def depth(
        self, rgb: NDArray[np.uint8], fov_deg: float | None, start: Array | None = None
    ) -> Array:
        height, width = rgb.shape[:2]
        size = self.size(height, width)
        factor = self.told["latent_factor"]
        grid = size[0] // factor, size[1] // factor
        small = resized(rgb, size)
        picture = (small / 255 * 2 - 1).transpose(2, 0, 1)[None].astype(np.float32)
        latent = self.run("vae_encoder", rgb=picture)
        if start is None:
            assert self.told["num_inference_steps"] == 1
            start, steps = self.rays(grid, fov_deg), 1
        else:
            steps = 4
        latent = self.sample(start, latent, self.fov_features(fov_deg), steps)
        depth = self.run("depth_decoder", depth_latent=latent)[0, 0]
        return np.exp(resized(np.log(depth.astype(np.float64)), (height, width)))


def resized(values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """[H, W, ...] to ``size`` as ``preprocessing.antialias`` says; width, then height."""
    is_8_bit = values.dtype == np.uint8
    for axis in (1, 0):
        n, m = values.shape[axis], size[axis]
        if n == m:
            continue
        support = max(1.0, n / m)
        centre = (np.arange(m)[:, None] + 0.5) * n / m
        weights = np.maximum(0, 1 - np.abs(np.arange(n) + 0.5 - centre) / support)
        weights /= weights.sum(axis=1, keepdims=True)
        if is_8_bit:
            weights = np.rint(weights * 2**22) / 2**22
        values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
        if is_8_bit:
            values = np.floor(values + 0.5)
    return values


@pytest.mark.parametrize("fov_deg", [None, 60.0])
@pytest.mark.parametrize("size", [(16, 24), (37, 50), (11, 17)])
def test_one_step_from_the_files_alone(
    exported: Workspace, size: tuple[int, int], fov_deg: float | None
) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = open_session(exported.onnx, "onnxruntime-cpu").infer(rgb, fov_deg=fov_deg).depth
    depth = Reader(exported.onnx).depth(rgb, fov_deg)
    np.testing.assert_allclose(depth, expected, rtol=1e-4)


def test_four_steps_from_the_files_alone(exported: Workspace) -> None:
    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    start = rng.standard_normal((1, 4, 8, 12), dtype=np.float32)
    session = open_session(exported.onnx, "onnxruntime-cpu")
    expected = session.infer(rgb, steps=4, fov_deg=60.0, initial_latents=start).depth
    np.testing.assert_allclose(Reader(exported.onnx).depth(rgb, 60.0, start), expected, rtol=1e-4)


def test_the_fused_graph_from_the_file_alone(exported: Workspace) -> None:
    rgb = np.random.default_rng(2).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    picture = (rgb / 255 * 2 - 1).transpose(2, 0, 1)[None].astype(np.float32)
    depth = Reader(exported.onnx).run("one_step", rgb=picture, fov_y_deg=np.float32([60.0]))
    session = open_session(exported.onnx, "onnxruntime-cpu", fused=True)
    np.testing.assert_allclose(depth[0, 0], session.infer(rgb, fov_deg=60.0).depth, rtol=1e-4)


def test_every_file_says_all_of_it(exported: Workspace) -> None:
    wanted = {"depth_min_m", "depth_max_m", "preprocessing", "scheduler", "fov", "versions",
              "licence", "checkpoint_sha256", "opset", "precision", "attention"}  # fmt: skip
    for path in exported.onnx.glob("*.onnx"):
        metadata = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
        assert wanted <= json.loads(metadata["metricgold"]).keys()
        assert metadata["metricgold.graph"] == path.stem
