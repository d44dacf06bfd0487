"""What the server does for a request, whichever way it came: find the version, run it, count it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tensorflow_serving.apis import model_service_pb2, prediction_service_pb2
from tensorflow_serving.apis.get_model_metadata_pb2 import SignatureDefMap

from frostline.batching import FILE as PARAMETERS_FILE
from frostline.serving import batching, config, jobs, metrics, servables, status
from frostline.serving.flags import Flags
from frostline.serving.jobs import Job, Outputs
from frostline.serving.metrics import Metrics
from frostline.serving.servables import Servable
from frostline.serving.status import Refused, invalid
from frostline.serving.versions import Models

T = TypeVar("T")
MAX_WAITING = 1024  # requests that have no thread yet
LARGE = 2**20  # bytes of a request that is looked at in a thread, while others are answered
SERVICES = (
    prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"],
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],
)


@dataclass
class Core:
    """A running server's state, in one event loop; TensorFlow works in `threads`."""

    flags: Flags
    models: Models
    threads: ThreadPoolExecutor
    batches: batching.Scheduler | None
    metrics: Metrics = field(default_factory=Metrics)
    waiting: int = 0


def make(flags: Flags) -> Core:
    """A server without models; raises UserError where a file that a flag names is wrong."""
    file = flags.batching_parameters_file
    limits = batching.read(Path(file)) if file else batching.Parameters()
    models = Models(partial(_load, flags, limits), servables.close, flags)
    threads = ThreadPoolExecutor(flags.grpc_max_threads, thread_name_prefix="request")
    return Core(flags, models, threads, batching.Scheduler(limits.threads) if flags.enable_batching else None)


def _load(flags: Flags, usual: batching.Parameters, name: str, version: int, path: Path) -> Servable:
    """A version that is warmed up and ready to answer."""
    own = path / PARAMETERS_FILE
    limits: batching.Parameters | None = usual if flags.enable_batching else None
    if limits and flags.enable_per_model_batching_parameters:  # a version without the file is not batched
        limits = batching.read(own) if own.is_file() else None
    servable = servables.load(name, version, path, flags, limits)
    try:
        if flags.enable_model_warmup:
            jobs.warm_up(servable)
    except BaseException:
        servables.close(servable)
        raise
    return servable


async def in_thread(core: Core, function: Callable[..., T], *args: Any) -> T:
    """Call in a thread of the server; raises Refused where too many calls wait for one."""
    if core.waiting >= MAX_WAITING + core.flags.grpc_max_threads:
        raise Refused("UNAVAILABLE", f"{MAX_WAITING} requests are waiting already")
    core.waiting += 1
    try:
        return await asyncio.get_running_loop().run_in_executor(core.threads, function, *args)
    finally:
        core.waiting -= 1


async def run(core: Core, servable: Servable, job: Job) -> Outputs:
    """Arrays by alias, from a batch with other requests where batching is on; raises Refused or TensorFlow's errors."""
    names, begun = tuple(job.fetches.values()), time.perf_counter()

    def now(feeds: batching.Feeds) -> Awaitable[list[Any]]:
        return in_thread(core, servables.run, servable, feeds, names)

    if core.batches and servable.limits:
        outputs = await core.batches.submit((id(servable), *job.feeds, *names), servable.limits, now, job.feeds)
    else:
        outputs = await now(job.feeds)
    taken, labels = time.perf_counter() - begun, {"model_name": servable.name, "API": "Predict", "runtime": "TF1"}
    metrics.observe(core.metrics, ":tensorflow:serving:runtime_latency", taken, **labels)
    return dict(zip(job.fetches, outputs, strict=True))


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


# -- the calls of both services, which write their answer into `response` ----------------------------------


async def _run(core: Core, request: Any, response: Any, *, name: str) -> None:
    if name == "MultiInference" and not request.tasks:
        raise invalid("Inference request must have at least one task.")
    with core.models.borrow((request.tasks[0] if name == "MultiInference" else request).model_spec) as servable:
        if request.ByteSize() > LARGE:
            job = await in_thread(core, jobs.JOBS[name], servable, request)
        else:
            job = jobs.JOBS[name](servable, request)
        job.fill(response, await run(core, servable, job))


async def _metadata(core: Core, request: Any, response: Any) -> None:
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    if other := set(request.metadata_field) - {"signature_def"}:
        raise invalid(f"Metadata field {other.pop()} is not supported")
    with core.models.borrow(request.model_spec) as servable:
        jobs.fill_spec(response.model_spec, servable)
        response.metadata["signature_def"].Pack(
            SignatureDefMap(signature_def={name: found.proto for name, found in servable.signatures.items()})
        )


async def _status(core: Core, request: Any, response: Any) -> None:
    for number, version in core.models.states(request.model_spec).items():
        entry = response.model_version_status.add(version=number, state=version.state)
        error = version.error or Refused("OK", "")
        entry.status.error_code, entry.status.error_message = status.CODES.index(error.code), error.message


async def _reload(core: Core, request: Any, response: Any) -> None:
    if request.config.WhichOneof("config") != "model_config_list":
        about = "ServerModelConfig type not supported by HandleReloadConfigRequest."
        raise invalid(f"{about} Only ModelConfigList is currently supported")
    await core.models.apply(config.models(request.config))
    response.status.error_code = 0


CALLS: dict[str, Callable[[Core, Any, Any], Awaitable[None]]] = {
    **{name: partial(_run, name=name) for name in jobs.JOBS},
    "GetModelMetadata": _metadata,
    "GetModelStatus": _status,
    "HandleReloadConfigRequest": _reload,
}
METHODS = {method.name: method for service in SERVICES for method in service.methods if method.name in CALLS}


def request(name: str, **fields: Any) -> Any:
    """The request message of a call."""
    return METHODS[name].input_type._concrete_class(**fields)


async def answer(core: Core, name: str, request: Any) -> Any:
    """The response of a call to its request; raises Refused or TensorFlow's errors."""
    response = METHODS[name].output_type._concrete_class()
    await CALLS[name](core, request, response)
    return response
