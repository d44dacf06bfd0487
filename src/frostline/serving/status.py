"""What a request can end with: the status codes of gRPC, and the HTTP status that REST gives each of them."""

import asyncio

import grpc

CODES = [code.name for code in sorted(grpc.StatusCode, key=lambda code: code.value[0])]
HTTP = (200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401)
HTTP_STATUS = dict(zip(CODES, HTTP, strict=True))


class Refused(Exception):
    """A request, or a version to load, that ends with `code` and `message`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


def invalid(message: str) -> Refused:
    """A request that nobody could answer."""
    return Refused("INVALID_ARGUMENT", message)


def refused(error: BaseException) -> Refused:
    """Any error as what the caller is told."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, asyncio.TimeoutError):
        return Refused("DEADLINE_EXCEEDED", "Timed out waiting for the model")
    if isinstance(error, (UnicodeEncodeError, RecursionError)):  # Python's JSON lets half a character in
        return invalid(f"JSON Parse error: {error}")
    if isinstance(code := getattr(error, "error_code", None), int):  # TensorFlow's
        return Refused(CODES[code], str(getattr(error, "message", error)))
    return Refused("INTERNAL", f"{type(error).__name__}: {error}")
