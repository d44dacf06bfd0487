"""A client for a running TensorFlow Serving, or for what speaks its API: images in, arrays out, over gRPC or REST."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from frostline.client import messages
from frostline.client.messages import BYTES, PIXELS, Metadata, Request, ServingError, State, Tensor, Which
from frostline.client.over_grpc import Grpc
from frostline.client.over_rest import Rest
from frostline.errors import UserError, nearest

if TYPE_CHECKING:
    import numpy as np

    from frostline.client.messages import Images

__all__ = ["Connection", "Metadata", "Request", "ServingError", "State", "connect"]

FIRST_WAIT_SECONDS = 0.1

T = TypeVar("T")


def connect(
    url: str, *, timeout: float = 10.0, retries: int = 3, sleep: Callable[[float], None] = time.sleep
) -> Connection:
    """Open `grpc://host:port`, `http://host:port` or `https://host:port`; nothing is sent yet.

    A call that finds no server, or one that has no room (UNAVAILABLE, 503), is tried again up to `retries` times, with
    waits that double from 0.1 s. `timeout` is in seconds, of each try. Raises UserError where `url` is no such address.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise UserError(f"{url}: {error}") from error
    if parts.scheme in ("http", "https") and parts.hostname and not parts.query:
        return Connection(url, Rest(url.rstrip("/"), timeout), retries, sleep)
    if parts.scheme == "grpc" and parts.hostname and port and parts.path in ("", "/"):
        return Connection(url, Grpc(url, parts.netloc, timeout), retries, sleep)
    raise UserError(f"{url!r} is no address of a server; give grpc://HOST:8500, http://HOST:8501 or https://HOST")


class Connection:
    """An open way to one server; over REST for one thread at a time. Every call raises ServingError."""

    def __init__(self, url: str, way: Grpc | Rest, retries: int, sleep: Callable[[float], None]):
        self.url = url
        self._way = way
        self._retries = retries
        self._sleep = sleep
        self._known: dict[Which, Metadata] = {}

    def predict(
        self,
        model: str,
        images: Images,
        *,
        version: int | None = None,
        label: str | None = None,
        signature: str | None = None,
    ) -> dict[str, np.ndarray]:
        """The outputs for uint8 images [N,H,W,3], or for a list of encoded ones as bytes; see `prepare`."""
        return self.send(self.prepare(model, images, version=version, label=label, signature=signature))

    def prepare(
        self,
        model: str,
        images: Images,
        *,
        version: int | None = None,
        label: str | None = None,
        signature: str | None = None,
    ) -> Request:
        """Build a request; what the model takes is asked of the server once, and the images are held against it.

        `signature` is `serving_default` for pixels and `serving_bytes` for bytes unless given.
        """
        which = Which(model, version, label)
        name = signature or (BYTES if isinstance(images, list) else PIXELS)
        try:
            taker = _input(self._known[which], which, name, images)
        except (KeyError, ServingError):  # unknown yet, or a newer version is what answers by now
            self._known[which] = self.metadata(model, version=version, label=label)
            taker = _input(self._known[which], which, name, images)
        return self._way.request(which, name, taker, images)

    def send(self, request: Request) -> dict[str, np.ndarray]:
        """The outputs by name, each [N, ...]; text for strings."""
        found = self._ask(request.which, lambda: self._way.send(request))
        if found.keys() != {""}:
            return found
        which = request.which
        known = self._known.get(which) or self.metadata(which.model, version=which.version, label=which.label)
        (name,) = known.signatures[request.signature].outputs
        return {name: found[""]}

    def metadata(self, model: str, *, version: int | None = None, label: str | None = None) -> Metadata:
        """The version that answers now, and its signatures."""
        which = Which(model, version, label)
        return self._ask(which, lambda: messages.metadata(self._way.metadata(which)))

    def status(self, model: str) -> list[State]:
        """All versions of a model that the server knows of, newest first."""
        try:
            return self._try(lambda: messages.states(self._way.status(model)))
        except ServingError as error:
            if error.code == "NOT_FOUND":
                where = "the folders in saved_model of the exports that it serves, or those in its models.config"
                text = f"{self.url} serves no model {model!r}; the names are {where}"
                raise ServingError(error.code, text) from error
            raise

    def close(self) -> None:
        """Close it."""
        self._way.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, which: Which, call: Callable[[], T]) -> T:
        """The answer to a call about a model, with what there is in place of what was not found."""
        try:
            return self._try(call)
        except ServingError as error:
            if which.label is not None and "version label" in str(error):
                has = f"its versions: {self._there(which.model)}"
                hint = "labels come from a models.config given to the server; frostline serve EXPORTS sets none"
                text = f"{which.model} has no label {which.label!r}; {has}; {hint}"
                raise ServingError("NOT_FOUND", text) from error
            if error.code == "NOT_FOUND":
                there = self._there(which.model)
                asked = "version that answers" if which.version is None else f"version {which.version}"
                raise ServingError("NOT_FOUND", f"{which.model} has no {asked}; there are: {there}") from error
            raise

    def _there(self, model: str) -> str:
        """The versions of a model; raises ServingError where there is no such model."""
        return ", ".join(f"{one.version} {one.state}" for one in self.status(model))

    def _try(self, call: Callable[[], T]) -> T:
        for turn in range(self._retries):
            try:
                return self._read(call)
            except ServingError as error:
                if error.code != "UNAVAILABLE":
                    raise
            self._sleep(FIRST_WAIT_SECONDS * 2**turn)
        return self._read(call)

    def _read(self, call: Callable[[], T]) -> T:
        """The answer to a call; raises ServingError where it has not the form of one."""
        try:
            return call()
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            text = f"{self.url}: the answer is not that of a TensorFlow Serving; is this its address?"
            raise ServingError("UNKNOWN", text) from error


def _input(known: Metadata, which: Which, name: str, images: Images) -> str:
    """The name of the one input that the images are for; raises ServingError where they do not fit."""
    if name not in known.signatures:
        there = nearest(name, known.signatures)
        raise ServingError("INVALID_ARGUMENT", f"{which.model} has no signature {name!r}; {there}")
    given = Tensor("string", (len(images),)) if isinstance(images, list) else Tensor(str(images.dtype), images.shape)
    inputs = known.signatures[name].inputs
    fitting = [key for key, asked in inputs.items() if asked.dtype == given.dtype and _fits(given.shape, asked.shape)]
    if len(inputs) != 1 or not fitting or not len(images):
        takes = ", ".join(f"{key} {_written(asked)}" for key, asked in inputs.items())
        text = f"{which.model} takes {takes} at {name!r}, and was given {_written(given)}"
        raise ServingError("INVALID_ARGUMENT", text)
    return fitting[0]


def _fits(shape: tuple[int | None, ...] | None, asked: tuple[int | None, ...] | None) -> bool:
    if shape is None or asked is None:
        return asked is None
    return len(shape) == len(asked) and all(b in (None, a) for a, b in zip(shape, asked, strict=True))


def _written(tensor: Tensor) -> str:
    if tensor.shape is None:
        return f"{tensor.dtype} of any shape"
    return f"{tensor.dtype} [{','.join('N' if size is None else str(size) for size in tensor.shape)}]"
