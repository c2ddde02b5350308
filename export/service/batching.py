"""Requests that wait for the same networks go through them together: a small dynamic batcher."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Request = TypeVar("Request")
Result = TypeVar("Result")
Abandoned = Callable[[], bool]
"""Whether nobody waits any more for what is being computed."""


@dataclass(eq=False)
class _Job(Generic[Request, Result]):
    """A request, what may be joined with it (``key``), and where its result goes."""

    request: Request
    key: Hashable
    result: asyncio.Future[Result]
    arrived: float


class Batcher(Generic[Request, Result]):
    """Calls ``predict`` in one thread of its own, with requests of one key at a time.

    The oldest request decides the key. It waits ``wait_s`` at most for others; none while as many
    as ``max_batch`` are there, and whoever came while the networks worked has waited already.

    Args:
        predict: requests to results, in order; may ask now and then whether it was abandoned, and
            raise anything then. When it fails with several, each is tried alone, so that a bad
            one fails by itself.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[Request], Abandoned], Sequence[Result]],
        *,
        max_batch: int,
        wait_s: float,
    ) -> None:
        self._predict = predict
        self.max_batch = max_batch
        self._wait_s = wait_s
        self._waiting: list[_Job[Request, Result]] = []
        self._arrived = asyncio.Event()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="networks")

    def __len__(self) -> int:
        return len(self._waiting)

    async def submit(self, request: Request, key: Hashable) -> Result:
        """The result of a request; whoever stops waiting for it takes it out of the queue."""
        loop = asyncio.get_running_loop()
        job = _Job(request, key, loop.create_future(), time.monotonic())
        self._waiting.append(job)
        self._arrived.set()
        try:
            return await job.result
        finally:
            if job in self._waiting:
                self._waiting.remove(job)

    async def run(self) -> None:
        """Work until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next()
            results = await loop.run_in_executor(self.thread, self._each, batch)
            for job, result in zip(batch, results, strict=True):
                if job.result.done():  # nobody waits for it any more
                    continue
                if isinstance(result, Exception):
                    job.result.set_exception(result)
                else:
                    job.result.set_result(result)

    async def _next(self) -> list[_Job[Request, Result]]:
        """The oldest request and those that may go with it, taken out of the queue."""
        while True:
            if not self._waiting:
                await self._arrival(None)
                continue
            first = self._waiting[0]
            same = [job for job in self._waiting if job.key == first.key][: self.max_batch]
            left = first.arrived + self._wait_s - time.monotonic()
            if len(same) == self.max_batch or left <= 0:
                self._waiting = [job for job in self._waiting if job not in same]
                return same
            await self._arrival(left)

    async def _arrival(self, timeout_s: float | None) -> None:
        """Until another request comes, or for so long."""
        self._arrived.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._arrived.wait()
        except TimeoutError:
            return

    def _each(self, jobs: Sequence[_Job[Request, Result]]) -> list[Result | Exception]:
        def abandoned() -> bool:
            return all(job.result.done() for job in jobs)

        try:
            return list(self._predict([job.request for job in jobs], abandoned))
        except Exception as error:
            if len(jobs) == 1 or abandoned():
                return [error] * len(jobs)
            return [self._each([job])[0] for job in jobs]
