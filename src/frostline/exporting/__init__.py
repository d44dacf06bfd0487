"""A trained model as versioned artifacts: Keras file, SavedModel and ONNX file, published together or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline import batching, machine
from frostline.exporting import parity, variants, versions, warmup
from frostline.exporting.parity import Parity, ParityError
from frostline.exporting.versions import current, manifests

if TYPE_CHECKING:
    import keras
    import numpy as np

    from frostline.datasets import Dataset

__all__ = ["DEFAULT_VARIANTS", "VARIANTS", "Parity", "ParityError", "Published", "current", "manifests", "publish"]

SCHEMA = 2
VARIANTS = ("float32", "int8", "float16")  # of the ONNX file
DEFAULT_VARIANTS = VARIANTS[:2]  # float16 is for a GPU


@dataclass(frozen=True)
class Published:
    """One version of a model: folders and bytes by kind, what became of each ONNX variant, test accuracy by artifact,
    and the hash of its graph without weights."""

    version: int
    paths: dict[str, Path]
    sizes: dict[str, int]
    parity: Parity
    variants: dict[str, dict[str, Any]]
    accuracy: dict[str, float]
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
    data: Dataset | None = None,
    onnx_variants: Sequence[str] = VARIANTS[:1],
) -> Published:
    """Export a model, compare the artifacts with it, and only then show them as the next version.

    The model is uncompiled, built under float32, takes uint8 `images` [N,H,W,3] and gives float32 logits [N,C], or
    [N,1] where the activation is `sigmoid` or `logit`. `images` are real ones, at least one. `facts` go into the
    manifests. With the model's `data`, variants other than float32 can be made, and accuracy is measured on its test
    images. Raises ParityError, with nothing published, where an artifact answers otherwise than the model; a variant
    that answers too differently is left out, and the manifest says why.
    """
    from frostline.exporting import onnx, saved_model

    _check_form(model, activation, class_names, images)
    version = versions.next_version(exports, name)
    with versions.staging(exports, name, version) as folders:
        model.save(folders["keras"] / "model.keras")
        saved_model.write(model, activation, class_names, folders["saved_model"])
        warmup.write(folders["saved_model"], name, model.input_shape[1])
        (folders["saved_model"] / batching.FILE).write_text(batching.parameters())
        onnx.write(folders["saved_model"], folders["onnx"] / "model.onnx")
        agreement = parity.check(model, folders, images, activation, class_names)
        made = variants.add(folders["onnx"], onnx_variants, data) if data else {}
        accuracy = variants.accuracy(folders, made, data.test) if data else {}
        graph = onnx.graph_hash(folders["onnx"] / "model.onnx")
        about = {
            **facts,
            "schema": SCHEMA,
            "name": name,
            "version": version,
            "class_names": list(class_names),
            "activation": activation,
            "input": {"name": "images", "dtype": "uint8", "shape": list(model.input_shape)},
            "parity": asdict(agreement),
            "accuracy": accuracy,
            "graph": graph,
            "versions": machine.versions(),
        }
        own: dict[str, dict[str, Any]] = {
            "keras": {},
            "saved_model": {"signatures": saved_model.signatures(folders["saved_model"])},
            "onnx": {"signatures": onnx.signatures(folders["onnx"] / "model.onnx"), "variants": made},
        }
        sizes = {k: versions.describe(folder, {**about, **own[k], "kind": k}) for k, folder in folders.items()}
        paths = versions.show(folders, version)
    return Published(version, paths, sizes, agreement, made, accuracy, graph)


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
