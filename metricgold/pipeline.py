"""From pictures to depth in metres, as a diffusers pipeline."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from torch import Tensor

from metricgold import imaging
from metricgold.confidence import at_pixels
from metricgold.depth_pictures import DepthPictures
from metricgold.diffusion import sample
from metricgold.ensemble import (
    REDUCTIONS,
    Generators,
    Reduction,
    View,
    fuse,
    views_of_latents,
    views_of_noise,
    views_of_rays,
)
from metricgold.model import (
    decode_depth_norm,
    encode,
    fov_features,
    one_step_start,
    predict_velocity,
    vae_factor,
)
from metricgold.pictures_in import Camera, PictureInput, as_pictures, cameras_of
from metricgold.pretrained import MetricGoldModel
from metricgold.sky import sky_mask

RESAMPLING = tuple(imaging.RESAMPLING)


@dataclass
class MetricGoldOutput(BaseOutput):
    """What the pipeline returns. N pictures of different sizes: lists of N arrays [H, W, 1].

    Attributes:
        prediction: float32 [N, H, W, 1], z-depth in metres ("pt": tensor [N, 1, H, W]).
        uncertainty: as ``prediction``, in metres, if asked for.
        latent: depth latents [N * E, C, h, w] of E members, a picture's together, if asked for;
            different sizes: a list of [C, h, w].
        cameras: vertical field of view in degrees of every picture, and where it is from.
        sky_mask: bool, as ``prediction``: what is at the far end of the range, as sky is.
    """

    prediction: Any
    uncertainty: Any = None
    latent: Any = None
    cameras: list[Camera] | None = None
    sky_mask: Any = None

    @property
    def valid_mask(self) -> Any:
        """bool, as ``prediction``: what has a depth that is not sky's."""
        sky = self.sky_mask
        return [~mask for mask in sky] if isinstance(sky, list) else ~sky


@dataclass(frozen=True)
class _Result:
    depth_norm: Tensor  # [h, w], clipped
    latent: Tensor  # [C, h, w]
    relative_error: Tensor | None  # [h, w], of the confidence head


