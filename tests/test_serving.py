"""A running embedded server, asked by plain HTTP, by gRPC and by clients that nobody here wrote."""

import base64
import contextlib
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from unittest.mock import ANY

import pytest
import serving_models
from serving_models import CLASSES, SIZE, bomb, encoded, growing_gif, unreadable_png

from frostline import serving
from frostline.children import Died
from frostline.errors import UserError

LINE, IMAGES = "/v1/models/half_plus_two", "/v1/models/images"
BYTES = {"signature_name": "serving_bytes"}
FAILED, ROWS = "Failed to process element", "of 'instances' list. Error: INVALID_ARGUMENT:"
ROW_0 = f"{FAILED}: 0 {ROWS}"


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    serving_models.save_line(folder / "saved_model" / "half_plus_two" / "1", 0.5, 2.0)
    serving_models.save_images(folder / "saved_model" / "images" / "7")
    serving_models.save_xla(folder / "saved_model" / "xla" / "1")
    return folder


@pytest.fixture(scope="module")
def server(exports, tmp_path_factory):
    monitoring = tmp_path_factory.mktemp("monitoring") / "monitoring.config"
    monitoring.write_text('prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }')
    socket = tmp_path_factory.mktemp("s") / "grpc"
    flags = [f"--monitoring_config_file={monitoring}", f"--grpc_socket_path={socket}"]
    with serving.running(exports, [], backend="embedded", flags=flags) as running:
        yield running


