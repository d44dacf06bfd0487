import keras
import numpy as np
import pytest

from frostline import freezing, models, training
from frostline.datasets import Split
from frostline.errors import UserError
from frostline.layers import BatchNormalization
from frostline.studies import Head, Stage

LAYERS = [
    ("last_2", "conv_1", "Conv2D"),
    ("last_2", "bn_1", "BatchNormalization"),
    ("last_1", "conv_2", "Conv2D"),
    ("last_1", "pool", "MaxPooling2D"),
    ("head", "dense_1", "Dense"),
    ("head", "output", "Dense"),
]


@pytest.mark.parametrize(
    ("rules", "trained"),
    [
        (["all"], {"conv_1", "bn_1", "conv_2", "pool", "dense_1", "output"}),
        (["none"], set()),
        (["head/.*"], {"dense_1", "output"}),
        (["head/output", "last_1/.*"], {"output", "conv_2", "pool"}),
        (["all", "!type:BatchNormalization"], {"conv_1", "conv_2", "pool", "dense_1", "output"}),
        (["!type:BatchNormalization", "all"], {"conv_1", "conv_2", "pool", "dense_1", "output"}),
        (["last:2"], {"conv_2", "pool"}),
        (["first:1"], {"conv_1"}),
        (["from:conv_2"], {"conv_2", "pool", "dense_1", "output"}),
        (["only:bn_1"], {"bn_1"}),
        (["type:Conv2D"], {"conv_1", "conv_2"}),
    ],
)
def test_rules(rules, trained):
    assert freezing.resolve(rules, LAYERS) == trained


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("head/outpt", r"rule 'head/outpt' matches nothing; nearest: head/output, "),
        ("head", r"rule 'head' matches nothing; nearest: head/\.\*, "),
        ("!last_7/.*", r"rule '!last_7/\.\*' matches nothing; nearest: last_[12]/\.\*, last_[12]/\.\*, "),
        ("last:5", r"give a number from 1 to 4, the layers of the backbone"),
        ("last:x", r"rule 'last:x': give a number of layers of the backbone, from 1 on"),
        ("from:outptu", r"there is no layer 'outptu'; nearest: output, "),
        ("type:Conv2d", r"matches nothing; nearest: Conv2D, "),
        ("head/(", r"not a regular expression"),
    ],
)
def test_a_rule_without_a_match_is_an_error(rule, message):
    with pytest.raises(UserError, match=message):
        freezing.resolve([rule], LAYERS)


