import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from frostline import (
    children,
    choice,
    datasets,
    exporting,
    harness,
    inference,
    machine,
    matrix,
    plan,
    records,
    runtimes,
    serving,
    studies,
)
from frostline.choice import Setting
from frostline.errors import UserError
from frostline.harness import Places, base, books, inferring, planning, publishing, settling, training
from frostline.harness.training import Member
from frostline.inference.rules import PROFILES
from frostline.inference.served import Served
from frostline.plan import Options
from frostline.runtimes import How

PLAIN = Setting("float32", "off", ())
FACTS = machine.facts()


@pytest.fixture
def places(tmp_path):
    return Places(tmp_path / "results", tmp_path / "exports")


@pytest.fixture
def planned(tiny_study):
    options = Options(precision=("float32",), xla=("off",))
    study = plan.resolve(studies.parse(tiny_study, "tiny"), options)
    return plan.runs(study, options, lambda data: "data", lambda path: "digest")


def finish(run, results, weights=True):
    records.append(results, {**plan.heading(run), "outcome": "ok", "validation_top1": 0.5, "time": "t"})
    file = records.weights_file(results, run.id)
    file.parent.mkdir(parents=True, exist_ok=True)
    if weights:
        file.write_bytes(b"weights")


def test_a_run_is_finished_when_its_record_and_its_weights_are_there(places, planned):
    one, two = planned
    places.results.mkdir()
    finish(one, places.results)
    finish(two, places.results, weights=False)
    assert books.finished(places.results) == {one.identity}


def test_a_failed_run_is_tried_again(places, planned):
    places.results.mkdir()
    finish(planned[0], places.results)
    records.append(places.results, {**plan.heading(planned[0]), "outcome": "failed", "reason": "x", "time": "u"})
    assert books.finished(places.results) == set()


def test_rows_whose_weights_cannot_be_had_are_shown_with_the_reason(places, tiny_study, monkeypatch):
    text = tiny_study.replace('weights = "none"', 'weights = "imagenet"')
    study = plan.resolve(studies.parse(f'{text}[[freeze]]\nname = "own"\nweights = "none"', "tiny"), Options())
    asked = plan.runs(study, Options(), lambda data: "data", lambda path: "digest")

    def spawn(job, places, log, on_event, *args, **kwargs):
        on_event({"event": "unavailable", "reason": "no weights here"})
        raise UserError("tiny: [[freeze]] 'output': no weights here")

    places.results.mkdir()
    monkeypatch.setattr(base, "spawn", spawn)
    for _ in range(2):  # the second time nothing new is to be told
        with pytest.raises(UserError, match="no weights here"):
            planning.preflight(asked, places)
    told = [(r["freeze"], r["outcome"], r["reason"]) for r in records.read(places.results)]
    assert told == [("output", "skipped", "no weights here"), ("all", "skipped", "no weights here")]
    assert books.finished(places.results) == set() and not books.all_ok(asked[:1], places.results)
    finish(asked[0], places.results)
    books.skip(asked, "another reason", places.results)
    assert [r["freeze"] for r in records.read(places.results)[2:]] == ["output", "all", "own"]


def test_a_child_that_dies_twice_is_a_failed_record_and_the_study_goes_on(places, planned, monkeypatch, capsys):
    attempts = []

    def spawn(job, places, log, on_event, *args, **kwargs):
        attempts.append(job["runs"][0]["id"])
        if job["runs"][0]["id"] == planned[0].id:
            raise children.Died("killed by the system")
        finish(planned[1], places.results)

    places.results.mkdir()
    monkeypatch.setattr(base, "spawn", spawn)
    training.train_all(planned, [PLAIN] * 2, places)
    assert attempts == [planned[0].id, planned[0].id, planned[1].id]
    newest = books.newest(places.results)
    assert newest[planned[0].identity]["outcome"] == "failed"
    assert newest[planned[0].identity]["reason"] == "killed by the system"
    assert not books.all_ok(planned, places.results) and books.all_ok(planned[1:], places.results)
    assert "trying once more" in capsys.readouterr().err


def test_a_run_whose_pretraining_failed_fails_with_that_reason(places, planned, monkeypatch):
    monkeypatch.setattr(base, "spawn", lambda *args, **kwargs: pytest.fail("nothing should start"))
    orphan = dataclasses.replace(planned[0], pretrain_run="tiny.pretrain.s0.abc")
    places.results.mkdir()
    training.train_all([orphan], [PLAIN], places)
    (record,) = records.read(places.results)
    assert record["reason"] == "its pre-training tiny.pretrain.s0.abc did not finish"


# -- groups --------------------------------------------------------------------------------------------


def stage(engine="plain", pass_seconds=1.0, boundary="pool"):
    """What was predicted of a stage."""
    told = {"engine": engine, "most_bytes": None, "seconds": 2.0, "step_seconds": 0.5}
    cached = engine == "cached"
    return told | {"pass_seconds": pass_seconds if cached else None, "boundary": [boundary] if cached else []}


def setting(*stages):
    return dataclasses.replace(PLAIN, stages=tuple(stages))


@pytest.fixture
def seeds(tiny_study):
    """`output` and `all` with seeds 0 and 1, `output` with features, `all` without."""
    options = Options(precision=("float32",), xla=("off",), seeds=(0, 1))
    study = plan.resolve(studies.parse(tiny_study, "tiny"), options)
    runs = plan.runs(study, options, lambda data: "data", lambda path: "digest")
    return [Member(run, setting(stage("cached" if run.freeze.name == "output" else "plain")), run.id) for run in runs]


def names(groups):
    return [[(member.run.freeze.name, member.run.seed) for member in group] for group in groups]


def test_cached_runs_share_a_child_and_plain_ones_are_alone_in_the_order_of_first_members(seeds):
    assert names(training.groups(seeds)) == [[("output", 0), ("output", 1)], [("all", 0)], [("all", 1)]]
    assert names(training.groups(seeds[1:])) == [[("all", 0)], [("output", 1)], [("all", 1)]]


def test_a_run_with_one_cached_stage_is_in_the_group(seeds):
    mixed = dataclasses.replace(seeds[1], setting=setting(stage("cached"), stage("plain")))
    assert names(training.groups([seeds[0], mixed])) == [[("output", 0), ("all", 0)]]


def test_another_precision_is_another_group(seeds):
    one, other = seeds[0], seeds[2]
    assert names(training.groups([one, other])) == [[("output", 0), ("output", 1)]]
    setting = dataclasses.replace(other.setting, precision="other")
    assert names(training.groups([one, dataclasses.replace(other, setting=setting)])) == [
        [("output", 0)],
        [("output", 1)],
    ]


def test_a_few_plain_runs_of_a_quick_try_share_a_child_but_its_pre_trainings(seeds, monkeypatch):
    quick = [dataclasses.replace(m, run=dataclasses.replace(m.run, limit=10)) for m in seeds]
    plain = [m for m in quick if m.run.freeze.name == "all"]
    freeze = dataclasses.replace(plain[0].run.freeze, name="pretrain")
    plain.insert(0, dataclasses.replace(plain[0], run=dataclasses.replace(plain[0].run, freeze=freeze)))
    cached = [m for m in quick if m.run.freeze.name == "output"]
    monkeypatch.setattr(training, "FEW", 1)
    each = [[(m.run.freeze.name, m.run.seed)] for m in plain]
    assert names(training.groups([*plain, *cached])) == [*each, [("output", m.run.seed) for m in cached]]
    monkeypatch.setattr(training, "FEW", 4)
    together = [("all", m.run.seed) for m in plain[1:]]
    assert names(training.groups([*plain, *cached])) == [each[0], together, [("output", m.run.seed) for m in cached]]


def test_runs_are_numbered_in_the_order_in_which_they_train(seeds, places, monkeypatch):
    labels = []
    monkeypatch.setattr(training, "_train", lambda group, *rest: (labels.extend(m.label for m in group) or [], ""))
    training.train_all([m.run for m in seeds], [m.setting for m in seeds], places, done=1)
    assert labels == ["[2/5] output seed 0", "[3/5] output seed 1", "[4/5] all seed 0", "[5/5] all seed 1"]


