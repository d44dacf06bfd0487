import io
import json
import math
import os
import statistics
import time
import urllib.error
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from frostline import inference, runtimes
from frostline.inference import Cell, Given, Subject, loadgen, rules, served
from frostline.inference.loadgen import Window
from frostline.runtimes import RUNTIMES, How

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
GIVEN = Given(IMAGES, LABELS)
CELLS = (("single_stream", 1), ("offline", 8))
# Windows of a few milliseconds, so that a test is a matter of some tenths of a second.
FAST = rules.Profile("quick", 0.002, {"single_stream": 22, "offline": 1, "server": 60}, 3, 3, seconds_at_most=4.0)


class Clock:
    """Time that passes only while a runtime works: 0.1 ms per image."""

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
            clock.now += 0.0001 * len(images)
            return answer(images)

        def open(folder, manifest, how):
            clock.now += 2
            return predict

        entry = replace(RUNTIMES["onnxruntime"], library="json", devices=devices, open=open)
        monkeypatch.setitem(RUNTIMES, "fake", entry)

    return install


def measure(clock, tmp_path, *, cells=CELLS, given=GIVEN, profile=FAST, runtime="fake", **how):
    host_copies = how.pop("host_copies", True)
    bound = how.pop("latency_bound", None)
    subject = Subject(MANIFEST, Path("unused"), runtime, How(**how), host_copies)
    settings = {"profile": profile, "latency_bound": bound, "clock": clock}
    return list(inference.measure(subject, cells, given, tmp_path / "logs", **settings))


def accuracy(clock, given=GIVEN, **changes):
    return inference.accuracy(Subject(MANIFEST | changes, Path("unused"), "fake"), given, clock)


# -- a runtime that is right ---------------------------------------------------------------------------


def test_one_record_per_scenario_and_batch_size(fake, clock, tmp_path):
    fake(right)
    single, offline = measure(clock, tmp_path)
    assert (single["scenario"], single["batch_size"]) == ("single_stream", 1)
    assert (offline["scenario"], offline["batch_size"]) == ("offline", 8)
    assert single["latency_p50_seconds"] == single["latency_p90_seconds"] == pytest.approx(0.0001)
    assert offline["latency_p50_seconds"] == pytest.approx(0.0008)
    assert single["count"] >= 66 and single["images_per_second"] > 0 and offline["images_per_second"] > 0
    assert single["load_seconds"] == pytest.approx(2) and single["first_answer_seconds"] == pytest.approx(0.0001)
    assert single["test_top1"] == offline["test_top1"] == 0.9
    assert single["warmup_calls"] == 4
    assert single["size_bytes"] == 1234 and single["peak_memory_bytes"] > 1 << 20
    for record in (single, offline):
        assert (record["kind"], record["model"], record["version"]) == ("infer", "tiny.output", 3)
        assert (record["study"], record["freeze"], record["run"]) == ("tiny", "output", "0123")
        assert record["outcome"] == "ok" and record["valid"] is False and record["figures_of"] is None
        assert record["reason"].startswith("quick: ") and len(record["windows"]) == 3
        json.dumps(record, allow_nan=False)
    assert "MLPerf asks for 600 s and at least 64 queries" in single["reason"]
    assert "MLPerf asks for 600 s and at least 24,576 images" in offline["reason"]


def test_loadgens_logs_are_kept(fake, clock, tmp_path):
    fake(right)
    measure(clock, tmp_path)
    kept = sorted(path.relative_to(tmp_path / "logs").as_posix() for path in (tmp_path / "logs").rglob("*.txt"))
    assert len(kept) == 2 * 2 * (3 + 2 * rules.SAME_PAIRS) and "offline-8/3/mlperf_log_summary.txt" in kept
    assert "Result is" in (tmp_path / "logs" / "single_stream-1" / "1" / "mlperf_log_summary.txt").read_text()


def test_a_percentile_the_sample_cannot_support_is_null(fake, clock, tmp_path):
    fake(right)
    short = replace(FAST, seconds=0.0, queries={"single_stream": 22, "offline": 1})
    single, offline = measure(clock, tmp_path, profile=short)
    assert single["latency_p90_seconds"] and single["latency_p99_seconds"] is None
    assert offline["count"] == 3 and offline["latency_p50_seconds"] is None


def test_the_first_of_two_long_cells_is_there_before_the_second_is_measured(fake, clock, tmp_path):
    sizes = []
    fake(lambda images: sizes.append(len(images)) or right(images))
    long = replace(FAST, name="valid", most=1, windows=1, seconds_at_most=None)
    found = inference.measure(Subject(MANIFEST, Path("x"), "fake"), CELLS, GIVEN, tmp_path, profile=long, clock=clock)
    assert next(found)["outcome"] == "ok"
    batches = sizes.count(8)
    assert next(found)["scenario"] == "offline" and sizes.count(8) > batches == 1 + inference.WARMUP_CALLS


