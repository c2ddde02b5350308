"""``metricgold infer``: depth in metres of pictures, folders, patterns and videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metricgold.commands.options import (
    CHECKPOINT,
    CheckpointOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    checkpoint_of,
)
from metricgold.errors import UserError
from metricgold.outputs import DEFAULT_FORMATS, FORMATS, Prediction, parse_formats
from metricgold.picture_files import Camera, Loaded, find_pictures, run

if TYPE_CHECKING:
    from metricgold.pipeline import MetricGoldPipeline

FORMAT_HELP = "Names with commas, or all. " + "; ".join(
    f"{n}: {f.about}" for n, f in FORMATS.items()
)


def infer(
    inputs: Annotated[
        list[str], typer.Argument(help="Pictures, folders of pictures, patterns such as '*.jpg'.")
    ],
    checkpoint: CheckpointOption = str(CHECKPOINT),
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("outputs"),
    formats: Annotated[str, typer.Option("--format", help=FORMAT_HELP)] = ",".join(DEFAULT_FORMATS),
    fov_deg: Annotated[
        float | None, typer.Option(help="Vertical field of view in degrees. Default: from EXIF.")
    ] = None,
    focal_px: Annotated[
        float | None, typer.Option(help="Focal length in pixels of the picture, instead.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Default: what the checkpoint was trained for.")
    ] = None,
    ensemble: Annotated[
        int, typer.Option(min=1, help="Predictions to fuse; gives an uncertainty in metres.")
    ] = 1,
    resolution: Annotated[
        int | None,
        typer.Option(min=0, help="Long side in pixels while working; 0: the picture's own."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Predictions made at once.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the noise; one step needs none.")] = 0,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    force: ForceOption = False,
) -> None:
    """Depth in metres of pictures.

    For every picture NAME writes NAME_depth.npy and what else --format says, and prints range,
    field of view and time. Nothing that exists is replaced unless --force is given. A picture
    that cannot be read is told and does not stop the others; the exit code is then 1.
    """
    chosen, camera, sources = (
        parse_formats(formats),
        Camera(fov_deg, focal_px),
        find_pictures(inputs),
    )
    pipeline = open_pipeline(checkpoint, device, dtype)

    def predict(pictures: Sequence[Loaded]) -> list[tuple[Prediction, str]]:
        """Of a few pictures at once."""
        import torch

        with_error = ensemble > 1 or pipeline.confidence is not None
        try:
            found = pipeline(
                [p.rgb for p in pictures],
                steps,
                ensemble_size=ensemble,
                processing_resolution=resolution,
                batch_size=batch_size,
                generator=torch.Generator().manual_seed(seed),
                output_uncertainty=with_error,
                fov_deg=[p.fov_deg for p in pictures],
            )
        except ValueError as error:  # about the options, so the same for every picture
            raise UserError(str(error)) from None
        told = f"torch on {pipeline.device}"
        return [
            (
                Prediction(
                    rgb=p.rgb,
                    depth=found.prediction[i][..., 0],
                    uncertainty=found.uncertainty[i][..., 0] if with_error else None,
                    fov_deg=p.fov_deg,
                    depth_max_m=pipeline.codec.depth_max_m,
                ),
                told,
            )
            for i, p in enumerate(pictures)
        ]

    refused = run(
        sources,
        predict,
        camera=camera,
        out=out,
        formats=chosen,
        force=force,
        batch_size=batch_size,
    )
    if refused:
        raise typer.Exit(1)


def open_pipeline(checkpoint: str, device: str | None, dtype: str) -> MetricGoldPipeline:
    """A quiet pipeline on a device.

    Raises:
        UserError: the device or the number format is not known here.
        CheckpointError: the checkpoint cannot be read.
    """
    import torch

    from metricgold.pipeline import MetricGoldPipeline
    from metricgold.training.accelerator import default_device

    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype not in known:
        raise UserError(f"--dtype {dtype}: not known; take {', '.join(known)}")
    pipeline = MetricGoldPipeline.from_pretrained(checkpoint_of(checkpoint))
    pipeline.set_progress_bar_config(disable=True)
    try:
        return pipeline.to(device or default_device(), known[dtype])
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device}: cannot be used here ({reason})") from None
