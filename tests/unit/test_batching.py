"""The queue before the networks: who goes together, who fails alone, who leaves."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from export.service.batching import Abandoned, Batcher


class Recorder:
    """Doubles numbers and remembers what came together; waits while ``go`` is not set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()
        self.threads: set[int] = set()
        self.abandoned: list[bool] = []

    def __call__(self, numbers: Sequence[int], abandoned: Abandoned) -> list[int]:
        self.batches.append(list(numbers))
        self.threads.add(threading.get_ident())
        assert self.go.wait(60)
        self.abandoned.append(abandoned())
        if any(n < 0 for n in numbers):
            raise ValueError("negative")
        return [2 * n for n in numbers]


@contextlib.asynccontextmanager
async def running(
    predict: Callable[[Sequence[int], Abandoned], Sequence[int]], **options: Any
) -> AsyncIterator[Batcher[int, int]]:
    batcher: Batcher[int, int] = Batcher(predict, **({"max_batch": 4, "wait_s": 0.0} | options))
    task = asyncio.create_task(batcher.run())
    yield batcher
    assert not task.done(), "the worker lives on"
    task.cancel()
    batcher.thread.shutdown()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


def test_those_who_come_within_the_wait_go_together() -> None:
    async def scenario() -> None:
        predict = Recorder()
        async with running(predict, wait_s=60.0, max_batch=3) as batcher:
            results = await asyncio.gather(*(batcher.submit(n, "a") for n in (1, 2, 3)))
            assert results == [2, 4, 6]  # a full batch does not wait
            assert predict.batches == [[1, 2, 3]]

    asyncio.run(scenario())


def test_a_lone_request_waits_no_longer_than_it_must() -> None:
    async def scenario() -> None:
        predict = Recorder()
        async with running(predict, wait_s=0.02) as batcher, asyncio.timeout(60):
            assert await batcher.submit(1, "a") == 2

    asyncio.run(scenario())


def test_who_comes_while_the_networks_work_goes_next_in_order_of_keys() -> None:
    async def scenario() -> None:
        predict = Recorder()
        async with running(predict, max_batch=2) as batcher:
            predict.go.clear()
            first = asyncio.create_task(batcher.submit(1, "a"))
            await until(lambda: predict.batches == [[1]])
            keyed = [(2, "b"), (3, "a"), (4, "b"), (5, "b"), (6, "a")]
            others = [asyncio.create_task(batcher.submit(n, key)) for n, key in keyed]
            await until(lambda: len(batcher) == 5)
            predict.go.set()
            assert await asyncio.gather(first, *others) == [2, 4, 6, 8, 10, 12]
            assert predict.batches == [[1], [2, 4], [3, 6], [5]]
            assert len(batcher) == 0
            assert len(predict.threads) == 1

    asyncio.run(scenario())


def test_a_bad_request_fails_alone() -> None:
    async def scenario() -> None:
        predict = Recorder()
        async with running(predict, wait_s=60.0, max_batch=3) as batcher:
            work = (batcher.submit(n, "a") for n in (1, -1, 3))
            good, bad, other = await asyncio.gather(*work, return_exceptions=True)
            assert (good, other) == (2, 6)
            assert isinstance(bad, ValueError)
            assert predict.batches == [[1, -1, 3], [1], [-1], [3]]
            assert await asyncio.gather(*(batcher.submit(n, "a") for n in (4, 5, 6))) == [8, 10, 12]

    asyncio.run(scenario())


def test_who_leaves_the_queue_is_never_computed() -> None:
    async def scenario() -> None:
        predict = Recorder()
        async with running(predict) as batcher:
            predict.go.clear()
            first = asyncio.create_task(batcher.submit(1, "a"))
            await until(lambda: predict.batches == [[1]])
            second, third = (asyncio.create_task(batcher.submit(n, "a")) for n in (2, 3))
            await until(lambda: len(batcher) == 2)
            second.cancel()
            first.cancel()  # too late for it: the networks have it already
            await until(lambda: len(batcher) == 1)
            predict.go.set()
            assert await third == 6
            with pytest.raises(asyncio.CancelledError):
                await first
            assert predict.batches == [[1], [3]]
            assert predict.abandoned == [True, False]

    asyncio.run(scenario())