def test_images_are_sent_in_another_order_again_and_again(fake, clock, tmp_path):
    seen = []
    fake(lambda images: seen.append(images.tobytes()) or right(images))
    measure(clock, tmp_path, cells=[("single_stream", 1)])
    timed = seen[7:73]  # after the accuracy pass and the warm-up
    assert all(image == IMAGES[:1].tobytes() for image in seen[3:7])
    assert len(set(timed)) > 20 and set(timed) <= {image.tobytes() for image in IMAGES}


def test_offline_calls_are_whole_batches(fake, clock, tmp_path):
    sizes = []
    fake(lambda images: sizes.append(len(images)) or right(images))
    (record,) = measure(clock, tmp_path, cells=[("offline", 64)])  # larger than the test set
    assert record["outcome"] == "ok" and set(sizes[-3:]) == {64}


def test_what_a_call_may_take_limits_the_count_of_a_quick_cell():
    bench = inference.Bench(Subject(MANIFEST, Path("x"), "null"), None, GIVEN, Path("x"), FAST, None, None)
    assert bench.load(Cell("single_stream", 1, call_seconds=0.001)).min_queries == 22
    assert bench.load(Cell("single_stream", 1, call_seconds=1.0)).min_queries == 4
    assert bench.load(Cell("single_stream", 1, call_seconds=9.0)).min_queries == 4  # three windows have a median
    assert bench.load(Cell("offline", 8, call_seconds=9.0)).min_queries == 1
    valid = replace(bench, profile=rules.PROFILES["valid"])
    assert valid.load(Cell("single_stream", 1, call_seconds=100.0)).min_queries == 64


# -- runtimes that are wrong ---------------------------------------------------------------------------


class Late:
    """Answers each batch with what the batch before it should have got."""

    before = None

    def __call__(self, images):
        answer = right(images)
        late = answer if self.before is None or self.before.shape != answer.shape else self.before
        self.before = answer
        return late