class MetricGoldPipeline(MetricGoldModel):
    """Metric depth from pictures, in the call convention of diffusers' Marigold pipeline."""

    model_cpu_offload_seq = "image_vae->unet->confidence->depth_vae"
    _exclude_from_cpu_offload: ClassVar[list[str]] = ["empty_text", "light_vae"]

    @classmethod
    def of(cls, model: MetricGoldModel) -> MetricGoldPipeline:
        """Of the parts of ``model``, which are shared."""
        options = {n: v for n, v in model.config.items() if n not in model.components}
        return cls(**model.components, **{n: v for n, v in options.items() if n[0] != "_"})

    @property
    def image_processor(self) -> DepthPictures:
        """What makes pictures of predictions, by the names that Marigold's has."""
        return DepthPictures(self.codec.depth_max_m)

    @torch.no_grad()
    def __call__(
        self,
        image: PictureInput | Sequence[PictureInput],
        num_inference_steps: int | None = None,
        ensemble_size: int = 1,
        processing_resolution: int | None = None,
        match_input_resolution: bool = True,
        resample_method_input: str = "bilinear",
        resample_method_output: str = "bilinear",
        batch_size: int = 1,
        ensembling_kwargs: dict[str, Any] | None = None,
        latents: Tensor | Sequence[Tensor] | None = None,
        generator: Generators = None,
        output_type: str = "np",
        output_uncertainty: bool = False,
        output_latent: bool = False,
        return_dict: bool = True,
        *,
        intrinsics: Any = None,
        focal_length_px: float | Sequence[float | None] | None = None,
        fov_deg: float | Sequence[float | None] | None = None,
        shared_noise: bool = False,
    ) -> Any:
        """Depth in metres of pictures of any sizes.

        Args:
            image: see :func:`~metricgold.pictures_in.as_pictures`.
            num_inference_steps: DDIM steps; default is what the weights were trained for.
            ensemble_size: predictions fused in log-depth without any alignment. With several
                steps members start from different noise; with one, which starts from the
                camera's rays, they are the picture and its mirror image, two at most.
            processing_resolution: long side in pixels, 0 for the picture's own.
            match_input_resolution: resize the result back, in log-depth.
            resample_method_input, resample_method_output: nearest, bilinear, bicubic or area.
            batch_size: predictions the networks make at once; in float32 it changes no depth by
                more than 1e-4 of it.
            ensembling_kwargs: ``{"reduction": "median"}`` or ``"mean"``.
            latents: what to start from in place of noise or rays, as ``latent`` of the output;
                a model that was trained to start from rays is no good from anything else.
            generator: of the noise: one that all pictures draw from in turn, or a list with one
                each, so that a picture's noise does not depend on the others.
            output_type: "np" or "pt".
            output_uncertainty: also return metres of uncertainty: ``d (L/2) MAD(x)`` of an
                ensemble, or ``d E|ln(d_pred / d_true)|`` by the confidence head.
            output_latent: also return the depth latents.
            return_dict: False for a tuple (prediction, uncertainty, latent).
            intrinsics, focal_length_px, fov_deg: the camera, one of them, see
                :func:`~metricgold.pictures_in.cameras_of`; from EXIF otherwise.
            shared_noise: the same noise for every picture, for frames of a sequence.

        Returns:
            :class:`MetricGoldOutput`, or a tuple.

        Raises:
            ValueError: an option that is impossible; the message names it.
        """
        pictures = as_pictures(image)
        cameras = cameras_of(pictures, intrinsics, focal_length_px, fov_deg)
        steps = self.default_denoising_steps if num_inference_steps is None else num_inference_steps
        resolution = processing_resolution
        if resolution is None:
            resolution = self.default_processing_resolution
        kwargs = ensembling_kwargs or {}
        counts = {"num_inference_steps": steps, "ensemble_size": ensemble_size}
        _check_at_least(1, **counts, batch_size=batch_size)
        _check_at_least(0, processing_resolution=resolution)
        _check_one_of(("np", "pt"), output_type=output_type)
        _check_one_of(RESAMPLING, resample_method_input=resample_method_input)
        _check_one_of(RESAMPLING, resample_method_output=resample_method_output)
        _check_one_of(("reduction",), **{f"ensembling_kwargs key {k}": k for k in kwargs})
        _check_one_of(REDUCTIONS, **kwargs)
        if output_uncertainty and ensemble_size == 1 and self.confidence is None:
            raise ValueError(
                "output_uncertainty needs ensemble_size > 1, or a checkpoint with a confidence head"
            )
        sizes = [self._processing_size(p.size, resolution) for p in pictures]
        views = self._views(sizes, steps, ensemble_size, latents, generator, shared_noise)
        results = self._predict(
            [p.rgb for p in pictures], cameras, views, steps, batch_size, resample_method_input
        )
        depths, errors = [], []
        for index, (picture, size) in enumerate(zip(pictures, sizes, strict=True)):
            own = slice(index * ensemble_size, (index + 1) * ensemble_size)
            norm, error = self._fused(views[own], results[own], **kwargs)
            target = picture.size if match_input_resolution else size
            depth = imaging.resize_depth_log(
                self.codec.decode(norm.numpy()), target, resample_method_output
            )
            depths.append(depth[..., None])
            errors.append((depth * imaging.resize_plain(error.numpy(), target))[..., None])
        self.maybe_free_model_hooks()
        output = MetricGoldOutput(
            prediction=_together(depths, output_type),
            uncertainty=_together(errors, output_type) if output_uncertainty else None,
            latent=_latents([r.latent for r in results]) if output_latent else None,
            cameras=cameras,
            sky_mask=_together([sky_mask(d, self.codec.depth_max_m) for d in depths], output_type),
        )
        if not return_dict:
            return output.prediction, output.uncertainty, output.latent
        return output

    def _fused(
        self, views: list[View], results: list[_Result], reduction: Reduction = "median"
    ) -> tuple[Tensor, Tensor]:
        """Log-depth [h, w] of one picture's predictions, and its relative error [h, w]."""
        stack = [_upright(r.depth_norm, v) for v, r in zip(views, results, strict=True)]
        norm, spread = fuse(torch.stack(stack), self.codec.log_range, reduction)
        expected = results[0].relative_error
        return norm, spread if len(results) > 1 or expected is None else expected

    def _processing_size(self, size: tuple[int, int], resolution: int) -> tuple[int, int]:
        return imaging.processing_size(*size, resolution, self.size_multiple)

    def _latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        factor = vae_factor(self.image_vae)
        return self.image_vae.config.latent_channels, size[0] // factor, size[1] // factor

    def _views(
        self,
        sizes: list[tuple[int, int]],
        steps: int,
        ensemble_size: int,
        latents: Tensor | Sequence[Tensor] | None,
        generator: Generators,
        shared_noise: bool,
    ) -> list[View]:
        """Every prediction to make, pictures in order, members of a picture together."""
        shape = self._latent_shape
        if latents is not None:
            if generator is not None:
                raise ValueError("latents and generator exclude each other")
            return views_of_latents(sizes, ensemble_size, shape, latents)
        if steps == 1 and self.default_denoising_steps == 1:
            return views_of_rays(sizes, ensemble_size)
        return views_of_noise(sizes, ensemble_size, shape, generator, shared_noise)

    def _predict(
        self,
        rgbs: list[NDArray[np.uint8]],
        cameras: list[Camera],
        views: list[View],
        steps: int,
        batch_size: int,
        resampling: str,
    ) -> list[_Result]:
        """The result of every view; views of one size are worked on together."""
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, view in enumerate(views):
            by_size.setdefault(view.size, []).append(index)
        results: dict[int, _Result] = {}
        with self.progress_bar(total=len(views)) as bar:
            for indices in by_size.values():
                for first in range(0, len(indices), batch_size):
                    part = indices[first : first + batch_size]
                    pictures = [
                        _resized(rgbs[views[i].picture], views[i], resampling) for i in part
                    ]
                    fov = torch.tensor([_known(cameras[views[i].picture]) for i in part])
                    found = self._batch(
                        np.stack(pictures), fov, [views[i].start for i in part], steps
                    )
                    results |= dict(zip(part, found, strict=True))
                    bar.update(len(part))
        return [results[index] for index in range(len(views))]

    def _batch(
        self, rgb: NDArray[np.float32], fov: Tensor, starts: list[Tensor | None], steps: int
    ) -> list[_Result]:
        """Of pictures [B, h, w, 3] in [0, 1] and fields of view [B] in degrees."""
        device, dtype = self._execution_device, self.unet.dtype
        image = torch.from_numpy(rgb).permute(0, 3, 1, 2).to(device, dtype) * 2.0 - 1.0
        fov = fov.to(device)
        rgb_latent = encode(self.picture_encoder, image)  # [B, C, h, w]
        rays = one_step_start(fov, rgb_latent)
        initial = torch.stack(
            [r if s is None else s.to(r) for r, s in zip(rays, starts, strict=True)]
        )
        features, text = fov_features(fov), self.empty_text()

        def velocity(noisy: Tensor, timestep: Tensor) -> Tensor:
            """What the U-Net predicts for these pictures and cameras."""
            return predict_velocity(self.unet, rgb_latent, noisy, timestep, text, features)

        latent = sample(velocity, initial, self.scheduler, steps)
        errors: list[Tensor | None] = [None] * len(latent)
        if self.confidence is not None:
            log_error = self.confidence(rgb_latent, latent)
            errors = list(at_pixels(log_error, rgb.shape[1:3])[:, 0].exp().cpu())
        norm = decode_depth_norm(self.depth_decoder, latent).clamp(-1, 1)[:, 0].cpu()  # [B, H, W]
        latent = latent.float().cpu()
        return [_Result(*found) for found in zip(norm, latent, errors, strict=True)]


