"""What is asked and answered, whichever way it travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from frostline.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    Images: TypeAlias = np.ndarray | list[bytes]

PIXELS, BYTES = "serving_default", "serving_bytes"
DTYPES = {"DT_FLOAT": "float32", "DT_DOUBLE": "float64", "DT_HALF": "float16"}  # the others are called as they are


class ServingError(UserError):
    """The server is not there or did not answer as asked; `code` is gRPC's word for it, over REST too."""

    def __init__(self, code: str, text: str):
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Which:
    """A model and which of its versions: a number, a label, or neither for the newest."""

    model: str
    version: int | None = None
    label: str | None = None


@dataclass(frozen=True)
class Tensor:
    """One input or output of a signature; `dtype` in NumPy's words or `string`, None in `shape` is any size."""

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs by their names."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


@dataclass(frozen=True)
class Metadata:
    """What the server says of a model: the version that answers, and its signatures by name."""

    version: int
    signatures: dict[str, Signature]


@dataclass(frozen=True)
class State:
    """One version as the server sees it: START, LOADING, AVAILABLE, UNLOADING or END, and its error if it has one."""

    version: int
    state: str
    error: str


@dataclass(frozen=True)
class Request:
    """A request that may be sent as often as one likes; `payload` is what travels besides headers."""

    which: Which
    signature: str
    path: str
    payload: bytes


def metadata(answer: dict[str, Any]) -> Metadata:
    """The JSON form of GetModelMetadataResponse, as dataclasses; signatures without inputs are left out."""
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    return Metadata(
        int(answer["model_spec"]["version"]),
        {
            name: Signature(_tensors(about["inputs"]), _tensors(about.get("outputs", {})))
            for name, about in sorted(signatures.items())
            if about.get("inputs")
        },
    )


def _tensors(about: dict[str, Any]) -> dict[str, Tensor]:
    return {name: Tensor(_dtype(one["dtype"]), _shape(one.get("tensor_shape", {}))) for name, one in about.items()}


def _dtype(name: str) -> str:
    return DTYPES.get(name, name.removeprefix("DT_").lower())


def _shape(about: dict[str, Any]) -> tuple[int | None, ...] | None:
    if about.get("unknown_rank"):
        return None
    sizes = [int(dim.get("size", 0)) for dim in about.get("dim", [])]
    return tuple(None if size < 0 else size for size in sizes)


def states(answer: dict[str, Any]) -> list[State]:
    """The JSON form of GetModelStatusResponse, as dataclasses, newest version first."""
    found = [
        State(int(one["version"]), one["state"], one.get("status", {}).get("error_message", ""))
        for one in answer.get("model_version_status", [])
    ]
    return sorted(found, key=lambda state: -state.version)
