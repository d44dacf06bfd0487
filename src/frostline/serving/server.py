"""The embedded server's process: `python -m frostline.serving.server FLAGS`; it ends with its standard input."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from frostline.errors import UserError
from frostline.serving import config, core, flags, grpc_api, protos, rest, servables
from frostline.serving.config import Model
from frostline.serving.core import Core
from frostline.serving.flags import Flags
from frostline.serving.status import Refused
from frostline.serving.versions import say


def main(arguments: Sequence[str]) -> int:
    """Serve until told to stop; 0 then, 1 where models do not come up, 2 for a mistake in what was asked."""
    try:
        given = flags.parse(arguments)
        if not (given.xla_cpu_compilation_enabled or given.xla_gpu_compilation_enabled):
            servables.disable_xla()
        return asyncio.run(_serve(given))
    except UserError as error:
        say(str(error))
        return 2
    except Refused as error:
        say(error.message)
        return 1


async def _serve(given: Flags) -> int:
    asked = _models(given)
    metrics_path = _metrics_path(given)
    served = core.make(given)
    stop = _stop()
    background: list[asyncio.Task[None]] = []
    try:
        loading = asyncio.ensure_future(served.models.apply(asked))
        background.append(asyncio.create_task(_poll_folders(served)))
        await asyncio.wait({loading, stop}, return_when=asyncio.FIRST_COMPLETED)
        if stop.done():
            loading.cancel()
            return 0
        await loading
        if given.model_config_file_poll_wait_seconds > 0 and given.model_config_file:
            background.append(asyncio.create_task(_poll_config(served)))
        grpc_server = await grpc_api.start(served)
        runner = await rest.start(served, metrics_path) if given.rest_api_port else None
        say(_greeting(given))
        await stop
        await grpc_server.stop(grace=1)
        if runner:
            await runner.cleanup()
    finally:
        for task in background:
            task.cancel()
        await served.models.close()
    return 0


def _models(given: Flags) -> dict[str, Model]:
    if not given.model_config_file:
        return config.models(
            protos.ModelServerConfig(
                model_config_list={
                    "config": [
                        {
                            "name": given.model_name,
                            "base_path": str(Path(given.model_base_path).absolute()),
                            "model_platform": "tensorflow",
                        }
                    ]
                }
            )
        )
    return config.models(protos.read(Path(given.model_config_file), protos.ModelServerConfig))


def _metrics_path(given: Flags) -> str | None:
    if not given.monitoring_config_file:
        return None
    found = protos.read(Path(given.monitoring_config_file), protos.MonitoringConfig).prometheus_config
    return (found.path or "/monitoring/prometheus/metrics") if found.enable else None


def _greeting(given: Flags) -> str:
    xla = (
        "on" if given.xla_cpu_compilation_enabled or given.xla_gpu_compilation_enabled else "off, as in a stock server"
    )
    places = [f"gRPC on {given.host}:{given.port}"] if given.port else []
    places += [f"gRPC on unix:{given.grpc_socket_path}"] if given.grpc_socket_path else []
    places += [f"REST on http://{given.host}:{given.rest_api_port}"] if given.rest_api_port else []
    return f"the embedded development server answers: {', '.join(places)}; XLA is {xla}"


def _stop() -> asyncio.Future[None]:
    """A future that is done on Ctrl-C, on SIGTERM, and when whoever started the server has gone."""
    loop = asyncio.get_running_loop()
    stop = loop.create_future()

    def end() -> None:
        if not stop.done():
            stop.set_result(None)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)

    def watch() -> None:
        while os.read(0, 1024):
            pass
        with contextlib.suppress(RuntimeError):  # the loop has ended before
            loop.call_soon_threadsafe(end)

    threading.Thread(target=watch, daemon=True).start()
    return stop


async def _poll_folders(served: Core) -> None:
    seconds = served.flags.file_system_poll_wait_seconds
    while seconds > 0:
        await asyncio.sleep(seconds)
        served.models.aspire()


async def _poll_config(served: Core) -> None:
    """Apply the configuration file again whenever its text has changed; a wrong one leaves things as they are."""
    path = Path(served.flags.model_config_file)
    seen = path.read_text(encoding="utf-8")
    while True:
        await asyncio.sleep(served.flags.model_config_file_poll_wait_seconds)
        try:
            text = path.read_text(encoding="utf-8")
            if text == seen:
                continue
            seen = text
            asked = config.models(protos.parse(text, protos.ModelServerConfig, str(path)))
            await served.models.apply(asked)
            say(f"{path} is in force: {', '.join(asked)}")
        except (OSError, UnicodeDecodeError, UserError, Refused) as error:
            say(f"{path} is not in force: {error}")


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main(sys.argv[1:]))  # TensorFlow takes a second to go, and has nothing left to do
