"""TensorFlow Serving's own flags, those that mean something to the embedded server."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
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


FIELDS = {field.name: field for field in dataclasses.fields(Flags)}
# Flags of tensorflow_model_server that the embedded server has nothing for.
ELSEWHERE = frozenset(
    """
    allow_version_labels enable_cors_support enable_grpc_healthcheck_service enable_profiler
    flush_filesystem_caches force_allow_any_version_labels_for_unavailable_models grpc_channel_arguments
    grpc_max_connection_age_ms mixed_precision num_tflite_interpreters num_tflite_interpreters_per_pool num_tflite_pools
    num_unload_threads platform_config_file prefer_tflite_model remove_unused_fields_from_bundle_metagraph
    rest_api_enable_cors_support rest_api_num_threads skip_initialize_tpu ssl_config_file tensorflow_session_config_file
    thread_pool_factory_config_file total_model_memory_limit_bytes use_alts_credentials use_tflite_model
    """.split()  # noqa: SIM905
)


def parse(arguments: Sequence[str]) -> Flags:
    """`--name=value`, or `--name` for a true boolean, as TensorFlow Serving reads them; raises UserError."""
    given: dict[str, Any] = {}
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or (not equals and not isinstance(_default(name), bool)):
            raise UserError(f"{argument}: TensorFlow Serving's flags are written --name=value")
        given[name] = _value(name, value if equals else "true")
    flags = Flags(**given)
    _check(flags)
    return flags


def _default(name: str) -> Any:
    if name in ELSEWHERE:
        raise UserError(f"--{name} is a flag of tensorflow_model_server that the embedded server does not have")
    if name not in FIELDS:
        raise UserError(f"unknown flag --{name}; {nearest(name, FIELDS)}")
    return FIELDS[name].default


def _value(name: str, text: str) -> Any:
    default = _default(name)
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return type(default)(text)
    except (KeyError, ValueError) as error:
        kind = {bool: "true or false", int: "a whole number", float: "a number"}[type(default)]
        raise UserError(f"--{name}={text}: expected {kind}") from error


def _check(flags: Flags) -> None:
    if flags.batching_parameters_file and not flags.enable_batching:
        raise UserError("--batching_parameters_file supplied without --enable_batching")
    if not flags.model_config_file and not flags.model_base_path:
        raise UserError("give --model_config_file=FILE, or --model_name=NAME --model_base_path=DIR")
    one = flags.tensorflow_intra_op_parallelism or flags.tensorflow_inter_op_parallelism
    if flags.tensorflow_session_parallelism and one:
        raise UserError(
            "--tensorflow_session_parallelism sets both pools; "
            "give it, or --tensorflow_intra_op_parallelism and --tensorflow_inter_op_parallelism"
        )
    if flags.rest_api_port and flags.rest_api_port == flags.port:
        raise UserError("--rest_api_port cannot be the same as --port")
