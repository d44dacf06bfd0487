"""Measures what was published, on every runtime."""

import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from frostline import children, exporting, inference, machine, matrix, plan, records, runtimes, serving
from frostline.harness import base
from frostline.harness.base import Event, Places
from frostline.inference import rules, served
from frostline.progress import Progress

WHICH_IMAGES = ("data", "limit", "fingerprint")  # what a manifest says of them


def infer_models(models: set[str] | None, places: Places, asked: matrix.Asked, *, fresh: bool = False) -> bool:
    """Measure the newest version of published models in the ways that are asked for; True when no cell failed."""
    told = [] if fresh else records.read(places.results)
    ways = matrix.ways(asked)
    failures = 0
    with Progress(len(ways), "runtimes", left=False) as progress, TestImages(places) as tests:
        for way in ways:
            found = exporting.manifests(places.exports, runtimes.RUNTIMES[way.runtime].kind)
            entries = [m for m in found if models is None or m["name"] in models]
            entries = [m for m in entries if matrix.tried(way, m)]
            wanted = {m["name"]: matrix.missing(way, m, told) for m in entries}
            todo = [m for m in entries if wanted[m["name"]]]
            if todo:
                progress.show(f"measuring {way.label}")
            for manifest in todo:
                if reason := way.reason or matrix.refused(way, manifest):
                    cells = [(cell, True) for cell in wanted[manifest["name"]]]
                    _record_unmeasured(manifest, way, cells, "skipped", reason, places)
            for group in matrix.groups(m for m in todo if not (way.reason or matrix.refused(way, m))):
                failures += _infer(way, group, wanted, told, places, tests)
            progress.show(f"measured {way.label}", advance=1)
    return not failures


class TestImages:
    """Test and validation images of models in files, made once for all children of a command and removed at its end."""

    __test__ = False  # for pytest, which takes every class of this name for tests

    def __init__(self, places: Places) -> None:
        self.places = places
        self.paths: dict[str, str] = {}

    def __enter__(self) -> "TestImages":
        self.folder = tempfile.TemporaryDirectory(prefix=".test-images-", dir=self.places.results)
        return self

    def __exit__(self, *error: object) -> None:
        self.folder.cleanup()

    def of(self, manifests: list[Event]) -> dict[str, str]:
        """The file of each model."""
        wanted = {m["name"]: json.dumps([m[key] for key in WHICH_IMAGES]) for m in manifests}
        numbers = enumerate(set(wanted.values()) - self.paths.keys(), len(self.paths))
        made = {what: str(Path(self.folder.name) / f"{number}.npz") for number, what in numbers}
        if made:
            names = {what: name for name, what in wanted.items()}
            tests = [
                dict(zip(WHICH_IMAGES, json.loads(what), strict=True), path=path, model=names[what])
                for what, path in made.items()
            ]
            job = {"action": "test_images", "tests": tests}
            base.spawn(job, self.places, "logs/test-images.txt", lambda event: None, module="frostline.measuring")
            self.paths |= made
        return {name: self.paths[what] for name, what in wanted.items()}


def _infer(
    way: matrix.Way,
    group: list[Event],
    wanted: dict[str, list[matrix.Cell]],
    told: list[Event],
    places: Places,
    tests: TestImages,
) -> int:
    """Measure models with equal graphs in one way: all cells of the first, which the others share; the failed ones.

    What `told` holds of the first is shared too. When the child dies, what is unfinished of the model at which it did
    has failed, and the models that are left are measured in another.
    """
    before = len(records.read(places.results))
    cells = [cell for cell in way.cells if any(cell in wanted[m["name"]] for m in group)]
    while group:
        start = len(records.read(places.results))
        figures = [r for r in matrix.figures(way, group[0], told) if (r["scenario"], r["batch_size"]) in cells]
        todo = list(dict.fromkeys(cell for cell, _ in _unfinished(way, group[0], cells, figures)))
        reason = None
        try:
            measure(way, group, todo, places, tests.of(group), figures)
        except children.Died as error:
            reason = str(error)
        found = figures + records.read(places.results)[start:]
        left = [m for m in group if _unfinished(way, m, cells, found)]
        if reason and left:
            _record_unmeasured(left[0], way, _unfinished(way, left[0], cells, found), "failed", reason, places)
        group = left[1:] if reason else [m for m in left if m is not group[0]]
    return sum(r["outcome"] == "failed" for r in records.read(places.results)[before:])


