"""Predict: a request's tensors to those of a graph, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from frostline.serving import tensors
from frostline.serving.servables import Servable
from frostline.serving.status import Refused, invalid

if TYPE_CHECKING:
    import numpy as np

DEFAULT_SIGNATURE = "serving_default"


@dataclass(frozen=True)
class Job:
    """What is to be run: arrays by tensor name, and the names of the tensors that answer, by alias."""

    signature: str
    feeds: dict[str, np.ndarray]
    fetches: dict[str, str]


def prepare(servable: Servable, request: Any) -> Job:
    """Check a PredictRequest against its signature as TensorFlow Serving does; raises Refused."""
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise Refused("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
    signature = servable.signatures[name]
    _check_aliases(set(request.inputs), set(signature.inputs))
    feeds = {}
    for i, (alias, info) in enumerate(signature.inputs.items()):
        sent = request.inputs[alias]
        if sent.dtype != info.dtype:
            expected, given = tensors.type_name(info.dtype), tensors.type_name(sent.dtype)
            raise invalid(f"Expects arg[{i}] to be {expected} but {given} is provided")
        feeds[info.name] = tensors.array(sent, alias)
    return Job(name, feeds, _fetches(signature, request.output_filter))


def _check_aliases(sent: set[str], known: set[str]) -> None:
    if sent != known:
        parts = (sent, known, sent - known, known - sent)
        a, b, extra, missing = ("{" + ",".join(sorted(part)) + "}" for part in parts)
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(known)} len({a}) != len({b}). "
            f"Sent extra: {extra}. Missing but required: {missing}."
        )


def _fetches(signature: Any, asked: Sequence[str]) -> dict[str, str]:
    known = sorted(signature.outputs)
    for i, alias in enumerate(asked):
        if alias not in known:
            raise invalid(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {{{','.join(known)}}}."
            )
        if alias in asked[:i]:
            raise invalid(f"duplicate output tensor alias: {alias}")
    return {alias: signature.outputs[alias].name for alias in sorted(asked) or known}


def respond(servable: Servable, job: Job, outputs: Sequence[np.ndarray], as_content: bool = False) -> Any:
    """A PredictResponse with the outputs under their aliases."""
    from tensorflow_serving.apis import predict_pb2

    response = predict_pb2.PredictResponse()
    fill_spec(response.model_spec, servable, job.signature)
    signature = servable.signatures[job.signature]
    for alias, values in zip(job.fetches, outputs, strict=True):
        response.outputs[alias].CopyFrom(tensors.proto(values, signature.outputs[alias].dtype, as_content))
    return response


def fill_spec(spec: Any, servable: Servable, signature: str = "") -> None:
    """Write which version answered, and by which signature."""
    spec.name, spec.signature_name = servable.name, signature
    spec.version.value = servable.version
