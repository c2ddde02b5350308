"""What training will take, before it starts: parameters, memory, FLOPs, hours.

Networks are built and stepped without data and without memory (torch's fake tensors), so that a
plan for a large GPU can be made anywhere. Nothing in a plan is a measurement but the speed of
matrix products on the device that is found.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ModelMixin, UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from metricgold.config import LightVaeConfig, OptimizerConfig, Precision, ProfileConfig
from metricgold.full_size import SD2_TEXT_TOKENS, SD2_UNET, SD2_VAE
from metricgold.model import (
    FOV_FEATURES,
    build_light_vae,
    build_toy_unet,
    build_toy_vae,
    decode_depth_norm,
    encode,
    predict_velocity,
    vae_factor,
    widen_conv_in,
    with_fov_embedding,
)
from metricgold.training.accelerator import autocast, precision_on
from metricgold.training.optimizers import Optimizers

MFU = 0.3
"""Share of the device's matrix-product speed that a plan's hours assume."""

FP32 = 4


@dataclass(frozen=True)
class StagePlan:
    """One training run as it is planned. Sizes in bytes, FLOPs of one optimizer step.

    Attributes:
        size: (height, width) of the largest pictures, which memory is counted for.
        parameters: of the network that is trained; ``trained``: those that change.
        weights: of all networks the stage holds.
        activations: largest sum of what the backward pass of a micro-batch needs kept.
    """

    stage: str
    size: tuple[int, int]
    parameters: int
    trained: int
    optimizer_config: OptimizerConfig
    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    flops: float

    @property
    def memory(self) -> int:
        """Sum of the parts; the allocator and the libraries take more on top."""
        parts = (self.weights, self.gradients, self.optimizer, self.average, self.activations)
        return sum(parts)

    def hours(self, flops_a_second: float, processes: int = 1) -> float:
        """All steps on a device with this speed of matrix products, at :data:`MFU` of it."""
        total = self.flops * self.optimizer_config.steps
        return total / (flops_a_second * MFU * processes) / 3600


def plan(config: ProfileConfig) -> list[StagePlan]:
    """The training runs of a profile: memory at its largest size, FLOPs of the mean micro-batch."""
    weights: dict[tuple[int, int], float] = {}
    for dataset in config.enabled_datasets().values():
        weights[dataset.train_size] = weights.get(dataset.train_size, 0.0) + dataset.weight
    sizes = sorted(weights, key=lambda size: size[0] * size[1], reverse=True)
    total = sum(weights.values())
    return [
        replace(at[0], flops=sum(s.flops * weights[s.size] for s in at) / total)
        for at in zip(*(_plan_at(config, size) for size in sizes), strict=True)
    ]


def _plan_at(config: ProfileConfig, size: tuple[int, int]) -> list[StagePlan]:
    """The training runs as if all pictures had one size (height, width)."""
    one_step, stages = config.train_one_step, list[StagePlan]()
    with FakeTensorMode():
        image_vae, depth_vae, unet = _networks(config)
        text = torch.zeros(1, SD2_TEXT_TOKENS, unet.config.cross_attention_dim)
        factor, channels = vae_factor(depth_vae), depth_vae.config.latent_channels

        def picture(n: int) -> Tensor:
            return torch.zeros(n, 3, *size)

        def latent(n: int) -> Tensor:
            return torch.zeros(n, channels, size[0] // factor, size[1] // factor)

        def velocity_of(rgb_latent: Tensor) -> Tensor:
            n = len(rgb_latent)
            timesteps = torch.zeros(n, dtype=torch.long)
            fov = torch.zeros(n, FOV_FEATURES)
            return predict_velocity(unet, rgb_latent, latent(n), timesteps, text, fov)

        def velocity(n: int) -> Tensor:
            return velocity_of(latent(n))

        def reconstruction(vae: AutoencoderKL) -> Callable[[int], Tensor]:
            def output(n: int) -> Tensor:
                return vae.decode(vae.encode(picture(n)).latent_dist.mean).sample

            return output

        def trained(
            stage: str,
            network: ModelMixin,
            frozen: tuple[ModelMixin, ...],
            optimizer: OptimizerConfig,
            output: Callable[[int], Tensor],
        ) -> None:
            stages.append(_stage(stage, size, network, frozen, optimizer, output))

        if config.base_model.optimizer is not None:
            image_vae.train().requires_grad_(True)
            optimizer = config.base_model.optimizer
            trained("base_model", image_vae, (), optimizer, reconstruction(image_vae))
        image_vae.eval().requires_grad_(False)
        depth_vae.train().requires_grad_(True)
        if not config.train_vae.train_encoder:
            depth_vae.encoder.requires_grad_(False)
            depth_vae.quant_conv.requires_grad_(False)
        optimizer = config.train_vae.optimizer
        trained("train_vae", depth_vae, (), optimizer, reconstruction(depth_vae))
        depth_vae.eval().requires_grad_(False)
        unet.train().requires_grad_(True)
        frozen = (image_vae, depth_vae)
        trained("train_unet", unet, frozen, config.train_unet.optimizer, velocity)
        trained("train_one_step (latent)", unet, frozen, one_step.latent_phase, velocity)

        def decoded(n: int) -> Tensor:
            return decode_depth_norm(depth_vae, -velocity(n))

        trained("train_one_step (depth)", unet, frozen, one_step.optimizer, decoded)
        if config.train_light is None:
            return stages
        unet.eval().requires_grad_(False)
        light = build_light_vae(config.train_light.network or LightVaeConfig(), channels)

        def apart(n: int) -> Tensor:
            means = encode(light, picture(n)).mean(), decode_depth_norm(light, latent(n)).mean()
            return sum(means, torch.zeros(()))

        def through_unet(n: int) -> Tensor:
            return decode_depth_norm(light, -velocity_of(encode(light, picture(n))))

        others, section = (image_vae, depth_vae, unet), config.train_light
        trained("train_light (latent)", light, others, section.latent_phase, apart)
        trained("train_light (depth)", light, others, section.optimizer, through_unet)
    return stages


def _networks(
    config: ProfileConfig,
) -> tuple[AutoencoderKL, AutoencoderKL, UNet2DConditionModel]:
    """Image VAE, depth VAE and U-Net of a profile; Stable Diffusion 2's for one of the hub's."""
    toy = config.base_model.toy
    if toy is not None:
        vaes = [build_toy_vae(toy) for _ in range(2)]
        return vaes[0], vaes[1], widen_conv_in(build_toy_unet(toy))
    vaes = [AutoencoderKL(**SD2_VAE) for _ in range(2)]
    unet = UNet2DConditionModel(
        **SD2_UNET,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=FOV_FEATURES,
    )
    return vaes[0], vaes[1], widen_conv_in(with_fov_embedding(unet))


def _stage(
    stage: str,
    size: tuple[int, int],
    network: ModelMixin,
    frozen: tuple[ModelMixin, ...],
    config: OptimizerConfig,
    output: Callable[[int], Tensor],
) -> StagePlan:
    for part in (network, *frozen):
        if config.gradient_checkpointing and not isinstance(part, AutoencoderTiny):
            part.enable_gradient_checkpointing()
        else:
            part.disable_gradient_checkpointing()
    held = _Held((network, *frozen))
    with FlopCounterMode(display=False) as counter, held:
        with autocast(config.precision, torch.device("cpu")):
            loss = output(config.batch_size).float().square().mean()
        loss.backward()
    changing = [p for p in network.parameters() if p.requires_grad]
    optimizer = Optimizers(network, config)
    state = optimizer.state_numbers()
    for parameter in changing:
        parameter.grad = None
    numbers = sum(p.numel() for p in changing)
    return StagePlan(
        stage=stage,
        size=size,
        parameters=sum(p.numel() for p in network.parameters()),
        trained=numbers,
        optimizer_config=config,
        weights=sum(FP32 * p.numel() for part in (network, *frozen) for p in part.parameters()),
        gradients=FP32 * numbers,
        optimizer=FP32 * state,
        average=FP32 * numbers if config.ema_decay else 0,
        activations=held.peak,
        flops=float(counter.get_total_flops()) * config.accumulation,
    )


class _Held:
    """Bytes that autograd keeps for backward passes inside the block, at their largest.

    Each storage counts once, weights do not count.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
        self._known = {t.untyped_storage()._cdata for t in tensors}
        self._now = self.peak = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda t: t)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self._now += size
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._free, key, size)
        return tensor

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size

    def __enter__(self) -> None:
        self._hooks.__enter__()

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)


