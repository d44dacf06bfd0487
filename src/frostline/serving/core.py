"""What the server does for a request, whichever way it came: find the version, run it, count it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from frostline.serving import batching, classify, config, metrics, predict, protos, servables, status, warmup
from frostline.serving.flags import Flags
from frostline.serving.metrics import Metrics
from frostline.serving.servables import Servable
from frostline.serving.status import Refused, invalid
from frostline.serving.versions import Models

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")
MAX_WAITING = 1024  # requests that have no thread yet
IN_BUNDLE = "batching_params.pbtxt"


@dataclass
class Core:
    """A running server's state, in one event loop; TensorFlow works in `threads`."""

    flags: Flags
    models: Models
    threads: ThreadPoolExecutor
    batches: batching.Scheduler | None
    limits: dict[int, batching.Parameters] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    waiting: int = 0


def make(flags: Flags) -> Core:
    """A server without models; raises UserError where a file that a flag names is wrong."""
    usual = batching.Parameters()
    if flags.batching_parameters_file:
        usual = batching.parameters(protos.read(Path(flags.batching_parameters_file), protos.BatchingParameters))

    def load(name: str, version: int, path: Path) -> Servable:
        limits = usual
        if flags.enable_per_model_batching_parameters and (path / IN_BUNDLE).is_file():
            limits = batching.parameters(protos.read(path / IN_BUNDLE, protos.BatchingParameters))
        servable = servables.load(name, version, path, flags)
        if flags.enable_model_warmup:
            warmup.replay(servable, flags)
        core.limits[id(servable)] = limits
        return servable

    def close(servable: Servable) -> None:
        core.limits.pop(id(servable), None)
        servables.close(servable)

    threads = ThreadPoolExecutor(flags.grpc_max_threads, thread_name_prefix="request")
    scheduler = batching.Scheduler(usual.threads) if flags.enable_batching else None
    core = Core(flags, Models(load, close, flags), threads, scheduler)
    return core


async def in_thread(core: Core, function: Callable[..., T], *args: Any) -> T:
    """Call in a thread of the server; raises Refused where too many calls wait for one."""
    if core.waiting >= MAX_WAITING + core.flags.grpc_max_threads:
        raise Refused("RESOURCE_EXHAUSTED", f"{MAX_WAITING} requests are waiting already")
    core.waiting += 1
    try:
        return await asyncio.get_running_loop().run_in_executor(core.threads, function, *args)
    finally:
        core.waiting -= 1


async def run(
    core: Core, servable: Servable, feeds: dict[str, np.ndarray], fetches: dict[str, str]
) -> dict[str, np.ndarray]:
    """Arrays by alias, from a batch with other requests where batching is on; raises Refused or TensorFlow's errors."""
    names = tuple(fetches.values())

    def now(feeds: dict[str, np.ndarray]) -> Awaitable[list[np.ndarray]]:
        return in_thread(core, servables.run, servable, feeds, names)

    begun = time.perf_counter()
    if core.batches:
        key = (id(servable), *sorted(feeds), *names)
        outputs = await core.batches.submit(key, core.limits[id(servable)], now, feeds)
    else:
        outputs = await now(feeds)
    labels = {"model_name": servable.name, "API": "Predict", "runtime": "TF1"}
    metrics.observe(core.metrics, ":tensorflow:serving:runtime_latency", time.perf_counter() - begun, **labels)
    return dict(zip(fetches, outputs, strict=True))


async def counted(core: Core, model: str, api: str, entrypoint: str, work: Awaitable[T]) -> T:
    """Await a request's answer and count how it ended; whatever goes wrong is raised as Refused."""
    begun, code = time.perf_counter(), "OK"
    try:
        return await work
    except Exception as error:
        ended = status.refused(error)
        code = ended.code
        raise ended from error
    finally:
        known = model if model in core.models.models else ""  # anybody may send names
        seconds, labels = time.perf_counter() - begun, {"model_name": known, "API": api, "entrypoint": entrypoint}
        metrics.count(core.metrics, ":tensorflow:serving:request_count", model_name=known, status=code)
        metrics.observe(core.metrics, ":tensorflow:serving:request_latency", seconds, **labels)


