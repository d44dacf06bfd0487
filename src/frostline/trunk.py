"""What runs of one seed share above the frontier: a part that is frozen but draws random numbers, its trunk.

Where two runs show the same images in the same batches, from the same state of the same generators, a trunk that
neither of them trains answers both alike, step by step. So one of them computes its answers, epoch by epoch, and the
others train on those what lies above.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from frostline import cached, frontier, prefix, training
from frostline.models import Network

State = list[np.ndarray]  # of the random generators, one array each


@dataclass
class Kept:
    """Answers of a trunk, for the runs that share it.

    `answers` are those in inference mode, by split; `shown` [epochs * N, ...] has those of training, at e * N + i of
    image i in epoch e, for the epochs that `seconds` has an entry of. `states` has one entry more: the state of the
    random generators before the first epoch and after each.
    """

    shown: np.ndarray
    states: list[State]
    answers: dict[str, tuple[np.ndarray, ...]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    compile_seconds: float = 0.0
    answer_seconds: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of all answers."""
        return self.shown.nbytes + sum(array.nbytes for arrays in self.answers.values() for array in arrays)


def nbytes(cut: frontier.Cut, features: training.Arrays, epochs: int) -> int:
    """Bytes of all answers of a trunk to some features, with so many epochs."""
    rows = {name: len(arrays[0]) for name, arrays in features.items()}
    return cut.image_bytes * (sum(rows.values()) + epochs * rows["train"])


def key(cut: frontier.Cut, facts: Mapping[str, Any]) -> str:
    """Equal for trunks that answer the same: their layers and generators, and what they are shown, by `facts`."""
    parts = [facts, *((layer.name, prefix.digest(layer)) for layer in _trunk(cut).layers)]
    digest = hashlib.sha256(json.dumps([*parts, cut.boundary], sort_keys=True, default=str).encode())
    for state in _states(cut):
        digest.update(state.tobytes())
    return digest.hexdigest()


def share(
    kept: Kept | None,
    cut: frontier.Cut,
    features: training.Arrays,
    labels: np.ndarray,
    *,
    epochs: int,
    batch_size: int,
    xla: bool,
    read: Callable[[], float] = time.perf_counter,
) -> tuple[training.Shared, Kept]:
    """What a run is trained on in place of the features: `kept`, or its own answers, which others find then.

    An epoch that is not kept is computed when it is shown, in its order, with the generators where they would be.
    """
    rows = cached.Rows(features["train"], labels)
    found = kept is not None
    now = kept or Kept(_room(cut, epochs * len(labels)), [_states(cut)])
    programs: list[Callable[[np.ndarray], Iterator[np.ndarray]]] = []

    def program() -> Callable[[np.ndarray], Iterator[np.ndarray]]:
        if not programs:
            programs.append(cached.outputs(_trunk(cut), rows, batch_size, xla=xla))
        return programs[0]

    def show(epoch: int, order: np.ndarray) -> float:
        if epoch < len(now.seconds):
            return now.seconds[epoch]
        before, start = read(), epoch * len(labels)
        _set_states(cut, now.states[epoch])
        for part in program()(order):
            now.shown[start + order[: len(part)]] = part
            order = order[len(part) :]
        now.states.append(_states(cut))
        now.seconds.append(read() - before)
        return 0.0

    if not found:
        started = read()
        program()
        compiled = read()
        now.answers.update(_answers(cut, features))
        now.compile_seconds, now.answer_seconds = compiled - started, read() - compiled
    shared = training.Shared(
        rest=cut.suffix,
        features=now.answers,
        of_epochs=lambda numbers: (now.shown[numbers],),
        show=show,
        finish=lambda done: _set_states(cut, now.states[done]),
        compile_seconds=now.compile_seconds,
        spared_seconds=now.compile_seconds + now.answer_seconds if found else 0.0,
    )
    return shared, now


def verify(
    network: Network, cut: frontier.Cut, kept: Kept, rows: Sequence[np.ndarray], order: np.ndarray, batch_size: int
) -> float:
    """Largest difference between what is kept of the first batch and what the trunk says of it by itself, outside the
    compiled program, relative to the largest; raises `prefix.FeaturesDiffer` above the tolerance of the precision.

    `rows` are the features that the trunk is given, which have a proof of their own; `order` is that of the first
    epoch, which must be kept.
    """
    import tensorflow as tf

    first = order[:batch_size]
    with _at(cut, kept.states[0]):
        right = _trunk(cut)(tf.convert_to_tensor(rows[0][first]), training=True)  # a trunk has one input
    return prefix.compare(network, cut.boundary, (kept.shown[first],), [np.asarray(right)])


def _trunk(cut: frontier.Cut) -> Any:
    assert cut.prefix is not None
    return cut.prefix


def _room(cut: frontier.Cut, rows: int) -> np.ndarray:
    import tensorflow as tf

    return np.empty((rows, *cut.feature_shapes[0]), tf.as_dtype(cut.feature_dtypes[0]).as_numpy_dtype)


def _answers(cut: frontier.Cut, features: training.Arrays) -> dict[str, tuple[np.ndarray, ...]]:
    """The trunk in inference mode on each split, one that is another once."""
    return {
        name: (cached.predict(_trunk(cut), arrays, training.EVALUATION_BATCH),) for name, arrays in features.items()
    }


def _generators(cut: frontier.Cut) -> Sequence[Any]:
    layers = _trunk(cut).layers
    return [layer.seed_generator.state for layer in layers if hasattr(layer, "seed_generator")]


def _states(cut: frontier.Cut) -> State:
    return [state.numpy() for state in _generators(cut)]


def _set_states(cut: frontier.Cut, values: State) -> None:
    for state, value in zip(_generators(cut), values, strict=True):
        state.assign(value)


@contextmanager
def _at(cut: frontier.Cut, values: State) -> Iterator[None]:
    """The generators in some state, for a while."""
    before = _states(cut)
    _set_states(cut, values)
    try:
        yield
    finally:
        _set_states(cut, before)
