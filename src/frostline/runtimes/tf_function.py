"""One TensorFlow function traced over the `.keras` file: Keras's layers without Keras's predict loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline.runtimes.keras_predict import load, probabilities

if TYPE_CHECKING:
    import numpy as np


def open(folder: Path, manifest: dict[str, Any], device: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function traced once for every batch size, without XLA but for what Keras compiles: grouped convolutions."""
    import tensorflow as tf

    where = f"/{device}:0"
    with tf.device(where):
        model = load(folder)
    pixels = tf.TensorSpec(manifest["input"]["shape"], tf.uint8)

    @tf.function(input_signature=[pixels], jit_compile=False, autograph=False)
    def logits_of(images):
        return model(images, training=False)

    def predict(images: np.ndarray) -> np.ndarray:
        with tf.device(where):
            logits = logits_of(tf.constant(images))
        return probabilities(logits.numpy(), manifest["activation"])

    return predict
