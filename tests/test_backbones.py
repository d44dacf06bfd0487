import importlib
import inspect
import re
import urllib.error

import keras
import numpy as np
import pytest

from frostline import backbones, device, freezing, models
from frostline.errors import UserError
from frostline.studies import Backbone, Head, HeadLayer, Stage

PUBLISHED = {name: entry.published for name, entry in backbones.BACKBONES.items() if entry.published}
VGG16_FILE = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
DOCUMENT_HEAD = Head("flatten", (HeadLayer("dense", 256), HeadLayer("dropout", 0.5)), activation="sigmoid")


def build(name, head=None, size=32, classes=2):
    device.seed_everything(0)
    return models.build(Backbone(name), head, "backbone", size, classes)


def test_every_classifier_of_keras_has_an_entry():
    functions = {name for name, _ in inspect.getmembers(keras.applications, inspect.isfunction)}
    assert sorted(PUBLISHED.values()) == sorted(functions)


@pytest.mark.parametrize("name", PUBLISHED)
def test_pixels_are_scaled_as_keras_scales_them(name):
    pixels = np.arange(256 * 3, dtype=np.uint8).reshape(1, 16, 16, 3)
    family = getattr(keras.applications, PUBLISHED[name]).__module__.rpartition(".")[2]
    scaled = importlib.import_module(f"keras.applications.{family}").preprocess_input(pixels.astype(np.float32))
    ours = models.scale(keras.ops.convert_to_tensor(pixels), backbones.get(name).scaling)
    assert np.allclose(ours, scaled, rtol=1e-6, atol=1e-5)


# -- the networks of the documents -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rule", "total", "head_only", "with_rule"),
    [
        ("vgg16", "last:4", 16_812_353, 2_097_665, 9_177_089),
        ("inception_v3", "last:12", 26_521_889, 4_719_105, 5_112_833),
    ],
)
def test_the_counts_of_the_documents(name, rule, total, head_only, with_rule):
    net = build(name, DOCUMENT_HEAD, 150)
    masks = [freezing.apply(net.model, net.groups, Stage(train=("head/.*", *more))) for more in ((), (rule,))]
    assert [mask.trainable_params for mask in masks] == [head_only, with_rule]
    assert masks[0].total_params == total


def test_an_image_too_small_says_which_size_is_not():
    with pytest.raises(UserError, match=r"inception_v3 does not work on 32×32 images: .* at least 75x75"):
        build("inception_v3")


def test_the_groups_of_vgg16_are_its_blocks_with_their_pooling():
    blocks = {(name[:6], group) for name, group in build("vgg16").groups.items() if group != "head"}
    assert sorted(blocks) == [(f"block{i}", f"last_{6 - i}") for i in range(1, 6)]


def test_a_group_holds_what_is_padded_squeezed_and_cropped_within_its_resolution():
    x = images = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(2.0, name="scale")(x)
    x = keras.layers.ZeroPadding2D(1, name="pad")(x)
    x = keras.layers.Conv2D(4, 3, strides=2, name="stem")(x)
    x = keras.layers.Conv2D(4, 3, name="unpadded")(x)
    x = keras.layers.MaxPooling2D(name="pool")(x)
    x = keras.layers.Conv2D(4, 1, name="before")(x)
    s = keras.layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    s = keras.layers.Conv2D(4, 1, name="excite")(s)
    x = keras.layers.Multiply(name="product")([x, s])
    x = keras.layers.Conv2D(4, 1, name="after")(x)
    layers = keras.Model(images, x).layers[1:]
    upper = dict.fromkeys(["before", "squeeze", "excite", "product", "after"], "last_1")
    lower = dict.fromkeys(["scale", "pad", "stem", "unpadded", "pool"], "last_2")
    assert backbones.groups("vgg16", layers) == {**lower, **upper}


# -- weights ---------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder in place of Keras's cache, and no network."""
    from keras.src.utils import file_utils

    def unreachable(*_):
        raise urllib.error.URLError("unreachable")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(file_utils.config, "keras_home", lambda: str(tmp_path))
    monkeypatch.setattr(file_utils, "urlretrieve", unreachable)
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def classic_file(network, path):
    """Write weights in the layout of the files that Keras publishes, which it can no longer write itself."""
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)


def trained(function, pixels):
    """A network of Keras whose statistics are those of the pixels."""
    device.seed_everything(1)
    network = getattr(keras.applications, function)(include_top=False, weights=None, input_shape=pixels.shape[1:])
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
        if isinstance(layer, keras.layers.Normalization):
            layer.set_weights([np.full(3, 0.5, np.float32), np.full(3, 0.2, np.float32), np.int32(0)])
    network(pixels.astype(np.float32), training=True)
    return network


def test_published_weights_come_from_the_cache_of_keras(images, cache):
    pixels = images[0][:4]
    network = trained("MobileNetV2", pixels)
    classic_file(network, cache / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5")
    net = build("mobilenet_v2")
    fresh = net.model.get_layer("Conv1").get_weights()
    models.load_published(net, "mobilenet_v2", skip=set())
    expected = network(pixels / np.float32(127.5) - 1)
    assert np.allclose(net.backbone(pixels), expected, rtol=1e-3, atol=1e-3)
    net.model.get_layer("Conv1").set_weights(fresh)
    models.load_published(net, "mobilenet_v2", skip={"Conv1"})
    assert np.array_equal(net.model.get_layer("Conv1").get_weights(), fresh)


def test_efficientnet_answers_as_keras_does_with_published_weights(images, tmp_path, monkeypatch):
    from keras.src.utils import file_utils

    pixels = images[0][:4]
    file = tmp_path / "efficientnet.h5"
    classic_file(trained("EfficientNetB0", pixels), file)
    monkeypatch.setattr(file_utils, "get_file", lambda *_, **__: str(file))  # it would refuse another checksum
    keras_own = keras.applications.EfficientNetB0(include_top=False, weights="imagenet", input_shape=(32, 32, 3))
    expected = keras_own(pixels.astype(np.float32))
    net = build("efficientnet_b0")
    models.load_weights(net, file, head=False, skip=set())
    assert np.allclose(net.backbone(pixels), expected, rtol=1e-4, atol=1e-4)


def test_weights_of_another_network_are_refused(images, tmp_path):
    classic_file(build("small_cnn").backbone, tmp_path / "w.h5")
    with pytest.raises(UserError, match=r"w\.h5 does not hold the weights of this network: Layer count mismatch"):
        models.load_weights(build("vgg16"), tmp_path / "w.h5", head=False, skip=set())


def test_weights_that_keras_cannot_get_name_the_file_and_its_place(cache):
    advice = f"put the file that Keras publishes as {VGG16_FILE} into {cache}, or give a weights file"
    for _ in range(2):
        with pytest.raises(UserError, match=re.escape(advice)):
            backbones.check_weights("vgg16", "imagenet", 32)


def test_published_weights_are_looked_for_once(monkeypatch):
    asked = []
    monkeypatch.setattr(backbones, "published", lambda *what: asked.append(what))
    for size in (7, 7, 8):
        backbones.check_weights("vgg16", "imagenet", size)
    backbones.check_weights("vgg16", "none", 9)
    assert asked == [("vgg16", 7), ("vgg16", 8)]
