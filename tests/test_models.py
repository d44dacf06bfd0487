from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from frostline import backbones, device, freezing, heads, models
from frostline.errors import UserError
from frostline.layers import BatchNormalization, Dropout
from frostline.studies import Backbone, Head, HeadLayer, Stage

SMALL = Backbone("small_cnn")


def build(head=None, classes=5, size=32, scaling="backbone"):
    device.seed_everything(0)
    return models.build(SMALL, head, scaling, size, classes)


def test_the_network_of_the_split_study_to_the_digit():
    net = build()
    masks = {
        rules: freezing.apply(net.model, net.groups, Stage(train=rules))
        for rules in (("all",), ("head/output",), ("head/dense_2", "head/output"), ("head/.*",))
    }
    assert [m.trainable_params for m in masks.values()] == [1_633_733, 325, 8_581, 1_614_341]
    assert {m.total_params for m in masks.values()} == {1_633_733}


def test_groups_and_the_last_layer():
    net = build()
    assert set(net.groups.values()) == {"last_1", "head"}
    backbone = [name for name, group in net.groups.items() if group == "last_1"]
    assert backbone == ["conv_1", "relu_1", "conv_2", "relu_2", "max_pool", "dropout"]
    assert net.model.output_shape == (None, 5) and net.model.layers[-1].name == "output"


RESIDUAL = Backbone("residual_cnn", l2=1e-3)
NEW_BLOCKS = Head(layers=tuple(HeadLayer("block", filters) for filters in (30, 52, 64)), l2=1e-3)


def cut_at(layer, head=NEW_BLOCKS):
    return models.build(Backbone("residual_cnn", cut=layer), head, "backbone", 32, 100)


def test_the_networks_of_the_cifar100_study_to_the_digit():
    whole = models.build(RESIDUAL, None, "backbone", 32, 10)
    assert freezing.apply(whole.model, whole.groups, Stage()).total_params == 1_767_050
    cut = cut_at("relu_1")
    mask = freezing.apply(cut.model, cut.groups, Stage(train=("head/.*",)))
    assert (mask.total_params, mask.trainable_params) == (169_220, 164_248)
    assert [name for name, group in cut.groups.items() if group != "head"] == ["conv_1", "conv_1_norm", "relu_1"]


def test_the_penalty_is_on_every_kernel_of_the_backbone_that_trains():
    net = models.build(RESIDUAL, "linear", "backbone", 32, 10)
    kernels = [weight for weight in net.backbone.weights if len(weight.shape) == 4]
    expected = [1e-3 * float(np.square(kernel).sum()) for kernel in kernels]
    assert len(kernels) == 9 and np.allclose(net.model.losses, expected, rtol=1e-5)
    freezing.apply(net.model, net.groups, Stage(train=("last_1/.*", "head/.*")))
    assert np.allclose(net.model.losses, expected[-2:], rtol=1e-5)


def test_a_cut_backbone_takes_its_part_of_the_weights_of_the_whole(tmp_path):
    source = models.build(RESIDUAL, None, "backbone", 32, 10)
    for weight in source.model.weights:
        weight.assign(np.random.default_rng(len(weight.path)).normal(size=weight.shape))
    source.model.save_weights(tmp_path / "w.weights.h5")
    for end in ("relu_1", "block_2_shortcut", "block_2_conv_2"):
        net = cut_at(end, Head())
        models.load_weights(net, tmp_path / "w.weights.h5", head=False, skip=set())
        weighted = [name for name, group in net.groups.items() if group != "head" and net.model.get_layer(name).weights]
        assert len(weighted) >= 2 and all(same(source, net, name) for name in weighted)


def test_weights_that_do_not_fit_a_cut_backbone_are_refused(tmp_path):
    net = cut_at("relu_1")
    net.model.save_weights(tmp_path / "part.weights.h5")
    with pytest.raises(UserError, match=r"part\.weights\.h5 does not hold the weights of this network"):
        models.load_weights(cut_at("relu_1"), tmp_path / "part.weights.h5", head=False, skip=set())


def test_an_unknown_cut_names_the_nearest_layer():
    with pytest.raises(UserError, match=r"unknown cut of residual_cnn 'relu1'; did you mean 'relu_1'\?$"):
        cut_at("relu1")


