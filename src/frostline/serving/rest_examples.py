"""The JSON of classify and regress requests: objects of features to tf.Examples."""

from typing import Any

from frostline.serving import rest_json
from frostline.serving.status import invalid


def fill(request: Any, body: bytes) -> None:
    """Write the signature and the examples of a body into a request; raises Refused."""
    document = rest_json.parse(body)
    request.model_spec.signature_name = rest_json.signature_name(document)
    if "examples" not in document:
        raise rest_json.wrong(document, "When method is classify, key 'examples' is expected and was not found")
    found = document["examples"]
    if not isinstance(found, list):
        raise rest_json.wrong(document, "Expecting 'examples' value to be an list/array")
    if not found:
        raise rest_json.wrong(document, "'examples' value is an empty array")
    if "context" in document:
        holder = request.input.example_list_with_context
        _fill_example(holder.context, document["context"])
    else:
        holder = request.input.example_list
    for entry in found:
        _fill_example(holder.examples.add(), entry)


def _fill_example(example: Any, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise invalid(f"Example must be JSON object but got JSON {rest_json.type_name(entry)}")
    for name, content in entry.items():
        feature = example.features.feature[name]
        for value in content if isinstance(content, list) else [content]:
            _add(feature, name, value)


def _add(feature: Any, name: str, value: Any) -> None:
    kind, plain = _feature_value(name, value)
    if feature.WhichOneof("kind") not in (None, kind):
        was = feature.WhichOneof("kind").removesuffix("_list")
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {was}")
    getattr(feature, kind).value.append(plain)


def _feature_value(name: str, value: Any) -> tuple[str, Any]:
    """Which list of a Feature a JSON value belongs to, and as what."""
    if isinstance(value, bool):
        return "int64_list", int(value)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
        return "int64_list", value
    if isinstance(value, float):
        if 3.4028234663852886e38 < abs(value) < float("inf"):
            raise invalid(f"Cannot convert JSON value: {value} to float without loss of precision.")
        return "float_list", value
    if isinstance(value, str):
        return "bytes_list", value.encode()
    if isinstance(value, dict) and not rest_json.is_object(value):
        return "bytes_list", rest_json.from_base64(value)
    raise invalid(f"Feature: {name} has element with unexpected JSON type: {rest_json.type_name(value)}")
