"""Runs studies: this process plans and keeps the books, children load TensorFlow and do one thing each."""

import contextlib
import dataclasses
import hashlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline import (
    backbones,
    children,
    choice,
    datasets,
    exporting,
    features,
    freezing,
    heads,
    inference,
    machine,
    matrix,
    plan,
    records,
    runtimes,
    search,
    serving,
    studies,
)
from frostline.errors import UserError
from frostline.inference import rules, served
from frostline.plan import Options, Run
from frostline.progress import Progress, duration
from frostline.studies import Study

STARTING = "starting TensorFlow"  # what a child does before its first event
OWN_PROCESS_SECONDS = 20.0  # a pass that takes longer gets a process of its own: bench/NOTES.md
Event = dict[str, Any]
Digests = dict[studies.Data | str, str]  # fingerprints of data, and hashes of files by their path


@dataclass(frozen=True)
class Places:
    """Where things are read and written, and bytes of memory that features may take (None: a third of what is free)."""

    results: Path
    exports: Path
    data_dir: Path | None = None
    features_memory: int | None = None


def run_study(
    name: str,
    options: Options,
    places: Places,
    *,
    fresh: bool = False,
    export: bool = True,
    infer: bool = True,
) -> tuple[bool, set[str]]:
    """Train, export and measure what a study asks for and is not finished yet.

    Returns whether all of it went well, and the configurations that were asked for.
    """
    started = time.monotonic()
    study = load(name, options)
    digests: Digests = {}
    with records.lock(places.results):
        known = set() if fresh else finished(places.results)
        planned, trained = plan_runs(study, options, places, known, digests), 0
        tell_finished(study.name, planned, known)
        settled: tuple[list[Event], str] | None = None
        while pending := [run for run in planned if run.identity not in known]:
            if settled is None:  # the whole study, also under --only: `auto` chooses once for all of its rows
                everything = plan_runs(study, dataclasses.replace(options, only=()), places, known, digests)
                settled = settle(everything, pending, places, fresh=fresh, where=name)
            untrained = take_over(pending, planned, places.results)
            settings = [choice.pick(settled[0], run, settled[1]) for run in untrained]
            train_all(untrained, settings, places, done=len(planned) - len(untrained))
            trained += len(untrained)
            known |= {run.identity for run in pending}
            if study.search:  # whose next trials follow from these
                planned = plan_runs(study, options, places, known, digests)
        good = all_ok(planned, places.results)
        published = [run for run in planned if not run.trial]
        if export:
            good &= export_models({run.configuration for run in published}, places)
        if export and infer:
            asked = matrix.of_a_study(quick=options.limit is not None)
            good &= infer_models({run.model for run in published}, places, asked, fresh=fresh)
        seconds = time.monotonic() - started
        if trained:
            told = {"kind": "study", "study": study.name, "runs": trained, "study_seconds": seconds}
            records.append(places.results, {**told, "time": records.now(), "machine": machine.facts()})
    say(f"{study.name}: {trained} runs done, {len(planned) - trained} found finished, {duration(seconds)}")
    return good, {run.configuration for run in planned}


def settle(
    everything: list[Run], pending: list[Run], places: Places, *, fresh: bool, where: str = ""
) -> tuple[list[Event], str]:
    """Check a whole study, and measure what `auto` means for all of its rows: the cells, and the kind of device.

    Cells that an earlier command measured are not measured again; nor is a study checked again where only seeds are
    added to configurations that have finished with other ones.
    """
    key = choice.key(everything)
    told = [] if fresh else records.read(places.results)
    kept = next((r for r in reversed(told) if r["kind"] == "choice" and r["key"] == key), None)
    proven = {r["configuration"] for r in told if r["kind"] == "train" and r["outcome"] == "ok"}
    whole = kept and "mixed" in kept and not choice.lacking(everything, kept["cells"], kept["mixed"])
    if kept and whole and proven.issuperset(run.configuration for run in pending):
        return kept["cells"], kept["device"]
    there = [r["cell"] for r in told if r["kind"] == "cell" and r["key"] == key] + (kept["cells"] if kept else [])
    asked = choice.needed(pending)
    checked = preflight(everything, places, where=where, timing=asked and not there)
    if not asked or (kept and not choice.lacking(everything, kept["cells"], checked["mixed"])):
        return kept["cells"] if kept else [], checked["device"]
    return choose(everything, key, checked, there, places), checked["device"]


