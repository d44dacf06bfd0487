"""TensorFlow Serving's own flags, those that mean something to the embedded server."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from frostline.errors import UserError, nearest


@dataclass(frozen=True)
class Flags:
    """The flags with TensorFlow Serving's names and defaults; `host` alone is ours."""

    host: str = "127.0.0.1"
    port: int = 8500
    rest_api_port: int = 0
    rest_api_timeout_in_ms: int = 30_000
    grpc_socket_path: str = ""
    grpc_max_threads: int = 4 * (os.cpu_count() or 1)
    model_name: str = "default"
    model_base_path: str = ""
    model_config_file: str = ""
    model_config_file_poll_wait_seconds: int = 0
    file_system_poll_wait_seconds: int = 1
    allow_version_labels_for_unavailable_models: bool = False
    num_load_threads: int = 0
    max_num_load_retries: int = 5
    load_retry_interval_micros: int = 60_000_000
    enable_model_warmup: bool = True
    num_request_iterations_for_warmup: int = 1
    enable_batching: bool = False
    batching_parameters_file: str = ""
    enable_per_model_batching_parameters: bool = False
    monitoring_config_file: str = ""
    saved_model_tags: str = "serve"
    enable_serialization_as_tensor_content: bool = False
    enable_signature_method_name_check: bool = False
    xla_cpu_compilation_enabled: bool = False
    xla_gpu_compilation_enabled: bool = False
    per_process_gpu_memory_fraction: float = 0.0
    tensorflow_session_parallelism: int = 0
    tensorflow_intra_op_parallelism: int = 0
    tensorflow_inter_op_parallelism: int = 0


DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Flags)}
TRUTH = {"true": True, "1": True, "false": False, "0": False}


def parse(arguments: Sequence[str]) -> Flags:
    """`--name=value`, or `--name` for a true boolean, as TensorFlow Serving reads them; raises UserError."""
    given: dict[str, Any] = {}
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if name not in DEFAULTS:
            raise UserError(
                f"--{name}: no flag of TensorFlow Serving that the embedded server has; {nearest(name, DEFAULTS)}"
            )
        if not argument.startswith("--") or (not equals and not isinstance(DEFAULTS[name], bool)):
            raise UserError(f"{argument}: TensorFlow Serving's flags are written --name=value")
        given[name] = _value(name, value if equals else "true")
    flags = Flags(**given)
    if flags.batching_parameters_file and not flags.enable_batching:
        raise UserError("--batching_parameters_file supplied without --enable_batching")
    if not flags.model_config_file and not flags.model_base_path:
        raise UserError("give --model_config_file=FILE, or --model_name=NAME --model_base_path=DIR")
    one = flags.tensorflow_intra_op_parallelism or flags.tensorflow_inter_op_parallelism
    if flags.tensorflow_session_parallelism and one:
        raise UserError(
            "--tensorflow_session_parallelism sets both pools; give it, or the flags for intra and inter op"
        )
    if flags.rest_api_port and flags.rest_api_port == flags.port:
        raise UserError("--rest_api_port cannot be the same as --port")
    return flags


def _value(name: str, text: str) -> Any:
    kind = type(DEFAULTS[name])
    try:
        return TRUTH[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        expected = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise UserError(f"--{name}={text}: expected {expected}") from error
