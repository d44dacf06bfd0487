"""The gRPC face of the server: PredictionService and ModelService."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any

from frostline.errors import UserError
from frostline.serving import core, tensors
from frostline.serving.core import Core
from frostline.serving.status import Refused

if TYPE_CHECKING:
    import grpc

ENVELOPE = 2**20  # bytes of a message besides its tensors


async def start(served: Core) -> grpc.aio.Server:
    """Answer on the ports and sockets that the flags name; raises UserError where one is taken."""
    import grpc

    limit = tensors.MAX_REQUEST_BYTES + ENVELOPE
    lengths = [("grpc.max_receive_message_length", limit), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=[*lengths, ("grpc.so_reuseport", 0)])
    handlers: dict[str, dict[str, Any]] = defaultdict(dict)
    for method in core.methods().values():
        handlers[method.containing_service.full_name][method.name] = grpc.unary_unary_rpc_method_handler(
            partial(_answer, served, method),
            request_deserializer=method.input_type._concrete_class.FromString,
            response_serializer=method.output_type._concrete_class.SerializeToString,
        )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(*service) for service in handlers.items()])
    flags = served.flags
    addresses = [f"{flags.host}:{flags.port}"] if flags.port else []
    addresses += [f"unix:{flags.grpc_socket_path}"] if flags.grpc_socket_path else []
    for address in addresses:
        try:
            server.add_insecure_port(address)
        except RuntimeError as error:
            raise UserError(f"cannot listen on {address}: {error}") from error
    await server.start()
    return server


async def _answer(served: Core, method: Any, request: Any, context: grpc.aio.ServicerContext) -> Any:
    """One call; what went wrong ends it with the code and the text of the real server."""
    import grpc

    of: Any = next(iter(request.tasks), None) if method.name == "MultiInference" else request
    model = of.model_spec.name if hasattr(of, "model_spec") else ""
    try:
        return await core.counted(served, model, method.name, "GRPC", core.answer(served, method, request))
    except Refused as error:
        await context.abort(grpc.StatusCode[error.code], error.message)
