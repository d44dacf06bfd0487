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
    """[N, H, W, C] maps and a [h, w, C, F] kernel -> [N, *shape[1:]]."""
    import tensorflow as tf

    patches = []
    for (side, stride), taps in zip(zip(shape[1:3], layer.strides, strict=True), kernel.shape[:2], strict=True):
        patches.append([slice(tap, tap + (side - 1) * stride + 1, stride) for tap in range(taps)])
    padded = tf.pad(maps, _padding(layer, maps.shape, shape)) if layer.padding == "same" else maps
    columns = tf.concat([padded[:, rows, cols] for rows, cols in itertools.product(*patches)], -1)
    matrix = tf.reshape(kernel, [-1, kernel.shape[-1]])
    return tf.reshape(tf.reshape(columns, [-1, matrix.shape[0]]) @ matrix, [-1, *shape[1:]])


def _padding(layer: Any, maps: tuple[Any, ...], shape: tuple[Any, ...]) -> list[list[int]]:
    """Zeros around the maps, the odd one behind, as TensorFlow's `SAME` has it."""
    found = [[0, 0]]
    for side, given, stride, taps in zip(shape[1:3], maps[1:3], layer.strides, layer.kernel_size, strict=True):
        missing = max((side - 1) * stride + taps - given, 0)
        found.append([missing // 2, missing - missing // 2])
    return [*found, [0, 0]]
