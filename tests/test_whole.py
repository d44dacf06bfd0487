import pytest

from frostline import whole


def train(freeze, seconds, top1, **more):
    row = {
        "freeze": freeze, "study": "toy", "outcome": "ok", "protocol": "clean", "search": None, "task": "t",
        "runs": [f"{freeze}.s0"], "run_times": ["t"], "total_seconds": seconds, "validation_top1": top1,
        "precision": "float32",
    }  # fmt: skip
    return row | more


def infer(run, runtime, batch, rate, p50, **more):
    row = {
        "outcome": "ok", "runtime": runtime, "device": "cpu", "run": run, "run_time": "t", "batch_size": batch,
        "images_per_second": rate, "latency_p50_seconds": p50,
    }  # fmt: skip
    return row | more


def judged(loss, error=0.001, images=1000):
    """What a record says of an artifact that was tried on validation images."""
    return {"validation_change": -loss, "validation_error": error, "validation_images": images}


def fronts(rows, infer=()):
    found = whole.joined(rows, list(infer))
    return {r["freeze"]: (r["pareto_train"], r["pareto_latency"]) for r in found}


def test_the_front_of_time_holds_what_nobody_beats_in_both():
    rows = [train("cheap", 1, 0.5), train("worse", 2, 0.4), train("best", 9, 0.9), train("as_good", 10, 0.9)]
    assert fronts(rows) == {
        "cheap": (True, None),
        "worse": (False, None),
        "best": (True, None),
        "as_good": (False, None),
    }
    assert fronts([train("a", 3, 0.5), train("b", 3, 0.5)]) == {"a": (True, None), "b": (True, None)}


def test_rows_of_other_tasks_trials_failures_and_rows_validated_on_test_are_on_no_front():
    trial = {"search": {"best": False}}
    rows = [train("a", 5, 0.5), train("b", 6, 0.6), train("other", 1, 0.99, task="u"), train("trial", 1, 1.0, **trial),
            train("best", 7, 0.7, search={"best": True}), train("dagger", 1, 1.0, protocol="document"),
            train("broken", None, None, outcome="failed", runs=[], run_times=[])]  # fmt: skip
    found = fronts(rows)
    assert {name for name, (time, _) in found.items() if time} == {"a", "b", "best"}
    assert [found[name][0] for name in ("other", "trial", "dagger", "broken")] == [None] * 4


def test_best_figures_come_from_the_artifacts_of_the_rows_own_runs():
    measured = [
        infer("a.s0", "onnxruntime", 1, 100.0, 0.010, latency_p99_seconds=0.020),
        infer("a.s0", "onnxruntime", 32, 900.0, 0.030),
        infer("a.s0", "onnxruntime", 1, 300.0, 0.003, variant="int8", scenario="single_stream", **judged(0.01)),
        infer("a.s0", "openvino", 1, 400.0, 0.002, variant="int8", **judged(0.011)),
        infer("a.s0", "tf_serving_grpc", 1, 50.0, 0.001, scenario="server"),
        infer("a.s0", "null", 1, 9e9, 1e-9),
        infer("a.s0", "saved_model", 1, None, None, outcome="failed"),
        infer("older.s0", "onnxruntime", 1, 9e6, 1e-6),
        infer("a.s0", "onnxruntime", 1, 9e6, 1e-6, run_time="before it was trained again"),
        infer("b.s0", "openvino", 1, 10.0, 0.002, device="gpu", stable=False, host_copies=False),
    ]
    rows = [train("a", 1, 0.5), train("b", 2, 0.4), train("c", 3, 0.9)]
    assert fronts(rows, measured) == {"a": (True, True), "b": (False, True), "c": (True, None)}
    a, b, c = rows
    assert (a["best_images_per_second"], a["best_images_per_second_of"]) == (900.0, "onnxruntime @32")
    assert (a["best_latency_p50_seconds"], a["best_latency_p50_seconds_of"]) == (0.003, "onnxruntime int8 @1")
    assert (a["best_latency_p99_seconds"], a["best_latency_p99_seconds_of"]) == (0.020, "onnxruntime @1")
    assert (
        b["best_latency_p50_seconds_of"] == "openvino gpu no copies @1 unstable"
        and c["best_latency_p50_seconds"] is None
    )


