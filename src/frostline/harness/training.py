"""Trains runs group by group, each group in a fresh child."""

import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline import children, choice, features, machine, plan, records, search
from frostline.harness import base, books
from frostline.harness.base import Event, Places
from frostline.plan import Run
from frostline.progress import Progress

FEW = 4  # a process keeps the memory of every network it trained
OWN_PROCESS_SECONDS = 20.0  # a pass that takes longer gets a process of its own: bench/NOTES.md


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
    its figures mean little, a few share one. Pre-trainings come first."""
    found: dict[str, list[Member]] = {}
    few = Counter[str]()
    for member in members:
        run, key = member.run, member.run.id
        if any(engine["name"] == "cached" for engine in member.setting.engines(run)):
            key = member.setting.precision
        elif run.limit is not None and run.freeze.name != plan.PRETRAIN:
            key = f"{member.setting.precision}, {few[member.setting.precision] // FEW}"
            few[member.setting.precision] += 1
        found.setdefault(key, []).append(member)
    return sorted(found.values(), key=lambda group: group[0].run.freeze.name != plan.PRETRAIN)


def train_all(pending: list[Run], settings: list[choice.Setting], places: Places, *, done: int = 0) -> None:
    """Train the runs group by group, each group in a fresh child; `done` others of the study have finished.

    When a child dies, what it left undone is tried once more, each run alone; then it is recorded as failed.
    """
    members = [Member(run, setting, _called(run)) for run, setting in zip(pending, settings, strict=True)]
    number = itertools.count(done + 1)
    with Progress(sum(member.epochs for member in members)) as progress:
        for unnumbered in groups(members):
            group = [
                dataclasses.replace(member, label=f"[{next(number)}/{done + len(pending)}] {member.label}")
                for member in unnumbered
            ]
            ready = [member for member in group if _may_start(member, places, progress)]
            undone, reason = _train(ready, places, progress)
            for member in undone:
                progress.say(f"{member.label}: {reason}; trying once more, alone")
                twice, again = _train([member], places, progress)
                if twice:
                    _fail(member, again, places, progress)


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
    progress.show(f"{current.label}: {base.STARTING}")
    before = len(records.read(places.results))
    try:
        if _pass_seconds([m for m in group if not _has_features(m, places.results)]) > OWN_PROCESS_SECONDS:
            base.spawn({"action": "features", **job}, places, "logs/features.txt", on_event)
        base.spawn({"action": "train", **job}, places, log, on_event)
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
    for record in books.newest(results).values():
        entries = record.get("features") or []
        if entries and source(plan.restore(Run, record["config"]), record["precision"]) == own:
            left |= {(tuple(e["boundary"]), e.get("views")) for e in entries if features.about(e["key"])}
    stages = zip(member.run.freeze.stages, member.setting.stages, strict=False)
    wanted = [(tuple(cost["boundary"]), views) for stage, cost in stages for views in (None, stage.augment_views)]
    return {(boundary, views) for boundary, views in wanted if boundary} <= left


def _finished_runs(results: Path) -> set[str]:
    done = books.finished(results)
    return {record["run"] for identity, record in books.newest(results).items() if identity in done}


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
            records.append(results, {**books.newest(results)[trial.identity], **same, **told})
    return left
