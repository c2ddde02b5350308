"""Geometric and photometric transforms; rgb, depth, masks and K change together, here only."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from metricgold import geometry
from metricgold.config import AugmentConfig
from metricgold.data.sample import Frame

NO_AUGMENTATION = AugmentConfig(
    flip=0, crop=0, crop_min_scale=1, uncrop=0, uncrop_max_scale=1, colour=0
)


@dataclass(frozen=True)
class TrainSample:
    """A frame at training size.

    Attributes:
        rgb: uint8 [H, W, 3]. depth: float32 [H, W] metres. valid_mask, sky_mask: bool [H, W].
        intrinsics: K [3, 3] of this size. fov_y_deg: its vertical field of view.
    """

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]
    valid_mask: NDArray[np.bool_]
    sky_mask: NDArray[np.bool_]
    intrinsics: NDArray[np.float64]
    fov_y_deg: float


def _aspect_box(
    native: tuple[int, int], size: tuple[int, int], scale: float, rng: np.random.Generator | None
) -> tuple[float, float, float, float]:
    """Largest box (left, top, width, height) of the target aspect, shrunk by ``scale``; centred
    without a generator, else at a random place. ``scale`` > 1 reaches over the frame's edge."""
    height, width = native
    fit = min(width / size[1], height / size[0]) * scale
    box_w, box_h = size[1] * fit, size[0] * fit
    share_x, share_y = (0.5, 0.5) if rng is None else rng.uniform(0, 1, 2)
    return (width - box_w) * share_x, (height - box_h) * share_y, box_w, box_h


def _cut(
    frame: Frame, box: tuple[float, float, float, float], size: tuple[int, int]
) -> TrainSample:
    """Cut ``box`` out and resize: RGB bilinear with antialias, depth and mask nearest-exact."""
    left, top, box_w, box_h = box
    height, width = size
    image = Image.fromarray(frame.rgb).resize(
        (width, height), Image.Resampling.BILINEAR, box=(left, top, left + box_w, top + box_h)
    )
    rows = np.minimum(
        np.floor(top + (np.arange(height) + 0.5) * box_h / height), frame.depth.shape[0] - 1
    ).astype(int)
    columns = np.minimum(
        np.floor(left + (np.arange(width) + 0.5) * box_w / width), frame.depth.shape[1] - 1
    ).astype(int)
    grid = np.ix_(rows, columns)
    scale_x, scale_y = width / box_w, height / box_h
    matrix = np.array(
        [
            [scale_x, 0, -left * scale_x + (scale_x - 1) / 2],
            [0, scale_y, -top * scale_y + (scale_y - 1) / 2],
            [0, 0, 1.0],
        ]
    )
    intrinsics = matrix @ frame.intrinsics
    return TrainSample(
        np.asarray(image),
        frame.depth[grid],
        frame.valid_mask[grid],
        frame.sky_mask[grid],
        intrinsics,
        geometry.fov_y_deg(intrinsics, height),
    )


def _padded(frame: Frame, scale: float, rng: np.random.Generator) -> Frame:
    """Un-crop: the frame on a noise canvas ``scale`` times as large; K's centre moves."""
    height, width = frame.depth.shape
    new_h, new_w = round(height * scale), round(width * scale)
    top, left = int(rng.integers(new_h - height + 1)), int(rng.integers(new_w - width + 1))
    rgb = rng.integers(0, 256, (new_h, new_w, 3), dtype=np.uint8)
    inside = (slice(top, top + height), slice(left, left + width))
    rgb[inside] = frame.rgb
    depth = np.zeros((new_h, new_w), np.float32)
    valid, sky = np.zeros((new_h, new_w), bool), np.zeros((new_h, new_w), bool)
    depth[inside], valid[inside], sky[inside] = frame.depth, frame.valid_mask, frame.sky_mask
    intrinsics = np.asarray(geometry.crop_intrinsics(frame.intrinsics, -top, -left), np.float64)
    return Frame(frame.key, frame.scene, rgb, depth, valid, sky, intrinsics)


def _flipped(sample: TrainSample) -> TrainSample:
    intrinsics = geometry.flip_intrinsics(sample.intrinsics, sample.depth.shape[1])
    return TrainSample(
        np.ascontiguousarray(sample.rgb[:, ::-1]),
        np.ascontiguousarray(sample.depth[:, ::-1]),
        np.ascontiguousarray(sample.valid_mask[:, ::-1]),
        np.ascontiguousarray(sample.sky_mask[:, ::-1]),
        np.asarray(intrinsics, np.float64),
        sample.fov_y_deg,
    )


def _jittered(rgb: NDArray[np.uint8], amount: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Brightness, contrast, saturation, colour balance by up to ``amount``."""
    bright, contrast, saturation = 1 + amount * rng.uniform(-1, 1, 3)
    balance = 1 + 0.5 * amount * rng.uniform(-1, 1, 3)
    x = rgb.astype(np.float32) * (bright * balance).astype(np.float32)
    x = (x - x.mean()) * np.float32(contrast) + x.mean()
    grey = x.mean(axis=-1, keepdims=True)
    x = grey + (x - grey) * np.float32(saturation)
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


BLUR_RADIUS = (0.3, 1.5)
"""Gaussian radius in pixels, from and to."""
JPEG_QUALITY = (30, 95)


def _blurred(rgb: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A slightly unsharp lens."""
    blur = ImageFilter.GaussianBlur(rng.uniform(*BLUR_RADIUS))
    return np.asarray(Image.fromarray(rgb).filter(blur))


def _compressed(rgb: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """What JPEG of a random quality leaves."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=int(rng.integers(*JPEG_QUALITY)))
    return np.asarray(Image.open(buffer))


def to_training_size(
    frame: Frame,
    size: tuple[int, int],
    augment: AugmentConfig = NO_AUGMENTATION,
    rng: np.random.Generator | None = None,
) -> TrainSample:
    """A frame at training ``size`` (H, W), augmented when ``rng`` is given.

    Crops and un-crops change the field of view, never the depth values (DMD,
    arXiv 2312.13252); the flip mirrors K.
    """
    scale = 1.0
    if rng is not None:
        if rng.random() < augment.uncrop:
            frame = _padded(frame, rng.uniform(1.0, augment.uncrop_max_scale), rng)
        elif rng.random() < augment.crop:
            scale = rng.uniform(augment.crop_min_scale, 1.0)
    sample = _cut(frame, _aspect_box(frame.depth.shape, size, scale, rng), size)
    if rng is None:
        return sample
    if rng.random() < augment.flip:
        sample = _flipped(sample)
    rgb = sample.rgb
    if augment.colour > 0:
        rgb = _jittered(rgb, augment.colour, rng)
    if augment.blur > 0 and rng.random() < augment.blur:
        rgb = _blurred(rgb, rng)
    if augment.jpeg > 0 and rng.random() < augment.jpeg:
        rgb = _compressed(rgb, rng)
    return replace(sample, rgb=rgb)
