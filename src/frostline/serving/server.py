"""The embedded server's process: `python -m frostline.serving.server FLAGS`; it ends with its standard input."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from frostline import device, protos
from frostline.errors import UserError
from frostline.serving import config, core, flags, grpc_api, rest
from frostline.serving.config import Model
from frostline.serving.core import Core
from frostline.serving.flags import Flags
from frostline.serving.status import Refused
from frostline.serving.versions import Unavailable, say

NEW_MODELS_SECONDS = 60.0  # after which a changed configuration is looked at again, whatever lacks


def main(arguments: Sequence[str]) -> int:
    """Serve until told to stop; 0 then, 1 where models do not come up, 2 for a mistake in what was asked."""
    tf.get_logger().setLevel("ERROR")  # that the loader is an old one is known
    try:
        given = flags.parse(arguments)
        if not given.xla_cpu_compilation_enabled:
            device.disable_xla()
        asyncio.run(_serve(given))
    except UserError as error:
        say(str(error))
        return 2
    except Refused as error:
        say(error.message)
        return 1
    return 0


async def _serve(given: Flags) -> None:
    served, asked, metrics_path = core.make(given), _models(given), _metrics_path(given)
    stop = _stop()
    working = [asyncio.create_task(served.models.apply(asked)), asyncio.create_task(_poll_folders(served))]
    try:
        await asyncio.wait({working[0], stop}, return_when=asyncio.FIRST_COMPLETED)
        if stop.done():
            return
        await working[0]
        grpc_server = await grpc_api.start(served)
        runner = await rest.start(served, metrics_path) if given.rest_api_port else None
        if given.model_config_file and given.model_config_file_poll_wait_seconds > 0:
            working.append(asyncio.create_task(_poll_config(served)))
        grpc_at = flags.address(given.host, given.port)
        rest_at = f", REST on http://{flags.address(given.host, given.rest_api_port)}" * bool(runner)
        xla = "on" if given.xla_cpu_compilation_enabled else "off, as in a stock TensorFlow Serving"
        say(f"the embedded development server answers: gRPC on {grpc_at}{rest_at}; XLA is {xla}")
        await stop
        await grpc_server.stop(grace=1)
        if runner:
            await runner.cleanup()
    finally:
        for task in working:
            task.cancel()
        await served.models.close()


def _models(given: Flags) -> dict[str, Model]:
    if given.model_config_file:
        return config.models(protos.read(Path(given.model_config_file), protos.ModelServerConfig))
    return {given.model_name: Model(given.model_name, Path(given.model_base_path).absolute())}


def _metrics_path(given: Flags) -> str | None:
    if not given.monitoring_config_file:
        return None
    found = protos.read(Path(given.monitoring_config_file), protos.MonitoringConfig).prometheus_config
    return (found.path or "/monitoring/prometheus/metrics") if found.enable else None


def _stop() -> asyncio.Future[None]:
    """A future that is done on Ctrl-C, on SIGTERM, and when whoever started the server has gone."""
    loop = asyncio.get_running_loop()
    stop = loop.create_future()

    def end() -> None:
        if not stop.done():
            stop.set_result(None)

    def watch() -> None:
        while os.read(0, 1024):
            pass
        with contextlib.suppress(RuntimeError):  # the loop has ended before
            loop.call_soon_threadsafe(end)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    threading.Thread(target=watch, daemon=True).start()
    return stop


async def _poll_folders(served: Core) -> None:
    while (seconds := served.flags.file_system_poll_wait_seconds) > 0:
        await asyncio.sleep(seconds)
        served.models.aspire()


async def _poll_config(served: Core) -> None:
    """Hold what is served against the configuration file at each poll, as the real server does: a reload over gRPC is
    undone, and what is refused is tried again, since a version that a label needs may be there by then."""
    path, told = Path(served.flags.model_config_file), None
    while True:
        await asyncio.sleep(served.flags.model_config_file_poll_wait_seconds)
        asked = None
        try:
            asked = config.models(protos.read(path, protos.ModelServerConfig))
            if asked == served.models.models:
                told = None
                continue
            message = await _apply(served, asked)
        except (OSError, UserError, Refused) as error:
            message = f"is not in force: {error}"
        if told != (told := (message, asked)):
            say(f"{path} {message}")


async def _apply(served: Core, asked: dict[str, Model]) -> str:
    """Serve these models; returns what to say of them. Raises Refused."""
    try:
        await asyncio.wait_for(served.models.apply(asked), NEW_MODELS_SECONDS)
    except TimeoutError:
        if served.models.models != asked:
            return "is not in force yet: another configuration is being applied"
        return "is in force, but not all of its models are there yet"
    except Unavailable as error:
        return f"is in force, but {error.message}"
    return "is in force"


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main(sys.argv[1:]))  # TensorFlow takes a second to go, and has nothing left to do
