"""What the server does for a request, whichever way it came: find the version, run it, count it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
    batches: batching.Scheduler | None = None
    limits: dict[tuple[str, int], batching.Parameters] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    waiting: int = 0


def make(flags: Flags) -> Core:
    """A server without models; raises UserError where a file that a flag names is wrong."""
    usual = batching.Parameters()
    if flags.batching_parameters_file:
        path = Path(flags.batching_parameters_file)
        usual = batching.parameters(protos.read(path, protos.BatchingParameters))

    def load(name: str, version: int, path: Path) -> Servable:
        limits = usual
        if flags.enable_per_model_batching_parameters and (path / IN_BUNDLE).is_file():
            limits = batching.parameters(protos.read(path / IN_BUNDLE, protos.BatchingParameters))
        servable = servables.load(name, version, path, flags)
        if flags.enable_model_warmup:
            warmup.replay(servable, flags)
        core.limits[name, version] = limits
        return servable

    threads = ThreadPoolExecutor(flags.grpc_max_threads, thread_name_prefix="request")
    core = Core(flags, Models(load, flags), threads)
    if flags.enable_batching:
        core.batches = batching.Scheduler(usual.threads)
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
    names = list(fetches.values())
    begun = time.perf_counter()
    if core.batches is None:
        outputs = await in_thread(core, servables.run, servable, feeds, names)
    else:
        limits = core.limits[servable.name, servable.version]

        def together(merged: dict[str, np.ndarray]) -> Awaitable[list[np.ndarray]]:
            return in_thread(core, servables.run, servable, merged, names)

        key = (id(servable), tuple(sorted(feeds)), tuple(names))
        outputs = await core.batches.submit(key, limits, together, feeds)
    seconds = time.perf_counter() - begun
    labels = {"model_name": servable.name, "API": "Predict", "runtime": "TF1"}
    metrics.observe(core.metrics, ":tensorflow:serving:runtime_latency", seconds, **labels)
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
        known = model if model in core.models.models else ""  # names are for anybody to send
        seconds = time.perf_counter() - begun
        metrics.count(core.metrics, ":tensorflow:serving:request_count", model_name=known, status=code)
        metrics.observe(
            core.metrics,
            ":tensorflow:serving:request_latency",
            seconds,
            model_name=known,
            API=api,
            entrypoint=entrypoint,
        )


# -- the calls of PredictionService ----------------------------------------------------------------------


async def predict_(core: Core, request: Any) -> Any:
    """Answer a PredictRequest."""
    with core.models.borrow(request.model_spec) as servable:
        job = predict.prepare(servable, request)
        outputs = await run(core, servable, job.feeds, job.fetches)
        return predict.respond(servable, job, list(outputs.values()), core.flags.enable_serialization_as_tensor_content)


async def examples(core: Core, request: Any, method: str, response: Any) -> Any:
    """Answer a ClassificationRequest or a RegressionRequest in `response`."""
    with core.models.borrow(request.model_spec) as servable:
        name, check = request.model_spec.signature_name, core.flags.enable_signature_method_name_check
        tensor, fetches = classify.prepare(servable, name, method, check)
        values = classify.examples(request.input)
        outputs = await run(core, servable, {tensor: values}, fetches)
        classify.fill(response.result, method, outputs, len(values))
        predict.fill_spec(response.model_spec, servable, name or predict.DEFAULT_SIGNATURE)
        return response


async def multi_inference(core: Core, request: Any) -> Any:
    """Answer a MultiInferenceRequest: all its signatures in one run."""
    from tensorflow_serving.apis import inference_pb2

    if not request.tasks:
        raise invalid("Inference request must have at least one task.")
    response = inference_pb2.MultiInferenceResponse()
    with core.models.borrow(request.tasks[0].model_spec) as servable:
        check = core.flags.enable_signature_method_name_check
        tensor, fetches = classify.tasks(servable, request.tasks, check)
        values = classify.examples(request.input)
        every = {name: name for task in fetches for name in task.values()}
        outputs = await run(core, servable, {tensor: values}, every)
        for task, wanted in zip(request.tasks, fetches, strict=True):
            own = {alias: outputs[name] for alias, name in wanted.items()}
            classify.add_result(response, servable, task, own, len(values))
        return response


async def metadata(core: Core, request: Any) -> Any:
    """Answer a GetModelMetadataRequest with all signatures."""
    from tensorflow_serving.apis import get_model_metadata_pb2

    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for name in request.metadata_field:
        if name != "signature_def":
            raise invalid(f"Metadata field {name} is not supported")
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    with core.models.borrow(request.model_spec) as servable:
        found = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in servable.signatures.items():
            found.signature_def[name].CopyFrom(signature)
        predict.fill_spec(response.model_spec, servable)
        response.metadata["signature_def"].Pack(found)
    return response


# -- the calls of ModelService ---------------------------------------------------------------------------


async def model_status(core: Core, request: Any) -> Any:
    """Answer a GetModelStatusRequest: every version there ever was, and why one is not there."""
    from tensorflow_serving.apis import get_model_status_pb2

    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    response = get_model_status_pb2.GetModelStatusResponse()
    for number, version in core.models.states(request.model_spec).items():
        code, message = (version.error.code, version.error.message) if version.error else ("OK", "")
        entry = response.model_version_status.add(version=number, state=version.state)
        entry.status.error_code, entry.status.error_message = status.code_number(code), message
    return response


async def reload_config(core: Core, request: Any) -> Any:
    """Serve the models of a ReloadConfigRequest and no others; answers once the new ones are available."""
    from tensorflow_serving.apis import model_management_pb2

    if request.config.WhichOneof("config") != "model_config_list":
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
            "supported"
        )
    await core.models.apply(config.models(request.config))
    return model_management_pb2.ReloadConfigResponse(status={"error_code": 0})
