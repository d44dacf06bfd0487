"""Training a network stage by stage, with a defined clock and the proof of freezing."""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from frostline import device, freezing, heads
from frostline.datasets import Split
from frostline.errors import UserError, nearest
from frostline.models import Network
from frostline.studies import Stage

EVALUATION_BATCH = 256
Report = Callable[..., None]


class NotFinite(Exception):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Trained:
    """What training did: one history entry per epoch, one mask and proof per stage, seconds as the design defines."""

    history: list[dict[str, Any]]
    masks: list[freezing.Mask]
    proofs: list[dict[str, Any]]
    effective: dict[str, Any]
    first_step_seconds: float
    step_seconds: float | None
    epoch_seconds: float | None
    restored_epochs: list[int | None]


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

    def epoch_begins(self) -> None:
        self.compiling_in_epoch, self.steps_in_epoch = [], 0
        self.epoch_started = self.read()

    def step_begins(self) -> None:
        self.step_started = self.read()

    def step_ends(self, compiles: bool) -> None:
        seconds = self.read() - self.step_started
        if compiles:
            self.compiling_in_epoch.append(seconds)
        else:
            self.steps.append(seconds)
        self.steps_in_epoch += 1

    def training_ends(self) -> float:
        """Seconds of the epoch's training; a step that compiles counts as an average one, NaN where all did."""
        seconds = self.read() - self.epoch_started - sum(self.compiling_in_epoch)
        self.compiling += self.compiling_in_epoch
        ordinary = self.steps_in_epoch - len(self.compiling_in_epoch)
        seconds = seconds * self.steps_in_epoch / ordinary if ordinary else math.nan
        self.epochs.append(seconds)
        return seconds


def train(
    network: Network,
    stages: tuple[Stage, ...],
    train: Split,
    validation: Split | None,
    *,
    seed: int,
    xla: bool,
    report: Report = lambda **event: None,
    read: Callable[[], float] = time.perf_counter,
) -> Trained:
    """Train all stages with Keras `fit`; raises NotFinite, FrozenMoved and, for unknown names, UserError."""
    clock = Clock(read)
    history: list[dict[str, Any]] = []
    masks, proofs, restored = [], [], []
    for number, stage in enumerate(stages, 1):
        mask = freezing.apply(network.model, network.groups, stage)
        before = freezing.frozen_digests(network.model, mask)
        compile_model(network, stage, xla)
        partial = len(train.labels) // stage.batch_size if len(train.labels) % stage.batch_size else None
        log = _Log(clock, history, number, stage, len(stages), partial, report)
        callbacks, stopper = _callbacks(stage, log)
        network.model.fit(
            _batches(train, stage.batch_size, seed, number),
            epochs=stage.epochs,
            validation_data=None if validation is None else (validation.images, validation.labels),
            validation_batch_size=EVALUATION_BATCH,
            callbacks=callbacks,
            steps_per_epoch=math.ceil(len(train.labels) / stage.batch_size),
            verbose=0,
        )
        restored.append(_restored_epoch(stopper))
        proofs.append(freezing.prove(before, freezing.frozen_digests(network.model, mask)))
        masks.append(mask)
    whole = [s for s in clock.epochs if math.isfinite(s)]
    return Trained(
        history=history,
        masks=masks,
        proofs=proofs,
        effective=device.effective(network.model),
        first_step_seconds=sum(clock.compiling),
        step_seconds=statistics.median(clock.steps) if clock.steps else None,
        epoch_seconds=statistics.median(whole) if whole else None,
        restored_epochs=restored,
    )


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
    compile_model(network, stage, xla)
    # On random labels a loss may run away; what a step costs does not depend on it.
    log = _Log(clock, [], 1, stage, 1, None, lambda **event: None, must_stay_finite=False)
    batches = _batches(Split(images, labels, []), stage.batch_size, 0, 1)
    network.model.fit(batches, epochs=1, steps_per_epoch=count + 1, callbacks=[log.callback()], verbose=0)
    return StepTimes(clock.compiling[0], statistics.median(clock.steps))


def optimizer(name: str, learning_rate: float) -> Any:
    """Any optimizer of `keras.optimizers` by its name; raises UserError that lists them."""
    import keras

    known = {
        n.lower(): cls
        for n, cls in vars(keras.optimizers).items()
        if isinstance(cls, type) and issubclass(cls, keras.Optimizer) and n not in ("Optimizer", "LossScaleOptimizer")
    }
    if name.lower() not in known:
        raise UserError(f"unknown optimizer {name!r}; {nearest(name.lower(), sorted(known))}")
    return known[name.lower()](learning_rate=learning_rate)


def compile_model(network: Network, stage: Stage, xla: bool) -> None:
    """Compile with the loss on logits that fits the head."""
    import keras

    binary = network.model.output_shape[-1] == 1
    cross_entropy = keras.losses.BinaryCrossentropy if binary else keras.losses.SparseCategoricalCrossentropy
    accuracy = (
        keras.metrics.BinaryAccuracy("top1", threshold=0.0)
        if binary
        else keras.metrics.SparseCategoricalAccuracy("top1")
    )
    network.model.compile(
        optimizer(stage.optimizer, stage.learning_rate),
        cross_entropy(from_logits=True),
        metrics=[accuracy],
        jit_compile=xla,
    )


def predict(network: Network, images: Any) -> Any:
    """Float32 logits of uint8 images, in inference mode and in the precision the network trained in."""
    return network.model.predict(images, batch_size=EVALUATION_BATCH, verbose=0)


def evaluate(network: Network, split: Split) -> tuple[Any, float, float]:
    """Probabilities [N, classes], top-1 accuracy and loss (penalties included, as Keras evaluates) of a split."""
    logits = predict(network, split.images)
    p = heads.probabilities(logits)
    losses = heads.cross_entropy(logits, split.labels)
    penalties = sum(float(x) for x in network.model.losses)
    return p, float((p.argmax(axis=1) == split.labels).mean()), float(losses.mean()) + penalties


def order(count: int, seed: int, stage: int, epoch: int) -> Any:
    """The order in which an epoch shows the images, the same for every engine."""
    import numpy as np

    return np.random.default_rng((seed, stage, epoch)).permutation(count)


def _batches(split: Split, batch_size: int, seed: int, stage: int) -> Iterator[tuple[Any, Any]]:
    """Endless batches of the split, in a new order each epoch, the last partial batch kept.

    A generator, because Keras gives one its batches as they come; those of a PyDataset it shuffles and prefetches
    across epochs.
    """
    for epoch in itertools.count():
        shuffled = order(len(split.labels), seed, stage, epoch)
        for start in range(0, len(shuffled), batch_size):
            rows = shuffled[start : start + batch_size]
            yield split.images[rows], split.labels[rows]


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
    partial_batch: int | None
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
        return first_epoch and (batch == 0 or batch == self.partial_batch)

    def training_ends(self) -> None:
        if self.epoch_seconds is None:
            device.drain()
            self.epoch_seconds = self.clock.training_ends()

    def epoch_ends(self, epoch: int, logs: dict[str, Any], learning_rate: float) -> None:
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
