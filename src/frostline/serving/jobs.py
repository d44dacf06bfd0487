"""Predict, Classify, Regress and MultiInference: what a request wants to have run, and its answer from the outputs."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from frostline.batching import MOST_WARMUP, WARMUP_FILE
from frostline.serving import batching, servables, tensors
from frostline.serving.servables import Servable
from frostline.serving.status import Refused, invalid

DEFAULT_SIGNATURE = "serving_default"
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """Arrays by tensor name, the tensors that answer by alias, and how their values become a response."""

    feeds: dict[str, np.ndarray]
    fetches: dict[str, str]
    fill: Callable[[Any, Outputs], None]


def fill_spec(spec: Any, servable: Servable, signature: str = "") -> None:
    """Write which version answered, and by which signature."""
    spec.name, spec.signature_name = servable.name, signature
    spec.version.value = servable.version


def predict(servable: Servable, request: Any) -> Job:
    """Check a PredictRequest against its signature as TensorFlow Serving does; raises Refused."""
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise Refused("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
    signature, given = servable.signatures[name], request.inputs
    inputs, outputs = signature.inputs, signature.outputs
    if (sent := set(given)) != (known := inputs.keys()):
        a, b, extra, missing = (f"{{{','.join(sorted(part))}}}" for part in (sent, known, sent - known, known - sent))
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(known)} len({a}) != len({b}). "
            f"Sent extra: {extra}. Missing but required: {missing}."
        )
    for i, (alias, info) in enumerate(inputs.items()):
        if info.dtype != given[alias].dtype:
            expected, found = tensors.type_name(info.dtype), tensors.type_name(given[alias].dtype)
            raise invalid(f"Expects arg[{i}] to be {expected} but {found} is provided")
    wanted = sorted(request.output_filter) or outputs
    for alias in wanted:
        if alias not in outputs:
            there = ",".join(outputs)
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set {{{there}}}."
            )
    if len(set(wanted)) < len(wanted):
        raise invalid(f"duplicate output tensor alias: {Counter(wanted).most_common(1)[0][0]}")

    def fill(response: Any, found: Outputs) -> None:
        fill_spec(response.model_spec, servable, name)
        for alias, values in found.items():
            tensors.write(response.outputs[alias], values, outputs[alias].dtype)

    feeds = {info.name: tensors.array(given[alias], alias) for alias, info in inputs.items()}
    return Job(feeds, {alias: outputs[alias].name for alias in wanted}, fill)


def multi_inference(servable: Servable, request: Any) -> Job:
    """A MultiInferenceRequest: all its signatures in one run; raises Refused."""
    jobs: dict[str, Job] = {}
    for task in request.tasks:
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if task.model_spec.name != request.tasks[0].model_spec.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        if name in jobs:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        if task.method_name not in (CLASSIFY, REGRESS):
            raise Refused("UNIMPLEMENTED", f"Unsupported signature method_name: {task.method_name}")
        jobs[name] = _examples(servable, task.model_spec, request.input, task.method_name)
    feeds = {name: values for job in jobs.values() for name, values in job.feeds.items()}
    if len(feeds) != 1:
        raise invalid("Input tensor must be the same for all Signatures.")

    def fill(response: Any, found: Outputs) -> None:
        for task, job in zip(request.tasks, jobs.values(), strict=True):
            own = {alias: found[tensor] for alias, tensor in job.fetches.items()}
            result = response.results.add()
            fill_spec(result.model_spec, servable, task.model_spec.signature_name or DEFAULT_SIGNATURE)
            kind = result.classification_result if task.method_name == CLASSIFY else result.regression_result
            _fill(kind, task.method_name, own, len(next(iter(feeds.values()))))

    return Job(feeds, {tensor: tensor for job in jobs.values() for tensor in job.fetches.values()}, fill)


def _examples(servable: Servable, spec: Any, given: Any, method: str) -> Job:
    name = spec.signature_name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    signature, word = servable.signatures[name], "classification" if method == CLASSIFY else "regression"
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if "inputs" not in signature.inputs:
        raise Refused("FAILED_PRECONDITION", f"No {word} inputs found in SignatureDef: {signature.proto}")
    known = ("classes", "scores") if method == CLASSIFY else ("outputs",)
    fetches = {alias: signature.outputs[alias].name for alias in known if alias in signature.outputs}
    if not fetches or len(fetches) < len(signature.outputs):
        about = f"Expected {word} signature outputs to be {' and/or '.join(known)}"
        raise Refused("FAILED_PRECONDITION", f"{about}. Signature was: {signature.proto}")
    kind = given.WhichOneof("kind")
    holder = getattr(given, kind) if kind else given.example_list
    context = holder.context.SerializeToString() if kind == "example_list_with_context" else b""
    values = np.array([context + example.SerializeToString() for example in holder.examples], object)
    if not len(values):
        raise invalid("Input is empty.")
    tensors.check_images(values.tolist())

    def fill(response: Any, found: Outputs) -> None:
        fill_spec(response.model_spec, servable, name)
        _fill(response.result, method, found, len(values))

    return Job({signature.inputs["inputs"].name: values}, fetches, fill)


def _fill(result: Any, method: str, outputs: Outputs, number: int) -> None:
    """Write the answers for `number` examples; raises Refused where the outputs have not the form of the method."""
    for alias, values in outputs.items():
        kind = "O" if alias == "classes" else "f"
        if values.dtype.kind != kind or values.ndim not in ((2,) if method == CLASSIFY else (1, 2)):
            raise invalid(f"Expected {alias} Tensor of one row per example but got {values.dtype} {list(values.shape)}")
        if len(values) != number:
            raise invalid(f"Expected {alias} output batch size of {number}. Got: {len(values)}")
    if method == REGRESS:
        for value in outputs["outputs"].reshape(number, -1)[:, 0].tolist():
            result.regressions.add().value = value
        return
    classes, scores = outputs.get("classes"), outputs.get("scores")
    for i in range(number):
        row = result.classifications.add()
        for column in range(next(iter(outputs.values())).shape[1]):
            label = "" if classes is None else classes[i, column].decode(errors="replace")
            row.classes.add(label=label, score=0 if scores is None else scores[i, column])


JOBS: dict[str, Callable[[Servable, Any], Job]] = {
    "Predict": predict,
    "Classify": lambda servable, request: _examples(servable, request.model_spec, request.input, CLASSIFY),
    "Regress": lambda servable, request: _examples(servable, request.model_spec, request.input, REGRESS),
    "MultiInference": multi_inference,
}


def warm_up(servable: Servable) -> None:
    """Answer every request that a version brings along; one that fails makes the version unfit to be served."""
    path = servable.path / WARMUP_FILE
    if not path.is_file():
        return
    for i, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()):
        if i >= MOST_WARMUP:
            raise invalid(f"Number of warmup records exceeds the maximum ({MOST_WARMUP}) at {path}")
        log = PredictionLog.FromString(record)
        kind = log.WhichOneof("log_type") or "nothing"
        name = kind.removesuffix("_log").title().replace("_", "")
        if name not in JOBS:
            raise Refused("UNIMPLEMENTED", f"Unsupported log_type for warmup: {kind}")
        job = JOBS[name](servable, getattr(log, kind).request)
        if servable.limits:
            batching.check_size(
                max((len(values) for values in job.feeds.values() if values.ndim), default=0), servable.limits
            )
        servables.run(servable, job.feeds, list(job.fetches.values()))
