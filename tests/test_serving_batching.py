"""Requests that run as one batch, by TensorFlow Serving's parameters."""

import asyncio

import numpy as np
import pytest

from frostline import protos
from frostline.errors import UserError
from frostline.serving import batching
from frostline.serving.batching import Parameters, Scheduler
from frostline.serving.status import Refused


def parameters(text):
    return batching.parameters(protos.parse(text, protos.BatchingParameters, "batching.config"))


class Model:
    """Doubles its input when it is let; remembers the batches."""

    def __init__(self):
        self.batches = []
        self.go = asyncio.Event()

    async def run(self, feeds):
        self.batches.append(feeds["x"])
        await self.go.wait()
        return [feeds["x"] * 2]


def rows(*values):
    return {"x": np.array(values, np.float32)}


async def submit_all(scheduler, model, limits, requests):
    """Tasks of requests that are in the queue, or running, when this returns."""
    tasks = [asyncio.ensure_future(scheduler.submit("key", limits, model.run, feeds)) for feeds in requests]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


def test_what_waits_while_a_batch_runs_becomes_the_next_one():
    async def scene():
        model, scheduler = Model(), Scheduler(1)
        tasks = await submit_all(scheduler, model, Parameters(max_batch_size=4, largest=4), [rows(i) for i in range(6)])
        assert [list(batch) for batch in model.batches] == [[0]]
        model.go.set()
        found = await asyncio.gather(*tasks)
        assert [list(batch) for batch in model.batches] == [[0], [1, 2, 3, 4], [5]]
        assert [float(answer[0][0]) for answer in found] == [0, 2, 4, 6, 8, 10]
        assert scheduler._queues == {}

    asyncio.run(scene())


def test_a_batch_waits_for_the_timeout_or_until_it_is_full():
    async def scene():
        model, scheduler = Model(), Scheduler(2)
        model.go.set()
        limits = Parameters(max_batch_size=2, largest=2, timeout_seconds=3600)
        [waiting] = await submit_all(scheduler, model, limits, [rows(1)])
        assert model.batches == [] and not waiting.done()
        await submit_all(scheduler, model, limits, [rows(2)])
        assert [list(batch) for batch in model.batches] == [[1, 2]]
        assert (await waiting)[0].tolist() == [2]
        brief = Parameters(max_batch_size=2, largest=2, timeout_seconds=0.01)
        assert (await scheduler.submit("other", brief, model.run, rows(3)))[0].tolist() == [6]

    asyncio.run(scene())


def test_the_next_batch_begins_before_the_last_ones_answers_are_written():
    async def scene():
        scheduler, order = Scheduler(1), []

        async def run(feeds):
            order.append(("run", feeds["x"].tolist()))
            return [feeds["x"]]

        async def client(value):
            await scheduler.submit("key", Parameters(max_batch_size=1, largest=1), run, rows(value))
            order.append(("answered", value))

        await asyncio.gather(client(0), client(1))
        assert order == [("run", [0]), ("run", [1]), ("answered", 0), ("answered", 1)]

    asyncio.run(scene())


def test_what_waited_for_its_time_runs_as_soon_as_a_thread_is_free():
    async def scene():
        model, scheduler = Model(), Scheduler(1)
        limits = Parameters(max_batch_size=4, largest=4, timeout_seconds=0.001)
        tasks = [asyncio.ensure_future(scheduler.submit("key", limits, model.run, rows(1)))]
        while not model.batches:
            await asyncio.sleep(0)
        tasks += await submit_all(scheduler, model, limits, [rows(2), rows(3)])
        while not scheduler._queues["key"].batches[0].ripe:
            await asyncio.sleep(0)
        model.go.set()
        assert [answer[0].tolist() for answer in await asyncio.gather(*tasks)] == [[2], [4], [6]]
        assert [batch.tolist() for batch in model.batches] == [[1], [2, 3]]

    asyncio.run(scene())


def test_models_take_turns():
    async def scene():
        scheduler, order = Scheduler(1), []

        async def client(key, value):
            async def run(feeds):
                order.append(key)
                return [feeds["x"]]

            await scheduler.submit(key, Parameters(max_batch_size=1, largest=1), run, rows(value))

        await asyncio.gather(*(client(key, value) for value, key in enumerate("aaaaabb")))
        assert order == [*"aababaa"]

    asyncio.run(scene())


