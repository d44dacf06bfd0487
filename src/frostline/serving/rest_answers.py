"""Answers as the JSON that TensorFlow Serving writes."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from frostline.serving.status import invalid

if TYPE_CHECKING:
    import numpy as np


def predictions(outputs: Mapping[str, np.ndarray], as_rows: bool) -> str:
    """The answer to a predict request: one entry per row, or one per output."""
    texts = {alias: _tokens(alias, values) for alias, values in outputs.items()}
    if not as_rows:
        if len(texts) == 1:
            return f'{{\n    "outputs": {next(iter(texts.values()))}\n}}'
        return f'{{\n    "outputs": {_object(texts)}\n}}'
    sizes: dict[str, int] = {}
    for alias, values in outputs.items():
        if not values.ndim:
            raise invalid(f"Tensor name: {alias} has no shape information ")
        sizes[alias] = len(values)
        first = next(iter(sizes.values()))
        if sizes[alias] != first:
            raise invalid(f"Tensor name: {alias} has inconsistent batch size: {sizes[alias]} expecting: {first}")
    rows = {alias: [_tokens(alias, row) for row in values] for alias, values in outputs.items()}
    if len(rows) == 1:
        items = next(iter(rows.values()))
    else:
        items = [_object(dict(zip(rows, row, strict=True))) for row in zip(*rows.values(), strict=True)]
    return f'{{\n    "predictions": [{", ".join(items)}\n    ]\n}}'


def classifications(result: Any) -> str:
    """The answer to a classify request: pairs of label and score for each example."""
    rows = [
        "[" + ", ".join(f"[{json.dumps(c.label)}, {decimal(c.score)}]" for c in row.classes) + "]"
        for row in result.classifications
    ]
    return f'{{\n    "results": [{", ".join(rows)}]\n}}'


def regressions(result: Any) -> str:
    """The answer to a regress request: a number for each example."""
    return f'{{\n    "results": [{", ".join(decimal(r.value) for r in result.regressions)}]\n}}'


def error(message: str) -> str:
    """What a client is told that asked for something impossible."""
    return json.dumps({"error": message}, indent=4)


def decimal(value: float, digits: int = 9) -> str:
    """A float in six digits where they are enough, else in as many as tell it from all others (9, or 17 for double)."""
    import numpy as np

    kind = np.float32 if digits == 9 else np.float64
    if not np.isfinite(value):
        return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    text = f"{value:.6g}"
    if kind(text) != kind(value):
        text = f"{value:.{digits}g}"
    return text if "." in text or "e" in text else f"{text}.0"


def _object(texts: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{json.dumps(alias)}: {text}" for alias, text in texts.items()) + "}"


def _tokens(alias: str, values: Any) -> str:
    """An array, or one value of it, as JSON."""
    import numpy as np

    values = np.asarray(values, dtype=object if isinstance(values, bytes) else None)
    if values.ndim:
        return "[" + ", ".join(_tokens(alias, row) for row in values) + "]"
    kind, value = values.dtype.kind, values.item()
    if kind == "O":
        encoded = (
            {"b64": base64.b64encode(value).decode()} if alias.endswith("_bytes") else value.decode(errors="replace")
        )
        return json.dumps(encoded)
    if kind in "iub":
        return json.dumps(value)
    if kind == "f" and values.dtype.itemsize > 2:
        return decimal(value, 9 if values.dtype.itemsize == 4 else 17)
    raise invalid(f"Failed to write JSON value for tensor type: {values.dtype.name.replace('float16', 'half')}")
