"""The REST face of the server."""

from __future__ import annotations

import json
import logging
import re
from asyncio import wait_for
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from frostline.errors import UserError
from frostline.serving import core, metrics, rest_answers, rest_examples, rest_json, tensors
from frostline.serving.config import MAX_VERSION
from frostline.serving.core import Core
from frostline.serving.predict import DEFAULT_SIGNATURE
from frostline.serving.status import HTTP_STATUS, Refused, invalid

if TYPE_CHECKING:
    from aiohttp import web

WHICH = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
RUN = re.compile(rf"/v1/models/(?P<name>[^/:]+){WHICH}:(?P<method>classify|regress|predict)", re.IGNORECASE)
ASK = re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{WHICH}(?P<metadata>/metadata)?", re.IGNORECASE)
PLAIN: Any = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}


async def start(served: Core, metrics_path: str | None) -> web.AppRunner:
    """Answer on the port that the flags name, with Prometheus's page at `metrics_path`; raises UserError."""
    from aiohttp import web

    async def answer(request: web.Request) -> web.Response:
        return await _answer(served, metrics_path, request)

    app = web.Application(client_max_size=tensors.MAX_REQUEST_BYTES)
    app.router.add_route("*", "/{tail:.*}", answer)
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # it tells of every broken request at length
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
        text, code = json.dumps({"error": error.message}, indent=4), HTTP_STATUS[error.code]
    except web.HTTPRequestEntityTooLarge as error:
        text, code = json.dumps({"error": error.text}), error.status
    return web.Response(text=text, status=code, content_type="application/json")


async def _dispatch(served: Core, request: web.Request, path: str) -> str:
    from aiohttp import web

    run, ask = RUN.fullmatch(path), ASK.fullmatch(path)
    if request.method == "POST" and run:
        spec, method = _spec(run), run["method"].lower()
        try:
            body = await request.read()
        except web.RequestPayloadError as error:
            raise invalid("Failed to uncompress the request body") from error
        work = _predict(served, spec, body) if method == "predict" else _examples(served, spec, body, method)
        return await core.counted(
            served, spec.name, method, "REST", wait_for(work, served.flags.rest_api_timeout_in_ms / 1000)
        )
    if request.method == "GET" and ask:
        if not ask["name"]:
            raise invalid("Missing model name in request.")
        return await (_metadata if ask["metadata"] else _status)(served, _spec(ask))
    raise invalid(f"Malformed request: {request.method} {path}")


def _spec(match: re.Match[str]) -> Any:
    from tensorflow_serving.apis import model_pb2

    spec = model_pb2.ModelSpec(name=unquote(match["name"]))
    if match["version"]:
        if int(match["version"][:20]) > MAX_VERSION:
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
    call = core.methods()[method.capitalize()]
    request = call.input_type._concrete_class(model_spec=spec)
    await core.in_thread(served, rest_examples.fill, request, body)
    response = await core.answer(served, call, request)
    return (rest_answers.classifications if method == "classify" else rest_answers.regressions)(response.result)


async def _status(served: Core, spec: Any) -> str:
    from google.protobuf import json_format

    call = core.methods()["GetModelStatus"]
    return json_format.MessageToJson(
        await core.answer(served, call, call.input_type._concrete_class(model_spec=spec)), **PLAIN
    )


async def _metadata(served: Core, spec: Any) -> str:
    from google.protobuf import json_format
    from tensorflow_serving.apis import get_model_metadata_pb2

    call = core.methods()["GetModelMetadata"]
    request = call.input_type._concrete_class(model_spec=spec, metadata_field=["signature_def"])
    response = await core.answer(served, call, request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    model = json_format.MessageToDict(response.model_spec, **PLAIN)
    found = {"signature_def": json_format.MessageToDict(signatures, **PLAIN)}
    return json.dumps({"model_spec": model, "metadata": found}, indent=1)
