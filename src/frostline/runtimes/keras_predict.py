"""Keras's own `predict` over the `.keras` file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline.heads import probabilities

if TYPE_CHECKING:
    import keras
    import numpy as np

    from frostline.runtimes import How


def open(folder: Path, manifest: dict[str, Any], how: How) -> Callable[[np.ndarray], np.ndarray]:
    """`model.predict` with one call per batch; the activation is computed in NumPy."""
    answer = outputs(folder, how.device)
    return lambda images: answer(images)["probabilities"]


def outputs(folder: Path, device: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """From uint8 images [N,H,W,3] to `logits` and `probabilities`, both float32."""
    import tensorflow as tf

    where = f"/{device}:0"
    with tf.device(where):
        model = load(folder)

    def answer(images: np.ndarray) -> dict[str, np.ndarray]:
        with tf.device(where):
            logits = model.predict(images, batch_size=len(images), verbose=0)
        return {"logits": logits, "probabilities": probabilities(logits)}

    return answer


def load(folder: Path) -> keras.Model:
    """The Keras model of a version folder, without XLA."""
    import keras

    model = keras.saving.load_model(folder / "model.keras", compile=False)
    # Keras would turn XLA on wherever it sees a GPU; which runtime uses it is to be said, not found out.
    model.jit_compile = False
    return model