def test_pre_trainings_come_before_the_group_that_needs_them(seeds):
    freeze = dataclasses.replace(seeds[1].run.freeze, name="pretrain")
    pretrain = dataclasses.replace(seeds[1], run=dataclasses.replace(seeds[1].run, freeze=freeze))
    assert names(training.groups([seeds[0], seeds[3], pretrain])) == [[("pretrain", 0)], [("output", 0)], [("all", 1)]]


class Dies:
    """Stands in for the children that train: finishes runs until it comes to one of those at which it dies."""

    def __init__(self, places, at):
        self.places, self.at, self.jobs = places, list(at), []

    def __call__(self, job, places, log, on_event, *args, **kwargs):
        self.jobs.append([run["seed"] for run in job["runs"]])
        assert len(job["settings"]) == len(job["runs"])
        for data in job["runs"]:
            on_event({"event": "run", "run": data["id"]})
            if data["seed"] in self.at:
                self.at.remove(data["seed"])
                raise children.Died("killed by the system")
            finish(plan.restore(plan.Run, data), self.places.results)
            on_event({"event": "done", "run": data["id"], "text": "done"})


@pytest.fixture
def four(tiny_study):
    """Four cached runs, seeds 0 to 3, and what is in effect for them."""
    options = Options(precision=("float32",), xla=("off",), seeds=(0, 1, 2, 3), only=("output",), engine=("cached",))
    study = plan.resolve(studies.parse(tiny_study, "tiny"), options)
    return plan.runs(study, options, lambda data: "data", lambda path: "digest"), [PLAIN] * 4


def test_what_a_dead_group_left_is_tried_once_more_each_run_alone(places, four, monkeypatch, capsys):
    children_ = Dies(places, at=[1])
    places.results.mkdir()
    monkeypatch.setattr(base, "spawn", children_)
    training.train_all(*four, places)
    assert children_.jobs == [[0, 1, 2, 3], [1], [2], [3]]
    assert [(r["seed"], r["outcome"]) for r in records.read(places.results)] == [(s, "ok") for s in range(4)]
    told = capsys.readouterr().err
    assert told.count("killed by the system; trying once more, alone") == 3 and "[2/4] output seed 1: killed" in told


def test_a_second_death_is_a_failed_record_and_the_rest_of_the_group_goes_on(places, four, monkeypatch):
    children_ = Dies(places, at=[1, 1])
    places.results.mkdir()
    monkeypatch.setattr(base, "spawn", children_)
    training.train_all(*four, places)
    assert children_.jobs == [[0, 1, 2, 3], [1], [2], [3]]
    assert {r["seed"] for r in records.read(places.results) if r["outcome"] == "ok"} == {0, 2, 3}
    (failure,) = (r for r in records.read(places.results) if r["outcome"] == "failed")
    assert (failure["seed"], failure["reason"]) == (1, "killed by the system")
    assert (failure["engine"], failure["precision"], failure["xla"]) == ("cached", "float32", False)


def test_a_group_waits_for_no_pretraining_that_failed(places, four, monkeypatch):
    runs, settings = four
    children_ = Dies(places, at=[])
    places.results.mkdir()
    monkeypatch.setattr(base, "spawn", children_)
    orphan = dataclasses.replace(runs[0], pretrain_run="tiny.pretrain.s0.abc")
    training.train_all([orphan, *runs[1:]], settings, places)
    assert children_.jobs == [[1, 2, 3]]
    assert {r["seed"]: r["outcome"] for r in records.read(places.results)} == {0: "failed", 1: "ok", 2: "ok", 3: "ok"}


class Passes:
    """Stands in for the children of a group with a pass: each pass makes one entry, each run finishes with it."""

    def __init__(self, places):
        self.places, self.jobs = places, []

    def __call__(self, job, places, log, on_event, *args, **kwargs):
        self.jobs.append((job["action"], [run["seed"] for run in job["runs"]], list(job["computed"])))
        if job["action"] == "features":
            on_event({"event": "made", "keys": ["k"]})
            return
        for data in job["runs"]:
            run = plan.restore(plan.Run, data)
            entry = {"features": [{"key": "k", "boundary": ["pool"]}], "precision": job["precision"]}
            records.append(places.results, {**plan.heading(run), **entry, "outcome": "ok", "time": "t"})
            file = records.weights_file(places.results, run.id)
            file.parent.mkdir(parents=True)
            file.write_bytes(b"weights")


@pytest.mark.parametrize(
    ("estimates", "actions"),
    [
        ([stage("cached", 30.0)], ["features", "train"]),
        ([stage("cached", 15.0)], ["train"]),
        ([stage("cached", 15.0), stage("cached", 15.0)], ["train"]),
        ([stage("cached", 15.0), stage("cached", 15.0, "conv")], ["features", "train"]),
    ],
    ids=["long", "short", "one frontier", "two frontiers"],
)
def test_a_long_pass_gets_a_process_of_its_own(places, four, monkeypatch, estimates, actions):
    runs = [dataclasses.replace(run, freeze=dataclasses.replace(run.freeze, weights="x.h5")) for run in four[0]]
    children_ = Passes(places)
    places.results.mkdir()
    monkeypatch.setattr(base, "spawn", children_)
    training.train_all(runs, [setting(*estimates)] * 4, places)
    assert [action for action, _, _ in children_.jobs] == actions
    made = ["k"] if len(actions) == 2 else []
    assert children_.jobs[-1] == ("train", [0, 1, 2, 3], made)


def test_random_weights_take_a_pass_for_each_seed(places, four, monkeypatch):
    runs, _ = four
    children_ = Passes(places)
    places.results.mkdir()
    monkeypatch.setattr(base, "spawn", children_)
    training.train_all(runs, [setting(stage("cached", 6.0))] * 4, places)
    assert [action for action, _, _ in children_.jobs] == ["features", "train"]


def test_features_that_an_earlier_run_left_are_not_computed_again(places, four, monkeypatch):
    runs = [dataclasses.replace(run, freeze=dataclasses.replace(run.freeze, weights="x.h5")) for run in four[0]]
    children_ = Passes(places)
    stored = {"k": {"seconds": 1.0}}
    places.results.mkdir()
    monkeypatch.setattr(base, "spawn", children_)
    monkeypatch.setattr(training.features, "about", stored.get)
    for run in runs[:2]:
        training.train_all([run], [setting(stage("cached", 30.0))], places)
    assert [action for action, _, _ in children_.jobs] == ["features", "train", "train"]
    stored.clear()
    training.train_all([runs[2]], [setting(stage("cached", 30.0))], places)
    assert [action for action, _, _ in children_.jobs][3:] == ["features", "train"]


@pytest.mark.parametrize(("views", "there"), [(None, False), (3, False), (4, True)])
def test_fixed_views_are_there_only_where_a_run_left_as_many(places, four, monkeypatch, views, there):
    freeze = dataclasses.replace(four[0][0].freeze, weights="x.h5")
    run = dataclasses.replace(
        four[0][0],
        freeze=dataclasses.replace(freeze, stages=(dataclasses.replace(freeze.stages[0], augment_views=4),)),
    )
    left = [{"key": "k", "boundary": ["pool"]}, {"key": "v", "boundary": ["pool"], "views": views}]
    record = {**plan.heading(run), "features": left, "precision": "float32", "outcome": "ok", "time": "t"}
    monkeypatch.setattr(books, "newest", lambda results: {run.identity: record})
    monkeypatch.setattr(training.features, "about", {"k": {"seconds": 1.0}, "v": {"seconds": 1.0}}.get)
    assert training._has_features(Member(run, setting(stage("cached", 30.0)), ""), places.results) is there


