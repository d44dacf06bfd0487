"""The store of features: what a frozen prefix says about a data set, computed once and shared by runs and studies.

An entry is a folder named by its key, with one raw file per split and tensor in C order, and `about.json`. It is made
in a hidden folder beside and renamed when all of it is written, so that what stands under a key was whole once. Three
locks, all free when their process is dead: `<key>.lock` while an entry is made, its `about.json` while it is in use,
and `.lock` while somebody makes room.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from frostline import machine
from frostline.errors import UserError, nearest
from frostline.records import now

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1
ABOUT = "about.json"
FOLDER = re.compile(r"(\.)?[0-9a-f]{64}(?(1)\..+)")  # <key>, or .<key>.<anything> for what is made or thrown away
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1}
SPARE_BYTES = 256 << 20  # left free on the disk, so that records and weights can still be written
KEY_DIGITS = 6  # the fewest that name an entry on the command line
ADVICE = "train with --engine plain, let FROSTLINE_CACHE name a larger disk, or type: frostline features clear"

Write = Callable[[str, "Sequence[np.ndarray]"], None]
Fill = Callable[[Write], "Mapping[str, Any] | None"]


class Damaged(Exception):
    """An entry that cannot be used; it is out of the way, and the next `compute` makes it anew."""


@dataclass(frozen=True)
class Layout:
    """What an entry holds: rows of each split, and the shape and dtype of each feature of one image."""

    rows: dict[str, int]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all features."""
        return sum(self.sizes().values())

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, by its name."""
        each = [math.prod(shape) * ITEM_BYTES[dtype] for shape, dtype in zip(self.shapes, self.dtypes, strict=True)]
        return {_file(split, i): rows * size for split, rows in self.rows.items() for i, size in enumerate(each)}


@dataclass(frozen=True)
class Features:
    """An open entry: for each split the features [rows, *shape], read-only; it is not removed until it is closed."""

    arrays: dict[str, tuple[np.ndarray, ...]]
    about: dict[str, Any]
    in_memory: bool
    held: contextlib.ExitStack

    @property
    def nbytes(self) -> int:
        """Bytes of all features."""
        return sum(array.nbytes for arrays in self.arrays.values() for array in arrays)

    def close(self) -> None:
        """Let the entry go; arrays that are still referred to stay valid."""
        self.held.close()

    def __enter__(self) -> Features:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(frozen=True)
class Entry:
    """A complete entry of the store: its bytes, when it was last used (seconds since 1970), what `about` says."""

    key: str
    nbytes: int
    used: float
    about: dict[str, Any]


@dataclass(frozen=True)
class Cleared:
    """Entries removed and their bytes, and how many stay because they are in use."""

    count: int
    nbytes: int
    left: int


def folder() -> Path:
    """Where the entries are."""
    return machine.cache() / "features"


def key(parts: Mapping[str, Any]) -> str:
    """The name of an entry, 64 hex digits: SHA-256 of all that its features depend on."""
    return _sha256_of(parts)


def about(key: str) -> dict[str, Any] | None:
    """What is known of an entry, None unless it is complete; files are looked at for their size alone.

    The facts given to `compute`, and `schema`, `key`, `layout`, `files` (name -> SHA-256) and `created`.
    """
    try:
        found = json.loads((folder() / key / ABOUT).read_bytes())
        seal = found["seal"]
        facts = {name: fact for name, fact in found.items() if name != "seal"}
        if seal != _sha256_of(facts) or (facts["schema"], facts["key"]) != (SCHEMA, key):
            return None
        sizes = {name: (folder() / key / name).stat().st_size for name in facts["files"]}
        return facts if sizes == _layout(facts).sizes() else None
    except (OSError, ValueError, KeyError, TypeError):  # whatever is wrong with it, it is made anew
        return None


def nbytes(key: str) -> int:
    """Bytes of the features of an entry; 0 unless it is complete."""
    facts = about(key)
    return _layout(facts).nbytes if facts else 0


# -- making ----------------------------------------------------------------------------------------


def compute(
    key: str,
    layout: Layout,
    about: Mapping[str, Any],
    fill: Fill,
    *,
    limit_bytes: int | None = None,
    waiting: Callable[[], None] = lambda: None,
) -> bool:
    """Make an entry unless it is there; returns whether it was made now.

    `fill(write)` calls `write(split, arrays)` for consecutive rows of each split, and may return facts to add to
    `about`. Another process that makes the same entry is waited for, after a call of `waiting`; who makes several at
    once, one `compute` in the `fill` of another, goes in the order of their keys, or two processes may wait for each
    other. Raises UserError when there is no room, before `fill` is called where it can be known; ValueError when other
    features are written than `layout` says. Whatever is raised, nothing is left behind.
    """
    if touched(key):
        return False
    with contextlib.ExitStack() as stack:
        with _explained():
            folder().mkdir(parents=True, exist_ok=True)
            stack.enter_context(_making(key, waiting=waiting))
            if touched(key):
                return False
            _clean(key)
            writer = stack.enter_context(_reserved(key, layout, limit_bytes))
        facts = {**about, **(fill(writer.write) or {})}
        with _explained():
            writer.finish({**facts, "schema": SCHEMA, "key": key, "layout": asdict(layout), "created": now()})
            writer.place.rename(folder() / key)
    return True


class _Writer:
    """The files of an entry in the making, hashed as they are written."""

    def __init__(self, place: Path, layout: Layout) -> None:
        self.place, self.layout = place, layout
        self.rows = dict.fromkeys(layout.rows, 0)
        self.files: dict[str, BinaryIO] = {}
        self.hashes = {name: hashlib.sha256() for name in layout.sizes()}

    def open(self) -> None:
        """Create the files with their final size, so that a full disk is found now."""
        self.place.mkdir()
        for name, size in self.layout.sizes().items():
            self.files[name] = (self.place / name).open("wb")
            _allocate(self.files[name].fileno(), size)

    def write(self, split: str, arrays: Sequence[np.ndarray]) -> None:
        """Append the same rows of each tensor to a split; raises ValueError, and UserError when the disk refuses."""
        import numpy as np

        self._check(split, arrays)
        for number, array in enumerate(arrays):
            name = _file(split, number)
            raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            with _explained():
                self.files[name].write(raw)
            self.hashes[name].update(raw)
        self.rows[split] += len(arrays[0])

    def finish(self, facts: dict[str, Any]) -> None:
        """Close the files and write `about.json`; raises ValueError when rows are missing."""
        if self.rows != self.layout.rows:
            raise ValueError(f"{self.rows} rows were written of {self.layout.rows}")
        for file in self.files.values():
            file.close()
        facts["files"] = {name: digest.hexdigest() for name, digest in self.hashes.items()}
        (self.place / ABOUT).write_text(json.dumps({**facts, "seal": _sha256_of(facts)}, indent=1), encoding="utf-8")

    def drop(self) -> None:
        """Remove what was not renamed."""
        for file in self.files.values():
            with contextlib.suppress(OSError):  # what a full disk still refuses of the buffer is not wanted
                file.close()
        shutil.rmtree(self.place, ignore_errors=True)

    def _check(self, split: str, arrays: Sequence[np.ndarray]) -> None:
        if split not in self.rows:
            raise ValueError(f"there is no split {split!r} in {self.layout}")
        expected = list(zip(self.layout.shapes, map(_dtype, self.layout.dtypes), strict=True))
        given = [(array.shape[1:], array.dtype) for array in arrays]
        if given != expected:
            raise ValueError(f"{split}: features of {given} were written, {expected} were announced")
        rows = {len(array) for array in arrays}
        if len(rows) > 1 or self.rows[split] + max(rows) > self.layout.rows[split]:
            raise ValueError(f"{split}: {rows} rows after {self.rows[split]} of {self.layout.rows[split]}")


@contextlib.contextmanager
def _reserved(key: str, layout: Layout, limit_bytes: int | None) -> Iterator[_Writer]:
    """A writer whose room is taken; its folder is gone at the end unless it was renamed."""
    writer = _Writer(_hidden(key), layout)
    try:
        with _locked(folder() / ".lock", create=True):
            room(layout.nbytes, limit_bytes)
            writer.open()
        yield writer
    finally:
        writer.drop()


def _allocate(handle: int, size: int) -> None:
    """Take the room of a file on the disk, where the system and the disk can."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise


# -- reading ---------------------------------------------------------------------------------------


def load(key: str, *, memory_bytes: int) -> Features:
    """Open an entry, every file checked against its SHA-256; raises Damaged.

    It is read into memory where all of it takes at most `memory_bytes`, and mapped from its files otherwise.
    """
    place = folder() / key
    with contextlib.ExitStack() as held:
        try:
            handle = held.enter_context(_locked(place / ABOUT, shared=True))
        except FileNotFoundError as error:
            raise Damaged(f"there are no features {key[:12]}; they are computed again") from error
        try:
            facts = touched(key)
            if facts is None:
                raise Damaged("incomplete")
            in_memory = _layout(facts).nbytes <= memory_bytes
            arrays = _arrays(place, facts, in_memory)
        except (Damaged, OSError) as error:
            if _is_at(handle, place / ABOUT):  # else somebody else saw it, and what is there now is another
                _discard(place)
            raise Damaged(f"the features {key[:12]} are damaged ({error}); they are computed again") from error
        return Features(arrays, facts, in_memory, held.pop_all())


def _arrays(place: Path, facts: dict[str, Any], in_memory: bool) -> dict[str, tuple[np.ndarray, ...]]:
    layout = _layout(facts)

    def one(split: str, number: int) -> np.ndarray:
        name = _file(split, number)
        shape = (layout.rows[split], *layout.shapes[number])
        return _array(place / name, facts["files"][name], _dtype(layout.dtypes[number]), shape, in_memory)

    return {split: tuple(one(split, number) for number in range(len(layout.shapes))) for split in layout.rows}