def take_over(pending: list[Run], planned: list[Run], results: Path) -> list[Run]:
    """Record the best of a search where its trial was that very training; returns what is left to train."""
    left = []
    for run in pending:
        trial = search.origin(run, planned)
        if trial is None:
            left.append(run)
        else:
            same = plan.heading(dataclasses.replace(run, id=trial.id))  # whose weights and predictions these are
            told = {"marginal_seconds": 0.0, "time": records.now()}
            records.append(results, {**newest(results)[trial.identity], **same, **told})
    return left


def load(name: str, options: Options) -> Study:
    """A study in which all that can be known without TensorFlow is in order; says which rows flags override."""
    study = studies.load(name)
    plan.resolve(study, options)
    backbones.get(study.backbone.name)
    rows = [(f"[[freeze]] {f.name!r}", f) for f in study.freeze]
    rows += [("[pretrain]", study.pretrain.freeze)] if study.pretrain else []
    for row, freeze in rows:
        try:
            if freeze.head != "inherit":
                heads.resolve(freeze.head, backbones.get(study.backbone.name).head)
            for rules in (freeze.reset, *(stage.train for stage in freeze.stages)):
                freezing.check_form(rules)
        except UserError as error:
            raise UserError(f"{name}: {row}: {error}") from error
    for line in plan.overridden(study, options):
        say(line)
    return study


def tell_finished(name: str, planned: list[Run], known: Collection[str]) -> None:
    """Say how many runs of a study were found finished, where others are left to do."""
    done = sum(run.identity in known for run in planned)
    if 0 < done < len(planned):
        say(f"{name}: {done} of {len(planned)} runs are done already")


def dry_run(name: str, options: Options, places: Places) -> list[Event]:
    """What each configuration of a study would train and about what it would cost; trains and keeps nothing."""
    study = load(name, options)
    known = finished(places.results)
    digests: Digests = {}
    planned = plan_runs(study, options, places, known, digests)
    everything = plan_runs(study, dataclasses.replace(options, only=()), places, known, digests)
    names = [(run.freeze.name, run.variant) for run in planned]
    searches = {run.freeze.name: plan.heading(run)["search"] for run in planned}
    asked = set(map(_shape, planned))
    checked = _look(everything, places, where=name, estimate=asked, timing=choice.needed(planned))
    return [
        {
            **c,
            "seeds": names.count((c["freeze"], c["variant"])),
            "search": searches[c["freeze"]],
            "auto": _auto(everything, checked, places),
        }
        for c in checked["configurations"]
        if c["estimate"]
    ]


def _auto(everything: list[Run], checked: Event, places: Places) -> str | None:
    """How a command that trains would settle what is `auto`."""
    key, effort = choice.key(everything), checked["effort"]
    if not effort:
        return None
    if any(r["kind"] == "choice" and r["key"] == key for r in records.read(places.results)):
        return "chosen by an earlier command, whose choice is taken"
    if too_little(effort):
        return f"not timed, because {_little(effort)}: {choice.described(checked['device'], checked['mixed'])}"
    cells = len(choice.lacking(everything, [], checked["mixed"]))
    return f"timed first, {cells} cells in about {duration(effort['timing_seconds'])}"


def layers(name: str, options: Options, places: Places) -> list[Event]:
    """Every layer of each configuration of a study, stage by stage; trains and keeps nothing."""
    each: dict[str, Run] = {}  # variants and seeds have the same layers
    for run in plan_runs(load(name, options), options, places):
        each.setdefault(run.freeze.name, run)
    found = _look(list(each.values()), places, where=name, layers=True)["configurations"]
    return [c for c in found if not options.only or c["freeze"] in options.only]


