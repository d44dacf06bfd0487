"""The REST face of the server."""

from __future__ import annotations

import re
from asyncio import wait_for
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from frostline.errors import UserError
from frostline.serving import classify, core, metrics, rest_answers, rest_examples, rest_json, tensors
from frostline.serving.config import MAX_VERSION
from frostline.serving.core import Core
from frostline.serving.predict import DEFAULT_SIGNATURE
from frostline.serving.status import HTTP_STATUS, Refused, invalid

if TYPE_CHECKING:
    from aiohttp import web

WHICH = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
RUN = re.compile(rf"/v1/models/(?P<name>[^/:]+){WHICH}:(?P<method>classify|regress|predict)", re.IGNORECASE)
ASK = re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{WHICH}(?P<metadata>/metadata)?", re.IGNORECASE)


async def start(served: Core, metrics_path: str | None) -> web.AppRunner:
    """Answer on the port that the flags name, with Prometheus's page at `metrics_path`; raises UserError."""
    from aiohttp import web

    async def answer(request: web.Request) -> web.Response:
        return await _answer(served, metrics_path, request)

    app = web.Application(client_max_size=tensors.MAX_REQUEST_BYTES)
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    flags = served.flags
    try:
        await web.TCPSite(runner, flags.host, flags.rest_api_port).start()
    except OSError as error:
        raise UserError(f"cannot listen on {flags.host}:{flags.rest_api_port}: {error.strerror}") from error
    return runner


async def _answer(served: Core, metrics_path: str | None, request: web.Request) -> web.Response:
    from aiohttp import web

    path = request.rel_url.raw_path
    if request.method == "GET" and path == metrics_path:
        return web.Response(text=metrics.page(served.metrics))
    if not path.lower().startswith("/v1/"):
        return web.Response(status=404, text="Not Found")
    try:
        text, code = await _dispatch(served, request, path), 200
    except Refused as error:
        text, code = rest_answers.error(error.message), HTTP_STATUS[error.code]
    except web.HTTPRequestEntityTooLarge:
        text = rest_answers.error(f"a request may have {tensors.MAX_REQUEST_BYTES} bytes here")
        code = 413
    except web.HTTPBadRequest as error:
        text, code = rest_answers.error(error.text or "Malformed request"), 400
    return web.Response(text=text, status=code, content_type="application/json")


async def _dispatch(served: Core, request: web.Request, path: str) -> str:
    run, ask = RUN.fullmatch(path), ASK.fullmatch(path)
    if request.method == "POST" and run:
        spec, method = _spec(run), run["method"].lower()
        body = await request.read()
        work = _predict(served, spec, body) if method == "predict" else _examples(served, spec, body, method)
        seconds = served.flags.rest_api_timeout_in_ms / 1000
        return await core.counted(served, spec.name, method, "REST", wait_for(work, seconds))
    if request.method == "GET" and ask:
        if not ask["name"]:
            raise invalid("Missing model name in request.")
        spec = _spec(ask)
        return await (_metadata(served, spec) if ask["metadata"] else _status(served, spec))
    raise invalid(f"Malformed request: {request.method} {path}")


def _spec(match: re.Match[str]) -> Any:
    from tensorflow_serving.apis import model_pb2

    spec = model_pb2.ModelSpec(name=unquote(match["name"]))
    if match["version"]:
        if int(match["version"]) > MAX_VERSION:
            raise invalid(f"Failed to convert version: {match['version']} to numeric.")
        spec.version.value = int(match["version"])
    elif match["label"]:
        spec.version_label = unquote(match["label"])
    return spec


async def _predict(served: Core, spec: Any, body: bytes) -> str:
    document = await core.in_thread(served, rest_json.parse, body)
    name = rest_json.signature_name(document) or DEFAULT_SIGNATURE
    with served.models.borrow(spec) as servable:
        if name not in servable.signatures:
            raise invalid(f'Serving signature name: "{name}" not found in signature def')
        signature = servable.signatures[name]
        if not signature.inputs:
            raise invalid(f"Failed to get input map for signature: {name}")
        as_rows, arrays = await core.in_thread(served, rest_json.inputs, document, signature.inputs)
        feeds = {signature.inputs[alias].name: values for alias, values in arrays.items()}
        fetches = {alias: signature.outputs[alias].name for alias in sorted(signature.outputs)}
        outputs = await core.run(served, servable, feeds, fetches)
        return await core.in_thread(served, rest_answers.predictions, outputs, as_rows)


async def _examples(served: Core, spec: Any, body: bytes, method: str) -> str:
    from tensorflow_serving.apis import classification_pb2, regression_pb2

    request = classification_pb2.ClassificationRequest(model_spec=spec)
    await core.in_thread(served, rest_examples.fill, request, body)
    if method == "classify":
        response = classification_pb2.ClassificationResponse()
        await core.examples(served, request, classify.CLASSIFY, response)
        return rest_answers.classifications(response.result)
    response = regression_pb2.RegressionResponse()
    await core.examples(served, request, classify.REGRESS, response)
    return rest_answers.regressions(response.result)


async def _status(served: Core, spec: Any) -> str:
    from google.protobuf import json_format
    from tensorflow_serving.apis import get_model_status_pb2

    found = await core.model_status(served, get_model_status_pb2.GetModelStatusRequest(model_spec=spec))
    return json_format.MessageToJson(found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


async def _metadata(served: Core, spec: Any) -> str:
    import json

    from google.protobuf import json_format
    from tensorflow_serving.apis import get_model_metadata_pb2

    request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
    response = await core.metadata(served, request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    plain = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
    model = json_format.MessageToDict(response.model_spec, **plain)
    found = {"signature_def": json_format.MessageToDict(signatures, **plain)}
    return json.dumps({"model_spec": model, "metadata": found}, indent=1)