@pytest.mark.parametrize("answer", [Late(), lambda images: np.roll(right(images), len(images) // 8, axis=0)])
def test_a_runtime_that_shifts_its_answers_fails(answer, fake, clock, tmp_path):
    fake(answer)
    for record in measure(clock, tmp_path, cells=[("offline", 8)]):
        assert record["outcome"] == "failed"
        assert "off those of the accuracy pass, 0.0001 is allowed" in record["reason"]
        assert record["images_per_second"] is None and record["count"] is None


def test_an_answer_that_goes_wrong_later_is_noticed(fake, clock, tmp_path):
    calls = []
    fake(lambda images: calls.append(1) or right(images) + (0.001 if len(calls) > 60 else 0))
    (record,) = measure(clock, tmp_path, cells=[("single_stream", 1)])
    assert record["outcome"] == "failed" and record["reason"].startswith("WrongAnswer: answers are 0.001 off")


def test_a_runtime_that_is_wrong_at_one_batch_size_fails_there_only(fake, clock, tmp_path):
    fake(lambda images: right(images) + (0.001 if len(images) == 4 else 0))
    cells = [("single_stream", 1), ("offline", 4), ("offline", 16)]
    assert [r["outcome"] for r in measure(clock, tmp_path, cells=cells)] == ["ok", "failed", "ok"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda images: right(images)[:, :1], "WrongAnswer: answers (40, 1) are not"),
        (lambda images: right(images) * np.float32(np.nan), "WrongAnswer: answers (40, 2) are not"),
        (lambda images: right(images[:1]), "WrongAnswer: answers (2, 2) are not"),
    ],
)
def test_answers_of_another_form_fail_every_cell(answer, reason, fake, clock, tmp_path):
    fake(answer)
    records = measure(clock, tmp_path)
    assert [r["outcome"] for r in records] == ["failed", "failed"]
    assert records[0]["reason"].startswith(reason) and records[0]["test_top1"] is None


def test_a_batch_that_loses_images_fails(fake, clock, tmp_path):
    fake(lambda images: right(images)[:3] if len(images) == 4 else right(images))
    (record,) = measure(clock, tmp_path, cells=[("offline", 4)])
    assert record["reason"] == "WrongAnswer: a batch of 4 images was answered by (3, 2), not (4, 2)"


def faster_again(clock, seconds):
    """Right answers that take 0.1 ms, and less where the images are those before."""
    last = []

    def answer(images):
        if last and images.tobytes() == last[0]:
            clock.now -= seconds
        last[:] = [images.tobytes()]
        return right(images)

    return answer


def test_a_runtime_that_keeps_its_answers_fails(fake, clock, tmp_path):
    fake(faster_again(clock, 0.00009))
    for record in measure(clock, tmp_path):
        assert record["outcome"] == "failed" and record["images_per_second"] is None
        assert "; it keeps its answers" in record["reason"]
    assert record["reason"].startswith("WrongAnswer: one image again and again takes 89% of what different ones take")
    fake(right)
    for record in measure(clock, tmp_path):
        assert record["outcome"] == "ok" and record["same_image_ratio"] == pytest.approx(1.0, abs=1e-6)


def test_what_is_a_little_faster_with_one_image_is_said(fake, clock, tmp_path):
    fake(faster_again(clock, 0.000003))
    (record,) = measure(clock, tmp_path, cells=[("single_stream", 1)])
    assert record["outcome"] == "ok" and "one image again and again takes 97% of what" in record["reason"]


def test_offline_goes_without_the_look_at_one_image_where_it_is_dear(fake, clock, tmp_path):
    fake(right)
    bench = inference.Bench(Subject(MANIFEST, Path("x"), "fake"), None, GIVEN, Path("x"), FAST, None, None)
    assert bench.audits(Cell("offline", 8, call_seconds=0.09)) and bench.audits(Cell("single_stream", 1, 1.0))
    assert not bench.audits(Cell("offline", 8, call_seconds=0.11)) and not bench.audits(Cell("server", 1, 0.001))
    assert not replace(bench, subject=Subject(MANIFEST, Path("x"), "null")).audits(Cell("single_stream", 1, 1.0))


def test_one_image_is_faster_only_beyond_the_noise_of_the_windows():
    clear = rules.same_image([(1.0, 0.8), (1.0, 0.81), (1.0, 0.79), (1.0, 0.8)])
    assert clear.ratio == pytest.approx(0.8, rel=1e-3) and clear.from_memory
    # Logs of -0.2, 0, -0.2, 0: mean -0.1, deviation 0.1155, so the bound is -0.1 + 4.541 * 0.0577 = 0.162.
    loud = rules.same_image([(1.0, math.exp(-0.2)), (1.0, 1.0)] * 2)
    assert loud.ratio == pytest.approx(math.exp(-0.1)) and loud.noise == pytest.approx(math.exp(0.2622), rel=1e-3)
    assert not loud.faster and not loud.from_memory
    little = rules.same_image([(1.0, 0.96), (1.0, 0.961), (1.0, 0.959), (1.0, 0.96)])
    assert little.faster and not little.from_memory
    assert rules.same_image([(0.0, 0.0)] * 4) is None


def test_noise_alone_is_seldom_called_an_answer_from_memory():
    rng = np.random.default_rng(0)
    medians = np.exp(rng.normal(0, 0.1, (4000, rules.SAME_PAIRS, 2)))
    found = [rules.same_image(pairs) for pairs in medians.tolist()]
    assert statistics.fmean(same.faster for same in found) == pytest.approx(0.01, abs=0.005)
    assert statistics.fmean(same.from_memory for same in found) < 0.005
    found = [rules.same_image([(a, b / 2) for a, b in pairs]) for pairs in medians.tolist()]
    assert statistics.fmean(same.from_memory for same in found) > 0.9  # a runtime that is twice as fast is found


def test_an_exception_while_loadgen_runs_ends_the_cell_and_leaves_the_others(fake, clock, tmp_path):
    calls = []

    def answer(images):
        calls.append(1)
        if len(images) == 4 and len(calls) > 14:  # ten of the accuracy pass and the first image, the warm-up
            raise MemoryError("4 images are too many\nand much more text")
        return right(images)

    fake(answer)
    records = measure(clock, tmp_path, cells=[("offline", 4), ("offline", 16)])
    assert [r["outcome"] for r in records] == ["failed", "ok"]
    assert records[0]["reason"] == "MemoryError: 4 images are too many"


def test_an_artifact_that_cannot_be_loaded_fails_every_cell(tmp_path, clock):
    subject = Subject(MANIFEST, tmp_path, "onnxruntime")
    records = list(inference.measure(subject, CELLS, GIVEN, tmp_path, clock=clock))
    assert [r["outcome"] for r in records] == ["failed", "failed"]
    assert "model.onnx" in records[0]["reason"]


def test_a_device_that_is_missing_is_skipped(fake, clock, monkeypatch, tmp_path):
    monkeypatch.setattr(runtimes, "cuda_devices", lambda: 0)
    fake(right, devices=("cpu", "gpu"))
    records = measure(clock, tmp_path, device="gpu")
    assert [(r["outcome"], r["reason"]) for r in records] == [("skipped", "no CUDA device")] * 2
    assert records[0]["test_top1"] is None


# -- against the stored predictions --------------------------------------------------------------------

STORED = right(IMAGES)


def trained(precision, stored, answer, fake, clock, **how):
    fake(answer)
    manifest = MANIFEST | {"trained": {"precision": precision}}
    return inference.accuracy(Subject(manifest, Path("x"), "fake", How(**how)), Given(IMAGES, LABELS, stored), clock)


def test_agreement_is_the_share_of_images_with_the_class_of_the_trained_model(fake, clock):
    off = STORED.copy()
    off[0] = off[0, ::-1]
    assert trained("mixed_bfloat16", STORED, right, fake, clock)["agreement"] == 1.0
    assert trained("mixed_bfloat16", off, right, fake, clock)["agreement"] == 1 - 1 / 40
    assert trained("float32", None, right, fake, clock)["agreement"] is None


@pytest.mark.parametrize(
    ("precision", "variant", "shift", "outcome"),
    [
        ("float32", "float32", 0.0005, "ok"),
        ("float32", "float32", 0.002, "failed"),
        ("float32", "int8", 0.002, "ok"),
        ("mixed_bfloat16", "float32", 0.05, "ok"),
        ("mixed_bfloat16", "float32", 0.15, "failed"),
    ],
)
def test_answers_are_held_to_the_stored_predictions(precision, variant, shift, outcome, fake, clock):
    away = np.array([shift, -shift], np.float32)
    record = trained(precision, STORED, lambda images: right(images) + away, fake, clock, variant=variant)
    assert record["outcome"] == outcome
    if outcome == "failed":
        assert "off the predictions of the run" in record["reason"]


def test_answers_in_another_order_than_the_stored_ones_fail(fake, clock):
    record = trained("mixed_bfloat16", STORED, lambda images: right(images)[:, ::-1], fake, clock)
    assert record["outcome"] == "failed" and "0.1 is allowed" in record["reason"]


def test_an_artifact_is_held_to_the_run_on_validation_images_too(fake, clock):
    fake(right)
    stored = right(IMAGES)[:, ::-1].copy()
    stored[:30] = right(IMAGES[:30])
    validation = IMAGES, (IMAGES[:, 0, 0, 0] > 127).astype(np.int32), stored
    record = accuracy(clock, Given(IMAGES, LABELS, None, validation))
    assert (record["validation_top1"], record["validation_images"]) == (1.0, 40)
    assert record["validation_change"] == 0.25  # the run has ten of the forty wrong
    assert record["validation_error"] == pytest.approx(math.sqrt(0.25 * 0.75 / 40))
    assert record["test_images"] == 40 and accuracy(clock)["validation_top1"] is None


# -- records without figures of their own --------------------------------------------------------------


def test_accuracy_alone_measures_no_figures(fake, clock, tmp_path):
    fake(right)
    (measured,) = measure(clock, tmp_path, cells=[("offline", 8)])
    own = accuracy(clock)
    assert own.keys() == measured.keys()
    assert own["test_top1"] == 0.9 and own["outcome"] == "ok" and own["load_seconds"] == pytest.approx(2)
    assert {own[key] for key in ("batch_size", *inference.FIGURES)} == {None}


def test_figures_are_shared_and_accuracy_is_not(fake, clock, tmp_path):
    fake(right)
    (measured,) = measure(clock, tmp_path, cells=[("offline", 8)])
    fake(lambda images: right(images)[:, ::-1])
    shared = inference.share(measured, accuracy(clock, name="tiny.all", version=1))
    assert (shared["model"], shared["version"], shared["batch_size"]) == ("tiny.all", 1, 8)
    assert (shared["figures_of"], shared["scenario"], shared["profile"]) == ("tiny.output", "offline", "quick")
    for key in ("images_per_second", "reason", "stable", "peak_memory_bytes"):
        assert shared[key] == measured[key]
    assert shared["test_top1"] == pytest.approx(0.1)


def test_a_failure_is_shared_too(fake, clock, tmp_path):
    fake(lambda images: right(images) + (0.001 if len(images) == 8 else 0))
    (measured,) = measure(clock, tmp_path, cells=[("offline", 8)])
    shared = inference.share(measured, accuracy(clock, name="tiny.all"))
    assert (shared["model"], shared["outcome"], shared["reason"]) == ("tiny.all", "failed", measured["reason"])
    assert shared["test_top1"] == 0.9 and shared["images_per_second"] is None


def test_a_failed_accuracy_pass_shares_nothing(fake, clock, tmp_path):
    fake(right)
    (measured,) = measure(clock, tmp_path, cells=[("offline", 8)])
    fake(lambda images: right(images)[:, :1])
    shared = inference.share(measured, accuracy(clock))
    assert shared["outcome"] == "failed" and (shared["scenario"], shared["batch_size"]) == ("offline", 8)
    assert shared["images_per_second"] is None and shared["figures_of"] is None


def test_what_was_not_tried_has_records_too(fake, clock, tmp_path):
    fake(right)
    subject = Subject(MANIFEST, Path("unused"), "fake", How("gpu"))
    records = inference.unmeasured(subject, CELLS, FAST, "failed", "the process died")
    assert [(r["scenario"], r["batch_size"], r["outcome"], r["reason"]) for r in records] == [
        ("single_stream", 1, "failed", "the process died"),
        ("offline", 8, "failed", "the process died"),
    ]
    assert records[0].keys() == measure(clock, tmp_path)[0].keys()


# -- without host copies -------------------------------------------------------------------------------


def test_without_host_copies_the_held_images_are_what_is_timed_and_checked(fake, clock, monkeypatch, tmp_path):
    fake(right)

    def hold(folder, manifest, how):
        def put(images):
            ran = []

            def run():
                clock.now += 0.00005 * len(images)
                ran.append(1)

            def read():
                assert ran, "nothing was answered yet"
                return right(images)

            return run, read

        return put

    monkeypatch.setitem(RUNTIMES, "fake", replace(RUNTIMES["fake"], hold=hold))
    (record,) = measure(clock, tmp_path, cells=[("offline", 8)], host_copies=False)
    assert record["host_copies"] is False and record["outcome"] == "ok"
    assert record["latency_p50_seconds"] == pytest.approx(0.0004)
    (record,) = measure(clock, tmp_path, cells=[("single_stream", 1)], host_copies=False)
    assert record["outcome"] == "ok" and record["same_image_ratio"] is None  # nobody sends an image
    few = replace(FAST, seconds=0.0)  # a call a window: what was not called is not read
    (record,) = measure(clock, tmp_path, cells=[("offline", 8)], host_copies=False, profile=few)
    assert record["outcome"] == "ok" and record["count"] == 3

    def wrong(folder, manifest, how):
        return lambda images: (hold(folder, manifest, how)(images)[0], lambda: right(images)[::-1])

    monkeypatch.setitem(RUNTIMES, "fake", replace(RUNTIMES["fake"], hold=wrong))
    (record,) = measure(clock, tmp_path, cells=[("offline", 8)], host_copies=False)
    assert record["outcome"] == "failed" and "WrongAnswer" in record["reason"]


def test_a_runtime_that_always_copies_is_skipped_without(fake, clock, monkeypatch, tmp_path):
    fake(right)
    monkeypatch.setitem(RUNTIMES, "fake", replace(RUNTIMES["fake"], hold=None))
    (record,) = measure(clock, tmp_path, cells=[("offline", 8)], host_copies=False)
    assert (record["outcome"], record["reason"]) == ("skipped", "fake always copies between host and device")


# -- what windows say ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("windows", "stable"),
    [
        ([(100, 1.0), (105, 1.0), (110, 1.0)], True),
        ([(100, 1.0), (105, 1.0), (111, 1.0)], False),
        ([(100, 1.0), (100, 1.0), (100, 1.11)], False),
        ([(1, 9.0), (100, 1.0), (100, 1.05), (100, 1.1)], True),
        ([(100, 1.0), (100, 1.0)], False),
    ],
    ids=["agree", "rates differ", "latencies differ", "the first does not count", "two are too few"],
)
def test_a_cell_is_stable_when_its_last_three_windows_agree_within_ten_percent(windows, stable):
    assert rules.stable(windows) is stable


