"""Runs studies: this process plans and keeps the books, children load TensorFlow and do one thing each."""

import dataclasses
import datetime
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline import children, choice, datasets, exporting, inference, machine, plan, records, runtimes, studies
from frostline.errors import UserError, lookup
from frostline.plan import Options, Run
from frostline.progress import Progress, duration
from frostline.studies import Study

BATCH_SIZES = (1, 32, 256)
Event = dict[str, Any]


@dataclass(frozen=True)
class Places:
    """Where things are read and written."""

    results: Path
    exports: Path
    data_dir: Path | None = None


def run_study(
    name: str,
    options: Options,
    places: Places,
    *,
    fresh: bool = False,
    export: bool = True,
    infer: bool = True,
) -> bool:
    """Train, export and measure what a study asks for and is not finished yet; True when all of it went well."""
    started = time.monotonic()
    study = studies.load(name)
    with records.lock(places.results):
        planned = plan_runs(study, options, places)
        done = set() if fresh else finished(places.results)
        pending = [run for run in planned if run.identity not in done]
        if pending:
            # The whole study, also under --only: all of it is checked, and `auto` chooses once for all of its rows.
            everything = plan_runs(study, dataclasses.replace(options, only=()), places)
            checked = preflight(everything, places)
            cells = measure_steps(everything, checked, places, fresh=fresh) if choice.needed(pending) else []
            train_all(pending, cells, checked["device"], places)
        good = all_ok(planned, places.results)
        if export:
            good &= export_models({run.configuration for run in planned}, places)
        if export and infer:
            good &= infer_models({run.model for run in planned}, places, fresh=fresh)
    skipped = len(planned) - len(pending)
    say(f"{study.name}: {len(pending)} runs done, {skipped} found finished, {duration(time.monotonic() - started)}")
    return good


def dry_run(name: str, options: Options, places: Places) -> list[Event]:
    """What each configuration of a study would train and about what it would cost; trains and keeps nothing."""
    planned = plan_runs(studies.load(name), options, places)
    with tempfile.TemporaryDirectory() as folder:
        found = preflight(planned, dataclasses.replace(places, results=Path(folder)), estimate=True)
    names = [(run.freeze.name, run.variant) for run in planned]
    return [{**c, "seeds": names.count((c["freeze"], c["variant"]))} for c in found["configurations"]]


def plan_runs(study: Study, options: Options, places: Places) -> list[Run]:
    """The runs of a study with their identities; reads the data's files, loads no TensorFlow."""

    def digest(weights: str) -> str:
        try:
            return hashlib.sha256(Path(weights).read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"cannot read the weights file {weights}: {error.strerror}") from error

    with Progress(1, "downloads") as progress:

        def report(file: str, done: int, total: int) -> None:
            of = f" of {total / 2**20:.0f}" if total else ""
            progress.show(f"downloading {file}: {done / 2**20:.0f}{of} MiB")

        def fingerprint(data: studies.Data) -> str:
            return datasets.fingerprint(data, data_dir=places.data_dir, report=report)

        return plan.runs(plan.resolve(study, options), options, fingerprint, digest)


def preflight(planned: list[Run], places: Places, *, estimate: bool = False) -> Event:
    """Check every name and rule on models with random weights; returns what was found, raises UserError."""
    found: Event = {}
    distinct = {run.configuration: run for run in planned}
    job = {"action": "preflight", "runs": [plan.plain(run) for run in distinct.values()], "estimate": estimate}
    with Progress(len(distinct), "configurations") as progress:

        def on_event(event: Event) -> None:
            if event["event"] == "checking":
                progress.show(f"checking {event['freeze']}", advance=1)
            elif event["event"] == "checked":
                found.update(event)

        spawn(job, places, "preflight", on_event)
    return found


# -- what is finished already --------------------------------------------------------------------------


