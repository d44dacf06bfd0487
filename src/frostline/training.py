"""Training a network stage by stage, with a defined clock and the proof of freezing."""

import inspect
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from frostline import augment, cached, device, freezing, frontier, heads
from frostline.datasets import Split
from frostline.errors import UserError, nearest
from frostline.models import LayerWeights, Network, set_layer_weights
from frostline.studies import Stage

EVALUATION_BATCH = 256
Report = Callable[..., None]


class NotFinite(Exception):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Trained:
    """What training did: one history entry per epoch, one mask and proof per stage, seconds as the design defines.

    `spared_seconds` are those of compiling, and of a trunk, that a run before had for this one: `first_step_seconds`
    and the epochs have them too. `features` are those of the last stage, None with the plain engine, and `suffix` is
    what answers on them.
    `augment_seconds` were spent on views of training images while epochs ran, beside the steps of the plain engine;
    None where none was made.
    """

    history: list[dict[str, Any]]
    masks: list[freezing.Mask]
    proofs: list[dict[str, Any]]
    effective: dict[str, Any]
    first_step_seconds: float
    step_seconds: float | None
    epoch_seconds: float | None
    restored_epochs: list[int | None]
    cuts: list[frontier.Cut | None]
    features: "Arrays | None"
    suffix: Any
    spared_seconds: float
    augment_seconds: float | None = None


@dataclass(frozen=True)
class Engine:
    """How a stage is executed: `plain` or `cached`, and then the most bytes that the features of an image may take."""

    name: str = "plain"
    most_bytes: int | None = None


Arrays = Mapping[str, tuple[Any, ...]]  # the features of each split, by its name
Source = Callable[[frontier.Cut], Arrays]  # gives the features of a cached stage
ViewSource = Callable[[frontier.Cut, augment.Views], cached.OfViews]  # gives those of its augmented training images


@dataclass(frozen=True)
class Shared:
    """A trunk whose answers several runs are trained on: `rest` is the network above it.

    `features` are its answers in inference mode; `show(epoch, order)` has those of an epoch ready and returns the
    seconds that were spared by finding them, `of_epochs` gives them by their numbers: e * N + i for image i in epoch
    e. `finish(epochs)` leaves the random generators as so many epochs of training alone do. `spared_seconds` of
    compiling and answering fell to another run, `compile_seconds` count whoever had them.
    """

    rest: Any
    features: Arrays
    of_epochs: cached.OfViews
    show: Callable[[int, Any], float]
    finish: Callable[[int], None]
    compile_seconds: float
    spared_seconds: float


Sharing = Callable[[frontier.Cut, Arrays, int], Shared | None]  # gives the trunk of a stage, by its number


@dataclass
class Clock:
    """Seconds of steps and epochs as Keras's callbacks mark them; validation lies outside an epoch."""

    read: Callable[[], float] = time.perf_counter
    compiling: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    epoch_started: float = 0.0
    step_started: float = 0.0
    compiling_in_epoch: list[float] = field(default_factory=list)
    steps_in_epoch: int = 0
    spared_in_epoch: float = 0.0
    spared_seconds: float = 0.0

    def epoch_begins(self) -> None:
        self.compiling_in_epoch, self.steps_in_epoch, self.spared_in_epoch = [], 0, 0.0
        self.epoch_started = self.read()

    def compiled(self, seconds: float) -> None:
        """Tracing and compiling that happened outside an epoch."""
        self.compiling.append(seconds)

    def spare(self, seconds: float) -> None:
        """What another run did for this one in an epoch, which counts as if this one had done it."""
        self.spared_in_epoch += seconds
        self.spared_seconds += seconds

    def step_begins(self) -> None:
        self.step_started = self.read()

    def step_ends(self, compiles: bool) -> None:
        seconds = self.read() - self.step_started
        if compiles:
            self.compiling_in_epoch.append(seconds)
        else:
            self.steps.append(seconds)
        self.steps_in_epoch += 1

    def training_ends(self, steps: int = 1) -> float:
        """Seconds of the epoch's training; a step that compiles counts as an average one, NaN where all did.

        Where the steps were not marked one by one, `steps` says how many there were.
        """
        seconds = self.read() - self.epoch_started - sum(self.compiling_in_epoch) + self.spared_in_epoch
        if not self.steps_in_epoch:
            self.steps_in_epoch = steps
            self.steps.append(seconds / steps)
        self.compiling += self.compiling_in_epoch
        ordinary = self.steps_in_epoch - len(self.compiling_in_epoch)
        seconds = seconds * self.steps_in_epoch / ordinary if ordinary else math.nan
        self.epochs.append(seconds)
        return seconds


