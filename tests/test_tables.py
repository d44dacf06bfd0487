import csv
import io
import json

import pytest

from frostline import tables

MACHINE = {"cpu": "a CPU", "cores": 2, "gpus": [], "versions": {"frostline": "0.1.0", "keras": "3.15.1"}}


def train(freeze, seed, trainable=10, total=10.0, top1=0.5, **more):
    return {
        "kind": "train", "study": "toy", "title": "A toy", "freeze": freeze, "variant": "", "model": f"toy.{freeze}",
        "configuration": f"c-{freeze}", "seed": seed, "run": f"{freeze}.s{seed}", "protocol": "clean", "limit": None,
        "epochs_cap": None, "precision_asked": "auto", "xla_asked": "auto", "engine_asked": "plain", "reported": None,
        "outcome": "ok", "reason": None, "engine": "plain", "precision": "float32", "xla": False, "device": "cpu",
        "trainable_params": trainable, "total_params": 1000, "batch_norm": ["none"], "train_images": 100,
        "first_step_seconds": 1.0, "step_seconds": 0.01, "epoch_seconds": 2.0, "features_seconds": None,
        "total_seconds": total, "process_start_seconds": 5.0, "images_per_second": 50.0, "peak_memory_bytes": 1 << 30,
        "device_peak_memory_bytes": None, "time": f"t{seed}", "marginal_seconds": 20.0,
        "stages": [{"frozen": [] if trainable == 1000 else ["conv"]}], "train_top1": top1,
        "train_running_top1": top1, "train_loss": 1.0, "frontier": None, "features_difference": None,
        "features_bytes": None,
        "validation_top1": top1, "validation_loss": 1.0, "test_top1": top1, "test_loss": 1.0, "machine": MACHINE,
    } | more  # fmt: skip


def cached(freeze, seed, **more):
    """A run on features: a pass of 3 s, half of which another run had saved it."""
    facts = {"engine": "cached", "frontier": "exact", "features_seconds": 3.0, "features_reused": seed > 0,
             "features_difference": 2e-7 * (seed + 1), "features_bytes": 1 << 20, "engine_asked": "auto"}  # fmt: skip
    return train(freeze, seed, **facts | more)


def failed(freeze, seed, reason="NotFinite: the loss became nan"):
    row = train(freeze, seed)
    lost = ("trainable_params", "total_params", "epoch_seconds", "total_seconds", "test_top1", "validation_top1")
    return {k: v for k, v in row.items() if k not in lost} | {"outcome": "failed", "reason": reason}


def infer(model, runtime, batch=1, **more):
    return {
        "kind": "infer", "study": "toy", "freeze": model.removeprefix("toy."), "model": model, "version": 1,
        "run": f"{model.removeprefix('toy.')}.s0", "run_time": "t0",
        "runtime": runtime, "device": "cpu", "batch_size": batch, "images_per_second": 1000.0,
        "scenario": "single_stream" if batch == 1 else "offline", "profile": "quick", "variant": "float32",
        "threads": 2, "latency_p50_seconds": 0.001, "latency_p90_seconds": 0.0015, "first_answer_seconds": 0.25,
        "load_seconds": 0.5, "peak_memory_bytes": 200 << 20, "stable": True, "agreement": 0.99,
        "size_bytes": 3 << 20, "test_top1": 0.5, "valid": False, "outcome": "ok",
        "reason": "quick: 10 calls in 1.0 s; too short",
    } | more  # fmt: skip


CELLS = [
    {"freeze": f, "precision": p, "xla": x, "step_seconds": s, "engine": "plain", "outcome": o, "reason": None}
    for f, p, x, s, o in [
        ("output", "float32", "off", 0.0101, "ok"),
        ("output", "float32", "on", None, "given up"),
        ("all", "float32", "off", 0.02, "ok"),
        ("all", "float32", "on", None, "not tried"),
    ]
]
RECORDS = [
    {"kind": "choice", "study": "toy", "cells": CELLS},
    {"kind": "study", "study": "toy", "study_seconds": 240.0},
    train("output", 0, top1=0.5),
    train("output", 1, top1=0.7, total=20.0),
    train("all", 0, trainable=1000, total=60.0),
    failed("all", 1),
    failed("broken", 0, "killed by the system, most likely for want of memory"),
    infer("toy.output", "onnxruntime"),
    infer("toy.output", "onnxruntime", 32, images_per_second=9000.0, latency_p50_seconds=0.004),
    infer("toy.all", "onnxruntime", figures_of="toy.output", test_top1=0.55),
    infer("toy.all", "onnxruntime", device="gpu", images_per_second=None, latency_p50_seconds=None, test_top1=None,
          outcome="skipped", reason="no CUDA device"),
    infer("toy.output", "saved_model", images_per_second=None, latency_p50_seconds=None, test_top1=None,
          outcome="failed", reason="WrongAnswer: 1"),
]  # fmt: skip


