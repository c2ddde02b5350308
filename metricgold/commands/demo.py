"""``metricgold demo``: a page in the browser to try the model."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metricgold.commands.infer import open_pipeline, predictor
from metricgold.commands.options import CHECKPOINT, CheckpointOption, DeviceOption, DtypeOption
from metricgold.errors import UserError
from metricgold.upload_limits import MAX_MEGAPIXELS

if TYPE_CHECKING:
    from metricgold.demo.results import Backend
    from metricgold.picture_files import Predict
    from metricgold.pipeline import MetricGoldPipeline

BACKENDS = "metricgold.backends"
"""Entry points: functions from a folder to a :class:`Backend`. The library knows none by name."""


def demo(
    checkpoint: CheckpointOption = str(CHECKPOINT),
    onnx: Annotated[
        Path | None,
        typer.Option(help="A folder of exported graphs, to offer ONNX Runtime as well."),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    max_megapixels: Annotated[
        float, typer.Option(min=0.01, help="Larger pictures are refused.")
    ] = MAX_MEGAPIXELS,
    auth: Annotated[
        str | None,
        typer.Option(
            envvar="METRICGOLD_DEMO_AUTH", metavar="USER:PASSWORD", help="Ask visitors for these."
        ),
    ] = None,
) -> None:
    """A page to try the model: depth under the pointer, distances, points, all files in one zip.

    Only this machine reaches it unless --host says otherwise; it is never shared by a tunnel.
    It reads and writes nothing but a temporary folder of its own, and loads nothing from elsewhere.
    """
    from metricgold.demo.serving import parse_login, serve, warning

    login = parse_login(auth)
    pipeline = open_pipeline(checkpoint, device, dtype)
    backends = [torch_backend(pipeline)]
    if onnx is not None:
        backends.append(exported_backend(onnx))
    if told := warning(host, login):
        print(told, file=sys.stderr, flush=True)
    serve(
        backends,
        pipeline.default_denoising_steps,
        host=host,
        port=port,
        max_megapixels=max_megapixels,
        login=login,
    )


def torch_backend(pipeline: MetricGoldPipeline) -> Backend:
    """The pipeline itself."""
    from metricgold.demo.results import Backend

    def of(steps: int | None, ensemble: int) -> Predict:
        """A prediction with these options; the same noise every time."""
        options = {"num_inference_steps": steps, "ensemble_size": ensemble}
        return predictor(pipeline, options, seed=0, tile=None)

    return Backend("torch", of)


def exported_backend(folder: Path) -> Backend:
    """ONNX Runtime over exported graphs, as the package that exports them offers it.

    Raises:
        UserError: that package is not installed, or the folder cannot be used.
    """
    found = list(metadata.entry_points(group=BACKENDS, name="onnxruntime"))
    if not found:
        raise UserError(
            "--onnx: nothing installed here runs exported graphs; install this project again "
            "(pip install -e .)"
        )
    return found[0].load()(folder)
