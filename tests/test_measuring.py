"""The child that measures: which images it is given, and what it keeps."""

from pathlib import Path

import numpy as np
import pytest

from frostline import datasets, measuring, plan, records
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
