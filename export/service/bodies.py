"""An upload's bytes, read within limits; a refusal as an exception with its status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from export.service.limits import IMAGE_TYPES
from metricgold.uploads import too_many_bytes

FORM = "multipart/form-data"
FIELD = "image"
"""The form's part that is the picture."""

FRAMING = 64 * 2**10
"""Bytes of a form beyond its picture."""

DRAIN_S = 5.0


class Refused(Exception):  # noqa: N818 - not every refusal is an error
    """A request that is answered with a sentence and nothing else."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None):
        super().__init__(sentence)
        self.status = status
        self.headers = dict(headers or {})


def kind_of(request: Request) -> str:
    """The media type of a request's body.

    Raises:
        Refused: it is none that is taken.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != FORM and kind not in IMAGE_TYPES:
        raise Refused(
            415, f"The body must be {', '.join(IMAGE_TYPES)} or {FORM} with a part '{FIELD}'."
        )
    return kind


async def picture_bytes(request: Request, max_bytes: int) -> bytes:
    """The picture of a request: its whole body, or the part ``image`` of a form.

    Raises:
        Refused: another type, no picture, or a form that cannot be read.
        TooLargeError: more bytes than allowed; no more than that is read.
    """
    kind = kind_of(request)
    most = max_bytes + (FRAMING if kind == FORM else 0)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise too_many_bytes(int(declared), max_bytes)
    if kind != FORM:
        data = b"".join([chunk async for chunk in _limited(request, most, max_bytes)])
        if not data:
            raise Refused(422, "There is no picture: the body is empty.")
        return data
    parser = MultiPartParser(request.headers, _limited(request, most, max_bytes), max_files=1)
    parser.spool_max_size = most  # so that a picture is never on a disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refused(422, f"The form cannot be read: {error.message}") from None
    try:
        part = form.get(FIELD)
        if part is None or isinstance(part, str):
            raise Refused(422, f"The form has no file in a part named '{FIELD}'.")
        data = await part.read()
        if not data:
            raise Refused(422, f"There is no picture: the form's part '{FIELD}' is empty.")
        return data
    finally:
        await form.close()


async def _limited(request: Request, most: int, told: int) -> AsyncGenerator[bytes, None]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise too_many_bytes(size, told)
        yield chunk


async def drain(request: Request, max_bytes: int) -> None:
    """Read what a refused client is still sending, within limits, so that it sees the answer."""
    left = max_bytes
    try:
        async with asyncio.timeout(DRAIN_S):
            async for chunk in request.stream():
                left -= len(chunk)
                if left < 0:
                    return
    except (TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: all was read already
        return


async def disconnected(request: Request) -> None:
    """Returns when the client has gone; for a request whose body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
