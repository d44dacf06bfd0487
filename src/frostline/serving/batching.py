"""Requests that wait for each other and run as one batch, by TensorFlow Serving's parameters."""

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from frostline import protos
from frostline.errors import UserError
from frostline.serving.status import Refused, invalid

Feeds = dict[str, np.ndarray]
Run = Callable[[Feeds], Awaitable[list[np.ndarray]]]
FULL = "The batch scheduling queue to which this task was submitted is full"


@dataclass(frozen=True)
class Parameters:
    """BatchingParameters with TensorFlow Serving's defaults; `largest` is what runs at once."""

    max_batch_size: int = 1000
    timeout_seconds: float = 0.0
    max_enqueued: int = 10
    threads: int = os.cpu_count() or 1
    allowed: tuple[int, ...] = ()
    split: bool = False
    largest: int = 1000


def read(path: Path) -> Parameters:
    """The parameters in a file; raises UserError."""
    return parameters(protos.read(path, protos.BatchingParameters))


def parameters(proto: Any) -> Parameters:
    """Those of a BatchingParameters proto; raises UserError where TensorFlow Serving would not load a model with it."""

    def given(name: str, default: int) -> int:
        return getattr(proto, name).value if proto.HasField(name) else default

    size, allowed, split = (
        given("max_batch_size", 1000),
        tuple(proto.allowed_batch_sizes),
        proto.enable_large_batch_splitting.value,
    )
    largest = given("max_execution_batch_size", size) if split else size
    if proto.pad_variable_length_inputs:
        raise UserError("pad_variable_length_inputs: the embedded server does not have it; images are of one size")
    if given("batch_timeout_micros", 0) < 0:
        raise UserError(f"batch_timeout_micros {given('batch_timeout_micros', 0)} must not be negative")
    for name in ("num_batch_threads", "max_enqueued_batches"):
        if given(name, 1) < 1:
            raise UserError(f"{name} {given(name, 1)} must be positive")
    if not 0 < largest <= size:
        raise UserError(f"max_execution_batch_size {largest} must be positive and at most max_batch_size {size}")
    if allowed and (list(allowed) != sorted({*allowed}) or allowed[-1] != largest):
        raise UserError(
            f"allowed_batch_sizes {list(allowed)} must increase strictly and end with the largest batch, {largest}"
        )
    timeout = given("batch_timeout_micros", 0) / 1e6
    threads = given("num_batch_threads", Parameters.threads)
    return Parameters(size, timeout, given("max_enqueued_batches", 10), threads, allowed, split, largest)


@dataclass
class Task:
    """One request, or a part of a large one."""

    feeds: Feeds
    size: int
    answer: asyncio.Future[list[np.ndarray]]


@dataclass
class Batch:
    """Tasks that will run at once; `ripe` when the first of them has waited for long enough."""

    tasks: list[Task] = field(default_factory=list)
    size: int = 0
    ripe: bool = False


@dataclass
class Queue:
    """Requests that may run together: for the same tensors of the same version. The last batch is still open."""

    limits: Parameters
    run: Run
    batches: deque[Batch] = field(default_factory=deque)


