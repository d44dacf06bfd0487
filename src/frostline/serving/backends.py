"""The server as a child of ours: the real one from the PATH or from a docker image, or the embedded one."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from frostline.children import Died
from frostline.errors import UserError, lookup, nothing_published
from frostline.serving import docker
from frostline.serving.flags import parse

BINARY = "tensorflow_model_server"
BACKENDS = {
    "auto": "the first of the following that is there",
    "binary": f"{BINARY} on the PATH",
    "docker": f"a docker image {docker.IMAGE} that is already here",
    "embedded": "a small server of ours for development, with the same API",
}
START_SECONDS = 600.0
QUIET = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of this machine


@dataclass(frozen=True)
class Server:
    """A server that answers: `grpc` is host:port, `rest` begins with http://."""

    grpc: str
    rest: str
    backend: str
    pid: int


def choose(asked: str) -> str:
    """The backend that is meant; raises UserError where it is not there."""
    lookup(BACKENDS, asked, "backend")
    if asked in ("auto", "binary") and shutil.which(BINARY):
        return "binary"
    if asked == "binary":
        raise UserError(f"--backend binary: there is no {BINARY} on the PATH; give --backend embedded, or install it")
    if asked in ("auto", "docker") and docker.image():
        return "docker"
    if asked == "docker":
        raise UserError(
            f"--backend docker: no daemon with an image {docker.IMAGE}; type: docker pull {docker.IMAGE}, "
            "or give --backend embedded"
        )
    return "embedded"


def base_paths(exports: Path, names: Sequence[str] = ()) -> dict[str, Path]:
    """Absolute base paths of the SavedModels in an exports folder, all or those named; raises UserError."""
    folder = exports.absolute() / "saved_model"
    found = {
        path.name: path
        for path in sorted(folder.glob("*"))
        if any(child.name.isdecimal() for child in (path.iterdir() if path.is_dir() else ()))
    }
    if not found:
        raise nothing_published(exports)
    return {name: lookup(found, name, "published model") for name in names} if names else found


def models_config(models: dict[str, Path]) -> str:
    """The text of a models.config that serves the newest version of each."""
    entries = "".join(
        f'  config {{ name: {_quoted(name)} base_path: {_quoted(str(path))} model_platform: "tensorflow" }}\n'
        for name, path in models.items()
    )
    return f"model_config_list {{\n{entries}}}\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # protos know no surrogate pairs


def command(
    backend: str, flags: Sequence[str], host: str, port: int, rest_port: int, folders: Sequence[Path]
) -> list[str]:
    """The command line; `folders` are what a container must see. Raises UserError for flags of the embedded server."""
    ports = [f"--port={port}", f"--rest_api_port={rest_port}"]
    if backend == "embedded":
        own = [*flags, f"--host={host}", *ports]
        parse(own)
        return [sys.executable, "-P", "-m", "frostline.serving.server", *own]
    if backend == "binary":
        if host not in ("127.0.0.1", "0.0.0.0"):
            raise UserError(f"--host {host}: {BINARY} answers on every address; give --backend embedded, or no --host")
        return [BINARY, *flags, *ports]
    return docker.command(flags, host, port, rest_port, folders)


def split(flags: Sequence[str]) -> tuple[list[str], int, int]:
    """The flags without the ports, and the ports: 8500 and 8501 where none are given; raises UserError."""
    kept, ports = [], {"port": 8500, "rest_api_port": 8501}
    for flag in flags:
        name, _, value = flag.removeprefix("--").partition("=")
        if name not in ports:
            kept.append(flag)
        elif value.isdecimal() and int(value) < 2**16:
            ports[name] = int(value)
        else:
            raise UserError(f"{flag}: a port is a number, as in --{name}={ports[name]}")
    return kept, ports["port"], ports["rest_api_port"]


