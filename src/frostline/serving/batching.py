"""Requests that wait for each other and run as one batch, by TensorFlow Serving's parameters."""

import asyncio
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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


def parameters(proto: Any) -> Parameters:
    """Read a BatchingParameters proto; raises UserError where TensorFlow Serving would not load a model with it."""

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
    since: float = field(default_factory=time.monotonic)


@dataclass
class Queue:
    """Requests that may run together: for the same tensors of the same version. The last batch is still open."""

    limits: Parameters
    run: Run
    batches: deque[list[Task]] = field(default_factory=lambda: deque([[]]))


def _size(batch: Sequence[Task]) -> int:
    return sum(task.size for task in batch)


class Scheduler:
    """All queues of a server, and the few batches that run at once; lives in one event loop."""

    def __init__(self, threads: int) -> None:
        self._free = threads
        self._queues: dict[Any, Queue] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, key: Any, limits: Parameters, run: Run, feeds: Feeds) -> list[np.ndarray]:
        """Run together with others of the same key; raises Refused where the queue is full or the request too large."""
        queue = self._queues.get(key) or Queue(limits, run)
        tasks, start = [], 0
        for part in _parts(queue, feeds):
            piece = {name: values[start : start + part] for name, values in feeds.items()}
            tasks.append(Task(piece, part, asyncio.get_running_loop().create_future()))
            start += part
            if queue.batches[-1] and _size(queue.batches[-1]) + part > limits.largest:
                queue.batches.append([])
            queue.batches[-1].append(tasks[-1])
        self._queues[key] = queue
        self._advance(key)
        found = await asyncio.gather(*(task.answer for task in tasks))
        return [_concatenate(pieces) for pieces in zip(*found, strict=True)]

    def _advance(self, key: Any) -> None:
        """Begin what is full, or has waited for long enough, while a place is free."""
        while self._free and (queue := self._queues.get(key)):
            wait = queue.batches[0][0].since + queue.limits.timeout_seconds - time.monotonic()
            full = len(queue.batches) > 1 or _size(queue.batches[0]) >= queue.limits.largest
            if wait > 0 and not full:
                asyncio.get_running_loop().call_later(wait, self._advance, key)
                return
            batch = queue.batches.popleft()
            if not queue.batches:
                del self._queues[key]  # a version that is unloaded leaves nothing behind
            self._free -= 1
            work = asyncio.get_running_loop().create_task(self._process(queue, batch))
            self._running.add(work)
            work.add_done_callback(self._running.discard)

    async def _process(self, queue: Queue, batch: list[Task]) -> None:
        batch = [task for task in batch if not task.answer.done()]  # whose callers have not gone
        try:
            if batch:
                feeds, size = _merge(queue.limits, batch)
                _share(batch, await queue.run(feeds), size)
        except Exception as error:
            for task in batch:
                if not task.answer.done():
                    task.answer.set_exception(error)
        finally:
            self._free += 1
            for key in [*self._queues]:
                self._advance(key)


def _parts(queue: Queue, feeds: Feeds) -> list[int]:
    """How the rows of a request are spread over batches; raises Refused where they cannot be."""
    if not all(values.ndim for values in feeds.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = {len(values) for values in feeds.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    size, limits, waiting = sizes.pop(), queue.limits, len(queue.batches)
    if size > limits.max_batch_size:
        raise invalid(f"Task size {size} is larger than maximum input batch size {limits.max_batch_size}")
    room = limits.largest - _size(queue.batches[-1])
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


def _merge(limits: Parameters, batch: Sequence[Task]) -> tuple[Feeds, int]:
    """The inputs of a batch as one, filled up to an allowed size with copies of the last request's first row."""
    size = _size(batch)
    padded = next((allowed for allowed in limits.allowed if allowed >= size), size)
    merged = {}
    for name in batch[0].feeds:
        arrays = [task.feeds[name] for task in batch]
        if len({values.shape[1:] for values in arrays}) > 1:
            about = f"Tensors with name '{name}' from different tasks have different shapes and padding is turned off."
            raise Refused("FAILED_PRECONDITION", about)
        merged[name] = _concatenate(arrays + [arrays[-1][:1]] * (padded - size))
    return merged, padded


def _share(batch: Sequence[Task], outputs: Sequence[np.ndarray], size: int) -> None:
    """Give each request its rows; raises Refused where the outputs have not one row for each."""
    if any(not output.ndim or len(output) != size for output in outputs):
        about = "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input"
        raise Refused("FAILED_PRECONDITION", f"{about} tensors")
    start = 0
    for task in batch:
        if not task.answer.done():
            task.answer.set_result([output[start : start + task.size] for output in outputs])
        start += task.size


def _concatenate(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
