"""The features that a process computes, opens and proves for its runs."""

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from frostline import (
    augment,
    cached,
    datasets,
    device,
    features,
    freezing,
    frontier,
    models,
    plan,
    prefix,
    training,
    trunk,
)
from frostline.errors import UserError
from frostline.jobs import common
from frostline.jobs.common import Emit
from frostline.plan import Run


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

    def take(self, key: str, make: Callable[[], set[str]], using: Collection[str] = ()) -> features.Features:
        """Open features, made first where they are not there or damaged, for a run that is `using` others already."""
        if key not in self.books:
            self._make(make)
            try:
                self._open(key, using)
            except features.Damaged:
                self._make(make)
                self._open(key, using)
        return self.books[key]

    def _make(self, make: Callable[[], set[str]]) -> None:
        try:
            self.new |= make()
        except UserError:  # no room, perhaps because of what is open here
            if not self.books:
                raise
            self.clear()
            self.new |= make()

    def _open(self, key: str, using: Collection[str]) -> None:
        before = time.perf_counter()
        self.has_room(features.nbytes(key), using)
        self.books[key] = features.load(key, memory_bytes=self.memory_bytes - self.held())
        self.load_seconds[key] = time.perf_counter() - before

    def held(self) -> int:
        """Bytes of memory in use."""
        books = sum(book.nbytes for book in self.books.values() if book.in_memory)
        return books + sum(kept.nbytes for kept, _ in self.trunks.values())

    def has_room(self, nbytes: int, using: Collection[str]) -> bool:
        """Whether so many bytes more fit beside the features a run is `using`; others are closed where they do not."""
        for other in [key for key in self.books if key not in using]:
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


def _facts(key: str, book: features.Features) -> dict[str, Any]:
    told = {name: book.about[name] for name in ("boundary", "mode", "program", "seconds")}
    told["pass"] = book.about.get("pass", key)
    return {"key": key, "in_memory": book.in_memory, "bytes": book.nbytes, **told}


def features_of(
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
    book = _open(need.key, lambda: _compute([need], common.splits(dataset), run, emit), shelf, used)
    rows = _sample(run, dataset.train.images)
    sample = tuple(np.ascontiguousarray(a[rows]) for a in book.arrays["train"])
    _prove(need, dataset.train.images[rows], sample, shelf, used)
    return book.arrays


def of_views(
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
        epochs = run.freeze.stages[views.seed[1] - 1].epochs
        name, forward = prefix.forward(need, views.images, epochs * len(views.images))
        used.facts[need.key] |= {"train_images": "computed each epoch", "train_program": name}

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
    book = shelf.take(key, make, used.facts)
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


@dataclass(frozen=True)
class Part:
    """Some rows of an array [N, ...], gathered as they are asked for: what is mapped from a file stays there."""

    whole: np.ndarray
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.whole.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.whole.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.whole[self.rows[rows]]


def of_rows(arrays: training.Arrays, rows: np.ndarray | None) -> training.Arrays:
    """Features of some of the training images; None: of all."""
    return arrays if rows is None else {**arrays, "train": tuple(Part(a, rows) for a in arrays["train"])}


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
    emit("made", keys=sorted(compute_all(job, emit)))


def lie_apart(job: dict[str, Any]) -> bool:
    """Whether runs on the same weights may need several frontiers, which are better computed together."""
    where: dict[Any, set[tuple[str, ...]]] = {}
    for run, setting in zip(common.runs(job), job["settings"], strict=True):
        if all(engine["name"] != "cached" for engine in setting["engines"]):
            continue
        unknown = [{"boundary": [run.configuration]}]
        for stage in setting["estimate"] or unknown:
            where.setdefault(run.origin, set()).add(tuple(stage["boundary"]))
    return any(len(boundaries - {()}) > 1 for boundaries in where.values())


def compute_all(job: dict[str, Any], emit: Emit) -> set[str]:
    """Compute what all frontiers of a group need, in as few passes as can be.

    Where the store has no room for all of it, only what the first runs need: more would take their place in it.
    """
    settings: dict[Any, tuple[Run, dict[str, Any]]] = {}
    for run, setting in zip(common.runs(job), job["settings"], strict=True):
        where = [stage["boundary"] for stage in setting["estimate"] or []] or run.configuration
        drawn = [(stage.augment, stage.augment_views, run.data.train_images) for stage in run.freeze.stages]
        settings.setdefault((run.origin, str(where), str([d for d in drawn if d[1]])), (run, setting))
    needs: list[prefix.Need] = []
    fixed: list[tuple[prefix.Need, dict[str, prefix.Images]]] = []
    nbytes: dict[str, int] = {}
    for run, setting in settings.values():
        dataset = common.load(plan.whole(run.data), common.data_dir(job), run.limit)
        own, views = _all_needs(run, setting, dataset, Path(job["results"]))
        nbytes |= {need.key: prefix.layout(need.cut, common.splits(dataset)).nbytes for need in own}
        nbytes |= {need.key: prefix.layout(need.cut, shown).nbytes for need, shown in views}
        if sum(nbytes.values()) > features.capacity():
            break
        needs, fixed = needs + own, fixed + views
    made = _compute(needs, common.splits(dataset), run, emit) if needs else set()
    return made.union(*(_compute([need], shown, run, emit) for need, shown in fixed))


def _all_needs(
    run: Run, setting: dict[str, Any], dataset: datasets.Dataset, results: Path
) -> tuple[list[prefix.Need], list[tuple[prefix.Need, dict[str, prefix.Images]]]]:
    """What the stages of a run need of all images, and of views that are fixed."""
    device.seed_everything(run.seed)
    network = common.build(run, dataset)
    common.start_weights(network, run, results)
    images = datasets.part(dataset, run.data)[1].train.images
    needs, fixed = [], []
    for stage, engine in zip(run.freeze.stages, setting["engines"], strict=True):
        freezing.apply(network.model, network.groups, stage)
        if engine["name"] == "cached":
            cut = frontier.split(network.model, mode=stage.frontier, most_bytes=engine["most_bytes"])
            needs += [_need(network, cut, run)] if cut.prefix else []
            views = augment.build(stage, images, seed=run.seed, number=1, split_seed=run.data.split_seed)
            if cut.prefix and views and views.count:
                fixed.append((_need(network, cut, run, views), {"train": augment.every(views)}))
    return needs, fixed


def _compute(needs: Sequence[prefix.Need], splits: dict[str, prefix.Images], run: Run, emit: Emit) -> set[str]:
    about = {"study": run.study, "backbone": run.backbone.name, "images": len(splits["train"])}

    def report(done: int, total: int) -> None:
        emit("features", done=done, total=total)

    return prefix.compute(needs, splits, about=about, report=report, waiting=lambda: emit("waiting"))