def finished(results: Path) -> set[str]:
    """Identities of the runs that need not be done again: recorded as ok, with their weights still there."""
    return {
        identity
        for identity, record in newest(results).items()
        if record["outcome"] == "ok" and weights_file(results, record["run"]).is_file()
    }


def all_ok(planned: list[Run], results: Path) -> bool:
    """Whether the newest record of every run is a success."""
    last = newest(results)
    return all(run.identity in last and last[run.identity]["outcome"] == "ok" for run in planned)


def newest(results: Path) -> dict[str, Event]:
    """The newest training record of each identity."""
    return {r["identity"]: r for r in records.read(results) if r["kind"] == "train"}


def weights_file(results: Path, run: str) -> Path:
    """The weights a finished run leaves."""
    return records.run_folder(results, run) / "weights.weights.h5"


# -- what `auto` means ---------------------------------------------------------------------------------


def measure_steps(planned: list[Run], checked: Event, places: Places, *, fresh: bool) -> list[Event]:
    """Step times of every configuration under each precision and XLA setting: measured once, kept as a record."""
    key = choice.key(planned)
    if not fresh:
        for record in reversed(records.read(places.results)):
            if record["kind"] == "choice" and record["key"] == key:
                return record["cells"]
    named = {run.freeze.name: run for run in planned if run.freeze.name != plan.PRETRAIN}
    distinct = {choice.timing_key(run): run for run in reversed(list(named.values()))}
    candidates = [(precision, xla) for xla in ("off", "on") for precision in ("float32", checked["mixed"])]
    shapes = {c["freeze"]: c for c in checked["configurations"]}
    with Progress(len(candidates) * len(distinct), "cells") as progress:
        cells = choice.measure(
            candidates, lambda candidate, limits: Timing(distinct, shapes, candidate, limits, places, progress).run()
        )
    cells = [
        {**cell, "freeze": name}
        for name, run in named.items()
        for cell in cells
        if cell["timing"] == choice.timing_key(run)
    ]
    record = {"kind": "choice", "study": planned[0].study, "key": key, "device": checked["device"], "cells": cells}
    records.append(places.results, {**record, "time": now(), "machine": machine.facts()})
    return cells


class Timing:
    """One candidate timed in one child, which is ended when a cell passes its limit; the rest is then not tried."""

    def __init__(
        self,
        distinct: dict[str, Run],
        shapes: dict[str, Event],
        candidate: tuple[str, str],
        limits: dict[str, float],
        places: Places,
        progress: Progress,
    ) -> None:
        self.distinct, self.shapes, self.candidate, self.limits = distinct, shapes, candidate, limits
        self.places, self.progress = places, progress
        self.cells: list[Event] = []
        self.cell_started: float | None = None

    def run(self) -> list[Event]:
        precision, xla = self.candidate
        runs = [plan.plain(run) for run in self.distinct.values()]
        job = {"action": "steps", "precision": precision, "xla": xla, "runs": runs, "shapes": self.shapes}
        try:
            spawn(job, self.places, "steps", self.on_event, self.deadline)
        except children.GivenUp:
            self.add("given up", f"over {self.limit():.0f} s, {choice.GIVE_UP_FACTOR:g} times the best")
        except children.Died as error:
            self.add("failed", str(error))
        while self.current():
            self.add("not tried", "an earlier cell of this candidate did not end")
        return self.cells

    def current(self) -> str | None:
        """The cell being timed; None when all are."""
        return list(self.distinct)[len(self.cells)] if len(self.cells) < len(self.distinct) else None

    def limit(self) -> float | None:
        return self.limits.get(self.current() or "")

    def add(self, outcome: str, reason: str | None, **seconds: float) -> None:
        blank = {"step_seconds": None, "first_step_seconds": None, "elapsed_seconds": None}
        precision, xla = self.candidate
        cell = {"precision": precision, "xla": xla, "timing": self.current(), "outcome": outcome, "reason": reason}
        self.cells.append({**cell, **blank, **seconds})

    def on_event(self, event: Event) -> None:
        instant = time.monotonic()
        if event["event"] == "cell" and self.cell_started is not None:
            elapsed = instant - self.cell_started
            step, first = event["step_seconds"], event["first_step_seconds"]
            self.add("ok", None, step_seconds=step, first_step_seconds=first, elapsed_seconds=elapsed)
        self.cell_started = instant
        timed = event["event"] == "cell"
        if name := self.current():
            precision, xla = self.candidate
            self.progress.show(f"timing {self.distinct[name].freeze.name}, {precision}, XLA {xla}", advance=timed)

    def deadline(self) -> float | None:
        limit = self.limit()
        return None if limit is None or self.cell_started is None else self.cell_started + limit