def test_figures_of_ten_minutes_stand_for_those_of_seconds_of_the_same_cell():
    quick = infer("a.s0", "onnxruntime", 1, 100.0, 0.001, profile="quick")
    valid = infer("a.s0", "onnxruntime", 1, 100.0, 0.002, profile="valid")
    one_thread = {**quick, "threads": 1, "machine": {"cores": 2}}  # another cell
    for measured, best in (([quick, valid], 0.002), ([one_thread, valid], 0.001)):
        (row,) = whole.joined([train("a", 1, 0.9)], measured)
        assert row["best_latency_p50_seconds"] == best


def test_threads_are_told_where_they_are_not_as_many_as_cores():
    row = infer("a.s0", "onnxruntime", 1, 1.0, 1.0, machine={"cores": 4})
    assert [whole.where(row | {"threads": n}) for n in (1, 3, 4)] == [
        "onnxruntime 1 thread @1", "onnxruntime 3 threads @1", "onnxruntime @1",
    ]  # fmt: skip
    assert whole.where(row | {"threads": 1, "machine": None}) == "onnxruntime @1"


def test_that_no_rate_keeps_the_bound_is_no_best_figure():
    rows = [train("a", 1, 0.5)]
    fronts(rows, [infer("a.s0", "tf_serving_grpc", 1, 0.0, 0.5, scenario="server")])
    assert rows[0]["best_images_per_second"] is rows[0]["best_images_per_second_of"] is None


def test_what_an_artifact_loses_is_measured_on_validation_images():
    row, int8 = train("a", 1, 0.5), {"variant": "int8", "payload": None}
    assert whole.lost(row, {"variant": "float32", "payload": None} | judged(0.5)) == (0.0, 0.0)  # its parity was proved
    assert whole.lost(row, int8 | judged(0.02, 0.003, 100)) == (0.02, pytest.approx(0.003**2 + 1e-4))
    rounded = row | {"precision": "mixed_bfloat16"}
    assert whole.lost(rounded, {"variant": "float32", "payload": None} | judged(0.02))[0] == 0.02
    assert whole.lost(row, {"variant": "float32", "payload": "jpeg"} | judged(0.02))[0] == 0.02


def test_without_validation_images_each_changed_answer_counts_as_lost():
    row, told = train("a", 1, 0.5), {"variant": "int8", "agreement": 0.9, "test_images": 100}
    assert whole.lost(row, told) == (pytest.approx(0.1), pytest.approx(0.09 / 100 + 1e-4))
    assert whole.lost(row, {"variant": "int8", "agreement": None, "test_images": 100}) is None
    assert whole.lost(row, {"variant": "int8", "agreement": 1.0}) is None


def record(**more):
    data = {"dataset": "digits", "classes": [5, 6], "scaling": "backbone", "train_images": ["all"]}
    data |= more.pop("data", {})
    known = {"study": "toy", "freeze": "all", "protocol": "clean", "limit": None, "epochs_cap": None}
    return known | {"config": {"data": data, "fingerprint": "f"}} | more


def test_a_task_is_its_study_images_and_classes_and_how_they_are_scaled_is_not():
    own = whole.task(record())
    assert whole.task(record(freeze="output", data={"scaling": "unit"})) == own
    for other in (record(freeze="pretrain"), record(limit=400), record(epochs_cap=1), record(study="other"),
                  record(data={"classes": [0, 1]}), record(data={"train_images": [100]}),
                  record(protocol="document")):  # fmt: skip
        assert whole.task(other) != own
    told = record(freeze="pretrain", limit=400, epochs_cap=3, data={"train_images": [100]})
    assert (
        whole.described(told) == "the pre-training; digits; classes 5, 6; 100 training images; --limit 400; --epochs 3"
    )
