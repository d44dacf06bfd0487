"""What speaks just enough of TensorFlow Serving's API to test a client, over gRPC and over REST.

One model, `tiny`, versions 1 (label `stable`) and 2: it says how bright images of 2x2 pixels are, and how long
encoded ones, unless these begin with `bad`. Unlike the embedded server it refuses, hangs up and answers nonsense when
it is told to.
"""

import base64
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import Mock

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from frostline.serving.status import HTTP_STATUS, Refused

LABELS = {"stable": 1}


class Model:
    """The behaviour both APIs share; `failures` are codes that refuse the next predictions, "" for none."""

    def __init__(self):
        self.size = 2
        self.failures = []
        self.asked = []
        self.single = False

    def version(self, name, version, label):
        if label not in (None, *LABELS):  # first, as the real one does, whatever the model
            raise Refused("INVALID_ARGUMENT", f"Unrecognized servable version label: {label}")
        if name != "tiny" or version not in (None, 1, 2):
            raise Refused("NOT_FOUND", f"Servable not found for request: Specific({name}, {version})")
        return LABELS[label] if label else version or 2

    def predict(self, version, signature, images):
        self.asked.append((version, signature, len(images)))
        if self.failures and (code := self.failures.pop(0)):
            raise Refused(code, "as the test wants it")
        if signature == "serving_bytes" and any(bytes(image).startswith(b"bad") for image in images):
            raise Refused("INVALID_ARGUMENT", "Unknown image file format.")
        lengths = [len(i) for i in images] if signature == "serving_bytes" else np.mean(images, (1, 2, 3))
        if self.single:
            return {"score": np.array(lengths, np.float32)}
        return {
            "score": np.array(lengths, np.float32),
            "top_k_scores": np.array([[n, -1 - n] for n in lengths], np.float32),
            "top_k_classes": np.array([["ä", "b"] if n > 10 else ["b", "ä"] for n in lengths], object),
            "version": np.full(len(images), version, np.int64),
        }

    def metadata(self, name, version):
        def tensor(dtype, *sizes):
            return {"dtype": dtype, "tensor_shape": {"dim": [{"size": str(size)} for size in sizes]}}

        outputs = {"score": tensor("DT_FLOAT", -1)}
        if not self.single:
            outputs |= {"top_k_classes": tensor("DT_STRING", -1, 2), "top_k_scores": tensor("DT_FLOAT", -1, 2)}
            outputs |= {"version": tensor("DT_INT64", -1)}
        pixels, encoded = tensor("DT_UINT8", -1, self.size, self.size, 3), tensor("DT_STRING", -1)
        signatures = {
            "serving_default": {"inputs": {"images": pixels}, "outputs": outputs},
            "serving_bytes": {"inputs": {"image_bytes": encoded}, "outputs": outputs},
            "__saved_model_init_op": {"outputs": outputs},
        }
        about = {"signature_def": {"signature_def": signatures}}
        return {"model_spec": {"name": name, "version": str(version)}, "metadata": about}

    def status(self, name):
        if name != "tiny":
            raise Refused("NOT_FOUND", f"Could not find any versions of model {name}")
        versions = [{"version": "1", "state": "AVAILABLE"}, {"version": "2", "state": "AVAILABLE"},
                    {"version": "3", "state": "LOADING"}]  # fmt: skip
        return {"model_version_status": versions}


# -- gRPC ----------------------------------------------------------------------------------------------


def grpc_server(model):
    """A started server and its address."""

    def guarded(work):
        def call(request, context):
            try:
                return work(request)
            except Refused as error:
                context.abort(grpc.StatusCode[error.code], error.message)

        return call

    def which(spec):
        version = spec.version.value if spec.HasField("version") else None
        return model.version(spec.name, version, spec.version_label or None)

    def predict(request):
        version = which(request.model_spec)
        (tensor,) = request.inputs.values()
        found = model.predict(version, request.model_spec.signature_name, tf.make_ndarray(tensor))
        outputs = {name: tf.make_tensor_proto(array) for name, array in found.items()}
        return predict_pb2.PredictResponse(outputs=outputs)

    def metadata(request):
        spec = request.model_spec
        about = model.metadata(spec.name, which(spec))
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.version.value = int(about["model_spec"]["version"])
        signatures = json_format.ParseDict(about["metadata"]["signature_def"], get_model_metadata_pb2.SignatureDefMap())
        response.metadata["signature_def"].Pack(signatures)
        return response

    def status(request):
        found = model.status(request.model_spec.name)
        return json_format.ParseDict(found, get_model_status_pb2.GetModelStatusResponse())

    calls = Mock(Predict=guarded(predict), GetModelMetadata=guarded(metadata), GetModelStatus=guarded(status))
    server = grpc.server(ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(calls, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(calls, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"grpc://127.0.0.1:{port}"


# -- REST ----------------------------------------------------------------------------------------------

PATH = re.compile(r"/v1/models/(\w+)(?:/versions/(\d+)|/labels/(\w+))?(/metadata|:predict)?")


def rest_server(model):
    """A started server and its address; its `connections` counts how often one was opened."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self):
            super().setup()
            self.server.connections += 1

        def log_message(self, *args):
            pass

        def do_GET(self):
            self.answer(None)

        def do_POST(self):
            self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def answer(self, body):
            try:
                status, found = 200, respond(model, self.path, body)
            except Refused as error:
                status, found = HTTP_STATUS[error.code], {"error": error.message}
            raw = self.server.garbage or json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)
            if self.server.hang_up:  # without a word of it in the header, as after an idle time
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.connections, server.hang_up, server.garbage = 0, False, None
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


def respond(model, path, body):
    name, version, label, verb = PATH.fullmatch(path).groups()
    if verb is None:
        return model.status(name)
    version = model.version(name, int(version) if version else None, label)
    if verb == "/metadata":
        return model.metadata(name, version)
    rows = body["instances"]
    images = [base64.b64decode(r["b64"]) for r in rows] if isinstance(rows[0], dict) else np.array(rows)
    found = {key: array.tolist() for key, array in model.predict(version, body["signature_name"], images).items()}
    if len(found) == 1:
        return {"predictions": found["score"]}
    return {"predictions": [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]}