def test_random_weights_of_another_seed_have_other_features(places, four, monkeypatch):
    runs, _ = four
    children_ = Passes(places)
    places.results.mkdir()
    monkeypatch.setattr(base, "spawn", children_)
    monkeypatch.setattr(training.features, "about", {"k": {"seconds": 1.0}}.get)
    for run in runs[:2]:
        training.train_all([run], [setting(stage("cached", 30.0))], places)
    assert [action for action, _, _ in children_.jobs] == ["features", "train", "features", "train"]


# -- what `auto` means ---------------------------------------------------------------------------------


class FakeTimer:
    """Stands in for the child that times steps: tells each cell, or hangs until its deadline, or dies."""

    def __init__(self, ends=(), error=children.GivenUp):
        self.ends, self.error, self.jobs = list(ends), error, []

    def __call__(self, job, places, log, on_event, deadline):
        self.jobs.append(list(dict.fromkeys((precision, xla) for precision, xla, _ in job["todo"])))
        on_event({"event": "ready"})
        for precision, xla, number in job["todo"]:
            if ((precision, xla), job["runs"][number]["freeze"]["name"]) in self.ends:
                assert self.error is not children.GivenUp or deadline() is not None
                raise self.error("killed by the system")
            on_event({"event": "cell", "stages": [stage()], "step_seconds": 0.5, "engine": "plain"})


CANDIDATES = [("float32", "off"), ("mixed_bfloat16", "off"), ("float32", "on")]


def timing(places, planned, progress, candidates=CANDIDATES, earlier=(), keep=lambda cell: None):
    distinct = {"a": planned[0], "b": planned[1]}
    todo = [(*candidate, name) for candidate in candidates for name in distinct]
    return settling.Timing(distinct, {"a": 1, "b": 1}, {}, todo, list(earlier), keep, places, progress)


def time_candidates(places, planned, monkeypatch, timer, candidates=CANDIDATES, earlier=()):
    monkeypatch.setattr(base, "spawn", timer)
    with training.Progress(len(candidates) * 2) as progress:
        return timing(places, planned, progress, candidates, earlier).run()


def outcomes(cells):
    return [(c["precision"], c["xla"], c["timing"], c["outcome"]) for c in cells]


def test_all_candidates_are_timed_in_one_child(places, planned, monkeypatch):
    timer = FakeTimer()
    cells = time_candidates(places, planned, monkeypatch, timer)
    assert timer.jobs == [CANDIDATES]
    assert outcomes(cells) == [(p, x, timing, "ok") for p, x in CANDIDATES for timing in ("a", "b")]
    assert {c["step_seconds"] for c in cells} == {0.5} and all(c["stages"][0]["seconds"] == 2.0 for c in cells)
    assert all(c["elapsed_seconds"] >= 0 for c in cells)


def test_a_cell_past_its_limit_ends_the_child_with_the_rest_of_its_candidate_not_tried(places, planned, monkeypatch):
    told = {"precision": "mixed_bfloat16", "xla": "off", "stages": []}
    earlier = [
        {**told, "outcome": "ok", "timing": "a", "elapsed_seconds": 2.0},
        {**told, "outcome": "ok", "timing": "a", "elapsed_seconds": 3.0},
        {**told, "outcome": "not tried", "timing": "b", "elapsed_seconds": None},
    ]
    timer = FakeTimer(ends=[(("float32", "on"), "output")])
    cells = time_candidates(places, planned, monkeypatch, timer, [("float32", "on"), ("float32", "off")], earlier)
    assert outcomes(cells) == [("float32", "on", "a", "given up"), ("float32", "on", "b", "not tried")]
    assert cells[0]["reason"] == "over 20 s, 10 times the best" and cells[0]["stages"] is None


