"""TensorFlow Serving's JSON: what requests hold, with its error texts."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from frostline.serving import tensors
from frostline.serving.json_values import TYPES, checked, dense, is_object, leaves_of, quote, shape_of, wrong
from frostline.serving.status import Refused, invalid


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
        raise wrong(found, "Is not object")
    if not isinstance(found.get("signature_name", ""), str):
        raise wrong(found, "not formatted correctly. 'signature_name' key must be a string value.")
    return found


def inputs(document: dict[str, Any], known: Mapping[str, Any]) -> tuple[bool, dict[str, np.ndarray]]:
    """Whether the request is in row form, and its arrays by alias; `known` are TensorInfo protos. Raises Refused."""
    given = document.keys() & {"instances", "inputs"}
    if not given:
        raise invalid("Missing 'inputs' or 'instances' key")
    if len(given) > 1:
        raise wrong(document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ")
    [key] = given
    value, as_rows = document[key], key == "instances"
    if as_rows and not isinstance(value, list):
        raise wrong(document, "Excepting 'instances' to be an list/array")
    if as_rows and not value:
        raise wrong(document, "No values in 'instances' array")
    if len(known) != 1 and not is_object(value[0] if as_rows else value):
        form = "list, but expecting list of objects" if as_rows else "value/list, but expecting an object"
        raise invalid(f"{key} is a plain {form} as multiple input tensors required as per tensorinfo_map")
    if as_rows:
        return True, _from_rows(value, known)
    columns = value if is_object(value) else dict.fromkeys(known, value)
    for alias in known.keys() - columns.keys():
        raise invalid(f"Missing named input: {alias} in 'inputs' object.")
    return False, {alias: dense(columns[alias], info.dtype) for alias, info in known.items()}


def _from_rows(rows: list[Any], known: Mapping[str, Any]) -> dict[str, np.ndarray]:
    named, keys = is_object(rows[0]), known.keys()
    if not all(is_object(row) == named and (not named or row.keys() == keys) for row in rows):
        _check_rows(rows, known)
    try:
        return {
            alias: dense([row[alias] for row in rows] if named else rows, info.dtype) for alias, info in known.items()
        }
    except Refused:
        _check_rows(rows, known)
        raise


def _check_rows(rows: list[Any], known: Mapping[str, Any]) -> None:
    """Look at one row after the other, as FillTensorMapFromInstancesList of the real server; raises its Refused."""
    named, [first, *_] = is_object(rows[0]), known
    shapes: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if named != is_object(row):
            expected, got = ("object", "list") if named else ("value/list", "object")
            raise invalid(f"Expecting {expected} but got {got} at item {i} of input list")
        for alias, item in row.items() if named else [(first, row)]:
            try:
                _check_item(alias, item, known, shapes)
            except Refused as error:
                which = f"{i} key: {alias}" if named else f"{i}"
                raise invalid(f"Failed to process element: {which} of 'instances' list. Error: {error}") from error
        if named and row.keys() != known.keys():
            about = f"Failed to process element: {i} of 'instances' list. JSON object: {quote(row)}"
            raise invalid(f"{about} keys must be equal to: {','.join(sorted(known))}")


def _check_item(alias: str, item: Any, known: Mapping[str, Any], shapes: dict[str, list[int]]) -> None:
    """What a row says of one input must have the shape of the rows before; raises Refused."""
    if alias not in known:
        raise invalid(f"JSON object: does not have named input: {alias}")
    shape = shape_of(item)
    size = sum(1 for _ in leaves_of(item, shape, tensors.type_name(known[alias].dtype)))
    before = shapes.setdefault(alias, shape)
    if math.prod(before) != size:
        raise invalid(f"Expecting tensor size: {math.prod(before)} but got: {size}")
    if before != shape:
        expected, got = (",".join(map(str, sizes)) for sizes in (before, shape))
        raise invalid(f"Expecting shape [{expected}] but got: [{got}]")


def fill_examples(request: Any, body: bytes) -> None:
    """Write the signature and the tf.Examples of a body into a classify or regress request; raises Refused."""
    document = parse(body)
    request.model_spec.signature_name = document.get("signature_name", "")
    holder = request.input.example_list
    if "context" in document:
        holder = request.input.example_list_with_context
        _fill_example(holder.context, document["context"])
    if "examples" not in document:  # of regress, too, the real one says classify
        raise wrong(document, "When method is classify, key 'examples' is expected and was not found")
    found = document["examples"]
    if not isinstance(found, list):
        raise wrong(document, "Expecting 'examples' value to be an list/array")
    if not found:
        raise wrong(document, "'examples' value is an empty array")
    for entry in found:
        _fill_example(holder.examples.add(), entry)


def _fill_example(example: Any, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise invalid(f"Example must be JSON object but got JSON {TYPES.get(type(entry), entry)}")
    for name, content in entry.items():
        feature = example.features.feature[name]
        for value in content if isinstance(content, list) else [content]:
            if value is None or isinstance(value, list) or is_object(value):
                raise invalid(f"Feature: {name} has element with unexpected JSON type: {TYPES[type(value)]}")
            kind = {bool: "int64", int: "int64", float: "float"}.get(type(value), "bytes")
            before = (feature.WhichOneof("kind") or kind).removesuffix("_list")
            if before != kind:
                raise invalid(f"Unexpected element type in feature: {name} expecting type: {before}")
            known = value if kind == "int64" else checked(value, "float" if kind == "float" else "string")
            try:
                getattr(feature, f"{kind}_list").value.append(known)
            except ValueError as error:
                raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.") from error
