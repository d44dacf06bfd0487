"""TensorFlow Serving's configuration files: text protos, some of whose definitions the Python package lacks."""

from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from google.protobuf.message import Message
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from frostline.errors import UserError

__all__ = ["BatchingParameters", "ModelServerConfig", "MonitoringConfig", "parse", "read"]

M = TypeVar("M", bound=Message)

_INT, _TEXT, _TRUTH = (f".google.protobuf.{name}Value" for name in ("Int64", "String", "Bool"))
_NUMBERS = {"int64": 3, "bool": 8, "string": 9}  # FieldDescriptorProto.Type
# Field 1, 2, ... of each message; a dot begins the name of a message type.
_MESSAGES: dict[str, dict[str, str]] = {
    "BatchingParameters": {
        **dict.fromkeys(("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"), _INT),
        "thread_pool_name": _TEXT,
        "allowed_batch_sizes": "repeated int64",
        "pad_variable_length_inputs": "bool",
        "enable_large_batch_splitting": _TRUTH,
        "max_execution_batch_size": _INT,
    },
    "PrometheusConfig": {"enable": "bool", "path": "string"},
    "MonitoringConfig": {"prometheus_config": ".tensorflow.serving.PrometheusConfig"},
}


def _classes() -> list[Any]:
    """The classes of `_MESSAGES`, in a pool of their own, where nobody else's definitions collide with them."""
    file = descriptor_pb2.FileDescriptorProto(name="frostline.proto", package="tensorflow.serving", syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for number, (name, kind) in enumerate(fields.items(), start=1):
            label, plain = (3 if kind.startswith("repeated") else 1), kind.removeprefix("repeated ")
            field = described.field.add(name=name, number=number, label=label, type=_NUMBERS.get(plain, 11))
            if field.type == 11:
                field.type_name = plain
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}")) for name in _MESSAGES
    ]


BatchingParameters, _, MonitoringConfig = _classes()


def parse(text: str, message: type[M], source: str) -> M:
    """The text proto as a message; raises UserError that names `source`, the line and what is wrong with it."""
    try:
        return text_format.Parse(text, message())
    except text_format.ParseError as error:
        raise UserError(f"{source}: {error}") from error


def read(path: Path, message: type[M]) -> M:
    """Read a text proto file; raises UserError."""
    try:
        return parse(path.read_text(encoding="utf-8"), message, str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
