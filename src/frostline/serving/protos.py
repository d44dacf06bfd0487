"""TensorFlow Serving's configuration files: text protos, some of whose definitions the Python package lacks."""

from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from google.protobuf.message import Message
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from frostline.errors import UserError

__all__ = ["BatchingParameters", "ModelServerConfig", "MonitoringConfig", "parse", "read"]

M = TypeVar("M", bound=Message)

_PACKAGE = "tensorflow.serving"
_TYPES = {"int64": 3, "bool": 8, "string": 9}  # FieldDescriptorProto.Type
# Name and type of field 1, 2, ... of each message; a capital letter begins a message type.
_MESSAGES = {
    "BatchingParameters": (
        ("max_batch_size", "google.protobuf.Int64Value"),
        ("batch_timeout_micros", "google.protobuf.Int64Value"),
        ("max_enqueued_batches", "google.protobuf.Int64Value"),
        ("num_batch_threads", "google.protobuf.Int64Value"),
        ("thread_pool_name", "google.protobuf.StringValue"),
        ("allowed_batch_sizes", "repeated int64"),
        ("pad_variable_length_inputs", "bool"),
        ("enable_large_batch_splitting", "google.protobuf.BoolValue"),
        ("max_execution_batch_size", "google.protobuf.Int64Value"),
    ),
    "PrometheusConfig": (("enable", "bool"), ("path", "string")),
    "MonitoringConfig": (("prometheus_config", f"{_PACKAGE}.PrometheusConfig"),),
}


def _classes() -> dict[str, Any]:
    """The message classes of `_MESSAGES`, in a pool of their own, so that nobody else's definitions collide."""
    file = descriptor_pb2.FileDescriptorProto(name="frostline/serving.proto", package=_PACKAGE, syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for number, (name, kind) in enumerate(fields, start=1):
            label, plain = (3, kind.removeprefix("repeated ")) if kind.startswith("repeated ") else (1, kind)
            field = described.field.add(name=name, number=number, label=label)
            if plain in _TYPES:
                field.type = _TYPES[plain]
            else:
                field.type, field.type_name = 11, f".{plain}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


_MADE = _classes()
BatchingParameters: Any = _MADE["BatchingParameters"]
MonitoringConfig: Any = _MADE["MonitoringConfig"]


def parse(text: str, message: type[M], source: str) -> M:
    """The text proto as a message; raises UserError that names `source`, the line and what is wrong with it."""
    try:
        return text_format.Parse(text, message())
    except text_format.ParseError as error:
        raise UserError(f"{source}: {error}") from error


def read(path: Path, message: type[M]) -> M:
    """Read a text proto file; raises UserError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return parse(text, message, str(path))