def _look(planned: list[Run], places: Places, **asked: Any) -> Event:
    """What the preflight finds, its log in a folder that goes at once."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return preflight(planned, dataclasses.replace(places, results=Path(folder)), **asked)
        except children.Died as error:
            raise children.Died(str(error).partition(" (see ")[0]) from error


def plan_runs(
    study: Study,
    options: Options,
    places: Places,
    known: Collection[str] = (),
    digests: Digests | None = None,
) -> list[Run]:
    """The runs of a study with their identities; reads the data's files, loads no TensorFlow.

    Trials of a search, and its best, follow from the records of `known` identities. Data and files whose hash is among
    the `digests` are not read again; those that are read are added.
    """
    hashed = {} if digests is None else digests
    believed = {identity: record for identity, record in newest(places.results).items() if identity in known}

    def digest(path: str) -> str:
        try:
            if path not in hashed:
                hashed[path] = hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"cannot read the network or weights file {path}: {error.strerror}") from error
        return hashed[path]

    with Progress(1, "downloads") as progress:

        def report(file: str, done: int, total: int) -> None:
            of = f" of {total / 2**20:.0f}" if total else ""
            progress.show(f"downloading {file}: {done / 2**20:.0f}{of} MiB")

        def fingerprint(data: studies.Data) -> str:
            if data not in hashed:
                hashed[data] = datasets.fingerprint(data, data_dir=places.data_dir, report=report)
            return hashed[data]

        resolved = plan.resolve(study, options)
        found: dict[str, search.Outcome] = {}
        while True:
            planned = plan.runs(search.expand(resolved, found), options, fingerprint, digest)
            told, found = found, search.outcomes(planned, believed)
            if found == told:
                return planned


def preflight(
    planned: list[Run],
    places: Places,
    *,
    where: str = "",
    timing: bool = False,
    estimate: Collection[str] = (),
    layers: bool = False,
) -> Event:
    """Check every name and rule on models with random weights; returns what was found, raises UserError.

    `where`: what a person called the study. `timing`: candidates are to be timed for what is `auto`, so it is found
    what that takes, and all training.
    `estimate`: configurations with their variants of which a few steps are timed at once.
    """
    found: Event = {}
    checking: list[str] = []
    distinct = {run.configuration: run for run in planned}
    number = Counter(run.configuration for run in planned)
    job = {
        "action": "preflight",
        "where": where or planned[0].study,
        "runs": [plan.plain(run) for run in distinct.values()],
        "counts": [number[configuration] for configuration in distinct],
        "cells": len(choice.lacking(planned, [], "mixed_bfloat16")) if timing else 0,
        "estimate": sorted(estimate),
        "layers": layers,
    }
    with Progress(len(distinct), "configurations", left=False) as progress:
        progress.show(f"{STARTING} to check the study")

        def on_event(event: Event) -> None:
            if event["event"] == "checking":
                progress.show(f"checking {event['freeze']}", advance=bool(checking))  # the one before is checked
                checking.append(event["freeze"])
            elif event["event"] == "checked":
                found.update(event)

        spawn(job, places, "logs/preflight.txt", on_event)
    return found


# -- what is finished already --------------------------------------------------------------------------


def finished(results: Path) -> set[str]:
    """Identities of the runs that need not be done again: recorded as ok, with their weights still there."""
    return {
        identity
        for identity, record in newest(results).items()
        if record["outcome"] == "ok" and records.weights_file(results, record["run"]).is_file()
    }


def all_ok(planned: list[Run], results: Path) -> bool:
    """Whether the newest record of every run is a success."""
    last = newest(results)
    return all(run.identity in last and last[run.identity]["outcome"] == "ok" for run in planned)


def newest(results: Path) -> dict[str, Event]:
    """The newest training record of each identity."""
    return {r["identity"]: r for r in records.read(results) if r["kind"] == "train"}


# -- what `auto` means ---------------------------------------------------------------------------------


def choose(planned: list[Run], key: str, checked: Event, there: list[Event], places: Places) -> list[Event]:
    """What `auto` means for every configuration, kept as a record: measured cells, or a default where measuring them
    would take longer than all training."""
    rows = {(r.freeze.name, choice.timing_key(r)): r for r in planned if r.freeze.name != plan.PRETRAIN}
    distinct: dict[str, Run] = {}
    for (_, timing), run in rows.items():
        distinct.setdefault(timing, run)
    shapes = {f"{c['freeze']} {c['variant']}": c for c in checked["configurations"]}
    cells = there + _untimed(planned, distinct, shapes, checked)
    todo = choice.lacking(planned, cells, checked["mixed"])
    cells += measure_steps(planned, distinct, todo, cells, shapes, key, places)
    by_timing: dict[str, dict[choice.Candidate, Event]] = {}
    for cell in cells:
        by_timing.setdefault(cell["timing"], {})[cell["precision"], cell["xla"]] = cell
    told = [
        {**cell, "freeze": name, "engine_asked": run.engine}
        for (name, timing), run in rows.items()
        for cell in by_timing[timing].values()
    ]
    facts = {key: checked[key] for key in ("device", "mixed", "effort")}
    record = {"kind": "choice", "study": planned[0].study, "key": key, **facts, "cells": told}
    records.append(places.results, {**record, "time": records.now(), "machine": machine.facts()})
    return told


def _untimed(planned: list[Run], distinct: dict[str, Run], shapes: dict[str, Event], checked: Event) -> list[Event]:
    """Cells for what is not timed: all configurations where timing takes longer than all training, else those that
    are asked for by name and have no part to compute once."""
    effort = checked["effort"]
    all_of_them = too_little(effort)
    open_ones = {choice.timing_key(run) for run in planned if "auto" in (run.precision, run.xla)}
    reason = _little(effort) if all_of_them else None
    cells = []
    for timing, run in distinct.items():
        stages = shapes[_shape(run)]["untimed"]
        engine = choice.engine([stage["engine"] for stage in stages])
        if all_of_them or (engine == "plain" and timing not in open_ones):
            precision, xla = choice.default(checked["device"], checked["mixed"])
            cell = {"precision": precision, "xla": xla, "timing": timing, "outcome": choice.NOT_TIMED, "reason": reason}
            cells.append({**cell, "stages": stages, "engine": engine, "step_seconds": None, "elapsed_seconds": None})
    return cells


def too_little(effort: Event | None) -> bool:
    """Whether timing would take longer than all training."""
    return effort is not None and effort["training_seconds"] < effort["timing_seconds"]


def _little(effort: Event) -> str:
    training, timing = (duration(effort[f"{what}_seconds"]) for what in ("training", "timing"))
    return f"all training takes at most about {training}, timing about {timing}"


def _shape(run: Run) -> str:
    return f"{run.freeze.name} {run.variant}"


def measure_steps(
    planned: list[Run],
    distinct: dict[str, Run],
    todo: list[choice.Cell],
    there: list[Event],
    shapes: dict[str, Event],
    key: str,
    places: Places,
) -> list[Event]:
    """Time some cells, each kept as a record of its own as soon as it is measured."""
    asked = {choice.timing_key(run) for run in planned if run.xla == "on"}  # which are tried, whatever they save
    number = Counter(choice.timing_key(run) for run in planned)
    counts = {timing: None if timing in asked else count for timing, count in number.items()}

    def keep(cell: Event) -> None:
        told = {"kind": "cell", "study": planned[0].study, "key": key, "cell": cell, "time": records.now()}
        records.append(places.results, told)

    timed: list[Event] = []
    with Progress(len(todo), "cells", left=False) as progress:
        while len(timed) < len(todo):
            left = todo[len(timed) :]
            timed += Timing(distinct, counts, shapes, left, there + timed, keep, places, progress).run()
    return timed


class Timing:
    """Cells timed in one child. It is ended when a cell passes its limit; the other cells of that candidate are then
    not tried, and the candidates after it are left to another child."""

    def __init__(
        self,
        distinct: dict[str, Run],
        counts: Mapping[str, int | None],
        shapes: dict[str, Event],
        todo: list[choice.Cell],
        earlier: list[Event],
        keep: Callable[[Event], None],
        places: Places,
        progress: Progress,
    ) -> None:
        self.distinct, self.counts, self.shapes, self.todo = distinct, counts, shapes, todo
        self.earlier, self.keep, self.places, self.progress = earlier, keep, places, progress
        self.cells: list[Event] = []
        self.best: dict[str, float] = {}
        for cell in earlier:
            self.learn(cell)
        self.cell_started: float | None = None

    def run(self) -> list[Event]:
        self.progress.show(f"{STARTING} to time steps")
        try:
            spawn(self.job(), self.places, "logs/steps.txt", self.on_event, self.deadline)
            return self.cells
        except children.GivenUp:
            self.add("given up", f"over {self.limit():.0f} s, {choice.GIVE_UP_FACTOR:g} times the best")
        except children.Died as error:
            self.add("failed", str(error))
        ended = self.cells[-1]
        while (current := self.current()) and current[:2] == (ended["precision"], ended["xla"]):
            self.add("not tried", "an earlier cell of this candidate did not end")
        return self.cells

    def job(self) -> Event:
        numbers = {timing: number for number, timing in enumerate(self.distinct)}
        return {
            "action": "steps",
            "runs": [plan.plain(run) for run in self.distinct.values()],
            "counts": [self.counts[timing] for timing in self.distinct],
            "shapes": self.shapes,
            "todo": [[precision, xla, numbers[timing]] for precision, xla, timing in self.todo],
            "measured": [
                [cell["precision"], cell["xla"], numbers[cell["timing"]], cell["stages"]]
                for cell in self.earlier
                if cell["outcome"] == "ok"
            ],
        }

    def current(self) -> choice.Cell | None:
        """The cell being timed; None when all are."""
        return self.todo[len(self.cells)] if len(self.cells) < len(self.todo) else None

    def limit(self) -> float | None:
        current = self.current()
        best = self.best.get(current[2]) if current else None
        return None if best is None else choice.GIVE_UP_FACTOR * best

    def learn(self, cell: Event) -> None:
        if cell["outcome"] == "ok":
            known = self.best.get(cell["timing"], cell["elapsed_seconds"])
            self.best[cell["timing"]] = min(known, cell["elapsed_seconds"])

    def add(self, outcome: str, reason: str | None, stages: list[Event] | None = None, **facts: Any) -> None:
        current = self.current()
        assert current
        precision, xla, timing = current
        cell = {"precision": precision, "xla": xla, "timing": timing, "outcome": outcome, "reason": reason}
        blank = {"stages": stages, "engine": None, "step_seconds": None, "elapsed_seconds": None}
        self.cells.append({**cell, **blank, **facts})
        self.learn(self.cells[-1])
        self.keep(self.cells[-1])

    def on_event(self, event: Event) -> None:
        instant = time.monotonic()
        if event["event"] == "cell" and self.cell_started is not None:
            facts = {key: event.get(key) for key in ("engine", "step_seconds")}
            if event.get("skipped"):
                self.add("not tried", event["skipped"])
            else:
                self.add("ok", None, event["stages"], elapsed_seconds=instant - self.cell_started, **facts)
        self.cell_started = instant
        timed = event["event"] == "cell"
        if current := self.current():
            precision, xla, timing = current
            self.progress.show(f"timing {self.distinct[timing].freeze.name}, {precision}, XLA {xla}", advance=timed)

    def deadline(self) -> float | None:
        limit = self.limit()
        return None if limit is None or self.cell_started is None else self.cell_started + limit


# -- training ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A run, what is in effect for it, and how it is called while a person waits."""

    run: Run
    setting: choice.Setting
    label: str

    @property
    def epochs(self) -> int:
        return sum(stage.epochs for stage in self.run.freeze.stages)


