"""The gRPC face of the server: PredictionService and ModelService."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from frostline.errors import UserError
from frostline.serving import classify, core, tensors
from frostline.serving.core import Core
from frostline.serving.status import Refused

if TYPE_CHECKING:
    import grpc

CHUNK = 2**20  # what a message may have besides its tensors


async def start(served: Core) -> grpc.aio.Server:
    """Answer on the ports and sockets that the flags name; raises UserError where one is taken."""
    import grpc

    limit = tensors.MAX_REQUEST_BYTES + CHUNK
    options = [
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers(_handlers(served))
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


def _handlers(served: Core) -> list[grpc.GenericRpcHandler]:
    import grpc
    from tensorflow_serving.apis import (
        classification_pb2,
        get_model_metadata_pb2,
        get_model_status_pb2,
        inference_pb2,
        model_management_pb2,
        predict_pb2,
        regression_pb2,
    )

    async def classified(served: Core, request: Any) -> Any:
        return await core.examples(served, request, classify.CLASSIFY, classification_pb2.ClassificationResponse())

    async def regressed(served: Core, request: Any) -> Any:
        return await core.examples(served, request, classify.REGRESS, regression_pb2.RegressionResponse())

    services: dict[str, dict[str, tuple[Any, Callable[[Core, Any], Awaitable[Any]]]]] = {
        "tensorflow.serving.PredictionService": {
            "Predict": (predict_pb2.PredictRequest, core.predict_),
            "Classify": (classification_pb2.ClassificationRequest, classified),
            "Regress": (regression_pb2.RegressionRequest, regressed),
            "MultiInference": (inference_pb2.MultiInferenceRequest, core.multi_inference),
            "GetModelMetadata": (get_model_metadata_pb2.GetModelMetadataRequest, core.metadata),
        },
        "tensorflow.serving.ModelService": {
            "GetModelStatus": (get_model_status_pb2.GetModelStatusRequest, core.model_status),
            "HandleReloadConfigRequest": (model_management_pb2.ReloadConfigRequest, core.reload_config),
        },
    }
    return [
        grpc.method_handlers_generic_handler(
            service,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    partial(_answer, served, name, call),
                    request_deserializer=request.FromString,
                    response_serializer=lambda message: message.SerializeToString(),
                )
                for name, (request, call) in methods.items()
            },
        )
        for service, methods in services.items()
    ]


async def _answer(
    served: Core, name: str, call: Callable[[Core, Any], Awaitable[Any]], request: Any, context: Any
) -> Any:
    """One call; what went wrong ends it with the code and the text of the real server."""
    import grpc

    spec = (
        request.tasks[0].model_spec
        if name == "MultiInference" and request.tasks
        else getattr(request, "model_spec", None)
    )
    try:
        return await core.counted(served, spec.name if spec else "", name, "GRPC", call(served, request))
    except Refused as error:
        await context.abort(grpc.StatusCode[error.code], error.message)