def test_a_cell_may_take_ten_times_the_best_of_its_configuration_so_far(places, planned, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(settling.time, "monotonic", lambda: now[0])
    with training.Progress(6) as progress:
        timer = timing(places, planned, progress)
        timer.on_event({"event": "ready"})
        limits = []
        for seconds in (2.0, 5.0, 1.0, 7.0):
            limits.append(timer.deadline() and timer.deadline() - now[0])
            now[0] += seconds
            timer.on_event({"event": "cell", "stages": [stage()], "step_seconds": 0.5, "engine": "plain"})
        limits.append(timer.deadline() - now[0])
    assert limits == [None, None, 20.0, 50.0, 10.0]


def test_a_child_that_dies_over_a_cell_leaves_it_failed(places, planned, monkeypatch):
    timer = FakeTimer(ends=[(("float32", "off"), "all")], error=children.Died)
    cells = time_candidates(places, planned, monkeypatch, timer)
    assert outcomes(cells) == [("float32", "off", "a", "ok"), ("float32", "off", "b", "failed")]
    assert cells[1]["reason"] == "killed by the system"


CHECKED = {
    "device": "cpu",
    "mixed": "mixed_bfloat16",
    "effort": {"training_seconds": 900.0, "timing_seconds": 60.0},
    "configurations": [
        {"freeze": name, "model": f"tiny.{name}{variant}", "size": 32, "classes": 2, "images": {}, "untimed": [stage()]}
        for name in ("output", "all")
        for variant in ("", ".cached", ".plain")
    ],
}


@pytest.fixture
def open_runs(tiny_study):
    study = plan.resolve(studies.parse(tiny_study, "tiny"), Options())
    return plan.runs(study, Options(), lambda data: "data", lambda path: "digest")


def answering(steps):
    """Stands in for the child that checks a study; the one that times its steps is `steps`."""

    def spawn(job, places, log, on_event, *args, **kwargs):
        if job["action"] == "preflight":
            on_event({"event": "checked", **CHECKED})
        else:
            steps(job, places, log, on_event, *args, **kwargs)

    return spawn


def settle(runs, places, pending=None, fresh=False):
    """The measured cells that the settings of some runs rest on."""
    return settling.settle(runs, pending or runs, places, fresh=fresh)[0]


def test_the_candidates_after_one_that_was_given_up_go_on_in_another_child(places, open_runs, monkeypatch):
    hangs = ("mixed_bfloat16", "off")
    timer = FakeTimer(ends=[(hangs, "all")])
    places.results.mkdir()
    monkeypatch.setattr(base, "spawn", answering(timer))
    cells = settle(open_runs, places)
    everything = [("float32", "off"), hangs, ("float32", "on"), ("mixed_bfloat16", "on")]
    assert timer.jobs == [everything, everything[2:]]
    assert {(c["precision"], c["xla"]): c["outcome"] for c in cells if c["freeze"] == "all"} == {
        ("float32", "off"): "ok", hangs: "given up", ("float32", "on"): "ok", ("mixed_bfloat16", "on"): "ok",
    }  # fmt: skip
    assert {c["outcome"] for c in cells if c["freeze"] == "output"} == {"ok"}


def test_step_times_are_measured_once_and_kept(places, open_runs, monkeypatch):
    places.results.mkdir()
    monkeypatch.setattr(base, "spawn", answering(FakeTimer()))
    cells = settle(open_runs, places)
    assert len(cells) == 4 * 2 and {c["freeze"] for c in cells} == {"output", "all"}
    monkeypatch.setattr(base, "spawn", answering(lambda *args, **kwargs: pytest.fail("measured twice")))
    assert settle(open_runs, places) == cells


def test_a_dry_run_says_what_an_earlier_command_chose(places, open_runs, monkeypatch):
    places.results.mkdir()
    monkeypatch.setattr(base, "spawn", answering(FakeTimer()))
    assert "as an earlier" not in harness._auto(open_runs, open_runs, CHECKED, [])
    cells = settle(open_runs, places)
    told = "as an earlier command chose: float32 with XLA off"
    assert harness._auto(open_runs, open_runs, CHECKED, records.read(places.results)) == told
    faster = {("float32", "on", "all"): [stage() | {"seconds": 1.0}]}
    cells = [c | {"stages": faster.get((c["precision"], c["xla"], c["freeze"]), c["stages"])} for c in cells]
    rows = settling.chosen({"cells": cells, "device": "cpu"}, open_runs)
    assert rows == "float32 with XLA off for output; float32 with XLA on for all"


def interrupted(after):
    """Stands in for the child that times steps, until Ctrl-C comes when it has told `after` cells."""

    def timer(job, places, log, on_event, deadline):
        told = []

        def until(event):
            if len(told) == after + 1:  # the first says that the child is ready
                raise KeyboardInterrupt
            told.append(event)
            on_event(event)

        FakeTimer()(job, places, log, until, deadline)

    return timer


def test_cells_that_were_measured_before_ctrl_c_are_not_measured_again(places, open_runs, monkeypatch):
    places.results.mkdir()
    monkeypatch.setattr(base, "spawn", answering(interrupted(after=3)))
    with pytest.raises(KeyboardInterrupt):
        settle(open_runs, places)
    left = []

    def timer(job, *args, **kwargs):
        left.extend(tuple(cell) for cell in job["todo"])
        assert [tuple(cell[:3]) for cell in job["measured"]] == [
            ("float32", "off", 0), ("float32", "off", 1), ("mixed_bfloat16", "off", 0),
        ]  # fmt: skip
        FakeTimer()(job, *args, **kwargs)

    monkeypatch.setattr(base, "spawn", answering(timer))
    cells = settle(open_runs, places)
    assert left == [
        ("mixed_bfloat16", "off", 1),
        *((p, "on", n) for p in ("float32", "mixed_bfloat16") for n in (0, 1)),
    ]
    assert len(cells) == 4 * 2 and {c["outcome"] for c in cells} == {"ok"}
    assert settle(open_runs, places) == cells and len(left) == 5


def test_what_leaves_nothing_open_needs_no_cells_where_others_were_interrupted(places, open_runs, monkeypatch):
    freeze = dataclasses.replace(open_runs[0].freeze, precision=("float32",), xla=("off",), engine=("plain",))
    runs = [dataclasses.replace(open_runs[0], freeze=freeze), open_runs[1]]
    places.results.mkdir()
    monkeypatch.setattr(base, "spawn", answering(interrupted(after=1)))
    with pytest.raises(KeyboardInterrupt):
        settle(runs, places)
    assert [r["kind"] for r in records.read(places.results)] == ["cell"]
    assert choice.pick(settle(runs, places, runs[:1]), runs[0], "cpu") == PLAIN


def test_a_choice_that_lacks_a_cell_is_measured_for_what_lacks(places, open_runs, monkeypatch):
    places.results.mkdir()
    monkeypatch.setattr(base, "spawn", answering(FakeTimer()))
    cells = settle(open_runs, places)
    (kept,) = (r for r in records.read(places.results) if r["kind"] == "choice")
    for run in open_runs:  # that all have finished with one seed makes an incomplete choice no better
        records.append(places.results, {**plan.heading(run), "outcome": "ok", "time": "t"})
    for file in places.results.iterdir():
        lines = [line for line in file.read_text().splitlines() if json.loads(line)["kind"] != "cell"]
        file.write_text("\n".join(lines) + "\n")
    records.append(places.results, kept | {"cells": kept["cells"][1:]})
    timer = FakeTimer()
    monkeypatch.setattr(base, "spawn", answering(timer))
    again = settle(open_runs, places)
    assert timer.jobs == [[("float32", "off")]]
    assert sorted(map(outcome, again)) == sorted(map(outcome, cells))


def outcome(cell):
    return (cell["freeze"], cell["precision"], cell["xla"], cell["outcome"])


def little(monkeypatch, device="cpu", mixed="mixed_bfloat16"):
    """Let all training be shorter than timing, and no child time anything."""
    monkeypatch.setitem(CHECKED, "effort", {"training_seconds": 3.0, "timing_seconds": 60.0})
    monkeypatch.setitem(CHECKED, "device", device)
    monkeypatch.setitem(CHECKED, "mixed", mixed)
    spawn = answering(lambda *args, **kwargs: pytest.fail("timed all the same"))
    monkeypatch.setattr(base, "spawn", spawn)


@pytest.mark.parametrize(
    ("device", "mixed", "candidate"),
    [("cpu", "mixed_bfloat16", ("float32", "off")), ("gpu", "mixed_float16", ("mixed_float16", "on"))],
)
def test_nothing_is_timed_where_that_would_take_longer_than_all_training(
    places, open_runs, monkeypatch, device, mixed, candidate
):
    places.results.mkdir()
    little(monkeypatch, device, mixed)
    cells = settle(open_runs, places)
    assert [outcome(c) for c in cells] == [(name, *candidate, "not timed") for name in ("output", "all")]
    assert {c["reason"] for c in cells} == {"all training, compiling aside, takes about 3 s, timing about 60 s"}
    for run in open_runs:
        picked = choice.pick(cells, run, device)
        assert (picked.precision, picked.xla, picked.stages) == (*candidate, (stage(),))
    monkeypatch.setitem(CHECKED, "effort", {"training_seconds": 900.0, "timing_seconds": 60.0})
    assert settle(open_runs, places) == cells  # what was chosen once stays


def test_what_is_asked_for_stays_where_nothing_is_timed(places, open_runs, monkeypatch):
    places.results.mkdir()
    little(monkeypatch)
    freeze = dataclasses.replace(open_runs[0].freeze, precision=("mixed_float16",), xla=("on",))
    runs = [dataclasses.replace(open_runs[0], freeze=freeze), open_runs[1]]
    cells = settle(runs, places)
    assert [(s.precision, s.xla) for s in (choice.pick(cells, run, "cpu") for run in runs)] == [
        ("mixed_float16", "on"), ("float32", "off"),
    ]  # fmt: skip


def test_of_what_is_asked_for_by_name_only_what_may_be_computed_once_is_timed(places, tiny_study, monkeypatch):
    options = Options(precision=("float32",), xla=("off",))
    study = plan.resolve(studies.parse(tiny_study, "tiny"), options)
    runs = plan.runs(study, options, lambda data: "data", lambda path: "digest")
    frozen = [{**c, "untimed": [stage("cached")]} for c in CHECKED["configurations"] if c["freeze"] == "output"]
    rest = [c for c in CHECKED["configurations"] if c["freeze"] == "all"]
    monkeypatch.setitem(CHECKED, "configurations", frozen + rest)
    places.results.mkdir()
    timer = FakeTimer()
    monkeypatch.setattr(base, "spawn", answering(timer))
    cells = settle(runs, places)
    assert timer.jobs == [[("float32", "off")]]
    assert [(c["freeze"], c["outcome"]) for c in cells] == [("output", "ok"), ("all", "not timed")]
    assert choice.pick(cells, runs[1], "cpu") == dataclasses.replace(PLAIN, stages=(stage(),))


def test_xla_is_tried_for_all_that_share_their_steps_with_a_run_that_asks_for_it(places, open_runs, monkeypatch):
    counts = []

    def timer(job, *args, **kwargs):
        counts.append(job["counts"])
        FakeTimer()(job, *args, **kwargs)

    places.results.mkdir()
    monkeypatch.setattr(base, "spawn", answering(timer))
    settle(open_runs, places)
    freeze = dataclasses.replace(open_runs[0].freeze, xla=("on",))
    settle([*open_runs, dataclasses.replace(open_runs[0], freeze=freeze)], places, fresh=True)
    assert [found.count(None) for found in counts] == [0, 1]


def test_more_seeds_of_what_has_finished_are_not_checked_again(places, open_runs, monkeypatch):
    places.results.mkdir()
    monkeypatch.setattr(base, "spawn", answering(FakeTimer()))
    cells = settle(open_runs, places)
    for run in open_runs[:2]:
        records.append(places.results, {**plan.heading(run), "outcome": "ok", "time": "t"})
    started = []

    def timer(job, *args, **kwargs):
        started.append(job["action"])
        FakeTimer()(job, *args, **kwargs)

    monkeypatch.setattr(base, "spawn", answering(timer))
    monkeypatch.setattr(planning, "preflight", lambda *args, **asked: started.append("preflight") or CHECKED)
    more = [dataclasses.replace(run, seed=7, identity=f"{run.identity}7") for run in open_runs[:2]]
    assert settle(open_runs, places, more) == cells and not started
    other = dataclasses.replace(more[0], configuration="another")
    assert settle(open_runs, places, [other]) == cells and started == ["preflight"]
    assert len(settle(open_runs, places, more, fresh=True)) == 8 and "steps" in started


def test_step_times_are_those_of_the_settings_asked_for(places, tiny_study, open_runs, monkeypatch):
    def asked(**options):
        study = plan.resolve(studies.parse(tiny_study, "tiny"), Options(**options))
        runs = plan.runs(study, Options(**options), lambda data: "data", lambda path: "digest")
        return settle(runs, places)

    places.results.mkdir()
    monkeypatch.setattr(base, "spawn", answering(FakeTimer()))
    assert {c["precision"] for c in asked(precision=("float32",))} == {"float32"}
    assert {c["precision"] for c in asked()} == {"float32", "mixed_bfloat16"}
    engines = asked(engine=("plain", "cached"))
    assert len({c["timing"] for c in engines}) == 4
    assert {(c["freeze"], c["engine_asked"]) for c in engines} == {
        (name, engine) for name in ("output", "all") for engine in ("plain", "cached")
    }


def study_run(places, tmp_path, tiny_study, monkeypatch, options):
    """Run the tiny study with children that do nothing; which configurations were checked and which were timed."""
    (tmp_path / "tiny.toml").write_text(tiny_study)
    checked, timed = [], []

    def spawn(job, places, log, on_event, *args, **kwargs):
        names = [run["freeze"]["name"] for run in job.get("runs", [])]
        if job["action"] == "preflight":
            checked.extend(names)
            on_event({"event": "checked", **CHECKED})
        elif job["action"] == "steps":
            timed.extend(names)
            FakeTimer()(job, places, log, on_event, None)

    monkeypatch.setattr(base, "spawn", spawn)
    harness.run_study(str(tmp_path / "tiny.toml"), options, places, export=False, infer=False)
    return checked, timed


def test_auto_chooses_for_the_whole_study_also_under_only(places, tmp_path, tiny_study, monkeypatch):
    checked, timed = study_run(places, tmp_path, tiny_study, monkeypatch, Options(only=("output",)))
    assert set(checked) == set(timed) == {"output", "all"} and len(timed) == 2


def test_nothing_is_timed_when_nothing_is_left_open(places, tmp_path, tiny_study, monkeypatch):
    options = Options(precision=("float32",), xla=("off",), engine=("plain",))
    checked, timed = study_run(places, tmp_path, tiny_study, monkeypatch, options)
    assert set(checked) == {"output", "all"} and timed == []


def test_what_needs_no_tensorflow_is_found_before_it_starts(places, tmp_path, tiny_study, monkeypatch):
    monkeypatch.setattr(base, "spawn", lambda *args, **kwargs: pytest.fail("a child was started"))
    for change, message in [
        (('"small_cnn"', '"smal_cnn"'), "unknown backbone 'smal_cnn'; did you mean 'small_cnn'"),
        (("[train]", '[head]\npooling = "avg"\n[train]'), "did you mean 'average'|there are: average"),
        (('"output"\n', '"output"\nhead = "linera"\n'), r"tiny.toml: \[\[freeze\]\] 'output': unknown head 'linera'"),
        (("head/output", "head/("), r"tiny.toml: \[\[freeze\]\] 'output': rule 'head/\(' is not a regular expression"),
    ]:
        (tmp_path / "tiny.toml").write_text(tiny_study.replace(*change))
        with pytest.raises(UserError, match=message):
            harness.run_study(str(tmp_path / "tiny.toml"), Options(), places)


def test_rows_that_flags_override_are_said(places, tmp_path, tiny_study, monkeypatch, capsys):
    own = tiny_study.replace('"output"\n', '"output"\nprecision = "mixed_bfloat16"\nxla = "on"\n')
    study_run(places, tmp_path, own, monkeypatch, Options(precision=("float32",), xla=("off",)))
    err = capsys.readouterr().err
    assert "--precision float32 stands in place of what the study asks for: output (mixed_bfloat16)\n" in err
    assert "--xla off stands in place of what the study asks for: output (on)\n" in err


def test_what_was_finished_before_is_said_and_counted(places, tmp_path, tiny_study, monkeypatch, capsys):
    options = Options(precision=("float32",), xla=("off",), engine=("plain",))
    (tmp_path / "tiny.toml").write_text(tiny_study)
    one, *_ = planning.plan_runs(studies.load(str(tmp_path / "tiny.toml")), options, places)
    places.results.mkdir()
    finish(one, places.results)
    study_run(places, tmp_path, tiny_study, monkeypatch, options)
    err = capsys.readouterr().err
    assert "tiny: 1 of 2 runs are done already" in err and "[2/2] all seed 0: starting TensorFlow" in err


SEARCH = """
[search]
freeze = "output"
trials = 7
sampler = "tpe"
learning_rate = { low = 1e-4, high = 1e-2, log = true }
"""


class Searches:
    """Stands in for all children: trials finish with a top-1 that their learning rate decides, but for `fails`."""

    def __init__(self, places, fails=()):
        self.places, self.fails, self.jobs, self.trained = places, fails, [], []

    def __call__(self, job, places, log, on_event, *args, **kwargs):
        self.jobs.append(job["action"])
        if job["action"] == "preflight":
            on_event({"event": "checked", **CHECKED})
        for data in job["runs"] if job["action"] == "train" else []:
            run = plan.restore(plan.Run, data)
            self.trained.append((run.freeze.name, run.seed))
            if run.freeze.name in self.fails:
                raise children.Died("killed by the system")
            top1 = 1 - run.freeze.stages[0].learning_rate
            told = {"validation_top1": top1, "validation_loss": 1.0, "marginal_seconds": 5.0, "outcome": "ok"}
            records.append(places.results, {**plan.heading(run), **told, "time": records.now()})
            file = records.weights_file(places.results, run.id)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"weights")


