"""The runs of a study, checked before anything trains."""

import dataclasses
import hashlib
import tempfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from frostline import (
    backbones,
    children,
    choice,
    datasets,
    freezing,
    heads,
    plan,
    search,
    studies,
)
from frostline.errors import UserError
from frostline.harness import base, books
from frostline.harness.base import Event, Places
from frostline.plan import Options, Run
from frostline.progress import Progress
from frostline.studies import Study

Digests = dict[studies.Data | str, str]  # fingerprints of data, and hashes of files by their path


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
            for rules in (freeze.reset, *(rules for stage in freeze.stages for rules in (stage.train, stage.reset))):
                freezing.check_form(rules)
        except UserError as error:
            raise UserError(f"{name}: {row}: {error}") from error
    for line in plan.overridden(study, options):
        base.say(line)
    return study


def tell_finished(name: str, planned: list[Run], known: Collection[str]) -> None:
    """Say how many runs of a study were found finished, where others are left to do."""
    done = sum(run.identity in known for run in planned)
    if 0 < done < len(planned):
        base.say(f"{name}: {done} of {len(planned)} runs are done already")


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
    believed = {identity: record for identity, record in books.newest(places.results).items() if identity in known}

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
        progress.show(f"{base.STARTING} to check the study")

        def on_event(event: Event) -> None:
            if event["event"] == "checking":
                progress.show(f"checking {event['freeze']}", advance=bool(checking))  # the one before is checked
                checking.append(event["freeze"])
            elif event["event"] == "unavailable":
                books.skip(
                    [run for run in planned if run.freeze.weights == "imagenet"], event["reason"], places.results
                )
            elif event["event"] == "checked":
                found.update(event)

        base.spawn(job, places, "logs/preflight.txt", on_event)
    return found


def look(planned: list[Run], places: Places, **asked: Any) -> Event:
    """What the preflight finds, its log in a folder that goes at once."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return preflight(planned, dataclasses.replace(places, results=Path(folder)), **asked)
        except children.Died as error:
            raise children.Died(str(error).partition(" (see ")[0]) from error


def layers(name: str, options: Options, places: Places) -> list[Event]:
    """Every layer of each configuration of a study, stage by stage; trains and keeps nothing."""
    each: dict[str, Run] = {}  # variants and seeds have the same layers
    for run in plan_runs(load(name, options), options, places):
        each.setdefault(run.freeze.name, run)
    found = look(list(each.values()), places, where=name, layers=True)["configurations"]
    return [c for c in found if not options.only or c["freeze"] in options.only]
