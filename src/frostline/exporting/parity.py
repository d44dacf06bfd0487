"""The proof that artifacts answer as the model does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from frostline import heads, models
from frostline.runtimes import keras_predict, onnxruntime, saved_model

if TYPE_CHECKING:
    import keras
    import numpy as np

    Outputs = Callable[[np.ndarray], dict[str, np.ndarray]]

BATCH_SIZES = (1, 7, 32, 3)
TOLERANCE = 1e-5
ROUNDING_FACTOR = 4.0


class ParityError(Exception):
    """An artifact answers otherwise than the model it was made of."""


@dataclass(frozen=True)
class Parity:
    """Largest difference of logits, relative to the model's largest logit, by kind of artifact.

    `tolerance` is 1e-5, or, where the model itself is further from its exact answer, four times that `rounding`: how
    far its float32 logits are from those of the same model in float64 (None where it was not needed).
    """

    differences: dict[str, float]
    tolerance: float
    rounding: float | None
    batch_sizes: tuple[int, ...]
    images: int


def check(model: keras.Model, folders: dict[str, Path], images: np.ndarray, activation: str) -> Parity:
    """Compare the artifacts in `folders` with the model over uint8 images [N,H,W,3]; raises ParityError.

    All of it runs on the CPU: a GPU rounds the inputs of convolutions to ten bits (TF32), the model's included.
    """
    import numpy as np
    import tensorflow as tf

    batches = [images[np.arange(size) % len(images)] for size in BATCH_SIZES]
    with tf.device("/cpu:0"):
        expected = [model(batch, training=False).numpy() for batch in batches]
    artifacts: dict[str, Outputs] = {
        "keras": keras_predict.outputs(folders["keras"], "cpu"),
        "saved_model": saved_model.outputs(folders["saved_model"], "cpu"),
        "onnx": onnxruntime.outputs(folders["onnx"], "cpu"),
    }
    differences = {}
    for kind, outputs in artifacts.items():
        pairs = zip(batches, expected, strict=True)
        found = [_difference(outputs(batch), logits, activation) for batch, logits in pairs]
        differences[kind] = float(np.max(found))  # NumPy's, because Python's would drop a NaN
    tolerance, rounding = TOLERANCE, None
    if not all(difference <= tolerance for difference in differences.values()):
        # A model whose sums cancel cannot be answered alike to five digits, not even by itself.
        rounding = _rounding(model, batches, expected)
        tolerance = max(tolerance, ROUNDING_FACTOR * rounding)
    if not all(difference <= tolerance for difference in differences.values()):
        numbers = ", ".join(f"{kind} {difference:.3g}" for kind, difference in differences.items())
        raise ParityError(f"logits differ from the model's: {numbers} of the largest, {tolerance:.3g} is allowed")
    return Parity(differences, tolerance, rounding, BATCH_SIZES, min(len(images), max(BATCH_SIZES)))


def _rounding(model: keras.Model, batches: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """How far the model's float32 logits are from those it has in float64, relative to the largest; 0 if not finite."""
    import numpy as np
    import tensorflow as tf

    with tf.device("/cpu:0"):
        exact = models.standard(model, "float64")
        differences = [
            np.abs(exact(batch, training=False).numpy() - logits).max() / np.abs(logits).max()
            for batch, logits in zip(batches, expected, strict=True)
        ]
    return float(max(differences)) if np.isfinite(differences).all() else 0.0


def _difference(found: dict[str, np.ndarray], expected: np.ndarray, activation: str) -> float:
    """Largest relative difference of logits; raises ParityError where the answer has another form."""
    import numpy as np

    logits, answer = found["logits"], heads.probabilities(found["logits"])
    if logits.shape != expected.shape or logits.dtype != np.float32:
        raise ParityError(f"logits are {logits.dtype} {logits.shape}, the model's float32 {expected.shape}")
    if not np.allclose(found["probabilities"], answer, rtol=0, atol=TOLERANCE):
        raise ParityError(f"probabilities are not the {activation} of the logits")
    return float(np.abs(logits - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