def searched(places, tmp_path, tiny_study, monkeypatch, fails=(), fresh=False, **options):
    """Run a study with a search; returns whether all went well, its configurations and what the children were asked."""
    (tmp_path / "tiny.toml").write_text(tiny_study + SEARCH)
    settled = {"precision": ("float32",), "xla": ("off",), "engine": ("plain",)}
    children_ = Searches(places, fails)
    monkeypatch.setattr(base, "spawn", children_)
    asked = Options(**settled, **{"seeds": (0, 1), "only": ("output",), **options})
    study = str(tmp_path / "tiny.toml")
    good, configurations = harness.run_study(study, asked, places, export=False, infer=False, fresh=fresh)
    return good, configurations, children_


TRIALS = [(f"output_trial_{number}", 0) for number in range(1, 8)]


def test_a_search_trains_its_trials_in_turn_and_then_the_best_with_the_other_seeds(
    places, tmp_path, tiny_study, monkeypatch
):
    good, configurations, children_ = searched(places, tmp_path, tiny_study, monkeypatch)
    assert good and len(configurations) == 1 + 7 + 1 and children_.jobs.count("preflight") == 1
    assert children_.trained == [("output", 0), *TRIALS[:5], ("output", 1), *TRIALS[5:], ("output_best", 1)]
    found = {(r["freeze"], r["seed"]): r for r in records.read(places.results) if r["kind"] == "train"}
    rate = {name: found[name, 0]["config"]["freeze"]["stages"][0]["learning_rate"] for name, _ in TRIALS}
    best = min(rate, key=rate.get)
    taken = found["output_best", 0]
    assert taken["search"]["values"] == {"learning_rate": rate[best]}
    assert (taken["run"], taken["config"]["id"]) == (found[best, 0]["run"],) * 2
    assert (taken["marginal_seconds"], taken["validation_top1"]) == (0.0, found[best, 0]["validation_top1"])
    assert taken["configuration"] == found["output_best", 1]["configuration"] != found[best, 0]["configuration"]


