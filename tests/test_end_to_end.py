"""The whole road on a tiny study, through the command itself, with its children."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from frostline import children, cli, datasets, jobs

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
EXACT = ("--precision", "float32", "--xla", "off")
FLAGS = (*EXACT, "--engine", "plain", "--limit", "40")
# What the manifest of every kind of artifact has.
MANIFEST = {
    *("study", "freeze", "variant", "seed", "chosen", "run", "run_time", "fingerprint", "data", "scaling", "limit"),
    *("epochs_cap", "record", "trained", "schema", "name", "version", "class_names", "activation", "input", "parity"),
    *("accuracy", "graph", "versions", "kind", "size_bytes", "sizes", "sha256"),
}


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


def test_a_run_leaves_weights_predictions_its_history_and_a_log(place, first):
    (folder,) = (place / "results" / "runs").glob("tiny.output.s0.*")
    assert {p.name for p in folder.iterdir()} == {"weights.weights.h5", "predictions.npz", "history.csv", "log.txt"}
    with np.load(folder / "predictions.npz") as kept:
        assert kept["test"].shape == (40, 2) and np.allclose(kept["test"].sum(axis=1), 1, atol=1e-5)
        assert len(set(kept["validation_keys"])) == len(kept["validation_labels"])
    records = [json.loads(line) for line in (place / "results" / "records.jsonl").read_text().splitlines()]
    (record,) = (r for r in records if r.get("run") == folder.name and r["kind"] == "train")
    with (folder / "history.csv").open() as file:
        lines = [{key: float(value) for key, value in line.items()} for line in csv.DictReader(file)]
    assert lines == record["history"] and len(lines) == sum(s["epochs"] for s in record["config"]["freeze"]["stages"])


def test_frozen_weights_are_those_of_the_pretraining(place, first):
    records = [json.loads(line) for line in (place / "results" / "records.jsonl").read_text().splitlines()]
    output = next(r for r in records if r.get("freeze") == "output" and r["kind"] == "train")
    (stage,) = output["stages"]
    assert stage["proof"]["before"] == stage["proof"]["after"] and stage["proof"]["frozen_layers"] == 3
    assert output["machine"]["versions"]["keras"] and output["config"]["seed"] == 0


def test_published_models_answer_on_every_runtime_and_missing_devices_are_skipped(place, first):
    infer = [r for r in rows(place) if r["kind"] == "infer"]
    assert {r["runtime"] for r in infer} == {"saved_model", "onnxruntime"}  # of a quick try, without int8
    assert {r["variant"] for r in infer if r["outcome"] == "ok"} == {"float32"}
    more = frostline(place, "infer", "exports", "--runtime", "keras_predict", "--runtime", "tf_function")
    assert more.returncode == 0, more.stderr
    infer = [r for r in rows(place) if r["kind"] == "infer"]
    cpu = [r for r in infer if r["device"] == "cpu" and r["variant"] == "float32"]
    assert {r["runtime"] for r in cpu} == {"keras_predict", "tf_function", "saved_model", "onnxruntime"}
    assert {(r["scenario"], r["batch_size"]) for r in cpu} == {
        ("single_stream", 1), ("offline", 32), ("offline", 256),
    }  # fmt: skip
    assert {r["outcome"] for r in cpu} == {"ok"}, [r["reason"] for r in cpu]
    for model in {r["model"] for r in cpu}:
        assert len({r["test_top1"] for r in cpu if r["model"] == model}) == 1
    gpu = [r for r in infer if r["device"] == "gpu"]
    assert gpu and {r["outcome"] for r in gpu} <= {"ok", "skipped"}
    assert 'base_path: "/models/tiny.output"' in (place / "exports/serving/models.config").read_text()


def test_a_manifest_holds_what_the_readme_promises(place, first):
    (record,) = (r for r in rows(place) if r["kind"] == "train" and r["freeze"] == "output")
    for kind, own in (("saved_model", {"signatures"}), ("onnx", {"signatures", "variants"}), ("keras", set())):
        manifest = json.loads((place / "exports" / kind / "tiny.output/1/manifest.json").read_text())
        assert manifest.keys() == MANIFEST | own
        assert manifest["seed"] == 0 and manifest["class_names"] == ["5", "6"]
        assert manifest["record"]["test_top1"] == manifest["trained"]["test_top1"] == record["test_top1"]
        expected = dict.fromkeys(("saved_model", "onnx_float32"), record["test_top1"])
        assert manifest["accuracy"] == pytest.approx(expected, abs=0.03)  # one image of 40 may be on the verge


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


def test_layers_are_listed_without_a_results_folder(place, first):
    done = frostline(place, "layers", "tiny.toml", "--only", "output", "--format", "json")
    assert done.returncode == 0, done.stderr
    (output,) = json.loads(done.stdout)
    (stage,) = output["stages"]
    assert (stage["trainable_tensors"], stage["tensors"], stage["frontier"]) == (2, 8, ["max_pool"])
    below = [layer["name"] for layer in stage["layers"] if layer["below_frontier"]]
    assert below[:3] == ["images", "scaling", "conv_1"] and "dropout" not in below
    assert [layer["name"] for layer in stage["layers"] if layer["trains"]] == ["output"]


def test_a_mistake_that_a_child_finds_is_one_line_before_the_first_run(place):
    (place / "wrong.toml").write_text(STUDY.replace("head/output", "head/outptu"))
    done = frostline(place, "run", "wrong.toml", "--results", "none", *FLAGS)
    told = "frostline: wrong.toml: [[freeze]] 'output': rule 'head/outptu' matches nothing; nearest: head/output, "
    assert done.returncode == 2 and told in done.stderr, done.stderr
    assert done.stderr.rstrip().endswith("; all layers: frostline layers wrong.toml --only output")
    assert "Traceback" not in done.stderr
    assert not (place / "none" / "records.jsonl").exists()


def test_layers_are_listed_where_a_rule_matches_none_of_them(place):
    (place / "wrong.toml").write_text(STUDY.replace("head/output", "head/outptu"))
    done = frostline(place, "layers", "wrong.toml", "--only", "output")
    assert done.returncode == 2 and "output, as if everything trained" in done.stdout, done.stderr
    assert "conv_1" in done.stdout and "output: rule 'head/outptu' matches nothing; nearest: head/" in done.stderr


@pytest.fixture
def no_child(monkeypatch):
    """What children do is done in this process, which has TensorFlow loaded already."""

    def run(module, job, *, log, on_event, deadline):
        jobs.work(json.loads(json.dumps(job)), lambda event, **facts: on_event({"event": event, **facts}))

    monkeypatch.setattr(children, "run", run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('dataset = "digits"', 'dataset = "digit"'), "unknown dataset 'digit'"),
        (('name = "small_cnn"', 'name = "small_cn"'), "unknown backbone 'small_cn'"),
        (("classes = [0, 1]", "classes = [0, 1, 2]"), 'head = "inherit" takes over an output layer of 3 units'),
        (("classes = [5, 6]", "classes = [50]"), "50"),
        (('optimizer = "sgd"', 'optimizer = "sdg"'), "unknown optimizer 'sdg'"),
    ],
)
def test_mistakes_are_found_before_the_first_run(tmp_path, no_child, change, message, capsys):
    assert change[0] in STUDY
    (tmp_path / "wrong.toml").write_text(STUDY.replace(*change))
    assert cli.main(["run", str(tmp_path / "wrong.toml"), "--results", str(tmp_path / "none"), *FLAGS]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none" / "records.jsonl").exists()


def test_an_unknown_optimizer_is_found_before_images_are_read(tmp_path, no_child, monkeypatch, capsys):
    monkeypatch.setattr(datasets, "load", lambda *args, **kwargs: pytest.fail("images were read"))
    (tmp_path / "wrong.toml").write_text(STUDY.replace('optimizer = "sgd"', 'optimizer = "sdg"'))
    assert cli.main(["run", str(tmp_path / "wrong.toml"), "--results", str(tmp_path / "none"), *FLAGS]) == 2
    assert "unknown optimizer 'sdg'" in capsys.readouterr().err


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


# -- features ------------------------------------------------------------------------------------------

HEADS = """
title = "Heads on one network"
[data]
dataset = "digits"
classes = [5, 6]
[backbone]
name = "small_cnn"
weights = "none"
[train]
epochs = 2
batch_size = 8
[[freeze]]
name = "output"
train = ["head/.*"]
[[freeze]]
name = "wide"
train = ["head/.*"]
head = { layers = [ { dense = 4 } ] }
"""
ALL = """
[[freeze]]
name = "all"
"""


def trained(results):
    """The training records of a results folder."""
    lines = (results / "records.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "train"]


@pytest.fixture(scope="module")
def engines(place):
    """Two heads trained by both engines: records by configuration and engine asked for."""
    (place / "heads.toml").write_text(HEADS)
    flags = (*EXACT, "--engine", "cached,plain", "--limit", "40", "--no-export", "--results", "heads")
    done = frostline(place, "run", "heads.toml", *flags)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert all(cell in text for cell in ("| features s |", "| cached, float32 |", "| plain, float32 |"))
    return {(r["freeze"], r["engine_asked"]): r for r in trained(place / "heads")}


def test_a_cached_study_computes_features_once_and_proves_them(engines):
    output, wide = engines["output", "cached"], engines["wide", "cached"]
    for record in (output, wide):
        assert (record["outcome"], record["engine"], record["frontier"]) == ("ok", "cached", "exact")
        assert 0 <= record["features_difference"] < 1e-4
        (stage,) = record["stages"]
        assert stage["engine"] == "cached" and stage["frontier"] and stage["proof"]["before"] == stage["proof"]["after"]
        assert record["total_seconds"] > record["features_seconds"] > 0  # the whole pass, whoever made it
    assert (output["features_reused"], wide["features_reused"]) == (False, True)
    assert output["features_seconds"] == wide["features_seconds"]
    assert output["features"][0]["key"] == wide["features"][0]["key"]


def test_plain_runs_have_no_features(engines):
    for name in ("output", "wide"):
        record = engines[name, "plain"]
        assert (record["engine"], record["features"], record["frontier"]) == ("plain", [], None)
        assert record["features_seconds"] is record["features_difference"] is record["features_reused"] is None


@pytest.mark.parametrize("name", ["output", "wide"])
def test_both_engines_train_to_the_same_weights_and_accuracy(place, engines, name):
    cached, plain = (read_weights(place, engines[name, engine]) for engine in ("cached", "plain"))
    assert cached.keys() == plain.keys() and len(plain) >= 6
    for path, b in plain.items():
        assert np.linalg.norm(cached[path] - b) <= 1e-4 * np.linalg.norm(b), path
    for split in ("train", "validation", "test"):
        assert engines[name, "cached"][f"{split}_top1"] == engines[name, "plain"][f"{split}_top1"]
    assert engines[name, "cached"]["test_loss"] == pytest.approx(engines[name, "plain"]["test_loss"], rel=1e-4)


def read_weights(place, record):
    """The weights a run kept, by their path in its file, which holds an optimizer's too."""
    found = {}

    def keep(path, item):
        if isinstance(item, h5py.Dataset) and path.startswith("layers/"):
            found[path] = item[()]

    with h5py.File(place / "heads" / "runs" / record["run"] / "weights.weights.h5") as file:
        file.visititems(keep)
    return found