@dataclass(frozen=True)
class _Lesson:
    """What a stage is trained on: images or views of them, in an order that seed and number of the stage give."""

    stage: Stage
    number: int
    seed: int
    train: Split
    validation: Split | None
    views: augment.Views | None

    def rows(self, epoch: int) -> Any:
        """What an epoch shows, in its order: images, or numbers of their views."""
        shuffled = order(len(self.train.labels), self.seed, self.number, epoch)
        return shuffled if self.views is None else augment.numbers(self.views, epoch)[shuffled]


def train(
    network: Network,
    stages: tuple[Stage, ...],
    train: Split,
    validation: Split | None,
    *,
    seed: int,
    split_seed: int = 0,
    xla: bool,
    fresh: Sequence[LayerWeights] = (),
    engines: Sequence[Engine] = (),
    source: Source | None = None,
    view_source: ViewSource | None = None,
    sharing: Sharing = lambda cut, features, number: None,
    report: Report = lambda **event: None,
    read: Callable[[], float] = time.perf_counter,
) -> Trained:
    """Train all stages, each by its engine: `plain` is Keras's `fit`, `cached` the suffix alone on features.

    `fresh` has, for each stage, the weights that some layers get before it.
    Raises NotFinite, FrozenMoved and, for unknown names, UserError.
    """
    clock = Clock(read)
    history: list[dict[str, Any]] = []
    masks, proofs, restored, cuts, shown = [], [], [], [], []
    features: Arrays | None = None
    spared = 0.0
    for number, stage in enumerate(stages, 1):
        set_layer_weights(network, fresh[number - 1] if fresh else {})
        mask = freezing.apply(network.model, network.groups, stage)
        before = freezing.frozen_digests(network.model, mask)
        views = augment.build(stage, train.images, seed=seed, number=number, split_seed=split_seed)
        lesson = _Lesson(stage, number, seed, train, validation, views)
        cut = _cut(network, stage, engines[number - 1]) if engines else None
        features, of_views = _features(cut, views, source, view_source) if cut else (None, None)
        model, shared = cut.suffix if cut else network.model, None
        if cut and features and not views and (shared := sharing(cut, features, number)):
            model, features, of_views = shared.rest, shared.features, shared.of_epochs
        compile_model(model, stage, xla, network.head.label_smoothing)
        log = _Log(clock, history, number, stage, len(stages), len(train.labels), report)
        callbacks, stopper = _callbacks(stage, log)
        spared += _fit(model, features, of_views, lesson, shared, callbacks, log)
        restored.append(_restored_epoch(stopper))
        proofs.append(freezing.prove(before, freezing.frozen_digests(network.model, mask)))
        masks.append(mask)
        cuts.append(cut)
        shown += [views.seconds] if views else []
    return Trained(
        history=history,
        masks=masks,
        proofs=proofs,
        effective={**device.effective(network.model), "xla": bool(model.jit_compile)},
        **_seconds(clock),
        restored_epochs=restored,
        cuts=cuts,
        features=features,
        suffix=model if features else None,
        spared_seconds=spared + clock.spared_seconds,
        augment_seconds=sum(shown) or None,
    )


