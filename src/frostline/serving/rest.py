"""The REST face of the server."""

import json
import logging
import re
from asyncio import wait_for
from typing import Any
from urllib.parse import unquote

from aiohttp import web
from google.protobuf import json_format
from tensorflow_serving.apis.get_model_metadata_pb2 import SignatureDefMap
from tensorflow_serving.apis.model_pb2 import ModelSpec

from frostline.errors import UserError
from frostline.serving import core, metrics, rest_answers, rest_json, tensors
from frostline.serving.config import MAX_VERSION
from frostline.serving.core import Core
from frostline.serving.jobs import DEFAULT_SIGNATURE, Job
from frostline.serving.status import HTTP_STATUS, Refused, invalid

WHICH = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
RUN = re.compile(rf"/v1/models/(?P<name>[^/:]+){WHICH}:(?P<method>classify|regress|predict)", re.IGNORECASE)
ASK = re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{WHICH}(?P<metadata>/metadata)?", re.IGNORECASE)
PLAIN: Any = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}


async def start(served: Core, metrics_path: str | None) -> web.AppRunner:
    """Answer on the port that the flags name, with Prometheus's page at `metrics_path`; raises UserError."""

    async def answer(request: web.Request) -> web.Response:
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

    app = web.Application(client_max_size=tensors.MAX_REQUEST_BYTES)
    app.router.add_route("*", "/{tail:.*}", answer)
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # it tells of every broken request at length
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, served.flags.host, served.flags.rest_api_port).start()
    except OSError as error:
        raise UserError(f"cannot listen on port {served.flags.rest_api_port}: {error.strerror}") from error
    return runner


async def _dispatch(served: Core, request: web.Request, path: str) -> str:
    run, ask = RUN.fullmatch(path), ASK.fullmatch(path)
    if request.method == "POST" and run:
        spec, method = _spec(run), run["method"].lower()
        try:
            body = await request.read()
        except web.RequestPayloadError as error:
            raise invalid("Failed to uncompress the request body") from error
        work = _predict(served, spec, body) if method == "predict" else _examples(served, spec, body, method)
        seconds = served.flags.rest_api_timeout_in_ms / 1000
        return await core.counted(served, spec.name, method, "REST", wait_for(work, seconds))
    if request.method == "GET" and ask:
        if not ask["name"]:
            raise invalid("Missing model name in request.")
        return await (_metadata if ask["metadata"] else _status)(served, _spec(ask))
    raise invalid(f"Malformed request: {request.method} {path}")


def _spec(match: re.Match[str]) -> Any:
    spec, version = ModelSpec(name=unquote(match["name"])), match["version"]
    if version:
        number = int(version.lstrip("0")[:20] or "0")  # Python reads no number of thousands of digits
        if number > MAX_VERSION:
            raise invalid(f"Failed to convert version: {version} to numeric.")
        spec.version.value = number
    elif match["label"]:
        spec.version_label = unquote(match["label"])
    return spec


async def _predict(served: Core, spec: Any, body: bytes) -> str:
    document = await core.in_thread(served, rest_json.parse, body)
    name = document.get("signature_name") or DEFAULT_SIGNATURE
    with served.models.borrow(spec) as servable:
        if name not in servable.signatures:
            raise invalid(f'Serving signature name: "{name}" not found in signature def')
        signature = servable.signatures[name]
        as_rows, arrays = await core.in_thread(served, rest_json.inputs, document, signature.inputs)
        feeds = {signature.inputs[alias].name: values for alias, values in arrays.items()}
        fetches = {alias: info.name for alias, info in signature.outputs.items()}
        outputs = await core.run(served, servable, Job(feeds, fetches, lambda response, found: None))
        return await core.in_thread(served, rest_answers.predictions, outputs, as_rows)


async def _examples(served: Core, spec: Any, body: bytes, method: str) -> str:
    call = method.capitalize()
    request = core.request(call, model_spec=spec)
    await core.in_thread(served, rest_json.fill_examples, request, body)
    return rest_answers.results((await core.answer(served, call, request)).result)


async def _status(served: Core, spec: Any) -> str:
    found = await core.answer(served, "GetModelStatus", core.request("GetModelStatus", model_spec=spec))
    return json_format.MessageToJson(found, **PLAIN)


async def _metadata(served: Core, spec: Any) -> str:
    request = core.request("GetModelMetadata", model_spec=spec, metadata_field=["signature_def"])
    response = await core.answer(served, "GetModelMetadata", request)
    signatures = SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    spec, found = (json_format.MessageToDict(message, **PLAIN) for message in (response.model_spec, signatures))
    return json.dumps({"model_spec": spec, "metadata": {"signature_def": found}}, indent=1)
