"""The parts of the data report: tables, histograms and example sheets, from ``report.json``."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from PIL import Image

from metricgold.config import DATASET_NAMES, CodecConfig, PreprocessConfig, ProfileConfig
from metricgold.data.dataset import SPLITS, Split
from metricgold.data.files import human_bytes
from metricgold.data.inspection import preview
from metricgold.data.shards import ShardError, shard_paths
from metricgold.evaluation.data_charts import (
    DEPTH,
    FOVS,
    SHARES,
    SPLIT_TITLES,
    Records,
    alone,
    together,
)
from metricgold.evaluation.page import embedded, section, table, text_cell, tile
from metricgold.workspace import Workspace

EXAMPLES: dict[Split, int] = {"train": 3, "holdout": 2}
"""Frames of a split's example sheet."""
INTRODUCTION = (
    '<p class="soft">Every frame is a picture, a depth in metres for each of its pixels, and a '
    "camera. Networks are trained on the training frames; every figure of the evaluation is "
    "measured on the held-out ones, which training never sees. This page shows whether the two "
    "look alike, how the datasets differ, and what was left out.</p>"
)


def headline(used: Records) -> str:
    """The figures one looks for first."""
    frames = {s: sum(record[s]["frames"] for record in used.values()) for s in SPLITS}
    scenes = sum(record[s]["scenes"] for record in used.values() for s in SPLITS)
    rejected = sum(_rejected(record[s]) for record in used.values() for s in SPLITS)
    share = rejected / (rejected + sum(frames.values()))
    tiles = [
        tile(f"{frames['train']:,}", "training frames"),
        tile(f"{frames['holdout']:,}", "held-out frames"),
        tile(f"{scenes:,}", "scenes"),
        tile(f"{len(used)}", "dataset" if len(used) == 1 else "datasets"),
        tile(_percent(share), f"left out, {rejected:,} frames"),
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def overview(used: Records) -> str:
    """One row a dataset and split, and which datasets are not used."""
    header = ["Dataset", "Split", "Frames", "Scenes", "Left out", "Size [px]"]
    header += ["Median depth [m]", "Vertical FOV [°]", "Valid", "Sky"]
    rows = [
        [
            *names,
            f"{part['frames']:,}",
            f"{part['scenes']:,}",
            f"{_rejected(part):,}<small>{_percent(_rejected(part) / _seen(part))}</small>",
            escape(", ".join(part["sizes_px"]).replace("x", " × ")),
            f"{part['depth_percentiles_m']['p50']:.3g}",
            f"{part['fov_y_deg']['mean']:.1f}",
            _percent(part["valid_ratio"]["mean"]),
            _percent(part["sky_share"]["mean"]),
        ]
        for names, part in _parts(used)
    ]
    skipped = ", ".join(name for name in DATASET_NAMES if name not in used)
    note = f'<p class="soft">Of weight 0 in this profile, hence not used: {skipped}.</p>'
    return section(
        "At a glance",
        "<p>A scene is one sequence, the path of a camera. “Valid” is the share of pixels whose "
        "depth is known and used, “sky” the share marked as sky, which has no depth; both, and "
        "the field of view (FOV), are means over frames. Sizes are height × width.</p>",
        table(header, rows),
        note if skipped else "",
    )


def depth(used: Records, codec: CodecConfig) -> str:
    """Distribution of depth over pixels: datasets together, each alone, and as figures."""
    cards = [*(together(used, DEPTH) if len(used) > 1 else []), *alone(used, [DEPTH])]
    header = ["Dataset", "Split", "Min [m]", "1 %", "10 %", "50 %", "90 %", "99 %", "Max [m]"]
    rows = [[*names, *_depth_cells(part)] for names, part in _parts(used)]
    return section(
        "Depth",
        "<p>How many of the valid pixels lie how far away. The axis doubles from tick to tick; a "
        f"bin is 10 % wide. The model can say {codec.depth_min_m:g} to {codec.depth_max_m:g} m."
        "</p>",
        f'<div class="grid2">{"".join(cards)}</div>',
        "<p>Percentiles over all valid pixels, in metres and to 1 %. The last two columns are mean "
        "and standard deviation of the natural logarithm of depth; the small line below says the "
        "same as a distance and as a factor.</p>",
        table([*header, "Mean of ln", "Std of ln"], rows),
    )


def _depth_cells(part: Mapping[str, Any]) -> list[str]:
    log = part["log_depth"]
    percentiles = [part["depth_percentiles_m"][f"p{p}"] for p in (1, 10, 50, 90, 99)]
    return [
        *(f"{metres:.3g}" for metres in (log["min_m"], *percentiles, log["max_m"])),
        f"{log['mean']:.3f}<small>{math.exp(log['mean']):.3g} m</small>",
        f"{log['std']:.3f}<small>× {math.exp(log['std']):.3g}</small>",
    ]


def field_of_view(used: Records) -> str:
    """Distribution of both fields of view over frames."""
    cards = alone(used, FOVS)
    values = ("min", "mean", "max")
    rows = [
        [*names, *(f"{part[kind.key][value]:.1f}" for kind in FOVS for value in values)]
        for names, part in _parts(used)
    ]
    header = [f"{which} {value} [°]" for which in "↕↔" for value in values]
    return section(
        "Field of view",
        "<p>The angle that a picture spans, from its upper to its lower edge (vertical, ↕) and "
        "from left to right (horizontal, ↔). Without it metric depth cannot be told: the same "
        "picture may be a near thing through a wide lens or a far one through a long lens. Bins "
        "of 5°; a dataset with a single camera fills one.</p>",
        f'<div class="grid2">{"".join(cards)}</div>',
        table(["Dataset", "Split", *header], rows),
    )


def coverage(used: Records) -> str:
    """Distribution over frames of the shares of valid and of sky pixels."""
    cards = [card for kind in SHARES for card in together(used, kind)]
    return section(
        "Valid pixels and sky",
        "<p>How much of a frame has depth that is used, and how much is sky. Bins of 5 %. A "
        "dataset that does not mark its sky has none, only pixels without depth.</p>",
        f'<div class="grid2">{"".join(cards)}</div>',
    )


def left_out(used: Records, settings: PreprocessConfig) -> str:
    """Frames that were left out, by reason, with examples."""
    rows = []
    for name, record in used.items():
        for split in SPLITS:
            part = record[split]
            for reason, count in part["rejected"].items():
                keys = part["rejected_examples"][reason]
                shown = ", ".join([*keys, "…"] if count > len(keys) else keys)
                share = _percent(count / _seen(part), 2)
                cells = [escape(name), SPLIT_TITLES[split], f"{count:,}", share]
                rows.append([*cells, text_cell(reason), text_cell(shown)])
    intro = (
        f"<p>A frame is used if {_percent(settings.min_valid_ratio, 0)} of its pixels or more are "
        f"valid, if its depths span {settings.min_depth_range_m:g} m or more, if its picture is "
        "not blank, and if its files are whole. Shares are of all frames of the same dataset and "
        "split.</p>"
    )
    header = ["Dataset", "Split", "Frames", "Share", "Reason", "For example"]
    return section("Left out", intro, table(header, rows) if rows else "<p>No frame was.</p>")


def origin(workspace: Workspace, config: ProfileConfig, used: Records) -> str:
    """Where the archives came from, and how large they and the shards are."""
    weights = {name: dataset.weight for name, dataset in config.enabled_datasets().items()}
    rows = []
    for name, weight in weights.items():
        record, folder = used[name], workspace.shards(name)
        download = record["download"]
        made = record["source"] == "procedural"
        source = "rendered by the pipeline itself" if made else ", ".join(download["mirrors"])
        shards = [path for split in SPLITS for path in shard_paths(folder, split)]
        rows.append(
            [
                escape(name),
                f"{download['files']:,}",
                f"{download['missing']:,}",
                human_bytes(download["bytes"]),
                human_bytes(sum(path.stat().st_size for path in shards)),
                _percent(weight / sum(weights.values()), 0),
                text_cell(source),
                text_cell(download["licence"] or "–"),
            ]
        )
    warnings = "".join(
        f'<p class="soft">{escape(name)}: {escape(line)}</p>'
        for name, record in used.items()
        for line in record.get("warnings", ())
    )
    header = ["Dataset", "Archives", "Missing upstream", "Downloaded", "Shards", "Mixture"]
    return section(
        "Where they come from",
        "<p>Archives are what was downloaded, shards what the training reads. The mixture says how "
        "often training draws from a dataset, whatever its size.</p>",
        table([*header, "Source", "Licence"], rows),
        warnings,
    )


def examples(workspace: Workspace, used: Records) -> str:
    """Evenly spaced frames of every split: picture, depth, mask.

    Raises:
        ShardError: the shards are missing or damaged.
    """
    figures = []
    for name, record in used.items():
        for split, count in EXAMPLES.items():
            frames, folder = record[split]["frames"], workspace.shards(name)
            if not frames:
                continue
            paths = shard_paths(folder, split)
            if not paths:
                raise ShardError(
                    f"{folder}: no shard {split}-*.h5, though report.json counts {frames} frames; "
                    "run the stage 'preprocess' again"
                )
            buffer = io.BytesIO()
            sheet = Image.fromarray(preview(paths, count))
            sheet.save(buffer, "JPEG", quality=90, subsampling=0)
            caption = f"{name}, {SPLIT_TITLES[split]}: evenly spaced among {frames:,} frames"
            figures.append(embedded(buffer.getvalue(), "jpeg", caption))
    return section(
        "Examples",
        "<p>From left to right: the picture; its depth in metres, near bright and far dark, each "
        "with a scale of its own below it; and what is used of it, where light pixels are valid, "
        "blue ones sky and dark ones neither. FOV is the vertical field of view.</p>",
        *figures,
    )


def _parts(used: Records) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Its first two cells and the figures of every split that has frames."""
    for name, record in used.items():
        for split in SPLITS:
            if record[split]["frames"]:
                yield [escape(name), SPLIT_TITLES[split]], record[split]


def _rejected(part: Mapping[str, Any]) -> int:
    return sum(part["rejected"].values())


def _seen(part: Mapping[str, Any]) -> int:
    return _rejected(part) + int(part["frames"])


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"