def _cut(network: Network, stage: Stage, engine: Engine) -> frontier.Cut | None:
    """Where the cached engine cuts; None for the plain one, and where nothing is worth computing once."""
    if engine.name != "cached":
        return None
    cut = frontier.split(network.model, mode=stage.frontier, most_bytes=engine.most_bytes)
    return cut if cut.prefix is not None else None


def _features(
    cut: frontier.Cut, views: augment.Views | None, source: Source | None, view_source: ViewSource | None
) -> tuple[Arrays, cached.OfViews | None]:
    """What the suffix is trained on: features of the images and, where there are views, what gives theirs."""
    assert source and (view_source or not views)
    return source(cut), view_source(cut, views) if views and view_source else None


def _ordered(lesson: _Lesson, shared: Shared | None, clock: Clock) -> Callable[[int], Any]:
    """Gives what an epoch shows: numbers of a trunk's answers, which are ready then, where there is a trunk."""

    def numbers(epoch: int) -> Any:
        order = lesson.rows(epoch)
        if shared is None:
            return order
        clock.spare(shared.show(epoch, order))
        return epoch * len(order) + order

    return numbers


def _seconds(clock: Clock) -> dict[str, Any]:
    """First step, and medians of step and epoch, of what a clock has seen."""
    whole = [s for s in clock.epochs if math.isfinite(s)]
    return {
        "first_step_seconds": sum(clock.compiling),
        "step_seconds": statistics.median(clock.steps) if clock.steps else None,
        "epoch_seconds": statistics.median(whole) if whole else None,
    }


def _fit(
    model: Any,
    features: Arrays | None,
    of_views: cached.OfViews | None,
    lesson: _Lesson,
    shared: Shared | None,
    callbacks: list[Any],
    log: "_Log",
) -> float:
    """Train a stage by its engine; returns the seconds that an earlier run spared it before its first step."""
    if not features:
        _fit_plain(model, lesson, callbacks)
        return 0.0
    spared = _fit_cached(model, features, of_views, lesson, shared, callbacks, log.clock)
    if shared:
        shared.finish(sum(entry["stage"] == lesson.number for entry in log.history))
    return spared


def _fit_plain(model: Any, lesson: _Lesson, callbacks: list[Any]) -> None:
    stage, train, validation = lesson.stage, lesson.train, lesson.validation
    model.fit(
        _batches(lesson),
        epochs=stage.epochs,
        steps_per_epoch=math.ceil(len(train.labels) / stage.batch_size),
        validation_data=None if validation is None else (validation.images, validation.labels),
        validation_batch_size=EVALUATION_BATCH,
        callbacks=callbacks,
        shuffle=False,
        verbose=0,
    )


def _fit_cached(
    model: Any,
    features: Arrays,
    of_views: cached.OfViews | None,
    lesson: _Lesson,
    shared: Shared | None,
    callbacks: list[Any],
    clock: Clock,
) -> float:
    """Train a stage on features; returns the seconds that an earlier run spared it before its first step."""
    validation = lesson.validation
    if shared:
        clock.compiled(shared.compile_seconds)
    seconds, ready = cached.fit(
        model,
        cached.Rows(features["train"], lesson.train.labels, of_views),
        None if validation is None else cached.Rows(features["validation"], validation.labels),
        epochs=lesson.stage.epochs,
        batch_size=lesson.stage.batch_size,
        evaluation_batch=EVALUATION_BATCH,
        order=_ordered(lesson, shared, clock),
        callbacks=callbacks,
        read=clock.read,
    )
    clock.compiled(seconds)
    return (seconds if ready else 0.0) + (shared.spared_seconds if shared else 0.0)


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a stage's first step, which traces and compiles, and the median of the steps after it."""

    first_step_seconds: float
    step_seconds: float