def test_a_block_of_a_head_has_penalties_and_a_name_of_its_own():
    net = cut_at("block_1_relu_1", Head(layers=(HeadLayer("block", 4),), l2=0.1))
    blocks = [name for name in net.groups if "block" in name]
    assert blocks[:3] == ["block_1_conv_1", "block_1_conv_1_norm", "block_1_relu_1"]
    assert blocks[3] == "head_block_1_conv_1" and blocks[-1] == "head_block_1_pool"
    penalized = [x.name for x in net.model.layers if getattr(x, "kernel_regularizer", None)]
    assert penalized == [f"head_block_1_{part}" for part in ("conv_1", "conv_2", "shortcut")]
    assert net.model.get_layer("head_block_1_pool").output.shape == (None, 16, 16, 4)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((HeadLayer("dense", 4), HeadLayer("block", 4)), "a block layer of a head stands before the dense and dropout"),
        ((HeadLayer("block", 4),) * 3, "block_3 of the head ends in max-pooling, and there are only 1×1 features"),
    ],
)
def test_a_block_stands_before_the_pooling_where_there_is_room_for_it(layers, message):
    with pytest.raises(UserError, match=message):
        models.build(Backbone("residual_cnn"), Head(layers=layers), "backbone", 32, 3)


def test_pixels_go_in_as_bytes_whatever_the_precision(images):
    pixels, _ = images
    for precision in ("float32", "mixed_bfloat16"):
        device.configure(precision)
        try:
            logits = build().model.predict(pixels[:3], verbose=0)
        finally:
            device.configure("float32")
        assert logits.shape == (3, 5) and logits.dtype == np.float32


def test_scaling_lives_in_the_model(images):
    pixels, _ = images
    plain, unit = build(scaling="none"), build(scaling="unit")
    scaled = [n.model.get_layer("scaling")(pixels[:1]) for n in (plain, unit)]
    assert np.allclose(scaled[0], pixels[:1]) and np.allclose(scaled[1], pixels[:1] / 255)


def test_an_image_too_small_for_the_backbone():
    with pytest.raises(UserError, match="small_cnn does not work on 3×3 images"):
        build(size=3)


def test_composed_head_puts_relu_behind_batch_norm_and_penalties_on_all_but_the_output():
    layers = (HeadLayer("conv", 4), HeadLayer("batch_norm", 1), HeadLayer("dense", 8), HeadLayer("dropout", 0.5))
    net = build(Head(layers=layers, l2=0.1))
    head = [name for name, group in net.groups.items() if group == "head"]
    assert head == [
        "head_conv_1", "batch_norm_1", "batch_norm_1_relu", "pooling", "dense_1", "dense_1_relu", "dropout_1", "output",
    ]  # fmt: skip
    penalized = [x.name for x in net.model.layers if getattr(x, "kernel_regularizer", None)]
    assert penalized == ["head_conv_1", "dense_1"]


def test_relu_follows_a_batch_norm_only_where_that_follows_a_layer_with_a_kernel():
    dense, norm, drop = HeadLayer("dense", 8), HeadLayer("batch_norm", 1), HeadLayer("dropout", 0.5)
    for layers, relus in (
        ((dense, drop, norm), ["dense_1_relu"]),
        ((norm, drop, dense), ["dense_1_relu"]),
        ((dense, norm, drop), ["batch_norm_1_relu"]),
    ):
        net = build(Head(layers=layers))
        assert [n for n, g in net.groups.items() if g == "head" and n.endswith("_relu")] == relus


def test_a_prefix_that_is_taken_too_is_given_again():
    x = keras.Input((4,))
    found = keras.Model(x, heads.build(x, Head(layers=(HeadLayer("dense", 8),)), 2, {"dense_1", "head_dense_1"}))
    assert "head_head_dense_1" in [layer.name for layer in found.layers]


def test_weights_may_lie_below_the_home_folder(tmp_path, monkeypatch):
    net = build()
    net.model.save_weights(tmp_path / "my.weights.h5")
    monkeypatch.setenv("HOME", str(tmp_path))
    models.load_weights(build(), Path("~/my.weights.h5"), head=True, skip=set())


