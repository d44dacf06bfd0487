"""`exports/serving/`: TensorFlow Serving's configuration, a compose file, requests to try, and what the models take."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frostline import batching, machine
from frostline.deploy import config, rollout, texts
from frostline.errors import UserError, nothing_published

ROOT = "/models"
# The measured batch size is the smallest that gives this share of the best throughput.
GOOD_ENOUGH = 0.9
MAX_TIMEOUT_MICROS = 10_000

Record = dict[str, Any]


def bundle(exports: Path, records: Sequence[Record] = (), *, models_at: str | None = None) -> tuple[Path, list[str]]:
    """Write or renew `exports/serving`; returns the folder and what a person should know of it.

    New models are added with their newest version, those whose folders have gone are left out, and the versions and
    labels of the others stay as they are: `frostline rollout` changes those. `records` are measurements for the batch
    sizes; `models_at` is where the server sees `exports/saved_model`. Raises UserError where nothing is published.
    """
    folder = exports / "serving"
    there = published(exports)
    if not there:
        raise nothing_published(exports)
    whole, told = _models(folder / config.FILE, there, models_at)
    served = {entry.name: entry for entry in whole.model_config_list.config}
    sizes, timeout, reason = batch_sizes(records)
    threads = batching.threads(machine.cores())
    root = next(iter(served.values())).base_path.rpartition("/")[0]
    config.write(folder / config.FILE, whole)
    files = {
        "batching.config": texts.batching(
            batching.parameters(sizes, timeout_micros=timeout, threads=threads), reason, threads
        ),
        "monitoring.config": texts.MONITORING,
        "docker-compose.yml": texts.compose(root, batch=len(sizes) > 1),
        "request.json": texts.request(_picture()),
    }
    for name, text in files.items():
        config.replace(folder / name, text)
    for name, text in {"curl.sh": texts.curl(list(served)), "health.sh": texts.health(list(served))}.items():
        config.replace(folder / name, text, mode=0o755)
    describe(exports)
    return folder, told


def describe(exports: Path) -> None:
    """Write the README of `exports/serving` anew: what the stable version of each model takes; raises UserError."""
    from frostline import protos

    folder = exports / "serving"
    entries = config.read(folder / config.FILE).model_config_list.config
    manifests = {entry.name: _manifest(exports, entry.name, config.served(entry).stable) for entry in entries}
    sizes = protos.read(folder / "batching.config", protos.BatchingParameters).allowed_batch_sizes
    config.replace(folder / "README.md", texts.readme(manifests, sizes or batching.ALLOWED_SIZES))


def published(exports: Path) -> dict[str, list[int]]:
    """The complete versions of each model's SavedModel, ascending."""
    names = sorted(folder.name for folder in (exports / "saved_model").glob("*"))
    return {name: found for name in names if (found := rollout.versions(exports, name))}


def _models(path: Path, there: dict[str, list[int]], models_at: str | None) -> tuple[Any, list[str]]:
    """The ModelServerConfig of what is published, and what changed in it besides new models."""
    from frostline import protos

    if models_at is not None and not models_at.startswith("/") and "://" not in models_at:
        raise UserError(f"--models-at {models_at}: the server needs an absolute path")
    old = {one.name: one for one in config.read(path).model_config_list.config} if path.is_file() else {}
    told = [f"{name} has gone from the exports, and from {path}" for name in sorted(old.keys() - there.keys())]
    kept = [old[name].base_path.rpartition("/")[0] for name in there if name in old]
    root = (models_at or next(iter(kept), ROOT)).rstrip("/")
    new = protos.ModelServerConfig()
    for name, versions in there.items():
        entry = new.model_config_list.config.add()
        if name in old:
            entry.CopyFrom(old[name])
            told += _mend(entry, versions, rollout.flags(path.parent.parent, None))
        else:
            entry.name, entry.base_path, entry.model_platform = name, f"{root}/{name}", "tensorflow"
            config.set_served(entry, config.Served((versions[-1],), versions[-1], versions[-1]))
        if models_at is not None:
            entry.base_path = f"{root}/{name}"
    return new, told


def _mend(entry: Any, there: list[int], given: str) -> list[str]:
    """Take out versions whose folders have gone: the server would wait for them; say so, and what is newer."""
    now = config.served(entry)
    left = [number for number in now.versions if number in there] or there[-1:]
    state = config.Served(
        tuple(left),
        now.stable if now.stable in left else left[-1],
        now.canary if now.canary in left else left[-1],
    )
    if state != now:
        config.set_served(entry, state)
        return [f"{entry.name}: a served version has gone; now {state}; start the server again"]
    if there[-1] > now.versions[-1]:
        newer = f"version {there[-1]} is published, {now.stable} is served"
        return [f"{entry.name}: {newer}; type: frostline rollout {entry.name}{given}"]
    return []


def _manifest(exports: Path, name: str, version: int) -> dict[str, Any]:
    path = exports / "saved_model" / name / str(version) / "manifest.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}; move the version's folder away and export again") from error


# -- batching ------------------------------------------------------------------------------------------


def batch_sizes(records: Sequence[Record]) -> tuple[tuple[int, ...], int, str]:
    """Allowed sizes, how long a batch waits in microseconds, and where both come from.

    TensorFlow Serving runs what the runtime `saved_model` runs. Of each model the smallest measured size is taken that
    has 90 % of its best throughput, and of those the largest; a batch waits no longer than one image took, and at most
    10 ms.
    """
    measured: dict[str, dict[int, Record]] = {}
    for record in records:
        served = record.get("runtime") == "saved_model" and record.get("batch_size") in batching.ALLOWED_SIZES
        if served and record.get("images_per_second"):
            best = measured.setdefault(f"{record['model']} {record['device']}", {})
            old = best.get(record["batch_size"])
            if old is None or record["images_per_second"] > old["images_per_second"]:
                best[record["batch_size"]] = record
    chosen = [_smallest(cells) for cells in measured.values()]
    if not chosen:
        return batching.ALLOWED_SIZES, batching.TIMEOUT_MICROS, "defaults, because nothing is measured yet"
    sizes = tuple(size for size in batching.ALLOWED_SIZES if size <= max(chosen))
    singles = [cells[1].get("latency_p50_seconds") for cells in measured.values() if 1 in cells]
    micros = [math.ceil(seconds * 1e6) for seconds in singles if seconds]
    timeout = min(MAX_TIMEOUT_MICROS, *micros) if micros else batching.TIMEOUT_MICROS
    reason = f"measured: with {sizes[-1]} images every model has {GOOD_ENOUGH:.0%} or more of its best throughput"
    return sizes, timeout, reason


def _smallest(cells: dict[int, Record]) -> int:
    """The smallest batch size that is good enough."""
    best = max(record["images_per_second"] for record in cells.values())
    return min(size for size, record in cells.items() if record["images_per_second"] >= GOOD_ENOUGH * best)


def _picture() -> bytes:
    """A JPEG with soft colours and shapes, larger than most models take."""
    from PIL import Image, ImageDraw, ImageFilter

    gradient = Image.linear_gradient("L").resize((320, 240))
    picture = Image.merge("RGB", (gradient, gradient.transpose(Image.Transpose.FLIP_TOP_BOTTOM), gradient.rotate(90)))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((90, 50, 230, 190), fill=(196, 120, 60))
    draw.ellipse((130, 95, 150, 115), fill=(20, 20, 20))
    draw.ellipse((170, 95, 190, 115), fill=(20, 20, 20))
    file = io.BytesIO()
    picture.filter(ImageFilter.GaussianBlur(2)).save(file, "JPEG", quality=85)
    return file.getvalue()
