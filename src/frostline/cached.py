"""Training on features: what Keras's `fit` does, many steps in one compiled program and none of them in Python."""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from frostline import graphs

BLOCK_BYTES = 64 * 2**20
TIMED_STEPS, TIMED_BLOCK, TIMED_SECONDS = 100, 5, 1.0
KEPT_PROGRAMS = 4
OfViews = Callable[[np.ndarray], tuple[np.ndarray, ...]]


@dataclass(frozen=True)
class Rows:
    """Features of some images, one array [N, ...] per tensor that crosses the frontier, and their labels [N].

    Where `of_views` gives the features of views, those of the images only tell its shapes, and a row is the number of
    a view: v * N + i for view v of image i.
    """

    features: tuple[np.ndarray, ...]
    labels: np.ndarray
    of_views: OfViews | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """Features and labels of some rows."""
        features = self.of_views(rows) if self.of_views and len(rows) else tuple(a[rows] for a in self.features)
        return features, self.labels[rows % len(self)]


@dataclass(frozen=True)
class Program:
    """A model with the compiled programs of its training and test steps, and the seconds it took to make them."""

    model: Any
    step: Callable[..., Any]
    test: Callable[..., Any]
    seconds: float


def fit(
    model: Any,
    train: Rows,
    validation: Rows | None,
    *,
    epochs: int,
    batch_size: int,
    evaluation_batch: int,
    order: Callable[[int], np.ndarray],
    callbacks: Sequence[Any],
    read: Callable[[], float],
) -> tuple[float, bool]:
    """Train a compiled Keras model on rows that may lie in a mapped file.

    The same steps on the same batches as `fit`, the last partial batch kept; `order` gives each epoch's rows.
    Blocks of at most BLOCK_BYTES are gathered while the block before is trained on, so memory does not grow with the
    number of images. Returns the seconds of tracing and compiling, which happen before the first step, and whether
    an equal model had them earlier.
    """
    import keras

    model.optimizer.build(model.trainable_variables)
    key = _structure(model, train, validation, batch_size, evaluation_batch)
    found = key in _kept
    program = _kept.pop(key) if found else _compiled(model, train, validation, batch_size, evaluation_batch, read)
    _keep(key, program)
    taught = program.model
    _copy_state(model, taught)
    calls = keras.callbacks.CallbackList(list(callbacks), model=taught, epochs=epochs, verbose=0)
    taught.stop_training = False
    calls.on_train_begin()
    logs: dict[str, Any] = {}
    for epoch in range(epochs):
        calls.on_epoch_begin(epoch)
        logs = _go_over(taught, program.step, train, order(epoch), batch_size)
        if validation is not None:
            calls.on_test_begin()
            told = _go_over(taught, program.test, validation, np.arange(len(validation)), evaluation_batch)
            logs |= {f"val_{name}": value for name, value in told.items()}
        calls.on_epoch_end(epoch, logs)
        if taught.stop_training:
            break
    calls.on_train_end(logs)
    _copy_state(taught, model)
    return program.seconds, found


