"""What a request can end with: the status codes of gRPC, and the HTTP status that REST gives each of them."""

import asyncio
from typing import Any

HTTP_STATUS = {
    "OK": 200,
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}  # in the order of TensorFlow's and gRPC's numbers, from 0


class Refused(Exception):
    """A request, or a version to load, that ends with `code` and `message`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def invalid(message: str) -> Refused:
    return Refused("INVALID_ARGUMENT", message)


def refused(error: BaseException) -> Refused:
    """Any error as what the caller is told."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, asyncio.TimeoutError):
        return Refused("DEADLINE_EXCEEDED", "Timed out waiting for the model")
    code = getattr(error, "error_code", None)  # of TensorFlow's errors
    if isinstance(code, int):
        return Refused(code_name(code), str(getattr(error, "message", error)))
    return Refused("INTERNAL", f"{type(error).__name__}: {error}")


def code_name(number: int) -> str:
    """The name of TensorFlow's and gRPC's status number."""
    return list(HTTP_STATUS)[number]


def code_number(name: str) -> Any:
    """The number of a status, as the protos hold it."""
    return list(HTTP_STATUS).index(name)
