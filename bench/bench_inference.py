"""One answer of each runtime at each batch size, one request of each kind, for the network of the split study with
random weights; and the decoding of a photograph."""

import dataclasses

import keras
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
def network():
    """Scaled to [0, 1]: of pixels as they are, random weights make the same certain answer whatever the image."""
    device.seed_everything(0)
    return models.standard(models.build(STUDY.backbone, None, "unit", 32, 5).model)


@pytest.fixture(scope="module")
def exports(tmp_path_factory, network):
    folder = tmp_path_factory.mktemp("exports")
    names = [str(number) for number in range(5)]
    exporting.publish(
        network,
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
    benchmark.extra_info.update(**found, versions=machine.versions(), **facts)


def judged(network, images, answers):
    """How answers to images compare with the network's in float32: the share of equal classes, and the largest
    difference of a probability."""
    right = keras.ops.convert_to_numpy(keras.ops.softmax(network(images)))
    agreement = np.mean(answers.argmax(axis=1) == right.argmax(axis=1))
    assert 0.1 < right.max() < 0.9, "probabilities that can differ"
    return {"agreement": float(agreement), "largest_difference": float(np.abs(answers - right).max())}


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("way", LOCAL, ids=lambda way: way.label)
def bench_predict(benchmark, exports, network, way, batch_size):
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
    told = {}
    if runtime.answers:
        images = IMAGES[: 32 * batch_size]
        batches = [predict(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
        told = judged(network, images, np.concatenate(batches))
    tell(benchmark, batch_size=batch_size, device=way.how.device, precision=way.how.variant, **told)


@pytest.fixture(scope="module")
def server(exports):
    with serving.running(exports, ["bench"]) as running:
        yield running


@pytest.mark.parametrize("way", REMOTE, ids=lambda way: way.label)
def bench_request(benchmark, exports, network, server, way):
    """One request with one image, built, sent and answered."""
    import tensorflow as tf

    scheme = runtimes.RUNTIMES[way.runtime].scheme
    url = f"grpc://{server.grpc}" if scheme == "grpc" else server.rest
    manifest = exporting.current(exports, "bench", "saved_model")
    predict = runtimes.RUNTIMES[way.runtime].open(exports, manifest, dataclasses.replace(way.how, url=url))
    files = [tf.io.encode_jpeg(image).numpy() for image in IMAGES[:32]]
    sent, images = IMAGES[:32], IMAGES[:32]
    if way.how.payload == "jpeg":
        sent, images = files, np.stack([tf.io.decode_jpeg(file).numpy() for file in files])
    answers = benchmark.pedantic(predict, (sent[:1],), rounds=timing.samples_needed(0.95), warmup_rounds=5)
    assert answers.shape == (1, 5)
    told = judged(network, images, np.concatenate([predict(sent[row : row + 1]) for row in range(len(sent))]))
    tell(benchmark, batch_size=1, payload=way.how.payload, precision="float32", server=server.backend, **told)


def bench_decode(benchmark):
    """A photograph of 500 × 375 pixels from JPEG to the 224 × 224 that a network takes."""
    import tensorflow as tf

    photograph = tf.io.encode_jpeg(np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)).numpy()
    found = benchmark.pedantic(
        lambda: datasets.decode(photograph, 224).numpy(), rounds=timing.samples_needed(0.95), warmup_rounds=5
    )
    assert found.shape == (224, 224, 3)
    tell(benchmark, bytes=len(photograph), precision="uint8")
