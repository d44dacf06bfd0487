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
    max_num_load_retries: int = 5
    load_retry_interval_micros: int = 60_000_000
    enable_model_warmup: bool = True
    enable_batching: bool = False
    batching_parameters_file: str = ""
    enable_per_model_batching_parameters: bool = False
    monitoring_config_file: str = ""
    xla_cpu_compilation_enabled: bool = False
    tensorflow_intra_op_parallelism: int = 0
    tensorflow_inter_op_parallelism: int = 0


DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Flags)}
TRUTH = {"true": True, "1": True, "false": False, "0": False}


def address(host: str, port: int) -> str:
    """`host:port`, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse(arguments: Sequence[str]) -> Flags:
    """`--name=value`, or `--name` for a true boolean, as TensorFlow Serving reads them; raises UserError."""
    given: dict[str, Any] = {}
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if name not in DEFAULTS:
            raise UserError(f"--{name} is no flag that the embedded server has; {nearest(name, DEFAULTS)}")
        kind = type(DEFAULTS[name])
        if not argument.startswith("--") or (not equals and kind is not bool):
            raise UserError(f"{argument}: TensorFlow Serving's flags are written --name=value")
        try:
            given[name] = TRUTH[value.lower() or "true"] if kind is bool else kind(value)
        except (KeyError, ValueError) as error:
            raise UserError(f"{argument}: expected {'true or false' if kind is bool else 'a whole number'}") from error
    flags = Flags(**{**given, "host": given.get("host", Flags.host).strip("[]")})
    if flags.batching_parameters_file and not flags.enable_batching:
        raise UserError("--batching_parameters_file supplied without --enable_batching")
    if not flags.model_config_file and not flags.model_base_path:
        raise UserError("give --model_config_file=FILE, or --model_name=NAME --model_base_path=DIR")
    return flags
