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
