"""What a child decides by itself."""

import dataclasses

import pytest

from frostline import device, jobs, plan, studies
from frostline.plan import Options

SHAPES = {"output ": {"images": {"train": 1000}}}


@pytest.fixture
def run(tiny_study):
    """A run of 100 epochs of 10 steps that leaves XLA open."""
    study = plan.resolve(studies.parse(tiny_study, "tiny"), Options())
    run = plan.runs(study, Options(), lambda data: "data", lambda path: "digest")[0]
    stages = tuple(dataclasses.replace(stage, epochs=100, batch_size=100) for stage in run.freeze.stages)
    return dataclasses.replace(run, freeze=dataclasses.replace(run.freeze, stages=stages))


def off(step_seconds, engine="cached"):
    """What was measured without XLA."""
    return [{"engine": engine, "step_seconds": step_seconds}]


@pytest.mark.parametrize(
    ("costs", "count", "told"),
    [
        (off(0.002), 3, "all its steps take 6 s without it"),
        (off(0.002), 10, ""),
        (off(0.020), 1, ""),
        (off(0.002, "plain"), 3, ""),
        ([], 3, ""),
    ],
    ids=["little to save", "many runs", "long steps", "plain engine", "nothing measured"],
)
def test_xla_is_tried_where_it_can_save_more_than_trying_takes(run, costs, count, told):
    assert jobs._not_worth_xla(costs, run, {"shapes": SHAPES}, count) == told


def test_xla_is_always_tried_where_it_is_asked_for_and_on_a_gpu(run, monkeypatch):
    assert jobs._not_worth_xla(off(0.002), run, {"shapes": SHAPES}, None) == ""
    monkeypatch.setattr(device, "kind", lambda: "gpu")
    assert jobs._not_worth_xla(off(0.002), run, {"shapes": SHAPES}, 3) == ""


def test_what_xla_slows_in_one_precision_is_not_tried_with_it_in_another(run, monkeypatch):
    slower = jobs._slowed_by_xla([{"seconds": 1.0}, {"seconds": 1.0}], [{"seconds": 2.0}, {"seconds": 3.0}], "float32")
    assert slower == "XLA makes it 2.5 times slower in float32"
    assert jobs._slowed_by_xla([{"seconds": 2.0}], [{"seconds": 3.0}], "float32") == ""
    assert jobs._slowed_by_xla([], [{"seconds": 3.0}], "float32") == ""
    for costs in (off(0.020), off(0.020, "plain"), []):
        assert jobs._not_worth_xla(costs, run, {"shapes": SHAPES}, 3, slower) == slower
    assert jobs._not_worth_xla(off(0.020), run, {"shapes": SHAPES}, None, slower) == ""
    monkeypatch.setattr(device, "kind", lambda: "gpu")
    assert jobs._not_worth_xla(off(0.020), run, {"shapes": SHAPES}, 3, slower) == ""


def test_a_configuration_that_xla_slows_is_timed_with_it_once(tiny_study, monkeypatch):
    study = plan.resolve(studies.parse(tiny_study, "tiny"), Options(only=("output",)))
    (chosen,) = plan.runs(study, Options(only=("output",)), lambda data: "data", lambda path: "digest")
    tried, told = [], []

    def time_one(run, xla, job, known, emit):
        tried.append(xla)
        return [{"engine": "plain", "seconds": 9.0 if xla == "on" else 1.0, "pass_seconds": None, "boundary": []}]

    monkeypatch.setattr(jobs, "_time", time_one)
    candidates = [(precision, xla) for xla in ("off", "on") for precision in ("float32", "mixed_bfloat16")]
    job = {"runs": [plan.plain(chosen)], "candidates": candidates, "shapes": SHAPES, "counts": [1]}
    try:
        jobs.steps(job, lambda event, **facts: told.append(facts))
    finally:
        device.configure("float32")
    assert tried == ["off", "off", "on"]
    assert told == [{"skipped": "XLA makes it 9.0 times slower in float32"}]
