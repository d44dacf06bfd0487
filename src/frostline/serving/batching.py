"""Requests that wait for each other and run as one batch, by TensorFlow Serving's parameters."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from frostline.errors import UserError
from frostline.serving.status import Refused, invalid

if TYPE_CHECKING:
    import numpy as np

Run = Callable[["dict[str, np.ndarray]"], Awaitable["list[np.ndarray]"]]
PADDING = (
    "Tensors with name '{}' from different tasks have different shapes and padding is turned off."
    "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name"
    "have equal dimensions starting with the first dim."
)


@dataclass(frozen=True)
class Parameters:
    """BatchingParameters with TensorFlow Serving's defaults; `largest` is what runs at once."""

    max_batch_size: int = 1000
    timeout_seconds: float = 0.0
    max_enqueued: int = 10
    threads: int = os.cpu_count() or 1
    allowed: tuple[int, ...] = ()
    pad: bool = False
    split: bool = False
    largest: int = 1000


def parameters(proto: Any) -> Parameters:
    """Read a BatchingParameters proto; raises UserError where TensorFlow Serving would not load a model with it."""

    def given(name: str, default: int) -> int:
        return getattr(proto, name).value if proto.HasField(name) else default

    size, allowed = given("max_batch_size", 1000), tuple(proto.allowed_batch_sizes)
    split = proto.enable_large_batch_splitting.value
    largest = given("max_execution_batch_size", size) if split else size
    if split and not 0 < largest <= size:
        raise UserError(f"max_execution_batch_size {largest} must be positive and at most max_batch_size {size}")
    if list(allowed) != sorted(set(allowed)) or (allowed and allowed[0] < 1):
        raise UserError("allowed_batch_sizes must be positive and strictly increasing")
    if allowed and allowed[-1] != largest:
        limit = "max_execution_batch_size" if split else "max_batch_size"
        raise UserError(f"the last of allowed_batch_sizes, {allowed[-1]}, must equal {limit}, {largest}")
    return Parameters(
        size,
        given("batch_timeout_micros", 0) / 1e6,
        given("max_enqueued_batches", 10),
        given("num_batch_threads", os.cpu_count() or 1),
        allowed,
        proto.pad_variable_length_inputs,
        split,
        largest,
    )


