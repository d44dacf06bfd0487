"""TensorFlow Serving's REST API, in its row form, over one connection that is kept."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from frostline.client.messages import Request, ServingError, Which

if TYPE_CHECKING:
    import numpy as np

    from frostline.client.messages import Images

# HTTP status -> the code that gRPC has for it, as TensorFlow Serving pairs them.
CODES = {
    400: "INVALID_ARGUMENT",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class Rest:
    """One kept connection, to be used by one thread at a time."""

    def __init__(self, url: str, timeout: float):
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        assert parts.hostname
        self._connection = kind(parts.hostname, parts.port, timeout=timeout)
        self._url = url
        self._timeout = timeout
        self._prefix = parts.path

    def request(self, which: Which, signature: str, name: str, images: Images) -> Request:
        """See `request`; a request in row form with a single input does not name it."""
        return request(which, signature, images)

    def send(self, request: Request) -> dict[str, np.ndarray]:
        """The outputs by name; a single one comes without its name and is called ``."""
        return answer(self._call("POST", request.path, request.payload))

    def metadata(self, which: Which) -> dict[str, Any]:
        """The answer of `GET .../metadata`."""
        return self._call("GET", f"{_path(which)}/metadata")

    def status(self, model: str) -> dict[str, Any]:
        """The answer of `GET /v1/models/NAME`."""
        return self._call("GET", _path(Which(model)))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _call(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        try:
            status, raw = self._exchange(method, self._prefix + path, body)
        except TimeoutError as error:
            self.close()
            raise ServingError("DEADLINE_EXCEEDED", f"{self._url}: no answer within {self._timeout:g} s") from error
        except (OSError, http.client.IncompleteRead) as error:
            self.close()
            hint = "is the server up, and is this its REST port?"
            raise ServingError("UNAVAILABLE", f"{self._url}: no answer ({error}); {hint}") from error
        except http.client.HTTPException as error:
            self.close()
            text = f"{self._url}: what answers there speaks no HTTP; is it the gRPC port?"
            raise ServingError("UNKNOWN", text) from error
        try:
            found = json.loads(raw)
            if status == 200:
                return found
            text = found["error"]
        except (ValueError, KeyError, TypeError):
            text = f"HTTP {status}, {raw[:80].decode(errors='replace')!r}"
        raise ServingError(CODES.get(status, "UNKNOWN"), f"{self._url}: {text}")

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Status and body of the answer; what a server closed while it was idle is opened once more."""
        kept = self._connection.sock is not None
        headers = {"Content-Type": "application/json"} if body else {}
        try:
            # A server that wants no more of a body answers and closes before it has read the rest.
            with contextlib.suppress(BrokenPipeError):
                self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            return response.status, response.read()
        except ConnectionError:
            self.close()
            if not kept:
                raise
        return self._exchange(method, path, body)


def _path(which: Which) -> str:
    path = f"/v1/models/{quote(which.model, safe='')}"
    if which.version is not None:
        return f"{path}/versions/{which.version}"
    return path if which.label is None else f"{path}/labels/{quote(which.label, safe='')}"


def request(which: Which, signature: str, images: Images) -> Request:
    """A predict request in row form: uint8 [N,H,W,3] as nested lists, or encoded images as base64."""
    if isinstance(images, list):
        rows: list[Any] = [{"b64": base64.b64encode(image).decode()} for image in images]
    else:
        rows = images.tolist()
    body = json.dumps({"signature_name": signature, "instances": rows}, separators=(",", ":"))
    return Request(which, signature, f"{_path(which)}:predict", body.encode())


def answer(body: dict[str, Any]) -> dict[str, np.ndarray]:
    """The outputs of an answer in row form; numbers with a point are float32, whole ones int64, strings text.

    A single output has no name in JSON, and here the empty one.
    """
    rows = body["predictions"]
    if not isinstance(rows[0], dict) or rows[0].keys() == {"b64"}:
        return {"": _array(rows)}
    return {name: _array([row[name] for row in rows]) for name in rows[0]}


def _array(values: list[Any]) -> np.ndarray:
    import numpy as np

    array = np.array(values)
    if array.dtype == object:  # {"b64": ...}
        decoded = [base64.b64decode(value["b64"]) for value in array.ravel()]
        return np.array(decoded, dtype=object).reshape(array.shape)
    return array.astype(np.float32) if array.dtype == np.float64 else array
