"""What batching brings on the embedded server, and what the ways of sending an image cost.

    python bench/serving_ratio.py [--clients 32] [--seconds 5] [--turns 3] [--backend embedded] [--image-size 224]

The network is that of the study `digits` with fresh weights. First table: images/s of that many clients, each waiting
for its answer, one image a request, of a server without and one with batching, asked in turns. In its first row server
and clients share all cores; in the second the server has half of them to itself and the clients the other half, which
wants Linux. Second table: one client, one image of `--image-size` a request, four ways. Requests are made before the
clock starts.
"""

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import aiohttp
import grpc
import numpy as np
from PIL import Image
from tabulate import tabulate

from frostline import batching, machine, serving
from frostline.serving import Server

PREDICT = "/tensorflow.serving.PredictionService/Predict"
Send = Callable[[], Awaitable[object]]
# A batch of 32 that is to fill while its 32 clients are answered takes some ten milliseconds of Python.
TIMEOUT_MICROS = 20_000
FORMS = ("REST JSON pixels", "REST JPEG", "gRPC pixels", "gRPC JPEG")


def main() -> None:
    """Build the models, start servers, print two markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--backend", choices=tuple(serving.BACKENDS), default="embedded")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        exports = Path(scratch)
        build(exports / "saved_model" / "digits" / "1", 32)
        build(exports / "saved_model" / "large" / "1", args.image_size)
        print(compare_batching(exports, args), compare_forms(exports, args), sep="\n\n")


def build(folder: Path, size: int) -> None:
    """A SavedModel of the digits network for images of `size` pixels."""
    from frostline import models
    from frostline.exporting import saved_model
    from frostline.studies import Backbone

    network = models.build(Backbone(name="small_cnn"), None, "backbone", size, 10)
    saved_model.write(models.standard(network.model), network.head.activation, list("0123456789"), folder)


def compare_batching(exports: Path, args: argparse.Namespace) -> str:
    """A table of throughputs and latencies; a ratio is that of the medians of all turns."""
    headers = ["cores", "images/s without batching", "with", "ratio", "at least", "p50 ms without", "with"]
    everything = os.sched_getaffinity(0)
    half = len(everything) // 2
    layouts = {"shared": (everything, everything)}
    if half and args.backend == "embedded":  # a container would not inherit its cores from here
        layouts["server's own"] = (set(sorted(everything)[half:]), set(sorted(everything)[:half]))
    rows = []
    for name, (servers, clients) in layouts.items():
        seconds = in_turns(exports, args, servers, clients)
        pin(everything)
        off, on = (statistics.median(len(turn) / args.seconds for turn in turns) for turns in seconds)
        p50 = [f"{statistics.median(itertools.chain(*turns)) * 1000:.0f}" for turns in seconds]
        rows.append([name, f"{off:,.0f}", f"{on:,.0f}", f"{on / off:.2f}", 2, *p50])
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def in_turns(
    exports: Path, args: argparse.Namespace, servers: set[int], clients: set[int]
) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds that answers took, by turn, without and with batching, for servers and clients on these cores."""
    pin(servers)  # which the children inherit
    text = batching.parameters(timeout_micros=TIMEOUT_MICROS, threads=batching.threads(machine.cores()))
    (exports / "batching.config").write_text(text)
    flags = (), ("--enable_batching", f"--batching_parameters_file={exports / 'batching.config'}")
    found: tuple[list[list[float]], list[list[float]]] = ([], [])
    with ExitStack() as stack:
        both = [
            stack.enter_context(serving.running(exports, ["digits"], backend=args.backend, flags=each))
            for each in flags
        ]
        pin(clients)
        for _ in range(args.turns):
            for server, turns in zip(both, found, strict=True):
                turns.append(measure(server, "digits", 32, "gRPC pixels", args.clients, args.seconds))
    return found


def pin(cores: set[int]) -> None:
    """Let this process and the children it will start run on these cores alone."""
    for task in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


def compare_forms(exports: Path, args: argparse.Namespace) -> str:
    """A table of payload, latency and throughput for each way to send one image."""
    rows = []
    with serving.running(exports, ["large"], backend=args.backend) as server:
        for form in FORMS:
            seconds = measure(server, "large", args.image_size, form, 1, args.seconds)
            kib = f"{len(payload('large', args.image_size, form)) / 1024:,.1f}"
            rows.append([form, kib, f"{statistics.median(seconds) * 1000:.1f}", f"{len(seconds) / args.seconds:,.0f}"])
    return tabulate(rows, ["request", "payload KiB", "p50 ms", "images/s"], tablefmt="github", disable_numparse=True)


def payload(model: str, size: int, form: str) -> bytes:
    """One request with one image, ready to be sent."""
    import tensorflow as tf
    from tensorflow_serving.apis.predict_pb2 import PredictRequest

    ramp = np.linspace(0, 255, size)
    pixels = np.stack(np.broadcast_arrays(ramp[:, None], ramp, 255 - ramp), axis=-1).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    signature = "serving_default" if form.endswith("pixels") else "serving_bytes"
    if form.startswith("REST"):
        b64 = {"b64": base64.b64encode(out.getvalue()).decode()}
        value = pixels.tolist() if form.endswith("pixels") else b64
        return json.dumps({"signature_name": signature, "instances": [value]}).encode()
    request = PredictRequest(model_spec={"name": model, "signature_name": signature})
    alias, value = ("images", pixels[None]) if form.endswith("pixels") else ("image_bytes", [out.getvalue()])
    request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
    return request.SerializeToString()


def measure(server: Server, model: str, size: int, form: str, clients: int, seconds: float) -> list[float]:
    """Seconds that each answer took, of clients that send again as soon as they are answered."""
    body = payload(model, size, form)

    async def run() -> list[float]:
        async with AsyncExitStack() as stack:
            send = await _sender(stack, server, model, form, body)
            await asyncio.gather(*(_client(send, time.perf_counter() + seconds / 5) for _ in range(clients)))
            end = time.perf_counter() + seconds
            found = await asyncio.gather(*(_client(send, end) for _ in range(clients)))
            return [taken for each in found for taken in each]

    return asyncio.run(run())


async def _sender(stack: AsyncExitStack, server: Server, model: str, form: str, body: bytes) -> Send:
    if form.startswith("gRPC"):
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.grpc))
        call = channel.unary_unary(PREDICT)  # bytes in, bytes out: what is measured is the server
        return lambda: call(body)
    session = await stack.enter_async_context(aiohttp.ClientSession())

    async def post() -> None:
        async with session.post(f"{server.rest}/v1/models/{model}:predict", data=body) as answer:
            text = await answer.read()
            if answer.status != 200:
                raise RuntimeError(text.decode())

    return post


async def _client(send: Send, end: float) -> list[float]:
    taken = []
    while (begun := time.perf_counter()) < end:
        await send()
        taken.append(time.perf_counter() - begun)
    return taken


if __name__ == "__main__":
    main()
