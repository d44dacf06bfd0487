import concurrent.futures
import ctypes
import importlib.util
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from frostline import client, exporting, machine, runtimes, serving
from frostline.errors import UserError
from frostline.exporting.versions import KINDS
from frostline.runtimes import RUNTIMES, How, Unavailable, onnxruntime

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def publish(exports, name, activation, outputs, class_names):
    keras.utils.set_random_seed(0)
    images = keras.Input((8, 8, 3), dtype="uint8", name="images")
    x = keras.layers.Conv2D(4, 3, activation="relu")(keras.layers.Rescaling(1 / 255)(images))
    model = keras.Model(images, keras.layers.Dense(outputs)(keras.layers.GlobalAveragePooling2D()(x)))
    exporting.publish(
        model,
        name=name,
        activation=activation,
        class_names=class_names,
        images=IMAGES,
        facts={},
        exports=exports,
    )
    return model(IMAGES).numpy()


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def expected(exports):
    """Probabilities of the models before they were exported, by name."""
    logits = publish(exports, "softmax", "softmax", 3, ("a", "b", "c"))
    powers = np.exp(logits.astype(np.float64))
    dog = 1 / (1 + np.exp(-publish(exports, "logit", "logit", 1, ("cat", "dog")).astype(np.float64)))
    return {"softmax": powers / powers.sum(axis=1, keepdims=True), "logit": np.concatenate([1 - dog, dog], axis=1)}


@pytest.fixture(scope="module")
def server(exports, expected):
    with serving.running(exports, sorted(expected), backend="embedded") as running:
        yield {"grpc": f"grpc://{running.grpc}", "http": running.rest}


# -- what every runtime keeps --------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["softmax", "logit"])
@pytest.mark.parametrize("name", [name for name, runtime in RUNTIMES.items() if runtime.answers])
def test_a_runtime_answers_as_the_model_did(name, model, exports, expected, request):
    manifest = exporting.current(exports, model, RUNTIMES[name].kind)
    folder = exports / RUNTIMES[name].kind / model / "1"
    if reason := runtimes.unavailable(name, "cpu"):
        pytest.skip(reason)
    scheme = RUNTIMES[name].scheme
    how = How(url=request.getfixturevalue("server")[scheme]) if scheme else How()
    predict = runtimes.ready(name, "cpu").open(folder, manifest, how)
    for rows in (slice(0, 1), slice(1, 6), slice(0, 2)):
        answer = predict(IMAGES[rows])
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, expected[model][rows], atol=1e-6)


@pytest.mark.parametrize("name", [name for name, runtime in RUNTIMES.items() if runtime.scheme])
def test_a_server_is_sent_files_too(name, exports, expected, server):
    manifest = exporting.current(exports, "softmax", "saved_model")
    predict = runtimes.ready(name, "cpu").open(exports, manifest, How(url=server[RUNTIMES[name].scheme]))
    files = [tf.io.encode_png(image).numpy() for image in IMAGES]
    np.testing.assert_allclose(predict(files), expected["softmax"], atol=1e-6)


def test_a_connection_serves_later_calls_of_other_threads(monkeypatch):
    class Connection:
        def predict(self, name, images, version):
            together.wait()
            return {"probabilities": images}

        def close(self):
            pass

    opened = []
    monkeypatch.setattr(client, "connect", lambda *args, **more: opened.append(Connection()) or opened[-1])
    predict = RUNTIMES["tf_serving_grpc"].open(None, {"name": "x", "version": 1}, How(url="grpc://x:1"))
    for workers in (1, 2, 1, 2):
        together = threading.Barrier(workers, timeout=30)
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:  # whose threads end with it
            list(pool.map(predict, range(workers)))
    assert len(opened) == 2


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_is_gone_is_an_error_at_once(scheme):
    predict = RUNTIMES["tf_serving_grpc"].open(None, {"name": "x", "version": 1}, How(url=f"{scheme}://127.0.0.1:9"))
    with pytest.raises(UserError, match="no answer"):
        predict(IMAGES)


@pytest.mark.parametrize("name", RUNTIMES)
def test_an_entry_is_complete(name):
    runtime = RUNTIMES[name]
    assert runtime.summary and runtime.kind in KINDS and set(runtime.devices) <= {"cpu", "gpu"}
    assert set(runtime.variants) >= set(runtime.devices)
    assert runtimes.unavailable(name, "cpu") is None or runtime.extra


