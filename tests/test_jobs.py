"""What a child decides by itself."""

import contextlib
import dataclasses
import types

import keras
import numpy as np
import pytest

from frostline import backbones, device, features, models, plan, prefix, records, search, studies
from frostline.errors import UserError
from frostline.jobs import after, before, group, store
from frostline.plan import Options

SHAPES = {"tiny.output": {"images": {"train": 1000}}}


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
    assert before._not_worth_xla(costs, run, {"shapes": SHAPES}, count) == told


def test_xla_is_always_tried_where_it_is_asked_for_and_on_a_gpu(run, monkeypatch):
    assert before._not_worth_xla(off(0.002), run, {"shapes": SHAPES}, None) == ""
    monkeypatch.setattr(device, "kind", lambda: "gpu")
    assert before._not_worth_xla(off(0.002), run, {"shapes": SHAPES}, 3) == ""


def cost(seconds, pass_seconds=None, boundary=()):
    """What was measured of a stage."""
    return [{"seconds": seconds, "pass_seconds": pass_seconds, "boundary": list(boundary)}]


def test_a_precision_is_tried_no_further_when_its_pass_alone_is_dearer_than_another_in_all(run):
    found = {
        ("float32", "off", 0): cost(9.0),
        ("float32", "off", 1): cost(10.0, 8.0, ["pool"]),
        ("mixed_float16", "off", 0): cost(40.0, 20.0, ["pool"]),
    }
    assert before._hopeless(found, "mixed_float16", [run, run]) == ""  # its own total is not known yet
    found["mixed_float16", "off", 1] = cost(41.0, 20.0, ["pool"])
    assert before._hopeless(found, "mixed_float16", [run, run]).startswith("its pass alone takes longer")
    assert before._hopeless(found, "float32", [run, run]) == ""
    asked = dataclasses.replace(run, freeze=dataclasses.replace(run.freeze, precision=("mixed_float16",)))
    assert before._hopeless(found, "mixed_float16", [run, asked]) == ""


