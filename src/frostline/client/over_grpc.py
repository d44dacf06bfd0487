"""TensorFlow Serving's gRPC services. Importing its stubs imports TensorFlow, which takes seconds."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from frostline.client.messages import Request, ServingError, Which

if TYPE_CHECKING:
    import numpy as np

    from frostline.client.messages import Images

PREDICT = "/tensorflow.serving.PredictionService/Predict"
OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # a client's default is 4 MiB
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),  # our own waits decide when to try again
    ("grpc.min_reconnect_backoff_ms", 100),
]


def options(host: str) -> list[tuple[str, int]]:
    """Those of a channel; to one's own machine it passes by the proxy that the environment names."""
    try:
        own = ipaddress.ip_address(host).is_loopback
    except ValueError:
        own = host == "localhost"
    return [*OPTIONS, ("grpc.enable_http_proxy", 0)] if own else OPTIONS


class Grpc:
    """An open channel; may be used from several threads."""

    def __init__(self, url: str, address: str, timeout: float):
        import grpc
        from tensorflow_serving.apis import model_service_pb2_grpc, predict_pb2, prediction_service_pb2_grpc

        self._url = url
        self._timeout = timeout
        self._channel = grpc.insecure_channel(address, options(urlsplit(url).hostname or ""))
        self._predict = self._channel.unary_unary(PREDICT, None, predict_pb2.PredictResponse.FromString)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def request(self, which: Which, signature: str, name: str, images: Images) -> Request:
        """See `request`."""
        return request(which, signature, name, images)

    def send(self, request: Request) -> dict[str, np.ndarray]:
        """The outputs of a Predict call."""
        return answer(self._call(self._predict, request.payload))

    def metadata(self, which: Which) -> dict[str, Any]:
        """The answer of GetModelMetadata in its JSON form."""
        from google.protobuf.json_format import MessageToDict
        from tensorflow_serving.apis import get_model_metadata_pb2

        asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        _specify(asked.model_spec, which)
        return MessageToDict(self._call(self._predictions.GetModelMetadata, asked), preserving_proto_field_name=True)

    def status(self, model: str) -> dict[str, Any]:
        """The answer of GetModelStatus in its JSON form."""
        from google.protobuf.json_format import MessageToDict
        from tensorflow_serving.apis import get_model_status_pb2

        asked = get_model_status_pb2.GetModelStatusRequest()
        asked.model_spec.name = model
        return MessageToDict(self._call(self._models.GetModelStatus, asked), preserving_proto_field_name=True)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _call(self, method: Callable[..., Any], message: Any) -> Any:
        with _explained(self._url, self._timeout):
            return method(message, timeout=self._timeout)


@contextmanager
def _explained(url: str, timeout: float) -> Iterator[None]:
    import grpc

    try:
        yield
    except grpc.RpcError as error:
        code, text = error.code().name, error.details()
        if code == "UNAVAILABLE":
            text = f"no answer ({text}); is the server up, and is this its gRPC port?"
        if code == "DEADLINE_EXCEEDED":
            text = f"no answer within {timeout:g} s"
        raise ServingError(code, f"{url}: {text}") from error


def request(which: Which, signature: str, name: str, images: Images) -> Request:
    """A PredictRequest whose input `name` is uint8 [N,H,W,3] or a list of encoded images, in binary form."""
    from tensorflow.core.framework import types_pb2
    from tensorflow_serving.apis import predict_pb2

    asked = predict_pb2.PredictRequest()
    _specify(asked.model_spec, which)
    asked.model_spec.signature_name = signature
    tensor = asked.inputs[name]
    if isinstance(images, list):
        tensor.dtype = types_pb2.DT_STRING
        tensor.string_val.extend(images)
        tensor.tensor_shape.dim.add(size=len(images))
    else:
        tensor.dtype = types_pb2.DT_UINT8
        tensor.tensor_content = images.tobytes()
        for size in images.shape:
            tensor.tensor_shape.dim.add(size=size)
    return Request(which, signature, PREDICT, asked.SerializeToString())


def _specify(spec: Any, which: Which) -> None:
    spec.name = which.model
    if which.version is not None:
        spec.version.value = which.version
    if which.label is not None:
        spec.version_label = which.label


def answer(response: Any) -> dict[str, np.ndarray]:
    """The outputs of a PredictResponse, strings as text; reads typed fields and `tensor_content` alike."""
    import tensorflow as tf

    arrays = {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}
    return {name: _text(array) if array.dtype == object else array for name, array in arrays.items()}


def _text(strings: np.ndarray) -> np.ndarray:
    """Object array of bytes -> array of str; left as it is where it is no UTF-8."""
    import numpy as np

    try:
        return np.array([one.decode() for one in strings.ravel()], dtype=np.str_).reshape(strings.shape)
    except UnicodeDecodeError:
        return strings
