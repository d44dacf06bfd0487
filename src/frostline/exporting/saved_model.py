"""Keras model -> SavedModel that a stock TensorFlow Serving can run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from frostline import datasets
from frostline.exporting.warmup import EXAMPLE_KEY

XLA_MARK = "_XlaMustCompile"
TOP_K = 5


def write(model: keras.Model, activation: str, class_names: Sequence[str], folder: Path) -> None:
    """Write three signatures over one graph, all of whose inputs and outputs have the batch first.

    `serving_default`: uint8 `images` [N,H,W,3] to float32 `logits`, `probabilities` [N,classes], `top_k_scores` and
    strings `top_k_classes` [N,k], k being 5 or the number of classes. `serving_bytes`: the same of string `image_bytes`
    [N], files of images that are decoded and resized as they are for training. `classify`: serialized tf.Example
    `inputs` [N] with such a file under `image/encoded` to `classes` and `scores`, as the Classify API wants it.
    """
    shape = model.input_shape
    archive = keras.export.ExportArchive()

    def answer(images):
        logits = model(images, training=False)
        scores = probabilities(logits, activation)
        best, numbers = tf.math.top_k(scores, min(TOP_K, len(class_names)))
        names = tf.gather(tf.constant(list(class_names)), numbers)
        return {"logits": logits, "probabilities": scores, "top_k_scores": best, "top_k_classes": names}

    # The endpoints bring their variables along; with `archive.track(model)` Keras 3.15 would store each of them twice.
    served = archive.add_endpoint("serving_default", answer, [tf.TensorSpec(shape, tf.uint8, name="images")])

    def answer_bytes(image_bytes):
        pixels = tf.TensorSpec(shape[1:], tf.uint8)
        return served(tf.map_fn(lambda one: datasets.decode(one, shape[1]), image_bytes, fn_output_signature=pixels))

    def classify(inputs):
        examples = tf.io.parse_example(inputs, {EXAMPLE_KEY: tf.io.FixedLenFeature([], tf.string)})
        found = answer_bytes(examples[EXAMPLE_KEY])
        return {"classes": found["top_k_classes"], "scores": found["top_k_scores"]}

    archive.add_endpoint("serving_bytes", answer_bytes, [tf.TensorSpec([None], tf.string, name="image_bytes")])
    archive.add_endpoint("classify", classify, [tf.TensorSpec([None], tf.string, name="inputs")])
    archive.write_out(str(folder), verbose=False)
    strip_xla(folder)


def write_features(model: keras.Model, folder: Path) -> None:
    """Write the signature `serving_default`: uint8 `images` to all outputs of a model, `features_0` and so on."""

    def answer(images):
        return {f"features_{i}": x for i, x in enumerate(keras.tree.flatten(model(images, training=False)))}

    archive = keras.export.ExportArchive()
    archive.add_endpoint("serving_default", answer, [tf.TensorSpec(model.input_shape, tf.uint8, name="images")])
    archive.write_out(str(folder), verbose=False)
    strip_xla(folder)


def signatures(folder: Path) -> dict[str, Any]:
    """What each signature takes and gives, by alias: dtype and shape, whose None is the batch."""

    def told(tensors: Any) -> dict[str, Any]:
        return {
            alias: {"dtype": tf.as_dtype(info.dtype).name, "shape": tf.TensorShape(info.tensor_shape).as_list()}
            for alias, info in sorted(tensors.items())
        }

    proto = SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    found = proto.meta_graphs[0].signature_def
    own = sorted(name for name in found if not name.startswith("__"))  # TensorFlow's own are no signature of ours
    return {name: {"inputs": told(found[name].inputs), "outputs": told(found[name].outputs)} for name in own}


def probabilities(logits: tf.Tensor, activation: str) -> tf.Tensor:
    """Softmax over logits [N, C]; for `sigmoid` and `logit` one logit [N, 1] becomes the columns 1-p and p."""
    if activation != "softmax":
        logits = tf.concat([tf.zeros_like(logits), logits], axis=1)
    return tf.nn.softmax(logits)


def strip_xla(folder: Path) -> None:
    """Take out every demand for XLA: Keras makes one for each grouped convolution.

    Where XLA is switched off, as in a stock TensorFlow Serving, such a model loads and then fails at each request.
    """
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