def _check_at_least(least: int, **options: Any) -> None:
    for name, value in options.items():
        if not isinstance(value, numbers.Integral):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be {least} or more, got {value}")


def _check_one_of(allowed: Sequence[str], **options: str) -> None:
    for name, value in options.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _known(camera: Camera) -> float:
    return float("nan") if camera.fov_deg is None else camera.fov_deg


def _resized(rgb: NDArray[np.uint8], view: View, resampling: str) -> NDArray[np.float32]:
    return imaging.resize_rgb(rgb[:, ::-1] if view.mirrored else rgb, view.size, resampling)


def _upright(depth_norm: Tensor, view: View) -> Tensor:
    """A view's log-depth [h, w] as the picture is."""
    return depth_norm.flip(-1) if view.mirrored else depth_norm


def _together(arrays: list[NDArray[Any]], output_type: str) -> Any:
    """[H, W, 1] each to [N, H, W, 1], or a list if sizes differ; for "pt" channels first."""
    if output_type == "pt":
        tensors = [torch.from_numpy(a).permute(2, 0, 1) for a in arrays]
        return torch.stack(tensors) if len({t.shape for t in tensors}) == 1 else tensors
    return np.stack(arrays) if len({a.shape for a in arrays}) == 1 else arrays


def _latents(latents: list[Tensor]) -> Any:
    return torch.stack(latents) if len({x.shape for x in latents}) == 1 else latents
