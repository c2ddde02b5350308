"""What a runtime computes between the exported graphs, as small ONNX graphs of its own.

A server without Python needs them: the camera's part of the input, and the one DDIM step. They
hold no weights, only constants of the manifest; batch, height and width are dynamic.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.manifest import Manifest
from export.numpy_sampler import trailing_timesteps
from export.specs import FOV_LENGTH
from metricgold.geometry import RAY_CHANNELS

OPSET = 20
IR_VERSION = 10

_CAMERA = """
camera (uint8[batch, height, width, 3] picture, float[batch] fov_y_deg)
=> (float[batch, 3, height, width] rgb,
    float[batch, C, latent_height, latent_width] noisy_depth_latent,
    float[batch, F] fov, int64[batch] timestep)
{
    levels = Cast <to = 1> (picture)
    share = Div (levels, levels_255)
    doubled = Mul (share, two)
    centred = Sub (doubled, one)
    rgb = Transpose <perm = [0, 3, 1, 2]> (centred)

    is_known = Greater (fov_y_deg, zero)
    degrees = Where (is_known, fov_y_deg, zero)
    half_angle = Mul (degrees, half_radian)
    tangent = Tan (half_angle)
    tangent_column = Reshape (tangent, as_column)
    phase = Mul (tangent_column, frequencies)
    sines = Sin (phase)
    cosines = Cos (phase)
    features = Concat <axis = 1> (sines, cosines)
    known = Cast <to = 1> (is_known)
    known_column = Reshape (known, as_column)
    fov = Mul (features, known_column)

    batch_size = Shape <start = 0, end = 1> (picture)
    pixels = Shape <start = 1, end = 3> (picture)
    cells = Div (pixels, factor)
    rows = Gather (cells, index_0)
    columns = Gather (cells, index_1)
    row_count = Cast <to = 1> (rows)
    column_count = Cast <to = 1> (columns)
    row_numbers = Range (index_0, rows, index_1)
    column_numbers = Range (index_0, columns, index_1)
    row_floats = Cast <to = 1> (row_numbers)
    column_floats = Cast <to = 1> (column_numbers)
    row_centres = Add (row_floats, half)
    column_centres = Add (column_floats, half)
    row_step = Div (two, row_count)
    column_step = Div (two, column_count)
    row_positions = Mul (row_centres, row_step)
    column_positions = Mul (column_centres, column_step)
    y_of_rows = Sub (row_positions, one)
    x_of_columns = Sub (column_positions, one)
    y_line = Reshape (y_of_rows, down)
    x_line = Reshape (x_of_columns, across)
    grid = Concat <axis = 0> (batch_size, count_1, cells)
    y = Expand (y_line, grid)
    x = Expand (x_line, grid)
    tangents = Reshape (tangent, each)
    aspect = Div (column_count, row_count)
    x_tangent = Mul (x, tangents)
    ray_x = Mul (x_tangent, aspect)
    ray_y = Mul (y, tangents)
    further_grid = Concat <axis = 0> (batch_size, further, cells)
    nothing = Expand (zero_4d, further_grid)
    noisy_depth_latent = Concat <axis = 1> (x, y, ray_x, ray_y, nothing)

    timestep = Expand (last_timestep, batch_size)
}
"""
_STEP = """
step (float[batch, C, latent_height, latent_width] noisy_depth_latent,
      float[batch, C, latent_height, latent_width] velocity)
=> (float[batch, C, latent_height, latent_width] depth_latent)
{
    kept = Mul (noisy_depth_latent, of_start)
    moved = Mul (velocity, of_velocity)
    depth_latent = Add (kept, moved)
}
"""


def camera_graph(manifest: Manifest) -> onnx.ModelProto:
    """A picture and its camera to what the encoder and the U-Net take.

    Inputs: ``picture`` uint8 [B, H, W, 3], sRGB, sides multiples of the model's; ``fov_y_deg``
    [B], 0 where unknown. Outputs: ``rgb`` [B, 3, H, W] in [-1, 1], ``noisy_depth_latent``
    [B, C, h, w] (see :func:`metricgold.geometry.ray_latent`), ``fov`` [B, 32], ``timestep`` [B].
    """
    low, high = manifest.fov["octaves"]
    octaves = np.linspace(low, high, FOV_LENGTH // 2, dtype=np.float32)
    count = manifest.scheduler.num_train_timesteps
    constants: dict[str, NDArray[Any]] = {
        "levels_255": np.array([255.0], np.float32),
        "zero": np.array([0.0], np.float32),
        "half": np.array([0.5], np.float32),
        "one": np.array([1.0], np.float32),
        "two": np.array([2.0], np.float32),
        "half_radian": np.array([math.pi / 360.0], np.float32),
        "frequencies": np.float32(math.pi) * np.float32(2.0) ** octaves,
        "factor": np.array([manifest.latent_factor], np.int64),
        "index_0": np.array(0, np.int64),
        "index_1": np.array(1, np.int64),
        "count_1": np.array([1], np.int64),
        "further": np.array([manifest.latent_channels - RAY_CHANNELS], np.int64),
        "zero_4d": np.zeros((1, 1, 1, 1), np.float32),
        "as_column": np.array([-1, 1], np.int64),
        "down": np.array([1, 1, -1, 1], np.int64),
        "across": np.array([1, 1, 1, -1], np.int64),
        "each": np.array([-1, 1, 1, 1], np.int64),
        "last_timestep": np.array(trailing_timesteps(1, count), np.int64),
    }
    return _model(_CAMERA, constants, manifest)


def step_graph(manifest: Manifest) -> onnx.ModelProto:
    """The only DDIM step of a one-step model: a start and a velocity to the clean latent.

    As :func:`export.numpy_sampler.sample` with one step; with zero terminal SNR it is ``-v``.
    """
    table = manifest.scheduler
    (timestep,) = trailing_timesteps(1, table.num_train_timesteps)
    alpha, final = float(table.alphas()[timestep]), table.final_alpha_cumprod
    signal, sigma = math.sqrt(alpha), math.sqrt(1 - alpha)
    kept, noise = math.sqrt(final), math.sqrt(1 - final)
    constants: dict[str, NDArray[Any]] = {
        "of_start": np.array([kept * signal + noise * sigma], np.float32),
        "of_velocity": np.array([noise * signal - kept * sigma], np.float32),
    }
    return _model(_STEP, constants, manifest)


def _model(text: str, constants: dict[str, NDArray[Any]], manifest: Manifest) -> onnx.ModelProto:
    lengths = {"C": manifest.latent_channels, "F": FOV_LENGTH}
    for name, length in lengths.items():
        text = text.replace(f", {name}", f", {length}")
    graph = onnx.parser.parse_graph(text)
    graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model, full_check=True)
    return model