def test_the_effort_is_that_of_all_runs_and_of_all_cells(run, monkeypatch):
    """Two runs of 100 epochs of 10 images, and 10 more: 0.02 s forward; a cell costs three times the look of 1 s."""
    clock = iter([0.0, 1.0])
    monkeypatch.setattr(before.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(before.prefix, "forward_seconds", lambda model, count: 0.02)
    images = {"train": 10, "validation": 0, "test": 5}
    look = (7, run, run.freeze.stages[0], images)
    found = before._effort([look], [{"size": 32, "classes": 2}], {"cells": 4, "counts": [2]})
    assert found == {"training_seconds": pytest.approx(2 * (1000 + 5) * 0.06), "timing_seconds": 12.0}


def test_what_xla_slows_in_one_precision_is_not_tried_with_it_in_another(run, monkeypatch):
    found = {("float32", "off", 0): cost(1.0) + cost(1.0), ("float32", "on", 0): cost(2.0) + cost(3.0)}
    slower = before._slowed_by_xla(found, 0)
    assert slower == "XLA makes it 2.5 times slower in float32"
    assert before._slowed_by_xla(found, 1) == ""
    assert before._slowed_by_xla({**found, ("float32", "off", 0): cost(3.0)}, 0) == ""
    assert before._slowed_by_xla({("float32", "on", 0): cost(3.0)}, 0) == ""
    for costs in (off(0.020), off(0.020, "plain"), []):
        assert before._not_worth_xla(costs, run, {"shapes": SHAPES}, 3, slower) == slower
    assert before._not_worth_xla(off(0.020), run, {"shapes": SHAPES}, None, slower) == ""
    monkeypatch.setattr(device, "kind", lambda: "gpu")
    assert before._not_worth_xla(off(0.020), run, {"shapes": SHAPES}, 3, slower) == ""


def test_a_configuration_that_xla_slows_is_timed_with_it_once(tiny_study, monkeypatch):
    study = plan.resolve(studies.parse(tiny_study, "tiny"), Options(only=("output",)))
    (chosen,) = plan.runs(study, Options(only=("output",)), lambda data: "data", lambda path: "digest")
    tried, told = [], []

    def time_one(run, xla, job, known, emit):
        tried.append(xla)
        return cost(9.0 if xla == "on" else 1.0)

    monkeypatch.setattr(before, "_time", time_one)
    monkeypatch.setattr(before, "_not_worth_xla", lambda off, run, job, count, slower: slower)
    todo = [(precision, xla, 0) for xla in ("off", "on") for precision in ("float32", "mixed_bfloat16")]
    job = {"runs": [plan.plain(chosen)], "todo": todo, "measured": [], "shapes": SHAPES, "counts": [1]}
    try:
        before.steps(job, lambda event, **facts: told.append(facts))
    finally:
        device.configure("float32")
    assert tried == ["off", "off", "on"]
    assert told == [{"skipped": "XLA makes it 9.0 times slower in float32"}]


def test_a_momentum_that_a_searched_optimizer_does_not_take_is_told_before_training(tiny_study):
    text = tiny_study.replace("epochs = 1", 'epochs = 1\noptimizer = "sgd"\nmomentum = 0.9')
    options = plan.Options(only=("output",))
    for choices, refused in (('"sgd", "rmsprop"', False), ('"sgd", "adam"', True)):
        space = f"""[search]\nfreeze = "output"\nsampler = "tpe"\ntrials = 1\noptimizer = [{choices}]\nseed = {{}}"""
        drawn = (
            search.expand(plan.resolve(studies.parse(text + space.format(n), "tiny"), options), {}) for n in range(9)
        )
        chosen = next(s for s in drawn if dict(s.freeze[-1].drawn.values) == {"optimizer": "sgd"})
        (run,) = [r for r in plan.runs(chosen, options, lambda x: "f", lambda x: "w") if r.trial]
        with pytest.raises(UserError, match="adam takes no momentum") if refused else contextlib.nullcontext():
            before._check_optimizers(run)


def test_a_frontier_that_leaves_out_dropout_is_told_by_the_record_and_needs_features(tiny_study, tmp_path):
    text = tiny_study.replace("[train]", '[train]\nfrontier = "inference_prefix"')
    (chosen,) = outputs(text, 0)
    group.run_here(job_of([chosen], "cached", tmp_path), silent)
    (record,) = records.read(tmp_path)
    assert (record["outcome"], record["frontier"]) == ("ok", "inference_prefix"), record["reason"]
    assert record["stages"][0]["frontier"] == ["dropout_2"] and records.marks(record) == " ‡"
    plainly = dataclasses.replace(chosen, freeze=dataclasses.replace(chosen.freeze, engine=("plain",)))
    with pytest.raises(UserError, match='frontier = "inference_prefix" needs features; give engine = "auto"'):
        before._look(None, plainly, chosen.freeze.stages[0], {})


def outputs(tiny_study, *seeds):
    """Runs of a study that trains the output layer alone, on 40 images."""
    options = plan.Options(limit=40, only=("output",), seeds=seeds)
    study = plan.resolve(studies.parse(tiny_study, "tiny"), options)
    return plan.runs(study, options, lambda data: "data", lambda path: "digest")


def job_of(chosen, engine, results):
    """What a child is told that trains runs by an engine."""
    setting = {"xla": "off", "engines": [{"name": engine, "most_bytes": None}], "estimate": None}
    job = {"runs": [plan.plain(run) for run in chosen], "settings": [setting] * len(chosen), "results": str(results)}
    job |= {"precision": "float32", "data_dir": None, "features_memory": None, "computed": [], "since": 0.0}
    return {**job, "process_start_seconds": 0.0}


def silent(event, **facts):
    pass


def test_on_a_part_of_the_images_both_engines_train_alike(tiny_study, tmp_path):
    chosen = outputs(tiny_study.replace("classes = [5, 6]", "classes = [5, 6]\ntrain_images = [12]"), 0)
    trained = {}
    for engine in ("plain", "cached"):
        group.run_here(job_of(chosen, engine, tmp_path / engine), silent)
        (record,) = records.read(tmp_path / engine)
        assert (record["outcome"], record["engine"], record["train_images"]) == ("ok", engine, 12), record["reason"]
        network = models.build(chosen[0].backbone, chosen[0].freeze.head, chosen[0].data.scaling, 32, 2)
        models.load_weights(network, records.weights_file(tmp_path / engine, record["run"]), head=True, skip=set())
        trained[engine] = [weight.numpy() for weight in network.model.get_layer("output").weights]
    for a, b in zip(*trained.values(), strict=True):
        assert np.allclose(a, b, rtol=0, atol=1e-6)


def test_no_features_are_computed_twice_where_there_is_no_room_for_those_of_all_seeds(
    tiny_study, tmp_path, monkeypatch
):
    chosen, computed, run = outputs(tiny_study, 0, 1, 2), [], prefix._run
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prefix, "_run", lambda needs, *rest: computed.extend(n.key for n in needs) or run(needs, *rest))
    store.compute_all(job_of(chosen[:1], "cached", tmp_path), silent)
    (entry,) = features.entries()
    monkeypatch.setenv("FROSTLINE_FEATURES_LIMIT", str(2.5 * entry.nbytes / 2**30))
    job = job_of(chosen, "cached", tmp_path)
    assert len(store.compute_all(job, silent)) == 1  # the second; a third would take the place of the first
    group.run_here(job, silent)
    assert [record["outcome"] for record in records.read(tmp_path)] == ["ok"] * 3
    assert len(computed) == len(set(computed)) == 3


