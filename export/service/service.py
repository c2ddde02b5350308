"""What one server holds: the model, the queue before it, and the places in the house."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest

from export.service import answers, bodies
from export.service.answers import Content, Format
from export.service.batching import Batcher
from export.service.bodies import Refused
from export.service.limits import IMAGE_TYPES, Limits
from export.service.metrics import Metrics
from export.service.model import Answer, Model, Options, Request
from export.service.schemas import Camera
from metricgold.outputs import Prediction
from metricgold.picture_files import CameraOptions
from metricgold.uploads import decode_upload, open_upload

logger = logging.getLogger(__name__)
T = TypeVar("T")

DECODERS = 2
"""Threads that read pictures and write answers beside the networks' own."""


class Service:
    """Answers requests for depth; lives as long as its server."""

    def __init__(self, model: Model, limits: Limits, metrics: Metrics) -> None:
        self.model = model
        self.limits = limits
        self.metrics = metrics
        self.inside = 0
        self.failure: Exception | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.batcher: Batcher[Request, Answer] = Batcher(
            model.predict, max_batch=limits.max_batch, wait_s=limits.batch_wait_ms / 1000
        )
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="pictures")
        metrics.watch(lambda: len(self.batcher), lambda: self.inside)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: object) -> AsyncIterator[None]:
        """Open the model while the server already answers; work until the server ends."""
        task = asyncio.create_task(self._work())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        self._decoders.shutdown(cancel_futures=True)
        self.batcher.thread.shutdown(cancel_futures=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        try:
            await loop.run_in_executor(self.batcher.thread, self.model.open)
        except Exception as error:
            self.failure = error
            self.on_failure()
            return
        self.batcher.max_batch = self.model.max_batch
        seconds = round(time.monotonic() - began, 3)
        logger.info("ready", extra={"said": {"seconds": seconds, "batch": self.model.max_batch}})
        await self.batcher.run()

    async def depth(
        self, http: HttpRequest, camera: CameraOptions, options: Options, chosen: Format
    ) -> Content:
        """Depth of the picture in a request's body.

        Raises:
            Refused: no place, no model yet, too slow, or no picture.
            UserError: the picture or an option cannot be used.
        """
        if not self.model.ready:
            raise Refused(503, "The model is being loaded; come again soon.", _later(2))
        if self.inside >= self.limits.places:
            raise Refused(503, "All places are taken; come again soon.", _later(self._wait_s()))
        self.inside += 1
        http.state.leave = self._leave  # when the answer was sent, see watching.Watched
        read = False
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                began = time.monotonic()
                data = await bodies.picture_bytes(http, self.limits.max_bytes)
                read = True
                seconds = {"read": time.monotonic() - began}
                http.state.said = {"bytes": len(data)}
                work = self._answer(http, data, camera, options, chosen, seconds)
                return await _while_connected(http, work)
        except TimeoutError:
            within = f"within {self.limits.timeout_s:g} s"
            if read:
                raise Refused(504, f"There is no depth {within}; come again later.") from None
            raise Refused(408, f"The picture was not sent {within}.") from None

    async def _answer(
        self,
        http: HttpRequest,
        data: bytes,
        camera: CameraOptions,
        options: Options,
        chosen: Format,
        seconds: dict[str, float],
    ) -> Content:
        began = time.monotonic()
        rgb, exif_fov_deg = await self._in_thread(partial(self._read, data))
        seconds["picture"] = time.monotonic() - began
        height, width = rgb.shape[:2]
        used = _camera(camera, height, exif_fov_deg)
        request = Request(rgb=rgb, fov_deg=used.fov_y_deg, options=options)
        answer = await self.batcher.submit(request, self.model.batch_key(rgb, options))
        seconds |= {"wait": answer.waited_s} | answer.result.seconds
        prediction = Prediction(
            rgb=rgb,
            depth=answer.result.depth,
            uncertainty=answer.result.uncertainty,
            fov_deg=used.fov_y_deg,
            depth_max_m=self.model.manifest.depth_max_m,
        )
        make = partial(
            answers.content_of,
            prediction,
            answer,
            chosen,
            manifest=self.model.manifest,
            options=options,
            camera=used,
            seconds=seconds,
        )
        began = time.monotonic()
        content = await self._in_thread(make)
        self.metrics.stages(seconds | {"answer": time.monotonic() - began})
        http.state.said |= {"width": width, "height": height, "batch": answer.batch}
        return content

    def _read(self, data: bytes) -> Any:
        image = open_upload(
            data,
            max_bytes=self.limits.max_bytes,
            max_megapixels=self.limits.max_megapixels,
            formats=tuple(IMAGE_TYPES.values()),
        )
        return decode_upload(image)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, call)

    def _leave(self) -> None:
        self.inside -= 1

    def _wait_s(self) -> float:
        """A guess at how long it takes until there is a place."""
        return 1 + len(self.batcher) / max(1, self.batcher.max_batch)


def _camera(given: CameraOptions, height: int, exif_fov_deg: float | None) -> Camera:
    """What the request says, else EXIF, else unknown."""
    fov_deg, option = given.fov_of(height)
    if fov_deg is not None:
        return Camera(fov_y_deg=fov_deg, source=option.removeprefix("--").replace("-", "_"))
    source = "unknown" if exif_fov_deg is None else "EXIF"
    return Camera(fov_y_deg=exif_fov_deg, source=source)


def _later(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(math.ceil(seconds))}


async def _while_connected(http: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is given up when the client goes.

    Raises:
        Refused: the client has gone; nobody sees the answer.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(bodies.disconnected(http))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refused(499, "The client has gone.")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