def groups(members: Iterable[Member]) -> list[list[Member]]:
    """Runs that share a child: those on features in one precision; a plain run is alone, but with `--limit`, where
    its figures mean little. Pre-trainings come first."""
    found: dict[str, list[Member]] = {}
    for member in members:
        run = member.run
        cached = any(engine["name"] == "cached" for engine in member.setting.engines(run))
        quick = run.limit is not None and run.freeze.name != plan.PRETRAIN
        found.setdefault(member.setting.precision if cached or quick else run.id, []).append(member)
    return sorted(found.values(), key=lambda group: group[0].run.freeze.name != plan.PRETRAIN)


def train_all(pending: list[Run], settings: list[choice.Setting], places: Places, *, done: int = 0) -> None:
    """Train the runs group by group, each group in a fresh child; `done` others of the study have finished.

    When a child dies, what it left undone is tried once more, each run alone; then it is recorded as failed.
    """
    members = [
        Member(run, setting, f"[{number}/{done + len(pending)}] {_called(run)}")
        for number, (run, setting) in enumerate(zip(pending, settings, strict=True), done + 1)
    ]
    with Progress(sum(member.epochs for member in members)) as progress:
        for group in groups(members):
            ready = [member for member in group if _may_start(member, places, progress)]
            undone, reason = _train(ready, places, progress)
            for member in undone:
                progress.say(f"{member.label}: {reason}; trying once more, alone")
                twice, reason = _train([member], places, progress)
                if twice:
                    _fail(member, reason, places, progress)