# -- training ------------------------------------------------------------------------------------------


def train_all(pending: list[Run], cells: list[Event], device: str, places: Places) -> None:
    """Train the runs one after the other, each in a fresh child; one whose child dies twice is recorded as failed."""
    epochs = [sum(stage.epochs for stage in run.freeze.stages) for run in pending]
    with Progress(sum(epochs)) as progress:
        done = 0
        for number, run in enumerate(pending):
            variant = f" ({run.variant})" if run.variant else ""
            label = f"[{number + 1}/{len(pending)}] {run.freeze.name}{variant} seed {run.seed}"
            precision, xla = choice.pick(cells, run.precision, run.xla, device)
            _train(run, precision, xla, places, progress, label)
            done += epochs[number]
            progress.show(label, advance=done - progress.done)


def _train(run: Run, precision: str, xla: str, places: Places, progress: Progress, label: str) -> None:
    def fail(reason: str) -> None:
        records.append(places.results, {**plan.heading(run), "outcome": "failed", "reason": reason, "time": now()})
        progress.say(f"{label}: failed: {reason}")

    def on_event(event: Event) -> None:
        if event["event"] == "epoch":
            progress.show(f"{label}: {event['text']}", advance=1)
        elif event["event"] == "done":
            progress.say(f"{label}: {event['text']}")

    if run.pretrain_run and not weights_file(places.results, run.pretrain_run).is_file():
        fail(f"its pre-training {run.pretrain_run} did not finish")
        return
    job = {"action": "train", "runs": [plan.plain(run)], "precision": precision, "xla": xla}
    progress.show(label)
    for last in (False, True):
        try:
            spawn(job, places, "train", on_event, run_log=run.id)
            return
        except children.Died as error:
            if last:
                fail(str(error))
            else:
                progress.say(f"{label}: {error}; trying once more")


# -- exports and inference -----------------------------------------------------------------------------


def export_models(configurations: Iterable[str], places: Places) -> bool:
    """Publish the representative run of each configuration that is not published yet; True when all went well."""
    wanted = set(configurations)
    chosen: list[Event] = []
    for configuration in records.configurations(records.read(places.results)):
        record = configuration.representative
        if record is None or record["configuration"] not in wanted:
            continue
        published = exporting.current(places.exports, record["model"])
        if published is None or (published["run"], published["run_time"]) != (record["run"], record["time"]):
            chosen.append({"record": record, "seeds": [row["seed"] for row in configuration.finished]})
    failures: list[str] = []
    started: list[Event] = []
    with Progress(len(chosen), "models") as progress:

        def on_event(event: Event) -> None:
            if event["event"] == "exporting":
                started.append(chosen[len(started)]["record"])
                progress.show(f"exporting {event['model']}", advance=1)
            elif event["event"] == "not_exported":
                failures.append(event["model"])
                progress.say(f"{event['model']} is not published: {event['reason']}")

        while len(started) < len(chosen):
            before = len(started)
            try:
                spawn({"action": "export", "chosen": chosen[before:]}, places, "export", on_event)
                break
            except children.Died as error:
                if len(started) == before:
                    raise
                told = {key: started[-1][key] for key in ("model", "run", "study", "freeze")} | {"version": None}
                told |= {"kind": "export", "outcome": "failed", "reason": str(error), "time": now()}
                records.append(places.results, told)
                on_event({"event": "not_exported", **told})
    return not failures