def test_json_has_the_keys_that_scripts_rely_on():
    rows = json.loads(tables.render(RECORDS, "json"))
    output, everything, broken = (r for r in rows if r["kind"] == "train")
    assert output["seeds"] == [0, 1] and output["test_top1"] == pytest.approx(0.6)
    assert output["test_top1_std"] == pytest.approx(0.02**0.5) and output["features_seconds"] is None
    assert everything["seeds"] == [0] and everything["test_top1_std"] is None and everything["failed_seeds"] == [1]
    assert (broken["outcome"], broken["seeds"], broken["test_top1"]) == ("failed", [], None)
    for row in (output, everything, broken):
        assert {
            "kind", "study", "freeze", "outcome", "reason", "seeds", "trainable_params", "total_params",
            "first_step_seconds", "epoch_seconds", "features_seconds", "total_seconds", "peak_memory_bytes",
            "train_top1", "validation_top1", "test_top1", "test_loss", "engine", "precision", "xla", "protocol",
            "reported", "train_top1_std", "total_seconds_std",
        } <= row.keys()  # fmt: skip
    for row in (r for r in rows if r["kind"] == "infer"):
        assert {
            "kind", "model", "freeze", "runtime", "device", "batch_size", "images_per_second", "latency_p50_seconds",
            "size_bytes", "test_top1", "valid", "outcome", "study", "reason", "scenario", "profile", "variant",
            "latency_p90_seconds", "latency_p95_seconds", "latency_p99_seconds", "first_answer_seconds", "load_seconds",
            "peak_memory_bytes", "stable", "threads", "payload", "server",
        } <= row.keys()  # fmt: skip


def lines(form="github", records=RECORDS):
    """The text, each run of blanks as one."""
    return [" ".join(line.split()) for line in tables.render(records, form).splitlines()]


def test_training_table_with_failed_cells():
    text = lines()
    output = "| output | 10 | 1,000 | 1.00 % | 1.00 (once) | 2.000 ± 0.000 (2) | 15.0 ± 7.1 (2) | 20.0 ± 0.0 (2)"
    assert f"{output} | 5.0 (once) | 50 ± 0 (2) | 1,024 ± 0 (2) | 4.00 | plain, float32 |" in text
    everything = "| all | 1,000 | 1,000 | 100.00 % | 1.00 | 2.000 | 60.0 | 20.0 | 5.0 | 50 | 1,024 | 1.00"
    assert f"{everything} | plain, float32 |" in text
    assert (
        "| broken | - | - | - | failed | failed | failed | failed | failed | failed | failed | - | plain, float32 |"
        in text
    )
    assert "| output | 0.6000 ± 0.1414 (2) | 0.6000 ± 0.1414 (2) | 0.6000 ± 0.1414 (2) | 1.0000 ± 0.0000 (2) |" in text
    assert "all: seed 1: NotFinite: the loss became nan." in text
    assert "broken: seed 0: killed by the system, most likely for want of memory." in text
    assert any(line.startswith("a CPU, 2 cores, no GPU; frostline 0.1.0, keras 3.15.1;") for line in text)


MIXED = [
    cached("output", 0, total=10.0, marginal_seconds=10.0),
    cached("output", 1, total=10.0, marginal_seconds=2.0),
    cached("dense", 0, total=12.0, marginal_seconds=3.0, xla=True),
    failed("dense", 1),
    train("all", 0, trainable=1000, total=60.0),
    failed("broken", 0, "MemoryError: x"),
]


def test_training_table_with_cached_plain_and_failed_rows():
    text = lines(records=MIXED)
    head = "| freeze | trainable | total | share | first step s | features s | epoch s | total s | added s | start s"
    assert f"{head} | images/s | peak MiB | speed-up | ran as |" in text
    for row, seconds, rest in [
        ("output | 10 | 1,000 | 1.00 % | 1.00 (once)", "3.00 (once) | 2.000 ± 0.000 (2) | 10.0 ± 0.0 (2)",
         "6.0 ± 5.7 (2) | 5.0 (once) | 50 ± 0 (2) | 1,024 ± 0 (2) | 6.00 | cached, float32"),
        ("dense | 10 | 1,000 | 1.00 % | 1.00", "3.00 | 2.000 | 12.0",
         "3.0 | 5.0 | 50 | 1,024 | 5.00 | cached, float32 + XLA"),
        ("all | 1,000 | 1,000 | 100.00 % | 1.00", "- | 2.000 | 60.0",
         "20.0 | 5.0 | 50 | 1,024 | 1.00 | plain, float32"),
        ("broken | - | - | - | failed", "failed | failed | failed",
         "failed | failed | failed | failed | - | plain, float32"),
    ]:  # fmt: skip
        assert f"| {row} | {seconds} | {rest} |" in text
    assert "dense: seed 1: NotFinite: the loss became nan." in text
    assert any("differed by 4.0e-07 of the largest at most." in line for line in text)  # of two seeds
    assert not any("‡" in line for line in text)


def test_where_nothing_was_cached_the_caption_says_nothing_of_features():
    assert not any("features" in line for line in lines(records=[train("output", 0)]))


