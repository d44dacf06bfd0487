"""The results folder: one JSON line per finished run, appended and never changed."""

import contextlib
import datetime
import json
import math
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline.errors import UserError

SCHEMA = 1
# What is measured of each cell of artifact, runtime and scenario.
FIGURES = (
    "images_per_second",
    "latency_p50_seconds",
    "latency_p90_seconds",
    "latency_p95_seconds",
    "latency_p99_seconds",
    "count",
)
FILE = "records.jsonl"


def run_folder(results: Path, run: str) -> Path:
    """Where the weights, the predictions and the log of a run are."""
    return results / "runs" / run


class Damaged(Exception):
    """Predictions that cannot be read."""


def predictions(results: Path, run: str) -> dict[str, Any] | None:
    """Probabilities, labels and keys of images that a run left, by name; None where it left none. Raises Damaged."""
    import zipfile
    import zlib

    import numpy as np

    path = run_folder(results, run) / "predictions.npz"
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file) as kept:  # which leaves a file of its own open where it is damaged
            return dict(kept)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Damaged(f"cannot read {path}: {error}") from error


def weights_file(results: Path, run: str) -> Path:
    """The weights that a finished run leaves."""
    return run_folder(results, run) / "weights.weights.h5"


def now() -> str:
    """The time for a record, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


@contextlib.contextmanager
def lock(folder: Path, what: str = "results") -> Iterator[None]:
    """Hold a folder of results or exports for one writing command.

    Raises UserError when another holds it or it is not writable.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / f".{what}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        reason = f"cannot write to the {what} folder {folder}: {error.strerror}"
        raise UserError(f"{reason}; choose --{what} DIR") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            raise UserError(
                f"another frostline command (process {holder}) is writing to {folder}; "
                f"wait for it, or choose another --{what} DIR"
            ) from None
        with contextlib.suppress(OSError):  # who holds it is for the other command's message alone
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def append(results: Path, record: dict[str, Any]) -> None:
    """Add one record durably; raises UserError when the disk refuses it, and then leaves the file as it was."""
    line = json.dumps({"schema": SCHEMA, **finite(record)}, allow_nan=False, ensure_ascii=False) + "\n"
    path = results / FILE
    try:
        _drop_torn_line(path)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            data = line.encode()
            try:
                if os.write(handle, data) != len(data):
                    raise OSError(28, "no space left on device")
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space, or give another results folder"
        ) from error


def read(results: Path) -> list[dict[str, Any]]:
    """All records, oldest first; a line torn by a crash at the very end is not a record. Raises UserError."""
    path = results / FILE
    if not path.is_file():
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return [_parse(line, f"{path}:{i}") for i, line in enumerate(lines[:-1], 1) if line]


def finite(value: Any) -> Any:
    """The same value with NaN and infinities as null, which JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        schema = int(record["schema"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{where} is not a frostline record; move the file away, or give another results folder"
        ) from error
    if schema != SCHEMA:
        advice = "upgrade frostline" if schema > SCHEMA else "run the study again into another results folder"
        raise UserError(f"{where} has schema {schema}, this frostline reads {SCHEMA}; {advice}")
    return record


def _drop_torn_line(path: Path) -> None:
    """Cut what a crash left behind the last newline, so that the next record starts on a line of its own."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


@dataclass(frozen=True)
class Configuration:
    """The newest records of one freeze configuration, one per seed, and how many older ones share its name."""

    study: str
    freeze: str
    variant: str
    rows: list[dict[str, Any]]
    others: int

    @property
    def finished(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["outcome"] == "ok"]

    @property
    def trial(self) -> bool:
        """Whether it is a trial of a search, which is not published unless asked for."""
        search = self.rows[-1].get("search")
        return bool(search and not search["best"])

    @property
    def representative(self) -> dict[str, Any] | None:
        """The finished run with the median validation accuracy (the lower one of two): the one that is exported."""
        ordered = sorted(self.finished, key=lambda row: (row["validation_top1"], row["seed"]))
        return ordered[(len(ordered) - 1) // 2] if ordered else None


MARKS = {
    "‡": "inference_prefix: what is frozen ran as in inference, without its dropout.",
    "†": "validated on test, as the document did.",
    "§": "augment_views: each epoch showed one of a few views of each image that were drawn once.",
}


def marks(record: dict[str, Any]) -> str:
    """Those of MARKS that a training record or a row of the tables bears, each behind a space."""
    borne = {
        "†": record["protocol"] == "document",
        "‡": "inference_prefix" in (record.get("frontier") or ""),
        "§": record.get("augment_views"),
    }
    return "".join(f" {mark}" for mark, given in borne.items() if given)


def explained(records: Iterable[dict[str, Any]]) -> list[str]:
    """A line for each of MARKS that one of some records bears."""
    borne = {mark for record in records for mark in marks(record).split()}
    return [f"{mark} {meaning}" for mark, meaning in MARKS.items() if mark in borne]


def configurations(records: list[dict[str, Any]], wanted: Collection[str] | None = None) -> list[Configuration]:
    """Training records by study, freeze configuration and variant, in the order of the studies and within a study.

    Two identities are never mixed, nor two machines or effective settings: those of the newest record are shown, the
    others are counted. `wanted` restricts to some identities without their seeds.
    """
    train = [r for r in records if r["kind"] == "train" and (wanted is None or r["configuration"] in wanted)]
    found = []
    for key in dict.fromkeys((r["study"], r["freeze"], r["variant"]) for r in train):
        same = sorted((r for r in train if (r["study"], r["freeze"], r["variant"]) == key), key=lambda r: r["time"])
        newest = _setting(next((r for r in reversed(same) if r["outcome"] == "ok"), same[-1]))
        if newest[0] != same[-1]["configuration"]:  # what was asked last has only failed
            newest = _setting(same[-1])
        shown = [
            r for r in same if _setting(r) == newest or (r["outcome"], r["configuration"]) == ("failed", newest[0])
        ]
        by_seed = {r["seed"]: r for r in shown}
        rows = [by_seed[seed] for seed in sorted(by_seed)]
        hidden = {_setting(r) for r in same if r["outcome"] == "ok"} - {newest}
        found.append(Configuration(*key, rows, len(hidden)))
    studies = list(dict.fromkeys(c.study for c in found))
    return sorted(found, key=lambda c: (studies.index(c.study), c.rows[-1].get("place", [])))


def _setting(record: dict[str, Any]) -> tuple[Any, ...]:
    """What runs have to share to be averaged: the identity without the seed, and what was in effect."""
    effective = (record.get(key) for key in ("precision", "xla", "engine", "device"))
    return (record["configuration"], *effective, (record.get("machine") or {}).get("cpu"))
