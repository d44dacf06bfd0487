"""What `auto` means for a study: measured cells, or a default where measuring would take longer than training."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from frostline import children, choice, machine, plan, records
from frostline.harness import base, planning
from frostline.harness.base import Event, Places
from frostline.plan import Run
from frostline.progress import Progress, duration


def settle(
    everything: list[Run], pending: list[Run], places: Places, *, fresh: bool, where: str = ""
) -> tuple[list[Event], str]:
    """Check a whole study, and measure what `auto` means for all of its rows: the cells, and the kind of device.

    Cells that an earlier command measured are not measured again; nor is a study checked again where only seeds are
    added to configurations that have finished with other ones.
    """
    key = choice.key(everything)
    told = [] if fresh else records.read(places.results)
    made = kept(key, told)
    proven = {r["configuration"] for r in told if r["kind"] == "train" and r["outcome"] == "ok"}
    whole = made and "mixed" in made and not choice.lacking(everything, made["cells"], made["mixed"])
    if made and whole and proven.issuperset(run.configuration for run in pending):
        return made["cells"], made["device"]
    there = [r["cell"] for r in told if r["kind"] == "cell" and r["key"] == key] + (made["cells"] if made else [])
    asked = choice.needed(pending)
    checked = planning.preflight(everything, places, where=where, timing=asked and not there)
    if not asked or (made and not choice.lacking(everything, made["cells"], checked["mixed"])):
        return made["cells"] if made else [], checked["device"]
    return choose(everything, key, checked, there, places), checked["device"]


def kept(key: str, told: Sequence[Event]) -> Event | None:
    """The newest choice under a key among records."""
    return next((r for r in reversed(told) if r["kind"] == "choice" and r["key"] == key), None)


def chosen(made: Event, planned: list[Run]) -> str:
    """What a choice means for each row, in words."""
    rows: dict[str, list[str]] = {}
    for run in {run.freeze.name: run for run in planned}.values():
        setting = choice.pick(made["cells"], run, made["device"])
        rows.setdefault(f"{setting.precision} with XLA {setting.xla}", []).append(run.freeze.name)
    return "; ".join(what if len(rows) == 1 else f"{what} for {', '.join(names)}" for what, names in rows.items())


def choose(planned: list[Run], key: str, checked: Event, there: list[Event], places: Places) -> list[Event]:
    """What `auto` means for every configuration, kept as a record: measured cells, or a default where measuring them
    would take longer than all training."""
    rows = {(r.freeze.name, choice.timing_key(r)): r for r in planned if r.freeze.name != plan.PRETRAIN}
    distinct: dict[str, Run] = {}
    for (_, timing), run in rows.items():
        distinct.setdefault(timing, run)
    shapes = {c["model"]: c for c in checked["configurations"]}
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
    first = planned[0]
    asked = {"limit": first.limit, "epochs_cap": first.epochs}
    record = {"kind": "choice", "study": first.study, **asked, "key": key, **facts, "cells": told}
    records.append(places.results, {**record, "time": records.now(), "machine": machine.facts()})
    return told


def _untimed(planned: list[Run], distinct: dict[str, Run], shapes: dict[str, Event], checked: Event) -> list[Event]:
    """Cells for what is not timed: all configurations where timing takes longer than all training, else those that
    are asked for by name and have no part to compute once."""
    effort = checked["effort"]
    all_of_them = too_little(effort)
    open_ones = {choice.timing_key(run) for run in planned if "auto" in (run.precision, run.xla)}
    reason = little(effort) if all_of_them else None
    cells = []
    for timing, run in distinct.items():
        stages = shapes[run.model]["untimed"]
        engine = choice.engine([stage["engine"] for stage in stages])
        if all_of_them or (engine == "plain" and timing not in open_ones):
            precision, xla = choice.default(checked["device"], checked["mixed"])
            cell = {"precision": precision, "xla": xla, "timing": timing, "outcome": choice.NOT_TIMED, "reason": reason}
            cells.append({**cell, "stages": stages, "engine": engine, "step_seconds": None, "elapsed_seconds": None})
    return cells


def too_little(effort: Event | None) -> bool:
    """Whether timing would take longer than all training."""
    return effort is not None and effort["training_seconds"] < effort["timing_seconds"]


def little(effort: Event) -> str:
    training, timing = (duration(effort[f"{what}_seconds"]) for what in ("training", "timing"))
    return f"all training, compiling aside, takes about {training}, timing about {timing}"


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
        self.progress.show(f"{base.STARTING} to time steps")
        try:
            base.spawn(self.job(), self.places, "logs/steps.txt", self.on_event, self.deadline)
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