def _called(run: Run) -> str:
    return f"{run.freeze.name}{f' ({run.variant})' if run.variant else ''} seed {run.seed}"


def _may_start(member: Member, places: Places, progress: Progress) -> bool:
    """Whether the weights a run starts from are there; a run whose pre-training failed has failed too."""
    source = member.run.pretrain_run
    if not source or source in _finished_runs(places.results):
        return True
    _fail(member, f"its pre-training {source} did not finish", places, progress)
    return False


def _fail(member: Member, reason: str, places: Places, progress: Progress) -> None:
    run, setting = member.run, member.setting
    engine = choice.engine([engine["name"] for engine in setting.engines(run)])
    record = {**plan.heading(run), "precision": setting.precision, "xla": setting.xla == "on", "engine": engine}
    told = {"outcome": "failed", "reason": reason, "time": records.now(), "machine": machine.facts()}
    records.append(places.results, record | told)
    progress.say(f"{member.label}: failed: {reason}")


def _train(group: list[Member], places: Places, progress: Progress) -> tuple[list[Member], str]:
    """Train runs in one child; returns those without a record when it died, and why it did."""
    if not group:
        return [], ""
    labels = {member.run.id: member for member in group}
    current, computed = group[0], []

    def on_event(event: Event) -> None:
        nonlocal current
        if event["event"] == "run":
            current = labels[event["run"]]
            progress.begin(current.epochs)
            progress.show(current.label)
        elif event["event"] == "features":
            progress.show(f"{current.label}: features of {event['done']:,} of {event['total']:,} images")
        elif event["event"] == "waiting":
            progress.show(f"{current.label}: waiting for another command that computes the same features")
        elif event["event"] == "made":
            computed.extend(event["keys"])
        elif event["event"] == "epoch":
            progress.show(f"{current.label}: {event['text']}", advance=1)
        elif event["event"] == "done":
            progress.finish()
            progress.say(f"{current.label}: {event['text']}")

    job = {
        "runs": [plan.plain(member.run) for member in group],
        "settings": [
            {
                "xla": member.setting.xla,
                "engines": member.setting.engines(member.run),
                "estimate": list(member.setting.stages) or None,
            }
            for member in group
        ],
        "precision": group[0].setting.precision,
        "features_memory": places.features_memory,
        "since": time.time(),
        "computed": computed,
    }
    first = group[0].run.id
    log = f"runs/{first}/log.txt" if len(group) == 1 else f"logs/group-{first}.txt"
    progress.show(f"{current.label}: {STARTING}")
    before = len(records.read(places.results))
    try:
        if _pass_seconds([m for m in group if not _has_features(m, places.results)]) > OWN_PROCESS_SECONDS:
            spawn({"action": "features", **job}, places, "logs/features.txt", on_event)
        spawn({"action": "train", **job}, places, log, on_event)
        return [], ""
    except children.Died as error:
        recorded = {r.get("run") for r in records.read(places.results)[before:]}
        return [member for member in group if member.run.id not in recorded], str(error)