def test_one_long_window_is_judged_by_its_tenths():
    assert rules.slices([0.5] * 20, 4) == [(8.0, 0.5)] * 10
    assert rules.slices([0.5] * 9, 4) == []
    assert not rules.stable(rules.slices([0.1] * 90 + [0.2] * 10, 1))


def window(rate, seconds, valid="VALID", **told):
    result = {"result_validity": valid, "result_samples_per_second": rate, "result_query_count": len(seconds)}
    return Window(seconds, result | {f"result_{key}": value for key, value in told.items()})


SPENT = [inference.Spent(1.0, 0.5)] * 3


def figures(cell, profile):
    return inference._figures(cell, rules.PROFILES[profile])


def test_an_unstable_cell_says_by_how_much():
    cell = Cell("offline", 8, 0.1, [window(80, [0.1] * 30), window(80, [0.1] * 30), window(100, [0.08] * 30)])
    cell.spent.extend(SPENT)
    found = figures(cell, "quick")
    assert found["stable"] is False and found["reason"].endswith("unstable: the last three windows differ by 25%")
    assert found["images_per_second"] == 80 and found["count"] == 90


def test_only_the_last_three_windows_count():
    cell = Cell("offline", 8, 0.1, [window(1, [9.0])] + [window(80, [0.1] * 40)] * 3, spent=SPENT)
    found = figures(cell, "quick")
    assert found["stable"] and found["images_per_second"] == 80 and found["latency_p90_seconds"] == 0.1


