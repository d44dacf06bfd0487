"""The child that measures: which images it is given, and what it keeps."""

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from frostline import datasets, inference, measuring, plan, records
from frostline.inference import Subject
from frostline.inference.served import Served
from frostline.runtimes import How
from frostline.studies import Data

MANIFEST = {"name": "toy.all", "run": "r", "kind": "onnx", "version": 1, "trained": {"test_top1": 0.5}}
LABELS = np.array([0, 1])
ANSWERS = np.eye(2)[[0, 0]]


@pytest.fixture
def job(tmp_path):
    """A run that left its predictions, and the file of images that another child leaves."""
    run = records.run_folder(tmp_path, "r")
    run.mkdir(parents=True)
    stored = {"validation": np.eye(2)[[1, 1, 0]], "validation_labels": np.array([1, 1, 1])}
    np.savez(run / "predictions.npz", test=ANSWERS, test_labels=LABELS, **stored)
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    kept = {"validation_images": images, "validation_labels": np.array([1, 1]), "validation_rows": np.array([0, 2])}
    np.savez(tmp_path / "0.npz", images=images, labels=LABELS, **kept)
    return {"results": str(tmp_path), "tests": {"toy.all": str(tmp_path / "0.npz")}, "how": {"payload": None}}


def test_images_come_with_what_the_run_answered_to_them(job):
    given = measuring._given(MANIFEST, job)
    assert given.stored.tolist() == ANSWERS.tolist()
    images, labels, stored = given.validation
    assert len(images) == 2 and labels.tolist() == [1, 1] and stored.tolist() == [[0, 1], [1, 0]]


def test_images_are_sent_as_jpeg_files_where_that_is_asked_for(job):
    given = measuring._given(MANIFEST, job | {"how": {"payload": "jpeg"}})
    assert all(one.startswith(b"\xff\xd8") for one in [*given.images, *given.validation[0]])


def test_predictions_of_another_training_are_not_held_against_it(job):
    other = measuring._given(MANIFEST | {"trained": {"test_top1": 0.4}}, job)
    assert other.stored is None and other.validation is None
    gone = measuring._given(MANIFEST | {"run": "gone"}, job)
    assert gone.stored is None and gone.validation is None


@pytest.mark.parametrize("left", [0, 100, 0.5])
def test_damaged_predictions_are_held_against_nothing(job, tmp_path, left):
    path = records.run_folder(tmp_path, "r") / "predictions.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: left if left in (0, 100) else len(whole) // 2])
    assert measuring._given(MANIFEST, job).stored is None


def measured(job, tmp_path, monkeypatch, rows, **more):
    """What `work` keeps where a runtime gives these rows, the last of which may be an exception."""

    def measure(subject, cells, given, logs, **settings):
        for row in rows:
            if isinstance(row, BaseException):
                raise row
            yield {"kind": "infer", "outcome": "ok", "host_copies": subject.host_copies, **row}

    monkeypatch.setattr(inference, "measure", measure)
    monkeypatch.setattr(inference, "accuracy", lambda subject, given: {"model": subject.manifest["name"]})
    monkeypatch.setattr(inference, "share", lambda row, own: row | own)
    known = {"exports": "x", "runtime": "onnxruntime", "server": None, "figures": [], "manifests": [MANIFEST]}
    known |= {"cells": [["single_stream", 1]], "profile": "quick", "brief": False, "latency_bound": None, "logs": "l"}
    how = {"how": plan.plain(How(device=more.pop("device", "cpu")))}
    with contextlib.suppress(MemoryError):
        measuring.work(job | known | how | more, lambda *told, **facts: None)
    return [r for r in records.read(tmp_path) if r["kind"] == "infer"]


def test_a_finished_cell_is_kept_whatever_befalls_the_next(job, tmp_path, monkeypatch):
    kept = measured(job, tmp_path, monkeypatch, [{"batch_size": 1}, {"batch_size": 32}, MemoryError()])
    assert [(r["batch_size"], r["log"]) for r in kept] == [(1, "loadgen/l"), (32, "loadgen/l")]
    assert kept[0]["machine"]["cores"]


def test_on_a_gpu_each_cell_is_measured_with_host_copies_and_without(job, tmp_path, monkeypatch):
    kept = measured(job, tmp_path, monkeypatch, [{"batch_size": 1}], device="gpu")
    assert [r["host_copies"] for r in kept] == [True, False]


def test_models_share_what_was_measured_now_and_before(job, tmp_path, monkeypatch):
    both = {"manifests": [MANIFEST, MANIFEST | {"name": "toy.head"}]}
    both |= {
        "tests": job["tests"] | {"toy.head": job["tests"]["toy.all"]},
        "figures": [{"kind": "infer", "outcome": "ok", "batch_size": 1}],
    }
    own = {"batch_size": 32, "model": "toy.all"}
    rows = [(r["model"], r["batch_size"]) for r in measured(job, tmp_path, monkeypatch, [own], **both)]
    assert rows == [("toy.all", 32), ("toy.head", 1), ("toy.head", 32)]


@pytest.mark.parametrize(
    ("runtime", "threads", "server", "pools"),
    [
        ("saved_model", 1, None, [1, 1]),
        ("keras_predict", 2, None, [2, 2]),
        ("saved_model", 0, None, []),
        ("onnxruntime", 1, None, []),
        ("tf_serving_grpc", 1, Served("embedded", "http://x", None), []),
    ],
)
def test_tensorflow_gets_its_threads_before_it_starts(runtime, threads, server, pools, monkeypatch):
    taken = []
    setters = {f"set_{pool}_op_parallelism_threads": taken.append for pool in ("intra", "inter")}
    stub = SimpleNamespace(config=SimpleNamespace(threading=SimpleNamespace(**setters)))
    monkeypatch.setitem(sys.modules, "tensorflow", stub)
    measuring._set_threads(Subject(MANIFEST, Path("x"), runtime, How(threads=threads), server=server))
    assert taken == pools


def test_the_images_of_some_data_are_left_in_files(tmp_path):
    emitted = []
    data = Data("digits", classes=(0, 1), validation=0.2)
    same = {"limit": 40, "model": "tiny.all", "fingerprint": datasets.fingerprint(data)}
    tests = [{"data": plan.plain(data), "path": str(tmp_path / "0.npz")} | same,
             {"data": plan.plain(data) | {"protocol": "document", "validation": 0.0},
              "path": str(tmp_path / "1.npz")} | same]  # fmt: skip
    measuring.work({"action": "test_images", "tests": tests, "data_dir": None}, lambda *told: emitted.append(told))
    assert not emitted
    with np.load(tests[0]["path"]) as kept:
        assert len(kept["images"]) == len(kept["labels"]) and kept["images"].dtype == np.uint8
        assert len(kept["validation_images"]) == len(kept["validation_labels"]) == len(kept["validation_rows"]) > 0
    with np.load(tests[1]["path"]) as kept:
        assert set(kept) == {"images", "labels"}  # it validates on its test images


def test_images_that_have_changed_since_a_model_was_trained_are_refused(tmp_path):
    emitted = []
    test = {"data": plan.plain(Data("digits")), "limit": 40, "path": str(tmp_path / "0.npz")}
    test |= {"model": "tiny.all", "fingerprint": "another"}
    work = {"action": "test_images", "tests": [test], "data_dir": None}
    measuring.work(work, lambda kind, **told: emitted.append((kind, told["message"])))
    assert emitted and emitted[0][0] == "user_error" and not Path(test["path"]).exists()
    assert emitted[0][1].startswith(
        "the images of digits are not those that tiny.all was trained on; give the --data-dir"
    )