@dataclass
class Task:
    """One request, or a part of a large one."""

    feeds: dict[str, np.ndarray]
    size: int
    answer: asyncio.Future[list[np.ndarray]]
    since: float


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

    def __init__(self, threads: int, on_batch: Callable[[int], None] = lambda size: None) -> None:
        self._free = threads
        self._queues: dict[Any, Queue] = {}
        self._on_batch = on_batch
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, key: Any, limits: Parameters, run: Run, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run together with others of the same key; raises Refused where the queue is full or the request too large."""
        queue = self._queues.setdefault(key, Queue(limits, run))
        size = _batch_size(feeds)
        if size > limits.max_batch_size:
            raise invalid(f"Task size {size} is larger than maximum input batch size {limits.max_batch_size}")
        parts = _parts(queue, size)
        loop = asyncio.get_running_loop()
        now, answers, start = time.monotonic(), [], 0
        for part in parts:
            piece = feeds if part == size else {n: array[start : start + part] for n, array in feeds.items()}
            start += part
            if queue.batches[-1] and _size(queue.batches[-1]) + part > limits.largest:
                queue.batches.append([])
            task = Task(piece, part, loop.create_future(), now)
            queue.batches[-1].append(task)
            answers.append(task.answer)
        self._advance(key)
        found = await asyncio.gather(*answers)
        return found[0] if len(found) == 1 else [_concatenate(list(pieces)) for pieces in zip(*found, strict=True)]

    def _advance(self, key: Any) -> None:
        """Begin what is full, or has waited for long enough, while a place is free."""
        queue = self._queues.get(key)
        while queue and self._free and queue.batches[0]:
            wait = queue.batches[0][0].since + queue.limits.timeout_seconds - time.monotonic()
            full = len(queue.batches) > 1 or _size(queue.batches[0]) >= queue.limits.largest
            if wait > 0 and not full:
                asyncio.get_running_loop().call_later(wait, self._advance, key)
                return
            batch = queue.batches.popleft()
            if not queue.batches:
                queue.batches.append([])
            self._free -= 1
            work = asyncio.get_running_loop().create_task(self._process(queue, batch))
            self._running.add(work)
            work.add_done_callback(self._running.discard)

    async def _process(self, queue: Queue, batch: list[Task]) -> None:
        batch = [task for task in batch if not task.answer.done()]  # whose callers have not gone
        try:
            if batch:
                feeds = _merge(queue.limits, batch)
                outputs = await queue.run(feeds)
                self._on_batch(len(next(iter(feeds.values()))))
                _share(batch, outputs, len(next(iter(feeds.values()))))
        except Exception as error:
            for task in batch:
                if not task.answer.done():
                    task.answer.set_exception(error)
        finally:
            self._free += 1
            for key in [*self._queues]:
                self._advance(key)

    def forget(self, belongs: Callable[[Any], bool]) -> None:
        """Drop the queues of a version that is unloaded; nobody waits in them."""
        self._queues = {key: queue for key, queue in self._queues.items() if not belongs(key)}


def _batch_size(feeds: Mapping[str, np.ndarray]) -> int:
    if any(not array.ndim for array in feeds.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = {len(array) for array in feeds.values()}
    if len(sizes) != 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop()


def _parts(queue: Queue, size: int) -> list[int]:
    """How a request of `size` rows is spread over batches; raises Refused where there is no room."""
    limits, waiting = queue.limits, len(queue.batches)
    room = limits.largest - _size(queue.batches[-1])
    if size <= room:
        return [size]
    if not limits.split:
        if waiting >= limits.max_enqueued:
            raise Refused("UNAVAILABLE", "The batch scheduling queue to which this task was submitted is full")
        return [size]
    capacity = (limits.max_enqueued - waiting) * limits.largest + room
    if size > capacity:
        raise Refused(
            "UNAVAILABLE",
            "The batch scheduling queue to which this task was submitted is full; "
            f"task size is {size} but scheduling capacity is only {capacity} (num_enqueued_batches={waiting}, "
            f"max_enqueued_batches={limits.max_enqueued}, open_batch_size={limits.largest - room}, "
            f"max_execution_batch_size={limits.largest})",
        )
    first = [room] if room else []
    whole, rest = divmod(size - room, limits.largest)
    return first + [limits.largest] * whole + ([rest] if rest else [])


def _merge(limits: Parameters, batch: Sequence[Task]) -> dict[str, np.ndarray]:
    """The inputs of a batch as one, filled up to an allowed size with copies of the last request's first row."""
    size = _size(batch)
    extra = next((allowed for allowed in limits.allowed if allowed >= size), size) - size
    merged = {}
    for name in batch[0].feeds:
        arrays = [task.feeds[name] for task in batch]
        if limits.pad:
            arrays = _pad(arrays)
        elif len({array.shape[1:] for array in arrays}) > 1:
            raise Refused("FAILED_PRECONDITION", PADDING.format(name))
        merged[name] = _concatenate(arrays + [arrays[-1][:1]] * extra)
    return merged


def _pad(arrays: list[np.ndarray]) -> list[np.ndarray]:
    import numpy as np

    if len({array.ndim for array in arrays}) > 1:
        raise invalid("Padding tensors of different ranks is not possible")
    shape = np.max([array.shape[1:] for array in arrays], axis=0).astype(int)
    value = b"" if arrays[0].dtype == object else 0
    return [
        np.pad(array, [(0, 0), *((0, int(most - n)) for most, n in zip(shape, array.shape[1:], strict=True))],
               constant_values=value)
        for array in arrays
    ]  # fmt: skip


def _share(batch: Sequence[Task], outputs: Sequence[np.ndarray], size: int) -> None:
    for output in outputs:
        if not output.ndim:
            raise Refused("FAILED_PRECONDITION", "Batched output tensor has 0 dimensions")
        if len(output) != size:
            raise Refused(
                "FAILED_PRECONDITION",
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
                "tensors",
            )
    start = 0
    for task in batch:
        if not task.answer.done():
            task.answer.set_result([output[start : start + task.size] for output in outputs])
        start += task.size


def _concatenate(arrays: list[np.ndarray]) -> np.ndarray:
    import numpy as np

    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