class Scheduler:
    """All queues of a server, and the few batches that run at once; lives in one event loop."""

    def __init__(self, threads: int) -> None:
        self._free = threads
        self._queues: dict[Any, Queue] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, key: Any, limits: Parameters, run: Run, feeds: Feeds) -> list[np.ndarray]:
        """Run together with others of the same key; raises Refused where the queue is full or the request too large."""
        queue, loop, start, tasks = self._queues.get(key) or Queue(limits, run), asyncio.get_running_loop(), 0, []
        for size in _parts(queue, feeds):
            part = {name: values[start : start + size] for name, values in feeds.items()}
            tasks.append(Task(part, size, loop.create_future()))
            start += size
            if not queue.batches or queue.batches[-1].size + size > limits.largest:
                batch = Batch(ripe=limits.timeout_seconds == 0)
                queue.batches.append(batch)
                if not batch.ripe:
                    loop.call_later(limits.timeout_seconds, self._ripen, key, batch)
            queue.batches[-1].tasks.append(tasks[-1])
            queue.batches[-1].size += size
        self._queues[key] = queue
        self._advance(key)
        if len(tasks) == 1:
            return await tasks[0].answer
        found = await asyncio.gather(*(task.answer for task in tasks))
        return [_concatenate(pieces) for pieces in zip(*found, strict=True)]

    def _ripen(self, key: Any, batch: Batch) -> None:
        batch.ripe = True
        self._advance(key)

    def _advance(self, key: Any) -> None:
        """Begin what is full, or has waited for long enough, while a place is free."""
        while self._free and (queue := self._queues.get(key)):
            first = queue.batches[0]
            if not first.ripe and len(queue.batches) == 1 and first.size < queue.limits.largest:
                return
            queue.batches.popleft()
            del self._queues[key]  # a version that is unloaded leaves nothing behind
            if queue.batches:
                self._queues[key] = queue  # behind the others, which get the next place
            self._free -= 1
            work = asyncio.get_running_loop().create_task(self._process(queue, first.tasks))
            self._running.add(work)
            work.add_done_callback(self._running.discard)

    async def _process(self, queue: Queue, tasks: list[Task]) -> None:
        tasks = [task for task in tasks if not task.answer.done()]  # whose callers have not gone
        found: list[list[np.ndarray]] | Exception
        try:
            found = await _together(queue, tasks) if tasks else []
        except Exception as error:
            found = error
        self._free += 1
        for key in [*self._queues]:  # first, so that the next batch runs while these answers are written
            self._advance(key)
        for i, task in enumerate(tasks):
            if task.answer.done():
                continue
            if isinstance(found, Exception):
                task.answer.set_exception(found)
            else:
                task.answer.set_result(found[i])


def check_size(size: int, limits: Parameters) -> None:
    """Refuse a request of more rows than there may be; raises Refused."""
    if size > limits.max_batch_size:
        raise invalid(f"Task size {size} is larger than maximum input batch size {limits.max_batch_size}")


def _parts(queue: Queue, feeds: Feeds) -> list[int]:
    """How the rows of a request are spread over batches; raises Refused where they cannot be."""
    if not all(values.ndim for values in feeds.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = {len(values) for values in feeds.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    size, limits, waiting = sizes.pop(), queue.limits, max(1, len(queue.batches))
    check_size(size, limits)
    room = limits.largest - (queue.batches[-1].size if queue.batches else 0)
    if size <= room:
        return [size]
    capacity = (limits.max_enqueued - waiting) * limits.largest + room * limits.split
    if size > capacity:
        more = f"; task size is {size} but scheduling capacity is only {capacity}" if limits.split else ""
        raise Refused("UNAVAILABLE", FULL + more)
    if not limits.split:
        return [size]
    whole, rest = divmod(size - room, limits.largest)
    return [part for part in (room, *[limits.largest] * whole, rest) if part]


async def _together(queue: Queue, tasks: Sequence[Task]) -> list[list[np.ndarray]]:
    """The rows of each task, of outputs for all of them and copies of the last one's first row up to an allowed size.

    Raises Refused where the inputs do not fit together, or the outputs have not one row for each.
    """
    ends = list(accumulate(task.size for task in tasks))
    size = next((allowed for allowed in queue.limits.allowed if allowed >= ends[-1]), ends[-1])
    feeds = {}
    for name in tasks[0].feeds:
        arrays = [task.feeds[name] for task in tasks]
        if len({values.shape[1:] for values in arrays}) > 1:
            about = f"Tensors with name '{name}' from different tasks have different shapes and padding is turned off."
            raise Refused("FAILED_PRECONDITION", about)
        feeds[name] = _concatenate(arrays + [arrays[-1][:1]] * (size - ends[-1]))
    outputs = await queue.run(feeds)
    if any(not output.ndim or len(output) != size for output in outputs):
        about = "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input"
        raise Refused("FAILED_PRECONDITION", f"{about} tensors")
    return [[output[end - task.size : end] for output in outputs] for task, end in zip(tasks, ends, strict=True)]


def _concatenate(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
