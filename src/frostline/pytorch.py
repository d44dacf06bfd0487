"""Tensors of a PyTorch file of the old form, read without PyTorch. Such a file is a program, and none of it runs."""

import io
import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline.errors import UserError

if TYPE_CHECKING:
    import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}


def read(path: Path) -> "dict[str, np.ndarray]":
    """The tensors of a file by name, in its order, as views that cannot be written; raises UserError."""
    try:
        return _read(io.BytesIO(path.read_bytes()))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # what is written by anybody can be wrong in any way
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise UserError(f"{path} is not a PyTorch file of the old form, or damaged: {reason[:200]}") from error


class _Unpickler(pickle.Unpickler):
    """Makes dicts and tuples of what a file of tensors names, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *parts: parts  # a new one each time, for a file can change what it is given
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise ValueError(f"it asks for {f'{module}.{name}'!r}")

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _load(file: io.BytesIO) -> Any:
    return _Unpickler(file).load()


def _read(file: io.BytesIO) -> "dict[str, np.ndarray]":
    if (_load(file), _load(file)) != (MAGIC, PROTOCOL):
        raise ValueError("it begins with other numbers")
    if _load(file)["little_endian"] is not True:
        raise ValueError("its numbers are big-endian")
    tensors = dict(OrderedDict.items(_load(file)))
    declared = {key: (dtype, size) for (_, dtype, key, _, size, _), *_ in tensors.values()}
    storages = {key: _storage(file, *declared[key]) for key in _load(file)}
    if file.read(1):
        raise ValueError("it goes on behind its last tensor")
    return {name: _view(storages, *parts) for name, parts in tensors.items()}


def _storage(file: io.BytesIO, dtype: str, size: int) -> "np.ndarray":
    """The numbers that come next in the file, as many as were declared."""
    import numpy as np

    written = int.from_bytes(file.read(8), "little")
    if dtype not in DTYPES.values() or written != size:
        raise ValueError(f"{written} numbers where {size} are declared")
    count = written * np.dtype(dtype).itemsize
    raw = file.read(count)
    if len(raw) != count:
        raise ValueError("it ends early")
    return np.frombuffer(raw, dtype)


def _view(
    storages: "dict[str, np.ndarray]", storage: Any, offset: Any, shape: Any, strides: Any, *_: Any
) -> "np.ndarray":
    """A tensor as the part of its storage that offset and strides, in numbers and not bytes, pick out."""
    import numpy as np

    numbers = storages[storage[2]]
    if not _fits(len(numbers), offset, shape, strides):
        raise ValueError("a tensor reaches out of its storage")
    start = numbers[min(offset, len(numbers)) :]
    return np.lib.stride_tricks.as_strided(start, shape, [step * numbers.itemsize for step in strides], writeable=False)


def _fits(count: int, offset: Any, shape: Any, strides: Any) -> bool:
    """Whether a tensor lies within so many numbers, and is no larger than they are."""
    if not all(type(x) is int and x >= 0 for x in (offset, *shape, *strides)) or len(shape) != len(strides):
        return False
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    return 0 in shape or (last < count and math.prod(shape) <= count)
