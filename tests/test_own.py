import keras
import numpy as np
import pytest
from keras import layers

from frostline import backbones, device, freezing, frontier, models, own
from frostline.errors import UserError
from frostline.studies import Backbone, Head, HeadLayer, Stage

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _fresh_names():
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


def conv_net(size=16, end=lambda x: layers.Dense(4, activation="softmax", name="output")(x)):
    """A network with layers called as ours are, one of them a network itself."""
    inner = keras.Input((None, None, 8))
    block = keras.Model(
        inner, layers.BatchNormalization(name="bn")(layers.Conv2D(8, 3, name="conv_2")(inner)), name="b"
    )
    images = keras.Input((size, size, 3), name="images")
    x = layers.Conv2D(8, 3, strides=2, name="conv_1")(layers.Rescaling(1 / 255, name="scaling")(images))
    x = layers.GlobalAveragePooling2D(name="pooling")(block(keras.ops.maximum(x, 0.0)))
    return keras.Model(images, end(layers.Dense(6, name="dense_1")(x)))


@pytest.fixture
def save(tmp_path):
    def save(network, name="my.keras"):
        network.save(tmp_path / name)
        return f"file:{tmp_path / name}"

    return save


def build(name, head="linear", size=16, weights=True, **settings):
    net = models.build(Backbone(name, **settings), head, "backbone", size, 2)
    if weights:
        models.load_own(net, name, skip=set())
    return net


def test_the_backbone_answers_as_the_network_does_below_its_classifier(save):
    network = conv_net()
    network.trainable = False  # as a network often was saved, and what a study says is another thing
    net = build(save(network))
    expected = keras.Model(network.input, network.get_layer("dense_1").output)(PIXELS.astype(np.float32))
    assert np.allclose(net.backbone(PIXELS), expected, rtol=1e-5, atol=1e-5)
    assert net.groups == {
        "file_scaling": "last_2", "conv_1": "last_2", "conv_2": "last_2", "bn": "last_2", "file_pooling": "last_2",
        "dense_1": "last_1", "output": "head",
    }  # fmt: skip
    assert net.model.get_layer("bn").inference_only is False and len(net.model.trainable_weights) == 10


def test_its_weights_are_fresh_until_they_are_asked_for(save):
    name = save(conv_net())
    first, second = (build(name, weights=False).model.get_layer("conv_1").get_weights()[0] for _ in range(2))
    stored = own.weights(name.removeprefix("file:"))["conv_1"][0]
    assert not np.array_equal(first, second) and not np.array_equal(first, stored)
    net = build(name, weights=False)
    before = net.model.get_layer("conv_2").get_weights()
    models.load_own(net, name, skip={"conv_2"})
    assert np.array_equal(net.model.get_layer("conv_1").get_weights()[0], stored)
    assert np.array_equal(net.model.get_layer("conv_2").get_weights()[0], before[0])


@pytest.mark.parametrize(
    ("cut", "last", "shape"),
    [("conv_2", "conv_2", (5, 5, 8)), ("file_pooling", "file_pooling", (8,)), ("file_output", "file_output", (4,))],
)
def test_a_cut_may_lie_below_the_classifier_and_in_it(save, cut, last, shape):
    net = build(save(conv_net()), cut=cut)
    assert [name for name, group in net.groups.items() if group != "head"][-1] == last
    assert net.model.get_layer(last).output.shape[1:] == shape


def test_a_pretraining_fits_the_cut_network(save, tmp_path):
    name = save(conv_net())
    source = build(name)
    source.model.save_weights(tmp_path / "w.weights.h5")
    net = build(name, weights=False, cut="conv_2")
    models.load_weights(net, tmp_path / "w.weights.h5", head=False, skip=set())
    for layer in ("conv_1", "conv_2"):
        assert np.array_equal(
            net.model.get_layer(layer).get_weights()[0], source.model.get_layer(layer).get_weights()[0]
        )


@pytest.mark.parametrize(
    ("end", "last"),
    [
        (lambda x: x, "file_pooling"),
        (lambda x: layers.Softmax(name="softmax")(layers.Dropout(0.5)(layers.Dense(2)(x))), "dense_1"),
        (lambda x: keras.ops.softmax(layers.Dense(2)(x)), "dense_1"),
        (lambda x: layers.BatchNormalization(name="norm")(x), "norm"),
        (lambda x: layers.Concatenate(name="both")([x, layers.Dense(2)(x)]), "both"),
    ],
)
def test_the_classifier_is_the_dense_layer_that_the_answer_comes_from(save, end, last):
    net = build(save(conv_net(end=end)))
    assert [name for name, group in net.groups.items() if group != "head"][-1] == last


