from importlib import metadata

import keras
import numpy as np
import pytest
from test_pytorch import Tensor, _torch, write  # noqa: F401  the fixture is used by its name

from frostline import lite0, models
from frostline.errors import UserError
from frostline.studies import Backbone


def build(size=32, classes=1000):
    return models.build(Backbone("efficientnet_lite0"), "linear", "backbone", size, classes)


def as_published(backbone):
    """Random weights of a network as the file has them: turned to PyTorch's order, with a count for each BatchNorm."""
    rng, tensors = np.random.default_rng(0), {}
    for layer in backbone.layers:
        for weight in layer.weights:
            values = rng.uniform(0.5, 1, weight.shape).astype(np.float32)
            turned = (2, 3, 0, 1) if "depthwise" in layer.name else (3, 2, 0, 1)
            tensors[f"{layer.name}.{weight.name}"] = values.transpose(turned) if values.ndim == 4 else values
        if layer.name.endswith("_norm"):
            tensors[f"{layer.name}.num_batches_tracked"] = np.array(3)
    return {**tensors, "_fc.weight": np.ones((2, 1280), np.float32), "_fc.bias": np.ones(2, np.float32)}


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Write some tensors as the file of the package."""

    def publish(tensors):
        write(tmp_path / "lite0.pth", {name: Tensor(x) for name, x in tensors.items()})
        monkeypatch.setattr(lite0, "_file", lambda: tmp_path / "lite0.pth")

    return publish


def test_the_network_to_the_digit():
    net = build(224)
    assert net.model.count_params() == 4_694_024
    assert net.backbone.output_shape == (None, 7, 7, 1280)
    assert sum(type(layer).__name__ == "Add" for layer in net.model.layers) == 9
    first = {group: name for name, group in reversed(net.groups.items())}
    assert [first[f"last_{i}"] for i in (4, 3, 2, 1)] == [
        "block_2_depthwise", "block_4_depthwise", "block_6_depthwise", "block_12_depthwise",
    ]  # fmt: skip


def test_a_cut_needs_weights_below():
    backbone = Backbone("efficientnet_lite0", cut="stem_pad")
    with pytest.raises(UserError, match="efficientnet_lite0 ends before its first layer with weights; cut it further"):
        models.build(backbone, "linear", "backbone", 32, 2)


def test_pixels_are_scaled_as_the_weights_expect():
    scaled = models.scale(np.array([[[[0, 127, 255]]]], np.uint8), "lite")
    assert np.allclose(scaled, [[[[-127 / 128, 0, 1]]]], atol=1e-6)


@pytest.mark.parametrize(("side", "corners"), [(3, [4, 6]), (5, [9, 15])])
def test_padding_is_the_same_on_all_sides(side, corners):
    x = keras.Input((8, 8, 1))
    model = keras.Model(x, lite0._convolve(x, "it", 1, side, stride=2, relu=False))
    model.get_layer("it").set_weights([np.ones((side, side, 1, 1))])
    answer = model(np.ones((1, 8, 8, 1))).numpy()[0, ..., 0]
    assert answer.shape == (4, 4) and np.allclose(answer[0, :2], corners, rtol=1e-3)


def test_published_weights_are_turned_to_the_order_of_keras(published):
    net = build()
    tensors = as_published(net.backbone)
    published(tensors)
    models.load_published(net, "efficientnet_lite0", skip={"top"})
    kernel = net.model.get_layer("block_2_depthwise").get_weights()[0]
    assert kernel.shape == (3, 3, 96, 1)
    assert np.array_equal(kernel[0, 2, 5, 0], tensors["block_2_depthwise.kernel"][5, 0, 0, 2])
    kernel = net.model.get_layer("stem").get_weights()[0]
    assert np.array_equal(kernel[0, 2, 1, 30], tensors["stem.kernel"][30, 1, 0, 2])
    assert np.array_equal(net.model.get_layer("top_norm").get_weights()[3], tensors["top_norm.moving_variance"])
    assert net.model.get_layer("top").get_weights()[0].min() < 0.5


def test_weights_of_another_network_are_refused(published):
    published({"a.weight": np.ones((3, 3), np.float32)})
    with pytest.raises(UserError, match="the published weights are not those of efficientnet_lite0"):
        models.load_published(build(), "efficientnet_lite0", skip=set())


def test_without_the_package_the_extra_is_named(monkeypatch):
    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    for files in (nothing, lambda name: None):
        monkeypatch.setattr(metadata, "files", files)
        with pytest.raises(UserError, match=r"not installed; type: pip install 'frostline\[efficientnet-lite0\]'"):
            models.load_published(build(), "efficientnet_lite0", skip=set())
