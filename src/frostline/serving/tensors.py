"""Tensors in protos and arrays, both ways, and how much of them is let in."""

import io
import math
import re
import struct
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from PIL import Image
from tensorflow.core.framework.types_pb2 import DataType

from frostline.serving.status import Refused, invalid

MAX_REQUEST_BYTES = 64 * 2**20
MAX_TENSOR_BYTES = 256 * 2**20  # a proto may repeat one value many times
MAX_PIXELS = 48 * 2**20  # of all encoded images of a request; decoding and resizing takes some 15 bytes for each
MAX_STRINGS = 2**16  # of a tensor or of a list of examples; a proto may repeat them, too
PNG, GIF = b"\x89PNG\r\n\x1a\n", b"GIF8"
# A BMP is not among them: TensorFlow wants it to be as long as its size says.
IMAGES = (b"\xff\xd8\xff", PNG, GIF, b"RIFF")
JPEG_FRAME = re.compile(rb"\xff[\xc0-\xcf]..\x08(..)(..)", re.DOTALL)  # height and width follow the sample's bits

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
FIELD_OF = {DataType.Value(name): field for field, names in FIELDS.items() for name in names}


def type_name(dtype: int) -> str:
    """TensorFlow's word for a type of its enumeration, as in its errors."""
    found = DataType.DESCRIPTOR.values_by_number.get(dtype)
    return found.name.removeprefix("DT_").lower() if found else f"type {dtype}"


def array(proto: Any, alias: str) -> np.ndarray:
    """The values of a TensorProto; raises Refused where it is malformed, or too large for this server."""
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    number = math.prod(sizes)
    if any(size < 0 for size in sizes):
        raise invalid(f"tensor parsing error: {alias}")
    if proto.dtype == DataType.DT_STRING and number > MAX_STRINGS:
        raise Refused("RESOURCE_EXHAUSTED", f"{alias}: a tensor {sizes} has more than {MAX_STRINGS} strings")
    try:
        dtype = tf.dtypes.as_dtype(proto.dtype)
        if number * (dtype.size or 1) > MAX_TENSOR_BYTES:
            raise Refused("RESOURCE_EXHAUSTED", f"{alias}: a tensor {sizes} has more than {MAX_TENSOR_BYTES} bytes")
        if proto.tensor_content and dtype != tf.string:
            return np.frombuffer(proto.tensor_content, dtype.as_numpy_dtype).reshape(sizes)  # make_ndarray copies it
        found = tf.make_ndarray(proto)
    except (TypeError, ValueError) as error:
        raise invalid(f"tensor parsing error: {alias}") from error
    if found.dtype == object:
        check_images(found.ravel().tolist())
    return found


def write(proto: Any, values: np.ndarray, dtype: int) -> None:
    """Fill a TensorProto with one typed value per element, as simple clients expect; raises Refused."""
    field = FIELD_OF.get(dtype)
    if field is None:
        raise Refused("UNIMPLEMENTED", f"outputs of type {DataType.Name(dtype)} are not answered")
    proto.dtype = dtype
    for size in values.shape:
        proto.tensor_shape.dim.add(size=size)
    flat = values.ravel().view(np.uint16) if field == "half_val" else values.ravel()
    getattr(proto, field).extend(flat.tolist())


def check_images(values: list[bytes]) -> None:
    """Refuse encoded images that would decode to more pixels than a request may hold; reads their headers alone.

    Values are images, or serialized tf.Examples that hold some.
    """
    if len(values) > MAX_STRINGS:
        raise Refused("RESOURCE_EXHAUSTED", f"a request may hold {MAX_STRINGS} strings here; this one: {len(values)}")
    pixels = sum(_pixels(image) for value in values for image in _images(value))
    if pixels > MAX_PIXELS:
        raise invalid(f"the images of a request may decode to {MAX_PIXELS} pixels here; these have more: {pixels}")


def _images(value: bytes) -> list[bytes]:
    """What of a value TensorFlow would decode, by the first bytes that it goes by itself."""
    found = [value]
    if not value.startswith(IMAGES):
        try:
            features = tf.train.Example.FromString(value).features.feature.values()
        except DecodeError:
            return []
        found = [part for feature in features for part in feature.bytes_list.value]
    return [image for image in found if image.startswith(IMAGES)]


def _pixels(image: bytes) -> int:
    """What an image says that it decodes to; where Pillow cannot read it, the most that TensorFlow may find."""
    if image.startswith(PNG):
        width, height = struct.unpack_from(">II", image.ljust(24, b"\0"), 16)
        return width * height
    if image.startswith(GIF):
        return _gif_pixels(image)
    try:
        header = Image.open(io.BytesIO(image), formats=("JPEG", "WEBP"))
        return header.width * header.height * (getattr(header, "n_frames", 1) if header.format == "WEBP" else 1)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return MAX_PIXELS + 1
    except Exception:
        frames = JPEG_FRAME.findall(image)
        return max((int.from_bytes(height) * int.from_bytes(width) for height, width in frames), default=0)


def _gif_pixels(image: bytes) -> int:
    """The pixels of all frames, which TensorFlow decodes; one may be larger than the size that the file begins with."""
    pixels, at = 0, 13 + _gif_palette(image[10] if len(image) > 10 else 0)
    while image[at : at + 1] in (b"!", b","):
        if image[at] == ord(","):
            width, height, flags = struct.unpack_from("<HHB", image[at + 5 : at + 10].ljust(5, b"\0"))
            pixels += width * height
            at += 11 + _gif_palette(flags)
        else:
            at += 2
        while at < len(image) and image[at]:  # blocks of data; a file may end early, and is decoded as far as it goes
            at += 1 + image[at]
        at += 1
    return pixels


def _gif_palette(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 128 else 0
