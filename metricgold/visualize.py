"""Pictures of depth: one colour map, one scale bar in metres, one comparison panel.

Pure functions from arrays to uint8 [H, W, 3]; numpy and Pillow only. Colour runs along
log-depth from near (warm, bright) to far (cool, dark), so 0.5 m to 1 m is as visible as
20 m to 40 m; pixels without depth are grey.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = NDArray[np.uint8]
Depth = NDArray[np.float32]
Mask = NDArray[np.bool_]

NO_DEPTH = (58, 58, 62)
BACKGROUND = (255, 255, 255)
TEXT = (40, 40, 44)
MAX_ABS_REL = 0.5
"""Relative error at which the error map is saturated."""

_DEPTH_ANCHORS = ("#fff3b8", "#fdbb4e", "#ef6a3c", "#c02c56", "#73207f", "#33287a", "#12183f")
_ERROR_ANCHORS = ("#0d2230", "#14596a", "#4c9a6a", "#d9c44a", "#f4762f", "#c31f2b")
_TICKS_M = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_OKLAB_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _colour_map(anchors: Sequence[str], entries: int = 256) -> Picture:
    """[entries, 3]: anchors joined in Oklab (Ottosson 2020), where equal steps look equal."""
    codes = [[int(a[i : i + 2], 16) / 255.0 for i in (1, 3, 5)] for a in anchors]
    srgb = np.array(codes)
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    lab = np.cbrt(linear @ _OKLAB_LMS.T) @ _OKLAB.T
    distance = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(lab, axis=0), axis=1))]
    at = np.linspace(0.0, distance[-1], entries)
    path = np.stack([np.interp(at, distance, lab[:, i]) for i in range(3)], axis=1)
    back = ((path @ np.linalg.inv(_OKLAB).T) ** 3) @ np.linalg.inv(_OKLAB_LMS).T
    back = np.clip(back, 0.0, 1.0)
    srgb = np.where(back <= 0.0031308, back * 12.92, 1.055 * back ** (1 / 2.4) - 0.055)
    return np.rint(srgb * 255).astype(np.uint8)


DEPTH_COLOURS = _colour_map(_DEPTH_ANCHORS)
ERROR_COLOURS = _colour_map(_ERROR_ANCHORS)


def has_depth(depth: Depth) -> Mask:
    """Pixels whose depth is finite and positive."""
    return np.isfinite(depth) & (depth > 0)


def depth_limits(depth: Depth, valid_mask: Mask | None = None) -> tuple[float, float]:
    """Near and far in metres that show a picture well: 1st and 99th percentile, a factor 1.5 apart
    at least. (1, 10) when no pixel has depth."""
    usable = has_depth(depth) if valid_mask is None else has_depth(depth) & valid_mask
    if not usable.any():
        return 1.0, 10.0
    near, far = (float(p) for p in np.percentile(depth[usable], (1, 99)))
    widen = max(1.0, math.sqrt(1.5 * near / far))
    return near / widen, far * widen


def colourise(depth: Depth, near_m: float | None = None, far_m: float | None = None) -> Picture:
    """Depth [H, W] in metres to colours [H, W, 3].

    Args:
        depth: non-finite and non-positive pixels have no depth and become grey.
        near_m, far_m: depths of the first and last colour; default :func:`depth_limits`.

    Raises:
        ValueError: the limits are not 0 < near < far.
    """
    default = depth_limits(depth)
    near, far = near_m or default[0], far_m or default[1]
    picture = DEPTH_COLOURS[_index(log_share(depth, near, far))]
    picture[~has_depth(depth)] = NO_DEPTH
    return picture


def log_share(depth: Depth, near_m: float, far_m: float) -> NDArray[np.floating]:
    """Where depth [H, W] in metres lies between near (0) and far (1), along log-depth; 0 where
    there is none.

    Raises:
        ValueError: the limits are not 0 < near < far.
    """
    _check_limits(near_m, far_m)
    return np.log(np.where(has_depth(depth), depth, near_m) / near_m) / math.log(far_m / near_m)


def colourise_error(abs_rel: NDArray[np.floating], valid_mask: Mask) -> Picture:
    """Relative error [H, W] to colours; saturated at ``MAX_ABS_REL``, grey outside the mask."""
    picture = ERROR_COLOURS[_index(np.where(valid_mask, abs_rel, 0.0) / MAX_ABS_REL)]
    picture[~valid_mask] = NO_DEPTH
    return picture


def add_scale_bar(image: Picture, near_m: float, far_m: float) -> Picture:
    """``image`` with a strip below it: the colours from near to far and ticks in metres."""
    _check_limits(near_m, far_m)
    ticks = [(t, _share(t, near_m, far_m)) for t in (near_m, *_inner_ticks(near_m, far_m), far_m)]
    labels = [(share, _metres(t)) for t, share in ticks]
    return np.concatenate([image, _bar(image.shape[1], DEPTH_COLOURS, labels, "m")])


def panel(rgb: Picture, truth: Depth, prediction: Depth, valid_mask: Mask) -> Picture:
    """Side by side: rgb, ground truth, prediction (same colours) and relative error.

    Args:
        rgb: [H, W, 3]. Small frames are enlarged by a whole factor, pixels left sharp.
        truth, prediction: depth [H, W] in metres.
        valid_mask: pixels that are compared; ground truth is grey elsewhere.
    """
    near, far = depth_limits(truth, valid_mask)
    usable = valid_mask & has_depth(truth)
    error = np.abs(prediction - truth) / np.where(usable, truth, 1.0)
    mean = f"{float(error[usable].mean()):.3f}" if usable.any() else "no truth"
    scale = max(1, math.ceil(240 / rgb.shape[1]))
    shown = colourise(np.where(usable, truth, 0.0).astype(np.float32), near, far)
    depth_bar = add_scale_bar(_enlarge(shown, scale), near, far)
    prediction_bar = add_scale_bar(_enlarge(colourise(prediction, near, far), scale), near, far)
    error_map = _enlarge(colourise_error(error, usable), scale)
    percents = [(s, f"{100 * s * MAX_ABS_REL:.0f}") for s in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    error_bar = np.concatenate([error_map, _bar(error_map.shape[1], ERROR_COLOURS, percents, "%")])
    return contact_sheet(
        [_enlarge(rgb, scale), depth_bar, prediction_bar, error_bar],
        columns=4,
        titles=["image", "ground truth", "prediction", f"relative error, mean {mean}"],
    )


def contact_sheet(
    pictures: Sequence[Picture],
    columns: int,
    titles: Sequence[str] | None = None,
    gap: int = 8,
) -> Picture:
    """Pictures in rows of ``columns`` on white, top left aligned, an optional title above each."""
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    width = max(p.shape[1] for p in pictures)
    text_size = int(np.clip(width // 30, 14, 26))
    font = _font(text_size)
    header = text_size + 8 if titles else 0
    height = max(p.shape[0] for p in pictures) + header
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    size = (columns * (width + gap) + gap, rows * (height + gap) + gap)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        x = gap + (i % columns) * (width + gap)
        y = gap + (i // columns) * (height + gap)
        if titles:
            draw.text((x, y), titles[i], fill=TEXT, font=font)
        sheet.paste(Image.fromarray(picture), (x, y + header))
    return np.asarray(sheet)


def _bar(width: int, colours: Picture, labels: Sequence[tuple[float, str]], unit: str) -> Picture:
    """Strip [*, width, 3] of colours with labels at shares in [0, 1]; crowded ones left out."""
    size = int(np.clip(width // 40, 11, 22))
    font, margin = _font(size), min(size // 2, width // 8)
    inner, thick = width - 2 * margin, max(size // 2, 6)
    strip = Image.new("RGB", (width, thick + 2 * size + margin), BACKGROUND)
    ramp = colours[_index(np.linspace(0, 1, max(inner, 1)))]
    strip.paste(Image.fromarray(np.repeat(ramp[None], thick, axis=0)), (margin, size // 2))
    draw = ImageDraw.Draw(strip)
    top = size // 2 + thick
    taken: list[tuple[float, float]] = []
    for n in _by_importance(len(labels)):
        share, text = labels[n]
        text = f"{text} {unit}" if n == len(labels) - 1 else text
        x = margin + share * (inner - 1)
        length = draw.textlength(text, font=font)
        left = min(max(x - length / 2, 0.0), max(width - length, 0.0))
        if any(left < b + size / 2 and a < left + length + size / 2 for a, b in taken):
            continue
        taken.append((left, left + length))
        draw.line([(x, top), (x, top + size // 4)], fill=TEXT)
        draw.text((left, top + size // 4), text, fill=TEXT, font=font)
    return np.asarray(strip)


def _by_importance(count: int) -> list[int]:
    """Last and first label before those between them."""
    return [count - 1, *range(count - 1)]


def _inner_ticks(near: float, far: float) -> list[float]:
    return [t for t in _TICKS_M if near * 1.02 < t < far / 1.02]


def _metres(depth_m: float) -> str:
    return f"{depth_m:.2g}" if depth_m < 10 else f"{depth_m:.0f}"


def _share(depth_m: float, near: float, far: float) -> float:
    return math.log(depth_m / near) / math.log(far / near)


def _index(share: NDArray[np.floating]) -> NDArray[np.intp]:
    return np.clip(np.rint(share * 255), 0, 255).astype(np.intp)


def _enlarge(picture: Picture, scale: int) -> Picture:
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _check_limits(near: float, far: float) -> None:
    if not 0 < near < far < math.inf:
        raise ValueError(f"depth limits must satisfy 0 < near < far, got {near} and {far} m")