def test_rows_without_dropout_below_the_frontier_are_marked():
    text = lines(records=[cached("output", 0, frontier="inference_prefix"), cached("dense", 0)])
    assert any(line.startswith("| output ‡ |") for line in text) and any(line.startswith("| dense |") for line in text)
    assert any(line.startswith("‡ inference_prefix: what is frozen ran as in inference") for line in text)
    both = lines(records=[cached("output", 0, frontier="inference_prefix", protocol="document")])
    assert any(line.startswith("| output † ‡ |") for line in both)


def test_json_tells_engine_frontier_and_features():
    rows = json.loads(tables.render(MIXED, "json"))
    output, dense, everything, broken = rows
    assert (output["engine"], output["frontier"], output["features_bytes"]) == ("cached", "exact", 1 << 20)
    assert output["features_seconds"] == 3.0 and output["features_difference"] == pytest.approx(4e-7)
    assert output["marginal_seconds"] == 6.0 and output["engine_asked"] == "auto" and dense["failed_seeds"] == [1]
    for row in (everything, broken):
        assert (row["engine"], row["frontier"], row["features_seconds"], row["features_bytes"]) == (
            "plain", None, None, None,
        )  # fmt: skip


def test_each_engine_asked_for_shows_its_own_step_times():
    cells = [{**CELLS[0], "engine_asked": engine, "engine": engine, "step_seconds": s}
             for engine, s in [("plain", 0.01), ("cached", 0.001)]]  # fmt: skip
    variants = {engine: {"variant": engine, "configuration": engine, "engine_asked": engine} for engine in
                ("plain", "cached")}  # fmt: skip
    records = [{"kind": "choice", "study": "toy", "cells": cells}, train("output", 0, **variants["plain"]),
               cached("output", 0, **variants["cached"])]  # fmt: skip
    text = lines(records=records)
    assert "| output (plain) | 10.00* |" in text and "| output (cached) | 1.00* |" in text


def test_step_times_of_a_quick_try_are_not_those_of_the_study():
    quick = [{"kind": "choice", "study": "toy", "limit": 20, "epochs_cap": None, "cells": UNTIMED},
             train("output", 0, configuration="quick", limit=20)]  # fmt: skip
    text = lines(records=[*RECORDS, *quick])
    assert "| output | 10.10* | given up |" in text
    assert any(line.startswith("auto was not timed") for line in lines(records=quick))


def test_a_speed_up_is_that_over_a_row_of_the_same_task():
    few = {"limit": 20, "variant": "few", "configuration": "few"}
    found = [
        train("output", 0),
        train("output", 0, total=1.0, **few),
        train("all", 0, trainable=1000, total=8.0, **few),
    ]
    told = [line.split(" | ") for line in lines(records=found) if line.startswith(("| output", "| all"))]
    assert [cells[-2] for cells in told[:3]] == ["-", "8.00", "1.00"]
    assert any(line.startswith("Speed-up: total time of all (few) over") for line in lines(records=found))
    everything = train("all", 0, trainable=1000, total=60.0)
    both = lines(records=[found[0], everything, *found[1:]])
    speed_ups = [line.split(" | ")[-2] for line in both if line.startswith(("| output", "| all"))][:4]
    assert speed_ups == ["6.00", "1.00", "8.00", "1.00"]
    assert any(line.startswith("Speed-up: total time of all or all (few), by task, over") for line in both)


def skipped(freeze, seed, **more):
    row = failed(freeze, seed, "no weights here")
    lost = ("precision", "xla", "engine", "device")
    return {k: v for k, v in row.items() if k not in lost} | {"outcome": "skipped"} | more


def test_rows_that_cannot_be_trained_here_keep_what_their_document_reports():
    text = lines(records=[skipped("frozen", s, reported={"top1": 0.836, "loss": 0.4}) for s in (0, 1)])
    assert not any("what training costs" in line for line in text)
    assert "| frozen | skipped | skipped | skipped | 0.8360 | skipped | 0.4000 |" in text
    assert "frozen: no weights here." in text  # once for all seeds
    done = train("frozen", 0, configuration="c-frozen")
    row = next(line for line in lines(records=[done, skipped("frozen", 1)]) if line.startswith("| frozen | 0.5"))
    assert "skipped" not in row


def test_epochs_and_the_one_whose_weights_were_kept_are_told():
    history = [{"epoch": n} for n in range(1, 13)]
    stopped = [train("output", s, history=history[: 10 + s], restored_epochs=[None, 7 + s]) for s in (0, 2)]
    ended = train("all", 0, history=history[:3], restored_epochs=[None])
    text = lines(records=[*stopped, ended])
    assert any(line.endswith("| 11.0 ± 1.4 (2) | 8.0 ± 1.4 (2) |") for line in text)
    assert any(line.startswith("| all") and line.endswith("| 3 | - |") for line in text)
    (row,) = (r for r in tables.rows([ended]) if r["freeze"] == "all")
    assert (row["epochs"], row["restored_epoch"]) == (3, None)


def test_without_a_row_that_freezes_nothing_there_is_no_speed_up():
    assert "speed-up" in " ".join(lines())
    assert "speed-up" not in " ".join(lines(records=[train("output", 0), train("dense", 0, trainable=100)]))


