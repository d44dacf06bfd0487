"""Answers as the JSON that TensorFlow Serving writes."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from frostline.serving.status import invalid


def predictions(outputs: Mapping[str, np.ndarray], as_rows: bool) -> str:
    """The answer to a predict request: one entry per row, or one per output."""
    if not as_rows:
        texts = {alias: _text(alias, values) for alias, values in outputs.items()}
        return f'{{\n    "outputs": {_object(texts)}\n}}'
    first = next(iter(outputs.values()))
    for alias, values in outputs.items():
        if not values.ndim:
            raise invalid(f"Tensor name: {alias} has no shape information ")
        if len(values) != len(first):
            raise invalid(f"Tensor name: {alias} has inconsistent batch size: {len(values)} expecting: {len(first)}")
    rows = [_object({alias: _text(alias, values[i]) for alias, values in outputs.items()}) for i in range(len(first))]
    return f'{{\n    "predictions": [{", ".join(rows)}\n    ]\n}}'


def results(result: Any) -> str:
    """The answer to a classify request, pairs of label and score for each example, or to a regress request, numbers."""
    if result.DESCRIPTOR.name == "RegressionResult":
        rows = [_decimal(np.float32(each.value)) for each in result.regressions]
    else:
        pairs = [
            [[json.dumps(c.label), _decimal(np.float32(c.score))] for c in r.classes] for r in result.classifications
        ]
        rows = ["[" + ", ".join(f"[{label}, {score}]" for label, score in row) + "]" for row in pairs]
    return f'{{\n    "results": [{", ".join(rows)}]\n}}'


def _object(texts: Mapping[str, str]) -> str:
    """One output alone is not named."""
    if len(texts) == 1:
        return next(iter(texts.values()))
    return "{" + ", ".join(f"{json.dumps(alias)}: {text}" for alias, text in texts.items()) + "}"


def _text(alias: str, values: Any) -> str:
    """An array, or one value of it, as JSON."""
    if isinstance(values, bytes):
        as_bytes = alias.endswith("_bytes")
        return json.dumps({"b64": base64.b64encode(values).decode()} if as_bytes else values.decode(errors="replace"))
    values = np.asarray(values)
    if values.ndim:
        return "[" + ", ".join(_text(alias, row) for row in values) + "]"
    if values.dtype == object:
        return _text(alias, values.item())
    if values.dtype.kind in "iub":
        return json.dumps(values.item())
    if values.dtype in (np.float32, np.float64):
        return _decimal(values)
    raise invalid(f"Failed to write JSON value for tensor type: {values.dtype.name.replace('float16', 'half')}")


def _decimal(value: Any) -> str:
    """A float in six digits where they are enough, else in as many as tell it from all others."""
    if not np.isfinite(value):
        return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    text = f"{float(value):.6g}"
    if value.dtype.type(text) != value:
        text = f"{float(value):.{9 if value.dtype.itemsize == 4 else 17}g}"
    return text if "." in text or "e" in text else f"{text}.0"
