"""The JSON of TensorFlow Serving's predict requests and answers, with its error texts."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from frostline.serving import tensors
from frostline.serving.status import Refused, invalid

if TYPE_CHECKING:
    import numpy as np

QUOTED = 1024  # characters of a JSON value that an error repeats
TYPES = {type(None): "Null", dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}
# RapidJSON's words for what Python's parser finds.
PARSE_ERRORS = {
    "Expecting value": "Invalid value.",
    "Expecting ',' delimiter": "Missing a comma or } after an object member.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid control character at": "Invalid encoding in string.",
    "Invalid \\escape": "Invalid escape character in string.",
}
INT_RANGES = {
    **dict.fromkeys(("int8", "int16", "int32", "uint8", "uint16"), (-(2**31), 2**31 - 1)),  # the rest wraps around
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}
WHOLE = {"float": 2**24 - 1, "double": 2**53 - 1}  # the largest whole number that is exact


def parse(body: bytes) -> dict[str, Any]:
    """The object that a body begins with; raises Refused. What follows it is ignored, as the real server does."""
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        text = body.decode("utf-8-sig")
        start = len(text) - len(text.lstrip(" \t\r\n"))
        found, _ = json.JSONDecoder().raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: {PARSE_ERRORS.get(error.msg, error.msg)} at offset: {error.pos}") from error
    except UnicodeDecodeError as error:
        raise invalid(f"JSON Parse error: Invalid encoding in string. at offset: {error.start}") from error
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of thousands of digits
        raise invalid(f"JSON Parse error: {error}") from error
    if not isinstance(found, dict):
        raise wrong(found, "Is not object")
    return found


def signature_name(document: dict[str, Any]) -> str:
    """The signature that a request names, "" for the default one."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise wrong(document, "not formatted correctly. 'signature_name' key must be a string value.")
    return name


