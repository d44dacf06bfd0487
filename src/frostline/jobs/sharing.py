"""Which runs of a group share a trunk, and what they train on in place of the features."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from frostline import datasets, freezing, frontier, models, prefix, training, trunk
from frostline.jobs import store
from frostline.plan import Run
from frostline.studies import Stage


def companies(runs: Sequence[tuple[Run, dict[str, Any]]]) -> dict[str, list[Run]]:
    """For each run those of its group, itself included, that train the same network on the same features in the same
    batches in their first stage, so that they may share a trunk."""
    found: dict[str, list[Run]] = {}
    names = [_same_steps(run, setting) for run, setting in runs]
    for name, (run, _) in zip(names, runs, strict=True):
        found.setdefault(name, []).append(run)
    return {run.id: found[name] for name, (run, _) in zip(names, runs, strict=True)}


def _same_steps(run: Run, setting: dict[str, Any]) -> str:
    stage, estimate = run.freeze.stages[0], setting["estimate"]
    if stage.augment or not estimate or setting["engines"][0]["name"] != "cached":
        return run.id
    network = [run.backbone, run.freeze.head, run.inherit_head, run.freeze.weights, run.pretrain_run, run.seed]
    data = [run.data, run.limit, run.fingerprint, stage.batch_size, stage.batch_norm]
    return repr([network, data, estimate[0]["boundary"], setting["engines"][0], setting["xla"]])


def shared(
    network: models.Network,
    cut: frontier.Cut,
    run: Run,
    company: Sequence[Run],
    arrays: training.Arrays,
    images: datasets.Split,
    xla: bool,
    shelf: store.Shelf,
    used: store.Used,
) -> training.Shared | None:
    """The trunk of a run's first stage, where others share it and its answers fit in memory; each run proves it."""
    own, key = run.freeze.stages[0], next(reversed(used.facts))
    runs, found = _trunk_of(network, cut.suffix, company)
    freezing.apply(network.model, network.groups, own)
    if found is None or run not in runs:
        return None
    epochs = max(other.freeze.stages[0].epochs for other in runs)
    facts = {"features": key, "seed": run.seed, "batch": own.batch_size, "part": run.data.train_images, "xla": xla}
    name = trunk.key(found, facts | {"epochs": epochs})
    kept, _ = shelf.trunks.get(name, (None, runs))
    nbytes = trunk.nbytes(found, arrays, epochs)
    if kept is None and not shelf.has_room(nbytes, used.facts):
        return None
    used.trunk = {"boundary": list(found.boundary), "runs": [other.id for other in runs], "bytes": nbytes}
    used.trunk |= {"reused": kept is not None}
    shared, kept = trunk.share(kept, found, arrays, images.labels, epochs=epochs, batch_size=own.batch_size, xla=xla)
    shelf.trunks[name] = (kept, runs)

    def finish(done: int) -> None:
        shared.finish(done)
        shown = training.order(len(images.labels), run.seed, 1, 0)
        try:
            difference = trunk.verify(network, found, kept, arrays["train"], shown, own.batch_size)
        except prefix.FeaturesDiffer:
            del shelf.trunks[name]
            raise
        told = {"difference": difference, "seconds": sum(kept.seconds[:done]) + kept.answer_seconds}
        used.trunk = {**(used.trunk or {}), **told}

    return dataclasses.replace(shared, finish=finish)


def _trunk_of(network: models.Network, suffix: Any, company: Sequence[Run]) -> tuple[list[Run], frontier.Cut | None]:
    """Which runs have a trunk, and the one that all of them have, where that are several; changes the mask."""

    def cut(train: Sequence[str], batch_norm: str) -> tuple[frontier.Cut | None, set[str]]:
        mask = freezing.apply(network.model, network.groups, Stage(train=tuple(train), batch_norm=batch_norm))
        return frontier.trunk(suffix), set(mask.trained)

    if len(company) < 2:
        return [], None
    mode = company[0].freeze.stages[0].batch_norm
    rules = dict.fromkeys(run.freeze.stages[0].train for run in company)
    each = {rule: cut(rule, mode) for rule in rules}
    runs = [run for run in company if each[run.freeze.stages[0].train][0]]
    if len(runs) < 2:
        return runs, None
    trained = set[str]().union(*(each[run.freeze.stages[0].train][1] for run in runs))
    return runs, cut([f"only:{name}" for name in sorted(trained)], mode)[0]
