"""Convolutions as one product of matrices: they answer as Keras's own, and leave the layers as they were."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from frostline import im2col


def model_of(*stack, size=4):
    maps = answer = keras.Input((size, size, 3))
    for layer in stack:
        answer = layer(answer)
    return keras.Model(maps, answer)


def traced(model):
    """What a model answers by im2col, and the kinds of operations it is made of."""

    @tf.function(input_signature=[tf.TensorSpec([None, *model.input_shape[1:]])], autograph=False)
    def run(maps):
        with im2col.traced(model):
            return model(maps, training=False)

    kinds = [operation.type for operation in run.get_concrete_function().graph.get_operations()]
    return run, kinds


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("strides", [1, 2, 3, (2, 1)])
@pytest.mark.parametrize("kernel", [2, 3, (1, 3), 5])
@pytest.mark.parametrize("size", [7, 8])
def test_a_product_answers_as_the_convolution(kernel, strides, padding, size, monkeypatch):
    monkeypatch.setattr(im2col, "LARGEST", 8)
    convolution = layers.Conv2D(4, kernel, strides, padding, activation="relu", bias_initializer="normal")
    model = model_of(convolution, size=size)
    run, kinds = traced(model)
    assert "Conv2D" not in kinds and "MatMul" in kinds
    maps = np.random.default_rng(0).normal(size=(3, *model.input_shape[1:])).astype(np.float32)
    assert np.allclose(run(maps), model(maps), rtol=1e-5, atol=1e-5)


def test_only_small_maps_become_products():
    model = model_of(layers.Conv2D(4, 3, padding="same"), layers.Conv2D(4, 3, 2, "same"), size=8)
    _, kinds = traced(model)
    assert im2col.concerns(model) and kinds.count("Conv2D") == 1 and "MatMul" in kinds


def test_rows_beyond_the_map_are_not_multiplied():
    model = model_of(layers.Conv2D(5, 3, padding="same"))
    run, _ = traced(model)
    graph = run.get_concrete_function().graph
    deep = [op.inputs[0].shape[1] for op in graph.get_operations() if op.type == "MatMul"]
    assert deep == [2 * 3 * 3, 3 * 3 * 3, 2 * 3 * 3]  # kernel rows on the map, kernel columns, channels


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(4, 1),
        layers.Conv2D(3, 3, padding="same", groups=3),
        layers.Conv2D(4, 3, padding="same", dilation_rate=2),
        layers.DepthwiseConv2D(3, padding="same"),
    ],
)
def test_other_convolutions_stay(layer):
    model = model_of(layer)
    assert not im2col.concerns(model) and "MatMul" not in traced(model)[1]


def test_the_layers_are_as_before_afterwards():
    model = model_of(layers.Conv2D(4, 3, padding="same"))
    before = dict(vars(model.layers[1]))
    with pytest.raises(RuntimeError), im2col.traced(model):
        raise RuntimeError
    assert vars(model.layers[1]) == before and "convolution_op" not in before