def _pass_seconds(group: list[Member]) -> float:
    """What computing the features of a group is predicted to take: one pass for each frontier and its weights."""
    stages = ((m.run.origin, stage) for m in group for stage in m.setting.stages if stage["pass_seconds"])
    return sum({(origin, *stage["boundary"]): stage["pass_seconds"] for origin, stage in stages}.values())


def _has_features(member: Member, results: Path) -> bool:
    """Whether finished runs from the same weights have left all the features that a run needs."""

    def source(run: Run, precision: str) -> tuple[Any, ...]:
        return (*run.origin, run.fingerprint, run.limit, precision)

    own = source(member.run, member.setting.precision)
    left: set[tuple[tuple[str, ...], int | None]] = set()
    for record in newest(results).values():
        entries = record.get("features") or []
        if entries and source(plan.restore(Run, record["config"]), record["precision"]) == own:
            left |= {(tuple(e["boundary"]), e.get("views")) for e in entries if features.about(e["key"])}
    stages = zip(member.run.freeze.stages, member.setting.stages, strict=False)
    wanted = [(tuple(cost["boundary"]), views) for stage, cost in stages for views in (None, stage.augment_views)]
    return {(boundary, views) for boundary, views in wanted if boundary} <= left


def _finished_runs(results: Path) -> set[str]:
    done = finished(results)
    return {record["run"] for identity, record in newest(results).items() if identity in done}


# -- exports and inference -----------------------------------------------------------------------------


