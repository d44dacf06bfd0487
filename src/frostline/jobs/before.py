"""Before a study trains: every name and rule is checked, and steps are timed for what is `auto`."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from frostline import (
    augment,
    backbones,
    choice,
    costs,
    datasets,
    device,
    features,
    freezing,
    frontier,
    machine,
    models,
    plan,
    prefix,
    search,
    training,
)
from frostline.errors import UserError
from frostline.jobs import common
from frostline.jobs.common import Emit
from frostline.plan import Run
from frostline.studies import Stage

Costs = dict[tuple[str, str, int], list[dict[str, Any]]]  # of a run's stages, by precision, XLA and the run's number
XLA_SLOWS = 2.0  # times in one precision, so that it is not tried in another
SMALL_BATCH = 8  # images a step of the look at how long all training takes
TRY_XLA_SECONDS = 15.0  # of steps on features of a configuration, all seeds; trying costs about half: bench/NOTES.md


def preflight(job: dict[str, Any], emit: Emit) -> None:
    """Load the data, build every configuration, resolve every rule.

    With `layers` every layer is told; of those in `estimate` a few float32 steps are timed. `cells`: how many are to
    be timed for what is `auto`; where any are, it is told how long that will take, and all training.
    """
    device.configure("float32")
    found = []
    looks: list[tuple[int, Run, Stage, dict[str, int]]] = []
    known: dict[tuple[str, ...], float] = {}
    base = machine.peak_memory_bytes() or 0
    last = None
    for run in common.runs(job):  # before images are read, which may take long
        with _row_named(job["where"], run):
            _check_optimizers(run)
    for run in common.runs(job):
        emit("checking", freeze=run.freeze.name)
        dataset = common.load(plan.whole(run.data), common.data_dir(job), run.limit)
        with _row_named(job["where"], run):
            # Variants of a row that differ in their number of training images follow each other and look the same.
            alike = (run.backbone, run.freeze, plan.whole(run.data), run.inherit_head, run.engine)
            if alike != last:
                network, looked, last = *_checked(run, dataset, job, emit), alike
            images = {name: len(split) for name, split in common.splits(datasets.part(dataset, run.data)[1]).items()}
            images["pass"] = sum(map(len, common.splits(dataset).values()))
            timed = _estimate(network, run, images, "off", known) if run.model in job["estimate"] else None
            untimed = None if job["layers"] else _estimate(network, run, images, "off", None)
        masks, stages = zip(*looked, strict=True)
        mask, stage = max(zip(masks, run.freeze.stages, strict=True), key=lambda pair: pair[0].trainable_params)
        looks.append((mask.trainable_params, run, stage, images))
        found.append(
            {
                "freeze": run.freeze.name,
                "variant": run.variant,
                "model": run.model,
                "stages": list(stages),
                "classes": len(dataset.class_names),
                "size": dataset.train.images.shape[1],
                "units": network.model.output_shape[-1],
                "images": images,
                "estimate": timed,
                "untimed": untimed,
                "memory_bytes": base + dataset.train.images.nbytes + _estimated_memory(network, list(masks), run),
            }
        )
    units = {entry["freeze"]: entry["units"] for entry in found}
    for run in common.runs(job):
        if run.inherit_head and run.pretrain_run and units[run.freeze.name] != units[plan.PRETRAIN]:
            raise UserError(
                f'{run.freeze.name}: head = "inherit" takes over an output layer of {units[plan.PRETRAIN]} units, '
                f"and this task needs {units[run.freeze.name]}; choose a head of its own"
            )
    effort = _effort(looks, found, job) if job["cells"] else None
    emit("checked", device=device.kind(), mixed=device.mixed_precision(), configurations=found, effort=effort)


def _checked(
    run: Run, dataset: datasets.Dataset, job: dict[str, Any], emit: Emit
) -> tuple[models.Network, list[tuple[freezing.Mask, dict[str, Any]]]]:
    """The network of a run, and what each of its stages would train; raises UserError, and tells first of published
    weights that cannot be had."""
    device.seed_everything(run.seed)
    network = common.build(run, dataset)
    if not job["layers"]:  # which are the same with any weights
        try:
            check_weights(run, network)
        except backbones.Unavailable as error:
            emit("unavailable", reason=str(error))
            raise
    for rules in (run.freeze.reset, *(stage.reset for stage in run.freeze.stages)):
        models.reset_names(network, rules)
    return network, [_look(network, run, stage, job) for stage in run.freeze.stages]


def _effort(
    looks: list[tuple[int, Run, Stage, dict[str, int]]], found: list[dict[str, Any]], job: dict[str, Any]
) -> dict[str, float]:
    """Seconds that all training takes and that timing takes, about: from the forward pass of what trains most.

    Small batches cost more an image, and few rows more than one that runs forward and backward through all layers. A
    cell traces and runs a step, which is to a forward pass as training is to answering.
    """
    before = time.perf_counter()
    _, run, stage, _ = max(looks, key=lambda look: look[0])
    entry = found[[look[1] for look in looks].index(run)]
    device.seed_everything(run.seed)
    network = models.build(run.backbone, run.freeze.head, run.data.scaling, entry["size"], entry["classes"])
    image = prefix.forward_seconds(network.model, min(SMALL_BATCH, stage.batch_size)) / costs.FORWARD
    if stage.augment:
        image += augment.seconds_per_image(stage.augment, size=entry["size"])
    shown = sum(
        count * costs.shown(other.freeze.stages, images)
        for count, (_, other, _, images) in zip(job["counts"], looks, strict=True)
    )
    elapsed = time.perf_counter() - before
    return {"training_seconds": shown * image, "timing_seconds": job["cells"] * elapsed / costs.FORWARD}


@contextlib.contextmanager
def _row_named(where: str, run: Run) -> Iterator[None]:
    """Say in which row of which study a mistake is."""
    try:
        yield
    except UserError as error:
        row = "[pretrain]" if run.freeze.name == plan.PRETRAIN else f"[[freeze]] {run.freeze.name!r}"
        raise UserError(f"{where}: {row}: {error}") from error


def _look(network: models.Network, run: Run, stage: Stage, job: dict[str, Any]) -> tuple[freezing.Mask, dict[str, Any]]:
    """What a stage would train and where its frontier lies; raises UserError.

    Where `layers` are asked for, a rule that matches nothing is a `problem`, told beside the layers there are.
    """
    if stage.frontier != "exact" and run.engine == "plain":
        raise UserError(f'frontier = "{stage.frontier}" needs features; give engine = "auto"')
    problem = None
    try:
        mask = freezing.apply(network.model, network.groups, stage)
    except UserError as error:
        if not job["layers"]:
            raise UserError(f"{error}; all layers: frostline layers {job['where']} --only {run.freeze.name}") from error
        problem = f"{run.freeze.name}: {error}"
        mask = freezing.apply(network.model, network.groups, dataclasses.replace(stage, train=("all",)))
    cut = frontier.split(network.model, mode=stage.frontier)
    told = {**plan.plain(mask), "frontier": list(cut.boundary), "feature_shapes": list(cut.feature_shapes)}
    told |= {"augment": augment.describe(stage), "augment_views": stage.augment_views, "frontier_mode": cut.mode}
    if job["layers"]:
        below = {network.model.inputs[0].name, *cut.below} if cut.below else set()
        layers = freezing.layers(network.model, network.groups)
        told["layers"] = [{**plan.plain(layer), "below_frontier": layer.name in below} for layer in layers]
        told["problem"] = problem
    return mask, told


def _check_optimizers(run: Run) -> None:
    """Refuse an optimizer that Keras does not have, or a momentum it does not take, of all that a search may choose;
    raises UserError."""
    for stage in run.freeze.stages:
        for name in sorted({stage.optimizer, *search.optimizers(run.freeze)}):
            training.optimizer(name, stage.learning_rate, stage.momentum)


def check_weights(run: Run, network: models.Network) -> None:
    """Refuse weights that do not exist or do not fit, before any run starts; raises UserError."""
    weights = run.freeze.weights
    backbones.check_weights(run.backbone.name, weights, network.model.input_shape[1])
    if weights is not None and weights not in plan.WEIGHTS:
        models.load_weights(network, Path(weights), head=run.inherit_head, skip=set())


def _estimate(
    network: models.Network, run: Run, images: dict[str, int], xla: str, known: dict[tuple[str, ...], float] | None
) -> list[dict[str, Any]]:
    """What each stage of a run will cost, with which engine, and why; without `known` nothing is timed."""
    room = costs.Room(features.capacity(), machine.available_memory_bytes() or 0)
    found = costs.stages(network, run.freeze.stages, images, run.engine, xla=xla == "on", room=room, known=known)
    return [plan.plain(cost) for cost in found]


def _estimated_memory(network: models.Network, masks: list[freezing.Mask], run: Run) -> int:
    """Bytes of weights, gradients, two optimizer slots, and the activations of one batch kept for the backward pass."""
    import keras

    trained = max(mask.trainable_params for mask in masks)
    batch = max(stage.batch_size for stage in run.freeze.stages)
    outputs = keras.tree.flatten([layer.output for layer in network.model.layers])
    activations = sum(int(np.prod(output.shape[1:])) for output in outputs)
    return 4 * (masks[0].total_params + 3 * trained + 2 * batch * activations)


def steps(job: dict[str, Any], emit: Emit) -> None:
    """Time a few steps of some configurations, each under a precision and XLA setting; `measured` is known already."""
    runs = common.runs(job)
    found: Costs = {(precision, xla, number): stages for precision, xla, number, stages in job["measured"]}
    known: dict[str, dict[tuple[str, ...], float]] = {}
    for precision, xla, number in job["todo"]:
        device.configure(precision)
        off = found.get((precision, "off", number), [])
        told = _hopeless(found, precision, runs)
        if not told and xla == "on":
            told = _not_worth_xla(off, runs[number], job, job["counts"][number], _slowed_by_xla(found, number))
        if told:
            emit("cell", skipped=told)
        else:
            found[precision, xla, number] = _time(runs[number], xla, job, known.setdefault(precision, {}), emit)


def _hopeless(found: Costs, precision: str, runs: list[Run]) -> str:
    """Why a precision that all leave open is not tried any further; empty where it may still win."""
    if any(run.precision != "auto" for run in runs):
        return ""
    totals: dict[str, float] = {}
    for other in {p for p, _, _ in found}:
        rows = [[stages for (p, _, row), stages in found.items() if (p, row) == (other, n)] for n in range(len(runs))]
        if all(rows):
            totals[other] = sum(min(sum(cost["seconds"] for cost in stages) for stages in row) for row in rows)
    costs = [cost for (p, _, _), stages in found.items() if p == precision for cost in stages]
    alone = {tuple(cost["boundary"]): cost["pass_seconds"] for cost in costs if cost["pass_seconds"]}
    if precision in totals and sum(alone.values()) > min(totals.values()):
        return "its pass alone takes longer than another precision in all"
    return ""


def _slowed_by_xla(found: Costs, number: int) -> str:
    """That XLA makes the steps of a run much slower in some precision; empty where it is not known to."""
    seconds = {cell: sum(cost["seconds"] for cost in stages) for cell, stages in found.items()}
    for (precision, xla, row), slow in seconds.items():
        off = seconds.get((precision, "off", number), math.inf)
        if (xla, row) == ("on", number) and slow > XLA_SLOWS * off:
            return f"XLA makes it {slow / off:.1f} times slower in {precision}"
    return ""


def _not_worth_xla(
    off: list[dict[str, Any]], run: Run, job: dict[str, Any], count: int | None, slower: str = ""
) -> str:
    """Why XLA is not tried, given the costs of training on features without it, or `slower` from another precision;
    empty where it is to be tried.

    `count` is the number of runs, None where one of them asks for XLA.
    """
    if count is None or device.kind() == "gpu":
        return ""
    if slower or {cost["engine"] for cost in off} != {"cached"}:
        return slower
    images = job["shapes"][run.model]["images"]["train"]
    counts = [stage.epochs * math.ceil(images / stage.batch_size) for stage in run.freeze.stages]
    seconds = count * sum(cost["step_seconds"] * n for cost, n in zip(off, counts, strict=True))
    return f"all its steps take {seconds:.0f} s without it" if seconds < TRY_XLA_SECONDS else ""


def _time(
    run: Run, xla: str, job: dict[str, Any], known: dict[tuple[str, ...], float], emit: Emit
) -> list[dict[str, Any]]:
    """Time one configuration; returns the cost of each of its stages."""
    device.seed_everything(run.seed)
    shape = job["shapes"][run.model]
    network = models.build(run.backbone, run.freeze.head, run.data.scaling, shape["size"], shape["classes"])
    try:
        found = _estimate(network, run, shape["images"], xla, known)
    except UserError as error:
        raise UserError(f"{run.freeze.name}: {error}") from error
    epochs = [stage.epochs for stage in run.freeze.stages]
    step = sum(c["step_seconds"] * n for c, n in zip(found, epochs, strict=True)) / sum(epochs)
    emit("cell", stages=found, step_seconds=step, engine=choice.engine([cost["engine"] for cost in found]))
    return found
