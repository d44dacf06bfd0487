import dataclasses
import json
import shutil

import pytest

from frostline import children, harness, plan, records, studies
from frostline.errors import UserError
from frostline.harness import Places
from frostline.plan import Options


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
    assert harness.finished(places.results) == {one.identity}


def test_a_failed_run_is_tried_again(places, planned):
    places.results.mkdir()
    finish(planned[0], places.results)
    records.append(places.results, {**plan.heading(planned[0]), "outcome": "failed", "reason": "x", "time": "u"})
    assert harness.finished(places.results) == set()


def test_a_child_that_dies_twice_is_a_failed_record_and_the_study_goes_on(places, planned, monkeypatch, capsys):
    attempts = []

    def spawn(job, places, log, on_event, *args, **kwargs):
        attempts.append(job["runs"][0]["id"])
        if job["runs"][0]["id"] == planned[0].id:
            raise children.Died("killed by the system")
        finish(planned[1], places.results)

    places.results.mkdir()
    monkeypatch.setattr(harness, "spawn", spawn)
    harness.train_all(planned, [("float32", "off")] * 2, places)
    assert attempts == [planned[0].id, planned[0].id, planned[1].id]
    newest = harness.newest(places.results)
    assert newest[planned[0].identity]["outcome"] == "failed"
    assert newest[planned[0].identity]["reason"] == "killed by the system"
    assert not harness.all_ok(planned, places.results) and harness.all_ok(planned[1:], places.results)
    assert "trying once more" in capsys.readouterr().err


def test_a_run_whose_pretraining_failed_fails_with_that_reason(places, planned, monkeypatch):
    monkeypatch.setattr(harness, "spawn", lambda *args, **kwargs: pytest.fail("nothing should start"))
    orphan = dataclasses.replace(planned[0], pretrain_run="tiny.pretrain.s0.abc")
    places.results.mkdir()
    harness.train_all([orphan], [("float32", "off")], places)
    (record,) = records.read(places.results)
    assert record["reason"] == "its pre-training tiny.pretrain.s0.abc did not finish"


class FakeTimer:
    """Stands in for the child that times steps: says how long each configuration took, or dies, or hangs."""

    def __init__(self, seconds, ends_at=None):
        self.seconds, self.ends_at = seconds, ends_at

    def __call__(self, job, places, log, on_event, deadline):
        on_event({"event": "ready"})
        for number in range(len(job["runs"])):
            if number == self.ends_at:
                assert deadline() is not None
                raise children.GivenUp
            on_event({"event": "cell", "step_seconds": self.seconds, "first_step_seconds": 1.0})


def test_a_candidate_past_its_limit_is_given_up_and_the_rest_not_tried(places, planned, monkeypatch):
    monkeypatch.setattr(harness, "spawn", FakeTimer(0.5, ends_at=0))
    distinct = {"a": planned[0], "b": planned[1]}
    with harness.Progress(2) as progress:
        timing = harness.Timing(distinct, {}, ("float32", "on"), {"a": 20.0, "b": 20.0}, places, progress)
        cells = timing.run()
    assert [(c["outcome"], c["step_seconds"]) for c in cells] == [("given up", None), ("not tried", None)]
    assert cells[0]["reason"] == "over 20 s, 10 times the best"


def test_step_times_are_measured_once_and_kept(places, tiny_study, monkeypatch):
    study = plan.resolve(studies.parse(tiny_study, "tiny"), Options())
    runs = plan.runs(study, Options(), lambda data: "data", lambda path: "digest")
    checked = {"device": "cpu", "mixed": "mixed_bfloat16", "configurations": []}
    checked["configurations"] = [{"freeze": r.freeze.name, "size": 32, "classes": 2} for r in runs]
    places.results.mkdir()
    monkeypatch.setattr(harness, "spawn", FakeTimer(0.5))
    cells = harness.measure_steps(runs, checked, places, fresh=False)
    assert len(cells) == 4 * 2 and {c["freeze"] for c in cells} == {"output", "all"}
    monkeypatch.setattr(harness, "spawn", lambda *args, **kwargs: pytest.fail("measured twice"))
    assert harness.measure_steps(runs, checked, places, fresh=False) == cells


def study_run(places, tmp_path, tiny_study, monkeypatch, options):
    """Run the tiny study with children that do nothing; which configurations were checked and which were timed."""
    (tmp_path / "tiny.toml").write_text(tiny_study)
    checked, timed = [], []

    def spawn(job, places, log, on_event, *args, **kwargs):
        names = [run["freeze"]["name"] for run in job.get("runs", [])]
        if job["action"] == "preflight":
            checked.extend(names)
            shapes = [{"freeze": name, "size": 32, "classes": 2} for name in names]
            on_event({"event": "checked", "device": "cpu", "mixed": "mixed_bfloat16", "configurations": shapes})
        elif job["action"] == "steps":
            timed.extend(names)
            FakeTimer(0.5)(job, places, log, on_event, None)

    monkeypatch.setattr(harness, "spawn", spawn)
    harness.run_study(str(tmp_path / "tiny.toml"), options, places, export=False, infer=False)
    return checked, timed


def test_auto_chooses_for_the_whole_study_also_under_only(places, tmp_path, tiny_study, monkeypatch):
    checked, timed = study_run(places, tmp_path, tiny_study, monkeypatch, Options(only=("output",)))
    assert set(checked) == set(timed) == {"output", "all"} and len(timed) == 2 * 4


def test_nothing_is_timed_when_nothing_is_left_open(places, tmp_path, tiny_study, monkeypatch):
    options = Options(precision=("float32",), xla=("off",))
    checked, timed = study_run(places, tmp_path, tiny_study, monkeypatch, options)
    assert set(checked) == {"output", "all"} and timed == []


