"""``metricgold data``: looking at shards, and at data before it becomes some."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from metricgold.data.evaluation_sets.command import prepare_command
from metricgold.errors import UserError

data = typer.Typer(
    help="Look at preprocessed shards, and at data of your own before it becomes some.",
    no_args_is_help=True,
)
data.command("evaluation-set")(prepare_command)

ShardPath = Annotated[Path, typer.Argument(help="A shard (.h5), or a folder with shards below it.")]


@data.command()
def inspect(path: ShardPath = Path("artifacts/shards")) -> None:
    """Print for every shard its scenes, frames, sizes, fields of view and valid pixels.

    Reads the tables of the shard only, no frame: this takes a moment however large it is.
    """
    from metricgold.data.files import human_bytes
    from metricgold.data.inspection import find_shards, summarise

    for shard in find_shards(path):
        s = summarise(shard)
        sizes = ", ".join(f"{height}x{width}" for height, width in s.sizes)
        print(f"{shard}: {s.frames} frames of {sizes or '0'} px in {s.scenes} scenes")
        low, mean, high = s.fov_y_deg
        print(f"  vertical field of view {low:.1f}° to {high:.1f}°, mean {mean:.1f}°")
        low, mean, high = s.valid_ratio
        print(f"  valid pixels {low:.1%} to {high:.1%} a frame, mean {mean:.1%}")
        stored = (
            f"picture {human_bytes(round(s.rgb_bytes))}, depth {human_bytes(round(s.depth_bytes))}"
        )
        print(f"  {human_bytes(s.bytes)} on disk; a frame: {stored}")
        for line in s.made_from:
            print(f"  {line}")


@data.command()
def verify(path: ShardPath = Path("artifacts/shards")) -> None:
    """Read every frame and compare it with its checksum; exit code 1 if one is damaged."""
    from metricgold.data.inspection import find_shards, verify
    from metricgold.progress import progress_bar

    shards = find_shards(path)
    frames = damaged = 0
    with progress_bar(description="verifying", unit="frame") as bar:
        for shard in shards:
            for problem in verify(shard):
                bar.update()
                frames += 1
                if problem:
                    damaged += 1
                    bar.write(f"damaged: {problem}")
    if damaged:
        raise UserError(f"{path}: {damaged} of {frames} frames or shards are damaged; see above")
    print(f"{path}: {frames} frames in {len(shards)} shards, all whole")


@data.command()
def preview(
    path: ShardPath = Path("artifacts/shards"),
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("preview.png"),
    frames: Annotated[int, typer.Option(min=1, max=100, help="How many, evenly spaced.")] = 6,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing picture.")] = False,
) -> None:
    """Write a sheet of frames: picture, depth with a scale in metres, mask (blue: sky)."""
    from PIL import Image

    from metricgold.data.inspection import find_shards, preview

    if out.suffix.lower() != ".png":
        raise UserError(f"{out}: only .png can be written; name such a file")
    if out.exists() and not force:
        raise UserError(f"{out}: exists already; name another file or add --force")
    sheet = preview(find_shards(path), frames)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f"{out.name}.part")
    Image.fromarray(sheet).save(temporary, "PNG")
    os.replace(temporary, out)
    print(f"wrote {out} ({sheet.shape[1]}x{sheet.shape[0]} px)")


@data.command("export-webdataset")
def export_webdataset(
    path: ShardPath = Path("artifacts/shards"),
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("webdataset"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing folder.")] = False,
) -> None:
    """Write shards as WebDataset tars, for object stores.

    A sample has .jpg (or .png), .depth.npy (metres, 0: none), .sky.png and .json (key, scene, K).
    """
    from metricgold.data.inspection import find_shards
    from metricgold.data.webdataset_export import export_folder
    from metricgold.progress import progress_bar

    if out.exists() and not force:
        raise UserError(f"{out}: exists already; name another folder or add --force")
    shards = find_shards(path)
    with progress_bar(description="exporting", unit="frame") as bar:
        tars = export_folder(shards, path, out, bar.update)
    print(f"wrote {tars} tars to {out}")


@data.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A folder with dataset.yaml, pictures and depth.")],
    frames: Annotated[int, typer.Option(min=1, help="How many to read, evenly spaced.")] = 20,
) -> None:
    """Look for the usual mistakes in your own data, before it is trained on or evaluated.

    Millimetres taken for metres, distance along the ray or inverse depth taken for z-depth,
    sizes that differ, a missing focal length or one of another resolution, damaged files.
    Exit code 1 if there is an error; warnings are judgements and may be wrong.
    """
    from metricgold.data.folder_check import check_folder

    findings = check_folder(folder, frames)
    for finding in findings:
        print(f"{finding.level} ({finding.code}): {finding.message}")
    errors = sum(finding.level == "error" for finding in findings)
    if errors:
        raise UserError(f"{folder}: {errors} error{'s' * (errors > 1)}; see above")
    if not findings:
        print(f"{folder}: nothing wrong found")
