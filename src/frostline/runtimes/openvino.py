"""OpenVINO over an `.onnx` file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline.errors import optional_import
from frostline.runtimes.onnxruntime import FILES, threads, without_strings

if TYPE_CHECKING:
    import numpy as np

    from frostline.runtimes import How


def open(folder: Path, manifest: dict[str, Any], how: How) -> Callable[[np.ndarray], np.ndarray]:
    """The `probabilities` of the graph; one call at a time, on all of its threads."""
    ov = optional_import("openvino", "openvino")
    # float32 is said: on a processor with bfloat16 units OpenVINO would round to that, and answer otherwise.
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    settings["INFERENCE_NUM_THREADS"] = str(threads(how))
    core = ov.Core()
    model = core.read_model(without_strings(folder / FILES[how.variant]))
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def predict(images: np.ndarray) -> np.ndarray:
        request.infer({"images": images}, share_inputs=True)
        return request.get_tensor("probabilities").data.copy()

    return predict
