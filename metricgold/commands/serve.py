"""``metricgold serve``: metric depth over HTTP from exported graphs."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from metricgold.errors import UserError
from metricgold.workspace import Workspace

ONNX = Workspace().onnx
SERVERS = "metricgold.servers"
"""Entry points: functions that serve a folder. The library knows none by name."""


def serve(
    model: Annotated[Path, typer.Option(help="A folder of exported graphs.")] = ONNX,
    backend: Annotated[
        str, typer.Option(help="As of export.trt_infer; auto: the first that works here.")
    ] = "auto",
    engines: Annotated[
        Path | None, typer.Option(help="A folder of engines. Default: beside the graphs.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of ONNX Runtime. Default: one for each core.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="METRICGOLD_SERVE_TOKEN",
            help="Ask for it (Authorization: Bearer). Better by the variable: others see options.",
        ),
    ] = None,
    places: Annotated[
        int, typer.Option(min=1, help="Requests in the house at once; one more gets a 503.")
    ] = 32,
    max_megabytes: Annotated[float, typer.Option(min=0.001, help="Of an upload.")] = 32.0,
    max_megapixels: Annotated[float, typer.Option(min=0.001, help="Of a picture.")] = 25.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for a request.")] = 60.0,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Pictures of one working size run together.")
    ] = 8,
    batch_wait: Annotated[
        float, typer.Option(min=0, help="Milliseconds a picture waits for others to join it.")
    ] = 0.0,
) -> None:
    """Metric depth over HTTP: POST a picture to /v1/depth; /openapi.json describes the rest.

    Health is at /healthz and /readyz, figures for Prometheus at /metrics. Only this machine reaches
    it unless --host says otherwise, and then only with a token. Ends on SIGTERM when all that is
    being answered is answered. Needs the extra 'serve'; no torch.
    """
    found = list(metadata.entry_points(group=SERVERS, name="http"))
    if not found:
        raise UserError(
            "nothing installed here serves exported graphs; install this project again "
            "(pip install -e .)"
        )
    found[0].load()(
        model,
        backend=backend,
        engines=engines,
        threads=threads,
        host=host,
        port=port,
        token=token,
        places=places,
        max_bytes=int(max_megabytes * 2**20),
        max_megapixels=max_megapixels,
        timeout_s=timeout,
        max_batch=max_batch,
        batch_wait_ms=batch_wait,
    )