def test_a_mistake_found_by_a_child_is_the_users(places, planned, monkeypatch):
    def run(module, job, *, log, on_event, deadline):
        on_event({"event": "user_error", "message": "no such layer"})

    monkeypatch.setattr(children, "run", run)
    with pytest.raises(UserError, match="no such layer"):
        harness.preflight(planned, places)


def test_a_missing_weights_file_is_named(tiny_study, places):
    study = studies.parse(tiny_study.replace('"none"', '"gone.h5"'), "tiny")
    with pytest.raises(UserError, match=r"cannot read the weights file gone.h5"):
        harness.plan_runs(study, Options(), places)


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

    monkeypatch.setattr(harness, "spawn", spawn)
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
    monkeypatch.setattr(harness, "spawn", spawn)
    harness.train_all(planned[:1], [("float32", "off")], places)
    assert [r["outcome"] for r in records.read(places.results)] == ["ok"]


def test_a_pretraining_that_failed_the_last_time_is_no_source(places, planned, monkeypatch):
    monkeypatch.setattr(harness, "spawn", lambda *args, **kwargs: pytest.fail("nothing should start"))
    places.results.mkdir()
    finish(planned[0], places.results)
    records.append(places.results, {**plan.heading(planned[0]), "outcome": "failed", "reason": "x", "time": "u"})
    dependent = dataclasses.replace(planned[1], pretrain_run=planned[0].id)
    harness.train_all([dependent], [("float32", "off")], places)
    assert "did not finish" in records.read(places.results)[-1]["reason"]


def publish(places, run, time, **facts):
    """Manifests of a published version, as if an export had written them."""
    for kind in ("keras", "saved_model", "onnx"):
        folder = places.exports / kind / run.model / "1"
        folder.mkdir(parents=True)
        manifest = {
            "kind": kind, "name": run.model, "version": 1, "run": run.id, "run_time": time, "limit": None,
            "epochs_cap": None, "size_bytes": 1, "graph": "g", "study": "tiny", "freeze": run.freeze.name,
        }  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest | facts))


def test_an_unchanged_run_is_not_published_twice(places, planned, monkeypatch):
    monkeypatch.setattr(harness, "spawn", lambda *args, **kwargs: pytest.fail("nothing to export"))
    places.results.mkdir()
    finish(planned[0], places.results)
    publish(places, planned[0], "t")
    assert harness.export_models({planned[0].configuration}, places)


def test_a_quick_try_is_not_published_over_the_real_model(places, planned, monkeypatch, capsys):
    monkeypatch.setattr(harness, "spawn", lambda *args, **kwargs: pytest.fail("nothing to export"))
    places.results.mkdir()
    finish(dataclasses.replace(planned[0], limit=10), places.results)
    publish(places, planned[0], "earlier")
    assert harness.export_models({planned[0].configuration}, places)
    assert "a quick try is not published over version 1" in capsys.readouterr().err


class Runtimes:
    """Stands in for the children that measure: dies at one model, measures the others."""

    def __init__(self, places, dies_at=None):
        self.places, self.dies_at, self.jobs = places, dies_at, []

    def __call__(self, job, places, log, on_event):
        self.jobs.append([m["name"] for m in job["manifests"]])
        for manifest in job["manifests"]:
            if manifest["name"] == self.dies_at:
                raise children.Died("killed by the system")
            for size in job["batch_sizes"]:
                row = {"kind": "infer", "runtime": job["runtime"], "device": job["device"], "batch_size": size}
                told = {"model": manifest["name"], "run": manifest["run"], "run_time": manifest["run_time"]}
                records.append(self.places.results, {**row, **told, "outcome": "ok", "reason": None})


def infer(places, monkeypatch, dies_at=None):
    children_ = Runtimes(places, dies_at)
    monkeypatch.setattr(harness, "spawn", children_)
    good = harness.infer_models(None, places, names=["onnxruntime"], batch_sizes=[1, 8])
    return good, children_.jobs


def test_what_is_measured_is_not_measured_again_but_another_training_is(places, planned, monkeypatch):
    places.results.mkdir()
    monkeypatch.setattr(harness.runtimes, "cuda_devices", lambda: 0)
    publish(places, planned[0], "t")
    assert infer(places, monkeypatch) == (True, [["tiny.output"]])
    assert infer(places, monkeypatch) == (True, [])
    shutil.rmtree(places.exports)
    publish(places, planned[0], "later")  # version 1 again, of another training
    assert infer(places, monkeypatch) == (True, [["tiny.output"]])


def test_a_device_that_was_missing_is_measured_when_it_is_there(places, planned, monkeypatch):
    places.results.mkdir()
    publish(places, planned[0], "t")
    monkeypatch.setattr(harness.runtimes, "cuda_devices", lambda: 0)
    infer(places, monkeypatch)
    skipped = [r for r in records.read(places.results) if r["outcome"] == "skipped"]
    assert {(r["device"], r["reason"]) for r in skipped} == {("gpu", "no CUDA device")}
    assert infer(places, monkeypatch)[1] == [] and len(records.read(places.results)) == 4
    monkeypatch.setattr(harness.runtimes, "cuda_devices", lambda: 1)
    assert infer(places, monkeypatch) == (True, [["tiny.output"]])


def test_a_runtime_that_dies_at_one_model_keeps_the_others(places, planned, monkeypatch):
    places.results.mkdir()
    monkeypatch.setattr(harness.runtimes, "cuda_devices", lambda: 0)
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


def test_a_log_that_cannot_be_written_is_a_mistake_of_the_user(places, planned):
    places.results.parent.mkdir(exist_ok=True)
    places.results.write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"cannot write .*preflight\.txt"):
        harness.preflight(planned, places)
