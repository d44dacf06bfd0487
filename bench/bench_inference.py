"""One answer of each runtime at each batch size, one request of each kind, for the network of the split study with
random weights; and the decoding of a photograph."""

import dataclasses

import numpy as np
import pytest

from frostline import datasets, device, exporting, machine, matrix, models, runtimes, serving, studies, timing

STUDY = studies.load("cifar10_split")
IMAGES = np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), dtype=np.uint8)
BATCH_SIZES = sorted({size for sizes in matrix.SCENARIOS.values() for size in sizes})
WAYS = matrix.ways(matrix.Asked())
LOCAL = [way for way in WAYS if not runtimes.RUNTIMES[way.runtime].scheme]
REMOTE = [way for way in WAYS if runtimes.RUNTIMES[way.runtime].scheme]


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


def tell(benchmark, **facts):
    """Percentiles that the rounds support, in seconds, and what they depend on."""
    summary = timing.summarize(benchmark.stats.stats.data)
    found = {f"p{p}": getattr(summary, f"p{p}_seconds") for p in (50, 90, 95, 99)}
    benchmark.extra_info.update(**found, precision="float32", versions=machine.versions(), **facts)


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("way", LOCAL, ids=lambda way: way.label)
def bench_predict(benchmark, exports, way, batch_size):
    if reason := way.reason or runtimes.unavailable(way.runtime, way.how.device):
        pytest.skip(reason)
    runtime = runtimes.RUNTIMES[way.runtime]
    manifest = exporting.current(exports, "bench", runtime.kind)
    if not matrix.tried(way, manifest):
        pytest.skip(f"no {way.how.variant} artifact")
    predict = runtime.open(exports / runtime.kind / "bench" / str(manifest["version"]), manifest, way.how)
    rounds = timing.samples_needed(0.90) if batch_size == 1 else 15
    answers = benchmark.pedantic(predict, (IMAGES[:batch_size],), rounds=rounds, warmup_rounds=3)
    assert answers.shape == (batch_size, 5)
    tell(benchmark, batch_size=batch_size, device=way.how.device, variant=way.how.variant)


@pytest.fixture(scope="module")
def server(exports):
    with serving.running(exports, ["bench"]) as running:
        yield running


@pytest.mark.parametrize("way", REMOTE, ids=lambda way: way.label)
def bench_request(benchmark, exports, server, way):
    """One request with one image, built, sent and answered."""
    import tensorflow as tf

    scheme = runtimes.RUNTIMES[way.runtime].scheme
    url = f"grpc://{server.grpc}" if scheme == "grpc" else server.rest
    manifest = exporting.current(exports, "bench", "saved_model")
    predict = runtimes.RUNTIMES[way.runtime].open(exports, manifest, dataclasses.replace(way.how, url=url))
    files = [tf.io.encode_jpeg(IMAGES[0]).numpy()]
    sent = files if way.how.payload == "jpeg" else IMAGES[:1]
    answers = benchmark.pedantic(predict, (sent,), rounds=timing.samples_needed(0.95), warmup_rounds=5)
    assert answers.shape == (1, 5)
    tell(benchmark, batch_size=1, payload=way.how.payload, server=server.backend)


def bench_decode(benchmark):
    """A photograph of 500 × 375 pixels from JPEG to the 224 × 224 that a network takes."""
    import tensorflow as tf

    photograph = tf.io.encode_jpeg(np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)).numpy()
    found = benchmark.pedantic(
        lambda: datasets.decode(photograph, 224).numpy(), rounds=timing.samples_needed(0.95), warmup_rounds=5
    )
    assert found.shape == (224, 224, 3)
    tell(benchmark, bytes=len(photograph))
