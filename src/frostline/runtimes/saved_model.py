"""The serving signature of a SavedModel, as TensorFlow Serving would call it, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline.runtimes.tf_function import held

if TYPE_CHECKING:
    import numpy as np

    from frostline.runtimes import How
    from frostline.runtimes.tf_function import Held


def open(folder: Path, manifest: dict[str, Any], how: How) -> Callable[[np.ndarray], np.ndarray]:
    """The `probabilities` of the signature."""
    answer = outputs(folder, how.device)
    return lambda images: answer(images)["probabilities"]


def hold(folder: Path, manifest: dict[str, Any], how: How) -> Callable[[np.ndarray], Held]:
    """The same signature on images that lie on the device already, its answers left there."""
    import tensorflow as tf

    with tf.device(f"/{how.device}:0"):
        loaded = tf.saved_model.load(str(folder))

    def call(pixels: Any) -> Any:
        return loaded.signatures["serving_default"](images=pixels)["probabilities"]

    return lambda images: held(call, images, how.device, lambda answer: answer)


def outputs(folder: Path, device: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """From uint8 images [N,H,W,3] to `logits` and `probabilities`, both float32."""
    import tensorflow as tf

    where = f"/{device}:0"
    with tf.device(where):
        loaded = tf.saved_model.load(str(folder))

    def answer(images: np.ndarray) -> dict[str, np.ndarray]:
        # `loaded` is named here to keep it alive: a signature alone does not own its variables.
        with tf.device(where):
            found = loaded.signatures["serving_default"](images=tf.constant(images))
        return {name: value.numpy() for name, value in found.items()}

    return answer