def test_the_seconds_of_one_pass_count_once():
    taken = {"a": {"pass": "p", "seconds": 3.0}, "b": {"pass": "p", "seconds": 0.5}, "c": {"pass": "q", "seconds": 1.0}}
    assert group._pass_seconds(store.Used(facts=taken)) == 4.0


def test_a_layer_may_give_several_tensors(run):
    x = keras.Input((4, 8))
    attended, scores = keras.layers.MultiHeadAttention(2, 4)(x, x, return_attention_scores=True)
    model = keras.Model(x, keras.layers.Concatenate()([attended, keras.layers.Dense(2)(scores[:, 0])]))
    network, mask = types.SimpleNamespace(model=model), types.SimpleNamespace(trainable_params=0, total_params=0)
    # Of one image: 32 numbers go in, 32 attended and 2 x 16 scores, 8 of the dense layer, and 40 come out.
    assert before._estimated_memory(network, [mask], run) == 4 * 2 * 100 * (32 + (32 + 32) + 8 + 40)


def test_nothing_is_published_with_other_images_than_those_it_was_trained_on(run, tmp_path):
    job = {"results": str(tmp_path), "exports": str(tmp_path / "exports"), "data_dir": None}
    job["chosen"] = [{"record": {"config": plan.plain(run)}}]  # whose images have the fingerprint "data"
    with pytest.raises(
        UserError, match=r"images of digits are not those that tiny.output was trained on; give the --data"
    ):
        after.export(job, lambda event, **facts: None)
    assert not list(tmp_path.iterdir())


def test_layers_are_listed_without_the_weights(run, monkeypatch):
    monkeypatch.setattr(before, "check_weights", lambda *args: pytest.fail("no weights are needed"))
    data = types.SimpleNamespace(train=types.SimpleNamespace(images=np.zeros((1, 32, 32, 3))), class_names=["a", "b"])
    job = {"layers": True, "where": "tiny"}
    network, looked = before._checked(run, data, job, lambda event, **facts: None)
    assert network.model.output_shape == (None, 2) and looked[0][1]["layers"]


def test_what_a_stage_resets_is_checked_before_anything_trains(run):
    stages = tuple(dataclasses.replace(stage, reset=("head/outptu",)) for stage in run.freeze.stages)
    wrong = dataclasses.replace(run, freeze=dataclasses.replace(run.freeze, stages=stages))
    data = types.SimpleNamespace(train=types.SimpleNamespace(images=np.zeros((1, 32, 32, 3))), class_names=["a", "b"])
    with pytest.raises(UserError, match="rule 'head/outptu' matches nothing"):
        before._checked(wrong, data, {"layers": False, "where": "tiny"}, lambda event, **facts: None)


def test_published_weights_that_cannot_be_had_are_told_to_whoever_keeps_the_books(run, monkeypatch):
    def missing(*args):
        raise backbones.Unavailable("no weights here")

    monkeypatch.setattr(before, "check_weights", missing)
    data = types.SimpleNamespace(train=types.SimpleNamespace(images=np.zeros((1, 32, 32, 3))), class_names=["a", "b"])
    told = []
    with pytest.raises(UserError, match="no weights here"):
        before._checked(run, data, {"layers": False}, lambda event, **facts: told.append((event, facts)))
    assert told == [("unavailable", {"reason": "no weights here"})]
