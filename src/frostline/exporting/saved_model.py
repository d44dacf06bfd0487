"""Keras model -> SavedModel that a stock TensorFlow Serving can run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

XLA_MARK = "_XlaMustCompile"


def write(model: keras.Model, activation: str, folder: Path) -> None:
    """Write the signature `serving_default`: uint8 `images` to float32 `logits` and `probabilities`."""

    def answer(images):
        logits = model(images, training=False)
        return {"logits": logits, "probabilities": probabilities(logits, activation)}

    _write(answer, model.input_shape, folder)


def write_features(model: keras.Model, folder: Path) -> None:
    """Write the signature `serving_default`: uint8 `images` to all outputs of a model, `features_0` and so on."""

    def answer(images):
        return {f"features_{i}": x for i, x in enumerate(keras.tree.flatten(model(images, training=False)))}

    _write(answer, model.input_shape, folder)


def _write(answer: Callable[[tf.Tensor], dict[str, tf.Tensor]], shape: tuple[int | None, ...], folder: Path) -> None:
    # The endpoint brings its variables along; with `archive.track(model)` Keras 3.15 would store each of them twice.
    archive = keras.export.ExportArchive()
    archive.add_endpoint("serving_default", answer, [tf.TensorSpec(shape, tf.uint8, name="images")])
    archive.write_out(str(folder), verbose=False)
    strip_xla(folder)


def probabilities(logits: tf.Tensor, activation: str) -> tf.Tensor:
    """Softmax over logits [N, C]; for `sigmoid` and `logit` one logit [N, 1] becomes the columns 1-p and p."""
    if activation != "softmax":
        logits = tf.concat([tf.zeros_like(logits), logits], axis=1)
    return tf.nn.softmax(logits)


def strip_xla(folder: Path) -> None:
    """Take out every demand for XLA: Keras makes one for each grouped convolution.

    Where XLA is switched off, as in a stock TensorFlow Serving, such a model loads and then fails at each request.
    """
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
    from tensorflow.python.saved_model import fingerprinting_utils

    path = folder / "saved_model.pb"
    if XLA_MARK.encode() not in path.read_bytes():
        return
    proto = SavedModel.FromString(path.read_bytes())
    for meta in proto.meta_graphs:
        marked: list[Any] = [*meta.graph_def.node, *meta.graph_def.library.function]
        for function in meta.graph_def.library.function:
            marked.extend(function.node_def)
        for owner in marked:
            owner.attr.pop(XLA_MARK, None)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    assert XLA_MARK.encode() not in path.read_bytes(), f"{XLA_MARK} in a place where strip_xla does not look"
    fingerprinting_utils.write_fingerprint(str(folder))
