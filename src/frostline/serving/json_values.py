"""The values of TensorFlow Serving's JSON as arrays, with its error texts."""

import base64
import binascii
import json
from collections.abc import Iterator
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


def dense(value: Any, dtype: int) -> np.ndarray:
    """Nested lists as an array of TensorFlow's `dtype`; raises Refused."""
    shape, name = shape_of(value), tensors.type_name(dtype)
    leaves = _alike(value, shape, name) or list(leaves_of(value, shape, name))
    if name == "string":
        tensors.check_images(leaves)
    found = np.array(leaves, object if name == "string" else None)
    return found.astype(tf.dtypes.as_dtype(dtype).as_numpy_dtype).reshape(shape)


def shape_of(value: Any) -> list[int]:
    """The shape that the first elements show; raises Refused."""
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) > MOST_DIMENSIONS:
            raise invalid(f"a tensor may have {MOST_DIMENSIONS} dimensions here")
        value = value[0] if value else None
    return shape


def _alike(value: Any, shape: list[int], name: str) -> list[Any] | None:
    """All values of a tensor of numbers, quickly; None where one has to be looked at."""
    types, low, high = LIMITS.get(name, (set(), 0, 0))
    leaves = [value]
    for size in shape:
        if set(map(type, leaves)) != {list} or set(map(len, leaves)) != {size}:
            return None
        leaves = list(chain.from_iterable(leaves))
    fit = set(map(type, leaves)) <= types and (not leaves or low <= min(leaves) <= max(leaves) <= high)
    return leaves if fit else None


def leaves_of(value: Any, shape: list[int], name: str, level: int = 0) -> Iterator[Any]:
    """The values of a tensor of this shape, one after the other; raises Refused at the first that does not fit."""
    if not isinstance(value, list):
        if level != len(shape):
            expected = f"in the JSON DOM. Expected at level: {len(shape)}"
            raise invalid(f"JSON Value: {quote(value)} found at incorrect level: {level + 1} {expected}")
        yield checked(value, name)
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        expected = f"at level: {level} expected size: {shape[level]}"
        raise invalid(f"Encountered list at unexpected size: {len(value)} {expected}")
    for item in value:
        yield from leaves_of(item, shape, name, level + 1)


def checked(leaf: Any, name: str) -> Any:
    """The value that a leaf is, as the type `name`; raises Refused."""
    if name == "string":
        return _bytes(leaf)
    if name not in LIMITS:
        raise Refused("UNIMPLEMENTED", f"Conversion of JSON Value: {quote(leaf)} to type: {name}")
    types, low, high = LIMITS[name]
    if type(leaf) not in types or (float not in types and not low <= leaf <= high):
        kind = TYPES.get(type(leaf), str(leaf))
        raise invalid(f"JSON Value: {quote(leaf)} Type: {kind} is not of expected type: {name}")
    largest = high if type(leaf) is int else float(np.finfo(np.float32 if name == "float" else np.float64).max)
    if largest < abs(leaf) < float("inf"):
        raise invalid(f"Cannot convert JSON value: {quote(leaf)} to {name} without loss of precision.")
    return leaf


def _bytes(value: Any) -> bytes:
    """A string, or the bytes of `{"b64": "..."}`; raises Refused."""
    if isinstance(value, str):
        return value.encode()
    if is_object(value):
        raise wrong(value, "not formatted correctly for base64 data")
    if not isinstance(value, dict):
        kind = TYPES.get(type(value), str(value))
        raise invalid(f"JSON Value: {quote(value)} Type: {kind} is not of expected type: string")
    text = value["b64"].rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid("Unable to base64 decode") from error


def is_object(value: Any) -> bool:
    """Whether a value is an object that is not encoded bytes."""
    return isinstance(value, dict) and not (value.keys() == {"b64"} and isinstance(value["b64"], str))


def quote(value: Any) -> str:
    text = ""
    for piece in json.JSONEncoder(indent=4, ensure_ascii=False).iterencode(value):  # the whole may be large
        text += piece
        if len(text) > QUOTED:
            return text[:QUOTED] + "..."
    return text


def wrong(value: Any, what: str) -> Refused:
    return invalid(f"JSON Value: {quote(value)} {what}")