def predict(model: Any, features: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
    """Float32 outputs [N, ...] of a model in inference mode."""
    import tensorflow as tf

    forward = _forward(model)
    batches = (tuple(a[i : i + batch_size] for a in features) for i in range(0, len(features[0]), batch_size))
    return np.concatenate([forward(tuple(map(tf.convert_to_tensor, batch))).numpy() for batch in batches])


@functools.lru_cache(maxsize=1)
def _forward(model: Any) -> Any:
    import tensorflow as tf

    return tf.function(lambda x: model(_bare(x), training=False), reduce_retracing=True, autograph=False)


def outputs(model: Any, rows: Rows, batch_size: int, *, xla: bool) -> Callable[[np.ndarray], Iterator[np.ndarray]]:
    """The compiled program of what a model of one output answers while training, in batches as `fit` takes them.

    It is given the rows of an epoch in their order and answers in that order, block by block, [K, ...]. Random numbers
    go on from call to call.
    """
    import tensorflow as tf

    program = _outputs_program(model, xla)
    _compile(program, rows, batch_size)

    def run(order: np.ndarray) -> Iterator[np.ndarray]:
        for taken, block, count in _in_blocks(rows, order, batch_size):
            answers = program(*block, tf.constant(count)).numpy()
            yield answers.reshape(-1, *answers.shape[2:])[: taken.stop - taken.start]

    return run


def _outputs_program(model: Any, xla: bool) -> Any:
    """The outputs [K, B, ...] of `count` calls of a model in training mode, on stacked batches as `_program` takes."""
    import tensorflow as tf

    dtype = tf.as_dtype(model.outputs[0].dtype)

    def steps(features: Any, labels: Any, count: Any) -> Any:
        def body(i: Any, found: Any) -> Any:
            return i + 1, found.write(i, model(_bare([x[i] for x in features]), training=True))

        shape = (labels.shape[1], *model.outputs[0].shape[1:])
        found = tf.TensorArray(dtype, labels.shape[0], element_shape=shape)
        return tf.while_loop(lambda i, found: i < count, body, [tf.constant(0), found])[1].stack()

    return tf.function(steps, jit_compile=xla, autograph=False)


def time_steps(model: Any, rows: Rows, batch_size: int, read: Callable[[], float]) -> tuple[float, float]:
    """Seconds of tracing and compiling a compiled model's step, and seconds of a step on one batch, again and again.

    Until TIMED_STEPS are taken or TIMED_SECONDS are over, whichever comes first.
    """
    import tensorflow as tf

    model.optimizer.build(model.trainable_variables)
    _create_variables(model, rows)
    step, shape = _steps(model, batch_size), (TIMED_BLOCK, batch_size)
    block = _gather(rows, np.tile(np.arange(batch_size), TIMED_BLOCK), shape)
    before = read()
    step(*block, tf.constant(0))
    compiled = read() - before
    count, before = 0, read()
    while count < TIMED_STEPS and read() - before < TIMED_SECONDS:
        step(*block, tf.constant(TIMED_BLOCK))
        count += TIMED_BLOCK
    return compiled, (read() - before) / count


# -- programs ----------------------------------------------------------------------------------------

# The last programs, for the runs of a group that differ in nothing but weights, random numbers and learning rate.
_kept: dict[str, Program] = {}


def _keep(key: str, program: Program) -> None:
    _kept[key] = program
    while len(_kept) > KEPT_PROGRAMS:
        del _kept[next(iter(_kept))]


def _structure(model: Any, train: Rows, validation: Rows | None, batch_size: int, evaluation_batch: int) -> str:
    """Equal for models that the same program can train, once it is given their variables."""
    import keras

    modes = [(layer.trainable, getattr(layer, "inference_only", None)) for layer in model.layers]
    modes += [keras.saving.serialize_keras_object((w.regularizer, w.constraint)) for w in model.weights]
    shapes = [
        (rows and [(a.shape, str(a.dtype)) for a in (*rows.features, rows.labels)]) for rows in (train, validation)
    ]
    config = [model.get_config(), graphs.without(model.get_compile_config(), "learning_rate", "name")]
    return json.dumps([config, modes, shapes, batch_size, evaluation_batch], sort_keys=True, default=str)


def _copy_state(source: Any, target: Any) -> None:
    """Weights, the state of random numbers, the optimizer's variables and the learning rate among them."""
    for a, b in ((source.variables, target.variables), (source.optimizer.variables, target.optimizer.variables)):
        for value, variable in zip(a, b, strict=True):
            variable.assign(value)


def _equal(model: Any) -> Any:
    """A compiled model of the same layers with variables of its own: no run's network is trained for another."""
    import keras

    copy = keras.models.clone_model(model)
    for layer, other in zip(model.layers, copy.layers, strict=True):
        other.trainable = layer.trainable
        if hasattr(layer, "inference_only"):
            other.inference_only = layer.inference_only
    for weight, other in zip(model.weights, copy.weights, strict=True):  # set by hand, they are in no configuration
        other.regularizer, other.constraint = weight.regularizer, weight.constraint
    copy.compile_from_config(model.get_compile_config())  # which builds the optimizer too
    return copy


def _compiled(
    model: Any,
    train: Rows,
    validation: Rows | None,
    batch_size: int,
    evaluation_batch: int,
    read: Callable[[], float],
) -> Program:
    """The programs of an equal model, traced and compiled for the blocks of some rows, without taking a step."""
    model = _equal(model)
    _create_variables(model, train)
    step, test = _steps(model, batch_size), _program(model.test_step, False)
    before = read()
    _compile(step, train, batch_size)
    if validation is not None:
        _compile(test, validation, evaluation_batch)
    return Program(model, step, test, read() - before)


def _steps(model: Any, batch_size: int) -> Callable[..., Any]:
    """The program of training steps; a partial batch, met once an epoch, is not worth a compilation by XLA.

    Unless it may draw random numbers that XLA draws in another way, as layers of Keras do and ours does not.
    """
    from frostline.layers import Dropout

    foreign = any(hasattr(x, "seed_generator") and not isinstance(x, Dropout) for x in model.layers)
    xla = bool(model.jit_compile)
    full, partial = _program(model.train_step, xla), _program(model.train_step, xla and foreign)

    def steps(features: Any, labels: Any, count: Any) -> None:
        (full if labels.shape[1] == batch_size else partial)(features, labels, count)

    return steps


def _program(one: Callable[[Any], Any], xla: bool) -> Any:
    """`count` calls of a step as one program, on stacked batches: features [K, B, ...] and labels [K, B]."""
    import tensorflow as tf

    def body(i: Any, features: Any, labels: Any) -> Any:
        one((_bare([x[i] for x in features]), labels[i]))
        return i + 1

    def steps(features: Any, labels: Any, count: Any) -> None:
        tf.while_loop(lambda i: i < count, lambda i: [body(i, features, labels)], [tf.constant(0)])

    return tf.function(steps, jit_compile=xla, autograph=False)


def _create_variables(model: Any, rows: Rows) -> None:
    """Make the metrics' variables, which Keras would make in the first step."""
    import tensorflow as tf

    x = _bare([tf.convert_to_tensor(a[:1]) for a in rows.features])
    y, outputs = tf.convert_to_tensor(rows.labels[:1]), model(x, training=False)
    model.compute_loss(x, y, outputs, training=False)
    model.compute_metrics(x, y, outputs)
    model.reset_metrics()


def _compile(program: Any, rows: Rows, batch_size: int) -> None:
    """Trace and compile for the shapes that an epoch meets, without taking a step."""
    import tensorflow as tf

    for shape in _blocks(rows.features, len(rows), batch_size):
        program(*_gather(rows, np.zeros(0, np.int64), shape), tf.constant(0))


# -- one pass over the rows --------------------------------------------------------------------------


def _blocks(features: Sequence[np.ndarray], count: int, batch_size: int) -> dict[tuple[int, int], int]:
    """Shapes (batches, batch size) of the blocks of an epoch over `count` rows, and the steps taken in each shape."""
    full, partial = divmod(count, batch_size)
    row_bytes = sum(a[:1].nbytes for a in features)
    most = max(1, BLOCK_BYTES // (row_bytes * batch_size))
    shapes = {(min(full, most), batch_size): full} if full else {}
    return shapes | ({(1, partial): 1} if partial else {})


def _go_over(model: Any, program: Any, rows: Rows, order: np.ndarray, batch_size: int) -> dict[str, float]:
    """All rows in an order through a program; returns the metrics of the model."""
    import tensorflow as tf

    model.reset_metrics()
    for _, block, count in _in_blocks(rows, order, batch_size):
        program(*block, tf.constant(count))
    return {name: float(value) for name, value in model.get_metrics_result().items()}


def _in_blocks(rows: Rows, order: np.ndarray, batch_size: int) -> Iterator[tuple[slice, tuple[Any, Any], int]]:
    """Which of the ordered rows a block has, the block, and the batches in it; the next is gathered meanwhile."""
    blocks = list(_plan(_blocks(rows.features, len(order), batch_size)))
    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(_gather, rows, order[taken], shape) for taken, shape in blocks[:1]]
        for i, (taken, shape) in enumerate(blocks):
            block = coming.pop().result()
            coming = [pool.submit(_gather, rows, order[later], other) for later, other in blocks[i + 1 : i + 2]]
            yield taken, block, (taken.stop - taken.start) // shape[1]


def _plan(blocks: dict[tuple[int, int], int]) -> Iterator[tuple[slice, tuple[int, int]]]:
    """Which of the ordered rows each block takes, and its shape."""
    start = 0
    for shape, steps in blocks.items():
        while steps:
            taken = min(steps, shape[0])
            yield slice(start, start + taken * shape[1]), shape
            start, steps = start + taken * shape[1], steps - taken


def _gather(rows: Rows, taken: np.ndarray, shape: tuple[int, int]) -> tuple[Any, Any]:
    """The rows taken, stacked to a block of a shape; what a last block does not fill is zero and not trained on."""
    import tensorflow as tf

    def block(array: np.ndarray) -> Any:
        out = np.empty((shape[0] * shape[1], *array.shape[1:]), array.dtype)
        out[: len(taken)] = array
        out[len(taken) :] = 0
        return tf.convert_to_tensor(out.reshape(*shape, *array.shape[1:]))

    features, labels = rows.take(taken)
    return tuple(block(a) for a in features), block(labels)


def _bare(tensors: Any) -> Any:
    """As everywhere in Keras, one tensor is bare and several are a list."""
    return tensors[0] if len(tensors) == 1 else list(tensors)
