"""Classify, Regress and MultiInference: tf.Examples in, labels with scores or numbers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from frostline.serving import tensors
from frostline.serving.predict import DEFAULT_SIGNATURE, fill_spec
from frostline.serving.servables import Servable
from frostline.serving.status import Refused, invalid

if TYPE_CHECKING:
    import numpy as np

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
WORDS = {CLASSIFY: "classification", REGRESS: "regression"}


def examples(value: Any) -> np.ndarray:
    """The serialized tf.Examples of an Input, object [N]; raises Refused where it holds none."""
    import numpy as np

    kind = value.WhichOneof("kind")
    holder = getattr(value, kind) if kind else None
    if holder is None or not holder.examples:
        raise invalid("Input is empty.")
    context = holder.context.SerializeToString() if kind == "example_list_with_context" else b""
    found = np.empty(len(holder.examples), object)
    found[:] = [context + example.SerializeToString() for example in holder.examples]
    tensors.check_images(found.tolist())
    return found


def prepare(servable: Servable, name: str, method: str, check_method: bool) -> tuple[str, dict[str, str]]:
    """The tensor that takes tf.Examples, and those that answer by alias; raises Refused."""
    name = name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    signature, word = servable.signatures[name], WORDS[method]
    if check_method and signature.method_name != method:
        raise invalid(f"Expected {word} signature method_name to be {method}. Was: {signature.method_name}")
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    known, most = (("classes", "scores"), 2) if method == CLASSIFY else (("outputs",), 1)
    if not 1 <= len(signature.outputs) <= most:
        expected = "one or two output Tensors" if method == CLASSIFY else "one output Tensor"
        raise invalid(f"Expected {expected}, found {len(signature.outputs)}")
    if "inputs" not in signature.inputs:
        raise Refused("FAILED_PRECONDITION", f"No {word} inputs found in SignatureDef: {signature}")
    fetches = {alias: signature.outputs[alias].name for alias in known if alias in signature.outputs}
    if not fetches:
        names = " or ".join(f'"{alias}"' for alias in known)
        raise Refused(
            "FAILED_PRECONDITION",
            f"Expected {word} signature outputs to contain at least one of {names}. Signature was: {signature}",
        )
    return signature.inputs["inputs"].name, fetches


def fill(result: Any, method: str, outputs: Mapping[str, np.ndarray], number: int) -> None:
    """Write the answers for `number` examples into a ClassificationResult or a RegressionResult; raises Refused."""
    (_fill_classes if method == CLASSIFY else _fill_numbers)(result, outputs, number)


def _fill_classes(result: Any, outputs: Mapping[str, np.ndarray], number: int) -> None:
    for alias, kind, word in (("classes", "O", "DT_STRING"), ("scores", "f", "DT_FLOAT")):
        values = outputs.get(alias)
        if values is None:
            continue
        if values.ndim != 2:
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {list(values.shape)}")
        if values.dtype.kind != kind or (kind == "f" and values.dtype.itemsize != 4):
            raise invalid(f"Expected {alias} Tensor of {word}. Got: {values.dtype.name}")
        if len(values) != number:
            raise invalid(f"Expected {alias} output batch size of {number}. Got: {len(values)}")
    widths = {values.shape[1] for values in outputs.values()}
    if len(widths) != 1:
        a, b = (outputs[alias].shape[1] for alias in ("classes", "scores"))
        raise invalid(f"Tensors class and score should match in dim_size(1). Got {a} vs. {b}")
    for i in range(number):
        row = result.classifications.add()
        for column in range(*widths):
            entry = row.classes.add()
            if "classes" in outputs:
                entry.label = outputs["classes"][i, column].decode(errors="replace")
            if "scores" in outputs:
                entry.score = outputs["scores"][i, column]


def _fill_numbers(result: Any, outputs: Mapping[str, np.ndarray], number: int) -> None:
    values = outputs["outputs"]
    if values.ndim not in (1, 2) or (values.ndim == 2 and values.shape[1] != 1):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            + str(list(values.shape))
        )
    if values.dtype.name != "float32":
        raise invalid(f"Expected output Tensor of DT_FLOAT. Got: {values.dtype.name}")
    if len(values) != number:
        raise invalid(f"Expected output batch size to be {number}. Got: {len(values)}")
    for value in values.ravel().tolist():
        result.regressions.add().value = value


def tasks(servable: Servable, asked: Sequence[Any], check_method: bool) -> tuple[str, list[dict[str, str]]]:
    """The input tensor that all tasks of a MultiInferenceRequest share, and the fetches of each; raises Refused."""
    names = [task.model_spec.signature_name or DEFAULT_SIGNATURE for task in asked]
    if any(task.model_spec.name != servable.name for task in asked):
        raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
    found = []
    for i, (task, name) in enumerate(zip(asked, names, strict=True)):
        if name in names[:i]:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        if task.method_name not in WORDS:
            raise Refused("UNIMPLEMENTED", f"Unsupported signature method_name: {task.method_name}")
        if name not in servable.signatures:
            raise invalid(f"Requested signature not found in model graph: {name}")
        found.append(prepare(servable, name, task.method_name, check_method))
    if len({tensor for tensor, _ in found}) != 1:
        raise invalid("Input tensor must be the same for all Signatures.")
    return found[0][0], [fetches for _, fetches in found]


def add_result(response: Any, servable: Servable, task: Any, outputs: Mapping[str, np.ndarray], number: int) -> None:
    """Write the answer to one task of a MultiInferenceRequest."""
    result = response.results.add()
    fill_spec(result.model_spec, servable, task.model_spec.signature_name or DEFAULT_SIGNATURE)
    kind = result.classification_result if task.method_name == CLASSIFY else result.regression_result
    fill(kind, task.method_name, outputs, number)
