"""Epoch times of the CIFAR-10 split network, the notebook way and ours with the plain engine, in turns.

    python bench/notebook_ratio.py [--images 6400] [--turns 3]

Each turn is a fresh interpreter; both sides time the epochs of one `fit` and leave out the first, which compiles. The
notebook runs in float32 as notebooks do; ours with what `auto`, the default, chooses on this machine, measured first.
(The study itself is pinned to float32, to be compared with its document.) Prints medians over the turns and ratios.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tabulate import tabulate

from frostline import choice, plan, runtimes, studies
from frostline.harness import Places, settling
from frostline.plan import Options

HERE = Path(__file__).parent
CONFIGURATIONS = ("output", "dense_output", "fully_connected", "all")
EPOCHS = 3


def notebook(configuration: str, images: int) -> tuple[float, int]:
    """Median epoch seconds after the first, and trainable parameters, of the plain Keras script."""
    command = [sys.executable, str(HERE / "notebook.py"), configuration, str(images), str(EPOCHS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    return statistics.median(told["seconds"][1:]), told["trainable"]


def ours(configuration: str, images: int, precision: str, xla: str) -> tuple[float, int]:
    """The same through frostline's plain engine."""
    command = [sys.executable, __file__, "--child", configuration, precision, xla, "--images", str(images)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    return statistics.median(told["seconds"][1:]), told["trainable"]


def child(configuration: str, precision: str, xla: str, images: int) -> None:
    """Train one configuration on random pixels and print the seconds of each epoch."""
    import dataclasses

    import numpy as np

    from frostline import device, models, training
    from frostline.datasets import Split

    freeze = next(f for f in studies.load("cifar10_split").freeze if f.name == configuration)
    stage = dataclasses.replace(freeze.stages[0], epochs=EPOCHS)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    split = Split(pixels, rng.integers(0, 5, images, dtype=np.int32), [])
    device.configure(precision)
    device.seed_everything(0)
    network = models.build(studies.load("cifar10_split").backbone, None, "backbone", 32, 5)
    trained = training.train(network, (stage,), split, None, seed=0, xla=xla == "on")
    seconds = [entry["seconds"] for entry in trained.history]
    print(json.dumps({"seconds": seconds, "trainable": trained.masks[0].trainable_params}))


def chosen(images: int) -> dict[str, choice.Setting]:
    """What `auto` takes for the split study on this machine, measured now."""
    asked = Options(CONFIGURATIONS, seeds=(0,), weights="none", precision=("auto",), engine=("plain",))
    study = plan.resolve(studies.load("cifar10_split"), asked)
    runs = plan.runs(study, asked, lambda data: "random pixels", lambda path: "")
    shape = {"size": 32, "classes": 5, "images": {"train": images, "validation": 0, "test": 0}}
    shapes = [{"model": run.model, "untimed": [{"engine": "plain"}], **shape} for run in runs]
    device = "gpu" if runtimes.cuda_devices() else "cpu"
    checked = {"device": device, "mixed": "mixed_bfloat16", "configurations": shapes, "effort": None}
    with tempfile.TemporaryDirectory() as folder:
        cells = settling.choose(runs, choice.key(runs), checked, [], Places(Path(folder), Path(folder)))
    return {run.freeze.name: choice.pick(cells, run, device) for run in runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6400)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--child", nargs=3, metavar=("NAME", "PRECISION", "XLA"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child, args.images)
        return
    auto = chosen(args.images)
    table = []
    for name in CONFIGURATIONS:
        theirs, own, trainable = [], [], set()
        for _ in range(args.turns):
            for measure, kept in (
                (lambda n: notebook(n, args.images), theirs),
                (lambda n: ours(n, args.images, auto[n].precision, auto[n].xla), own),
            ):
                seconds, parameters = measure(name)
                kept.append(seconds)
                trainable.add(parameters)
        assert len(trainable) == 1, f"the two ways train different parameters: {trainable}"
        a, b = statistics.median(theirs), statistics.median(own)
        setting = f"{auto[name].precision}, XLA {auto[name].xla}"
        table.append([name, f"{trainable.pop():,}", f"{a:.2f}", f"{b:.2f}", f"{a / b:.2f}", setting])
    headers = ["freeze", "trainable", "notebook epoch s", "ours epoch s", "ratio", "ours ran as"]
    print(tabulate(table, headers, tablefmt="github", disable_numparse=True, colalign=["left", *["right"] * 5]))
    print(f"\n{args.images:,} random 32×32 images, batch 64; median of {args.turns} turns.")


if __name__ == "__main__":
    main()