def test_a_search_goes_on_where_it_was_cut_off(places, tmp_path, tiny_study, monkeypatch):
    searched(places, tmp_path, tiny_study, monkeypatch)
    file = places.results / records.FILE
    whole = file.read_text()
    file.write_text("".join(whole.splitlines(keepends=True)[:8]))  # both seeds of the row itself, six trials
    _, _, again = searched(places, tmp_path, tiny_study, monkeypatch)
    assert again.trained == [TRIALS[6], ("output_best", 1)]

    def identities(text):
        return {r["identity"] for r in map(json.loads, text.splitlines()) if r["kind"] == "train"}

    assert identities(file.read_text()) == identities(whole)
    assert searched(places, tmp_path, tiny_study, monkeypatch)[2].jobs == []


def test_a_trial_that_fails_is_none_that_is_best(places, tmp_path, tiny_study, monkeypatch):
    searched(places, tmp_path, tiny_study, monkeypatch)
    found = books.newest(places.results).values()
    (best,) = {f"output_trial_{r['search']['trial']}" for r in found if r["freeze"] == "output_best"}
    good, _, children_ = searched(places, tmp_path, tiny_study, monkeypatch, fails=[best], fresh=True)
    assert not good and children_.trained.count((best, 0)) == 2  # once more, alone
    other = books.newest(places.results).values()
    assert max((r for r in other if r["freeze"] == "output_best"), key=lambda r: r["time"])["search"]["trial"] != int(
        best.rpartition("_")[2]
    )


def test_a_fresh_search_believes_no_earlier_result(places, tmp_path, tiny_study, monkeypatch):
    _, _, first = searched(places, tmp_path, tiny_study, monkeypatch)
    _, _, again = searched(places, tmp_path, tiny_study, monkeypatch, fresh=True)
    assert again.trained == first.trained


def test_trials_are_not_published(places, tmp_path, tiny_study, monkeypatch):
    searched(places, tmp_path, tiny_study, monkeypatch)
    published, measured = [], []
    monkeypatch.setattr(
        publishing, "export_models", lambda configurations, places: published.extend(configurations) or True
    )
    monkeypatch.setattr(inferring, "infer_models", lambda models, places, asked, fresh: measured.extend(models) or True)
    options = Options(seeds=(0, 1), only=("output",), precision=("float32",), xla=("off",), engine=("plain",))
    harness.run_study(str(tmp_path / "tiny.toml"), options, places)
    assert set(measured) == {"tiny.output", "tiny.output_best"} and len(published) == 2
    found = records.configurations(records.read(places.results))
    assert {c.freeze for c in found if c.trial} == {name for name, _ in TRIALS}


def test_layers_are_asked_of_a_preflight_once_for_each_configuration_and_nothing_is_kept(
    places, tmp_path, tiny_study, monkeypatch
):
    (tmp_path / "tiny.toml").write_text(
        tiny_study.replace("[data]", "seeds = [0, 1]\n[data]\ntrain_images = [4, 8]", 1)
    )
    jobs = []

    def spawn(job, places, log, on_event, *args, **kwargs):
        jobs.append(job)
        on_event({"event": "checked", "configurations": [{"freeze": "pretrain"}, {"freeze": "all"}]})

    monkeypatch.setattr(base, "spawn", spawn)
    name = str(tmp_path / "tiny.toml")
    assert [c["freeze"] for c in harness.layers(name, Options(), places)] == ["pretrain", "all"]
    assert [c["freeze"] for c in harness.layers(name, Options(only=("all",)), places)] == ["all"]
    assert [[run["freeze"]["name"] for run in job["runs"]] for job in jobs] == [["output", "all"], ["all"]]
    assert jobs[0]["layers"] and not jobs[0]["estimate"] and not places.results.exists()


def test_a_mistake_found_by_a_child_is_the_users(places, planned, monkeypatch):
    def run(module, job, *, log, on_event, deadline):
        on_event({"event": "user_error", "message": "no such layer"})

    monkeypatch.setattr(children, "run", run)
    with pytest.raises(UserError, match="no such layer"):
        planning.preflight(planned, places)


def test_a_missing_weights_file_is_named(tiny_study, places):
    study = studies.parse(tiny_study.replace('"none"', '"gone.h5"'), "tiny")
    with pytest.raises(UserError, match=r"cannot read the network or weights file gone.h5"):
        planning.plan_runs(study, Options(), places)


def test_who_waits_for_the_features_of_another_is_told_so(places, planned, monkeypatch):
    shown = []
    told = [{"event": "waiting"}, {"event": "features", "done": 5, "total": 1000}]

    def run(module, job, *, log, on_event, deadline):
        for event in told:
            on_event(event)

    monkeypatch.setattr(children, "run", run)
    monkeypatch.setattr(training.Progress, "show", lambda self, text, advance=0.0: shown.append(text))
    training.train_all(planned[:1], [Setting("float32", "off", ())], places)
    label = "[1/1] output seed 0"
    assert shown[1:] == [
        f"{label}: waiting for another command that computes the same features",
        f"{label}: features of 5 of 1,000 images",
    ]


def test_data_and_files_are_hashed_once_where_hashes_are_kept(tiny_study, places, tmp_path, monkeypatch):
    weights = tmp_path / "my.weights.h5"
    weights.write_bytes(b"weights")
    study = studies.parse(tiny_study.replace('"none"', f'"{weights}"'), "tiny")
    read, original = [], datasets.fingerprint
    monkeypatch.setattr(datasets, "fingerprint", lambda data, **how: (read.append(data), original(data, **how))[1])
    digests = {}
    first = planning.plan_runs(study, Options(), places, (), digests)
    weights.unlink()
    assert planning.plan_runs(study, Options(only=("all",)), places, (), digests) == first[1:]
    assert len(read) == 1 and set(digests) == {read[0], str(weights)}
    with pytest.raises(UserError, match="cannot read the network or weights file"):
        planning.plan_runs(study, Options(), places)
    assert len(read) == 2


def test_an_export_that_dies_is_recorded_and_the_others_go_on(places, planned, monkeypatch):
    places.results.mkdir()
    for run in planned:
        finish(run, places.results)
    jobs = []

    def spawn(job, places, log, on_event):
        jobs.append([entry["record"]["model"] for entry in job["chosen"]])
        on_event({"event": "exporting", "model": jobs[-1][0]})
        if len(jobs) == 1:
            raise children.Died("killed by the system")

    monkeypatch.setattr(base, "spawn", spawn)
    assert harness.export_models({r.configuration for r in planned}, places) is False
    assert jobs == [["tiny.output", "tiny.all"], ["tiny.all"]]
    (refused,) = (r for r in records.read(places.results) if r["kind"] == "export")
    assert (refused["model"], refused["outcome"], refused["reason"]) == (
        "tiny.output",
        "failed",
        "killed by the system",
    )


def test_a_child_that_dies_after_its_record_has_done_its_work(places, planned, monkeypatch):
    def spawn(job, places, *args, **kwargs):
        finish(planned[0], places.results)
        raise children.Died("ended by signal 11")

    places.results.mkdir()
    monkeypatch.setattr(base, "spawn", spawn)
    training.train_all(planned[:1], [PLAIN], places)
    assert [r["outcome"] for r in records.read(places.results)] == ["ok"]


def test_a_pretraining_that_failed_the_last_time_is_no_source(places, planned, monkeypatch):
    monkeypatch.setattr(base, "spawn", lambda *args, **kwargs: pytest.fail("nothing should start"))
    places.results.mkdir()
    finish(planned[0], places.results)
    records.append(places.results, {**plan.heading(planned[0]), "outcome": "failed", "reason": "x", "time": "u"})
    dependent = dataclasses.replace(planned[1], pretrain_run=planned[0].id)
    training.train_all([dependent], [PLAIN], places)
    assert "did not finish" in records.read(places.results)[-1]["reason"]


