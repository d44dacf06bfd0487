"""The proof that artifacts answer as the model does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline import datasets, heads, models
from frostline.exporting import warmup
from frostline.runtimes import keras_predict, onnxruntime, saved_model

if TYPE_CHECKING:
    import keras
    import numpy as np

    Answer = dict[str, np.ndarray]
    Outputs = Callable[[np.ndarray], Answer]

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


def check(
    model: keras.Model, folders: dict[str, Path], images: np.ndarray, activation: str, class_names: Sequence[str]
) -> Parity:
    """Compare the artifacts in `folders` with the model over uint8 images [N,H,W,3]; raises ParityError.

    The signatures that take files get the images as PNG and JPEG, and the model the pixels that come of decoding them.
    All of it runs on the CPU: a GPU rounds the inputs of convolutions to ten bits (TF32), the model's included.
    """
    import numpy as np
    import tensorflow as tf

    batches = [images[np.arange(size) % len(images)] for size in BATCH_SIZES]
    with tf.device("/cpu:0"):
        expected = [model(batch, training=False).numpy() for batch in batches]
        expected_of_files = [
            model(_decoded(_files(batch), batch.shape[1]), training=False).numpy() for batch in batches
        ]
    pixels: dict[str, Outputs] = {
        "keras": keras_predict.outputs(folders["keras"], "cpu"),
        "saved_model": saved_model.outputs(folders["saved_model"], "cpu"),
        "onnx": onnxruntime.outputs(folders["onnx"], "cpu"),
    }
    differences = {}
    for kind, outputs in pixels.items():
        differences[kind] = _largest(outputs, batches, expected, activation, class_names)
    from_files = _of_files(folders["saved_model"])
    differences["serving_bytes"] = _largest(from_files, batches, expected_of_files, activation, class_names)
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


def _files(images: np.ndarray) -> list[bytes]:
    """Every second image as PNG, the others as JPEG."""
    import tensorflow as tf

    with tf.device("/cpu:0"):
        encode = (tf.io.encode_png, tf.io.encode_jpeg)
        return [encode[i % 2](image).numpy() for i, image in enumerate(images)]


def _decoded(files: list[bytes], size: int) -> np.ndarray:
    import numpy as np

    return np.stack([datasets.decode(file, size).numpy() for file in files])


def _of_files(folder: Path) -> Outputs:
    """What `serving_bytes` answers to images that are sent as files, after `classify` has said the same of them."""
    import numpy as np
    import tensorflow as tf

    with tf.device("/cpu:0"):
        loaded = tf.saved_model.load(str(folder))

    def answer(images: np.ndarray) -> Answer:
        files = _files(images)
        examples = [warmup.example(file).SerializeToString() for file in files]
        with tf.device("/cpu:0"):
            found = loaded.signatures["serving_bytes"](image_bytes=tf.constant(files))
            classified = loaded.signatures["classify"](inputs=tf.constant(examples))
        same = np.allclose(classified["scores"], found["top_k_scores"], rtol=0, atol=TOLERANCE)
        if not same or not np.array_equal(classified["classes"], found["top_k_classes"]):
            raise ParityError("classify answers otherwise than serving_bytes")
        return {name: value.numpy() for name, value in found.items()}

    return answer


def _largest(
    outputs: Outputs,
    batches: list[np.ndarray],
    expected: list[np.ndarray],
    activation: str,
    class_names: Sequence[str],
) -> float:
    """The largest difference over all batches; raises ParityError where an answer has another form."""
    import numpy as np

    differences = []
    for batch, logits in zip(batches, expected, strict=True):
        found = outputs(batch)
        differences.append(_difference(found, logits, activation))
        if "top_k_scores" in found:
            _check_top_k(found, class_names)
    return float(np.max(differences))  # NumPy's, because Python's would drop a NaN


def _check_top_k(found: Answer, class_names: Sequence[str]) -> None:
    """Raise ParityError unless the best classes are those with the highest probabilities, in order and by name."""
    import numpy as np

    scores, probabilities = found["top_k_scores"], found["probabilities"]
    names = [[_text(name) for name in row] for row in found["top_k_classes"]]
    numbers = np.array([[class_names.index(name) for name in row] for row in names])
    highest = np.sort(probabilities, axis=1)[:, ::-1][:, : numbers.shape[1]]
    if not np.array_equal(scores, highest) or not np.array_equal(
        np.take_along_axis(probabilities, numbers, axis=1), scores
    ):
        raise ParityError("top_k_classes are not those with the highest probabilities")


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _difference(found: dict[str, np.ndarray], expected: np.ndarray, activation: str) -> float:
    """Largest relative difference of logits; raises ParityError where the answer has another form."""
    import numpy as np

    logits, answer = found["logits"], heads.probabilities(found["logits"])
    if logits.shape != expected.shape or logits.dtype != np.float32:
        raise ParityError(f"logits are {logits.dtype} {logits.shape}, the model's float32 {expected.shape}")
    if not np.allclose(found["probabilities"], answer, rtol=0, atol=TOLERANCE):
        raise ParityError(f"probabilities are not the {activation} of the logits")
    return float(np.abs(logits - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