def matmul_flops_a_second(
    device: torch.device, precision: Precision, seconds: float = 0.5
) -> float:
    """Measured: square matrix products in the precision that training multiplies in."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = dtypes[precision_on(device, precision)]
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def timed(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    timed(2)
    times = max(1, round(seconds / max(timed(1), 1e-6)))
    return 2.0 * side**3 * times / timed(times)


def describe(stages: Iterable[StagePlan], device: torch.device, processes: int = 1) -> list[str]:
    """The plan as lines to print: a table and what it assumes."""
    heads = (
        "stage", "size", "params", "trained", "micro-batch", "steps", "TFLOP/step",
        "weights", "grads", "optimizer", "EMA", "activations", "sum GB", "hours",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [heads]
    speeds: dict[str, float] = {}
    for stage in stages:
        config = stage.optimizer_config
        precision = precision_on(device, config.precision)
        if precision not in speeds:
            speeds[precision] = matmul_flops_a_second(device, precision)
        sizes = (stage.weights, stage.gradients, stage.optimizer, stage.average, stage.activations)
        rows.append(
            (
                stage.stage,
                f"{stage.size[0]}x{stage.size[1]}",
                f"{stage.parameters / 1e6:.1f} M",
                f"{stage.trained / 1e6:.1f} M",
                f"{config.batch_size} x {config.accumulation}",
                str(config.steps),
                f"{stage.flops / 1e12:.3g}",
                *(f"{n / 1e9:.2f}" for n in sizes),
                f"{stage.memory / 1e9:.2f}",
                f"{stage.hours(speeds[precision], processes):.3g}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    measured = ", ".join(f"{s / 1e12:.3g} TFLOP/s in {p}" for p, s in speeds.items())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    lines.append(
        f"hours: planned for {processes} x {name}, whose matrix products were just measured at "
        f"{measured}, if training reaches {MFU:.0%} of that"
    )
    lines.append("memory: in GB (10^9 bytes), counted, not measured; libraries take more on top")
    return lines
