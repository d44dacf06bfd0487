"""What the children do: each job is one fresh interpreter, started by the harness with `python -m frostline.jobs`."""

import contextlib
import csv
import dataclasses
import functools
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # a GPU's memory is taken as it is needed, and its peak tells
os.environ["KERAS_BACKEND"] = "tensorflow"  # before anything imports Keras; a person's own choice is for their own code

from frostline import (
    augment,
    backbones,
    cached,
    children,
    choice,
    costs,
    datasets,
    device,
    exporting,
    features,
    freezing,
    frontier,
    machine,
    models,
    plan,
    prefix,
    records,
    search,
    training,
    trunk,
)
from frostline.errors import UserError
from frostline.plan import Run
from frostline.studies import Data, Stage

Emit = Callable[..., None]
Costs = dict[tuple[str, str, int], list[dict[str, Any]]]  # of a run's stages, by precision, XLA and the run's number
PARITY_IMAGES = 32
XLA_SLOWS = 2.0  # times in one precision, so that it is not tried in another
SMALL_BATCH = 8  # images a step of the look at how long all training takes
TRY_XLA_SECONDS = 15.0  # of steps on features in a whole study; trying and compiling cost about half: bench/NOTES.md


def work(job: dict[str, Any], emit: Emit) -> None:
    """Do one job; a mistake of the user becomes an event, everything else that is wrong ends the child."""
    import keras  # noqa: F401  loading it and TensorFlow is part of the start, not of what is timed

    job["process_start_seconds"] = time.time() - job["spawned"]
    emit("ready")
    try:
        JOBS[job["action"]](job, emit)
    except UserError as error:
        emit("user_error", message=str(error))


def _runs(job: dict[str, Any]) -> list[Run]:
    return [plan.restore(Run, run) for run in job["runs"]]


def _data_dir(job: dict[str, Any]) -> Path | None:
    return Path(job["data_dir"]) if job["data_dir"] else None


@functools.lru_cache(maxsize=1)
def _load(data: Data, data_dir: Path | None, limit: int | None) -> datasets.Dataset:
    """The images of a run, kept for the next run of its group."""
    return datasets.load(data, data_dir=data_dir, limit=limit)


# -- one group of runs ---------------------------------------------------------------------------------


