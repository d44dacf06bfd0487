"""One TensorFlow function traced over the `.keras` file: Keras's layers without Keras's predict loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline.heads import probabilities
from frostline.runtimes.keras_predict import load

if TYPE_CHECKING:
    import numpy as np

    from frostline.runtimes import How

    Held = tuple[Callable[[], None], Callable[[], np.ndarray]]


def open(folder: Path, manifest: dict[str, Any], how: How, *, xla: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    """A function traced once for every batch size, or compiled by XLA for each.

    Without `xla` Keras still has XLA compile grouped convolutions.
    """
    import tensorflow as tf

    logits_of = _traced(folder, manifest, how.device, xla)

    def predict(images: np.ndarray) -> np.ndarray:
        with tf.device(f"/{how.device}:0"):
            logits = logits_of(tf.constant(images))
        return probabilities(logits.numpy())

    return predict


def hold(folder: Path, manifest: dict[str, Any], how: How, *, xla: bool = False) -> Callable[[np.ndarray], Held]:
    """The same function on images that lie on the device already, its logits left there."""
    logits_of = _traced(folder, manifest, how.device, xla)
    return lambda images: held(logits_of, images, how.device, probabilities)


def held(call: Callable[[Any], Any], images: np.ndarray, device: str, read: Callable[[np.ndarray], np.ndarray]) -> Held:
    """Put images on the device; what comes back runs `call` on them there, and reads the last answer."""
    import tensorflow as tf

    with tf.device(f"/{device}:0"):
        pixels = tf.identity(tf.constant(images))
    answers: list[Any] = [None]

    def run() -> None:
        with tf.device(f"/{device}:0"):
            answers[0] = call(pixels)
        tf.test.experimental.sync_devices()

    return run, lambda: read(answers[0].numpy())


def _traced(folder: Path, manifest: dict[str, Any], device: str, xla: bool) -> Callable[[Any], Any]:
    """From a uint8 tensor [N,H,W,3] to float32 logits."""
    import tensorflow as tf

    where = f"/{device}:0"
    with tf.device(where):
        model = load(folder)
    pixels = tf.TensorSpec(manifest["input"]["shape"], tf.uint8)

    @tf.function(input_signature=[pixels], jit_compile=xla, autograph=False)
    def logits_of(images):
        return model(images, training=False)

    return logits_of
