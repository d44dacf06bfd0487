"""What training consists of, on the network of the split study: a step of each freeze configuration as the plain engine
runs it, the pass of the frozen part, and an epoch of the rest on features."""

import time
from dataclasses import asdict

import keras
import numpy as np
import pytest

from frostline import cached, device, freezing, frontier, machine, models, prefix, studies, timing, training

STUDY = studies.load("cifar10_split")
BATCH = STUDY.freeze[0].stages[0].batch_size
PRECISIONS = ("float32", "mixed_bfloat16")
FROZEN = STUDY.freeze[:3]  # which train the output layer, the dense one before it too, the whole head
ROUNDS = 64  # for a p90: timing.samples_needed
IMAGES = np.random.default_rng(0).integers(0, 256, (512, 32, 32, 3), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(0, 5, len(IMAGES), dtype=np.int32)


def network(freeze, precision):
    """The network of a configuration, masked, and its mask."""
    device.configure(precision)
    try:
        device.seed_everything(0)
        found = models.build(STUDY.backbone, None, "backbone", 32, 5)
    finally:
        device.configure("float32")
    return found, freezing.apply(found.model, found.groups, freeze.stages[0])


def halves(freeze, precision):
    """The two parts of a configuration's network, its mask, and the program of the pass."""
    found, mask = network(freeze, precision)
    cut = frontier.split(found.model, mode="inference_prefix")
    return cut, mask, prefix.forward(prefix.need(found, cut, {}), IMAGES, len(IMAGES))[1]


def measure(benchmark, call, args, *, rounds, **told):
    """Time a call; its percentiles and what is told of it go beside the figures. Returns its last answer."""
    answer = benchmark.pedantic(call, args, rounds=rounds, warmup_rounds=3)
    if benchmark.stats:  # none under --benchmark-disable
        told["percentiles"] = asdict(timing.summarize(benchmark.stats.stats.data))
    benchmark.extra_info.update({"device": device.kind()} | told, versions=machine.versions())
    return answer


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("freeze", STUDY.freeze[:4], ids=lambda f: f.name)
def bench_training_step(benchmark, freeze, precision):
    found, mask = network(freeze, precision)
    training.compile_model(found.model, freeze.stages[0], xla=False)
    batch = (IMAGES[:BATCH], LABELS[:BATCH])
    told = {"trainable_params": mask.trainable_params, "batch_size": BATCH, **device.effective(found.model)}
    loss, top1 = measure(benchmark, found.model.train_on_batch, batch, rounds=ROUNDS, **told)
    benchmark.extra_info["train_top1"] = float(top1)  # of the batch, after all rounds
    assert np.isfinite(loss)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("freeze", FROZEN, ids=lambda f: f.name)
def bench_prefix_pass(benchmark, freeze, precision):
    cut, _, run = halves(freeze, precision)
    told = {"images": len(IMAGES), "boundary": list(cut.boundary), "precision": precision, "xla": False}
    features = measure(benchmark, run, (IMAGES,), rounds=timing.samples_needed(0.50), **told)
    assert [len(array) for array in features] == [len(IMAGES)] * len(cut.boundary)
    exact, _, _ = halves(freeze, "float32")
    right = keras.tree.flatten(exact.prefix.predict(IMAGES, verbose=0))
    off = [np.abs(found.astype("float32") - true).max() / np.abs(true).max()
           for found, true in zip(features, right, strict=True)]  # fmt: skip
    benchmark.extra_info["largest_difference"] = float(max(off))  # from float32, of the largest


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("freeze", FROZEN, ids=lambda f: f.name)
def bench_suffix_epoch(benchmark, freeze, precision):
    cut, mask, run = halves(freeze, precision)
    training.compile_model(cut.suffix, freeze.stages[0], xla=False)
    rows = cached.Rows(run(IMAGES), LABELS)

    def epoch():  # the warm-up makes its program, the rounds find it again, as the runs of a group do
        return cached.fit(
            cut.suffix, rows, None, epochs=1, batch_size=BATCH, evaluation_batch=BATCH, callbacks=[],
            order=lambda number: training.order(len(rows), 0, 1, number), read=time.perf_counter,
        )  # fmt: skip

    told = {"trainable_params": mask.trainable_params, "images": len(rows), "batch_size": BATCH}
    told |= {"precision": precision, "xla": False}
    _, found_again = measure(benchmark, epoch, (), rounds=ROUNDS, **told)
    assert found_again and all(np.isfinite(weight.numpy()).all() for weight in cut.suffix.weights)
    features = rows.features if len(rows.features) > 1 else rows.features[0]
    _, top1 = cut.suffix.evaluate(features, LABELS, batch_size=BATCH, verbose=0)
    benchmark.extra_info["train_top1"] = float(top1)