@pytest.mark.parametrize("name", [name for name in RUNTIMES if "gpu" in RUNTIMES[name].devices])
def test_without_a_cuda_device_the_gpu_is_not_available(name, monkeypatch):
    monkeypatch.setattr(runtimes, "cuda_devices", lambda: 0)
    assert runtimes.unavailable(name, "gpu") == "no CUDA device"
    with pytest.raises(Unavailable, match="no CUDA device"):
        runtimes.ready(name, "gpu")


# -- what is missing -----------------------------------------------------------------------------------


def test_an_unknown_runtime_is_the_users_mistake():
    with pytest.raises(UserError, match="did you mean 'saved_model'"):
        runtimes.unavailable("savedmodel", "cpu")


def test_a_library_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    expected = "onnxruntime is not installed; it comes with the cpu extra"
    assert runtimes.unavailable("onnxruntime", "cpu") == expected


def test_a_device_that_a_runtime_does_not_know():
    assert runtimes.unavailable("onnxruntime", "npu") == "onnxruntime does not run on npu"


@pytest.mark.parametrize("name", ["onnxruntime", "saved_model"])
def test_a_library_without_cuda_on_a_machine_with_a_gpu(name, monkeypatch):
    import onnxruntime as ort

    monkeypatch.setattr(runtimes, "cuda_devices", lambda: 1)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert "sees no GPU; install the gpu extra in a fresh environment" in runtimes.unavailable(name, "gpu")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    assert runtimes.unavailable(name, "gpu") is None


class Driver:
    """Stands for libcuda: what `cuInit` returns, and how many devices it has."""

    def __init__(self, status, devices):
        self.status, self.devices = status, devices

    def cuInit(self, flags):
        return self.status

    def cuDeviceGetCount(self, count):
        count._obj.value = self.devices
        return 0


@pytest.mark.parametrize(("status", "devices", "seen"), [(0, 2, 2), (0, 0, 0), (100, 2, 0)])
def test_the_driver_counts_the_devices(status, devices, seen, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(status, devices))
    assert runtimes.cuda_devices() == seen


def test_no_driver_is_no_device(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert runtimes.cuda_devices() == 0


def test_onnx_runtime_takes_the_threads_that_the_record_tells(exports, expected, monkeypatch):
    import onnxruntime as ort

    own, taken = ort.InferenceSession, []
    monkeypatch.setattr(ort, "InferenceSession", lambda *args, **more: taken.append(args[1]) or own(*args, **more))
    for threads in (0, 1):
        manifest = exporting.current(exports, "softmax", "onnx")
        RUNTIMES["onnxruntime"].open(exports / "onnx" / "softmax" / "1", manifest, How(threads=threads))
    assert [options.intra_op_num_threads for options in taken] == [machine.cores(), 1]


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")  # ONNX Runtime's way to announce another device
def test_onnx_runtime_on_another_device_than_asked_is_an_error(exports, expected, monkeypatch):
    monkeypatch.setitem(onnxruntime.PROVIDERS, "cpu", "MissingExecutionProvider")
    with pytest.raises(RuntimeError, match="chose CPUExecutionProvider, not MissingExecutionProvider"):
        onnxruntime.outputs(exports / "onnx" / "softmax" / "1", "cpu")


# -- without host copies -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, runtime in RUNTIMES.items() if runtime.hold])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_images_held_on_the_device_are_answered_the_same(exports, expected, name, device):
    if reason := runtimes.unavailable(name, device):
        pytest.skip(reason)
    runtime = RUNTIMES[name]
    folder = exports / runtime.kind / "softmax" / "1"
    manifest = exporting.current(exports, "softmax", runtime.kind)
    predict, hold = (way(folder, manifest, How(device)) for way in (runtime.open, runtime.hold))
    run, read = hold(IMAGES)
    run()
    np.testing.assert_allclose(read(), predict(IMAGES), atol=1e-6 if device == "cpu" else 1e-2)
    other, read_other = hold(IMAGES[::-1].copy())
    other()
    assert not np.allclose(read_other(), read())