def infer_models(
    models: set[str] | None,
    places: Places,
    *,
    names: Iterable[str] = (),
    batch_sizes: Iterable[int] = BATCH_SIZES,
    fresh: bool = False,
) -> bool:
    """Measure the newest version of published models on every runtime and device; True when no cell failed."""
    chosen = {name: lookup(runtimes.RUNTIMES, name, "runtime") for name in names or runtimes.RUNTIMES}
    cells = [(name, device) for name, runtime in chosen.items() for device in runtime.devices]
    failures = 0
    with Progress(len(cells), "runtimes") as progress:
        for name, device in cells:
            progress.show(f"measuring {name} on {device}")
            found = exporting.manifests(places.exports, chosen[name].kind)
            entries = [m for m in found if models is None or m["name"] in models]
            failures += _infer(name, device, entries, list(batch_sizes), places, fresh)
            progress.show(f"measured {name} on {device}", advance=1)
    return not failures


def _infer(runtime: str, device: str, entries: list[Event], sizes: list[int], places: Places, fresh: bool) -> int:
    """Measure what is not measured yet on one runtime and device, in one child; the number of failed cells."""
    done = set() if fresh else measured(places.results, runtime, device)
    todo = [m for m in entries if any((m["name"], m["version"], size) not in done for size in sizes)]
    reason = "no CUDA device" if device == "gpu" and not runtimes.cuda_devices() else None
    outcome = "skipped"
    if todo and not reason:
        job = {"action": "infer", "runtime": runtime, "device": device, "manifests": todo, "batch_sizes": sizes}
        before = len(records.read(places.results))
        try:
            spawn(job, places, f"infer-{runtime}-{device}", lambda event: None)
            return sum(r["outcome"] == "failed" for r in records.read(places.results)[before:])
        except children.Died as error:
            reason, outcome = str(error), "failed"
    for manifest in todo:
        for row in inference.unmeasured(manifest, runtime, device, sizes, outcome, str(reason)):
            records.append(places.results, {**row, "time": now()})
    return len(todo) if outcome == "failed" else 0


def measured(results: Path, runtime: str, device: str) -> set[tuple[str, int, int]]:
    """(model, version, batch size) of the cells that need not be measured again."""
    return {
        (r["model"], r["version"], r["batch_size"])
        for r in records.read(results)
        if r["kind"] == "infer" and (r["runtime"], r["device"]) == (runtime, device) and r["outcome"] != "failed"
    }


# -- the way to the children ---------------------------------------------------------------------------


def spawn(
    job: Event,
    places: Places,
    log: str,
    on_event: Callable[[Event], None],
    deadline: Callable[[], float | None] = lambda: None,
    run_log: str | None = None,
) -> None:
    """Run a job in a child; raises Died and GivenUp, and UserError for a mistake of the user that the child found."""
    mistakes: list[str] = []

    def handle(event: Event) -> None:
        if event["event"] == "user_error":
            mistakes.append(event["message"])
        elif event["event"] != "finished":
            on_event(event)

    folder = records.run_folder(places.results, run_log) if run_log else places.results / "logs"
    path = folder / ("log.txt" if run_log else f"{log}.txt")
    where = {"results": str(places.results), "exports": str(places.exports), "spawned": time.time()}
    job = {**job, **where, "data_dir": str(places.data_dir) if places.data_dir else None}
    try:
        children.run("frostline.jobs", job, log=path, on_event=handle, deadline=deadline)
    except children.Died as error:
        if not mistakes:
            raise children.Died(f"{error} (see {path})") from error
    if mistakes:
        raise UserError(mistakes[0])


def say(text: str) -> None:
    """A line for the person who waits; standard output is for tables alone."""
    with Progress(0) as progress:
        progress.say(text)


def now() -> str:
    """The time for a record, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
