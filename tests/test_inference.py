import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from frostline import inference, runtimes
from frostline.runtimes import RUNTIMES

MANIFEST = {
    "name": "tiny.output",
    "version": 3,
    "study": "tiny",
    "freeze": "output",
    "run": "0123",
    "class_names": ["dark", "bright"],
    "size_bytes": 1234,
}
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 2, 2, 3), dtype=np.uint8)
LABELS = (IMAGES[:, 0, 0, 0] > 127).astype(np.int32)
LABELS[:4] = 1 - LABELS[:4]


class Clock:
    """Time that passes only while a runtime works: 1 ms per image."""

    now = 0.0

    def __call__(self):
        return self.now


def right(images):
    bright = images[:, 0, 0, 0].astype(np.float32) / 255
    return np.stack([1 - bright, bright], axis=1)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def fake(monkeypatch, clock):
    """Put a runtime called `fake` into the table; it answers with the function given, and takes 2 s to load."""

    def install(answer, devices=("cpu",)):
        def predict(images):
            clock.now += 0.001 * len(images)
            return answer(images)

        def open(folder, manifest, device):
            clock.now += 2
            return predict

        entry = replace(RUNTIMES["onnxruntime"], library="json", devices=devices, open=open)
        monkeypatch.setitem(RUNTIMES, "fake", entry)

    return install


def measure(clock, *, device="cpu", batch_sizes=(1, 8), runtime="fake", **options):
    return inference.measure(
        MANIFEST,
        Path("unused"),
        runtime,
        device,
        batch_sizes=batch_sizes,
        images=IMAGES,
        labels=LABELS,
        clock=clock,
        **options,
    )


def accuracy(clock, **changes):
    return inference.accuracy(
        MANIFEST | changes, Path("unused"), "fake", "cpu", images=IMAGES, labels=LABELS, clock=clock
    )


# -- a runtime that is right ---------------------------------------------------------------------------


def test_one_record_per_batch_size(fake, clock):
    fake(right)
    single, eight = measure(clock)
    assert (single["batch_size"], eight["batch_size"]) == (1, 8)
    assert single["images_per_second"] == pytest.approx(1000) and eight["images_per_second"] == pytest.approx(1000)
    assert single["latency_p50_seconds"] == pytest.approx(0.001)
    assert eight["latency_p50_seconds"] == pytest.approx(0.008)
    assert single["load_seconds"] == pytest.approx(2) and single["first_answer_seconds"] == pytest.approx(0.001)
    assert single["test_top1"] == eight["test_top1"] == 0.9
    assert single["size_bytes"] == 1234
    for record in (single, eight):
        assert (record["kind"], record["model"], record["version"]) == ("infer", "tiny.output", 3)
        assert (record["study"], record["freeze"], record["run"]) == ("tiny", "output", "0123")
        assert record["outcome"] == "ok" and record["valid"] is False and record["figures_of"] is None
        json.dumps(record, allow_nan=False)


def test_a_minimum_time_and_a_minimum_count_are_kept(fake, clock):
    fake(right)
    (long,) = measure(clock, batch_sizes=[8], min_seconds=1.0, min_count=10)
    assert long["count"] == 125
    assert long["reason"].startswith("quick: 125 samples in 1.0 s;")
    (short,) = measure(clock, batch_sizes=[8], min_seconds=0.0, min_count=10)
    assert short["count"] == 10


def test_a_percentile_the_sample_cannot_support_is_null(fake, clock):
    fake(right)
    (record,) = measure(clock, batch_sizes=[8], min_seconds=0.0, min_count=64)
    assert record["latency_p90_seconds"] == pytest.approx(0.008)
    assert record["latency_p95_seconds"] is None and record["latency_p99_seconds"] is None


def test_batches_are_of_different_real_images(fake, clock):
    seen = []
    fake(lambda images: seen.append(images.tobytes()) or right(images))
    measure(clock, batch_sizes=[1], min_seconds=0.0, min_count=16)
    timed = seen[-16:]
    assert all(first != second for first, second in itertools.pairwise(timed))
    assert len(set(timed)) == inference.DISTINCT_BATCHES
    assert set(timed) <= {image.tobytes() for image in IMAGES}


def test_a_batch_larger_than_the_test_set_repeats_it(fake, clock):
    fake(right)
    (record,) = measure(clock, batch_sizes=[64])
    assert record["outcome"] == "ok"


# -- runtimes that are wrong ---------------------------------------------------------------------------


class Late:
    """Answers each batch with what the batch before it should have got."""

    before = None

    def __call__(self, images):
        answer = right(images)
        late = answer if self.before is None or self.before.shape != answer.shape else self.before
        self.before = answer
        return late


@pytest.mark.parametrize("answer", [Late(), lambda images: np.roll(right(images), 1, axis=0)])
def test_a_runtime_that_shifts_its_answers_fails(answer, fake, clock):
    fake(answer)
    for record in measure(clock):
        assert record["outcome"] == "failed"
        assert "off those of the accuracy pass, 0.0001 is allowed" in record["reason"]
        assert record["images_per_second"] is None and record["count"] is None


