"""Tensors in protos and arrays, both ways, and how much of them is let in."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from frostline.serving.status import Refused, invalid

if TYPE_CHECKING:
    import numpy as np

MAX_REQUEST_BYTES = 64 * 2**20
MAX_TENSOR_BYTES = 256 * 2**20  # a proto may repeat one value many times
MAX_PIXELS = 48 * 2**20  # of all encoded images of a request; decoding and resizing takes some 15 bytes for each

# Field of TensorProto that holds values of a type, by the type's name.
FIELDS = {
    "DT_FLOAT": "float_val",
    "DT_DOUBLE": "double_val",
    "DT_INT32": "int_val",
    "DT_INT16": "int_val",
    "DT_INT8": "int_val",
    "DT_UINT8": "int_val",
    "DT_UINT16": "int_val",
    "DT_STRING": "string_val",
    "DT_INT64": "int64_val",
    "DT_BOOL": "bool_val",
    "DT_HALF": "half_val",
    "DT_BFLOAT16": "half_val",
    "DT_UINT32": "uint32_val",
    "DT_UINT64": "uint64_val",
    "DT_COMPLEX64": "scomplex_val",
    "DT_COMPLEX128": "dcomplex_val",
}


def array(proto: Any, alias: str) -> np.ndarray:
    """The values of a TensorProto; raises Refused where it is malformed, or too large for this server."""
    import tensorflow as tf

    sizes = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in sizes):
        raise invalid(f"tensor parsing error: {alias}")
    try:
        dtype = tf.dtypes.as_dtype(proto.dtype)
        if math.prod(sizes) * max(1, dtype.size or 1) > MAX_TENSOR_BYTES:
            raise Refused("RESOURCE_EXHAUSTED", f"{alias}: a tensor {sizes} is too large; {MAX_TENSOR_BYTES} bytes")
        found = tf.make_ndarray(proto)
    except (TypeError, ValueError) as error:
        raise invalid(f"tensor parsing error: {alias}") from error
    if found.dtype == object:
        check_images(found.ravel().tolist())
    return found


def proto(values: np.ndarray, dtype: int, as_content: bool = False) -> Any:
    """A TensorProto of type `dtype` with one typed value per element, as clients expect, or with raw content."""
    import numpy as np
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2, types_pb2

    if as_content and dtype != types_pb2.DT_STRING:
        return tf.make_tensor_proto(values)
    name = types_pb2.DataType.Name(dtype)
    if name not in FIELDS:
        raise Refused("UNIMPLEMENTED", f"outputs of type {name} are not answered")
    made = tensor_pb2.TensorProto(dtype=dtype)
    for size in values.shape:
        made.tensor_shape.dim.add(size=size)
    flat = values.ravel()
    if name in ("DT_HALF", "DT_BFLOAT16"):
        flat = flat.view(np.uint16)
    elif name in ("DT_COMPLEX64", "DT_COMPLEX128"):
        flat = flat.view(flat.real.dtype)
    getattr(made, FIELDS[name]).extend(flat.tolist())
    return made


def type_name(dtype: int) -> str:
    """TensorFlow's word for a type of its enumeration, as in its errors."""
    from tensorflow.core.framework import types_pb2

    return types_pb2.DataType.Name(dtype).removeprefix("DT_").lower() if dtype in types_pb2.DataType.values() else "?"


def check_images(values: list[bytes]) -> None:
    """Refuse encoded images that would decode to more pixels than a request may hold; reads their headers alone.

    Values are images, or serialized tf.Examples that hold some.
    """
    pixels = sum(map(_pixels, values))
    if pixels > MAX_PIXELS:
        raise invalid(f"the images of a request may decode to {MAX_PIXELS} pixels here; these have more: {pixels}")


def _pixels(value: bytes) -> int:
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(value), formats=("JPEG", "PNG", "GIF", "BMP", "WEBP"))
        return image.width * image.height * int(getattr(image, "n_frames", 1))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return MAX_PIXELS + 1
    except Exception:  # not an image, or one that TensorFlow will not decode either
        return sum(map(_pixels, _example_images(value)))


def _example_images(value: bytes) -> list[bytes]:
    from google.protobuf.message import DecodeError
    from tensorflow.core.example import example_pb2

    try:
        features = example_pb2.Example.FromString(value).features.feature
    except DecodeError:
        return []
    return [part for feature in features.values() for part in feature.bytes_list.value]