def run_here(job: dict[str, Any], emit: Emit) -> None:
    """Train the runs of one group; each ends as one record, whatever happens to it."""
    results = Path(job["results"])
    device.configure(job["precision"])
    marked = job["since"]
    with contextlib.ExitStack() as opened:
        shelf = Shelf(opened, features.memory_budget(job["features_memory"]))
        shelf.new |= set(job["computed"])
        if _lie_apart(job):
            shelf.new |= _compute_all(job, emit)
        left = list(zip(_runs(job), job["settings"], strict=True))
        companies = _companies(left)
        while left:
            run, setting = left.pop(0)
            emit("run", run=run.id)
            try:
                with _output_to(records.run_folder(results, run.id) / "log.txt"):
                    record = train(run, setting, job, shelf, companies[run.id], emit)
            except UserError:
                raise
            except Exception as error:
                record = {**plan.heading(run), **_asked(job, setting), "outcome": "failed", "reason": _reason(error)}
            now = time.time()
            record |= {"process_start_seconds": job["process_start_seconds"], "marginal_seconds": now - marked}
            record |= {"time": records.now(), "machine": machine.facts()}
            records.append(results, record)
            emit("done", run=run.id, text=_summary(record))
            marked = now
            shelf.drop_trunks({other.id for other, _ in left})


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send what the process prints, and the traceback of what goes wrong, to a file of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = [os.dup(1), os.dup(2)]
    with path.open("a", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        try:
            yield
        except UserError:
            raise
        except Exception:
            traceback.print_exc()
            raise
        finally:
            sys.stderr.flush()
            for stream, handle in zip((1, 2), saved, strict=True):
                os.dup2(handle, stream)
                os.close(handle)


def _asked(job: dict[str, Any], setting: dict[str, Any]) -> dict[str, Any]:
    """What is in effect for a run that failed before it could say."""
    engines = [engine["name"] for engine in setting["engines"]]
    return {
        "precision": job["precision"],
        "xla": setting["xla"] == "on",
        "engine": choice.engine(engines),
        "device": device.kind(),
    }


class Shelf:
    """The features a process has open: those of the run in hand, and others while they fit the memory."""

    def __init__(self, opened: contextlib.ExitStack, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self.books: dict[str, features.Features] = {}
        self.load_seconds: dict[str, float] = {}
        self.trunks: dict[str, tuple[trunk.Kept, list[Run]]] = {}  # and who shares them
        self.new: set[str] = set()  # computed by this process, and used by no run yet
        opened.callback(self.clear)

    def clear(self) -> None:
        for book in self.books.values():
            book.close()
        self.books.clear()

    def take(self, key: str, make: Callable[[], set[str]]) -> features.Features:
        """Open features, made first where they are not there or damaged."""
        if key not in self.books:
            self._make(make)
            try:
                self._open(key)
            except features.Damaged:
                self._make(make)
                self._open(key)
        return self.books[key]

    def _make(self, make: Callable[[], set[str]]) -> None:
        try:
            self.new |= make()
        except UserError:  # no room, perhaps because of what is open here
            if not self.books:
                raise
            self.clear()
            self.new |= make()

    def _open(self, key: str) -> None:
        before = time.perf_counter()
        if self.held() + features.nbytes(key) > self.memory_bytes:
            self.clear()
        self.books[key] = features.load(key, memory_bytes=self.memory_bytes)
        self.load_seconds[key] = time.perf_counter() - before

    def held(self) -> int:
        """Bytes of memory in use."""
        books = sum(book.nbytes for book in self.books.values() if book.in_memory)
        return books + sum(kept.nbytes for kept, _ in self.trunks.values())

    def has_room(self, nbytes: int, key: str) -> bool:
        """Whether so many bytes more fit beside the features `key`; others are closed where they do not."""
        for other in [k for k in self.books if k != key]:
            if self.held() + nbytes > self.memory_bytes:
                self.books.pop(other).close()
        return self.held() + nbytes <= self.memory_bytes

    def drop_trunks(self, left: Collection[str]) -> None:
        """Forget trunks that none of the runs left shares."""
        self.trunks = {
            k: (kept, runs) for k, (kept, runs) in self.trunks.items() if {run.id for run in runs} & set(left)
        }


@dataclass
class Used:
    """What one run took from the shelf: facts by key, seconds it waited for them, the worst difference found."""

    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    waited_seconds: float = 0.0
    difference: float | None = None
    reused: bool = True
    load_seconds: float = 0.0
    trunk: dict[str, Any] | None = None


def train(
    run: Run, setting: dict[str, Any], job: dict[str, Any], shelf: Shelf, company: Sequence[Run], emit: Emit
) -> dict[str, Any]:
    """Train one run and return its record; what it leaves in the run folder is written before."""
    results = Path(job["results"])
    whole = _load(plan.whole(run.data), _data_dir(job), run.limit)
    rows, dataset = datasets.part(whole, run.data)
    machine.reset_peak_memory()
    device.reset_peak_memory()
    started = time.perf_counter()

    device.seed_everything(run.seed)
    network = build(run, dataset)
    kept_fresh = start_weights(network, run, results)
    used = Used()
    trained = training.train(
        network,
        run.freeze.stages,
        dataset.train,
        dataset.validation,
        seed=run.seed,
        split_seed=run.data.split_seed,
        xla=setting["xla"] == "on",
        engines=[training.Engine(**engine) for engine in setting["engines"]],
        source=lambda cut: _of_rows(_features(network, cut, run, whole, shelf, used, emit), rows),
        view_source=lambda cut, views: _of_views(network, cut, run, views, shelf, used, emit),
        sharing=lambda cut, arrays, number: (
            _shared(network, cut, run, company, arrays, dataset.train, setting["xla"] == "on", shelf, used)
            if number == 1
            else None
        ),
        report=lambda **epoch: emit("epoch", text=_epoch_line(epoch)),
    )
    answers = _evaluate(network, dataset, trained)
    pass_seconds = sum(facts["seconds"] for facts in used.facts.values())
    alone = time.perf_counter() - started - used.waited_seconds + used.load_seconds + pass_seconds
    alone += trained.spared_seconds

    peaks = {"peak_memory_bytes": machine.peak_memory_bytes(), "device_peak_memory_bytes": device.peak_memory_bytes()}
    folder = records.run_folder(results, run.id)
    _keep(folder, network, dataset, answers["validation"][0], answers["test"][0], trained.history)
    epoch_seconds = trained.epoch_seconds
    return {
        **plan.heading(run),
        "outcome": "ok",
        "reason": None,
        **_of_training(trained),
        **_of_features(used),
        **_of_augmentation(run, trained),
        **_of_answers(dataset, answers),
        **peaks,
        "kept_fresh": kept_fresh,
        "estimate": setting["estimate"],
        "total_seconds": alone,
        "images_per_second": len(dataset.train.labels) / epoch_seconds if epoch_seconds else None,
    }


def _of_training(trained: training.Trained) -> dict[str, Any]:
    """What a record says of masks, proofs, engines, times and epochs."""
    engines = ["cached" if cut else "plain" for cut in trained.cuts]
    frontiers = {cut.mode for cut in trained.cuts if cut}
    return {
        "engine": choice.engine(engines),
        **trained.effective,
        "trainable_params": trained.masks[-1].trainable_params,
        "total_params": trained.masks[-1].total_params,
        "stages": _stages(trained, engines),
        "batch_norm": [mask.batch_norm for mask in trained.masks],
        "frontier": ", ".join(sorted(frontiers)) or None,
        "first_step_seconds": trained.first_step_seconds,
        "step_seconds": trained.step_seconds,
        "epoch_seconds": trained.epoch_seconds,
        "train_running_top1": trained.history[-1]["top1"],
        "restored_epochs": trained.restored_epochs,
        "history": trained.history,
    }


def _of_features(used: Used) -> dict[str, Any]:
    """What a record says of the features a run trained on; all null where it used none."""
    taken = list(used.facts.values())
    return {
        "features_seconds": sum(facts["seconds"] for facts in taken) if taken else None,
        "features_reused": used.reused if taken else None,
        "features_difference": used.difference,
        "features_bytes": sum(facts["bytes"] for facts in taken) if taken else None,
        "features": taken,
        "trunk": used.trunk,
    }


def _of_augmentation(run: Run, trained: training.Trained) -> dict[str, Any]:
    """What a record says of views of training images; all null where the images themselves were shown."""
    told = dict.fromkeys(augment.describe(stage) for stage in run.freeze.stages if stage.augment)
    counts = [stage.augment_views for stage in run.freeze.stages if stage.augment_views]
    return {
        "augment": "; ".join(map(str, told)) or None,
        "augment_views": max(counts, default=None),
        "augment_seconds": trained.augment_seconds,
    }


def _of_answers(dataset: datasets.Dataset, answers: dict[str, tuple[Any, float, float]]) -> dict[str, Any]:
    """What a record says of the splits and how well the run does on each."""
    return {
        "train_images": len(dataset.train.labels),
        "validation_images": len(dataset.validation.labels),
        "test_images": len(dataset.test.labels),
        "class_names": list(dataset.class_names),
        **{f"{name}_top1": answer[1] for name, answer in answers.items()},
        **{f"{name}_loss": answer[2] for name, answer in answers.items()},
    }


def _stages(trained: training.Trained, engines: Sequence[str]) -> list[dict[str, Any]]:
    """What each stage trained, with the proof, and where its frontier lay."""
    return [
        {**plan.plain(mask), "proof": proof, "engine": engine, "frontier": list(cut.boundary) if cut else []}
        for mask, proof, engine, cut in zip(trained.masks, trained.proofs, engines, trained.cuts, strict=True)
    ]


def _facts(key: str, book: features.Features) -> dict[str, Any]:
    told = {name: book.about[name] for name in ("boundary", "mode", "program", "seconds")}
    return {"key": key, "in_memory": book.in_memory, "bytes": book.nbytes, **told}


def _evaluate(
    network: models.Network, dataset: datasets.Dataset, trained: training.Trained
) -> dict[str, tuple[Any, float, float]]:
    """Probabilities, top-1 and loss of every split; one that is another is answered once."""
    answers: dict[str, tuple[Any, float, float]] = {}
    for name, split in (("train", dataset.train), ("validation", dataset.validation), ("test", dataset.test)):
        if name == "test" and dataset.test is dataset.validation:
            answers[name] = answers["validation"]
        elif trained.features:
            answers[name] = training.evaluate(network, split, trained.suffix, trained.features[name])
        else:
            answers[name] = training.evaluate(network, split)
    return answers


def _splits(dataset: datasets.Dataset) -> dict[str, np.ndarray]:
    """The images of each split that is not another."""
    test = {} if dataset.test is dataset.validation else {"test": dataset.test.images}
    return {"train": dataset.train.images, "validation": dataset.validation.images, **test}


def _features(
    network: models.Network,
    cut: frontier.Cut,
    run: Run,
    dataset: datasets.Dataset,
    shelf: Shelf,
    used: Used,
    emit: Emit,
) -> training.Arrays:
    """The features of a cut, and the proof on a sample of them that they are what the whole network computes."""
    need = _need(network, cut, run)
    book = _open(need.key, lambda: _compute([need], _splits(dataset), run, emit), shelf, used)
    rows = _sample(run, dataset.train.images)
    sample = tuple(np.ascontiguousarray(a[rows]) for a in book.arrays["train"])
    _prove(need, dataset.train.images[rows], sample, shelf, used)
    return book.arrays


def _of_views(
    network: models.Network,
    cut: frontier.Cut,
    run: Run,
    views: augment.Views,
    shelf: Shelf,
    used: Used,
    emit: Emit,
) -> cached.OfViews:
    """The features of augmented training images, computed whenever they are shown or, where the views are fixed, once;
    with the same proof."""
    need = _need(network, cut, run, views if views.count else None)
    if views.count is None:
        forward = prefix.forward(need, views.images[: prefix.SAMPLE])
        used.facts[need.key]["train_images"] = "computed each epoch"

        def take(numbers: np.ndarray) -> tuple[np.ndarray, ...]:
            return forward(augment.Shown(views, numbers))
    else:
        images = {"train": augment.every(views)}
        book = _open(need.key, lambda: _compute([need], images, run, emit), shelf, used)
        used.facts[need.key]["views"] = views.count

        def take(numbers: np.ndarray) -> tuple[np.ndarray, ...]:
            return tuple(a[numbers] for a in book.arrays["train"])

    numbers = augment.numbers(views, 0)[_sample(run, views.images)]
    _prove(need, augment.show(views, numbers), take(numbers), shelf, used)
    views.seconds = 0.0
    return take


def _open(key: str, make: Callable[[], set[str]], shelf: Shelf, used: Used) -> features.Features:
    """Features from the shelf, made where they are missing, and what that cost the run."""
    before = time.perf_counter()
    book = shelf.take(key, make)
    used.reused &= key not in shelf.new
    shelf.new.discard(key)
    if key not in used.facts:
        used.load_seconds += shelf.load_seconds[key]
    used.facts[key] = _facts(key, book)
    used.waited_seconds += time.perf_counter() - before
    return book


def _sample(run: Run, images: np.ndarray) -> np.ndarray:
    """Which images a run re-computes."""
    return np.random.default_rng(run.seed).permutation(len(images))[: prefix.SAMPLE]


def _prove(need: prefix.Need, images: np.ndarray, rows: tuple[np.ndarray, ...], shelf: Shelf, used: Used) -> None:
    """Prove features of some images; those that are wrong are thrown away."""
    try:
        difference = prefix.verify(need, images, rows)
    except prefix.FeaturesDiffer:
        shelf.clear()
        features.clear([need.key])
        raise
    used.difference = max(difference, used.difference or 0.0)


def _companies(runs: Sequence[tuple[Run, dict[str, Any]]]) -> dict[str, list[Run]]:
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


def _shared(
    network: models.Network,
    cut: frontier.Cut,
    run: Run,
    company: Sequence[Run],
    arrays: training.Arrays,
    images: datasets.Split,
    xla: bool,
    shelf: Shelf,
    used: Used,
) -> training.Shared | None:
    """The trunk of a run's first stage, where others share it and its answers fit in memory; each run proves it."""
    own, key = run.freeze.stages[0], next(reversed(used.facts))
    runs, found = _trunk_of(network, cut.suffix, company)
    freezing.apply(network.model, network.groups, own)
    if found is None or run not in runs:
        return None
    facts = {"features": key, "seed": run.seed, "batch": own.batch_size, "part": run.data.train_images, "xla": xla}
    name = trunk.key(found, facts)
    kept, _ = shelf.trunks.get(name, (None, runs))
    epochs = max(other.freeze.stages[0].epochs for other in runs)
    nbytes = trunk.nbytes(found, arrays, epochs)
    if kept is None and not shelf.has_room(nbytes, key):
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


def _of_rows(arrays: training.Arrays, rows: np.ndarray | None) -> training.Arrays:
    """Features of some of the training images; None: of all."""
    return arrays if rows is None else {**arrays, "train": tuple(a[rows] for a in arrays["train"])}


def _need(network: models.Network, cut: frontier.Cut, run: Run, views: augment.Views | None = None) -> prefix.Need:
    data = {k: v for k, v in plan.plain(run.data).items() if k not in ("scaling", "train_images")}
    known: dict[str, Any] = {
        "data": data,
        "fingerprint": run.fingerprint,
        "limit": run.limit,
        "decoder": datasets.DECODER,
    }
    if views:
        known |= {"augment": plan.plain(views.settings), "views": views.count, "part": list(run.data.train_images)}
    return prefix.need(network, cut, known)


def make_features(job: dict[str, Any], emit: Emit) -> None:
    """The features of a group in a process of its own, each call on one core and as many calls as cores: a long pass
    is much faster so, and a training would be slower."""
    import tensorflow as tf

    if device.kind() != "gpu":
        tf.config.threading.set_intra_op_parallelism_threads(1)
    device.configure(job["precision"])
    emit("made", keys=sorted(_compute_all(job, emit)))


def _lie_apart(job: dict[str, Any]) -> bool:
    """Whether runs on the same weights may need several frontiers, which are better computed together."""
    where: dict[Any, set[tuple[str, ...]]] = {}
    for run, setting in zip(_runs(job), job["settings"], strict=True):
        unknown = [{"boundary": [run.configuration]}]
        for stage in setting["estimate"] or unknown:
            where.setdefault(run.origin, set()).add(tuple(stage["boundary"]))
    return any(len(boundaries - {()}) > 1 for boundaries in where.values())


def _compute_all(job: dict[str, Any], emit: Emit) -> set[str]:
    """Compute what all frontiers of a group need, in as few passes as can be."""
    settings: dict[Any, tuple[Run, dict[str, Any]]] = {}
    for run, setting in zip(_runs(job), job["settings"], strict=True):
        where = [stage["boundary"] for stage in setting["estimate"] or []] or run.configuration
        drawn = [(stage.augment, stage.augment_views, run.data.train_images) for stage in run.freeze.stages]
        settings.setdefault((run.origin, str(where), str([d for d in drawn if d[1]])), (run, setting))
    needs: list[prefix.Need] = []
    fixed: list[tuple[prefix.Need, dict[str, prefix.Images]]] = []
    for run, setting in settings.values():
        dataset = _load(plan.whole(run.data), _data_dir(job), run.limit)
        device.seed_everything(run.seed)
        network = build(run, dataset)
        start_weights(network, run, Path(job["results"]))
        images = datasets.part(dataset, run.data)[1].train.images
        for stage, engine in zip(run.freeze.stages, setting["engines"], strict=True):
            freezing.apply(network.model, network.groups, stage)
            if engine["name"] == "cached":
                cut = frontier.split(network.model, mode=stage.frontier, most_bytes=engine["most_bytes"])
                needs += [_need(network, cut, run)] if cut.prefix else []
                views = augment.build(stage, images, seed=run.seed, number=1, split_seed=run.data.split_seed)
                if cut.prefix and views and views.count:
                    fixed.append((_need(network, cut, run, views), {"train": augment.every(views)}))
    made = _compute(needs, _splits(dataset), run, emit) if needs else set()
    return made.union(*(_compute([need], shown, run, emit) for need, shown in fixed))


def _compute(needs: Sequence[prefix.Need], splits: dict[str, prefix.Images], run: Run, emit: Emit) -> set[str]:
    about = {"study": run.study, "backbone": run.backbone.name, "images": len(splits["train"])}

    def report(done: int, total: int) -> None:
        emit("features", done=done, total=total)

    return prefix.compute(needs, splits, about=about, report=report, waiting=lambda: emit("waiting"))


def build(run: Run, dataset: datasets.Dataset) -> models.Network:
    """The network of a run, for the images and classes of its data."""
    size, classes = dataset.train.images.shape[1], len(dataset.class_names)
    return models.build(run.backbone, run.freeze.head, run.data.scaling, size, classes)


def start_weights(network: models.Network, run: Run, results: Path) -> list[str]:
    """Give the network the weights its configuration starts from; returns the layers that keep their fresh ones."""
    fresh = models.reset_names(network, run.freeze.reset)
    weights = run.freeze.weights
    if weights == plan.PRETRAIN:
        assert run.pretrain_run
        weights = str(records.weights_file(results, run.pretrain_run))
    if weights == "imagenet":
        models.load_published(network, run.backbone.name, skip=fresh)
    elif weights == plan.OWN:
        models.load_own(network, run.backbone.name, skip=fresh)
    elif weights not in (None, "none"):
        models.load_weights(network, Path(weights), head=run.inherit_head, skip=fresh)
    return sorted(fresh)


def _keep(
    folder: Path,
    network: models.Network,
    dataset: datasets.Dataset,
    validation: Any,
    test: Any,
    history: list[dict[str, Any]],
) -> None:
    """Write the run's weights, probabilities and history, each whole or not at all."""
    weights, predictions, epochs = folder / "partial.weights.h5", folder / "partial.npz", folder / "partial.csv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        network.model.optimizer = None  # whose variables would be saved too
        network.model.save_weights(weights)
        np.savez_compressed(
            predictions,
            validation=validation,
            validation_labels=dataset.validation.labels,
            validation_keys=np.array(dataset.validation.keys),
            test=test,
            test_labels=dataset.test.labels,
            test_keys=np.array(dataset.test.keys),
        )
        _write_history(epochs, history)
        os.replace(predictions, folder / "predictions.npz")
        os.replace(epochs, folder / "history.csv")
        os.replace(weights, folder / "weights.weights.h5")
    except (OSError, RuntimeError) as error:  # h5py has both for a disk that is full
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise UserError(f"cannot write to {folder}: {reason}; free some space") from error
    finally:
        for partial in (weights, predictions, epochs):
            partial.unlink(missing_ok=True)


def _write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """One line per epoch of every stage; what was not measured is empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records.finite(history))


def _reason(error: Exception) -> str:
    """Why a run failed, in one line."""
    import tensorflow as tf

    first = str(error).strip().split("\n")[0]
    if isinstance(error, (MemoryError, tf.errors.ResourceExhaustedError)):
        return f"out of memory: {first}"
    return f"{type(error).__name__}: {first}"


def _epoch_line(epoch: dict[str, Any]) -> str:
    top1 = epoch["validation_top1"]
    measured = "" if top1 is None else f", validation top-1 {top1:.3f}"
    return f"stage {epoch['stage']}/{epoch['stages']}, epoch {epoch['epoch']}/{epoch['epochs']}{measured}"


def _summary(record: dict[str, Any]) -> str:
    if record["outcome"] != "ok":
        return f"failed: {record['reason']}"
    return (
        f"{record['total_seconds']:.1f} s, validation top-1 {record['validation_top1']:.3f}, "
        f"{record['trainable_params']:,} of {record['total_params']:,} parameters trained"
    )


# -- before a study ------------------------------------------------------------------------------------


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
    for run in _runs(job):
        emit("checking", freeze=run.freeze.name)
        dataset = _load(plan.whole(run.data), _data_dir(job), run.limit)
        with _row_named(job["where"], run):
            # Variants of a row that differ in their number of training images follow each other and look the same.
            alike = (run.backbone, run.freeze, plan.whole(run.data), run.inherit_head, run.engine)
            if alike != last:
                network, looked, last = *_checked(run, dataset, job), alike
            images = {name: len(split) for name, split in _splits(datasets.part(dataset, run.data)[1]).items()}
            images["pass"] = sum(map(len, _splits(dataset).values()))
            timed = _estimate(network, run, images, "off", known) if _name(run) in job["estimate"] else None
            untimed = None if job["layers"] else _estimate(network, run, images, "off", None)
        masks, stages = zip(*looked, strict=True)
        mask, stage = max(zip(masks, run.freeze.stages, strict=True), key=lambda pair: pair[0].trainable_params)
        looks.append((mask.trainable_params, run, stage, images))
        found.append(
            {
                "freeze": run.freeze.name,
                "variant": run.variant,
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
    for run in _runs(job):
        if run.inherit_head and run.pretrain_run and units[run.freeze.name] != units[plan.PRETRAIN]:
            raise UserError(
                f'{run.freeze.name}: head = "inherit" takes over an output layer of {units[plan.PRETRAIN]} units, '
                f"and this task needs {units[run.freeze.name]}; choose a head of its own"
            )
    effort = _effort(looks, found, job) if job["cells"] else None
    emit("checked", device=device.kind(), mixed=device.mixed_precision(), configurations=found, effort=effort)


def _checked(
    run: Run, dataset: datasets.Dataset, job: dict[str, Any]
) -> tuple[models.Network, list[tuple[freezing.Mask, dict[str, Any]]]]:
    """The network of a run, and what each of its stages would train; raises UserError."""
    device.seed_everything(run.seed)
    network = build(run, dataset)
    check_weights(run, network)
    for name in sorted(search.optimizers(run.freeze)):
        training.optimizer(name, 1e-3)
    return network, [_look(network, run, stage, job) for stage in run.freeze.stages]


def _effort(
    looks: list[tuple[int, Run, Stage, dict[str, int]]], found: list[dict[str, Any]], job: dict[str, Any]
) -> dict[str, float]:
    """Seconds that all training takes at most, and that timing takes: from the forward pass of what trains most.

    Small batches cost more an image, and no row more than one that runs forward and backward through all layers. A cell
    traces and runs a step, which is to a forward pass as training is to answering.
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
    training.optimizer(stage.optimizer, stage.learning_rate, stage.momentum)
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
    told |= {"augment": augment.describe(stage), "augment_views": stage.augment_views}
    if job["layers"]:
        below = {network.model.inputs[0].name, *cut.below} if cut.below else set()
        layers = freezing.layers(network.model, network.groups)
        told["layers"] = [{**plan.plain(layer), "below_frontier": layer.name in below} for layer in layers]
        told |= {"frontier_mode": cut.mode, "problem": problem}
    return mask, told


def check_weights(run: Run, network: models.Network) -> None:
    """Refuse weights that do not exist or do not fit, before any run starts; raises UserError."""
    weights = run.freeze.weights
    backbones.check_weights(run.backbone.name, weights, network.model.input_shape[1])
    if weights not in (None, "none", "imagenet", plan.OWN, plan.PRETRAIN):
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
    trained = max(mask.trainable_params for mask in masks)
    batch = max(stage.batch_size for stage in run.freeze.stages)
    activations = sum(int(np.prod(layer.output.shape[1:])) for layer in network.model.layers)
    return 4 * (masks[0].total_params + 3 * trained + 2 * batch * activations)


def steps(job: dict[str, Any], emit: Emit) -> None:
    """Time a few steps of some configurations, each under a precision and XLA setting; `measured` is known already."""
    runs = _runs(job)
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
    images = _shape(run, job)["images"]["train"]
    counts = [stage.epochs * math.ceil(images / stage.batch_size) for stage in run.freeze.stages]
    seconds = count * sum(cost["step_seconds"] * n for cost, n in zip(off, counts, strict=True))
    return f"all its steps take {seconds:.0f} s without it" if seconds < TRY_XLA_SECONDS else ""


def _shape(run: Run, job: dict[str, Any]) -> dict[str, Any]:
    return job["shapes"][_name(run)]


def _name(run: Run) -> str:
    return f"{run.freeze.name} {run.variant}"


def _time(
    run: Run, xla: str, job: dict[str, Any], known: dict[tuple[str, ...], float], emit: Emit
) -> list[dict[str, Any]]:
    """Time one configuration; returns the cost of each of its stages."""
    device.seed_everything(run.seed)
    shape = _shape(run, job)
    network = models.build(run.backbone, run.freeze.head, run.data.scaling, shape["size"], shape["classes"])
    try:
        found = _estimate(network, run, shape["images"], xla, known)
    except UserError as error:
        raise UserError(f"{run.freeze.name}: {error}") from error
    epochs = [stage.epochs for stage in run.freeze.stages]
    step = sum(c["step_seconds"] * n for c, n in zip(found, epochs, strict=True)) / sum(epochs)
    emit("cell", stages=found, step_seconds=step, engine=choice.engine([cost["engine"] for cost in found]))
    return found


# -- after a study -------------------------------------------------------------------------------------


def export(job: dict[str, Any], emit: Emit) -> None:
    """Publish chosen runs; what fails becomes a record and an event, and the others go on."""
    results = Path(job["results"])
    device.configure("float32")
    for entry in job["chosen"]:
        run = plan.restore(Run, entry["record"]["config"])
        emit("exporting", model=run.model)
        outcome = {"kind": "export", "model": run.model, "run": run.id, "study": run.study, "freeze": run.freeze.name}
        try:
            published = _publish(run, entry, job)
            outcome |= {"outcome": "ok", "reason": None, "version": published.version, "size_bytes": published.sizes}
            outcome |= {"variants": published.variants, "accuracy": published.accuracy}
            for name, about in published.variants.items():
                if about["outcome"] != "ok":
                    emit("variant_refused", model=run.model, variant=name, reason=about["reason"])
        except UserError:
            raise
        except Exception as error:
            traceback.print_exc()
            outcome |= {"outcome": "failed", "reason": _reason(error), "version": None}
            emit("not_exported", model=run.model, reason=outcome["reason"])
        records.append(results, {**outcome, "time": records.now()})


def _publish(run: Run, entry: dict[str, Any], job: dict[str, Any]) -> exporting.Published:
    record = entry["record"]
    _, dataset = datasets.part(_load(plan.whole(run.data), _data_dir(job), run.limit), run.data)
    device.seed_everything(run.seed)
    network = build(run, dataset)
    models.load_weights(network, records.weights_file(Path(job["results"]), run.id), head=True, skip=set())
    facts = {
        "study": run.study,
        "freeze": run.freeze.name,
        "variant": run.variant,
        "seed": run.seed,
        "chosen": f"the median of {len(entry['seeds'])} seeds by validation top-1",
        "run": run.id,
        "run_time": record["time"],
        "fingerprint": run.fingerprint,
        "data": plan.plain(run.data),
        "scaling": models.scaling(run.backbone.name, run.data.scaling),
        "limit": run.limit,
        "epochs_cap": run.epochs,
        "record": {key: value for key, value in record.items() if key != "history"},
        "trained": {k: record[k] for k in ("validation_top1", "test_top1", "test_loss", "precision", "xla")},
    }
    return exporting.publish(
        models.standard(network.model),
        name=run.model,
        activation=network.head.activation,
        class_names=dataset.class_names,
        images=dataset.test.images[:PARITY_IMAGES],
        facts=facts,
        exports=Path(job["exports"]),
        data=dataset,
        onnx_variants=entry["variants"],
    )


JOBS = {
    "train": run_here,
    "features": make_features,
    "preflight": preflight,
    "steps": steps,
    "export": export,
}

if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        children.serve(work)