def test_step_table_marks_the_choice_and_shows_what_was_given_up():
    text = lines()
    assert "| freeze | float32, XLA off, ms | float32, XLA on, ms |" in text
    assert "| output | 10.10* | given up |" in text and "| all | 20.00* | not tried |" in text


HEAD = ("| graph of | runtime | scenario | images/s | p50 ms | p90 ms | first ms | load s | peak MiB | size MiB "
        "| top-1 | agrees | valid |")  # fmt: skip


def test_serving_tables_time_a_graph_once_and_score_every_model():
    text = lines()
    assert HEAD in text
    rest = "| 1.50 | 250 | 0.50 | 200 | 3.00 | 0.5000 | 0.9900 | no, quick |"
    assert f"| output | onnxruntime | single_stream | 1,000 | 1.00 {rest}" in text
    assert f"| output | onnxruntime | offline @32 | 9,000 | 4.00 {rest}" in text
    wrong = "| output | saved_model | single_stream | failed | - |"
    assert any(line.startswith(wrong) for line in text) and "saved_model failed: WrongAnswer: 1." in text
    assert "Skipped on gpu, no CUDA device: onnxruntime." in text and not any(" gpu |" in line for line in text)
    assert "The graph of output is also that of all." in text
    assert any("not valid in MLPerf's sense" in line for line in text)
    assert "| model | version | seed | as trained | onnxruntime | saved_model |" in text
    assert "| toy.output | 1 | 0 | 0.5000 | 0.5000 | - |" in text
    assert "| toy.all | 1 | 0 | 0.5000 | 0.5500 | - |" in text


def test_that_no_rate_keeps_the_bound_is_shown_as_none():
    none = {"scenario": "server", "images_per_second": 0.0, "latency_bound_seconds": 0.025, "latency_p50_seconds": 0.5}
    text = lines(records=[infer("toy.output", "tf_serving_grpc", **none)])
    row = "| output | tf_serving_grpc | server, p99 ≤ 25 ms | none | 500.00 |"
    assert any(line.startswith(row) for line in text)
    slow = lines(records=[infer("toy.output", "tf_serving_rest", **none | {"latency_bound_seconds": 4.3678})])
    assert any("server, p99 ≤ 4,368 ms" in line for line in slow)


def test_rows_tell_variant_payload_server_and_whether_they_may_be_believed():
    served = {"payload": "jpeg", "server": "embedded", "scenario": "server", "latency_p99_seconds": 0.02}
    served |= {"latency_bound_seconds": 0.025}
    records = [
        infer("toy.output", "onnxruntime", variant="int8", stable=False),
        infer("toy.output", "tf_serving_grpc", **served),
        infer("toy.output", "onnxruntime", profile="valid", valid=True, reason=None),
        infer("toy.output", "onnxruntime", 32, device="gpu", host_copies=False),
    ]
    text = lines(records=records)
    for start, end in [
        ("output | onnxruntime int8 | single_stream", "no, quick, unstable"),
        ("output | tf_serving_grpc jpeg (embedded) | server, p99 ≤ 25 ms", "no, quick"),
        ("output | onnxruntime | single_stream", "valid"),
        ("output | onnxruntime gpu no copies | offline @32", "no, quick"),
    ]:
        assert any(line.startswith(f"| {start} |") and line.endswith(f"| {end} |") for line in text), start
    keys = ("runtime", "variant", "payload", "server", "scenario", "profile", "device", "host_copies")
    rows = json.loads(tables.render(records, "json"))
    assert len({tuple(row[key] for key in keys) for row in rows}) == 4


def test_a_measurement_made_again_replaces_the_earlier_and_other_threads_do_not():
    known = {"machine": MACHINE}
    again = infer("toy.output", "onnxruntime", images_per_second=2000.0, **known)
    one = infer("toy.output", "onnxruntime", images_per_second=700.0, threads=1, **known)
    found = [infer("toy.output", "onnxruntime", **known), one, again]
    rows = json.loads(tables.render(found, "json"))
    assert sorted(row["images_per_second"] for row in rows) == [700.0, 2000.0]
    text = lines(records=found)
    assert any(line.startswith("| output | onnxruntime | single_stream | 2,000 |") for line in text)
    assert any(line.startswith("| output | onnxruntime 1 thread | single_stream | 700 |") for line in text)
    assert "| model | version | seed | as trained | onnxruntime | onnxruntime 1 thread |" in text


def test_a_caption_names_the_machine_and_where_there_are_several_what_each_measured():
    alone = [infer("toy.output", name, machine=MACHINE) for name in ("onnxruntime", "saved_model")]
    told = "a CPU, 2 cores, no GPU; frostline 0.1.0, keras 3.15.1."
    assert told in lines(records=alone)
    other = MACHINE | {"cpu": "B", "cores": 8, "versions": {"onnxruntime": "1.99"}}
    text = lines(records=[*alone, infer("toy.output", "onnxruntime", threads=8, machine=other)])
    assert f"saved_model: {told}" in text and "onnxruntime: B, 8 cores, no GPU; onnxruntime 1.99." in text
    assert sum("| onnxruntime | single_stream |" in line for line in text) == 1  # as many threads as cores, both times