def time_steps(network: Network, stage: Stage, *, xla: bool, count: int = 5) -> StepTimes:
    """Time `count` steps after the first of an already masked network, on random pixels."""
    import numpy as np

    rng = np.random.default_rng(0)
    n = stage.batch_size * (count + 1)
    images = rng.integers(0, 256, (n, *network.model.input_shape[1:]), dtype=np.uint8)
    labels = rng.integers(0, max(2, network.model.output_shape[-1]), n, dtype=np.int32)
    clock = Clock()
    compile_model(network.model, stage, xla, network.head.label_smoothing)
    # On random labels a loss may run away; what a step costs does not depend on it.
    log = _Log(clock, [], 1, stage, 1, n, lambda **event: None, must_stay_finite=False)
    views = augment.build(stage, images, seed=0, number=1, split_seed=0)
    batches = _batches(_Lesson(stage, 1, 0, Split(images, labels, []), None, views))
    callbacks = [log.callback()]
    network.model.fit(batches, epochs=1, steps_per_epoch=count + 1, callbacks=callbacks, shuffle=False, verbose=0)
    return StepTimes(clock.compiling[0], statistics.median(clock.steps))


def optimizer(name: str, learning_rate: float, momentum: float = 0.0) -> Any:
    """Any optimizer of `keras.optimizers` that has a learning rate of its own, by its name; raises UserError that lists
    them, or those with a momentum."""
    import keras

    known = {
        n.lower(): cls
        for n, cls in vars(keras.optimizers).items()
        if isinstance(cls, type) and issubclass(cls, keras.Optimizer) and cls is not keras.Optimizer
        if "learning_rate" in inspect.signature(cls).parameters
    }
    if name.lower() not in known:
        raise UserError(f"unknown optimizer {name!r}; {nearest(name.lower(), sorted(known))}")
    found = known[name.lower()]
    if momentum and "momentum" not in inspect.signature(found).parameters:
        having = [n for n, cls in sorted(known.items()) if "momentum" in inspect.signature(cls).parameters]
        raise UserError(f"{name} takes no momentum; leave it out, or choose one of: {', '.join(having)}")
    return found(learning_rate=learning_rate, **({"momentum": momentum} if momentum else {}))


def compile_model(model: Any, stage: Stage, xla: bool, smoothing: float = 0.0) -> None:
    """Compile a network, or the part of it above a frontier, with the loss on logits that fits its head."""
    import keras

    binary = model.output_shape[-1] == 1
    accuracy = (
        keras.metrics.BinaryAccuracy("top1", threshold=0.0)
        if binary
        else keras.metrics.SparseCategoricalAccuracy("top1")
    )
    model.compile(
        optimizer(stage.optimizer, stage.learning_rate, stage.momentum),
        _loss(binary, smoothing),
        metrics=[accuracy],
        jit_compile=xla,
    )


def _loss(binary: bool, smoothing: float) -> Any:
    import keras

    from frostline.layers import SmoothedCrossentropy

    if binary:
        return keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=smoothing)
    return (
        SmoothedCrossentropy(smoothing) if smoothing else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )


def evaluate(
    network: Network, split: Split, suffix: Any = None, features: tuple[Any, ...] = ()
) -> tuple[Any, float, float]:
    """Probabilities [N, classes], top-1 accuracy and loss (penalties and smoothing included, as Keras evaluates).

    In inference mode and in the precision the network trained in; a `suffix` answers on the split's features.
    """
    if suffix is None:
        logits = network.model.predict(split.images, batch_size=EVALUATION_BATCH, verbose=0)
    else:
        logits = cached.predict(suffix, features, EVALUATION_BATCH)
    p = heads.probabilities(logits)
    losses = heads.cross_entropy(logits, split.labels, network.head.label_smoothing)
    penalties = sum(float(x) for x in network.model.losses)
    return p, float((p.argmax(axis=1) == split.labels).mean()), float(losses.mean()) + penalties


def order(count: int, seed: int, stage: int, epoch: int) -> Any:
    """The order in which an epoch shows the images, the same for every engine."""
    import numpy as np

    return np.random.default_rng((seed, stage, epoch)).permutation(count)