def test_a_valid_result_is_loadgens_own_verdict_and_figures():
    told = {f"{p}.00_percentile_latency_ns": p * 1_000_000 for p in (50, 90, 95, 99)}
    good = Window([0.01] * 700, {"result_validity": "VALID", "result_qps_with_loadgen_overhead": 99.0,
                                 "result_query_count": 700} | {f"result_{k}": v for k, v in told.items()})  # fmt: skip
    found = figures(Cell("single_stream", 1, 0.01, [good], spent=SPENT), "valid")
    assert found["valid"] is True and found["stable"] and found["reason"] is None
    assert found["latency_p99_seconds"] == 0.099 and found["images_per_second"] == 99.0
    bad = Window(good.seconds, good.told | {"result_validity": "INVALID", "result_invalid_reason": "Too short. "})
    found = figures(Cell("single_stream", 1, 0.01, [bad], spent=SPENT), "valid")
    assert found["valid"] is False and found["reason"] == "LoadGen: Too short."
    assert figures(Cell("single_stream", 1, 0.01, [good], spent=SPENT), "quick")["valid"] is False


@pytest.mark.parametrize(
    ("count", "shown"), [(10, []), (11, [50]), (63, [50]), (64, [50, 90]), (130, [50, 90, 95]), (662, [50, 90, 95, 99])]
)
def test_a_percentile_is_shown_where_the_count_of_queries_supports_it(count, shown):
    told = {f"result_{p}.00_percentile_latency_ns": 1e6 for p in (50, 90, 95, 99)}
    one = Window([], told | {"result_query_count": count})
    found = inference._latencies("server", [one])
    assert [p for p in (50, 90, 95, 99) if found[f"latency_p{p}_seconds"] is not None] == shown


