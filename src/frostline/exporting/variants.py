"""The ONNX graph in numbers of fewer bits, and how each variant answers beside the one in float32."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline import records
from frostline.datasets import Dataset, Split
from frostline.heads import probabilities
from frostline.runtimes import onnxruntime, saved_model

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import onnx

    Outputs = Callable[[np.ndarray], dict[str, np.ndarray]]

CALIBRATION_IMAGES = 128
CALIBRATION_BATCH = 4  # the ranges are the same by any; ONNX Runtime holds many of a batch's tensors at once
JUDGED_IMAGES = 1024
BATCH = 32
FLOAT16_DIFFERENCE = 2e-3  # of logits, relative to the largest
LEAST_AGREEMENT = {"float32": 1.0, "float16": 0.99, "int8": 0.9}
# An int8 graph may lose one point of accuracy. Few images tell that only roughly, so the standard error of the loss is
# allowed on top; where float32 is seldom right the best class also changes seldom, which is why agreement has a limit.
MOST_LOST = 0.01


@dataclass(frozen=True)
class Verdict:
    """How a variant answers beside float32 on images it was not calibrated on; `reason` says why it is refused.

    `difference` is that of logits, relative to the largest; `agreement` the share of equal best classes; `top1_change`
    the change of accuracy, `top1_error` its standard error.
    """

    difference: float
    agreement: float
    top1_change: float
    top1_error: float
    images: int
    reason: str | None


def add(folder: Path, names: Sequence[str], data: Dataset) -> dict[str, dict[str, Any]]:
    """Make variants of the float32 graph of a version folder, and remove again those that are refused; facts by name.

    int8 is calibrated on training images, and all are judged on others, never on test images.
    """
    calibration, judged = _parts(data)
    reference = logits_of(onnxruntime.outputs(folder, "cpu"), judged.images)
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        path = folder / onnxruntime.FILES[name]
        about: dict[str, Any] = {"file": path.name, "calibration_images": None}
        try:
            if name == "float16":
                float16(folder / onnxruntime.FILES["float32"], path)
            elif name == "int8":
                int8(folder / onnxruntime.FILES["float32"], path, calibration)
                about["calibration_images"] = len(calibration)
            answered = logits_of(onnxruntime.outputs(folder, "cpu", variant=name), judged.images)
            about |= records.finite(asdict(judge(name, reference, answered, judged.labels)))
        except Exception as error:  # of a converter or of ONNX Runtime, on a graph that they do not know
            about["reason"] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        if about["reason"]:
            path.unlink(missing_ok=True)
        size = path.stat().st_size if path.exists() else None
        found[name] = about | {"outcome": "failed" if about["reason"] else "ok", "size_bytes": size}
    return found


def _parts(data: Dataset) -> tuple[np.ndarray, Split]:
    """Training images to calibrate on, and others to judge by: the validation images, or where these are the test
    images, training images that are left."""
    import numpy as np

    train = data.train
    count = min(CALIBRATION_IMAGES, max(1, len(train.labels) // 2))
    rows = np.linspace(0, len(train.labels) - 1, count).astype(int)  # over all classes, as the images may be sorted
    if data.validation is data.test:
        left = np.setdiff1d(np.arange(len(train.labels)), rows)
        left = left if len(left) else rows
        judged = Split(train.images[left], train.labels[left], [train.keys[row] for row in left])
    else:
        judged = data.validation
    some = np.unique(np.linspace(0, len(judged.labels) - 1, JUDGED_IMAGES).astype(int))
    return train.images[rows], Split(judged.images[some], judged.labels[some], [judged.keys[row] for row in some])


def logits_of(outputs: Outputs, images: np.ndarray) -> np.ndarray:
    """Float32 logits [N,C] of all images."""
    import numpy as np

    starts = range(0, len(images), BATCH)
    return np.concatenate([outputs(np.ascontiguousarray(images[i : i + BATCH]))["logits"] for i in starts])


def top1(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose best class is their label."""
    return float((probabilities(logits).argmax(axis=1) == labels).mean())