def test_a_runtime_that_is_wrong_at_one_batch_size_fails_there_only(fake, clock):
    fake(lambda images: right(images) + (0.001 if len(images) == 4 else 0))
    assert [r["outcome"] for r in measure(clock, batch_sizes=[1, 4, 16])] == ["ok", "failed", "ok"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda images: right(images)[:, :1], "WrongAnswer: answers (40, 1) are not"),
        (lambda images: right(images) * np.float32(np.nan), "WrongAnswer: answers (40, 2) are not"),
        (lambda images: right(images[:1]), "WrongAnswer: answers (2, 2) are not"),
    ],
)
def test_answers_of_another_form_fail_every_cell(answer, reason, fake, clock):
    fake(answer)
    records = measure(clock)
    assert [r["outcome"] for r in records] == ["failed", "failed"]
    assert records[0]["reason"].startswith(reason) and records[0]["test_top1"] is None


def test_a_batch_that_loses_images_fails(fake, clock):
    fake(lambda images: right(images)[:3] if len(images) == 4 else right(images))
    (record,) = measure(clock, batch_sizes=[4])
    assert record["reason"] == "WrongAnswer: a batch of 4 images was answered by (3, 2), not (4, 2)"


def test_an_exception_in_one_cell_leaves_the_others(fake, clock):
    def answer(images):
        if len(images) == 4:
            raise MemoryError("4 images are too many\nand much more text")
        return right(images)

    fake(answer)
    records = measure(clock, batch_sizes=[1, 4, 16])
    assert [r["outcome"] for r in records] == ["ok", "failed", "ok"]
    assert records[1]["reason"] == "MemoryError: 4 images are too many"


def test_an_artifact_that_cannot_be_loaded_fails_every_cell(tmp_path, clock):
    records = inference.measure(
        MANIFEST, tmp_path, "onnxruntime", "cpu", batch_sizes=[1, 8], images=IMAGES, labels=LABELS, clock=clock
    )
    assert [r["outcome"] for r in records] == ["failed", "failed"]
    assert "model.onnx" in records[0]["reason"]


def test_a_device_that_is_missing_is_skipped(fake, clock, monkeypatch):
    monkeypatch.setattr(runtimes, "cuda_devices", lambda: 0)
    fake(right, devices=("cpu", "gpu"))
    records = measure(clock, device="gpu")
    assert [(r["outcome"], r["reason"]) for r in records] == [("skipped", "no CUDA device")] * 2
    assert records[0]["test_top1"] is None


# -- records without figures of their own --------------------------------------------------------------


def test_accuracy_alone_measures_no_figures(fake, clock):
    fake(right)
    (measured,) = measure(clock, batch_sizes=[8])
    own = accuracy(clock)
    assert own.keys() == measured.keys()
    assert own["test_top1"] == 0.9 and own["outcome"] == "ok" and own["load_seconds"] == pytest.approx(2)
    assert {own[key] for key in ("batch_size", *inference.FIGURES)} == {None}


def test_figures_are_shared_and_accuracy_is_not(fake, clock):
    fake(right)
    (measured,) = measure(clock, batch_sizes=[8])
    fake(lambda images: right(images)[:, ::-1])
    shared = inference.share(measured, accuracy(clock, name="tiny.all", version=1))
    assert (shared["model"], shared["version"], shared["batch_size"]) == ("tiny.all", 1, 8)
    assert shared["figures_of"] == "tiny.output"
    assert shared["images_per_second"] == measured["images_per_second"]
    assert shared["reason"] == measured["reason"]
    assert shared["test_top1"] == pytest.approx(0.1)


def test_a_failed_accuracy_pass_shares_nothing(fake, clock):
    fake(right)
    (measured,) = measure(clock, batch_sizes=[8])
    fake(lambda images: right(images)[:, :1])
    shared = inference.share(measured, accuracy(clock))
    assert shared["outcome"] == "failed" and shared["batch_size"] == 8
    assert shared["images_per_second"] is None and shared["figures_of"] is None


def test_what_was_not_tried_has_records_too(fake, clock):
    fake(right)
    records = inference.unmeasured(MANIFEST, "fake", "gpu", [1, 8], "failed", "the process died")
    assert [(r["batch_size"], r["outcome"], r["reason"]) for r in records] == [
        (1, "failed", "the process died"),
        (8, "failed", "the process died"),
    ]
    assert records[0].keys() == measure(clock, batch_sizes=[1])[0].keys()


def test_without_host_copies_the_held_images_are_what_is_timed_and_checked(fake, clock, monkeypatch):
    fake(right)

    def hold(folder, manifest, device):
        def put(images):
            def run():
                clock.now += 0.0005 * len(images)

            return run, lambda: right(images)

        return put

    monkeypatch.setitem(RUNTIMES, "fake", replace(RUNTIMES["fake"], hold=hold))
    (record,) = measure(clock, batch_sizes=[8], host_copies=False)
    assert record["host_copies"] is False and record["outcome"] == "ok"
    assert record["images_per_second"] == pytest.approx(2000)

    def wrong(folder, manifest, device):
        return lambda images: (hold(folder, manifest, device)(images)[0], lambda: right(images)[::-1])

    monkeypatch.setitem(RUNTIMES, "fake", replace(RUNTIMES["fake"], hold=wrong))
    (record,) = measure(clock, batch_sizes=[8], host_copies=False)
    assert record["outcome"] == "failed" and "WrongAnswer" in record["reason"]


def test_a_runtime_that_always_copies_is_skipped_without(fake, clock, monkeypatch):
    fake(right)
    monkeypatch.setitem(RUNTIMES, "fake", replace(RUNTIMES["fake"], hold=None))
    (record,) = measure(clock, batch_sizes=[8], host_copies=False)
    assert (record["outcome"], record["reason"]) == ("skipped", "fake always copies between host and device")