def test_cells_of_a_device_are_rows_where_they_are_not_all_skipped_for_one_reason():
    blank = ("images_per_second", "latency_p50_seconds", "latency_p90_seconds", "load_seconds", "first_answer_seconds",
             "peak_memory_bytes", "test_top1", "agreement", "stable")  # fmt: skip
    skipped = {**dict.fromkeys(blank), "outcome": "skipped"}
    some = [infer("toy.output", name, device="gpu", **(skipped | {"reason": reason}))
            for name, reason in [("onnxruntime", "no CUDA device"), ("saved_model", "too old")]]  # fmt: skip
    text = lines(records=[*RECORDS, *some])
    assert any(line.startswith("| - | onnxruntime gpu | - | skipped: no CUDA device | - |") for line in text)
    alone = lines(records=[RECORDS[2], *some[:1]])  # with nothing else to show, the row stays
    assert "| onnxruntime gpu | skipped: no CUDA device | 3.00 |" in alone
    assert sum(row["outcome"] == "skipped" for row in json.loads(tables.render(RECORDS, "json"))) == 1


@pytest.mark.parametrize("width", [80, 120])
def test_plain_tables_keep_to_the_width_of_the_terminal(width):
    text = tables.render(RECORDS, "plain", width=width)
    starts = ("freeze", "output", "all ", "broken ", "graph")
    table = [line for line in text.splitlines() if line.startswith(starts)]
    assert max(map(len, table)) <= width < max(map(len, tables.render(RECORDS, "plain").splitlines()))
    first = [line for line in text.partition("toy: the whole")[0].splitlines() if line.startswith(starts)]
    for header in ("trainable", "epoch s", "speed-up", "ran as", "test loss", "p50 ms"):
        assert sum(header in line for line in first) == 1, header
    assert sum(line.startswith("broken ") for line in table) > 2  # each part names its rows
    assert max(map(len, text.splitlines())) <= width
    assert tables.render(RECORDS, "github", width=width) == tables.render(RECORDS, "github")
    found = tables.plan([checked("output", [cost("cached", 2.0, 30.0, 4_096_000)])], width)
    assert max(map(len, found.partition("\n\noutput: ")[0].splitlines())) <= width


LITTLE = "all training, compiling aside, takes about 3 s, timing about 60 s"
UNTIMED = [CELLS[0] | {"freeze": f, "step_seconds": None, "outcome": "not timed", "reason": LITTLE}
           for f in ("output", "all")]  # fmt: skip


def test_where_auto_was_not_timed_the_caption_says_so_and_there_are_no_step_times():
    text = lines(records=[{"kind": "choice", "study": "toy", "cells": UNTIMED}, train("output", 0), train("all", 0)])
    told = "auto was not timed, because all training, compiling aside, takes about 3 s, timing about 60 s: it is"
    assert f"{told} float32 with XLA off, and features wherever a part is frozen." in text
    assert not any("one training step" in line for line in text)
    some = [UNTIMED[0] | {"reason": None}, *CELLS[2:]]
    text = lines(records=[{"kind": "choice", "study": "toy", "cells": some}, train("output", 0), train("all", 0)])
    assert "| all | 20.00* | not tried |" in text and not any("not timed" in line for line in text)


def test_equal_reasons_are_told_once():
    text = lines(records=[failed("output", 0), failed("all", 0), failed("all", 1, "other")])
    assert "output: seed 0: NotFinite: the loss became nan." in text
    text = lines(records=[failed("output", 0), failed("all", 0)])
    assert "output, all: seed 0: NotFinite: the loss became nan." in text


def test_a_model_is_shown_with_the_seed_that_was_published_whatever_came_later():
    later = train("output", 5, top1=0.6, time="t5")
    assert "| toy.output | 1 | 0 | 0.5000 | 0.5000 |" in lines(records=[*RECORDS[:2], RECORDS[2], later, RECORDS[7]])


def test_only_what_was_asked_is_shown_when_asked():
    records = [train("output", 0), train("output", 0, configuration="quick", limit=9, top1=0.1, time="t9")]
    shown = tables.render(records, "github", wanted={"c-output"})
    assert "0.5000" in shown and "0.1000" not in shown


def test_a_refused_variant_is_told_once_with_its_reason():
    told = {"variant": "int8", "outcome": "skipped", "reason": "int8 is not published: top-1 falls by 0.0300"}
    records = [*RECORDS, infer("toy.all", "onnxruntime", **told), infer("toy.all", "onnxruntime", batch=32, **told)]
    found = "\n".join(lines(records=records))
    assert found.count("toy.all: int8 is not published: top-1 falls by 0.0300.") == 1
    assert "not published" not in "\n".join(lines())


def test_a_refused_export_is_a_row():
    refused = {"kind": "export", "study": "toy", "freeze": "all", "model": "toy.all", "run": "r", "outcome": "failed",
               "reason": "ParityError: 0.1", "version": None}  # fmt: skip
    (row,) = (r for r in tables.rows([refused]))
    assert (row["kind"], row["outcome"], row["runtime"], row["valid"]) == ("infer", "failed", None, False)
    assert "| toy.all | none (not published: ParityError: 0.1) | - | - |" in lines(records=[refused])