def test_another_study_finds_the_features_and_ctrl_c_keeps_what_is_finished(place, engines):
    (place / "other.toml").write_text(HEADS + ALL)
    flags = (*EXACT, "--engine", "cached", "--limit", "40", "--seeds", "0,1", "--no-export", "--results", "other")
    process = start(place, "run", "other.toml", *flags)
    log = place / "other" / "records.jsonl"
    wait_until(lambda: log.exists() and log.read_text().count("\n") > 0, process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    kept = trained(place / "other")
    again = frostline(place, "run", "other.toml", *flags)
    assert again.returncode == 0 and f"{6 - len(kept)} runs done, {len(kept)} found finished" in again.stderr
    records = {(r["freeze"], r["seed"]): r for r in trained(place / "other")}
    assert len(records) == 6 and [r["run"] for r in trained(place / "other")][: len(kept)] == [r["run"] for r in kept]
    earlier = engines["output", "cached"]
    for name in ("output", "wide"):
        record = records[name, 0]
        assert record["features_reused"] and record["features_seconds"] == earlier["features_seconds"]
        assert record["total_seconds"] > record["features_seconds"]
        assert record["features"][0]["key"] != records[name, 1]["features"][0]["key"]  # fresh weights of another seed
    assert {records["all", seed]["engine"] for seed in (0, 1)} == {"plain"}  # nothing of it is frozen


def test_two_commands_at_once_after_one_that_was_killed_in_the_pass(place, tmp_path):
    """Nothing half-made is used: one of the two computes the features, the other waits for them."""
    (place / "heads.toml").write_text(HEADS)
    env = {**os.environ, "FROSTLINE_CACHE": str(tmp_path)}
    flags = ("--only", "output", *EXACT, "--engine", "cached", "--limit", "200", "--no-export", "--results")
    killed = start(place, "run", "heads.toml", *flags, "killed_in_pass", env=env)
    wait_until(lambda: list(tmp_path.glob("features/.*.*/train.*")), killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not list(tmp_path.glob("features/[0-9a-f]*/about.json")) and not trained_or_nothing(place / "killed_in_pass")
    both = [start(place, "run", "heads.toml", *flags, name, env=env) for name in ("killed_in_pass", "beside_it")]
    assert [process.wait() for process in both] == [0, 0]
    found = [record for name in ("killed_in_pass", "beside_it") for record in trained(place / name)]
    assert [r["outcome"] for r in found] == ["ok", "ok"] and sorted(r["features_reused"] for r in found) == [
        False,
        True,
    ]
    assert found[0]["test_loss"] == found[1]["test_loss"]
    (entry,) = (path for path in (tmp_path / "features").iterdir() if path.is_dir())
    assert entry.name == found[0]["features"][0]["key"] and (entry / "about.json").is_file()


def trained_or_nothing(results):
    return trained(results) if (results / "records.jsonl").exists() else []


def start(place, *args, env=None):
    """A command in a process group of its own, which heeds Ctrl-C also where these tests run in the background."""
    command = [sys.executable, "-m", "frostline.cli", *map(str, args)]
    how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "preexec_fn": heed_interrupts}
    return subprocess.Popen(command, cwd=place, env=env, start_new_session=True, **how)


def heed_interrupts():
    """A shell that runs a command in the background has it ignore them, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until(condition, process):
    """Until it holds, while the process runs."""
    limit = time.monotonic() + 240
    while not condition() and time.monotonic() < limit:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.01)


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