def publish(places, run, time, **facts):
    """Manifests of a published version, as if an export had written them."""
    for kind in ("keras", "saved_model", "onnx"):
        folder = places.exports / kind / run.model / "1"
        folder.mkdir(parents=True)
        manifest = {
            "kind": kind, "name": run.model, "version": 1, "run": run.id, "run_time": time, "limit": None,
            "epochs_cap": None, "size_bytes": 1, "graph": "g", "study": "tiny", "freeze": run.freeze.name,
            "data": {}, "fingerprint": "f", "class_names": ["5", "6"],
        }  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest | facts))


def test_an_unchanged_run_is_not_published_twice(places, planned, monkeypatch):
    monkeypatch.setattr(base, "spawn", lambda *args, **kwargs: pytest.fail("nothing to export"))
    places.results.mkdir()
    finish(planned[0], places.results)
    publish(places, planned[0], "t")
    assert harness.export_models({planned[0].configuration}, places)


def test_two_commands_do_not_publish_into_one_folder_at_once(places, planned):
    places.results.mkdir()
    finish(planned[0], places.results)
    chosen = {planned[0].configuration}
    with (
        records.lock(places.exports, "exports"),
        pytest.raises(UserError, match=r"is writing to .*exports; wait for it, or choose another --exports DIR"),
    ):
        harness.export_models(chosen, places)


def test_a_variant_that_is_not_there_is_published_with_those_that_are(places, planned, monkeypatch):
    jobs = []

    def spawn(job, places, log, on_event):
        jobs.append([entry["variants"] for entry in job["chosen"]])
        for entry in job["chosen"]:
            on_event({"event": "exporting", "model": entry["record"]["model"]})

    monkeypatch.setattr(base, "spawn", spawn)
    places.results.mkdir()
    for run in planned:
        finish(run, places.results)
    publish(places, planned[0], "t", variants={"float32": {}, "int8": {}})
    configurations = {run.configuration for run in planned}
    assert harness.export_models(configurations, places)
    assert harness.export_models(configurations, places, ["float16"])
    assert harness.export_models({planned[0].configuration}, places, ["int8"])
    assert jobs == [
        [["float32", "int8"]],
        [["float32", "int8", "float16"], ["float32", "float16"]],
    ]


def test_a_quick_try_is_not_published_over_the_real_model(places, planned, monkeypatch, capsys):
    monkeypatch.setattr(base, "spawn", lambda *args, **kwargs: pytest.fail("nothing to export"))
    places.results.mkdir()
    finish(dataclasses.replace(planned[0], limit=10), places.results)
    publish(places, planned[0], "earlier")
    assert harness.export_models({planned[0].configuration}, places)
    assert "a quick try is not published over version 1" in capsys.readouterr().err


def test_a_quick_try_is_published_without_int8_unless_it_is_asked_for(places, planned, monkeypatch):
    asked = []

    def spawn(job, places, log, on_event):
        asked.extend(entry["variants"] for entry in job["chosen"])
        for entry in job["chosen"]:
            on_event({"event": "exporting", "model": entry["record"]["model"]})

    monkeypatch.setattr(base, "spawn", spawn)
    places.results.mkdir()
    finish(dataclasses.replace(planned[0], limit=10), places.results)
    assert harness.export_models({planned[0].configuration}, places)
    assert harness.export_models({planned[0].configuration}, places, ["int8"])
    assert asked == [["float32"], ["float32", "int8"]]


class Runtimes:
    """Stands in for the children that measure: dies at one model or one of its cells, measures the others."""

    def __init__(self, places, dies_at=None, of=children.Died):
        self.places, self.dies_at, self.of, self.jobs, self.cells = places, dies_at, of, [], []

    def __call__(self, job, places, log, on_event, module=None):
        if job.get("action") == "test_images":
            return
        assert module == "frostline.measuring" and job["tests"].keys() >= {m["name"] for m in job["manifests"]}
        self.jobs.append([m["name"] for m in job["manifests"]])
        self.cells.append([list(cell) for cell in job["cells"]])
        (self.places.results / "loadgen" / job["logs"]).mkdir(parents=True, exist_ok=not job["cells"])
        first, shared = job["manifests"][0], [(r["scenario"], r["batch_size"]) for r in job["figures"]]
        for manifest in job["manifests"]:
            for copies in runtimes.copies(job["runtime"], job["how"]["device"]):
                for cell in job["cells"] if manifest is first else dict.fromkeys([*shared, *job["cells"]]):
                    if self.dies_at in (manifest["name"], (manifest["name"], *cell)):
                        raise self.of("killed by the system")
                    subject = inference.Subject(manifest, Path("x"), job["runtime"], How(**job["how"]), copies)
                    self._keep(job, subject, cell)

    def _keep(self, job, subject, cell):
        if job["server"]:
            subject = dataclasses.replace(subject, server=Served(**job["server"]))
        for row in inference.unmeasured(subject, [cell], PROFILES[job["profile"]], "ok", ""):
            records.append(self.places.results, {**row, "machine": FACTS})


def infer(places, monkeypatch, dies_at=None, of=children.Died, **asked):
    children_ = Runtimes(places, dies_at, of)
    monkeypatch.setattr(base, "spawn", children_)
    asked = matrix.Asked(**{"runtimes": ("onnxruntime",), "batch_sizes": (8,)} | asked)
    good = harness.infer_models(None, places, asked)
    return good, children_.jobs


def test_what_is_measured_is_not_measured_again_but_another_training_is(places, planned, monkeypatch):
    places.results.mkdir()
    monkeypatch.setattr(matrix.runtimes, "cuda_devices", lambda: 0)
    publish(places, planned[0], "t")
    assert infer(places, monkeypatch) == (True, [["tiny.output"]])
    assert infer(places, monkeypatch) == (True, [])
    shutil.rmtree(places.exports)
    publish(places, planned[0], "later")  # version 1 again, of another training
    assert infer(places, monkeypatch) == (True, [["tiny.output"]])


def test_another_batch_size_profile_or_number_of_threads_is_another_cell(places, planned, monkeypatch):
    places.results.mkdir()
    monkeypatch.setattr(matrix.runtimes, "cuda_devices", lambda: 0)
    publish(places, planned[0], "t")
    infer(places, monkeypatch)
    for other in ({"batch_sizes": (16,)}, {"profile": "valid"}, {"threads": 1}):
        assert infer(places, monkeypatch, **other) == (True, [["tiny.output"]])
        assert infer(places, monkeypatch, **other) == (True, [])


def test_images_that_could_not_be_made_are_asked_for_again(places, monkeypatch):
    places.results.mkdir()
    asked = []

    def spawn(job, *args, **kwargs):
        asked.append(job["tests"])
        if len(asked) == 1:
            raise children.Died("killed by the system")

    monkeypatch.setattr(base, "spawn", spawn)
    manifest = {"name": "tiny.all", "data": {"dataset": "digits"}, "limit": 4, "fingerprint": "f"}
    with inferring.TestImages(places) as tests:
        with pytest.raises(children.Died):
            tests.of([manifest])
        found = tests.of([manifest])
        assert tests.of([manifest]) == found and found.keys() == {"tiny.all"}
    what = {"data": {"dataset": "digits"}, "limit": 4, "fingerprint": "f", "model": "tiny.all"}
    assert asked == [[what | {"path": found["tiny.all"]}]] * 2