# -- the highest rate ----------------------------------------------------------------------------------


def p99(rate, service_seconds, queries=4000):
    """The p99 of a simulated server that takes a fixed time for each of its queries, which arrive at random."""
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / rate, queries))
    free, waits = 0.0, []
    for arrival in arrivals:
        free = max(free, arrival) + service_seconds
        waits.append(free - arrival)
    return np.quantile(waits, 0.99)


@pytest.mark.parametrize("start", [1.0, 97.0, 2000.0])
def test_the_search_finds_the_capacity_of_a_simulated_server(start):
    asked = []

    def holds(rate):
        asked.append(rate)
        return p99(rate, 0.01) <= 0.05

    found = rules.highest_rate(holds, start, holds)
    assert p99(found, 0.01) <= 0.05 < p99(found * 1.1, 0.01)
    assert 50 < found < 100 and len(asked) < 25


def test_a_rate_that_is_not_held_three_times_is_lowered():
    held = rules.highest_rate(lambda rate: rate <= 100, 10.0, confirmed=lambda rate: rate <= 80)
    assert 76 < held <= 80


def test_a_server_that_holds_no_rate_has_none():
    assert rules.highest_rate(lambda rate: False, 10.0, confirmed=lambda rate: True) is None
    assert rules.highest_rate(lambda rate: rate < 10, 5.0, confirmed=lambda rate: False) is None


# -- LoadGen itself ------------------------------------------------------------------------------------


def drive(tmp_path, scenario, answer, **more):
    settings = {"batch_size": 1, "min_seconds": 0.05, "min_queries": 30, "call_seconds": 0.0005}
    load = loadgen.Load(scenario, **settings | more)
    return loadgen.run(load, 40, answer, lambda rows, found: None, tmp_path)


def test_loadgen_and_we_measure_the_same(tmp_path):
    found = drive(tmp_path, "single_stream", lambda rows: sum(range(50_000)))
    assert found.count == len(found.seconds) >= 30
    own = statistics.fmean(found.seconds)
    assert own <= found.told["result_mean_latency_ns"] / 1e9 < 1.5 * own  # LoadGen's holds the way to us and back


def test_the_same_image_can_be_sent_again_and_again(tmp_path):
    seen = []
    drive(tmp_path, "single_stream", lambda rows: seen.extend(rows), same=0)
    assert len(set(seen)) == 1
    drive(tmp_path, "single_stream", lambda rows: seen.extend(rows), same=3)
    assert len(set(seen)) == 2
    drive(tmp_path, "single_stream", lambda rows: seen.extend(rows))
    assert len(set(seen)) > 20