def network():
    """Convolution, BatchNormalization of ours, pooling, a dense head; 8×8 pixels, two classes."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    images = keras.Input((8, 8, 3), dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 255, name="scaling")(images)
    x = keras.layers.Conv2D(4, 3, name="conv")(x)
    x = features = BatchNormalization(name="bn")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pooling")(x)
    x = keras.layers.Dense(2, name="output")(x)
    groups = {"conv": "last_1", "bn": "last_1", "pooling": "head", "output": "head"}
    return models.Network(keras.Model(images, x), keras.Model(images, features), groups, Head())


def split():
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8), np.arange(24, dtype=np.int32) % 2, [])


def fit(net, stage):
    return training.train(net, (stage,), split(), None, seed=0, xla=False)


def test_apply_counts_what_trains():
    net = network()
    mask = freezing.apply(net.model, net.groups, Stage(train=("head/output",)))
    assert (mask.trained, mask.frozen) == (("output",), ("conv", "bn"))
    assert (mask.trainable_params, mask.total_params, mask.trainable_tensors) == (10, 112 + 16 + 10, 2)
    assert mask.tensors == 6
    assert mask.batch_norm == "inference"


def test_every_layer_is_told_as_apply_left_it():
    net = network()
    freezing.apply(net.model, net.groups, Stage(train=("head/output",)))
    mask = freezing.apply(net.model, net.groups, Stage(train=("last_1/.*",)))
    told = {layer.name: layer for layer in freezing.layers(net.model, net.groups)}
    assert [layer.number for layer in told.values()] == [1, 2, 3, 4, 5, 6]
    assert (told["images"].group, told["images"].trains, told["images"].batch_norm) == (None, None, None)
    assert (told["pooling"].group, told["pooling"].kind, told["pooling"].trains) == (
        "head", "GlobalAveragePooling2D", None
    )  # fmt: skip
    assert (told["bn"].params, told["bn"].trainable_tensors, told["bn"].batch_norm) == (16, 2, "training")
    assert (told["output"].trains, told["output"].trainable_tensors) == (False, 0)
    assert (mask.trainable_tensors, mask.tensors) == (4, 6), "what an earlier stage froze could train too"
    freezing.apply(net.model, net.groups, Stage(batch_norm="inference"))
    assert freezing.layers(net.model, net.groups)[3].batch_norm == "inference"


def test_a_mask_without_weights_is_refused():
    net = network()
    with pytest.raises(UserError, match="leaves no weight to train"):
        freezing.apply(net.model, net.groups, Stage(train=("head/pooling",)))


def test_batch_norm_in_inference_mode_keeps_its_statistics_and_moves_gamma():
    net = network()
    before = [w.numpy() for w in net.model.get_layer("bn").weights]
    trained = fit(net, Stage(batch_norm="inference", epochs=1, batch_size=8))
    gamma, _, mean, variance = (w.numpy() for w in net.model.get_layer("bn").weights)
    assert np.array_equal(mean, before[2]) and np.array_equal(variance, before[3])
    assert not np.array_equal(gamma, before[0])
    assert trained.masks[0].batch_norm == "inference"
    assert trained.proofs[0]["frozen_layers"] == 1


def test_batch_norm_that_trains_moves_its_statistics_and_says_so():
    net = network()
    before = net.model.get_layer("bn").moving_mean.numpy()
    trained = fit(net, Stage(batch_norm="keras", epochs=1, batch_size=8))
    assert not np.array_equal(net.model.get_layer("bn").moving_mean.numpy(), before)
    assert trained.masks[0].batch_norm == "training"


def test_keras_itself_lets_fit_override_training_false():
    """The reason for a layer of ours: should this fail one day, Keras has changed, and the README has to as well."""
    images = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
    model = keras.Model(images, keras.layers.Dense(1)(inner(images, training=False)))
    model.compile("sgd", "mse")
    before = inner.layers[0].moving_mean.numpy()
    x = np.random.default_rng(0).normal(3.0, 1.0, (16, 4)).astype(np.float32)
    model.fit(x, x[:, :1], verbose=0)
    assert not np.array_equal(inner.layers[0].moving_mean.numpy(), before)


def test_the_proof_holds_for_frozen_layers_and_is_one_checksum():
    trained = fit(network(), Stage(train=("head/output",), epochs=1, batch_size=8))
    (proof,) = trained.proofs
    assert proof["frozen_layers"] == 2 and proof["before"] == proof["after"]


def test_the_proof_fails_when_a_layer_is_thawed_behind_our_back(monkeypatch):
    net = network()
    compiled = training.compile_model

    def thaw(model, *args):
        model.get_layer("conv").trainable = True
        compiled(model, *args)

    monkeypatch.setattr(training, "compile_model", thaw)
    with pytest.raises(freezing.FrozenMoved, match="frozen weights moved while training: conv"):
        fit(net, Stage(train=("head/output",), epochs=1, batch_size=8))


def test_the_proof_fails_when_statistics_move_in_inference_mode(monkeypatch):
    net = network()
    compiled = training.compile_model

    def forget(model, *args):
        model.get_layer("bn").inference_only = False
        compiled(model, *args)

    monkeypatch.setattr(training, "compile_model", forget)
    with pytest.raises(freezing.FrozenMoved, match="bn"):
        fit(net, Stage(batch_norm="inference", epochs=1, batch_size=8))


def test_of_a_large_network_only_the_nearest_layers_are_named():
    layers = [("last_1", f"block_{i}", "Conv2D") for i in range(500)]
    with pytest.raises(UserError, match="nearest: last_1/block_77") as caught:
        freezing.resolve(["last_1/blok_77"], layers)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("rule", ["last:0", "first:many", "head/(", "!head/["])
def test_what_fits_no_network_is_found_without_one(rule):
    with pytest.raises(UserError, match=r"give a number of layers|is not a regular expression"):
        freezing.check_form(["all", rule])
    freezing.check_form(["all", "!head/.*", "last:3", "from:conv_1"])
