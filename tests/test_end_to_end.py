"""The whole road on a tiny study, through the command itself, with its children."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

STUDY = """
title = "Tiny"
[data]
dataset = "digits"
classes = [5, 6]
scaling = "unit"
[backbone]
name = "small_cnn"
[head]
layers = [ { dense = 4 } ]
[pretrain]
classes = [0, 1]
[train]
epochs = 1
batch_size = 8
[[freeze]]
name = "output"
head = "inherit"
train = ["head/output"]
[[freeze]]
name = "diverges"
train = ["all"]
epochs = 3
optimizer = "sgd"
learning_rate = 1e38
"""
FLAGS = ("--precision", "float32", "--xla", "off", "--limit", "40")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("road")
    (folder / "tiny.toml").write_text(STUDY)
    return folder


def frostline(place, *args):
    command = [sys.executable, "-m", "frostline.cli", *map(str, args)]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def first(place):
    return frostline(place, "run", "tiny.toml", *FLAGS)


def kinds(results):
    return [json.loads(line)["kind"] for line in (results / "records.jsonl").read_text().splitlines()]


def rows(place):
    return json.loads(frostline(place, "table", "results", "--format", "json").stdout)


def test_a_study_with_a_run_that_fails_goes_on_and_exits_with_one(place, first):
    assert first.returncode == 1, first.stderr
    train = {r["freeze"]: r for r in rows(place) if r["kind"] == "train"}
    assert {name: r["outcome"] for name, r in train.items()} == {
        "pretrain": "ok", "output": "ok", "diverges": "failed",
    }  # fmt: skip
    assert "the loss became" in train["diverges"]["reason"]
    assert train["output"]["trainable_params"] == 4 * 2 + 2
    assert train["output"]["total_seconds"] > train["output"]["epoch_seconds"] > 0
    assert "what training costs" in first.stdout and "diverges: seed 0: NotFinite" in first.stdout


def test_a_run_leaves_weights_predictions_and_a_log(place, first):
    (folder,) = (place / "results" / "runs").glob("tiny.output.s0.*")
    assert {p.name for p in folder.iterdir()} == {"weights.weights.h5", "predictions.npz", "log.txt"}
    with np.load(folder / "predictions.npz") as kept:
        assert kept["test"].shape == (40, 2) and np.allclose(kept["test"].sum(axis=1), 1, atol=1e-5)
        assert len(set(kept["validation_keys"])) == len(kept["validation_labels"])


def test_frozen_weights_are_those_of_the_pretraining(place, first):
    records = [json.loads(line) for line in (place / "results" / "records.jsonl").read_text().splitlines()]
    output = next(r for r in records if r.get("freeze") == "output" and r["kind"] == "train")
    (stage,) = output["stages"]
    assert stage["proof"]["before"] == stage["proof"]["after"] and stage["proof"]["frozen_layers"] == 3
    assert output["machine"]["versions"]["keras"] and output["config"]["seed"] == 0


def test_published_models_answer_on_every_runtime_and_missing_devices_are_skipped(place, first):
    infer = [r for r in rows(place) if r["kind"] == "infer"]
    cpu = [r for r in infer if r["device"] == "cpu"]
    assert {r["runtime"] for r in cpu} == {"keras_predict", "tf_function", "saved_model", "onnxruntime"}
    assert {r["batch_size"] for r in cpu} == {1, 32, 256}
    assert {r["outcome"] for r in cpu} == {"ok"}, [r["reason"] for r in cpu]
    for model in {r["model"] for r in cpu}:
        assert len({r["test_top1"] for r in cpu if r["model"] == model}) == 1
    gpu = [r for r in infer if r["device"] == "gpu"]
    assert gpu and {r["outcome"] for r in gpu} <= {"ok", "skipped"}
    manifest = json.loads((place / "exports/saved_model/tiny.output/1/manifest.json").read_text())
    assert manifest["seed"] == 0 and manifest["class_names"] == ["5", "6"]


def test_a_repetition_does_again_only_what_failed(place, first):
    before = kinds(place / "results")
    again = frostline(place, "run", "tiny.toml", *FLAGS)
    assert again.returncode == 1 and "1 runs done, 2 found finished" in again.stderr
    assert kinds(place / "results") == [*before, "train", "study"]
    assert sorted(p.name for p in (place / "exports/onnx/tiny.output").iterdir()) == ["1"]


def test_a_dry_run_trains_nothing(place, first):
    done = frostline(place, "run", "tiny.toml", "--dry-run", "--results", "dry", "--limit", "40")
    assert done.returncode == 0, done.stderr
    for text in ("Nothing was trained", "max_pool 14×14×64", "conv_1, conv_2, dense_1"):
        assert text in done.stdout
    assert not (place / "dry").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('train = ["head/output"]', 'train = ["head/outptu"]'), "rule 'head/outptu' matches nothing"),
        (('dataset = "digits"', 'dataset = "digit"'), "unknown dataset 'digit'"),
        (('name = "small_cnn"', 'name = "small_cn"'), "unknown backbone 'small_cn'"),
        (("classes = [0, 1]", "classes = [0, 1, 2]"), 'head = "inherit" takes over an output layer of 3 units'),
        (("classes = [5, 6]", "classes = [50]"), "50"),
        (('optimizer = "sgd"', 'optimizer = "sdg"'), "unknown optimizer 'sdg'"),
    ],
)
def test_mistakes_are_found_before_the_first_run(place, change, message):
    assert change[0] in STUDY
    (place / "wrong.toml").write_text(STUDY.replace(*change))
    done = frostline(place, "run", "wrong.toml", "--results", "none", *FLAGS)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not (place / "none" / "records.jsonl").exists()


def test_kill_minus_nine_loses_no_finished_run_and_leaves_no_child(place):
    command = [sys.executable, "-m", "frostline.cli", "run", "tiny.toml", *FLAGS, "--results", "killed", "--no-export"]
    process = subprocess.Popen(command, cwd=place, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    log = place / "killed" / "records.jsonl"
    limit = time.monotonic() + 120
    while not (log.exists() and log.read_text().endswith("\n")) and time.monotonic() < limit:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = frostline(place, "run", "tiny.toml", *FLAGS, "--results", "killed", "--no-export")
    assert "1 found finished" in again.stderr or "2 found finished" in again.stderr, again.stderr
    train = [json.loads(line) for line in log.read_text().splitlines() if '"kind": "train"' in line]
    assert sorted(record["outcome"] for record in train) == ["failed", "ok", "ok"]


@pytest.fixture
def tmpfs(tmp_path):
    """A function that mounts a small file system; skips where mounting is refused."""
    mounted = []

    def mount(options):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting is refused here: {done.stderr.decode().strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def test_a_read_only_results_folder_is_one_clear_line(place, tmpfs):
    disk = tmpfs("size=1m,ro")
    done = frostline(place, "run", "tiny.toml", *FLAGS, "--results", disk)
    assert done.returncode == 2 and "cannot write to the results folder" in done.stderr
    assert "Read-only file system" in done.stderr and done.stderr.count("\n") == 1


def test_a_full_disk_is_said_and_what_was_finished_stays(place, tmpfs):
    disk = tmpfs("size=120k")
    done = frostline(place, "run", "tiny.toml", *FLAGS, "--results", disk, "--no-export")
    assert done.returncode == 2 and "free some space" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    log = disk / "records.jsonl"
    assert all(json.loads(line)["kind"] == "train" for line in (log.read_text().splitlines() if log.exists() else []))


def test_two_commands_on_one_results_folder(place):
    code = "import sys, pathlib\nfrom frostline import records\nwith records.lock(pathlib.Path('shared')):\n"
    holder = subprocess.Popen(
        [sys.executable, "-c", code + "    print('held', flush=True); sys.stdin.read()"],
        cwd=place,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    done = frostline(place, "run", "tiny.toml", *FLAGS, "--results", "shared")
    holder.communicate("")
    assert done.returncode == 2 and f"another frostline command (process {holder.pid})" in done.stderr