def measure(
    way: matrix.Way,
    group: list[Event],
    cells: Sequence[matrix.Cell],
    places: Places,
    tests: Mapping[str, str],
    figures: Sequence[Event] = (),
) -> None:
    """One child that measures the first of some models, and how well the others do; `tests` are files of images by
    model, `figures` records of the first that the others share too. Raises Died."""
    name = "-".join(filter(None, [way.runtime, way.how.variant, way.how.payload, way.how.device, way.profile]))
    job = {
        "manifests": group,
        "tests": dict(tests),
        "runtime": way.runtime,
        "how": plan.plain(way.how),
        "cells": cells,
        "profile": way.profile,
        "brief": way.brief,
        "latency_bound": way.latency_bound,
        "logs": _free(places, f"{group[0]['name']}/{group[0]['version']}/{name}", way.how.threads),
        "figures": list(figures),
        "server": None,
    }

    def start(job: Event) -> None:
        base.spawn(job, places, f"logs/infer-{name}.txt", lambda event: None, module="frostline.measuring")

    scheme = runtimes.RUNTIMES[way.runtime].scheme
    if not scheme:
        start(job)
        return
    before = len(records.read(places.results))
    with _served(group[:1], scheme, way, places) as server:  # alone, so that its memory is that of one model
        start({**job, **server, "manifests": group[:1]})
    figures = [*figures, *records.read(places.results)[before:]]
    if group[1:]:
        with _served(group[1:], scheme, way, places) as server:
            start({**job, **server, "cells": [], "figures": figures})


def _free(places: Places, name: str, threads: int) -> str:
    """A folder for LoadGen's logs that no measurement has yet, so that each record's logs stay its own."""
    stem = f"{name}-{threads or machine.cores()}-threads"
    taken = [int(path.name) for path in (places.results / "loadgen" / stem).glob("[0-9]*")]
    return f"{stem}/{max(taken, default=0) + 1}"


@contextlib.contextmanager
def _served(manifests: list[Event], scheme: str, way: matrix.Way, places: Places) -> Iterator[Event]:
    """A server of some models; yields what a job says of it, and how it is asked."""
    with tempfile.TemporaryDirectory(prefix="frostline-monitoring-") as folder:
        config = Path(folder, "monitoring.config")
        config.write_text(served.MONITORING)
        flags = [f"--monitoring_config_file={config}"]
        if way.how.threads:
            flags += [f"--tensorflow_{pool}_op_parallelism={way.how.threads}" for pool in ("intra", "inter")]
        started = time.monotonic()
        names, gpu = [m["name"] for m in manifests], way.how.device == "gpu"
        with serving.running(places.exports, names, backend=way.server or "auto", flags=flags, gpu=gpu) as server:
            url = f"grpc://{server.grpc}" if scheme == "grpc" else server.rest
            process = server.pid if server.backend != "docker" else None
            own_seconds = time.monotonic() - started if len(manifests) == 1 else None
            about = served.Served(server.backend, server.rest, own_seconds, process)
            yield {"how": plan.plain(dataclasses.replace(way.how, url=url)), "server": plan.plain(about)}


def _unfinished(
    way: matrix.Way, manifest: Event, cells: Sequence[matrix.Cell], found: list[Event]
) -> list[tuple[matrix.Cell, bool]]:
    """Cells of a model, each with host copies and without, of which some records hold none."""
    of_it = [r for r in found if (r["run"], r["run_time"]) == (manifest["run"], manifest["run_time"])]
    done = {((r["scenario"], r["batch_size"]), r["host_copies"]) for r in of_it}
    both = runtimes.copies(way.runtime, way.how.device)
    return [(cell, copies) for copies in both for cell in cells if (cell, copies) not in done]


def _record_unmeasured(
    manifest: Event,
    way: matrix.Way,
    cells: Sequence[tuple[matrix.Cell, bool]],
    outcome: str,
    reason: str,
    places: Places,
) -> None:
    """Records of cells, with host copies or without, that could not be measured."""
    for cell, copies in cells:
        subject = inference.Subject(manifest, places.exports, way.runtime, way.how, copies)
        for row in inference.unmeasured(subject, [cell], rules.PROFILES[way.profile], outcome, reason):
            records.append(places.results, {**row, "time": records.now(), "machine": way.facts})