def _array(path: Path, sha256: str, dtype: np.dtype, shape: tuple[int, ...], in_memory: bool) -> np.ndarray:
    """The array in a file, read or mapped; raises Damaged when the file is not what was written."""
    import numpy as np

    with path.open("rb") as file:
        raw = np.fromfile(file, np.uint8) if in_memory else None
        found = hashlib.file_digest(file, "sha256") if raw is None else hashlib.sha256(raw.data)
        if found.hexdigest() != sha256:
            raise Damaged(f"{path.name} has changed")
        if raw is None:
            return np.memmap(file, dtype, "r", shape=shape)
    array = raw.view(dtype).reshape(shape)
    array.flags.writeable = False
    return array


def memory_budget(asked: int | None) -> int:
    """Bytes of features that may be read into memory: what was asked, else a third of what is available."""
    return (machine.available_memory_bytes() or 0) // 3 if asked is None else asked


# -- room ------------------------------------------------------------------------------------------


def limit() -> int:
    """Bytes that the store may hold: FROSTLINE_FEATURES_LIMIT in GiB, else half of what the disk could give it."""
    text = os.environ.get("FROSTLINE_FEATURES_LIMIT")
    if not text:
        return (_free() + _stored()) // 2
    try:
        gib = float(text)
    except ValueError:
        gib = math.nan
    if not 0 <= gib < math.inf:
        raise UserError(f"FROSTLINE_FEATURES_LIMIT = {text!r} is no number of GiB, such as 20 or 0.5")
    return int(gib * 2**30)


def capacity() -> int:
    """Bytes that one entry may have at most: the limit, and what the disk would have if the store were empty."""
    return max(0, min(limit(), _free() + _stored() - SPARE_BYTES))


def room(nbytes: int, limit_bytes: int | None = None) -> None:
    """See that `nbytes` more fit under the limit and on the disk; raises UserError when they cannot.

    Entries that are not in use are removed where that helps, those first that were not used for the longest time.
    """
    most = limit() if limit_bytes is None else limit_bytes
    if nbytes > most:
        raise _no_room(nbytes, f"the store may hold {size(most)} (FROSTLINE_FEATURES_LIMIT, in GiB)")
    _sweep()
    idle = [entry for entry in reversed(entries()) if not _in_use(entry.key)]
    if _lack(nbytes, most) <= sum(entry.nbytes for entry in idle):
        for entry in idle:
            if _lack(nbytes, most) <= 0:
                break
            _remove(entry.key)
    if nbytes + SPARE_BYTES > _free():
        raise _no_room(nbytes, f"the disk of {folder()} has {size(_free())} left")
    if _lack(nbytes, most) > 0:
        raise _no_room(nbytes, f"the store may hold {size(most)} and {size(_stored())} are in use")


def size(nbytes: float) -> str:
    """Bytes as a person says them."""
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"


def _lack(nbytes: int, most: int) -> int:
    """Bytes that have to go before `nbytes` fit under the limit and on the disk."""
    return max(_stored() + nbytes - most, nbytes + SPARE_BYTES - _free())


def _no_room(nbytes: int, reason: str) -> UserError:
    return UserError(f"the features need {size(nbytes)}, and {reason}; {ADVICE}")


def _free() -> int:
    """Free bytes of the disk that the store is on, or will be."""
    place = folder().absolute()
    return shutil.disk_usage(next(p for p in (place, *place.parents) if p.is_dir())).free


def _stored() -> int:
    """Bytes of all files of the store, those in the making too."""
    total = 0
    for place, _, names in os.walk(folder()):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                total += os.stat(os.path.join(place, name)).st_size
    return total


# -- the entries -----------------------------------------------------------------------------------


