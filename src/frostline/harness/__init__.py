"""Runs studies: this process plans and keeps the books, children load TensorFlow and do one thing each."""

import dataclasses
import time
from collections import Counter

from frostline import choice, machine, matrix, plan, records
from frostline.harness import base, books, inferring, planning, publishing, settling, training
from frostline.harness.base import Event, Places
from frostline.harness.inferring import infer_models
from frostline.harness.planning import layers
from frostline.harness.publishing import export_models
from frostline.plan import Options, Run
from frostline.progress import duration

__all__ = ["Places", "dry_run", "export_models", "infer_models", "layers", "run_study"]


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
    study = planning.load(name, options)
    digests: planning.Digests = {}
    with records.lock(places.results):
        known = set() if fresh else books.finished(places.results)
        planned, trained = planning.plan_runs(study, options, places, known, digests), 0
        planning.tell_finished(study.name, planned, known)
        settled: tuple[list[Event], str] | None = None
        while pending := [run for run in planned if run.identity not in known]:
            if settled is None:  # the whole study, also under --only: `auto` chooses once for all of its rows
                everything = planning.plan_runs(study, dataclasses.replace(options, only=()), places, known, digests)
                settled = settling.settle(everything, pending, places, fresh=fresh, where=name)
            untrained = training.take_over(pending, planned, places.results)
            settings = [choice.pick(settled[0], run, settled[1]) for run in untrained]
            training.train_all(untrained, settings, places, done=len(planned) - len(untrained))
            trained += len(untrained)
            known |= {run.identity for run in pending}
            if study.search:  # whose next trials follow from these
                planned = planning.plan_runs(study, options, places, known, digests)
        good = books.all_ok(planned, places.results)
        published = [run for run in planned if not run.trial]
        if export:
            good &= publishing.export_models({run.configuration for run in published}, places)
        if export and infer:
            asked = matrix.of_a_study(quick=options.limit is not None)
            good &= inferring.infer_models({run.model for run in published}, places, asked, fresh=fresh)
        seconds = time.monotonic() - started
        if trained:
            told = {"kind": "study", "study": study.name, "runs": trained, "study_seconds": seconds}
            records.append(places.results, {**told, "time": records.now(), "machine": machine.facts()})
    base.say(f"{study.name}: {trained} runs done, {len(planned) - trained} found finished, {duration(seconds)}")
    return good, {run.configuration for run in planned}


def dry_run(name: str, options: Options, places: Places, *, fresh: bool = False) -> list[Event]:
    """What each configuration of a study would train and about what it would cost; trains and keeps nothing."""
    study = planning.load(name, options)
    known = set() if fresh else books.finished(places.results)
    digests: planning.Digests = {}
    planned = planning.plan_runs(study, options, places, known, digests)
    everything = planning.plan_runs(study, dataclasses.replace(options, only=()), places, known, digests)
    seeds = Counter(run.model for run in planned)
    searches = {run.freeze.name: plan.heading(run)["search"] for run in planned}
    checked = planning.look(everything, places, where=name, estimate=set(seeds), timing=choice.needed(planned))
    return [
        {
            **c,
            "seeds": seeds[c["model"]],
            "search": searches[c["freeze"]],
            "auto": _auto(everything, planned, checked, [] if fresh else records.read(places.results)),
        }
        for c in checked["configurations"]
        if c["estimate"]
    ]


def _auto(everything: list[Run], planned: list[Run], checked: Event, told: list[Event]) -> str | None:
    """How a command that trains would settle what is `auto`."""
    effort = checked["effort"]
    if not effort:
        return None
    kept = settling.kept(choice.key(everything), told)
    if kept and not choice.lacking(everything, kept["cells"], checked["mixed"]):
        return f"as an earlier command chose: {settling.chosen(kept, planned)}"
    if settling.too_little(effort):
        return f"not timed, because {settling.little(effort)}: {choice.described(checked['device'], checked['mixed'])}"
    cells = len(choice.lacking(everything, [], checked["mixed"]))
    return f"timed first, {cells} cells in about {duration(effort['timing_seconds'])}"
