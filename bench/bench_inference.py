"""One answer of each runtime at each batch size, for the network of the split study with random weights."""

import numpy as np
import pytest

from frostline import device, exporting, harness, machine, models, runtimes, studies

STUDY = studies.load("cifar10_split")
IMAGES = np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    device.seed_everything(0)
    network = models.build(STUDY.backbone, None, "backbone", 32, 5)
    names = [str(number) for number in range(5)]
    exporting.publish(
        models.standard(network.model),
        name="bench",
        activation="softmax",
        class_names=names,
        images=IMAGES[:32],
        facts={},
        exports=folder,
    )
    return folder


@pytest.mark.parametrize("batch_size", harness.BATCH_SIZES)
@pytest.mark.parametrize("on", ["cpu", "gpu"])
@pytest.mark.parametrize("name", runtimes.RUNTIMES)
def bench_predict(benchmark, exports, name, on, batch_size):
    if reason := runtimes.unavailable(name, on):
        pytest.skip(reason)
    runtime = runtimes.RUNTIMES[name]
    manifest = exporting.current(exports, "bench", runtime.kind)
    predict = runtime.open(exports / runtime.kind / "bench" / str(manifest["version"]), manifest, on)
    benchmark.extra_info.update(batch_size=batch_size, device=on, versions=machine.versions())
    answers = benchmark.pedantic(predict, (IMAGES[:batch_size],), rounds=15, warmup_rounds=3)
    assert answers.shape == (batch_size, 5)