def test_what_was_reported_is_shown_and_rows_validated_on_the_test_set_are_marked():
    reported = {"top1": 0.9, "minutes": 4.0}
    marked = lines(records=[train("output", 0, protocol="document", reported=reported)])
    assert any(line.startswith("| output † |") and "0.9000" in line for line in marked)
    assert "† validated on test, as the document did." in marked
    clean = lines(records=[train("output", 0, reported=reported)])
    assert any(line.startswith("| output |") and "0.9000" in line for line in clean)
    assert not any("†" in line for line in clean)


def test_a_quick_try_and_older_configurations_are_in_the_caption():
    text = lines(
        records=[train("output", 0), train("output", 0, configuration="new", limit=50, epochs_cap=1, time="t9")]
    )
    assert any(line.startswith("A quick try: --limit 50 --epochs 1. Rows shared processes, ") for line in text)
    assert "1 older configurations under these names are not shown." in text


def test_csv_is_one_table_of_unrounded_numbers():
    rows = list(csv.DictReader(io.StringIO(tables.render(RECORDS, "csv"))))
    assert len(rows) == 8 and rows[0]["seeds"] == "0 1" and float(rows[0]["test_top1"]) == pytest.approx(0.6)


def test_latex_and_plain():
    latex = tables.render(RECORDS, "latex")
    assert r"\begin{tabular}" in latex
    inside = False
    for line in filter(None, latex.splitlines()):
        inside = inside or line.startswith(r"\begin{tabular}")
        assert inside or line.startswith("%"), line
        inside = inside and not line.startswith(r"\end{tabular}")
    assert "toy: what training costs - A toy" in lines("plain")


def cost(engine, seconds, other=None, features_bytes=None, reason="cheaper"):
    told = {"engine": engine, "reason": reason, "seconds": seconds}
    return told | {"other_seconds": other, "features_bytes": features_bytes}


def checked(freeze, estimate, frontier=(), shapes=(), variant="", seeds=1, auto=None, mode="exact"):
    """What a dry run found of a configuration."""
    stage = {"trainable_params": 10, "total_params": 1000, "trained": ["output"], "frozen": ["conv_1", "conv_2"],
             "batch_norm": "none", "frontier": list(frontier), "feature_shapes": list(shapes),
             "frontier_mode": mode}  # fmt: skip
    images = {"train": 600, "validation": 200, "test": 200, "pass": 1000}
    return {"freeze": freeze, "variant": variant, "stages": [stage] * len(estimate), "estimate": estimate,
            "images": images, "memory_bytes": 512 << 20, "seeds": seeds, "auto": auto}  # fmt: skip


def test_a_dry_run_tells_engine_features_time_and_why():
    found = [
        checked("output", [cost("cached", 2.0, 30.0, 4_096_000)], ["pool"], [(8, 128)], seeds=3, auto="timed first"),
        checked("all", [cost("plain", 50.0, reason="asked for")], variant="plain"),
        checked("scratch", [cost("plain", 0.0, reason="asked for")]),
        checked("two", [cost("cached", 4.0, 8.0, 1000 << 20), cost("plain", 6.0, reason="why not")], ["a", "b"],
                [(4,), (2, 2, 3)]),
    ]  # fmt: skip
    text = [" ".join(line.split()) for line in tables.plan(found).splitlines()]
    assert (
        text[0]
        == "freeze stage trainable total trains frozen BatchNorm frontier engine features MiB all seeds memory MiB"
    )
    assert "output 1 10 1,000 output conv_1, conv_2 none pool 8×128 cached 3.9 6 s 512" in text
    assert "all (plain) 1 10 1,000 output conv_1, conv_2 none - plain - 50 s 512" in text
    assert "two 1 10 1,000 output conv_1, conv_2 none a 4, b 2×2×3 cached 1,000.0" in text
    assert "2 10 1,000 output conv_1, conv_2 none a 4, b 2×2×3 plain - 10 s 512" in text
    assert "output: cached, cheaper (2.0 s against at least 30 s)." in text
    assert "all (plain), scratch: plain, asked for." in text
    assert "two, stage 2: plain, why not." in text
    assert "auto: timed first." in text
    assert any(line.startswith("About 66 s of training in all") for line in text)


def test_a_dry_run_marks_frontiers_that_leave_out_dropout():
    pool = [cost("cached", 2.0)], ["pool"], [(8,)]
    left_out, exact = (tables.plan([checked("output", *pool, mode=mode)]) for mode in ("inference_prefix", "exact"))
    assert "pool 8 ‡" in left_out and "\n‡ inference_prefix: what is frozen ran as in inference" in left_out
    assert "pool 8" in exact and "‡" not in exact