def export_models(configurations: Collection[str], places: Places, variants: Collection[str] = ()) -> bool:
    """Publish the representative run of each configuration that is not published yet; True when all went well.

    One that is published without some of the `variants` of its ONNX file is published again, with them. A quick try
    (`--limit`, `--epochs`) is not published over a model that was trained in full, one of `--limit` without int8
    unless that is asked for.
    """
    chosen: list[Event] = []
    for configuration in records.configurations(records.read(places.results), configurations):
        record = configuration.representative
        published = exporting.current(places.exports, record["model"]) if record else None
        same = bool(record and published and _same_run(published, record))
        known = published.get("variants", {}) if same and published else {}
        if record is None or (same and set(variants) <= set(known)):
            continue
        if published and _quick(record) and not _quick(published):
            say(f"{record['model']}: a quick try is not published over version {published['version']}; give --exports")
            continue
        default = exporting.VARIANTS[:1] if record["limit"] else exporting.DEFAULT_VARIANTS
        wanted = {"float32", *variants, *known} if variants else default
        seeds = [row["seed"] for row in configuration.finished]
        chosen.append({"record": record, "seeds": seeds, "variants": [v for v in exporting.VARIANTS if v in wanted]})
    if not chosen:
        return True
    with records.lock(places.exports, "exports"):
        return _publish(chosen, places)


def _publish(chosen: list[Event], places: Places) -> bool:
    """Export runs in a child, and in another one what is left when it dies; True when all went well."""
    failures: list[str] = []
    started: list[Event] = []
    with Progress(len(chosen), "models", left=False) as progress:

        def on_event(event: Event) -> None:
            if event["event"] == "exporting":
                started.append(chosen[len(started)]["record"])
                progress.show(f"exporting {event['model']}", advance=1)
            elif event["event"] == "not_exported":
                failures.append(event["model"])
                progress.say(f"{event['model']} is not published: {event['reason']}")
            elif event["event"] == "variant_refused":
                progress.say(f"{event['model']}: ONNX {event['variant']} is not published: {event['reason']}")

        while len(started) < len(chosen):
            before = len(started)
            progress.show(f"{STARTING} to export")
            try:
                spawn({"action": "export", "chosen": chosen[before:]}, places, "logs/export.txt", on_event)
                break
            except children.Died as error:
                if len(started) == before:
                    raise
                told = {key: started[-1][key] for key in ("model", "run", "study", "freeze")} | {"version": None}
                told |= {"kind": "export", "outcome": "failed", "reason": str(error), "time": records.now()}
                records.append(places.results, told)
                on_event({"event": "not_exported", **told})
    return not failures


def infer_models(models: set[str] | None, places: Places, asked: matrix.Asked, *, fresh: bool = False) -> bool:
    """Measure the newest version of published models in the ways that are asked for; True when no cell failed."""
    told = [] if fresh else records.read(places.results)
    ways = matrix.ways(asked)
    failures = 0
    with Progress(len(ways), "runtimes", left=False) as progress, TestImages(places) as tests:
        for way in ways:
            progress.show(f"measuring {way.label}")
            found = exporting.manifests(places.exports, runtimes.RUNTIMES[way.runtime].kind)
            entries = [m for m in found if models is None or m["name"] in models]
            entries = [m for m in entries if matrix.tried(way, m)]
            wanted = {m["name"]: matrix.missing(way, m, told) for m in entries}
            todo = [m for m in entries if wanted[m["name"]]]
            for manifest in todo:
                if reason := way.reason or matrix.refused(way, manifest):
                    _record_unmeasured([manifest], way, wanted, "skipped", reason, places)
            for group in matrix.groups(m for m in todo if not (way.reason or matrix.refused(way, m))):
                failures += _infer(way, group, wanted, places, tests)
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
        wanted = {m["name"]: json.dumps([m["data"], m["limit"]]) for m in manifests}
        made = []
        for what in set(wanted.values()) - self.paths.keys():
            self.paths[what] = str(Path(self.folder.name) / f"{len(self.paths)}.npz")
            data, limit = json.loads(what)
            made.append({"data": data, "limit": limit, "path": self.paths[what]})
        if made:
            job = {"action": "test_images", "tests": made}
            spawn(job, self.places, "logs/test-images.txt", lambda event: None, module="frostline.measuring")
        return {name: self.paths[what] for name, what in wanted.items()}


def _same_run(a: Event, b: Event) -> bool:
    """Whether a manifest or inference record and a training record are of one and the same training."""
    return (a["run"], a["run_time"]) == (b["run"], b.get("run_time", b["time"]))


def _quick(record: Event) -> bool:
    return bool(record["limit"] or record["epochs_cap"])