def entries() -> list[Entry]:
    """The complete entries, last used first."""
    found = []
    for name in _names():
        if facts := about(name):
            with contextlib.suppress(FileNotFoundError):
                used = (folder() / name / ABOUT).stat().st_mtime
                found.append(Entry(name, _layout(facts).nbytes, used, facts))
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def matching(starts: Sequence[str]) -> list[str]:
    """The keys that begin so; raises UserError for a start that is too short, or names none or several."""
    known = [entry.key for entry in entries()]
    found = {start: [key for key in known if key.startswith(start)] for start in starts}
    for start, keys in found.items():
        if len(start) < KEY_DIGITS:
            raise UserError(f"{start!r} is too short; give at least {KEY_DIGITS} digits of a key")
        if len(keys) != 1:
            noun = "several features begin with" if keys else "no features begin with"
            raise UserError(f"{noun} {start!r}; {nearest(start[:12], [key[:12] for key in known])}")
    return [keys[0] for keys in found.values()]


def clear(keys: Collection[str] | None = None) -> Cleared:
    """Remove entries, all where no keys are given, and what killed processes left; never what is in use."""
    chosen = [entry for entry in entries() if keys is None or entry.key in keys]
    with _explained():
        removed = [entry for entry in chosen if _remove(entry.key)]
        _sweep()
    return Cleared(len(removed), sum(entry.nbytes for entry in removed), len(chosen) - len(removed))


def _names() -> list[str]:
    """Names of all folders of the store that are ours, hidden ones too."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return [path.name for path in folder().iterdir() if FOLDER.fullmatch(path.name) and path.is_dir()]
    return []


def touched(key: str) -> dict[str, Any] | None:
    """What `about` says; a complete entry counts as used now."""
    facts = about(key)
    if facts is not None:
        with contextlib.suppress(OSError):  # removed since, or another person's
            os.utime(folder() / key / ABOUT)
    return facts


def _remove(key: str) -> bool:
    """Remove an entry; False when it is in use or gone."""
    with contextlib.suppress(BlockingIOError, FileNotFoundError), _locked(folder() / key / ABOUT, wait=False):
        _discard(folder() / key)
        return True
    return False


def _in_use(key: str) -> bool:
    try:
        with _locked(folder() / key / ABOUT, wait=False):
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False


def _sweep() -> None:
    """Remove what killed processes and damage left, except of an entry that somebody is making."""
    for name in {name.strip(".")[:64] for name in _names() if name.startswith(".") or about(name) is None}:
        with contextlib.suppress(BlockingIOError), _making(name, wait=False):
            _clean(name)


def _clean(key: str) -> None:
    """Remove all of a key that is no complete entry; the caller holds the lock for making it."""
    if (folder() / key).exists() and about(key) is None:
        _discard(folder() / key)
    for place in folder().glob(f".{key}.*"):
        shutil.rmtree(place, ignore_errors=True)


def _discard(place: Path) -> None:
    """Take an entry away at once, then its files."""
    hidden = _hidden(place.name)
    with contextlib.suppress(FileNotFoundError):
        place.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


# -- small parts -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(path: Path, *, shared: bool = False, wait: bool = True, create: bool = False) -> Iterator[int]:
    """Hold the lock of the file that stands at `path` now; yields its descriptor.

    Raises FileNotFoundError, and BlockingIOError where it is held and we do not wait.
    """
    import fcntl

    flags = (os.O_RDONLY if shared else os.O_RDWR) | (os.O_CREAT if create else 0)  # NFS locks what is open to write
    while True:
        handle = os.open(path, flags, 0o644)
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            if _is_at(handle, path):  # else it was removed while we waited
                yield handle
                return
        finally:
            os.close(handle)


@contextlib.contextmanager
def _making(key: str, *, wait: bool = True, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Be the only one who makes an entry or cleans up after its makers."""
    path = folder() / f"{key}.lock"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(path, wait=False, create=True))
        except BlockingIOError:
            if not wait:
                raise
            waiting()
            stack.enter_context(_locked(path, create=True))
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What the disk refuses, as a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot keep features in {folder()}: {error.strerror or error}; {ADVICE}") from error


def _hidden(key: str) -> Path:
    return folder() / f".{key}.{secrets.token_hex(4)}"


def _file(split: str, number: int) -> str:
    return f"{split}.{number}.bin"


def _layout(facts: dict[str, Any]) -> Layout:
    layout = facts["layout"]
    return Layout(layout["rows"], tuple(map(tuple, layout["shapes"])), tuple(layout["dtypes"]))


def _dtype(name: str) -> np.dtype:
    import ml_dtypes
    import numpy as np

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _sha256_of(value: Mapping[str, Any]) -> str:
    """Hex SHA-256 of canonical JSON: a key is a string and a tuple a list before they are put in order."""
    plain = json.loads(json.dumps(value))
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