def searched(freeze, trial, best=False, seed=0, **more):
    """A trial of a search, or what trains its values again."""
    values = {"units": 896, "l2": 0.0014912, "learning_rate": 0.00041, "optimizer": "adam"}
    told = {"freeze": "head", "sampler": "random", "seed": 0, "trials": 2, "reported": {"top1": 0.77}, "trial": trial}
    return train(freeze, seed, search={**told, "best": best, "values": values}, **more)


SEARCHED = [
    train("head", 0, top1=0.4),
    searched("head_trial_1", 1, top1=0.6, protocol="document"),
    searched("head_trial_2", 2, top1=0.8, protocol="document"),
    searched("head_best", 2, best=True, top1=0.8, protocol="document"),
    searched("head_best", 2, best=True, top1=0.6, seed=1, protocol="document"),
]
VALUES = "(units 896, l2 0.00149, learning rate 0.00041, optimizer adam)"


def test_trials_show_their_values_and_the_best_says_how_it_was_chosen():
    text = lines(records=SEARCHED)
    accuracy = [line for line in text if line.count("|") == 7]
    assert f"| head_trial_1 {VALUES} † | 0.6000 | 0.6000 | 0.6000 | - | 1.0000 |" in accuracy
    assert f"| head_trial_2 {VALUES} † | 0.8000 | 0.8000 | 0.8000 | 0.7700 | 1.0000 |" in accuracy
    assert any(line.startswith(f"| head_best {VALUES} † | 0.7000 ± 0.1414 (2) |") for line in accuracy)
    assert (
        "head_best: head_trial_2, trained with all seeds; of 2 trials (random search, seed 0) it had the best top-1 on "
        "validation, then the lower loss." in text
    )
    found = {row["freeze"]: row for row in json.loads(tables.render(SEARCHED, "json"))}
    assert found["head_trial_2"]["reported"] == {"top1": 0.77} and found["head_trial_1"]["reported"] is None
    assert found["head_best"]["reported"] is None and found["head"]["search"] is None
    assert found["head_best"]["search"]["values"]["units"] == 896


def test_trials_have_no_step_times_of_their_own():
    cells = [{**CELLS[0], "freeze": freeze} for freeze in ("head", "head_trial_1", "head_trial_2", "head_best")]
    text = lines(records=[{"kind": "choice", "study": "toy", "cells": cells}, *SEARCHED])
    assert [line for line in text if "10.10" in line] == ["| head | 10.10* |"]
    assert not any(
        "one training step" in line
        for line in lines(records=[{"kind": "choice", "study": "toy", "cells": cells}, *SEARCHED[1:]])
    )


def told(sampler, trials, known, best=False):
    """What a dry run found of a search of which some trials are known."""
    search = {"freeze": "head", "sampler": sampler, "trials": trials, "values": {"l2": 0.01}}
    found = [checked(f"head_trial_{n}", [cost("cached", 2.0)]) | {"search": {**search, "trial": n, "best": False}}
             for n in known]  # fmt: skip
    again = checked("head_best", [cost("cached", 2.0)]) | {"search": {**search, "trial": 1, "best": True}}
    return tables.plan([*found, *[again] * best])


def test_a_dry_run_tells_what_follows_from_the_trials_it_knows():
    later = "head: 2 more trials, each drawn from the results before it, then head_best, the best trial with all seeds"
    assert f"{later}: not in this list nor its sum." in told("tpe", 5, [1, 2, 3])
    assert "head_trial_2 (l2 0.01)" in told("tpe", 5, [1, 2, 3])
    assert "\nhead: head_best, the best trial with all seeds: not in this list" in told("random", 2, [1, 2])
    assert "not in this list" not in told("random", 2, [1, 2], best=True) + told("random", 5, [2])


def layer(number, name, group, trains=None, below=False, kind="Dense", batch_norm=None):
    return {"number": number, "group": group, "name": name, "kind": kind, "params": 0 if trains is None else 1000,
            "trainable_tensors": 2 * bool(trains), "trains": trains, "batch_norm": batch_norm,
            "below_frontier": below}  # fmt: skip


LAYERS = [
    layer(1, "images", None, below=True, kind="InputLayer"),
    layer(2, "conv_1", "last_1", False, True, "Conv2D"),
    layer(3, "bn_1", "last_1", False, True, "BatchNormalization", "inference"),
    layer(4, "late", "last_1", kind="ReLU"),
    layer(5, "relu", "last_1", below=True, kind="ReLU"),
    layer(6, "conv_2", "last_1", False, True, "Conv2D"),
    layer(7, "bn_2", "last_1", True, False, "BatchNormalization", "training"),
    layer(8, "pool", "head", kind="Flatten"),
    layer(9, "output", "head", True),
]


def drawn(*stages, **how):
    facts = {"trainable_params": 2000, "total_params": 5000, "trainable_tensors": 4, "tensors": 10,
             "batch_norm": "mixed", "problem": None, "frontier_mode": "exact"}  # fmt: skip
    return tables.layers([{"freeze": "some", "stages": [{**facts, **stage} for stage in stages]}], **how).splitlines()


def listed(*stages, **how):
    return [" ".join(line.split()) for line in drawn(*stages, **how) if line]


