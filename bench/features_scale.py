"""Training on features in memory and on the same features mapped from their file.

    python bench/features_scale.py [--gib 2] [--turns 3]

A linear head on random float32 features; each turn is a fresh interpreter. Prints the median epoch and the peak of
anonymous memory (RssAnon: what a mapped file occupies of the page cache is the system's, not the process's).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tabulate import tabulate

from frostline import features

WIDTH, EPOCHS, BATCH = 12_544, 4, 64
KEY = "0" * 64


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def write(rows: int) -> None:
    import numpy as np

    rng = np.random.default_rng(0)

    def fill(put: features.Write) -> None:
        for start in range(0, rows, 1000):
            put("train", [rng.random((min(1000, rows - start), WIDTH), np.float32)])

    features.compute(KEY, features.Layout({"train": rows}, ((WIDTH,),), ("float32",)), {}, fill)


def child(memory_bytes: int) -> None:
    import keras
    import numpy as np

    from frostline import cached

    model = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(10)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    peak, epochs, done = anonymous_bytes(), [], threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, anonymous_bytes())

    class Seconds(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            epochs.append(time.perf_counter())

        def on_epoch_end(self, epoch, logs=None):
            epochs[-1] = time.perf_counter() - epochs[-1]

    before = anonymous_bytes()
    threading.Thread(target=watch, daemon=True).start()
    with features.load(KEY, memory_bytes=memory_bytes) as found:
        count = len(found.arrays["train"][0])
        labels = np.random.default_rng(1).integers(0, 10, count, dtype=np.int32)
        cached.fit(
            model,
            cached.Rows(found.arrays["train"], labels),
            None,
            epochs=EPOCHS,
            batch_size=BATCH,
            evaluation_batch=256,
            order=lambda epoch: np.random.default_rng(epoch).permutation(count),
            callbacks=[Seconds()],
            read=time.perf_counter,
        )
    done.set()
    print(
        json.dumps({"epoch": statistics.median(epochs[1:]), "anonymous": peak - before, "in_memory": found.in_memory})
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        child(args.child)
        return
    with tempfile.TemporaryDirectory() as cache:
        os.environ["FROSTLINE_CACHE"] = cache
        rows = int(args.gib * 2**30 / (4 * WIDTH))
        write(rows)
        found: dict[str, list[dict[str, float]]] = {"memory": [], "file": []}
        for _ in range(args.turns):
            for name, budget in (("memory", 2**50), ("file", 0)):
                command = [sys.executable, __file__, "--child", str(budget)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {name: statistics.median(turn["epoch"] for turn in turns) for name, turns in found.items()}
    table = []
    for name, turns in found.items():
        anonymous = max(turn["anonymous"] for turn in turns) / 2**20
        table.append([name, f"{medians[name]:.2f}", f"{medians[name] / medians['memory']:.2f}", f"{anonymous:,.0f}"])
    headers = ["features in", "epoch s", "ratio", "peak anonymous MiB"]
    print(tabulate(table, headers, tablefmt="github", disable_numparse=True, colalign=["left", *["right"] * 3]))
    print(f"\n{rows:,} rows of {WIDTH:,} float32, {args.gib:g} GiB; batch {BATCH}; median of {args.turns} turns.")


if __name__ == "__main__":
    main()