def test_queries_of_the_server_scenario_are_answered_at_once_and_in_time(tmp_path):
    server = {"rate": 400.0, "bound_seconds": 0.5, "workers": 4, "min_seconds": 0.0, "min_queries": 60}
    found = drive(tmp_path, "server", lambda rows: rows, **server)
    assert found.count == 60 and inference._held_bound(found) and found.images_per_second > 50


def test_seconds_of_a_query_are_from_its_arrival_on(tmp_path):
    server = {"rate": 2000.0, "bound_seconds": 0.5, "workers": 1, "min_seconds": 0.0, "min_queries": 40}
    found = drive(tmp_path, "server", lambda rows: time.sleep(0.005), **server)  # a tenth of that rate
    assert max(found.seconds) > 0.05 and statistics.median(found.seconds) <= found.latency(50)


def test_one_call_in_sixteen_is_checked_whatever_other_threads_do_meanwhile():
    checked = []

    def complete(queries):
        if queries == [0]:  # while the first is completed, others begin and end
            calls.issue(list(range(1, 32)), list(range(1, 32)))

    load = loadgen.Load("server", 1, 0.0, 1, 0.001)
    calls = loadgen._Calls(load, lambda rows: rows, lambda rows, found: checked.extend(rows), complete, lambda: 0.0)
    calls.issue([0], [0])
    assert sorted(checked) == [0, 16]


def test_what_goes_wrong_in_a_thread_is_raised(tmp_path):
    def answer(rows):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        drive(tmp_path, "server", answer, rate=400.0, bound_seconds=0.5, workers=2, min_queries=20, min_seconds=0.0)


def test_the_server_scenario_finds_a_rate_and_tells_its_bound(fake, clock, tmp_path):
    fake(right)
    few = replace(FAST, queries={"server": 40}, seconds=0.0, seconds_at_most=0.05)
    (record,) = measure(clock, tmp_path, cells=[("server", 1)], profile=few, latency_bound=0.5)
    assert record["outcome"] == "ok" and record["latency_bound_seconds"] == 0.5
    assert record["latency_p50_seconds"] < 0.5 and record["images_per_second"] > 0 and len(record["windows"]) == 3


class Server:
    """LoadGen and a server that holds 1000 images a second, with 2 ms a request, and for ten minutes only 800."""

    spent = (0.0, 0)

    def __call__(self, load, images, answer, check, logs, clock):
        held, lasting = load.rate <= 1000, load.rate <= 800 and load.min_seconds == 600
        self.spent = (self.spent[0] + (1.4 if held else 700.0), self.spent[1] + 700)
        told = {f"result_{p}.00_percentile_latency_ns": 1e7 for p in (50, 90, 95, 99)}
        told |= {"result_perf_constraints_met": held, "result_validity": "VALID" if lasting else "INVALID"}
        told |= {"result_completed_samples_per_sec": load.rate, "result_query_count": 700}
        return Window([0.01] * 700, told)


def test_that_no_rate_keeps_the_bound_is_a_result(fake, clock, monkeypatch, tmp_path):
    fake(right)

    def swamped(load, images, answer, check, logs, clock):
        told = {f"result_{p}.00_percentile_latency_ns": 2e9 for p in (50, 90, 95, 99)}
        told |= {"result_perf_constraints_met": False, "result_validity": "INVALID", "result_query_count": 100}
        return Window([2.0] * 100, told | {"result_completed_samples_per_sec": load.rate})

    monkeypatch.setattr(loadgen, "run", swamped)
    (record,) = measure(clock, tmp_path, cells=[("server", 1)], latency_bound=0.5)
    assert record["outcome"] == "ok" and record["images_per_second"] == 0.0 and record["valid"] is False
    assert record["latency_p90_seconds"] == 2.0 and record["latency_p99_seconds"] is None and record["count"] == 100
    lowest = 1 / 0.0001 / 2**rules.MOST_HALVINGS  # a 64th of what one image after the other would be
    assert record["reason"].startswith(f"no rate keeps p99 within 0.5 s: it was 2 s at {lowest:.3g} images/s; quick: ")
    assert record["stable"] is None and record["latency_bound_seconds"] == 0.5


@pytest.mark.parametrize(("profile", "most", "windows"), [("quick", 1000, 3), ("valid", 800, 10)])
def test_a_rate_is_held_for_as_long_as_the_profile_says(profile, most, windows, fake, clock, monkeypatch, tmp_path):
    fake(right)
    monkeypatch.setattr(loadgen, "run", Server())
    (record,) = measure(clock, tmp_path, cells=[("server", 1)], profile=rules.PROFILES[profile], latency_bound=0.5)
    assert most / 1.06 < record["images_per_second"] <= most
    assert record["stable"] and len(record["windows"]) == windows
    assert record["valid"] is (profile == "valid") and (record["reason"] is None) is (profile == "valid")