def accuracy(folders: dict[str, Path], made: dict[str, dict[str, Any]], test: Split) -> dict[str, float]:
    """Top-1 on the test images through the SavedModel and through each ONNX variant that is there, by name."""
    tried = {"saved_model": saved_model.outputs(folders["saved_model"], "cpu")}
    for name, about in made.items():
        if about["outcome"] == "ok":
            tried[f"onnx_{name}"] = onnxruntime.outputs(folders["onnx"], "cpu", variant=name)
    return {name: top1(logits_of(outputs, test.images), test.labels) for name, outputs in tried.items()}


def judge(name: str, reference: np.ndarray, found: np.ndarray, labels: np.ndarray) -> Verdict:
    """Compare a variant's logits [N,C] with those of float32, given the labels [N]."""
    import numpy as np

    difference = float(np.abs(found - reference).max() / max(np.abs(reference).max(), np.finfo(np.float32).tiny))
    before, after = (probabilities(x).argmax(axis=1) for x in (reference, found))
    agreement = float((before == after).mean())
    change = (after == labels).astype(float) - (before == labels)
    error = float(change.std() / np.sqrt(len(change)))
    reason = None
    if not np.isfinite(difference):
        reason = "its logits are not finite"
    elif name == "float16" and difference > FLOAT16_DIFFERENCE:
        reason = f"logits differ by {difference:.3g} of the largest, {FLOAT16_DIFFERENCE:g} is allowed"
    elif agreement < LEAST_AGREEMENT[name]:
        reason = f"the best class is that of float32 for {agreement:.3f} of the images, not {LEAST_AGREEMENT[name]:g}"
    elif -change.mean() > MOST_LOST + error:
        reason = f"top-1 falls by {-change.mean():.4f} ± {error:.4f}, {MOST_LOST:g} is allowed"
    return Verdict(difference, agreement, float(change.mean()), error, len(labels), reason)


# -- making them -----------------------------------------------------------------------------------------


def float16(source: Path, target: Path) -> None:
    """Weights and activations in float16 for a GPU; inputs, logits and what follows them stay in float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    proto = onnx.load(source)
    graph = proto.graph
    tail, outputs = _after_logits(proto), list(graph.output)
    for node in tail:
        graph.node.remove(node)
    # The converter would round the outputs of nodes that it is told to leave alone, so it does not see them.
    constants = [tensor for tensor in graph.initializer if any(tensor.name in node.input for node in tail)]
    for tensor in constants:
        if not any(tensor.name in node.input for node in graph.node):
            graph.initializer.remove(tensor)
    del graph.output[:]
    graph.output.extend(output for output in outputs if output.name == "logits")
    half = convert_float_to_float16(proto, keep_io_types=True)
    for tensor in constants:
        added = half.graph.initializer.add()
        added.CopyFrom(tensor)
        added.name = f"{tensor.name}/after_logits"
        for node in tail:
            node.input[:] = [added.name if name == tensor.name else name for name in node.input]
    half.graph.node.extend(tail)
    del half.graph.output[:]
    half.graph.output.extend(outputs)
    onnx.checker.check_model(half, full_check=True)
    onnx.save(half, target)


def int8(source: Path, target: Path, images: np.ndarray) -> None:
    """Weights in int8 for each output channel, activations in uint8, with the ranges seen on `images`, uint8 [N,H,W,3].

    Static quantization as of ONNX Runtime: QuantizeLinear and DequantizeLinear around what is quantized, which is
    everything up to the logits.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as place:
        prepared = Path(place) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        proto = onnx.load(prepared)
        quantize_static(
            proto,
            target,
            _reader(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in _after_logits(proto)],
        )
    onnx.checker.check_model(onnx.load(target), full_check=True)


def _reader(images: np.ndarray) -> Any:
    """Batches of images in the form that ONNX Runtime's calibration asks for."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            starts = range(0, len(images), CALIBRATION_BATCH)
            self.batches = ({"images": images[i : i + CALIBRATION_BATCH]} for i in starts)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    return Reader()


def _after_logits(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that read the logits or what comes of them; those without a name are given one."""
    after = {"logits"}
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:  # a node comes after the nodes it reads
        if not after.isdisjoint(node.input):
            node.name = node.name or f"after_logits_{len(nodes)}"
            after.update(node.output)
            nodes.append(node)
    return nodes
