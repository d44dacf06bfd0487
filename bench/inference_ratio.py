"""What measuring costs, and how much faster the best artifacts answer: tables in Markdown.

    python bench/inference_ratio.py [--turns 3] [--data-dir DIR]

First EfficientNet-Lite0, VGG16 and ResNet50, each artifact in a process of its own as `frostline infer` runs it; then
the harness itself: a query through a runtime that does nothing, and LoadGen against a bare loop around the same calls.
Lite0 has ImageNet weights where the extra efficientnet-lite0 is installed, the others random ones, and no head is
trained; the images are random, or photographs of cats and dogs below DIR. So top-1 agreement says how often int8 names
the class that float32 does where classes mean nothing and lie close together; accuracy is left to the studies. Run it
on a quiet machine.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from frostline import datasets, device, exporting, harness, models, records, runtimes
from frostline.errors import UserError
from frostline.exporting import variants
from frostline.harness import inferring
from frostline.heads import probabilities
from frostline.inference import loadgen
from frostline.matrix import Way
from frostline.runtimes import How, onnxruntime
from frostline.runtimes.onnxruntime import FILES
from frostline.studies import Backbone, Data

NETWORKS = {"efficientnet_lite0": 224, "vgg16": 150, "resnet50": 224}
CELLS = [("single_stream", 1), ("offline", 32)]
FLOAT32 = ("keras_predict", "tf_function", "saved_model", "onnxruntime", "openvino")
LITE0 = "efficientnet_lite0"
IMAGES = 128


def photographs(size, data_dir):
    """Images that the network is asked about, and as many others to calibrate int8 on; uint8 [128, size, size, 3]."""
    if data_dir:
        data = Data("image_folder", path=str(data_dir / "cats_and_dogs"), image_size=size)
        found = datasets.load(data, limit=IMAGES)
        return found.test.images[:IMAGES], found.train.images[:IMAGES]
    pixels = np.random.default_rng(0).integers(0, 256, (2 * IMAGES, size, size, 3), dtype=np.uint8)
    return pixels[:IMAGES], pixels[IMAGES:]


def publish(name, size, place, data_dir):
    """Export one network with all its variants; its answers and the images become those of a run."""
    print(f"exporting {name}", file=sys.stderr)
    images, others = photographs(size, data_dir)
    device.seed_everything(0)
    network = models.build(Backbone(name), "linear", "backbone", size, 10)
    weights = "random"
    if name == LITE0:
        with contextlib.suppress(UserError):  # the package that carries them is an extra
            models.load_published(network, name, skip=set())
            weights = "ImageNet"
    if weights == "random":
        for layer in network.model.layers:  # without statistics of its own a deep network dies out
            if hasattr(layer, "inference_only"):
                layer.momentum = 0.0
        network.model(others[:32], training=True)
    logits = np.concatenate([network.model(images[i : i + 32]).numpy() for i in range(0, len(images), 32)])
    facts = {"study": "bench", "run": name, "run_time": "", "trained": {"precision": "float32"}}
    published = exporting.publish(
        models.standard(network.model),
        name=name,
        activation="softmax",
        class_names=[str(number) for number in range(10)],
        images=images[:32],
        facts=facts | {"trained": {"precision": "float32", "test_top1": 1.0}},
        exports=place / "exports",
    )
    folder = published.paths["onnx"]
    variants.int8(folder / FILES["float32"], folder / FILES["int8"], others)
    answers, classes = probabilities(logits), logits.argmax(axis=1)
    run = records.run_folder(place / "results", name)
    run.mkdir(parents=True)
    if weights != "random":  # what nobody trained has no classes that eight bits could keep apart
        np.savez(run / "predictions.npz", test=answers, test_labels=classes)
    np.savez(place / f"{name}.npz", images=images, labels=classes)
    found = variants.logits_of(onnxruntime.outputs(folder, "cpu", variant="int8"), images).argmax(axis=1)
    return {"weights": weights, "int8_agrees": float((found == classes).mean())}


def measure(name, way, place):
    """The records of one artifact on one runtime, by a child as `frostline infer` starts it."""
    places = harness.Places(place / "results", place / "exports")
    manifest = exporting.current(places.exports, name, runtimes.RUNTIMES[way.runtime].kind)
    before = len(records.read(places.results))
    inferring.measure(way, [manifest], CELLS, places, {name: str(place / f"{name}.npz")})
    return records.read(places.results)[before:]


# -- the harness itself --------------------------------------------------------------------------------


def rate_of_a_loop(predict, images, size, seconds):
    """Images a second of a bare loop over different batches."""
    rng, count, started = np.random.default_rng(0), 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        rows = rng.integers(0, len(images), size)
        predict(images[rows] if size > 1 else images[rows[0] : rows[0] + 1])
        count += size
    return count / (time.perf_counter() - started)


def rate_of_loadgen(predict, images, scenario, size, seconds, place, call_seconds):
    """Images a second of the same calls by LoadGen."""

    def answer(rows):
        return predict(images[rows] if size > 1 else images[rows[0] : rows[0] + 1])

    load = loadgen.Load(scenario, size, seconds, 1, call_seconds)
    return loadgen.run(load, len(images), answer, lambda rows, answer: None, place / "loadgen").images_per_second


def overhead(place, turns):
    """LoadGen against a bare loop, in turns in this process: the median of their ratios, and how far it may be off."""
    images = np.load(place / f"{LITE0}.npz")["images"]
    lines = []
    for runtime in ("onnxruntime", "saved_model", "tf_function", "keras_predict"):
        kind = runtimes.RUNTIMES[runtime].kind
        manifest = exporting.current(place / "exports", LITE0, kind)
        predict = runtimes.ready(runtime, "cpu").open(place / "exports" / kind / LITE0 / "1", manifest, How())
        for scenario, size in CELLS:
            call = size / rate_of_a_loop(predict, images, size, 1.0)  # a warm-up, too
            found = []
            for _ in range(3 * turns):
                bare = rate_of_a_loop(predict, images, size, 0.5)
                found.append(rate_of_loadgen(predict, images, scenario, size, 0.5, place, call) / bare)
            error = 1.25 * statistics.stdev(found) / len(found) ** 0.5  # of a median
            told = f"{statistics.median(found):.3f} ± {error:.3f}"
            lines.append([f"{runtime}, {scenario} @{size}: LoadGen ÷ a bare loop", told, "0.98"])
    return lines


# -- ratios --------------------------------------------------------------------------------------------


def figures(place, turns):
    """Median images a second of each network, runtime, variant and batch size."""
    found = {}
    ways = [Way(runtime, How(), "quick", (), None) for runtime in FLOAT32]
    ways += [Way("onnxruntime", How(variant="int8"), "quick", (), None)]
    for _ in range(turns):
        for name in NETWORKS:
            print(f"measuring {name}", file=sys.stderr)
            for way in ways if name == LITE0 else [ways[3], ways[5]]:
                if not runtimes.unavailable(way.runtime, "cpu"):
                    for row in measure(name, way, place):
                        key = (name, way.runtime, way.how.variant, row["batch_size"])
                        assert row["outcome"] == "ok", row["reason"]
                        found.setdefault(key, []).append(row["images_per_second"])
    return {key: statistics.median(rates) for key, rates in found.items()}


def ratios(found, published):
    """What is compared, the ratio, and what we aim for."""
    lines = []
    for size, least in ((1, 15), (32, 4)):
        own = {runtime: found[LITE0, runtime, "float32", size] for runtime in FLOAT32
               if (LITE0, runtime, "float32", size) in found}  # fmt: skip
        best = max(own, key=own.get)
        lines.append([f"{LITE0} @{size}: {best} ÷ keras_predict", f"{own[best] / own['keras_predict']:.1f}", least])
        if size == 1:
            lines.append([f"{LITE0} @1: {best} ÷ saved_model", f"{own[best] / own['saved_model']:.1f}", 3])
    for name in NETWORKS:
        for size in (1, 32):
            whole, eight = (found[name, "onnxruntime", variant, size] for variant in ("float32", "int8"))
            about = f"{published[name]['weights']} weights, top-1 agreement {published[name]['int8_agrees']:.3f}"
            text = f"{name} @{size}: int8 ÷ float32 in ONNX Runtime ({about})"
            lines.append([text, f"{eight / whole:.1f}", 2 if name == LITE0 else 3])
    return lines


def table(lines, head):
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in [head, ["---", "--:", "--:"], *lines])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=3, help="measurements of everything, in turns; default: 3")
    parser.add_argument("--data-dir", type=Path, help="a folder that holds cats_and_dogs, one folder per class")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="frostline-bench-") as folder:
        place = Path(folder)
        published = {name: publish(name, size, place, args.data_dir) for name, size in NETWORKS.items()}
        found = figures(place, args.turns)
        print(table(ratios(found, published), ["artifacts", "ratio", "at least"]) + "\n", flush=True)
        print("\n".join(" ".join([*key[:3], f"@{key[3]} {rate:.1f} images/s"]) for key, rate in found.items()) + "\n")
        (null, *_) = measure(LITE0, Way("null", How(), "quick", (), None), place)
        lines = [["null: µs a query", f"{1e6 / null['images_per_second']:.1f}", "20 at most"]]
        print(table(lines + overhead(place, max(3, args.turns)), ["what measuring costs", "measured", "at least"]))


if __name__ == "__main__":
    main()
