import io
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest

from frostline import pytorch
from frostline.errors import UserError

STORAGES = {"<f4": "FloatStorage", "<i8": "LongStorage", "<f2": "HalfStorage"}
ABOUT = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}


class Tensor:
    """What a file says of a tensor: numbers, and the part of them that it is."""

    def __init__(self, numbers, offset=0, shape=None, strides=None, key=None, size=None):
        self.numbers, self.key = np.ascontiguousarray(numbers).ravel(), key or str(id(self))
        self.size = len(self.numbers) if size is None else size
        self.shape = np.shape(numbers) if shape is None else shape
        self.strides = strides or tuple(int(np.prod(self.shape[i + 1 :])) for i in range(len(self.shape)))
        self.offset = offset

    def __reduce__(self):
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        return rebuild, (Storage(self), self.offset, self.shape, self.strides, False, OrderedDict())


class Storage:
    def __init__(self, tensor):
        self.tensor = tensor


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            kind = getattr(sys.modules["torch"], STORAGES[obj.tensor.numbers.dtype.str])
            return ("storage", kind, obj.tensor.key, "cpu", obj.tensor.size, None)
        return None


@pytest.fixture(autouse=True)
def _torch(monkeypatch):
    """Modules for pickle to find names in; nothing of PyTorch is needed to write a file either."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in STORAGES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    exec("def _rebuild_tensor_v2(): ...", utils.__dict__)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def write(path, tensors, about=ABOUT, first=pytorch.MAGIC, behind=b""):
    """Write a file as PyTorch did until its version 1.6."""
    state = OrderedDict(tensors)
    state._metadata = OrderedDict(version=1)  # as those of PyTorch have
    storages = {x.key: x.numbers for x in tensors.values() if isinstance(x, Tensor)}
    file = io.BytesIO()
    for part in (first, pytorch.PROTOCOL, about, state, list(storages)):
        Pickler(file, protocol=2).dump(part)
    for numbers in storages.values():
        file.write(len(numbers).to_bytes(8, "little") + numbers.tobytes())
    path.write_bytes(file.getvalue() + behind)
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "weights.pth"


def test_tensors_are_read_in_order_whatever_their_layout(file):
    numbers = np.arange(24, dtype=np.float32)
    parts = {"offset": Tensor(numbers, 4, (2, 3), (3, 1)), "turned": Tensor(numbers, 0, (4, 6), (1, 4))}
    plain = {"count": Tensor(np.array(7)), "half": Tensor(np.ones((2, 2), np.float16)), "none": Tensor(numbers[:0])}
    found = pytorch.read(write(file, {**parts, **plain}))
    assert list(found) == ["offset", "turned", "count", "half", "none"]
    assert np.array_equal(found["offset"], numbers[4:10].reshape(2, 3))
    assert np.array_equal(found["turned"], numbers.reshape(6, 4).T)
    assert found["count"] == 7 and found["half"].dtype == np.float16 and found["none"].shape == (0,)
    with pytest.raises(ValueError, match="read-only"):
        found["turned"][0, 0] = 1


def test_tensors_may_share_their_numbers(file):
    numbers = np.arange(6, dtype=np.float32)
    pair = {"a": Tensor(numbers, key="s"), "b": Tensor(numbers, 2, (2,), (2,), key="s")}
    found = pytorch.read(write(file, pair))
    assert found["b"].tolist() == [2, 4] and np.shares_memory(found["a"], found["b"])


class Hostile:
    def __init__(self, function, *args):
        self.parts = function, args

    def __reduce__(self):
        return self.parts


SIX = np.arange(6, dtype=np.float32)


@pytest.mark.parametrize(
    ("tensors", "settings", "reason"),
    [
        ({"a": Tensor(SIX, 1, (6,), (1,))}, {}, "a tensor reaches out of its storage"),
        ({"a": Tensor(SIX, 5, (3,), (-1,))}, {}, "a tensor reaches out of its storage"),
        ({"a": Tensor(SIX, -1, (3,), (1,))}, {}, "a tensor reaches out of its storage"),
        ({"a": Tensor(SIX, 0, (2**20, 2**20), (0, 0))}, {}, "a tensor reaches out of its storage"),
        ({"a": Tensor(SIX, 0, (2, 3), (1,))}, {}, "a tensor reaches out of its storage"),
        ({"a": Tensor(SIX, size=2**40)}, {}, f"6 numbers where {2**40} are declared"),
        ({"a": Tensor(SIX)}, {"behind": b"more"}, "it goes on behind its last tensor"),
        ({"a": Tensor(SIX)}, {"about": {**ABOUT, "little_endian": False}}, "its numbers are big-endian"),
        ({"a": Tensor(SIX)}, {"first": 3}, "it begins with other numbers"),
        ({"a": [1, 2]}, {}, "cannot unpack"),
        ({"a": Hostile(eval, "1")}, {}, r"it asks for '(__builtin__|builtins)\.eval'"),
        ({"a": Hostile(getattr, 1, "real")}, {}, r"it asks for '(__builtin__|builtins)\.getattr'"),
    ],
)
def test_a_file_that_lies_is_refused_in_one_line(file, tensors, settings, reason):
    write(file, tensors, **settings)
    with pytest.raises(UserError, match=rf"weights\.pth is not a PyTorch file of the old form, or damaged: .*{reason}"):
        pytorch.read(file)


def test_a_file_cannot_run_anything(file, tmp_path):
    import os

    write(file, {"a": Hostile(os.mkdir, str(tmp_path / "made"))})
    with pytest.raises(UserError, match=r"it asks for 'posix\.mkdir'"):
        pytorch.read(file)
    assert not (tmp_path / "made").exists()


def test_a_file_cut_short_anywhere_is_refused(file):
    whole = write(file, {"a": Tensor(SIX), "b": Tensor(SIX, 0, (2,), (1,))}).read_bytes()
    for length in [*range(0, len(whole), 5), len(whole) - 4]:
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"weights\.pth is not a PyTorch file"):
            pytorch.read(file)


def test_a_file_that_is_not_there(file):
    with pytest.raises(UserError, match=r"cannot read .*weights\.pth: No such file"):
        pytorch.read(file)