def _batches(lesson: _Lesson) -> Iterator[tuple[Any, Any]]:
    """Endless batches, in a new order each epoch, the last partial batch kept.

    A generator, because Keras gives one its batches as they come; those of a PyDataset it shuffles and prefetches
    across epochs.
    """
    split, views, batch_size = lesson.train, lesson.views, lesson.stage.batch_size
    count = len(split.labels)
    for epoch in itertools.count():
        shuffled = lesson.rows(epoch)
        for start in range(0, count, batch_size):
            rows = shuffled[start : start + batch_size]
            images = split.images[rows] if views is None else augment.show(views, rows)
            yield images, split.labels[rows % count]


def _callbacks(stage: Stage, log: "_Log") -> tuple[list[Any], Any]:
    import keras

    callbacks: list[Any] = [log.callback()]
    stopper = None
    if stage.reduce_on_plateau:
        rule = stage.reduce_on_plateau
        callbacks.append(
            keras.callbacks.ReduceLROnPlateau(factor=rule.factor, patience=rule.patience, min_lr=rule.min_learning_rate)
        )
    if stage.early_stopping:
        stopper = keras.callbacks.EarlyStopping(
            patience=stage.early_stopping.patience, restore_best_weights=stage.early_stopping.restore_best
        )
        callbacks.append(stopper)
    return callbacks, stopper


def _restored_epoch(stopper: Any) -> int | None:
    """Number, from 1, of the epoch whose weights were restored; None where the last epoch's were kept."""
    return stopper.best_epoch + 1 if stopper is not None and stopper.restore_best_weights else None


@dataclass
class _Log:
    """Carries Keras's callbacks to the clock, the history and whoever watches."""

    clock: Clock
    history: list[dict[str, Any]]
    stage_number: int
    stage: Stage
    stages: int
    images: int
    report: Report
    must_stay_finite: bool = True
    epoch_seconds: float | None = None

    def callback(self) -> Any:
        import keras

        log = self

        class Watch(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                log.epoch_seconds = None
                log.clock.epoch_begins()

            def on_train_batch_begin(self, batch, logs=None):
                log.clock.step_begins()

            def on_train_batch_end(self, batch, logs=None):
                loss = (logs or {}).get("loss", 0.0)
                if log.must_stay_finite and not math.isfinite(float(loss)):
                    raise NotFinite(f"the loss became {float(loss)} in step {batch + 1} of an epoch")
                log.clock.step_ends(compiles=log.new_shape(batch))

            def on_test_begin(self, logs=None):
                log.training_ends()

            def on_epoch_end(self, epoch, logs=None):
                log.training_ends()
                log.epoch_ends(epoch + 1, logs or {}, float(self.model.optimizer.learning_rate))

        return Watch()

    def new_shape(self, batch: int) -> bool:
        """Whether this step traces and compiles: a stage's first full batch, and its first partial one."""
        first_epoch = not any(entry["stage"] == self.stage_number for entry in self.history)
        full, partial = divmod(self.images, self.stage.batch_size)
        return first_epoch and (batch == 0 or (batch == full and partial > 0))

    def training_ends(self) -> None:
        if self.epoch_seconds is None:
            device.drain()
            self.epoch_seconds = self.clock.training_ends(math.ceil(self.images / self.stage.batch_size))

    def epoch_ends(self, epoch: int, logs: dict[str, Any], learning_rate: float) -> None:
        if self.must_stay_finite and not math.isfinite(float(logs["loss"])):
            raise NotFinite(f"the loss became {float(logs['loss'])} in epoch {epoch}")
        entry = {
            "stage": self.stage_number,
            "epoch": epoch,
            "loss": float(logs["loss"]),
            "top1": float(logs["top1"]),
            "validation_loss": float(logs["val_loss"]) if "val_loss" in logs else None,
            "validation_top1": float(logs["val_top1"]) if "val_top1" in logs else None,
            "learning_rate": learning_rate,
            "seconds": self.epoch_seconds,
        }
        self.history.append(entry)
        self.report(epochs=self.stage.epochs, stages=self.stages, **entry)
