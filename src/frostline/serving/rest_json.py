"""TensorFlow Serving's JSON: what requests hold, with its error texts."""

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import tensorflow as tf

from frostline.serving import tensors
from frostline.serving.status import Refused, invalid

MOST_DIMENSIONS = 64  # NumPy's
QUOTED = 1024  # characters of a JSON value that an error repeats
TYPES = {type(None): "Null", dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}
WHOLE = (-(2**31), 2**31 - 1)  # a value of a small type wraps around, as in the real server
# What a JSON value of a type may be; beyond the last numbers a whole number is not exact in a float.
LIMITS: dict[str, tuple[set[type], int, int]] = {
    "bool": ({bool}, 0, 1),
    **{name: ({int}, *WHOLE) for name in ("int8", "int16", "int32", "uint8", "uint16")},
    "int64": ({int}, -(2**63), 2**63 - 1),
    "uint32": ({int}, 0, 2**32 - 1),
    "uint64": ({int}, 0, 2**64 - 1),
    "float": ({int, float}, 1 - 2**24, 2**24 - 1),
    "double": ({int, float}, 1 - 2**53, 2**53 - 1),
}


def parse(body: bytes) -> dict[str, Any]:
    """The object that a body begins with; raises Refused. What follows it is ignored, as the real server does."""
    try:
        found, _ = json.JSONDecoder().raw_decode(body.decode("utf-8-sig").lstrip())
    except json.JSONDecodeError as error:
        text = {"Expecting value": "Invalid value." if body else "The document is empty"}.get(error.msg, error.msg)
        raise invalid(f"JSON Parse error: {text} at offset: {error.pos}") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, no UTF-8, a number of thousands of digits
        raise invalid(f"JSON Parse error: {error}") from error
    if not isinstance(found, dict):
        raise _wrong(found, "Is not object")
    if not isinstance(found.get("signature_name", ""), str):
        raise _wrong(found, "not formatted correctly. 'signature_name' key must be a string value.")
    return found