def test_an_activation_that_is_called_in_the_body_too_leads_to_the_classifier(save):
    images, relu = keras.Input((16, 16, 3)), layers.Activation("relu")
    x = layers.GlobalAveragePooling2D(name="pool")(relu(layers.Conv2D(4, 3, name="conv")(images)))
    net = build(save(keras.Model(images, relu(layers.Dense(2, name="logits")(x)))))
    assert "logits" not in net.groups and net.groups["pool"] != "head"


def test_a_network_of_ours_is_one_of_your_own_again_and_again(save):
    name, weights = "small_cnn", False
    for turn in range(3):
        net = build(name, head=Head(layers=(HeadLayer("dense", 8),)), weights=weights)
        name, weights = save(models.standard(net.model), f"{turn}.keras"), True
    assert {"images", "scaling", "file_scaling", "file_file_scaling", "output"} <= {x.name for x in net.model.layers}


def test_a_network_of_ours_is_one_of_your_own(save):
    source = models.build(Backbone("small_cnn"), None, "unit", 16, 3)
    name = save(models.standard(source.model))
    net = build(name)
    expected = keras.Model(source.model.input, source.model.get_layer("dropout_2").output)(PIXELS)
    assert np.allclose(net.backbone(PIXELS), expected, rtol=1e-5, atol=1e-5)


def test_it_trains_is_cut_at_its_frontier_and_exported(save):
    net = build(save(conv_net(size=None)), Head(layers=(HeadLayer("dense", 4),)), cut="bn")
    mask = freezing.apply(net.model, net.groups, Stage(train=("head/.*",)))
    assert mask.frozen == ("conv_1", "conv_2", "bn") and mask.batch_norm == "inference"
    cut = frontier.split(net.model)
    logits = net.model(PIXELS)
    assert cut.below == ("scaling", "file_scaling", "conv_1", "conv_2", "bn", "pooling")
    assert np.allclose(cut.suffix(cut.prefix(PIXELS)), logits, rtol=1e-5, atol=1e-5)
    assert np.allclose(models.standard(net.model)(PIXELS), logits, rtol=1e-5, atol=1e-5)


def test_it_computes_in_the_precision_that_is_set(save):
    name = save(conv_net())
    device.configure("mixed_bfloat16")
    try:
        net = build(name)
    finally:
        device.configure("float32")
    assert net.model.get_layer("conv_1").compute_dtype == "bfloat16"


# -- what is refused -------------------------------------------------------------------------------


class Mine(layers.Layer):
    def call(self, x):
        return x


def two_answers():
    network = conv_net()
    return keras.Model(network.input, [network.output, network.get_layer("pooling").output])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: conv_net(size=32), r"my\.keras takes images of 32×32 pixels, not 16×16; set image_size"),
        (lambda: conv_net(end=Mine()), r"my\.keras needs the layer Mine, which Keras does not have"),
        (
            lambda: conv_net(end=layers.Lambda(lambda x: x + 1)),
            r"my\.keras holds a Lambda layer, which is code, and code from files is not run",
        ),
        (two_answers, r"my\.keras is no network from images \[N, H, W, 3\] to one tensor"),
        (lambda: keras.Sequential([keras.Input((8,)), layers.Dense(2)]), r"no network from images .* \(None, 8\)"),
        (
            lambda: keras.Sequential([keras.Input((16, 16, 3)), layers.Flatten(), layers.Dense(2)]),
            r"my\.keras ends before its first layer with weights; cut it further up",
        ),
        (
            lambda: conv_net(end=lambda x: layers.Reshape((2, 3))(layers.BatchNormalization()(x))),
            r"my\.keras ends in \(None, 2, 3\), and a head needs .*; cut it",
        ),
    ],
)
def test_a_network_that_cannot_be_a_backbone_is_refused(save, make, message):
    name = save(make())
    with pytest.raises(UserError, match=message):
        build(name)


def test_a_file_that_is_not_there_or_no_network(tmp_path):
    with pytest.raises(
        UserError, match=r"there is no file gone\.keras; a relative path starts from the current folder, /"
    ):
        build("file:gone.keras")
    for file, message in (
        ("old.h5", r"model\.save\('old\.keras'\)"),
        ("noise.keras", "is not a Keras file, or damaged"),
    ):
        (tmp_path / file).write_bytes(b"no such format")
        with pytest.raises(UserError, match=message):
            build(f"file:{tmp_path / file}")


def test_weights_that_a_backbone_does_not_bring_along(save):
    with pytest.raises(UserError, match=r'weights = "file" are those of a backbone "file:NAME\.keras", and .* vgg16'):
        backbones.check_weights("vgg16", "file")
    with pytest.raises(UserError, match="has no ImageNet weights"):
        backbones.check_weights(save(conv_net()), "imagenet")