def inputs(document: dict[str, Any], known: Mapping[str, Any]) -> tuple[bool, dict[str, np.ndarray]]:
    """Whether the request is in row form, and its arrays by alias; `known` are TensorInfo protos. Raises Refused."""
    if "instances" in document and "inputs" in document:
        raise wrong(document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ")
    if "instances" in document:
        rows = document["instances"]
        if not isinstance(rows, list):
            raise wrong(document, "Excepting 'instances' to be an list/array")
        if not rows:
            raise wrong(document, "No values in 'instances' array")
        return True, _rows(rows, known)
    if "inputs" in document:
        return False, _columns(document["inputs"], known)
    raise invalid("Missing 'inputs' or 'instances' key")


def _rows(rows: list[Any], known: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if not isinstance(rows[0], dict) and len(known) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    named = is_object(rows[0])
    for i, row in enumerate(rows):
        if named and not is_object(row):
            raise invalid(f"Expecting object but got list at item {i} of input list")
        if not named and is_object(row):
            raise invalid(f"Expecting value/list but got object at item {i} of input list")
        if named and row.keys() != known.keys():
            for name in row.keys() - known.keys():
                error = invalid(f"JSON object: does not have named input: {name}")
                raise invalid(f"Failed to process element: {i} key: {name} of 'instances' list. Error: {error}")
            raise invalid(
                f"Failed to process element: {i} of 'instances' list. JSON object: {_quote(row)} keys must be equal "
                f"to: {','.join(sorted(known))}"
            )
    if not named:
        alias = next(iter(known))
        return {alias: _batch(rows, known[alias].dtype, "")}
    return {alias: _batch([row[alias] for row in rows], info.dtype, f" key: {alias}") for alias, info in known.items()}


def _batch(items: list[Any], dtype: int, key: str) -> np.ndarray:
    """The items as one array, each of them a row; raises Refused that names the first bad one."""
    shape = _shape(items)
    try:
        return dense(items, dtype, shape)
    except Refused:
        for i, item in enumerate(items):
            try:
                if (own := _shape(item)) != shape[1:]:
                    dense(item, dtype, own)
                    a, b = (",".join(map(str, part)) for part in (shape[1:], own))
                    raise invalid(f"Expecting shape [{a}] but got: [{b}]")
                dense(item, dtype, own)
            except Refused as error:
                raise invalid(f"Failed to process element: {i}{key} of 'instances' list. Error: {error}") from error
        raise


def _columns(value: Any, known: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if not is_object(value):
        if len(known) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        value = {alias: value for alias in known}
    for alias in known:
        if alias not in value:
            raise invalid(f"Missing named input: {alias} in 'inputs' object.")
    return {alias: dense(value[alias], info.dtype, _shape(value[alias])) for alias, info in known.items()}


def dense(value: Any, dtype: int, shape: list[int]) -> np.ndarray:
    """Nested lists of `shape` as an array of TensorFlow's `dtype`; raises Refused."""
    import numpy as np
    import tensorflow as tf

    leaves = [value]
    for level, size in enumerate(shape):
        for item in leaves:
            if not isinstance(item, list):
                raise _too_shallow(item, level, len(shape))
            if len(item) != size:
                raise invalid(
                    f"Encountered list at unexpected size: {len(item)} at level: {level} expected size: {size}"
                )
        leaves = list(chain.from_iterable(leaves))
    kinds = set(map(type, leaves))
    if list in kinds:
        raise invalid(f"Encountered list at unexpected level: {len(shape)} expected < {len(shape)}")
    known = tf.dtypes.as_dtype(dtype)
    name = {"float32": "float", "float64": "double", "float16": "half"}.get(known.name, known.name)
    if name == "string":
        found = np.empty(len(leaves), object)
        found[:] = [_bytes(leaf) for leaf in leaves]
        tensors.check_images(found.tolist())
        return found.reshape(shape)
    _check_leaves(leaves, kinds, name)
    wide = {"float": np.float64, "double": np.float64, "bool": np.bool_, "uint64": np.uint64}.get(name, np.int64)
    with np.errstate(over="ignore"):
        return np.array(leaves, wide).astype(known.as_numpy_dtype).reshape(shape)


def _check_leaves(leaves: list[Any], kinds: set[type], name: str) -> None:
    """Refuse the first leaf that has not the type `name`; looks at each of them only where one may be wrong."""
    allowed: set[type] = {"bool": {bool}, "float": {int, float}, "double": {int, float}}.get(name, {int})  # type: ignore[assignment]
    if name not in INT_RANGES and name not in WHOLE and name != "bool":
        raise Refused("UNIMPLEMENTED", f"Conversion of JSON Value: {_quote(leaves[0])} to type: {name}")
    if not kinds <= allowed:
        bad = next(leaf for leaf in leaves if type(leaf) not in allowed)
        raise _type_error(bad, name)
    if not leaves or name == "bool":
        return
    low, high = INT_RANGES.get(name, (-WHOLE.get(name, 0), WHOLE.get(name, 0)))
    if low <= min(leaves) and max(leaves) <= high:
        return
    for leaf in leaves:
        if name in INT_RANGES and not low <= leaf <= high:
            raise _type_error(leaf, name)
        large = type(leaf) is int and not low <= leaf <= high
        if large or (name == "float" and 3.4028234663852886e38 < abs(leaf) < float("inf")):
            raise invalid(f"Cannot convert JSON value: {_quote(leaf)} to {name} without loss of precision.")


def _too_shallow(item: Any, level: int, rank: int) -> Refused:
    return invalid(
        f"JSON Value: {_quote(item)} found at incorrect level: {level + 1} in the JSON DOM. Expected at level: {rank}"
    )


def _type_error(value: Any, name: str) -> Refused:
    return invalid(f"JSON Value: {_quote(value)} Type: {type_name(value)} is not of expected type: {name}")


def type_name(value: Any) -> str:
    """RapidJSON's name of a value's type."""
    return TYPES.get(type(value), str(value))


def _bytes(leaf: Any) -> bytes:
    if isinstance(leaf, str):
        return leaf.encode()
    if isinstance(leaf, dict):
        return from_base64(leaf)
    raise _type_error(leaf, "string")


def from_base64(value: dict[str, Any]) -> bytes:
    """The bytes of `{"b64": "..."}`; raises Refused."""
    if is_object(value):
        raise wrong(value, "not formatted correctly for base64 data")
    text = re.sub(r"\s", "", value["b64"]).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid("Unable to base64 decode") from error


def is_object(value: Any) -> bool:
    """Whether a value is an object that is not encoded bytes."""
    return isinstance(value, dict) and not (value.keys() == {"b64"} and isinstance(value["b64"], str))


def _shape(value: Any) -> list[int]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _quote(value: Any) -> str:
    text = json.dumps(value, indent=4, ensure_ascii=False)
    return text if len(text) <= QUOTED else text[:QUOTED] + "..."


def wrong(value: Any, what: str) -> Refused:
    """A value that has not the form of a request."""
    return invalid(f"JSON Value: {_quote(value)} {what}")
