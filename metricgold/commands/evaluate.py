"""``metricgold evaluate``: one model or several on the same frames, in one table."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metricgold.commands.options import CHECKPOINT, DeviceOption, ForceOption, usable_device
from metricgold.errors import UserError

if TYPE_CHECKING:
    from metricgold.data.shards import ShardReader
    from metricgold.evaluation.comparison import Comparison
    from metricgold.evaluation.predictor_names import PredictorName

MODEL_HELP = (
    "[LABEL=]KIND:TARGET[?OPTION=VALUE&...], once for each model; the others are compared with "
    "the first. Kinds: metricgold:FOLDER or repository (options steps, ensemble, resolution, "
    "camera=unknown, seed, tile, light=1); folder:PATH of predictions made elsewhere; "
    "marigold:REPOSITORY; transformers:REPOSITORY (Depth Anything V2, ZoeDepth, Depth Pro); "
    "function:MODULE:NAME; "
    "constant:METRES. Where numbers are not metres: invariance=depth or disparity."
)


def evaluate(
    data: Annotated[
        Path,
        typer.Argument(help="A shard (.h5) or a folder of them; training shards are left out."),
    ],
    models: Annotated[
        list[str] | None, typer.Option("--model", "-m", help=MODEL_HELP, show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("evaluation"),
    frames: Annotated[
        int | None, typer.Option(min=1, help="At most so many, evenly spaced. Default: all.")
    ] = None,
    min_depth: Annotated[
        float | None,
        typer.Option(help="Metres; nearer truth is not evaluated. Default: the set's."),
    ] = None,
    max_depth: Annotated[
        float | None,
        typer.Option(help="Metres; farther truth is not evaluated. Default: likewise."),
    ] = None,
    sequences: Annotated[
        bool, typer.Option("--sequences", help="Also measure the change from frame to frame.")
    ] = False,
    cost: Annotated[
        bool,
        typer.Option("--cost", help="Also time each model alone: ms, memory, at 1, 4, 10 steps."),
    ] = False,
    pictures: Annotated[int, typer.Option(min=0, max=50, help="Shown, worst to best.")] = 6,
    clouds: Annotated[int, typer.Option(min=0, max=12, help="Shown in three dimensions.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    device: DeviceOption = None,
    force: ForceOption = False,
) -> None:
    """Compare depth models on the same frames: figures, intervals, charts, pictures, points.

    Writes index.html, results.json (with commit, data hash and command) and per_image.csv. Models
    that give metres are in the metric track, without any alignment, and in the affine-invariant
    one; the others in the latter only. Frames are those of preprocessed shards: 'metricgold data
    evaluation-set' makes them of public sets, the pipeline of the training sets.

    Example: metricgold evaluate artifacts/evaluation_sets/nyuv2 -m ours=artifacts/metricgold
    -m dav2=transformers:depth-anything/Depth-Anything-V2-Metric-Indoor-Large-hf
    """
    from metricgold import files
    from metricgold.evaluation import comparison, comparison_page
    from metricgold.evaluation.baselines import evenly_spaced
    from metricgold.evaluation.engine import TEMPORAL
    from metricgold.memory import keep_freed_memory

    names = _names(models or [f"metricgold={CHECKPOINT}"])
    if out.exists() and not force:
        raise UserError(f"{out}: exists already; name another --out or add --force")
    if out.exists() and not (out / "results.json").is_file() and any(out.iterdir()):
        raise UserError(f"{out}: holds other things than an evaluation; name another --out")
    reader, limits = _open(data), _range(data, min_depth, max_depth)
    place = usable_device(device)
    print(f"{len(reader)} frames; truth from {limits[0]:g} to {limits[1]:g} m is evaluated")
    keep_freed_memory()
    command = ["metricgold", *sys.argv[1:]]
    with files.replaced_folder(out) as folder:  # at once, so that one that cannot be is told now
        found = comparison.compare(
            reader,
            evenly_spaced(len(reader), frames),
            names,
            limits,
            device=place,
            sequences=sequences,
            with_costs=cost,
            seed=seed,
        )
        page = comparison_page.build(found, reader, shlex.join(command), pictures, clouds)
        files.write_json(folder / "results.json", comparison.results(found, command))
        comparison.write_table(folder / "per_image.csv", found.evaluation)
        files.write_text(folder / "index.html", page)
    if sequences and not any(TEMPORAL in s.names for s in found.evaluation.scores.values()):
        print("no two of these frames follow each other, so no change from frame to frame is known")
    for line in _table(found):
        print(line)
    print(f"wrote {out / 'index.html'}, results.json and per_image.csv")


def _names(models: list[str]) -> list[PredictorName]:
    from metricgold.evaluation.predictor_names import PredictorName

    names = [PredictorName.parse(text) for text in models]
    labels = [name.label for name in names]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise UserError(f"two models are called '{twice}'; write LABEL=KIND:TARGET")
    return names


def _open(data: Path) -> ShardReader:
    from metricgold.data.inspection import find_shards
    from metricgold.data.shards import ShardReader

    shards = [path for path in find_shards(data) if not path.name.startswith("train-")]
    if not shards and not data.is_file():
        raise UserError(f"{data}: has training shards only; nothing is held out to evaluate on")
    reader = ShardReader(shards or [data])
    if not len(reader):
        raise UserError(f"{data}: its shards hold no frame")
    return reader


def _range(data: Path, near: float | None, far: float | None) -> tuple[float, float]:
    """The set's own range, where ``report.json`` beside the shards says one."""
    from metricgold.depth_codec import DepthCodec

    report = (data if data.is_dir() else data.parent) / "report.json"
    limits = None
    if report.is_file():
        limits = json.loads(report.read_text(encoding="utf-8")).get("depth_range_m")
    own = limits or (DepthCodec().depth_min_m, DepthCodec().depth_max_m)
    low = float(own[0]) if near is None else near
    high = float(own[1]) if far is None else far
    if not 0 < low < high:
        raise UserError(f"--min-depth {low:g} and --max-depth {high:g}: 0 < min < max is needed")
    return low, high


def _table(found: Comparison) -> list[str]:
    """The figures one looks for first, a line each model."""
    means = {label: found.evaluation.scores[label].means() for label in found.labels}
    known = (("AbsRel", "abs_rel"), ("delta1", "delta1"), ("scale ratio", "scale_ratio"),
             ("boundary F1", "boundary_f1"), ("affine AbsRel", "affine_abs_rel"),
             ("disparity AbsRel", "affine_disparity_abs_rel"), ("nAUSE", "nause"),
             ("frame to frame", "temporal_error"))  # fmt: skip
    columns = tuple(c for c in known if any(c[1] in each for each in means.values()))
    width = max(len(label) for label in ("", *found.labels))
    lines = [" " * width + "".join(f"  {title:>16}" for title, _ in columns)]
    for label in found.labels:
        own = means[label]
        cells = (f"{own[key]:.4f}" if key in own else "–" for _, key in columns)
        lines.append(label.ljust(width) + "".join(f"  {cell:>16}" for cell in cells))
    return lines
