"""Tensors in protos and arrays, both ways, and how much of them is let in."""

import io
import math
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from PIL import Image
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.core.framework.types_pb2 import DataType

from frostline.serving.status import Refused, invalid

MAX_REQUEST_BYTES = 64 * 2**20
MAX_TENSOR_BYTES = 256 * 2**20  # a proto may repeat one value many times
MAX_PIXELS = 48 * 2**20  # of all encoded images of a request; decoding and resizing takes some 15 bytes for each

# The types whose values a field of TensorProto holds.
FIELDS = {
    "float_val": ("DT_FLOAT",),
    "double_val": ("DT_DOUBLE",),
    "int_val": ("DT_INT32", "DT_INT16", "DT_INT8", "DT_UINT8", "DT_UINT16"),
    "int64_val": ("DT_INT64",),
    "uint32_val": ("DT_UINT32",),
    "uint64_val": ("DT_UINT64",),
    "bool_val": ("DT_BOOL",),
    "string_val": ("DT_STRING",),
    "half_val": ("DT_HALF", "DT_BFLOAT16"),
}


def type_name(dtype: int) -> str:
    """TensorFlow's word for a type of its enumeration, as in its errors."""
    return DataType.Name(dtype).removeprefix("DT_").lower() if dtype in DataType.values() else f"type {dtype}"


def array(proto: Any, alias: str) -> np.ndarray:
    """The values of a TensorProto; raises Refused where it is malformed, or too large for this server."""
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    try:
        if math.prod(sizes) * (tf.dtypes.as_dtype(proto.dtype).size or 1) > MAX_TENSOR_BYTES:
            raise Refused("RESOURCE_EXHAUSTED", f"{alias}: a tensor {sizes} has more than {MAX_TENSOR_BYTES} bytes")
        found = tf.make_ndarray(proto)
    except (TypeError, ValueError) as error:
        raise invalid(f"tensor parsing error: {alias}") from error
    if found.dtype == object:
        check_images(found.ravel().tolist())
    return found


def proto(values: np.ndarray, dtype: int) -> Any:
    """A TensorProto of type `dtype` with one typed value per element, as simple clients expect."""
    name = DataType.Name(dtype)
    field = next((field for field, names in FIELDS.items() if name in names), None)
    if field is None:
        raise Refused("UNIMPLEMENTED", f"outputs of type {name} are not answered")
    flat = values.ravel().view(np.uint16) if field == "half_val" else values.ravel()
    shape = {"dim": [{"size": size} for size in values.shape]}
    return TensorProto(dtype=dtype, tensor_shape=shape, **{field: flat.tolist()})


def check_images(values: list[bytes]) -> None:
    """Refuse encoded images that would decode to more pixels than a request may hold; reads their headers alone.

    Values are images, or serialized tf.Examples that hold some.
    """
    pixels = sum(map(_pixels, values))
    if pixels > MAX_PIXELS:
        raise invalid(f"the images of a request may decode to {MAX_PIXELS} pixels here; these have more: {pixels}")


def _pixels(value: bytes) -> int:
    try:
        image = Image.open(io.BytesIO(value), formats=("JPEG", "PNG", "GIF", "BMP", "WEBP"))
        return image.width * image.height * int(getattr(image, "n_frames", 1))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return MAX_PIXELS + 1
    except Exception:  # not an image, or one that TensorFlow will not decode either
        try:
            features = tf.train.Example.FromString(value).features.feature.values()
        except DecodeError:
            return 0
        return sum(_pixels(part) for feature in features for part in feature.bytes_list.value)
