"""One training step of each freeze configuration of the split study, through Keras as the plain engine runs it."""

import numpy as np
import pytest

from frostline import device, freezing, machine, models, studies, training

STUDY = studies.load("cifar10_split")
BATCH = STUDY.freeze[0].stages[0].batch_size


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("freeze", STUDY.freeze[:4], ids=lambda f: f.name)
def bench_training_step(benchmark, freeze, precision):
    device.configure(precision)
    try:
        device.seed_everything(0)
        network = models.build(STUDY.backbone, None, "backbone", 32, 5)
    finally:
        device.configure("float32")
    mask = freezing.apply(network.model, network.groups, freeze.stages[0])
    training.compile_model(network.model, freeze.stages[0], xla=False)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 5, BATCH, dtype=np.int32)
    benchmark.extra_info.update(trainable_params=mask.trainable_params, batch_size=BATCH, versions=machine.versions())
    benchmark.extra_info.update(device.effective(network.model))
    loss, _ = benchmark.pedantic(network.model.train_on_batch, (images, labels), rounds=10, warmup_rounds=3)
    assert np.isfinite(loss)
