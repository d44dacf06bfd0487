"""Requests that a server answers before it offers a version, so that nobody else has to wait for the first answer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from frostline import batching
from frostline.batching import MOST_WARMUP as MOST
from frostline.batching import WARMUP_FILE as FILE

EXAMPLE_KEY = "image/encoded"  # of the tf.Example that `classify` reads
SIDE = 16  # of the picture in requests that hold files; any is resized


def write(folder: Path, name: str, size: int) -> None:
    """Write a request for each signature and allowed batch size of a version folder; images have `size` pixels."""
    import tensorflow as tf

    (folder / FILE).parent.mkdir()
    with tf.io.TFRecordWriter(str(folder / FILE)) as records:
        for request in _requests(name, size):
            records.write(request.SerializeToString(deterministic=True))


def read(folder: Path) -> list[Any]:
    """The requests of a version folder, each a PredictionLog; raises ValueError where the file is none."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    if not (folder / FILE).is_file():
        raise ValueError(f"there is no {FILE}")
    try:
        found = [PredictionLog.FromString(x.numpy()) for x in tf.data.TFRecordDataset(str(folder / FILE))]
    except (tf.errors.OpError, DecodeError) as error:
        raise ValueError(f"{FILE} is damaged") from error
    if not 0 < len(found) <= MOST:
        raise ValueError(f"{FILE} holds {len(found)} requests, 1 to {MOST} are allowed")
    return found


def feeds(request: Any) -> tuple[str, dict[str, Any]]:
    """The signature that a PredictionLog asks for, and arrays for its inputs by alias; raises ValueError."""
    import numpy as np
    import tensorflow as tf

    kind = request.WhichOneof("log_type")
    if kind == "predict_log":
        asked = request.predict_log.request
        return asked.model_spec.signature_name, {name: tf.make_ndarray(x) for name, x in asked.inputs.items()}
    if kind == "classify_log":
        asked = request.classify_log.request
        examples = [x.SerializeToString() for x in asked.input.example_list.examples]
        return asked.model_spec.signature_name, {"inputs": np.array(examples, object)}
    raise ValueError(f"{FILE} holds a {kind}, which no signature of ours answers")


def example(file: bytes) -> Any:
    """A tf.Example with one image, as `classify` takes it once it is serialized."""
    import tensorflow as tf

    image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[file]))
    return tf.train.Example(features=tf.train.Features(feature={EXAMPLE_KEY: image}))


def _requests(name: str, size: int) -> Iterator[Any]:
    import tensorflow as tf
    from tensorflow.core.framework.tensor_pb2 import TensorProto
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    file = tf.io.encode_jpeg(tf.fill([SIDE, SIDE, 3], tf.constant(128, tf.uint8))).numpy()
    for batch in batching.ALLOWED_SIZES:
        # A tensor with fewer values than its shape has places is filled up with the last one.
        pixels = TensorProto(dtype=tf.uint8.as_datatype_enum, int_val=[128])
        files = TensorProto(dtype=tf.string.as_datatype_enum, string_val=[file])
        for tensor, shape in ((pixels, (batch, size, size, 3)), (files, (batch,))):
            tensor.tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
        given = {"serving_default": ("images", pixels), "serving_bytes": ("image_bytes", files)}
        for signature, (alias, tensor) in given.items():
            log = PredictionLog()
            _address(log.predict_log.request, name, signature).inputs[alias].CopyFrom(tensor)
            yield log
        log = PredictionLog()
        examples = _address(log.classify_log.request, name, "classify").input.example_list.examples
        examples.extend([example(file)] * batch)
        yield log


def _address(request: Any, name: str, signature: str) -> Any:
    request.model_spec.name, request.model_spec.signature_name = name, signature
    return request
