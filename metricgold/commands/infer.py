"""``metricgold infer``: depth in metres of pictures, folders, patterns and videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metricgold.commands.options import (
    CHECKPOINT,
    CheckpointOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    usable_device,
)
from metricgold.errors import UserError
from metricgold.output_formats import ABOUT, DEFAULT_FORMATS
from metricgold.workspace import checkpoint_of

if TYPE_CHECKING:
    from metricgold.outputs import Prediction
    from metricgold.picture_files import Loaded, Predict
    from metricgold.pipeline import MetricGoldPipeline

FORMAT_HELP = "Names with commas, or all. " + "; ".join(f"{n}: {a}" for n, a in ABOUT.items())


def infer(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Pictures, folders of them, patterns such as '*.jpg', videos, webcam:0."
        ),
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
    tile: Annotated[
        int | None,
        typer.Option(min=1, help="Predict larger pictures in tiles of this long side in pixels."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Predictions made at once.")] = 1,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Of a webcam; default: until Ctrl-C.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise; one step needs none.")] = 0,
    light: Annotated[
        bool, typer.Option("--light", help="By the light autoencoder: faster, if there is one.")
    ] = False,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    force: ForceOption = False,
) -> None:
    """Depth in metres of pictures and videos.

    For every picture NAME writes NAME_depth.npy and what else --format says, and prints range,
    field of view and time. Nothing that exists is replaced unless --force is given. A picture
    that cannot be read is told and does not stop the others; the exit code is then 1. Of a video
    or a webcam (needs ffmpeg) every frame is predicted, and NAME_depth.mp4 shows them all.

    Examples: metricgold infer photo.jpg --fov-deg 55

    metricgold infer 'holiday/**/*.jpg' --format all --ensemble 2 --out depth

    metricgold infer drive.mp4 --focal-px 1200 --format npz --batch-size 4
    """
    from metricgold.inputs import find_inputs, run_inputs
    from metricgold.outputs import parse_formats
    from metricgold.picture_files import CameraOptions
    from metricgold.video_files import Results

    results, camera = Results(out, parse_formats(formats), force), CameraOptions(fov_deg, focal_px)
    sources = find_inputs(inputs)
    pipeline = open_pipeline(checkpoint, device, dtype, light=light or None)

    options = {
        "num_inference_steps": steps,
        "ensemble_size": ensemble,
        "processing_resolution": resolution,
        "batch_size": batch_size,
    }
    predict = predictor(pipeline, options, seed, tile)
    refused = run_inputs(
        sources,
        predict,
        camera=camera,
        results=results,
        batch_size=batch_size,
        most_frames=frames,
    )
    if refused:
        raise typer.Exit(1)


def predictor(
    pipeline: MetricGoldPipeline, options: dict[str, Any], seed: int, tile: int | None
) -> Predict:
    """What is done with a few pictures at once; ``options`` are the pipeline's."""
    from metricgold.outputs import Prediction

    with_error = tile is None and (options["ensemble_size"] > 1 or pipeline.confidence is not None)

    def predict(pictures: Sequence[Loaded]) -> list[tuple[Prediction, str]]:
        """Their depth; the same noise for every one, whatever it is predicted with."""
        from metricgold.ensemble import same_noise

        generators = same_noise(seed, len(pictures))
        uncertainties: Any = [None] * len(pictures)
        try:
            if tile is not None:
                from metricgold.tiling import predict_tiled

                depths: Any = [
                    predict_tiled(
                        pipeline, p.rgb, tile, fov_deg=p.fov_deg, generator=own, **options
                    )[..., None]
                    for p, own in zip(pictures, generators, strict=True)
                ]
            else:
                found = pipeline(
                    [p.rgb for p in pictures],
                    fov_deg=[p.fov_deg for p in pictures],
                    output_uncertainty=with_error,
                    generator=generators,
                    **options,
                )
                depths = found.prediction
                uncertainties = found.uncertainty if with_error else uncertainties
        except ValueError as error:  # about the options, so the same for every picture
            raise UserError(str(error)) from None
        return [
            (
                Prediction(
                    rgb=picture.rgb,
                    depth=depth[..., 0],
                    uncertainty=None if uncertainty is None else uncertainty[..., 0],
                    fov_deg=picture.fov_deg,
                    depth_max_m=pipeline.codec.depth_max_m,
                ),
                f"torch on {pipeline.device}{_seams(depth[..., 0], tile)}",
            )
            for picture, depth, uncertainty in zip(pictures, depths, uncertainties, strict=True)
        ]

    return predict


def _seams(depth: Any, tile: int | None) -> str:
    """What there is to say of the borders between tiles."""
    if tile is None or tile >= max(depth.shape):
        return ""
    from metricgold.tiling import TILE_OVERLAP, TileGrid, seam_error

    grid = TileGrid.of(depth.shape, tile, TILE_OVERLAP)
    bends = seam_error(depth, grid)
    return f" in {len(grid.parts)} tiles, at whose borders depth bends {bends:.2f} times as much"


def open_pipeline(
    checkpoint: str, device: str | None, dtype: str, light: bool | None = None
) -> MetricGoldPipeline:
    """A quiet pipeline on a device; ``light`` as in ``MetricGoldModel.from_pretrained``.

    Raises:
        UserError: the device or the number format is not known here.
        CheckpointError: the checkpoint cannot be read, or has no light autoencoder.
    """
    import torch

    from metricgold.pipeline import MetricGoldPipeline

    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype not in known:
        raise UserError(f"--dtype {dtype}: not known; take {', '.join(known)}")
    place = usable_device(device)
    pipeline = MetricGoldPipeline.from_pretrained(
        checkpoint_of(checkpoint), light=light, dtype=known[dtype]
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(place, silence_dtype_warnings=True)