@contextlib.contextmanager
def running(
    exports: Path, models: Sequence[str], *, backend: str = "auto", flags: Sequence[str] = (), gpu: bool = True
) -> Iterator[Server]:
    """A server of these published models on free ports of this machine, ended on leaving.

    Yields once every model is available. `flags` are TensorFlow Serving's. Without `gpu` the server sees none. Raises
    UserError, and Died with the last words of a server that ends before.
    """
    backend = choose(backend)
    found = base_paths(exports, models)
    kept, _, _ = split(flags)
    port, rest_port = _free_ports(2)
    with tempfile.TemporaryDirectory(prefix="frostline-serve-") as scratch:
        folder, log = Path(scratch), Path(scratch, "log.txt")
        (folder / "models.config").write_text(models_config(found), "utf-8")
        line = [*kept, f"--model_config_file={folder / 'models.config'}"]
        started = command(backend, line, "127.0.0.1", port, rest_port, [*found.values()])
        with log.open("wb") as out:
            child = _start(started, gpu, stdout=out, stderr=out, start_new_session=True)
        rest = f"http://127.0.0.1:{rest_port}"
        try:
            _wait(child, rest, list(found), log)
            yield Server(f"127.0.0.1:{port}", rest, backend, child.pid)
        finally:
            _end(child)


def _start(line: list[str], gpu: bool = True, **options: Any) -> "subprocess.Popen[bytes]":
    env = {"TF_CPP_MIN_LOG_LEVEL": "1", **os.environ} | ({} if gpu else {"CUDA_VISIBLE_DEVICES": "-1"})
    return subprocess.Popen(line, stdin=subprocess.PIPE, env=env, **options)


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [held.getsockname()[1] for held in sockets]


def _wait(child: subprocess.Popen[bytes], rest: str, models: list[str], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while models:
        if child.poll() is not None or time.monotonic() > deadline:
            lines = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise Died(f"the server did not come up; its last words: {' | '.join(lines[-3:])}")
        try:
            with QUIET.open(f"{rest}/v1/models/{models[0]}/metadata", timeout=10):
                models = models[1:]
        except OSError:  # no answer yet, or not of this model
            time.sleep(0.1)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.stdin:
        child.stdin.close()


def serve(exports: Path | None, backend: str, host: str, flags: Sequence[str]) -> int:
    """Serve in the foreground until Ctrl-C or SIGTERM; prints which backend it is. Raises UserError."""
    backend, host = choose(backend), host.strip("[]")
    kept, port, rest_port = split(flags)
    own = [flag for flag in kept if re.match(r"--model_(config_file|base_path)\b", flag)]
    if own and exports:
        raise UserError(f"EXPORTS and {own[0]} both say what to serve; give one of them")
    _try_ports(backend, host, {"port": port, "rest_api_port": rest_port})
    signal.signal(signal.SIGTERM, _interrupt)
    with tempfile.TemporaryDirectory(prefix="frostline-serve-") as scratch:
        folders: list[Path] = []
        if not own:
            models = base_paths(exports or Path("exports"))
            folders = [*models.values()]
            path = Path(scratch, "models.config")
            path.write_text(models_config(models), "utf-8")
            kept.append(f"--model_config_file={path}")
            print(f"models: {', '.join(models)}", flush=True)
        print(f"backend: {backend}, {BACKENDS[backend]}", flush=True)
        started = command(backend, kept, host, port, rest_port, folders)
        return _foreground(started)


def _try_ports(backend: str, host: str, ports: dict[str, int]) -> None:
    """Raises UserError where a port cannot be had: a server would try it only when all models are loaded."""
    host = "0.0.0.0" if backend == "binary" else host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as held:
        for flag, port in ports.items():
            try:
                held.enter_context(socket.create_server((host, port), family=family))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise UserError(f"port {port} is in use; give another --{flag}") from error
                if backend == "embedded":  # the others may listen where we may not
                    raise UserError(f"cannot listen on port {port} of {host}: {error.strerror}") from error


def _interrupt(*_: object) -> NoReturn:
    """End as on Ctrl-C, which a script's background jobs ignore: so SIGINT is not raised here."""
    raise KeyboardInterrupt


def _foreground(started: list[str]) -> int:
    child = _start(started)
    try:
        return child.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        with contextlib.suppress(KeyboardInterrupt):
            _end(child)