def test_a_head_whose_layer_is_called_like_one_of_the_backbone_still_builds():
    net = build(Head(layers=(HeadLayer("conv", 4),)))
    assert net.model.get_layer("conv_1").filters == 32
    assert {n: g for n, g in net.groups.items() if "conv" in n} == {
        "conv_1": "last_1", "conv_2": "last_1", "head_conv_1": "head", "head_conv_1_relu": "head",
    }  # fmt: skip


@pytest.mark.parametrize("activation", ["sigmoid", "logit"])
def test_a_binary_head_has_one_logit_and_two_columns(activation):
    net = build(Head(activation=activation), classes=2)
    assert net.model.output_shape == (None, 1)
    p = heads.probabilities(np.array([[0.0], [100.0], [-2.0]], np.float32))
    assert np.allclose(p[:2], [[0.5, 0.5], [0.0, 1.0]]) and np.isclose(p[2, 1], 1 / (1 + np.exp(2)))
    with pytest.raises(UserError, match="is for two classes, and there are 3"):
        build(Head(activation=activation), classes=3)


def test_an_unknown_head_lists_the_known():
    with pytest.raises(UserError, match=r"unknown head 'lineer'; did you mean 'linear'\?"):
        build("lineer")


def test_weights_of_the_backbone_with_and_without_the_head(tmp_path):
    source = build(classes=3)
    source.model.save_weights(tmp_path / "w.weights.h5")
    keras.utils.set_random_seed(9)
    other_head = models.build(SMALL, Head(), "backbone", 32, 7)
    models.load_weights(other_head, tmp_path / "w.weights.h5", head=False, skip=set())
    assert same(source, other_head, "conv_2")
    whole = models.build(SMALL, None, "backbone", 32, 3)
    fresh = whole.model.get_layer("output").get_weights()
    models.load_weights(whole, tmp_path / "w.weights.h5", head=True, skip={"output"})
    assert same(source, whole, "dense_1")
    assert np.array_equal(whole.model.get_layer("output").get_weights()[0], fresh[0])


def same(a, b, layer):
    pairs = zip(a.model.get_layer(layer).get_weights(), b.model.get_layer(layer).get_weights(), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def test_weights_that_do_not_fit(tmp_path):
    build(classes=3).model.save_weights(tmp_path / "w.weights.h5")
    (tmp_path / "noise.weights.h5").write_bytes(b"no such format")
    for name in ("w", "noise", "missing"):
        with pytest.raises(UserError, match=f"{name}.weights.h5 does not hold the weights of this network"):
            models.load_weights(build(classes=4), tmp_path / f"{name}.weights.h5", head=True, skip=set())


def test_published_weights_are_refused_where_there_are_none():
    with pytest.raises(UserError, match="small_cnn has no ImageNet weights"):
        backbones.check_weights("small_cnn", "imagenet")


def test_the_standard_model_answers_the_same_without_layers_of_ours(images, tmp_path):
    pixels, _ = images
    device.configure("mixed_bfloat16")
    try:
        net = build()
    finally:
        device.configure("float32")
    plain = models.standard(net.model)
    assert not [x for x in plain.layers if type(x) in (Dropout, BatchNormalization)]
    assert {x.compute_dtype for x in plain.layers} == {"float32"}
    plain.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", custom_objects={})
    assert np.array_equal(loaded(pixels[:4]), plain(pixels[:4]))
    assert np.allclose(plain(pixels[:4]), net.model(pixels[:4]), rtol=0.1, atol=1.0)


def test_dropout_draws_the_same_with_and_without_xla():
    x = np.ones((4, 63), np.float32)
    answers = []
    for xla in (False, True):
        keras.utils.set_random_seed(3)
        layer = Dropout(0.25)
        layer.build(x.shape)
        call = tf.function(lambda v, layer=layer: layer(v, training=True), jit_compile=xla)
        answers.append([call(x).numpy(), call(x).numpy()])
    assert np.array_equal(answers[0], answers[1])
    first, second = answers[0]
    assert not np.array_equal(first, second)
    assert set(np.unique(first)) == {np.float32(0), np.float32(1 / 0.75)}
    assert 0.1 < (first == 0).mean() < 0.4
