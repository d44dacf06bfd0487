"""What a person waits for, the notebook way and ours, in turns on images of the same number and size.

    python bench/study_ratio.py [--case NAME]... [--turns 1] [--images 20000]

The notebook (`bench/notebook_vgg16.py`, `bench/notebook.py`) is plain Keras: `fit` in float32 with its defaults. Its
epochs all cost the same, so one is measured after a warm-up and multiplied. Ours is `frostline run`, whole: checks,
timing of candidates, features, training, validation and evaluation of every split. The start of interpreters and
pre-training count on neither side. Random pixels: what is compared is time.
"""

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

from frostline import children, harness, records
from frostline.harness import Places
from frostline.plan import Options

HERE = Path(__file__).parent
EPOCHS = 10
VGG16 = """
title = "VGG16 at 32x32, frozen"
[data]
dataset = "cifar10"
classes = [0, 1, 2, 3, 4]
validation = {validation}
[backbone]
name = "vgg16"
weights = "{weights}"
[head]
pooling = "flatten"
layers = [{{ dense = 256 }}, {{ dropout = 0.5 }}]
[train]
train = ["head/.*"]
precision = "{precision}"
epochs = 10
"""
SPLIT = """
title = "The split network"
seeds = [0, 1, 2]
[data]
dataset = "cifar10"
classes = [5, 6, 7, 8, 9]
validation = {validation}
[backbone]
name = "small_cnn"
[pretrain]
classes = [0, 1, 2, 3, 4]
epochs = 1
[train]
optimizer = "rmsprop"
batch_size = 64
epochs = 10
frontier = "{frontier}"
"""


@dataclass(frozen=True)
class Case:
    """What is compared: a study, the notebook runs it stands for, and the ratio that is promised."""

    label: str
    study: str
    notebooks: dict[str, int]  # arguments of a notebook script, and how many times a person would run it
    promised: float


def freezes(*tables: str) -> str:
    return "".join(f"[[freeze]]\n{table}\n" for table in tables)


HEAD = freezes('name = "head"')
SEARCH = """
[search]
trials = 6
learning_rate = {{ low = 3e-4, high = 3e-3, log = true }}
optimizer = ["adam", "rmsprop"]
"""
ROWS = freezes(
    'name = "output"\nhead = "inherit"\ntrain = ["head/output"]',
    'name = "dense_output"\nhead = "inherit"\ntrain = ["head/dense_2", "head/output"]',
)
SPLIT_NOTEBOOKS = {"notebook.py output": 3, "notebook.py dense_output": 3}
CASES = {
    "vgg16": Case("VGG16 frozen, one head", VGG16 + HEAD, {"notebook_vgg16.py 256": 1}, 30),
    "vgg16_float32": Case("the same, float32 alone", VGG16 + HEAD, {"notebook_vgg16.py 256": 1}, 12),
    "vgg16_search": Case("VGG16 frozen, six trials", VGG16 + HEAD + SEARCH, {"notebook_vgg16.py 256": 6}, 80),
    "vgg16_added": Case("one more seed of the VGG16 head", VGG16 + HEAD, {"notebook_vgg16.py 256": 1}, 100),
    "split": Case("CIFAR-10 split, two rows, three seeds", SPLIT + ROWS, SPLIT_NOTEBOOKS, 4),
    "split_inference": Case("the same, inference_prefix", SPLIT + ROWS, SPLIT_NOTEBOOKS, 15),
    "all": Case(
        "CIFAR-10 split, everything trained",
        SPLIT.replace("[0, 1, 2]", "[0]") + freezes('name = "all"\nhead = "inherit"'),
        {"notebook.py all": 1},
        1.6,
    ),
}