def inputs(document: dict[str, Any], known: Mapping[str, Any]) -> tuple[bool, dict[str, np.ndarray]]:
    """Whether the request is in row form, and its arrays by alias; `known` are TensorInfo protos. Raises Refused."""
    given = document.keys() & {"instances", "inputs"}
    if not given:
        raise invalid("Missing 'inputs' or 'instances' key")
    if len(given) > 1:
        raise _wrong(document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ")
    [key] = given
    value, as_rows = document[key], key == "instances"
    if as_rows and not isinstance(value, list):
        raise _wrong(document, "Excepting 'instances' to be an list/array")
    if as_rows and not value:
        raise _wrong(document, "No values in 'instances' array")
    if len(known) != 1 and not _is_object(value[0] if as_rows else value):
        form = "list, but expecting list of objects" if as_rows else "value/list, but expecting an object"
        raise invalid(f"{key} is a plain {form} as multiple input tensors required as per tensorinfo_map")
    if as_rows:
        columns = _columns(value, known)
    else:
        columns = value if _is_object(value) else dict.fromkeys(known, value)
        for alias in known.keys() - columns.keys():
            raise invalid(f"Missing named input: {alias} in 'inputs' object.")
    return as_rows, {alias: dense(columns[alias], info.dtype, as_rows) for alias, info in known.items()}


def _columns(rows: list[Any], known: Mapping[str, Any]) -> dict[str, list[Any]]:
    named = _is_object(rows[0])
    for i, row in enumerate(rows):
        if named != _is_object(row):
            expected, got = ("object", "list") if named else ("value/list", "object")
            raise invalid(f"Expecting {expected} but got {got} at item {i} of input list")
        if named and row.keys() != known.keys():
            about = f"Failed to process element: {i} of 'instances' list. JSON object: {_quote(row)}"
            raise invalid(f"{about} keys must be equal to: {','.join(sorted(known))}")
    return {alias: [row[alias] for row in rows] if named else rows for alias in known}


def dense(value: Any, dtype: int, as_rows: bool) -> np.ndarray:
    """Nested lists as an array of TensorFlow's `dtype`; raises Refused, which names the element where they are rows."""
    leaves: list[Any] = [value]
    shape: list[int] = []

    def each(function: Callable[..., Any], *args: Any) -> list[Any]:
        done = []
        for i, leaf in enumerate(leaves):
            try:
                done.append(function(leaf, *args))
            except Refused as error:
                if not as_rows or not shape:
                    raise
                about = f"Failed to process element: {i * shape[0] // len(leaves)} of 'instances' list."
                raise invalid(f"{about} Error: {error}") from error
        return done

    while leaves and isinstance(leaves[0], list):
        if set(map(type, leaves)) != {list} or len(set(map(len, leaves))) > 1:
            each(_check_list, len(leaves[0]), len(shape))
        shape.append(len(leaves[0]))
        if len(shape) > MOST_DIMENSIONS:
            raise invalid(f"a tensor may have {MOST_DIMENSIONS} dimensions here")
        leaves = list(chain.from_iterable(leaves))
    name = tensors.type_name(dtype)
    types, low, high = LIMITS.get(name, (set(), 0, 0))
    if not set(map(type, leaves)) <= types or (leaves and not low <= min(leaves) <= max(leaves) <= high):
        leaves = each(_check_leaf, name)
    if name == "string":
        tensors.check_images(leaves)
    found = np.array(leaves, object if name == "string" else None)
    return found.astype(tf.dtypes.as_dtype(dtype).as_numpy_dtype).reshape(shape)


def _check_list(item: Any, size: int, level: int) -> None:
    if not isinstance(item, list):
        raise invalid(f"JSON Value: {_quote(item)} found at incorrect level: {level + 1}")
    if len(item) != size:
        raise invalid(f"Encountered list at unexpected size: {len(item)} at level: {level} expected size: {size}")


def _check_leaf(leaf: Any, name: str) -> Any:
    """The value that a leaf is, as the type `name`; raises Refused."""
    if name == "string":
        return _bytes(leaf)
    if name not in LIMITS:
        raise Refused("UNIMPLEMENTED", f"Conversion of JSON Value: {_quote(leaf)} to type: {name}")
    types, low, high = LIMITS[name]
    if type(leaf) not in types or (float not in types and not low <= leaf <= high):
        kind = TYPES.get(type(leaf), str(leaf))
        raise invalid(f"JSON Value: {_quote(leaf)} Type: {kind} is not of expected type: {name}")
    largest = high if type(leaf) is int else float(np.finfo(np.float32 if name == "float" else np.float64).max)
    if largest < abs(leaf) < float("inf"):
        raise invalid(f"Cannot convert JSON value: {_quote(leaf)} to {name} without loss of precision.")
    return leaf


def _bytes(value: Any) -> bytes:
    """A string, or the bytes of `{"b64": "..."}`; raises Refused."""
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, dict) or _is_object(value):
        kind = TYPES.get(type(value), str(value))
        raise invalid(f"JSON Value: {_quote(value)} Type: {kind} is not of expected type: string")
    text = value["b64"].rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid("Unable to base64 decode") from error


def _is_object(value: Any) -> bool:
    """Whether a value is an object that is not encoded bytes."""
    return isinstance(value, dict) and not (value.keys() == {"b64"} and isinstance(value["b64"], str))


def fill_examples(request: Any, body: bytes) -> None:
    """Write the signature and the tf.Examples of a body into a classify or regress request; raises Refused."""
    document = parse(body)
    request.model_spec.signature_name = document.get("signature_name", "")
    found = document.get("examples")
    if not isinstance(found, list):
        raise _wrong(document, "key 'examples' is expected and was not found")
    if not found:
        raise _wrong(document, "'examples' value is an empty array")
    holder = request.input.example_list
    if "context" in document:
        holder = request.input.example_list_with_context
        _fill_example(holder.context, document["context"])
    for entry in found:
        _fill_example(holder.examples.add(), entry)


def _fill_example(example: Any, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise invalid(f"Example must be JSON object but got JSON {TYPES.get(type(entry), entry)}")
    for name, content in entry.items():
        feature = example.features.feature[name]
        for value in content if isinstance(content, list) else [content]:
            kind = {bool: "int64_list", int: "int64_list", float: "float_list"}.get(type(value), "bytes_list")
            if feature.WhichOneof("kind") not in (None, kind):
                raise invalid(f"Unexpected element type in feature: {name}")
            known = value if kind != "bytes_list" else _bytes(value)
            try:
                getattr(feature, kind).value.append(known)
            except ValueError as error:
                raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.") from error


def _quote(value: Any) -> str:
    text = ""
    for piece in json.JSONEncoder(indent=4, ensure_ascii=False).iterencode(value):  # the whole may be large
        text += piece
        if len(text) > QUOTED:
            return text[:QUOTED] + "..."
    return text


def _wrong(value: Any, what: str) -> Refused:
    return invalid(f"JSON Value: {_quote(value)} {what}")