def test_a_batch_is_filled_to_an_allowed_size_with_the_last_request():
    async def scene():
        model, scheduler = Model(), Scheduler(1)
        model.go.set()
        limits = Parameters(max_batch_size=4, largest=4, allowed=(1, 4))
        assert (await scheduler.submit("key", limits, model.run, rows(1, 2, 3)))[0].tolist() == [2, 4, 6]
        assert model.batches[0].tolist() == [1, 2, 3, 1]

    asyncio.run(scene())


def test_a_full_queue_and_a_large_request_are_refused():
    async def scene():
        model, scheduler = Model(), Scheduler(1)
        limits = Parameters(max_batch_size=2, largest=2, max_enqueued=2)
        tasks = await submit_all(scheduler, model, limits, [rows(0), rows(1, 1), rows(2, 2), rows(3)])
        with pytest.raises(Refused, match="UNAVAILABLE: The batch scheduling queue to which this"):
            await tasks[-1]
        with pytest.raises(Refused, match="Task size 3 is larger than maximum input batch size 2"):
            await scheduler.submit("key", limits, model.run, rows(1, 2, 3))
        model.go.set()
        assert [len(answer[0]) for answer in await asyncio.gather(*tasks[:-1])] == [1, 2, 2]

    asyncio.run(scene())


def test_large_requests_are_split_where_that_is_asked_for():
    async def scene():
        model, scheduler = Model(), Scheduler(1)
        limits = Parameters(max_batch_size=9, largest=2, split=True, max_enqueued=3)
        tasks = await submit_all(scheduler, model, limits, [rows(0), rows(1), rows(2, 3, 4, 5)])
        with pytest.raises(Refused, match="task size is 5 but scheduling capacity is only 1"):
            await scheduler.submit("key", limits, model.run, rows(1, 2, 3, 4, 5))
        model.go.set()
        assert (await tasks[2])[0].tolist() == [4, 6, 8, 10]
        assert [list(batch) for batch in model.batches] == [[0], [1, 2], [3, 4], [5]]

    asyncio.run(scene())


def test_shapes_that_differ_are_refused():
    async def scene():
        model, scheduler = Model(), Scheduler(1)
        requests = [{"x": np.ones((1, n), np.float32)} for n in (1, 2, 3)]
        tasks = await submit_all(scheduler, model, Parameters(), requests)
        model.go.set()
        assert (await tasks[0])[0].tolist() == [[2]]
        for task in tasks[1:]:
            with pytest.raises(Refused, match="FAILED_PRECONDITION: Tensors with name 'x' from different tasks"):
                await task

    asyncio.run(scene())


def test_outputs_without_a_row_for_each_input_are_refused():
    async def constant(feeds):
        return [np.array(["cat", "dog"])]

    async def scene():
        with pytest.raises(Refused, match="0th dimension does not equal the sum"):
            await Scheduler(1).submit("key", Parameters(), constant, rows(1))
        with pytest.raises(Refused, match="must have at least one dimension"):
            await Scheduler(1).submit("key", Parameters(), constant, {"x": np.float32(1)})
        with pytest.raises(Refused, match="must have equal 0th-dimension size"):
            await Scheduler(1).submit("key", Parameters(), constant, {**rows(1), "y": np.ones(2)})

    asyncio.run(scene())


def test_a_caller_who_has_gone_is_not_run():
    async def scene():
        model, scheduler = Model(), Scheduler(1)
        tasks = await submit_all(scheduler, model, Parameters(), [rows(0), rows(1), rows(2)])
        tasks[1].cancel()
        model.go.set()
        assert (await tasks[2])[0].tolist() == [4]
        assert [list(batch) for batch in model.batches] == [[0], [2]]

    asyncio.run(scene())


def test_parameters_have_the_defaults_of_the_real_server():
    assert parameters("") == Parameters()
    found = parameters("max_batch_size { value: 8 } batch_timeout_micros { value: 2000 } allowed_batch_sizes: [2, 8]")
    assert (found.max_batch_size, found.largest, found.timeout_seconds, found.allowed) == (8, 8, 0.002, (2, 8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size { value: 8 } allowed_batch_sizes: [2, 4]", "must increase strictly and end with the largest"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: [8, 4, 8]", "must increase strictly"),
        ("num_batch_threads { value: 0 }", "num_batch_threads 0 must be positive"),
        ("max_enqueued_batches { value: 0 }", "max_enqueued_batches 0 must be positive"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros -1 must not be negative"),
        ("pad_variable_length_inputs: true", "the embedded server does not have it"),
        (
            "max_execution_batch_size { value: 2000 } enable_large_batch_splitting { value: true }",
            "at most max_batch_size",
        ),
    ],
)
def test_parameters_that_no_model_loads_with_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        parameters(text)
