"""Convolutions on small maps as one product of matrices, where the library's own are slow: bench/NOTES.md."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

LARGEST = 4  # rows and columns of a small map
Convolve = Callable[[Any, Any], Any]


def concerns(model: Any) -> bool:
    """Whether a functional model has a convolution that `traced` makes a product."""
    nodes = itertools.chain.from_iterable(model._nodes_by_depth.values())
    return any(_can(node.operation) and _small(node.outputs[0].shape) for node in nodes)


@contextlib.contextmanager
def traced(model: Any) -> Iterator[None]:
    """Let what is traced of a functional model compute convolutions on small maps by im2col: patches side by side,
    times the kernel as a matrix (Chellapilla et al., High Performance Convolutional Neural Networks for Document
    Processing, 2006). The layers are as before afterwards."""
    layers = [layer for layer in model.layers if _can(layer)]
    for layer in layers:
        layer.convolution_op = functools.partial(_convolve, layer, layer.convolution_op)
    try:
        yield
    finally:
        for layer in layers:
            del layer.convolution_op


def _can(layer: Any) -> bool:
    import keras

    return (
        type(layer) is keras.layers.Conv2D
        and layer.kernel_size != (1, 1)
        and (layer.groups, layer.dilation_rate, layer.data_format) == (1, (1, 1), "channels_last")
    )


def _small(shape: tuple[Any, ...]) -> bool:
    return all(side is not None and side <= LARGEST for side in shape[1:3])


def _convolve(layer: Any, otherwise: Convolve, maps: Any, kernel: Any) -> Any:
    shape = layer.compute_output_shape(maps.shape)
    return _product(layer, maps, kernel, shape) if _small(shape) else otherwise(maps, kernel)


def _product(layer: Any, maps: Any, kernel: Any, shape: tuple[Any, ...]) -> Any:
    """[N, H, W, C] maps and a [h, w, C, F] kernel -> [N, *shape[1:]].

    Kernel rows that lie above or below the map meet zeros alone, so rows of an answer that see the same ones are a
    product of their own.
    """
    import tensorflow as tf

    (above, _), beside = _padding(layer, maps.shape, shape)
    padded = tf.pad(maps, [[0, 0], [0, 0], beside, [0, 0]])
    down, along = layer.strides
    across = [slice(tap, tap + (shape[2] - 1) * along + 1, along) for tap in range(kernel.shape[1])]
    answers = []
    for taps, found in itertools.groupby(
        range(shape[1]), lambda row: _inside(row * down - above, kernel.shape[0], maps.shape[1])
    ):
        first, *others = (row * down - above for row in found)
        starts = [first + tap for tap in taps]
        patches = [padded[:, a : a + len(others) * down + 1 : down, cols] for a in starts for cols in across]
        matrix = tf.reshape(kernel[taps.start : taps.stop], [-1, kernel.shape[-1]])
        answer = tf.reshape(tf.concat(patches, -1), [-1, matrix.shape[0]]) @ matrix
        answers.append(tf.reshape(answer, [-1, 1 + len(others), *shape[2:]]))
    return tf.concat(answers, 1)


def _inside(first: int, taps: int, side: int) -> range:
    """The taps of a kernel that lie on a map of `side` where its first tap lies at `first`."""
    return range(max(0, -first), min(taps, side - first))


def _padding(layer: Any, maps: tuple[Any, ...], shape: tuple[Any, ...]) -> list[tuple[int, int]]:
    """Zeros above and below the maps and on both sides, the odd one behind, as TensorFlow's `SAME` has it."""
    found = []
    for side, given, stride, taps in zip(shape[1:3], maps[1:3], layer.strides, layer.kernel_size, strict=True):
        missing = max((side - 1) * stride + taps - given, 0) if layer.padding == "same" else 0
        found.append((missing // 2, missing - missing // 2))
    return found