def test_a_server_is_started_for_one_model_alone_and_then_for_those_that_share_its_graph(places, planned, monkeypatch):
    places.results.mkdir()
    for run in planned:
        publish(places, run, "t")
    servers, told = [], []

    @contextlib.contextmanager
    def running(exports, models, backend, flags, gpu):
        assert backend == "embedded" and gpu is False  # the rows say cpu
        servers.append((models, [flag.partition("=")[0] for flag in flags]))
        yield serving.Server("127.0.0.1:1", "http://127.0.0.1:2", "embedded", 7)

    class Children(Runtimes):
        def __call__(self, job, *args, **kwargs):
            told.append((job.get("server"), job.get("how"), bool(job.get("figures"))))
            super().__call__(job, *args, **kwargs)

    monkeypatch.setattr(serving, "running", running)
    monkeypatch.setattr(serving, "choose", lambda asked: "embedded")
    monkeypatch.setattr(base, "spawn", Children(places))
    asked = matrix.Asked(runtimes=("tf_serving_rest",), scenarios=("server",), threads=1)
    assert harness.infer_models(None, places, asked)
    pools = ["--monitoring_config_file", "--tensorflow_intra_op_parallelism", "--tensorflow_inter_op_parallelism"]
    assert servers == [(["tiny.all"], pools), (["tiny.output"], pools)] * 2  # of pixels, of JPEG files
    answered = [t for t in told if t[0]]
    assert {(t[0]["backend"], t[0]["pid"], t[0]["rest"]) for t in answered} == {("embedded", 7, "http://127.0.0.1:2")}
    assert [(t[1]["payload"], t[1]["url"], t[2]) for t in answered] == [
        (payload, "http://127.0.0.1:2", shared) for payload in ("pixels", "jpeg") for shared in (False, True)
    ]
    rows = [r for r in records.read(places.results) if r["kind"] == "infer"]
    assert {(r["model"], r["payload"], r["scenario"]) for r in rows} == {
        (model, payload, "server") for model in ("tiny.all", "tiny.output") for payload in ("pixels", "jpeg")
    }


def test_a_server_of_several_models_tells_no_load_time(places, monkeypatch):
    running = serving.Server("127.0.0.1:1", "http://127.0.0.1:2", "embedded", 7)
    monkeypatch.setattr(serving, "running", lambda *args, **more: contextlib.nullcontext(running))
    (way,) = matrix.ways(matrix.Asked(runtimes=("tf_serving_rest",)))[:1]
    for names, told in ((["one"], True), (["one", "two"], False)):
        with inferring._served([{"name": name} for name in names], "http", way, places) as server:
            assert (server["server"]["load_seconds"] is not None) is told


def test_a_variant_is_measured_where_it_is_published(places, planned, monkeypatch):
    places.results.mkdir()
    monkeypatch.setattr(matrix.runtimes, "cuda_devices", lambda: 0)
    publish(places, planned[0], "t")
    infer(places, monkeypatch)
    shutil.rmtree(places.exports)
    publish(places, planned[0], "t", variants={"int8": {"reason": None, "size_bytes": 7}})
    assert infer(places, monkeypatch) == (True, [["tiny.output"]])
    told = {(r["variant"], r["size_bytes"]) for r in records.read(places.results) if r["outcome"] == "ok"}
    assert told == {("float32", 1), ("int8", 7)}


def test_a_variant_that_was_refused_is_skipped_with_the_reason(places, planned, monkeypatch):
    places.results.mkdir()
    monkeypatch.setattr(matrix.runtimes, "cuda_devices", lambda: 0)
    publish(places, planned[0], "t", variants={"int8": {"reason": "agrees on 0.4", "size_bytes": None}})
    assert infer(places, monkeypatch) == (True, [["tiny.output"]])
    skipped = [r for r in records.read(places.results) if r["variant"] == "int8" and r["device"] == "cpu"]
    assert {r["outcome"] for r in skipped} == {"skipped"} and len(skipped) == 2
    assert {r["reason"] for r in skipped} == {"int8 is not published: agrees on 0.4"}
    before = len(records.read(places.results))
    assert infer(places, monkeypatch) == (True, []) and len(records.read(places.results)) == before


def test_a_device_that_was_missing_is_measured_when_it_is_there(places, planned, monkeypatch):
    places.results.mkdir()
    publish(places, planned[0], "t")
    monkeypatch.setattr(matrix.runtimes, "cuda_devices", lambda: 0)
    infer(places, monkeypatch)
    skipped = [r for r in records.read(places.results) if r["outcome"] == "skipped"]
    assert {(r["device"], r["reason"]) for r in skipped} == {("gpu", "no CUDA device")}
    assert infer(places, monkeypatch)[1] == [] and len(records.read(places.results)) == 4
    monkeypatch.setattr(matrix.runtimes, "cuda_devices", lambda: 1)
    assert infer(places, monkeypatch) == (True, [["tiny.output"]])


def test_a_runtime_that_dies_at_one_model_keeps_the_others(places, planned, monkeypatch):
    places.results.mkdir()
    monkeypatch.setattr(matrix.runtimes, "cuda_devices", lambda: 0)
    for run in planned:
        publish(places, run, "t")
    good, jobs = infer(places, monkeypatch, dies_at="tiny.all")
    assert (good, jobs) == (False, [["tiny.all", "tiny.output"], ["tiny.output"]])
    outcomes = {
        (r["model"], r["batch_size"]): r["outcome"] for r in records.read(places.results) if r["device"] == "cpu"
    }
    assert outcomes == {("tiny.all", 1): "failed", ("tiny.all", 8): "failed", ("tiny.output", 1): "ok",
                        ("tiny.output", 8): "ok"}  # fmt: skip
    assert infer(places, monkeypatch) == (True, [["tiny.all"]])


def test_of_a_model_that_dies_in_its_second_cell_the_first_is_kept_and_shared(places, planned, monkeypatch):
    places.results.mkdir()
    monkeypatch.setattr(matrix.runtimes, "cuda_devices", lambda: 0)
    for run in planned:
        publish(places, run, "t")
    asked = {"profile": "valid"}
    good, jobs = infer(places, monkeypatch, dies_at=("tiny.all", "offline", 8), **asked)
    assert (good, jobs) == (False, [["tiny.all", "tiny.output"], ["tiny.output"]])
    rows = [r for r in records.read(places.results) if r["device"] == "cpu" and r["model"] == "tiny.all"]
    assert [(r["scenario"], r["outcome"]) for r in rows] == [("single_stream", "ok"), ("offline", "failed")]


def test_what_was_finished_before_ctrl_c_is_shared_and_not_measured_again(places, planned, monkeypatch):
    places.results.mkdir()
    monkeypatch.setattr(matrix.runtimes, "cuda_devices", lambda: 0)
    for run in planned:
        publish(places, run, "t")
    with pytest.raises(KeyboardInterrupt):
        infer(places, monkeypatch, ("tiny.all", "offline", 8), KeyboardInterrupt, profile="valid")
    children_ = Runtimes(places)
    monkeypatch.setattr(base, "spawn", children_)
    asked = matrix.Asked(runtimes=("onnxruntime",), batch_sizes=(8,), profile="valid")
    assert harness.infer_models(None, places, asked)
    assert children_.cells == [[["offline", 8]]]
    rows = [(r["model"], r["scenario"]) for r in records.read(places.results) if r["outcome"] == "ok"]
    assert sorted(rows) == [(m, s) for m in ("tiny.all", "tiny.output") for s in ("offline", "single_stream")]


def test_each_measurement_has_loadgens_logs_to_itself(places, planned, monkeypatch):
    places.results.mkdir()
    publish(places, planned[0], "t")
    (way, *_) = matrix.ways(matrix.Asked(runtimes=("onnxruntime",)))
    one = dataclasses.replace(way, how=dataclasses.replace(way.how, threads=1))
    (manifest,) = exporting.manifests(places.exports, "onnx")
    for each in (way, way, one):
        monkeypatch.setattr(base, "spawn", Runtimes(places))
        inferring.measure(each, [manifest], way.cells, places, {manifest["name"]: "x"})
    found = sorted(path.parent.name for path in (places.results / "loadgen").glob("*/*/*/*"))
    names = [f"onnxruntime-float32-cpu-quick-{threads}-threads" for threads in (machine.cores(), machine.cores(), 1)]
    assert found == sorted(names)


def test_a_log_that_cannot_be_written_is_a_mistake_of_the_user(places, planned):
    places.results.parent.mkdir(exist_ok=True)
    places.results.write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"cannot write .*preflight\.txt"):
        planning.preflight(planned, places)
