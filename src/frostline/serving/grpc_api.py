"""The gRPC face of the server: PredictionService and ModelService."""

from functools import partial
from typing import Any

import grpc

from frostline.errors import UserError
from frostline.serving import core, tensors
from frostline.serving.core import Core
from frostline.serving.flags import address
from frostline.serving.status import Refused

ENVELOPE = 2**20  # bytes of a message besides its tensors


async def start(served: Core) -> grpc.aio.Server:
    """Answer on the port and the socket that the flags name; raises UserError where one is taken."""
    flags, limit = served.flags, tensors.MAX_REQUEST_BYTES + ENVELOPE
    lengths = [("grpc.max_receive_message_length", limit), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=[*lengths, ("grpc.so_reuseport", 0)])
    for service in core.SERVICES:
        handlers = {
            method.name: grpc.unary_unary_rpc_method_handler(
                partial(_answer, served, method.name),
                request_deserializer=method.input_type._concrete_class.FromString,
                response_serializer=method.output_type._concrete_class.SerializeToString,
            )
            for method in service.methods
            if method.name in core.METHODS
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service.full_name, handlers)])
    for place in [
        address(flags.host, flags.port),
        *([f"unix:{flags.grpc_socket_path}"] if flags.grpc_socket_path else []),
    ]:
        try:
            server.add_insecure_port(place)
        except RuntimeError as error:
            raise UserError(f"cannot listen on {place}: {error}") from error
    await server.start()
    return server


async def _answer(served: Core, name: str, request: Any, context: grpc.aio.ServicerContext) -> Any:
    """One call; what went wrong ends it with the code and the text of the real server."""
    of: Any = next(iter(request.tasks), None) if name == "MultiInference" else request
    model = of.model_spec.name if hasattr(of, "model_spec") else ""
    try:
        return await core.counted(served, model, name, "GRPC", core.answer(served, name, request))
    except Refused as error:
        await context.abort(grpc.StatusCode[error.code], error.message)
