"""One DDIM step as an engine, so that a latent need not leave the GPU between two U-Net steps.

There is no graph of it: five layers, defined with the library's own calls. What it computes is
:func:`export.numpy_sampler.combine` in float32.
"""

from __future__ import annotations

from typing import Any

from export.specs import DDIM_UPDATE, LatentGrid


def define(trt: Any, network: Any, grid: LatentGrid, size: tuple[int, int] | None) -> None:
    """Fill an empty network: ``next = coefficients[0] * latent + coefficients[1] * velocity``.

    Args:
        grid: of the model, whose latents these are.
        size: height and width in pixels of a model of one size, None for any size.
    """
    batch, height, width = (-1, -1, -1) if size is None else (1, *size)
    shapes = {
        name: spec.shape(batch, height, width, grid) for name, spec in DDIM_UPDATE.inputs.items()
    }
    if size is None:
        shapes = {n: s if n == "coefficients" else (-1, s[1], -1, -1) for n, s in shapes.items()}
    inputs = {name: network.add_input(name, trt.float32, shape) for name, shape in shapes.items()}
    product, total = trt.ElementWiseOperation.PROD, trt.ElementWiseOperation.SUM
    terms = []
    for index, name in enumerate(("noisy_depth_latent", "velocity")):
        one = network.add_slice(inputs["coefficients"], (index, 0, 0, 0), (1,) * 4, (1,) * 4)
        terms.append(network.add_elementwise(inputs[name], one.get_output(0), product))
    output = network.add_elementwise(*(t.get_output(0) for t in terms), total).get_output(0)
    output.name = DDIM_UPDATE.output_name
    network.mark_output(output)