def _infer(
    way: matrix.Way,
    group: list[Event],
    wanted: dict[str, list[matrix.Cell]],
    places: Places,
    tests: TestImages,
) -> int:
    """Measure models with equal graphs in one way: all cells of the first, which the others share; the failed ones.

    When the child dies, the model at which it did has failed, and what is left is measured in another.
    """
    before = len(records.read(places.results))
    cells = [cell for cell in way.cells if any(cell in wanted[m["name"]] for m in group)]
    while group:
        told = len(records.read(places.results))
        try:
            measure(way, group, cells, places, tests.of(group))
        except children.Died as error:
            dead = _unrecorded(group, places, told)[:1]
            _record_unmeasured(dead, way, {m["name"]: cells for m in dead}, "failed", str(error), places)
        group = _unrecorded(group, places, told)
    return sum(r["outcome"] == "failed" for r in records.read(places.results)[before:])


def measure(
    way: matrix.Way,
    group: list[Event],
    cells: Sequence[matrix.Cell],
    places: Places,
    tests: Mapping[str, str],
) -> None:
    """One child that measures the first of some models, and how well the others do; `tests` are files of images by
    model. Raises Died."""
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
        "logs": f"{group[0]['name']}/{group[0]['version']}/{name}",
        "figures": None,
        "server": None,
    }

    def start(job: Event) -> None:
        spawn(job, places, f"logs/infer-{name}.txt", lambda event: None, module="frostline.measuring")

    scheme = runtimes.RUNTIMES[way.runtime].scheme
    if not scheme:
        start(job)
        return
    before = len(records.read(places.results))
    with _served(group[:1], scheme, way, places) as server:  # alone, so that its memory is that of one model
        start({**job, **server, "manifests": group[:1]})
    figures = records.read(places.results)[before:]
    if group[1:]:
        with _served(group[1:], scheme, way, places) as server:
            start({**job, **server, "figures": figures})


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
        with serving.running(places.exports, [m["name"] for m in manifests], flags=flags) as server:
            url = f"grpc://{server.grpc}" if scheme == "grpc" else server.rest
            process = server.pid if server.backend != "docker" else None
            own_seconds = time.monotonic() - started if len(manifests) == 1 else None
            about = served.Served(server.backend, server.rest, own_seconds, process)
            yield {"how": plan.plain(dataclasses.replace(way.how, url=url)), "server": plan.plain(about)}


def _unrecorded(group: list[Event], places: Places, before: int) -> list[Event]:
    told = {(r["run"], r["run_time"]) for r in records.read(places.results)[before:]}
    return [m for m in group if (m["run"], m["run_time"]) not in told]


def _record_unmeasured(
    manifests: list[Event],
    way: matrix.Way,
    cells: dict[str, list[matrix.Cell]],
    outcome: str,
    reason: str,
    places: Places,
) -> None:
    for manifest in manifests:
        subject = inference.Subject(manifest, places.exports, way.runtime, way.how)
        for row in inference.unmeasured(subject, cells[manifest["name"]], rules.PROFILES[way.profile], outcome, reason):
            records.append(places.results, {**row, "time": records.now()})


# -- the way to the children ---------------------------------------------------------------------------


def spawn(
    job: Event,
    places: Places,
    log: str,
    on_event: Callable[[Event], None],
    deadline: Callable[[], float | None] = lambda: None,
    module: str = "frostline.jobs",
) -> None:
    """Run a job in a child whose output goes to `log` in the results folder.

    Raises Died and GivenUp, and UserError for a mistake of the user that the child found.
    """
    mistakes: list[str] = []

    def handle(event: Event) -> None:
        if event["event"] == "user_error":
            mistakes.append(event["message"])
        elif event["event"] != "finished":
            on_event(event)

    path = places.results / log
    where = {"results": str(places.results), "exports": str(places.exports), "spawned": time.time()}
    job = {**job, **where, "data_dir": str(places.data_dir) if places.data_dir else None}
    try:
        children.run(module, job, log=path, on_event=handle, deadline=deadline)
    except children.Died as error:
        if not mistakes:
            raise children.Died(f"{error} (see {path})") from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; free some space, or choose --results DIR") from error
    if mistakes:
        raise UserError(mistakes[0])


def say(text: str) -> None:
    """A line for the person who waits; standard output is for tables alone."""
    print(text, file=sys.stderr, flush=True)