def test_layers_of_one_group_and_state_are_one_line_and_the_frontier_is_marked():
    text = listed({"layers": LAYERS, "frontier": ["conv_2"], "feature_shapes": [[4, 4, 8]]})
    assert [line.rstrip("-") for line in text[:-1]] == [
        "some",
        "# group layers parameters state BatchNorm class",
        "1 images 0 InputLayer",
        "2-6 last_1 conv_1 ... conv_2 (4) 3,000 frozen inference 2 Conv2D, BatchNormalization, ReLU",
        "---- frontier: conv_2 4×4×8 ",
        "4-7 last_1 late, bn_2 1,000 trainable training ReLU, BatchNormalization",
        "8-9 head pool, output 1,000 trainable Flatten, Dense",
        "2,000 of 5,000 parameters train; trainable weight tensors 10 → 4; BatchNorm: mixed.",
    ]


def test_every_layer_has_a_line_when_asked_and_no_frontier_is_said():
    stage = {"layers": [{**one, "below_frontier": False} for one in LAYERS], "frontier": [], "feature_shapes": []}
    text = listed({**stage, "frontier_mode": "inference_prefix"}, stage, each=True)
    assert text[0] == "some, stage 1 of 2" and "some, stage 2 of 2" in text
    assert text[2].startswith("---- no frontier: every step runs all layers -")
    assert [line.split()[0] for line in text[3:12]] == list("123456789")


def test_the_mode_of_a_frontier_that_is_not_exact_is_said():
    stage = {"layers": LAYERS, "frontier": ["a", "b"], "feature_shapes": [[4], [2]]}
    text = listed({**stage, "frontier_mode": "inference_prefix"})
    assert any(line.startswith("---- frontier (inference_prefix): a 4, b 2 -") for line in text)


@pytest.mark.parametrize(("width", "kinds"), [(82, False), (95, True)])
def test_layers_keep_to_the_width_of_a_terminal(width, kinds):
    stage = {"layers": LAYERS, "frontier": ["conv_2"] * 9, "feature_shapes": [[4, 4, 8]] * 9}
    text = drawn(stage, width=width)
    assert max(map(len, text)) <= width
    assert any("2 Conv" in line and line.endswith("...") for line in text) is kinds


def test_no_records():
    assert tables.render([], "github") == "no records" and tables.render([], "json") == "[]"


def test_augmented_rows_are_marked_and_explained():
    turned = {"augment": "rotation 0.1, fill nearest", "augment_seconds": 1.5}
    few = {"augment": "rotation 0.1, fill nearest, 4 views", "augment_views": 4}
    found = [cached("new", 0, **turned), train("slow", 0, **turned), cached("few", 0, **few), cached("straight", 0)]
    text = tables.render(found, "github")
    assert "few §" in text and "new §" not in text and "slow §" not in text and "augment s" in text
    assert "Training images of new, slow: rotation 0.1, fill nearest." in text
    assert "Training images of few §: rotation 0.1, fill nearest, 4 views." in text
    assert "over new views in every epoch" in text and "§ augment_views" in text
    rows = json.loads(tables.render(found, "json"))
    assert [row["augment_seconds"] for row in rows] == [1.5, 1.5, None, None]
    assert [row["augment_views"] for row in rows] == [None, None, 4, None]
    unmarked = tables.render([cached("straight", 0)], "github")
    assert not any(word in unmarked for word in ("augment", "§", "views"))
    plain = tables.render([train("slow", 0, **turned)], "github")
    assert "new views in every epoch" not in plain and "§" not in plain


def test_where_a_rule_matched_nothing_the_layers_are_listed_as_if_all_trained():
    stage = {"layers": LAYERS, "frontier": [], "feature_shapes": []}
    assert "some, as if everything trained" in listed({**stage, "problem": "some: rule 'x' matches nothing"})
    assert "some" in listed(stage)


def test_the_whole_in_one_table_with_its_fronts():
    text = lines()
    start = text.index("### toy: the whole")
    assert text[start + 4 : start + 7] == [
        "| output | 10 | 2.000 ± 0.000 (2) | 15.0 ± 7.1 (2) | 0.6000 ± 0.1414 (2) | 0.6000 ± 0.1414 (2) "
        "| 9,000 | onnxruntime @32 | 1.00 | onnxruntime @1 | time, latency |",
        "| all | 1,000 | 2.000 | 60.0 | 0.5000 | 0.5000 | 1,000 | onnxruntime @1 | 1.00 | onnxruntime @1 | - |",
        "| broken | - | failed | failed | failed | failed | - | - | - | - | - |",
    ]
    by_name = {r["freeze"]: r for r in json.loads(tables.render(RECORDS, "json")) if r["kind"] == "train"}
    assert [by_name[name]["pareto_train"] for name in ("output", "all", "broken")] == [True, False, None]
    assert "time, latency (one seed) |" in "\n".join(lines(records=[r for r in RECORDS if r.get("seed") != 1]))
    dagger = [{**r, "protocol": "document"} for r in RECORDS if r["kind"] == "train"]
    assert "Rows validated on test are on no front." in lines(records=dagger)
