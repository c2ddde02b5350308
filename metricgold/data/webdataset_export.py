"""Shards as WebDataset tars, which object stores stream well.

A sample ``SCENE/FRAME`` has ``.jpg`` (or ``.png``) as the shard stores it, ``.depth.npy`` ([H, W]
metres, 0 where there is none), ``.sky.png`` (one bit a pixel) and ``.json`` with its key, scene and
K. Nothing is compressed twice or lost.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from metricgold.data.archive_writer import ArchiveSet, Member
from metricgold.data.shards import EncodedFrame, ShardReader
from metricgold.errors import UserError
from metricgold.files import replaced_folder

TAR_BYTES = 10**9
"""A tar is closed once it is larger."""
_PNG_START = b"\x89PNG"


def export_folder(
    shards: Sequence[Path],
    top: Path,
    out: Path,
    advance: Callable[[int], object] = lambda _: None,
) -> int:
    """Export ``shards`` below ``top``, each split of each folder as a set of tars; how many tars.

    ``top/hypersim/train-000.h5`` goes to ``out/hypersim/train-000000.tar``. ``out`` appears only
    when everything is written.

    Raises:
        as :func:`export_webdataset`.
    """
    groups: dict[tuple[Path, str], list[Path]] = {}
    for path in shards:
        place = path.parent.relative_to(top) if top.is_dir() else Path()
        groups.setdefault((place, path.stem.rpartition("-")[0] or path.stem), []).append(path)
    with replaced_folder(out) as folder:
        return sum(
            len(export_webdataset(paths, folder / place, prefix, advance=advance))
            for (place, prefix), paths in groups.items()
        )


def export_webdataset(
    shards: Sequence[Path],
    out: Path,
    prefix: str,
    tar_bytes: int = TAR_BYTES,
    advance: Callable[[int], object] = lambda _: None,
) -> list[Path]:
    """Write ``{prefix}-000000.tar``, ``-000001``, … with every frame of ``shards`` into ``out``.

    Equal shards give equal tars. A tar takes its name only when it is complete. ``advance`` is
    told the number of frames that are done.

    Raises:
        ShardError: a shard is missing or damaged.
        UserError: a key cannot be told from the ending of a file name.
    """
    reader = ShardReader(shards)
    written: list[Path] = []
    size = 0
    with ArchiveSet(out) as archives:
        for index in range(len(reader)):
            if not written or size > tar_bytes:
                if written:
                    archives.finish(written[-1].name)
                written.append(out / f"{prefix}-{len(written):06d}.tar")
                size = 0
            for ending, data in _files(reader.encoded(index)):
                name = f"{_sample_name(reader.keys[index])}.{ending}"
                archives.add(Member(written[-1].name, name, data))
                size += len(data)
            advance(1)
    reader.close()
    return written


def _sample_name(key: str) -> str:
    """WebDataset splits a file's name at its first dot."""
    if "." in key.rpartition("/")[2]:
        raise UserError(f"frame {key}: a dot in a frame's name cannot be kept in a WebDataset")
    return key


def _files(frame: EncodedFrame) -> Iterator[tuple[str, bytes]]:
    height, width = frame.depth.shape
    yield "png" if frame.rgb.startswith(_PNG_START) else "jpg", frame.rgb
    depth, sky = io.BytesIO(), io.BytesIO()
    np.save(depth, frame.depth)
    yield "depth.npy", depth.getvalue()
    bits = np.unpackbits(frame.sky, count=height * width).reshape(height, width).astype(bool)
    Image.fromarray(bits).save(sky, "PNG")
    yield "sky.png", sky.getvalue()
    about = {"key": frame.key, "scene": frame.scene, "intrinsics": frame.intrinsics.tolist()}
    yield "json", json.dumps(about).encode()