def test_what_the_search_for_a_rate_cost_is_no_figure_of_the_rate(fake, clock, monkeypatch, tmp_path):
    fake(right)
    server = Server()
    monkeypatch.setattr(loadgen, "run", server)
    monkeypatch.setattr(inference, "request_seconds", lambda rest, name: server.spent)
    subject = Subject(MANIFEST, Path("x"), "fake", server=served.Served("embedded", "http://x", 1.0))
    settings = {"latency_bound": 0.5, "clock": clock}
    (record,) = inference.measure(subject, [("server", 1)], GIVEN, tmp_path, **settings)
    assert record["outcome"] == "ok" and record["server_seconds"] == pytest.approx(0.002)


def test_a_runtime_that_costs_nothing_is_measured_too(clock, tmp_path):
    found = measure(clock, tmp_path, runtime="null")
    assert [r["outcome"] for r in found] == ["ok", "ok"]
    assert found[0]["test_top1"] is None and found[0]["agreement"] is None


# -- a server ------------------------------------------------------------------------------------------

PAGE = """# TYPE :tensorflow:serving:request_latency histogram
:tensorflow:serving:request_latency_bucket{model_name="tiny.output",API="Predict",entrypoint="GRPC",le="10"} 1
:tensorflow:serving:request_latency_sum{model_name="tiny.output",API="Predict",entrypoint="GRPC"} %d
:tensorflow:serving:request_latency_count{model_name="tiny.output",API="Predict",entrypoint="GRPC"} %d
:tensorflow:serving:request_latency_sum{model_name="other",API="Predict",entrypoint="REST"} 5e+06
:tensorflow:serving:request_latency_count{model_name="other",API="Predict",entrypoint="REST"} 1
"""


class Answer(io.BytesIO):
    def __init__(self, text):
        super().__init__(text.encode())


def test_what_a_server_spent_on_requests_is_read_from_its_metrics(monkeypatch):
    monkeypatch.setattr(served.DIRECT, "open", lambda url, timeout: Answer(PAGE % (1500, 3)))
    assert served.request_seconds("http://x", "tiny.output") == (0.0015, 3)
    assert served.request_seconds("http://x", "unknown") == (0.0, 0)

    def missing(url, timeout):
        raise urllib.error.HTTPError(url, 404, "no metrics", None, None)

    monkeypatch.setattr(served.DIRECT, "open", missing)
    assert served.request_seconds("http://x", "tiny.output") is None


def test_time_is_split_between_server_and_client(fake, clock, monkeypatch, tmp_path):
    fake(right)
    asked = []

    def page(url, timeout):
        asked.append(url)
        return Answer(PAGE % (60 * 40 * len(asked), 40 * len(asked)))

    monkeypatch.setattr(served.DIRECT, "open", page)
    server = served.Served("embedded", "http://127.0.0.1:1", 3.5, os.getpid())
    subject = Subject(MANIFEST, Path("unused"), "fake", How(payload="pixels"), server=server)
    (record,) = inference.measure(subject, [("single_stream", 1)], GIVEN, tmp_path, profile=FAST, clock=clock)
    assert record["server"] == "embedded" and record["load_seconds"] == 3.5 and record["payload"] == "pixels"
    assert record["server_seconds"] == pytest.approx(60e-6) and record["client_seconds"] == pytest.approx(40e-6)
    assert record["peak_memory_bytes"] > 1 << 20 and record["cpu_utilisation"] >= 0


def test_files_are_sent_as_they_are_and_their_answers_held_to_looser_bounds(fake, clock, tmp_path):
    def answer(files):
        return right(np.stack([np.frombuffer(file, np.uint8).reshape(2, 2, 3) for file in files]))

    fake(answer)
    files = Given([image.tobytes() for image in IMAGES], LABELS, STORED + np.float32([0.01, -0.01]))
    manifest = MANIFEST | {"trained": {"precision": "float32"}}
    for payload, outcome in (("jpeg", "ok"), (None, "failed")):
        subject = Subject(manifest, Path("unused"), "fake", How(payload=payload))
        records = list(inference.measure(subject, CELLS, files, tmp_path, profile=FAST, clock=clock))
        assert {r["outcome"] for r in records} == {outcome}


def test_images_that_are_held_are_not_memory_of_the_runtime(monkeypatch):
    monkeypatch.setattr(inference.machine, "peak_memory_bytes", lambda: 1000)
    images, others = np.zeros((2, 10), np.uint8), np.zeros((3, 10), np.uint8)
    alone, both = Given(images, LABELS), Given(images, LABELS, None, (others, LABELS, LABELS))
    subject = SimpleNamespace(server=None)
    assert [inference._peak_memory(subject, given) for given in (alone, both)] == [980, 950]