# -- the calls of PredictionService, which write their answer into `response` ------------------------------


async def _predict(core: Core, request: Any, response: Any) -> None:
    with core.models.borrow(request.model_spec) as servable:
        job = predict.prepare(servable, request)
        outputs = await run(core, servable, job.feeds, job.fetches)
        as_content = core.flags.enable_serialization_as_tensor_content
        predict.respond(response, servable, job, outputs, as_content)


async def _examples(core: Core, request: Any, response: Any, *, method: str) -> None:
    with core.models.borrow(request.model_spec) as servable:
        name, check = request.model_spec.signature_name, core.flags.enable_signature_method_name_check
        tensor, fetches = classify.prepare(servable, name, method, check)
        values = classify.examples(request.input)
        outputs = await run(core, servable, {tensor: values}, fetches)
        classify.fill(response.result, method, outputs, len(values))
        predict.fill_spec(response.model_spec, servable, name or predict.DEFAULT_SIGNATURE)


async def _multi_inference(core: Core, request: Any, response: Any) -> None:
    if not request.tasks:
        raise invalid("Inference request must have at least one task.")
    with core.models.borrow(request.tasks[0].model_spec) as servable:
        tensor, fetches = classify.tasks(servable, request.tasks, core.flags.enable_signature_method_name_check)
        values = classify.examples(request.input)
        every = {name: name for own in fetches for name in own.values()}
        outputs = await run(core, servable, {tensor: values}, every)
        for task, own in zip(request.tasks, fetches, strict=True):
            found = {alias: outputs[name] for alias, name in own.items()}
            classify.add_result(response, servable, task, found, len(values))


async def _metadata(core: Core, request: Any, response: Any) -> None:
    from tensorflow_serving.apis import get_model_metadata_pb2

    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for name in request.metadata_field:
        if name != "signature_def":
            raise invalid(f"Metadata field {name} is not supported")
    with core.models.borrow(request.model_spec) as servable:
        found = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signatures)
        predict.fill_spec(response.model_spec, servable)
        response.metadata["signature_def"].Pack(found)


# -- the calls of ModelService -----------------------------------------------------------------------------


async def _status(core: Core, request: Any, response: Any) -> None:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    for number, version in core.models.states(request.model_spec).items():
        entry = response.model_version_status.add(version=number, state=version.state)
        entry.status.error_code = status.CODES.index(version.error.code) if version.error else 0
        entry.status.error_message = version.error.message if version.error else ""


async def _reload(core: Core, request: Any, response: Any) -> None:
    if request.config.WhichOneof("config") != "model_config_list":
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
            "supported"
        )
    await core.models.apply(config.models(request.config))
    response.status.error_code = 0


CALLS: dict[str, Callable[[Core, Any, Any], Awaitable[None]]] = {
    "Predict": _predict,
    "Classify": partial(_examples, method=classify.CLASSIFY),
    "Regress": partial(_examples, method=classify.REGRESS),
    "MultiInference": _multi_inference,
    "GetModelMetadata": _metadata,
    "GetModelStatus": _status,
    "HandleReloadConfigRequest": _reload,
}


def methods() -> dict[str, Any]:
    """The descriptors of the calls, which know the service and the messages."""
    from tensorflow_serving.apis import model_service_pb2, prediction_service_pb2

    services = (
        prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"],
        model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],
    )
    return {method.name: method for service in services for method in service.methods if method.name in CALLS}


async def answer(core: Core, method: Any, request: Any) -> Any:
    """The response of one of the `methods` to its request; raises Refused or TensorFlow's errors."""
    response = method.output_type._concrete_class()
    await CALLS[method.name](core, request, response)
    return response
