"""What executes an artifact: from uint8 pixels [N,H,W,3] to float32 probabilities [N, classes]."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline.errors import lookup
from frostline.runtimes import keras_predict, null, onnxruntime, openvino, saved_model, tf_function, tf_serving

if TYPE_CHECKING:
    import numpy as np

Predict = Callable[[Any], "np.ndarray"]  # of pixels, uint8 [N,H,W,3], or of a list of encoded images
BOTH = ("cpu", "gpu")
KERAS = ("tensorflow", "keras")
Hold = Callable[["np.ndarray"], tuple[Callable[[], None], Callable[[], "np.ndarray"]]]


class Unavailable(Exception):
    """The runtime cannot run here: a device, a driver or a package is missing."""


@dataclass(frozen=True)
class How:
    """What a runtime is asked for: the device, the variant of the artifact, threads of a call (0: as many as cores).

    Over the network also the address of the server, and whether it is sent `pixels` or `jpeg` files.
    """

    device: str = "cpu"
    variant: str = "float32"
    threads: int = 0
    payload: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Runtime:
    """How one kind of artifact is executed; `open` and `hold` take version folder, manifest and How.

    `library` is the module that it cannot do without, `extra` what brings it (None: the extra of the device),
    `packages` which of `machine.LIBRARIES` its figures depend on. `variants` are those of the artifact that it runs, by
    device. `hold` gives a function that puts images on the device and returns two: one runs on them there and leaves
    the answer, the other reads it. None where the runtime always copies. What answers without looking at the images
    has `answers` False: its answers are held to nothing. What asks a server has the `scheme` of its address, and the
    `payloads` that it can send.
    """

    summary: str
    kind: str
    library: str
    devices: tuple[str, ...]
    open: Callable[[Path, dict[str, Any], How], Predict]
    hold: Callable[[Path, dict[str, Any], How], Hold] | None = None
    extra: str | None = None
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict.fromkeys(BOTH, ("float32",)))
    answers: bool = True
    scheme: str | None = None
    payloads: tuple[str | None, ...] = (None,)
    packages: tuple[str, ...] = ("tensorflow",)


RUNTIMES = {
    "keras_predict": Runtime(
        "Keras file: model.predict, without XLA", "keras", "keras", BOTH, keras_predict.open, packages=KERAS
    ),
    "tf_function": Runtime(
        "Keras file: one traced function, without XLA",
        "keras",
        "keras",
        BOTH,
        tf_function.open,
        tf_function.hold,
        packages=KERAS,
    ),
    "tf_function_xla": Runtime(
        "Keras file: one function compiled by XLA for each batch size",
        "keras",
        "keras",
        BOTH,
        partial(tf_function.open, xla=True),
        partial(tf_function.hold, xla=True),
        packages=KERAS,
    ),
    "saved_model": Runtime(
        "SavedModel: its serving signature", "saved_model", "tensorflow", BOTH, saved_model.open, saved_model.hold
    ),
    "onnxruntime": Runtime(
        "ONNX file: ONNX Runtime, float32, int8 and, on a GPU, float16",
        "onnx",
        "onnxruntime",
        BOTH,
        onnxruntime.open,
        onnxruntime.hold,
        variants={"cpu": ("float32", "int8"), "gpu": ("float32", "float16", "int8")},
        packages=("onnxruntime", "onnxruntime-gpu"),
    ),
    "openvino": Runtime(
        "ONNX file: OpenVINO, float32 and int8",
        "onnx",
        "openvino",
        ("cpu",),
        openvino.open,
        extra="openvino",
        variants={"cpu": ("float32", "int8")},
        packages=("openvino",),
    ),
    "tf_serving_grpc": Runtime(
        "SavedModel: TensorFlow Serving, or the embedded server, over gRPC",
        "saved_model",
        "grpc",
        ("cpu",),
        tf_serving.open,
        scheme="grpc",
        payloads=("pixels", "jpeg"),
    ),
    "tf_serving_rest": Runtime(
        "SavedModel: TensorFlow Serving, or the embedded server, over REST",
        "saved_model",
        "http",
        ("cpu",),
        tf_serving.open,
        scheme="http",
        payloads=("pixels", "jpeg"),
    ),
    "null": Runtime(
        "nothing at all: what measuring itself costs",
        "onnx",
        "numpy",
        ("cpu",),
        null.open,
        answers=False,
        packages=("mlcommons-loadgen",),
    ),
}


def ready(name: str, device: str) -> Runtime:
    """The runtime with its library imported, so that what is timed next is loading; raises Unavailable."""
    if reason := unavailable(name, device):
        raise Unavailable(reason)
    importlib.import_module(RUNTIMES[name].library)
    return RUNTIMES[name]


def copies(name: str, device: str) -> tuple[bool, ...]:
    """With host copies, and on a GPU without them too where the runtime takes images that lie there."""
    return (True, False) if device == "gpu" and RUNTIMES[name].hold else (True,)


def unavailable(name: str, device: str) -> str | None:
    """Why a runtime cannot run on `cpu` or `gpu` here, None where it can; no model is loaded."""
    runtime = lookup(RUNTIMES, name, "runtime")
    if device not in runtime.devices:
        return f"{name} does not run on {device}"
    if importlib.util.find_spec(runtime.library) is None:
        return f"{runtime.library} is not installed; it comes with the {runtime.extra or device} extra"
    if device == "cpu":
        return None
    if not cuda_devices():
        return "no CUDA device"
    if not _sees_gpu(runtime.library):
        return f"{runtime.library} sees no GPU; install the gpu extra in a fresh environment: make clean setup"
    return None


def cuda_devices() -> int:
    """How many CUDA devices the driver shows to this process, 0 without a driver."""
    # The driver is asked, not nvidia-smi: it knows CUDA_VISIBLE_DEVICES.
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def _sees_gpu(library: str) -> bool:
    if library == "onnxruntime":
        import onnxruntime as ort

        return "CUDAExecutionProvider" in ort.get_available_providers()
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))
