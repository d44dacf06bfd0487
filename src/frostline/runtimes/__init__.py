"""What executes an artifact: from uint8 pixels [N,H,W,3] to float32 probabilities [N, classes]."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline.errors import lookup
from frostline.runtimes import keras_predict, onnxruntime, saved_model, tf_function

if TYPE_CHECKING:
    import numpy as np

Predict = Callable[["np.ndarray"], "np.ndarray"]


class Unavailable(Exception):
    """The runtime cannot run here: a device, a driver or a package is missing."""


@dataclass(frozen=True)
class Runtime:
    """How one kind of artifact is executed; `open` takes version folder, manifest and device.

    `library` is the module that it cannot do without.
    """

    summary: str
    kind: str
    library: str
    devices: tuple[str, ...]
    open: Callable[[Path, dict[str, Any], str], Predict]


RUNTIMES = {
    "keras_predict": Runtime(
        summary="Keras file: model.predict, without XLA",
        kind="keras",
        library="keras",
        devices=("cpu", "gpu"),
        open=keras_predict.open,
    ),
    "tf_function": Runtime(
        summary="Keras file: one traced TensorFlow function, without XLA",
        kind="keras",
        library="keras",
        devices=("cpu", "gpu"),
        open=tf_function.open,
    ),
    "saved_model": Runtime(
        summary="SavedModel: its serving signature",
        kind="saved_model",
        library="tensorflow",
        devices=("cpu", "gpu"),
        open=saved_model.open,
    ),
    "onnxruntime": Runtime(
        summary="ONNX file: ONNX Runtime",
        kind="onnx",
        library="onnxruntime",
        devices=("cpu", "gpu"),
        open=onnxruntime.open,
    ),
}


def ready(name: str, device: str) -> Runtime:
    """The runtime with its library imported, so that what is timed next is loading; raises Unavailable."""
    if reason := unavailable(name, device):
        raise Unavailable(reason)
    importlib.import_module(RUNTIMES[name].library)
    return RUNTIMES[name]


def unavailable(name: str, device: str) -> str | None:
    """Why a runtime cannot run on `cpu` or `gpu` here, None where it can; no model is loaded."""
    runtime = lookup(RUNTIMES, name, "runtime")
    if device not in runtime.devices:
        return f"{name} does not run on {device}"
    if importlib.util.find_spec(runtime.library) is None:
        return f"{runtime.library} is not installed; type: pip install 'frostline[{device}]'"
    if device == "cpu":
        return None
    if not cuda_devices():
        return "no CUDA device"
    if not _sees_gpu(runtime.library):
        return f"{runtime.library} sees no GPU; type: pip install 'frostline[gpu]'"
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
