"""Version folders: numbered, built out of sight, shown by one rename for each kind, never touched again.

A version is published by the rename of its last kind, the SavedModel, which is what a server polls for. Until then its
staging folder stays, and says that what there is of the version already is unfinished.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from frostline.errors import UserError

KINDS = ("keras", "onnx", "saved_model")  # the order in which a version appears
MANIFEST = "manifest.json"


def next_version(exports: Path, name: str) -> int:
    """One above the highest number that any kind holds, so that a number is never used for two models."""
    return 1 + max((number for kind in KINDS for number in _numbers(exports / kind / name)), default=0)


def current(exports: Path, name: str, kind: str = "onnx") -> dict[str, Any] | None:
    """The manifest of one kind of a model's newest complete version, None where there is none."""
    folders = [exports / of / name for of in KINDS]
    complete = set.intersection(*map(_numbers, folders))
    described = [n for n in complete if all((folder / str(n) / MANIFEST).is_file() for folder in folders)]
    if not described:
        return None
    path = exports / kind / name / str(max(described)) / MANIFEST
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; move the version's folder away and export again") from error


def manifests(exports: Path, kind: str = "onnx") -> list[dict[str, Any]]:
    """The newest manifest of every model, ordered by name."""
    names = sorted(folder.name for folder in (exports / KINDS[-1]).glob("*"))
    return [manifest for name in names if (manifest := current(exports, name, kind))]


def unfinished(exports: Path, name: str) -> set[int]:
    """Versions that an export is making, or was when it was killed; what is published is none of them."""
    folder = exports / KINDS[-1] / name
    found = (re.fullmatch(r"\.tmp-(\d+)-.*", path.name) for path in folder.glob(".tmp-*"))
    return {int(match[1]) for match in found if match} - _numbers(folder)


def _numbers(folder: Path) -> set[int]:
    return {int(path.name) for path in folder.glob("*") if path.name.isdecimal()}


# -- publishing ------------------------------------------------------------------------------------


@contextmanager
def staging(exports: Path, name: str, version: int) -> Iterator[dict[str, Path]]:
    """An empty folder per kind, on the file system of its future place; what is not shown at the end is removed.

    So is what an export that was killed has left. Only one may be at work in a folder.
    """
    mark = f".tmp-{version}-{secrets.token_hex(4)}"
    folders = {kind: exports / kind / name / mark for kind in KINDS}
    _sweep(exports, name)
    for folder in folders.values():
        folder.mkdir(parents=True)
    try:
        yield folders
    finally:
        _sweep(exports, name)


def _sweep(exports: Path, name: str) -> None:
    """Remove staging folders, but first what was shown of their versions: without the folder it would seem whole."""
    for version in unfinished(exports, name):
        for folder in (exports / kind / name for kind in KINDS[:-1]):
            if not list(folder.glob(f".tmp-{version}-*")):
                shutil.rmtree(folder / str(version), ignore_errors=True)
    for kind in KINDS:
        for leftover in (exports / kind / name).glob(".tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def describe(folder: Path, about: dict[str, Any]) -> int:
    """Write `manifest.json` with the facts, sizes and SHA-256 of the folder's files; returns their bytes together."""
    sizes = {name: path.stat().st_size for name, path in contents(folder).items()}
    size = sum(sizes.values())
    told = {**about, "size_bytes": size, "sizes": sizes, "sha256": sums(folder)}
    (folder / MANIFEST).write_text(json.dumps(told, indent=2, allow_nan=False) + "\n")
    return size


def contents(folder: Path) -> dict[str, Path]:
    """The files of a version folder by name, but for its manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files if path != folder / MANIFEST}


def sums(folder: Path) -> dict[str, str]:
    """Hex SHA-256 of each file of a version folder, by name."""
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in contents(folder).items()}


def show(folders: dict[str, Path], version: int) -> dict[str, Path]:
    """Rename finished folders of `staging` to their number, the last kind last; returns where they are."""
    return {kind: _reveal(folders[kind], version) for kind in KINDS}


def _reveal(folder: Path, version: int) -> Path:
    """Rename a folder once all of it is on the disk and readable by every user."""
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        _sync(path)
    final = folder.with_name(str(version))
    os.rename(folder, final)  # refuses a folder that holds something
    _sync(final.parent)
    return final


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