def notebook(script: str, data: Path, images: int) -> float:
    """Seconds of one run of a notebook script with EPOCHS epochs, of which one was measured after a warm-up."""
    name, *rest = script.split()
    arguments = [str(data), *rest, "2"] if name == "notebook_vgg16.py" else [*rest, str(images), "2"]
    done = subprocess.run([sys.executable, str(HERE / name), *arguments], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    return EPOCHS * told["seconds"][1] + told.get("test_seconds", 0.0)


def ours(name: str, case: Case, data: Path, images: int, results: Path) -> float:
    """Seconds of `frostline run` without the starts of its interpreters and without pre-training."""
    precision = "float32" if name == "vgg16_float32" else "auto"
    frontier = "inference_prefix" if name == "split_inference" else "exact"
    text = case.study.format(
        precision=precision, frontier=frontier, weights=data / "vgg16.weights.h5", validation=round(1 / 11, 6)
    )
    study = results / f"{name}.toml"
    study.write_text(text)
    places = Places(results / "results", results / "exports", data)
    os.environ["FROSTLINE_CACHE"] = str(results / "cache")  # nothing is found ready
    if name == "vgg16_added":
        waited(study, Options(seeds=(0,), limit=images), places)
        return waited(study, Options(seeds=(0, 1), limit=images), places)
    only = ("head_best",) if name == "vgg16_search" else ()  # the trials and nothing beside them
    return waited(study, Options(only=only, limit=images), places)


def waited(study: Path, options: Options, places: Places) -> float:
    starts: list[float] = []
    run = children.run

    def counted(module, job, *, on_event, **rest):
        started = time.monotonic()

        def handle(event):
            if event["event"] == "ready":
                starts.append(time.monotonic() - started)
            on_event(event)

        run(module, job, on_event=handle, **rest)

    children.run = counted
    before = len(records.read(places.results))
    started = time.monotonic()
    try:
        good, _ = harness.run_study(str(study), options, places, export=False, infer=False)
    finally:
        children.run = run
    seconds = time.monotonic() - started
    assert good, "a run failed"
    new = [r for r in records.read(places.results)[before:] if r["kind"] == "train"]
    pretrained = [r["marginal_seconds"] - r["process_start_seconds"] for r in new if r["freeze"] == "pretrain"]
    return seconds - sum(starts) - sum(pretrained)


def write_data(folder: Path, images: int) -> None:
    """Random images in CIFAR-10's own format and as arrays, with a tenth more to validate and as many to test.

    Pickled by a protocol that has bytes, as the release is: older ones spell them out, which takes long to read.
    """
    rng = np.random.default_rng(0)
    sizes = {"train": images, "val": images // 10, "test": images // 10}
    for part, count in sizes.items():
        np.save(folder / f"x_{part}.npy", rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8).astype(np.float32))
        np.save(folder / f"y_{part}.npy", rng.integers(0, 10, count))
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    counts = [2 * (images + sizes["val"]) // 5] * 5 + [2 * sizes["test"]]  # a study uses half of the classes
    for name, count in zip(names, counts, strict=True):
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = [i % 10 for i in range(count)]
        (batches / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels}, protocol=3))
    write = "import keras, sys; keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))"
    (batches / "batches.meta").write_bytes(
        pickle.dumps({b"label_names": [f"{i}".encode() for i in range(10)]}, protocol=3)
    )
    command = [sys.executable, "-c", f"{write}.save_weights(sys.argv[1])", str(folder / "vgg16.weights.h5")]
    subprocess.run(command, capture_output=True, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="repeatable; default: all")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--images", type=int, default=20_000)
    args = parser.parse_args()
    table = []
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "data"
        data.mkdir()
        write_data(data, args.images)
        measured: dict[tuple[str, int], float] = {}
        for name in args.case or CASES:
            case, theirs, own = CASES[name], [], []
            for turn in range(args.turns):
                work = Path(place) / f"{name}.{turn}"
                work.mkdir()
                for script in case.notebooks:
                    if (script, turn) not in measured:
                        measured[script, turn] = notebook(script, data, args.images)
                theirs.append(sum(count * measured[script, turn] for script, count in case.notebooks.items()))
                own.append(ours(name, case, data, args.images, work))
                print(f"{name}: notebook {theirs[-1]:.1f} s, ours {own[-1]:.1f} s", file=sys.stderr, flush=True)
            a, b = statistics.median(theirs), statistics.median(own)
            table.append([case.label, f"{a:,.0f}", f"{b:,.1f}", f"{a / b:.1f}", f"{case.promised:g}"])
    headers = ["what", "notebook s", "ours s", "ratio", "at least"]
    print(tabulate(table, headers, tablefmt="github", disable_numparse=True, colalign=["left", *["right"] * 4]))
    print(f"\n{args.images:,} images, {EPOCHS} epochs; the notebook's are one measured epoch times {EPOCHS}; ", end="")
    print(f"median of {args.turns} turns.")


if __name__ == "__main__":
    main()
