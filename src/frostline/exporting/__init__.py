"""A trained model as versioned artifacts: Keras file, SavedModel and ONNX file, published together or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline import batching, machine
from frostline.exporting import parity, versions, warmup
from frostline.exporting.parity import Parity, ParityError
from frostline.exporting.versions import current, manifests

if TYPE_CHECKING:
    import keras
    import numpy as np

__all__ = ["Parity", "ParityError", "Published", "current", "manifests", "publish"]

SCHEMA = 1


@dataclass(frozen=True)
class Published:
    """One version of a model: folders and bytes by kind, and the hash of its graph without weights."""

    version: int
    paths: dict[str, Path]
    sizes: dict[str, int]
    parity: Parity
    graph: str


def publish(
    model: keras.Model,
    *,
    name: str,
    activation: str,
    class_names: Sequence[str],
    images: np.ndarray,
    facts: dict[str, Any],
    exports: Path,
) -> Published:
    """Export a model, compare the artifacts with it, and only then show them as the next version.

    The model is uncompiled, built under float32, takes uint8 `images` [N,H,W,3] and gives float32 logits [N,C], or
    [N,1] where the activation is `sigmoid` or `logit`. `images` are real ones, at least one. `facts` go into the
    manifests. Raises ParityError, with nothing published, where an artifact answers otherwise than the model.
    """
    from frostline.exporting import onnx, saved_model

    _check_form(model, activation, class_names, images)
    version = versions.next_version(exports, name)
    with versions.staging(exports, name, version) as folders:
        model.save(folders["keras"] / "model.keras")
        saved_model.write(model, activation, class_names, folders["saved_model"])
        warmup.write(folders["saved_model"], name, model.input_shape[1])
        (folders["saved_model"] / "batching_params.pbtxt").write_text(batching.parameters())
        onnx.write(folders["saved_model"], folders["onnx"] / "model.onnx")
        agreement = parity.check(model, folders, images, activation, class_names)
        graph = onnx.graph_hash(folders["onnx"] / "model.onnx")
        about = {
            **facts,
            "schema": SCHEMA,
            "name": name,
            "version": version,
            "class_names": list(class_names),
            "activation": activation,
            **_interface(model, len(class_names)),
            "parity": asdict(agreement),
            "graph": graph,
            "versions": machine.versions(),
        }
        sizes = {kind: versions.describe(folder, {**about, "kind": kind}) for kind, folder in folders.items()}
        paths = {kind: versions.reveal(folder, version) for kind, folder in folders.items()}
    return Published(version, paths, sizes, agreement, graph)


def _check_form(model: keras.Model, activation: str, class_names: Sequence[str], images: np.ndarray) -> None:
    """Raise ValueError where the model, its classes and the images do not belong together."""
    pixels = model.inputs[0]
    if len(model.inputs) != 1 or (pixels.name, pixels.dtype) != ("images", "uint8"):
        raise ValueError(f"a model to export has one uint8 input named images, not {model.inputs}")
    columns = len(class_names) if activation == "softmax" else 1
    outputs = [(output.shape[1:], output.dtype) for output in model.outputs]
    if outputs != [((columns,), "float32")] or len(class_names) < 2 or (columns == 1 and len(class_names) != 2):
        raise ValueError(f"outputs {outputs} do not fit {activation} over {len(class_names)} classes")
    if images.dtype != "uint8" or images.shape[1:] != pixels.shape[1:] or not len(images):
        raise ValueError(f"images {images.dtype} {images.shape} do not fit the input {pixels.shape}")


def _interface(model: keras.Model, classes: int) -> dict[str, Any]:
    """What the signature takes and gives; None is the batch."""
    columns = model.output_shape[1]
    return {
        "input": {"name": "images", "dtype": "uint8", "shape": list(model.input_shape)},
        "outputs": {
            "logits": {"dtype": "float32", "shape": [None, columns]},
            "probabilities": {"dtype": "float32", "shape": [None, classes]},
        },
    }