def ask(server, path, body=None, headers=()):
    """Status and JSON of a GET, or of a POST where there is a body."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.rest + path, data, dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def b64(data):
    return {"b64": base64.b64encode(data).decode()}


@pytest.fixture(scope="module")
def channel(server):
    import grpc

    with grpc.insecure_channel(server.grpc, [("grpc.max_send_message_length", -1)]) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel):
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def predict_request(name, signature="", version=None, label=None, outputs=(), **inputs):
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name, request.model_spec.signature_name = name, signature
    if version is not None:
        request.model_spec.version.value = version
    if label is not None:
        request.model_spec.version_label = label
    for alias, value in inputs.items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
    return request


def refusal(call, request):
    """The code and text that a gRPC call ends with."""
    import grpc

    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=30)
    return caught.value.code().name, caught.value.details()


# -- the forms of the REST documentation -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        (":predict", {"instances": [1.0, 2.0, 5.0]}, {"predictions": [2.5, 3.0, 4.5]}),
        (":predict", {"instances": [{"x": 1}, {"x": 2}]}, {"predictions": [2.5, 3.0]}),
        (":predict", {"inputs": [1.0, 2.0, 5.0]}, {"outputs": [2.5, 3.0, 4.5]}),
        (":predict", {"inputs": {"x": [1.0], "more": 7}}, {"outputs": [2.5]}),
        ("/versions/1:predict", {"signature_name": "serving_default", "instances": [0]}, {"predictions": [2.0]}),
        (
            ":predict",
            {"signature_name": "two", "inputs": {"a": [1.5, 2], "b": 1}},
            {"outputs": {"count": 2, "sum": [2.5, 3.0]}},
        ),
        (":regress", {"signature_name": "regress", "examples": [{"x": 1.0}, {"x": [2.5]}]}, {"results": [2.5, 3.25]}),
        (
            ":regress",
            {"signature_name": "regress", "context": {"x": 4.0}, "examples": [{"name": "a"}]},
            {"results": [4.0]},
        ),
    ],
)
def test_documented_requests_and_answers(server, path, body, answer):
    assert ask(server, LINE + path, body) == (200, answer)


def test_row_form_of_several_outputs_is_a_list_of_objects(server):
    status, found = ask(server, f"{IMAGES}:predict", {"instances": [[[[255, 0, 0]] * SIZE] * SIZE] * 2})
    assert status == 200 and len(found["predictions"]) == 2
    assert found["predictions"][0].keys() == {"probabilities", "top_k_scores", "top_k_classes"}
    assert found["predictions"][0]["top_k_classes"][0] == "cat"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP"])
def test_encoded_images_are_sent_as_b64(server, form):
    body = {"signature_name": "serving_bytes", "instances": [b64(encoded(c, form)) for c in ("lime", "blue")]}
    _, found = ask(server, f"{IMAGES}:predict", body)
    assert [row["top_k_classes"][0] for row in found["predictions"]] == ["dog", "owl"]
    named = {**body, "instances": [{"image_bytes": value} for value in body["instances"]]}
    assert ask(server, f"{IMAGES}:predict", named)[1] == found
    columns = {"signature_name": "serving_bytes", "inputs": body["instances"]}
    outputs = ask(server, f"{IMAGES}:predict", columns)[1]["outputs"]
    assert outputs["top_k_classes"] == [row["top_k_classes"] for row in found["predictions"]]


def test_classify_answers_with_pairs_of_label_and_score(server):
    body = {"signature_name": "classify", "examples": [{"image/encoded": b64(encoded("blue"))}]}
    status, found = ask(server, f"{IMAGES}:classify", body)
    assert status == 200
    [row] = found["results"]
    assert row[0][0] == "owl" and {label for label, _ in row} == set(CLASSES)
    assert sum(score for _, score in row) == pytest.approx(1)


def test_numbers_are_written_as_the_real_server_writes_them(server):
    request = urllib.request.Request(
        f"{server.rest}{LINE}:predict",
        b'{"instances": [NaN, Infinity, -Infinity, 16000000, 0.123456789, 1e-7]} trailing',
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read().decode()
    assert text.split("[")[1].split("]")[0].split() == [
        "NaN,",
        "Infinity,",
        "-Infinity,",
        "8000002.0,",
        "2.06172848,",
        "2.0",
    ]


def test_gzip_requests_are_inflated(server):
    body = gzip.compress(json.dumps({"instances": [1.0]}).encode())
    assert ask(server, f"{LINE}:predict", body, {"Content-Encoding": "gzip"}.items()) == (200, {"predictions": [2.5]})
    bad = ask(server, f"{LINE}:predict", b"no gzip", {"Content-Encoding": "gzip"}.items())
    assert bad[0] == 400


def test_status_and_metadata(server):
    version = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert ask(server, LINE) == (200, {"model_version_status": [version]})
    assert ask(server, f"{LINE}/versions/1") == (200, {"model_version_status": [version]})
    assert ask(server, f"{LINE.upper().replace('HALF_PLUS_TWO', 'half_plus_two')}/labels/any")[0] == 200
    status, found = ask(server, f"{IMAGES}/metadata")
    assert status == 200
    assert found["model_spec"] == {"name": "images", "signature_name": "", "version": "7"}
    signatures = found["metadata"]["signature_def"]["signature_def"]
    assert signatures["serving_bytes"]["inputs"]["image_bytes"]["dtype"] == "DT_STRING"
    sizes = [d["size"] for d in signatures["serving_default"]["inputs"]["images"]["tensor_shape"]["dim"]]
    assert sizes == ["-1", "8", "8", "3"]


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/v1/models", None, 400, "Missing model name in request."),
        ("/v1/models/none", None, 404, "Could not find any versions of model none"),
        (f"{LINE}/versions/9", None, 404, "Could not find version 9 of model half_plus_two"),
        (f"{LINE}/versions/9/metadata", None, 404, "Servable not found for request: Specific(half_plus_two, 9)"),
        (f"{LINE}/versions/{10**19}", None, 400, f"Failed to convert version: {10**19} to numeric."),
        (f"{LINE}/versions/{'0' * 20}{10**19}", None, 400, "Failed to convert version: …to numeric."),
        (f"{LINE}/versions/{'0' * 5000}9", None, 404, "Could not find version 9 of model half_plus_two"),
        (f"{LINE}:frobnicate", {}, 400, f"Malformed request: POST {LINE}:frobnicate"),
        (f"{LINE}:predict", None, 400, f"Malformed request: GET {LINE}:predict"),
        ("/v1/models/none:predict", {"instances": [1]}, 404, "Servable not found for request: Latest(none)"),
        (f"{LINE}/versions/9:predict", {"instances": [1]}, 404, "Servable not found for request: Specific("),
        (f"{LINE}/labels/canary:predict", {"instances": [1]}, 400, "Unrecognized servable version label: canary"),
        (
            f"{LINE}:predict",
            {"signature_name": "x", "instances": [1]},
            400,
            'Serving signature name: "x" not found in signature def',
        ),
        (f"{LINE}:predict", b"", 400, "JSON Parse error: The document is empty"),
        (f"{LINE}:predict", b'{"instances": [1', 400, "JSON Parse error: Expecting ',' delimiter at offset: 16"),
        (f"{LINE}:predict", b"\xff\xfe", 400, "JSON Parse error: 'utf-8' codec"),
        (f"{LINE}:predict", b"[" * 100_000, 400, "JSON Parse error"),
        (f"{LINE}:predict", b'{"instances": ' + b"[" * 70 + b"]" * 70 + b"}", 400, f"{ROW_0} a tensor may have 64 dim"),
        (f"{LINE}:predict", b'{"instances": [1, ' + b"[" * 990 + b"]" * 991 + b"}", 400, ""),  # JSON or its values
        (f"{IMAGES}:predict", {**BYTES, "instances": ["\ud800"]}, 400, "JSON Parse error: 'utf-8' codec"),
        (f"{IMAGES}:classify", {"examples": [{"image/encoded": "\ud800"}]}, 400, "JSON Parse error: 'utf-8' codec"),
        (f"{IMAGES}:classify", {"signature_name": "\ud800", "examples": [{}]}, 400, "JSON Parse error: 'utf-8' codec"),
        (f"{LINE}:predict", b"[1]", 400, "JSON Value: …Is not object"),
        (f"{LINE}:predict", {"signature_name": 1}, 400, "JSON Value: …'signature_name' key must be a string value."),
        (f"{LINE}:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        (f"{LINE}:predict", {"instances": [1], "inputs": [1]}, 400, "JSON Value: …expecting only one of"),
        (f"{LINE}:predict", {"instances": 1}, 400, "JSON Value: …Excepting 'instances' to be an list/array"),
        (f"{LINE}:predict", {"instances": []}, 400, "JSON Value: …No values in 'instances' array"),
        (f"{LINE}:predict", {"instances": [1, [2]]}, 400, f"{FAILED}: 1 {ROWS} Expecting shape [] but got: [1]"),
        (f"{LINE}:predict", {"instances": [{"x": 1}, 2]}, 400, "Expecting object but got list at item 1"),
        (f"{LINE}:predict", {"instances": [1, {"x": 2}]}, 400, "Expecting value/list but got object at item 1"),
        (
            f"{LINE}:predict",
            {"instances": [{"x": 1}, {"y": 1}]},
            400,
            f"{FAILED}: 1 key: y {ROWS} JSON object: does not have named input: y",
        ),
        (
            f"{LINE}:predict",
            {"instances": [{"x": "a"}]},
            400,
            f'{FAILED}: 0 key: x {ROWS} JSON Value: "a" Type: String is not of expected type: float',
        ),
        (
            f"{LINE}:predict",
            {"signature_name": "two", "instances": [{"a": 1}]},
            400,
            f"{FAILED}: 0 of 'instances' list. JSON object: {{\n    \"a\": 1\n}} keys must be equal to: a,b",
        ),
        (
            f"{LINE}:predict",
            {"signature_name": "two", "instances": [{"a": [1], "b": 1}, {"a": [1, 2], "b": 1}]},
            400,
            f"{FAILED}: 1 key: a {ROWS} Expecting tensor size: 1 but got: 2",
        ),
        (
            f"{LINE}:predict",
            {"instances": [[1, 2], [3, 4], [5, 6, 7]]},
            400,
            f"{FAILED}: 2 {ROWS} Expecting tensor size: 2 but got: 3",
        ),
        (f"{LINE}:predict", {"instances": [[1, 2], [[3], 4]]}, 400, f"{FAILED}: 1 {ROWS} JSON Value: 4 found at"),
        (f"{LINE}:predict", {"instances": ["a"]}, 400, f'{ROW_0} JSON Value: "a" Type: String is not'),
        (f"{LINE}:predict", {"instances": [None]}, 400, f"{ROW_0} JSON Value: null Type: Null is not"),
        (f"{LINE}:predict", {"instances": [True]}, 400, f"{ROW_0} JSON Value: true Type: True is not"),
        (f"{LINE}:predict", {"instances": [2**24]}, 400, f"{ROW_0} Cannot convert JSON value: 16777216 to float"),
        (f"{LINE}:predict", {"signature_name": "two", "inputs": {"a": [1]}}, 400, "Missing named input: b"),
        (f"{LINE}:predict", {"signature_name": "two", "inputs": [1]}, 400, "inputs is a plain value/list"),
        (f"{LINE}:predict", {"signature_name": "two", "instances": [1]}, 400, "instances is a plain list"),
        (f"{LINE}:predict", {"signature_name": "two", "inputs": {"a": [1], "b": 1.5}}, 400, "JSON Value: 1.5 Type"),
        (f"{IMAGES}:predict", {"instances": [[[1.0]]]}, 400, f"{ROW_0} JSON Value: 1.0 Type: Number is not"),
        (
            f"{IMAGES}:predict",
            {"inputs": [[1, 2], [3]]},
            400,
            "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
        ),
        (
            f"{IMAGES}:predict",
            {"inputs": [[1], 2]},
            400,
            "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
        ),
        (f"{IMAGES}:predict", {"inputs": [1, [2]]}, 400, "Encountered list at unexpected level: 1 expected < 1"),
        (f"{IMAGES}:predict", {"inputs": [[1]]}, 400, ""),  # what TensorFlow itself says of two dimensions
        (f"{IMAGES}:predict", {**BYTES, "instances": [{"b64": "%"}]}, 400, f"{ROW_0} Unable to base64 decode"),
        (f"{IMAGES}:predict", {**BYTES, "instances": [3]}, 400, f"{ROW_0} JSON Value: 3 Type: Number is not"),
        (
            f"{IMAGES}:predict",
            {**BYTES, "inputs": [{"b65": ""}]},
            400,
            'JSON Value: {\n    "b65": ""\n} not formatted correctly for base64 data',
        ),
        (f"{IMAGES}:predict", {**BYTES, "instances": ["no image"]}, 400, "…Unknown image file format"),
        (f"{LINE}:classify", {"examples": [{}]}, 400, "…No classification inputs found in SignatureDef"),
        (f"{LINE}:regress", {"signature_name": "regress", "examples": [{}]}, 400, "…Feature: x (data type: float)"),
        (f"{LINE}:regress", {"signature_name": "x", "examples": [{}]}, 400, "No signature was found with the name: x"),
        (
            f"{LINE}:regress",
            {},
            400,
            "JSON Value: {} When method is classify, key 'examples' is expected and was not found",
        ),
        (
            f"{LINE}:regress",
            {"examples": {}},
            400,
            'JSON Value: {\n    "examples": {}\n} Expecting \'examples\' value to be an list/array',
        ),
        (f"{LINE}:regress", {"examples": []}, 400, "JSON Value: …'examples' value is an empty array"),
        (f"{LINE}:regress", {"examples": [3]}, 400, "Example must be JSON object but got JSON Number"),
        (f"{LINE}:regress", {"examples": [{"x": [1, 2.0]}]}, 400, "Unexpected … feature: x expecting type: int64"),
        *(
            (
                f"{LINE}:regress",
                {"examples": [{"x": [wrong]}]},
                400,
                f"Feature: x has element with unexpected JSON type: {kind}",
            )
            for wrong, kind in ((None, "Null"), ([1], "Array"), ({"y": 1}, "Object"))
        ),
        (f"{LINE}:regress", {"examples": [{"x": 1e300}]}, 400, "Cannot convert JSON value: 1e+300 to float without"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused_in_the_words_of_the_real_server(server, path, body, status, error):
    """`error` is the beginning; … stands for anything."""
    code, found = ask(server, path, body)
    assert code == status
    assert re.match("(?s:.*)".join(map(re.escape, error.split("…"))), found["error"]), found


def test_a_place_that_is_not_of_the_api_is_not_found(server):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{server.rest}/index.html", timeout=30)


def test_what_would_eat_the_memory_is_refused_and_the_server_lives_on(server, stub):
    large = ask(server, f"{LINE}:predict", b'{"instances": [' + b"1," * (50 * 2**20) + b"1]}")
    assert large[0] == 413
    bombs = {"signature_name": "serving_bytes", "instances": [b64(bomb())]}
    status, found = ask(server, f"{IMAGES}:predict", bombs)
    assert status == 400 and "pixels" in found["error"]
    example = {"signature_name": "classify", "examples": [{"image/encoded": b64(bomb(9000))}]}
    assert "pixels" in ask(server, f"{IMAGES}:classify", example)[1]["error"]
    for disguised in (growing_gif(), unreadable_png()):
        found = ask(server, f"{IMAGES}:predict", {"signature_name": "serving_bytes", "instances": [b64(disguised)]})
        assert found[0] == 400 and "pixels" in found[1]["error"]
    squeezed = gzip.compress(b'{"instances": [' + b" " * (100 * 2**20) + b"1]}")
    assert ask(server, f"{LINE}:predict", squeezed, {"Content-Encoding": "gzip"}.items())[0] == 413
    repeated = predict_request("half_plus_two", x=[1.0])
    repeated.inputs["x"].tensor_shape.dim[0].size = 2**40
    assert refusal(stub.Predict, repeated)[0] == "RESOURCE_EXHAUSTED"
    files = predict_request("images", "serving_bytes", image_bytes=[b"x"])
    files.inputs["image_bytes"].tensor_shape.dim[0].size = 10**7
    assert refusal(stub.Predict, files) == ("RESOURCE_EXHAUSTED", ANY)
    large = predict_request("half_plus_two", x=[1.0])
    large.inputs["x"].tensor_content = bytes(100 * 2**20)
    assert refusal(stub.Predict, large)[0] == "RESOURCE_EXHAUSTED"
    truncated = b64(encoded("lime", "JPEG", (64, 64))[:-200])
    cut = ask(server, f"{IMAGES}:predict", {"signature_name": "serving_bytes", "instances": [truncated]})
    assert cut[0] == 400 and "JPEG" in cut[1]["error"]
    assert ask(server, f"{LINE}:predict", {"instances": [1.0]}) == (200, {"predictions": [2.5]})


# -- gRPC ------------------------------------------------------------------------------------------------


def test_predict_over_grpc_answers_in_typed_fields(stub):
    found = stub.Predict(predict_request("half_plus_two", x=[1.0, 5.0]), timeout=30)
    assert list(found.outputs["y"].float_val) == [2.5, 4.5] and not found.outputs["y"].tensor_content
    spec = found.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("half_plus_two", 1, "serving_default")
    image = encoded("lime")
    found = stub.Predict(predict_request("images", "serving_bytes", outputs=["top_k_classes"], image_bytes=[image]))
    assert list(found.outputs) == ["top_k_classes"] and found.outputs["top_k_classes"].string_val[0] == b"dog"


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        ({"name": ""}, "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ({"name": "none"}, "NOT_FOUND", "Servable not found for request: Latest(none)"),
        ({"name": "images", "version": 3}, "NOT_FOUND", "Servable not found for request: Specific(images, 3)"),
        ({"name": "images", "label": "stable"}, "INVALID_ARGUMENT", "Unrecognized servable version label: stable"),
        ({"name": "images", "signature": "s"}, "FAILED_PRECONDITION", 'Serving signature key "s" not found.'),
        (
            {"name": "half_plus_two", "z": [1.0]},
            "INVALID_ARGUMENT",
            "input size does not match signature: 1!=1 len({z}) != len({x}). "
            "Sent extra: {z}. Missing but required: {x}.",
        ),
        ({"name": "half_plus_two", "x": [1]}, "INVALID_ARGUMENT", "Expects arg[0] to be float but int32 is provided"),
        (
            {"name": "half_plus_two", "x": [1.0], "outputs": ["q"]},
            "INVALID_ARGUMENT",
            "output tensor alias not found in signature: q Outputs expected to be in the set {y}.",
        ),
        (
            {"name": "half_plus_two", "x": [1.0], "outputs": ["y", "y"]},
            "INVALID_ARGUMENT",
            "duplicate output tensor alias: y",
        ),
    ],
)
def test_wrong_grpc_requests_end_with_the_code_and_text_of_the_real_server(stub, request_, code, text):
    assert refusal(stub.Predict, predict_request(**request_)) == (code, text)


def test_a_malformed_tensor_is_refused(stub):
    request = predict_request("half_plus_two", x=[1.0])
    request.inputs["x"].tensor_content = b"123"
    assert refusal(stub.Predict, request) == ("INVALID_ARGUMENT", "tensor parsing error: x")


def test_metadata_and_status_over_grpc(stub, channel):
    from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_service_pb2_grpc

    request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec={"name": "images"})
    assert refusal(stub.GetModelMetadata, request)[1].startswith("GetModelMetadataRequest must specify")
    request.metadata_field.append("signature_def")
    found = stub.GetModelMetadata(request, timeout=30)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert found.metadata["signature_def"].Unpack(signatures)
    assert {"serving_default", "serving_bytes", "classify"} <= set(signatures.signature_def)
    status = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(
        get_model_status_pb2.GetModelStatusRequest(model_spec={"name": "images"}), timeout=30
    )
    assert [(v.version, v.State.Name(v.state)) for v in status.model_version_status] == [(7, "AVAILABLE")]


def test_classify_regress_and_multi_inference_over_grpc(stub):
    import tensorflow as tf
    from tensorflow_serving.apis import classification_pb2, inference_pb2, regression_pb2

    example = tf.train.Example()
    example.features.feature["image/encoded"].bytes_list.value.append(encoded("red"))
    request = classification_pb2.ClassificationRequest(model_spec={"name": "images", "signature_name": "classify"})
    assert refusal(stub.Classify, request) == ("INVALID_ARGUMENT", "Input is empty.")
    request.input.example_list.examples.append(example)
    found = stub.Classify(request, timeout=30)
    assert found.result.classifications[0].classes[0].label == "cat" and found.model_spec.version.value == 7

    number = tf.train.Example()
    number.features.feature["x"].float_list.value.append(3.0)
    spec = {"name": "half_plus_two", "signature_name": "regress"}
    request = regression_pb2.RegressionRequest(model_spec=spec, input={"example_list": {"examples": [number]}})
    assert [r.value for r in stub.Regress(request, timeout=30).result.regressions] == [3.5]

    task = inference_pb2.InferenceTask(model_spec=spec, method_name="tensorflow/serving/regress")
    request = inference_pb2.MultiInferenceRequest(tasks=[task], input={"example_list": {"examples": [number]}})
    [result] = stub.MultiInference(request, timeout=30).results
    assert result.regression_result.regressions[0].value == 3.5 and result.model_spec.signature_name == "regress"
    request.tasks.append(task)
    assert refusal(stub.MultiInference, request)[1] == "Duplicate evaluation of signature: regress"
    request.tasks[1].model_spec.name = "images"
    assert "must access the same model name" in refusal(stub.MultiInference, request)[1]
    request = inference_pb2.MultiInferenceRequest(tasks=[{"model_spec": spec, "method_name": "other"}])
    assert refusal(stub.MultiInference, request) == ("UNIMPLEMENTED", "Unsupported signature method_name: other")


def test_the_socket_answers_too(server, stub):
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    [socket] = [part.split("=")[1] for part in _command_line(server.pid) if part.startswith("--grpc_socket_path=")]
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        other = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = predict_request("half_plus_two", x=[1.0])
        assert other.Predict(request, timeout=30) == stub.Predict(request, timeout=30)


def _command_line(pid):
    done = subprocess.run(["ps", "-o", "args=", "-ww", "-p", str(pid)], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_prometheus_metrics_have_the_names_of_the_real_server(server):
    ask(server, f"{LINE}:predict", {"instances": [1.0]})
    ask(server, f"{LINE}:predict", {"instances": ["a"]})
    with urllib.request.urlopen(f"{server.rest}/monitoring/prometheus/metrics", timeout=30) as answer:
        lines = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#"))
    counts = [
        f':tensorflow:serving:request_count{{model_name="half_plus_two",status="{code}"}}'
        for code in ("OK", "INVALID_ARGUMENT")
    ]
    assert all(int(lines[name]) >= 1 for name in counts)
    labels = 'model_name="half_plus_two",API="predict",entrypoint="REST"'
    total = int(lines[f":tensorflow:serving:request_latency_count{{{labels}}}"])
    assert total == int(lines[f':tensorflow:serving:request_latency_bucket{{{labels},le="+Inf"}}']) >= 2


# -- clients of others -----------------------------------------------------------------------------------


def test_ovmsclient_over_grpc_and_http(server):
    import numpy as np

    ovmsclient = pytest.importorskip("ovmsclient", reason="pip install ovmsclient")
    for make, address in ((ovmsclient.make_grpc_client, server.grpc), (ovmsclient.make_http_client, server.rest[7:])):
        client = make(address)
        line = ("half_plus_two", 1)  # its version 0 means the newest, to TensorFlow Serving it is one like others
        assert client.get_model_status(*line)[1]["state"] == "AVAILABLE"
        found = client.predict({"x": np.array([1, 2, 5], np.float32)}, *line)
        np.testing.assert_allclose(found, [2.5, 3.0, 4.5])
        with pytest.raises(ovmsclient.tfs_compat.base.errors.ModelNotFoundError):
            client.get_model_status("none")
    found = ovmsclient.make_grpc_client(server.grpc).get_model_metadata(*line)  # its HTTP client expects other keys
    assert found["inputs"] == {"x": {"shape": [-1], "dtype": "DT_FLOAT"}}


def test_plain_curl(server, tmp_path):
    (tmp_path / "body.json").write_text(json.dumps({"instances": [1.0, 2.0, 5.0]}))
    line = [
        "curl",
        "--silent",
        "--noproxy",
        "*",
        "--data",
        f"@{tmp_path / 'body.json'}",
        f"{server.rest}{LINE}:predict",
    ]
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("there is no curl")
    assert json.loads(done.stdout) == {"predictions": [2.5, 3.0, 4.5]}


# -- starting and ending ---------------------------------------------------------------------------------


def test_xla_is_off_as_in_a_stock_server(server):
    status, found = ask(server, "/v1/models/xla:predict", {"instances": [1.0]})
    assert status == 500 and "XLA compilation disabled" in found["error"]


def test_running_serves_what_is_asked_for_and_ends(exports):
    with serving.running(exports, ["xla"], backend="embedded", flags=["--xla_cpu_compilation_enabled"]) as running:
        assert (running.backend, running.rest[:17]) == ("embedded", "http://127.0.0.1:")
        assert ask(running, "/v1/models/xla:predict", {"instances": [1.0]}) == (200, {"predictions": [2.0]})
        assert ask(running, "/v1/models/images")[0] == 404  # was not asked for
    with pytest.raises(OSError, match="refused"):
        ask(running, LINE)


def test_an_unknown_model_is_told_with_those_that_there_are(exports, tmp_path):
    with pytest.raises(UserError, match=r"published model 'half'; .*half_plus_two"), serving.running(exports, ["half"]):
        pass
    with pytest.raises(UserError, match="holds no published model; type: frostline run"), serving.running(tmp_path, []):
        pass


def test_a_server_that_cannot_start_says_why(exports, tmp_path):
    def start(*flags):
        with serving.running(exports, [], backend="embedded", flags=flags):
            pass

    with pytest.raises(UserError, match="--prot is no flag that the embedded server has; did you mean 'port'"):
        start("--prot=1")
    (tmp_path / "batching.config").write_text("max_bath_size { value: 8 }")
    with pytest.raises(Died, match=r'batching.config: 1:1 : .* has no field named "max_bath_size"'):
        start("--enable_batching", f"--batching_parameters_file={tmp_path / 'batching.config'}")


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(serving.backends, "_start", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (free,), used = serving.backends._free_ports(1), taken.getsockname()[1]
        for port, rest, flag in [(used, free, "--port"), (free, used, "--rest_api_port")]:
            flags = ["--model_base_path=x", f"--port={port}", f"--rest_api_port={rest}"]
            with pytest.raises(UserError, match=f"^port {used} is in use; give another {flag}$"):
                serving.serve(None, "embedded", "127.0.0.1", flags)
    with pytest.raises(UserError, match=r"^cannot listen on port \d+ of 192.0.2.1: "):
        serving.serve(None, "embedded", "192.0.2.1", ["--model_base_path=x", f"--port={free}"])


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_is_listened_on(host):
    import asyncio

    from frostline.serving import core, flags, grpc_api, rest

    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            ports = serving.backends._free_ports(2)
    except OSError as error:
        pytest.skip(f"no IPv6: {error}")

    async def listen():
        served = core.make(
            flags.parse([f"--host={host}", f"--port={ports[0]}", f"--rest_api_port={ports[1]}", "--model_base_path=x"])
        )
        server, runner = await grpc_api.start(served), await rest.start(served, None)
        try:
            for port in ports:
                (await asyncio.open_connection("::1", port))[1].close()
        finally:
            await server.stop(None)
            await runner.cleanup()

    asyncio.run(listen())
    assert flags.address("::1", 1) == "[::1]:1" and flags.address("127.0.0.1", 1) == "127.0.0.1:1"


def test_the_command_says_what_it_is_and_ends_quietly_on_ctrl_c(exports):
    port, rest = serving.backends._free_ports(2)
    line = [sys.executable, "-m", "frostline.cli", "serve", str(exports), "--backend", "embedded"]
    child = subprocess.Popen(
        [*line, f"--port={port}", f"--rest_api_port={rest}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    server = serving.Server(f"127.0.0.1:{port}", f"http://127.0.0.1:{rest}", "embedded", child.pid)
    serving_models.until(lambda: _answers(server), 300)
    os.killpg(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0 and "Traceback" not in err
    assert out.splitlines() == [
        "models: half_plus_two, images, xla",
        "backend: embedded, a small server of ours for development, with the same API",
    ]
    assert f"the embedded development server answers: gRPC on 127.0.0.1:{port}" in err and "XLA is off" in err


def test_a_background_job_of_a_script_ends_on_sigterm(tmp_path):
    binary = tmp_path / "tensorflow_model_server"
    binary.write_text(f"#!{sys.executable}\nimport signal\nprint('up', flush=True)\nsignal.pause()\n")
    binary.chmod(0o755)
    port, rest = serving.backends._free_ports(2)
    flags = ["--model_base_path=anything", f"--port={port}", f"--rest_api_port={rest}"]
    child = subprocess.Popen(
        [sys.executable, "-m", "frostline.cli", "serve", "--backend", "binary", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as a shell starts them
        start_new_session=True,
    )
    try:
        assert child.stdout.readline().startswith("backend: binary") and child.stdout.readline() == "up\n"
        child.terminate()
        assert child.communicate(timeout=60) == ("", "")  # the server, too, has closed what it writes to
        assert child.returncode == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def _answers(server):
    try:
        return ask(server, LINE)[0] == 200
    except OSError:
        return False


def test_the_parent_needs_no_tensorflow():
    code = "import sys; from frostline import serving; print([m for m in sys.modules if m == 'tensorflow'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
