import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from frostline import device, freezing, frontier, graphs
from frostline.errors import UserError
from frostline.layers import BatchNormalization, Dropout
from frostline.studies import Stage

MODES = frontier.MODES


@pytest.fixture(autouse=True)
def _fresh_names():
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


# -- networks: 8×8 pixels, three classes -----------------------------------------------------------


def pixels(count=6, size=8):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def stem():
    images = keras.Input((8, 8, 3), dtype="uint8", name="images")
    return images, layers.Rescaling(1 / 255, name="scaling")(images)


def head(x):
    return layers.Dense(3, name="output")(layers.GlobalAveragePooling2D(name="pooling")(x))


def head_only():
    images, x = stem()
    x = layers.Conv2D(4, 3, kernel_regularizer="l2", name="conv")(x)
    x = layers.ReLU(name="relu")(BatchNormalization(name="bn")(x))
    return keras.Model(images, head(x), name="network")


def residual():
    images, x = stem()
    x = layers.ReLU(name="relu_1")(layers.Conv2D(4, 3, name="conv_1")(x))
    y = layers.ReLU(name="relu_2")(layers.Conv2D(4, 3, padding="same", name="conv_2")(x))
    y = layers.Conv2D(4, 3, padding="same", name="conv_3")(y)
    return keras.Model(images, head(layers.Add(name="add")([x, y])), name="network")


def behind_dropout():
    images, x = stem()
    x = layers.Flatten(name="flatten")(layers.Conv2D(4, 3, name="conv")(x))
    x = layers.ReLU(name="relu")(layers.Dense(5, name="dense")(Dropout(0.5, name="dropout")(x)))
    return keras.Model(images, layers.Dense(3, name="output")(x), name="network")


def norm_above():
    images, x = stem()
    x = layers.Conv2D(4, 3, name="conv")(x)
    return keras.Model(images, head(BatchNormalization(name="bn")(x)), name="network")


def nested():
    """A functional backbone, which holds a sequential block, inside a Sequential."""
    inner = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv_1")(inner)
    x = keras.Sequential([layers.ReLU(name="relu"), layers.Conv2D(4, 3, name="conv_2")], name="block")(x)
    backbone = keras.Model(inner, layers.BatchNormalization(name="bn")(x), name="backbone")
    start = [keras.Input((8, 8, 3), dtype="uint8"), layers.Rescaling(1 / 255, name="scaling")]
    return keras.Sequential([*start, backbone, layers.Flatten(name="flatten"), layers.Dense(3, name="output")])


def mask(model, *trained):
    for layer in graphs.flatten(model).layers:
        layer.trainable = layer.name in trained
    return model


# (network, layers that train, where an exact frontier cuts, where one in inference mode cuts)
CUTS = {
    "head only": (head_only, ["output"], ["pooling"], ["pooling"]),
    "last block of a residual network": (residual, ["conv_2", "conv_3", "output"], ["relu_1"], ["relu_1"]),
    "a frontier of two tensors": (residual, ["conv_3", "output"], ["relu_1", "relu_2"], ["relu_1", "relu_2"]),
    "two dense layers behind a dropout": (behind_dropout, ["dense", "output"], ["flatten"], ["dropout"]),
    "a frozen layer behind a dropout": (behind_dropout, ["output"], ["flatten"], ["relu"]),
    "batch norm in the suffix": (norm_above, ["bn", "output"], ["conv"], ["conv"]),
    "a cut inside a nested backbone": (nested, ["conv_2", "bn", "output"], ["relu"], ["relu"]),
    "a nested backbone, frozen": (nested, ["output"], ["flatten"], ["flatten"]),
}


@pytest.fixture(params=CUTS)
def case(request):
    build, trained, *_ = CUTS[request.param]
    return lambda: mask(build(), *trained)


@pytest.mark.parametrize(("build", "trained", "exact", "inference"), CUTS.values(), ids=CUTS)
def test_where_the_frontier_lies(build, trained, exact, inference):
    model = mask(build(), *trained)
    for mode, boundary in zip(MODES, (exact, inference), strict=True):
        cut = frontier.split(model, mode=mode)
        assert (cut.mode, list(cut.boundary)) == (mode, boundary)
        assert cut.below == frontier.find(model, mode=mode)
        assert not set(cut.below) & set(trained) and set(boundary) <= set(cut.below)
        features = keras.tree.flatten(cut.prefix(pixels()))
        assert [(x.shape[1:], x.dtype.name) for x in features] == list(
            zip(cut.feature_shapes, cut.feature_dtypes, strict=True)
        )


def test_the_parts_in_the_order_of_the_network():
    cut = frontier.split(mask(residual(), "conv_3", "output"))
    assert cut.below == ("scaling", "conv_1", "relu_1", "conv_2", "relu_2")
    assert cut.feature_shapes == ((6, 6, 4), (6, 6, 4)) and cut.feature_dtypes == ("float32", "float32")
    assert [x.name for x in cut.suffix.layers if x.weights] == ["conv_3", "output"]


def test_the_frontier_follows_the_mask_of_a_stage():
    model = norm_above()
    groups = {"conv": "last_1", "bn": "head", "pooling": "head", "output": "head"}
    cuts = []
    for stage in (Stage(train=("head/output",)), Stage(train=("head/.*",)), Stage(train=("all",))):
        freezing.apply(model, groups, stage)
        cuts.append(frontier.split(model).boundary)
    assert cuts == [("pooling",), ("conv",), ()]


# -- the same function -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_both_parts_answer_as_the_whole_to_the_bit_whatever_the_weights_above(case, mode):
    model = case()
    cut = frontier.split(model, mode=mode)
    features, before = cut.prefix(pixels()), np.array(model(pixels()))
    assert np.array_equal(cut.suffix(features), before)
    for weight in cut.suffix.trainable_weights:
        weight.assign_add(tf.ones_like(weight))
    assert np.array_equal(cut.suffix(features), model(pixels()))
    assert not np.array_equal(model(pixels()), before)


def trained(case, cached):
    """A network after two epochs of three batches, the last one partial; dropout draws from a seed of its layer."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    model, inputs, labels = case(), pixels(20), np.random.default_rng(1).normal(size=(20, 3))
    part = model
    if cached:
        cut = frontier.split(model)
        part, inputs = cut.suffix, keras.tree.map_structure(np.array, cut.prefix(inputs))
    part.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", run_eagerly=True)
    part.fit(inputs, labels, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return model, part, inputs


def test_training_the_suffix_is_training_the_network(case):
    plain, *_ = trained(case, cached=False)
    ours, suffix, features = trained(case, cached=True)
    for a, b in zip(plain.weights, ours.weights, strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)
    assert np.array_equal(suffix(features), ours(pixels(20)))


def test_predict_of_both_parts_is_predict_of_the_whole():
    model = mask(residual(), "conv_3", "output")
    cut = frontier.split(model)
    features = cut.prefix.predict(pixels(), verbose=0)
    assert np.array_equal(cut.suffix.predict(features, verbose=0), model.predict(pixels(), verbose=0))


def test_exact_features_do_not_depend_on_training(case):
    cut = frontier.split(case())
    for on, off in zip(*(keras.tree.flatten(cut.prefix(pixels(), training=t)) for t in (True, False)), strict=True):
        assert np.array_equal(on, off)


def test_a_feature_that_is_altered_shows(case):
    cut = frontier.split(case())
    features = keras.tree.map_structure(np.array, cut.prefix(pixels()))
    right = np.array(cut.suffix(features))
    keras.tree.flatten(features)[0][2].flat[0] += 1.0
    assert np.flatnonzero((np.array(cut.suffix(features)) != right).any(axis=1)).tolist() == [2]


def test_the_parts_share_the_layers_and_nothing_of_the_network_changes():
    model = mask(behind_dropout(), "output")
    before = [v.numpy() for v in model.variables]
    layers_before, flags = model.layers, [x.trainable for x in model.layers]
    cut = frontier.split(model)
    assert cut.prefix.get_layer("conv") is model.get_layer("conv")
    assert cut.suffix.get_layer("dropout") is model.get_layer("dropout")
    assert all(np.array_equal(a, b) for a, b in zip(before, model.variables, strict=True))
    assert model.layers == layers_before and [x.trainable for x in model.layers] == flags


def test_a_compiled_network_is_left_compiled():
    model = mask(head_only(), "output")
    model.compile("adam", "mse")
    variables = len(model.optimizer.variables)
    cut = frontier.split(model)
    assert model.compiled and len(model.optimizer.variables) == variables
    assert not cut.prefix.compiled and not cut.suffix.compiled


def test_features_of_bfloat16():
    device.configure("mixed_bfloat16")
    try:
        cut = frontier.split(mask(residual(), "conv_3", "output"))
    finally:
        device.configure("float32")
    assert cut.feature_dtypes == ("bfloat16", "bfloat16")
    features = cut.prefix(pixels())
    assert [x.dtype for x in features] == [tf.bfloat16] * 2 and cut.suffix(features).shape == (6, 3)


# -- features that have to be small ----------------------------------------------------------------


def test_bytes_of_the_features_of_an_image():
    cut = frontier.split(mask(residual(), "conv_3", "output"))
    assert cut.image_bytes == 2 * 6 * 6 * 4 * 4
    assert frontier.split(residual()).image_bytes == 0
    device.configure("mixed_bfloat16")
    try:
        assert frontier.split(mask(residual(), "conv_3", "output")).image_bytes == cut.image_bytes // 2
    finally:
        device.configure("float32")


def test_a_limit_that_is_kept_changes_nothing(case):
    model = case()
    cut = frontier.split(model)
    assert frontier.split(model, most_bytes=cut.image_bytes).boundary == cut.boundary


@pytest.mark.parametrize("mode", MODES)
def test_a_lower_cut_is_still_the_network(case, mode):
    model = case()
    highest = frontier.split(model, mode=mode)
    cut = highest
    while cut.prefix is not None:
        most_bytes = cut.image_bytes - 1
        cut = frontier.split(model, mode=mode, most_bytes=most_bytes)
        if cut.prefix is not None:
            assert cut.image_bytes <= most_bytes and set(cut.below) < set(highest.below)
            assert np.array_equal(cut.suffix(cut.prefix(pixels())), model(pixels()))


@pytest.mark.parametrize(
    ("most_bytes", "boundary"),
    [(1152, ["relu_1", "relu_2"]), (1151, ["relu_1"]), (576, ["relu_1"]), (575, []), (0, [])],
)
def test_where_a_lower_cut_lies(most_bytes, boundary):
    model = mask(residual(), "conv_3", "output")
    cut = frontier.split(model, most_bytes=most_bytes)
    assert list(cut.boundary) == boundary
    if not boundary:
        assert cut.prefix is None and cut.suffix is model and cut.image_bytes == 0


# -- nothing worth computing once ------------------------------------------------------------------


def test_everything_trains():
    model = residual()
    cut = frontier.split(model)
    assert cut.prefix is None and cut.suffix is model
    assert (cut.boundary, cut.below, cut.feature_shapes, cut.feature_dtypes) == ((), (), (), ())
    assert frontier.find(model) == ()


def test_scaled_and_normalised_images_are_not_worth_storing():
    images, x = stem()
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0], name="normalization")(x)
    model = mask(keras.Model(images, head(layers.Conv2D(4, 3, name="conv")(x))), "conv", "output")
    assert frontier.split(model).prefix is None


def test_everything_is_frozen():
    model = mask(residual())
    cut = frontier.split(model)
    assert cut.boundary == ("output",) and cut.suffix.layers[-1].name == "frontier_0"
    assert np.array_equal(cut.suffix(cut.prefix(pixels())), model(pixels()))


# -- what training leaves alone --------------------------------------------------------------------


class GlobalNoise(layers.Layer):
    """Draws from Keras's generator that no layer owns, as the stochastic depth of ConvNeXt does."""

    def call(self, inputs, training=None):
        return inputs + keras.random.normal(tf.shape(inputs)) if training else inputs


class TensorFlowNoise(layers.Layer):
    def call(self, inputs, training=None):
        return inputs + tf.random.normal(tf.shape(inputs)) if training else inputs


class InnerNoise(layers.Layer):
    """Says nothing of training itself, but holds a layer that listens."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.noise = layers.GaussianNoise(0.5)

    def call(self, inputs):
        return self.noise(inputs)


class AlwaysNoise(layers.Layer):
    def call(self, inputs):
        return inputs + keras.random.normal(tf.shape(inputs))


class Doubled(layers.Layer):
    """Draws nothing, yet answers otherwise while training."""

    def call(self, inputs, training=False):
        return inputs * (2.0 if training else 1.0)


class Custom(layers.Layer):
    def call(self, inputs, training=False):
        return tf.nn.relu(inputs)


class Loss(layers.Layer):
    def call(self, inputs):
        self.add_loss(keras.ops.mean(inputs))
        return inputs


class Counter(layers.Layer):
    def build(self, shape):
        self.count = self.add_weight(shape=(), trainable=False, initializer="zeros")

    def call(self, inputs, training=False):
        if training:
            self.count.assign_add(1.0)
        return inputs


def augmentation():
    return keras.Sequential([layers.RandomFlip(), keras.Sequential([layers.RandomZoom(0.2)])])


BOTH = ("exact", "inference_prefix")
INFERENCE = ("inference_prefix",)
TREATMENT = {
    "dropout": (lambda: layers.Dropout(0.5), INFERENCE),
    "dropout of ours": (lambda: Dropout(0.5), INFERENCE),
    "dropout of nothing": (lambda: layers.Dropout(0.0), BOTH),
    "dropout of ours, of nothing": (lambda: Dropout(0.0), BOTH),
    "spatial dropout": (lambda: layers.SpatialDropout2D(0.5), INFERENCE),
    "noise": (lambda: layers.GaussianNoise(0.5), INFERENCE),
    "augmentation": (lambda: layers.RandomTranslation(0.1, 0.1), INFERENCE),
    "nested augmentation": (augmentation, INFERENCE),
    "augmentation in a pipeline": (lambda: layers.Pipeline([layers.RandomFlip()]), INFERENCE),
    "a generator of no layer": (GlobalNoise, INFERENCE),
    "a generator of TensorFlow": (TensorFlowNoise, INFERENCE),
    "noise within a layer": (InnerNoise, INFERENCE),
    "noise in inference too": (AlwaysNoise, ()),
    "another answer while training": (Doubled, INFERENCE),
    "a function": (lambda: layers.Lambda(lambda x: x + 1.0), BOTH),
    "a layer of one's own": (Custom, BOTH),
    "a grouped convolution": (lambda: layers.Conv2D(4, 3, groups=2), BOTH),
    "dense": (lambda: layers.Dense(3), BOTH),
    "layer normalization": (layers.LayerNormalization, BOTH),
    "batch norm, frozen": (layers.BatchNormalization, BOTH),
    "an addition to the loss": (Loss, ()),
    "a penalty on activity": (lambda: layers.ReLU(activity_regularizer="l2"), ()),
    "a count of the steps": (Counter, ()),
    "weights that move unseen": (lambda: layers.SpectralNormalization(layers.Conv2D(4, 3)), ()),
}


def between(layer):
    """A frozen convolution, the layer, a frozen convolution, and an output that trains."""
    images, x = stem()
    x = layer(layers.Conv2D(4, 3, name="conv_1")(x))
    return mask(keras.Model(images, head(layers.Conv2D(4, 3, name="conv_2")(x))), "output")


@pytest.mark.parametrize(("layer", "modes"), TREATMENT.values(), ids=TREATMENT)
def test_what_ends_the_prefix(layer, modes):
    model = between(layer())
    for mode in MODES:
        names = frontier.find(model, mode=mode)
        assert "conv_1" in names and ("conv_2" in names) == (mode in modes)


SHORT = ("a grouped convolution", "dense", "layer normalization", "batch norm, frozen")


@pytest.mark.parametrize("name", [*SHORT, *(name for name in TREATMENT if name.startswith("dropout"))])
def test_a_trace_finds_what_the_shortcut_knows(name, monkeypatch):
    monkeypatch.setattr(frontier, "_known", lambda operation, mode: None)
    test_what_ends_the_prefix(*TREATMENT[name])


def test_a_trace_draws_no_seed_and_counts_no_step():
    for layer in (layers.SpatialDropout2D(0.5), Counter()):
        model = between(layer)
        before = [v.numpy() for v in layer.variables]
        frontier.find(model)
        assert before and all(np.array_equal(a, b) for a, b in zip(before, layer.variables, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_batch_norm_that_is_not_frozen_ends_the_prefix_unless_told_to_infer(mode):
    bn = BatchNormalization(center=False, scale=False, name="bn")
    model = between(bn)
    bn.trainable = True
    assert "conv_2" not in frontier.find(model, mode=mode)
    bn.inference_only = True
    assert "conv_2" in frontier.find(model, mode=mode)


def test_penalties_on_frozen_weights_are_in_no_loss():
    model = head_only()
    assert len(model.losses) == 1
    mask(model, "output")
    cut = frontier.split(model)
    assert "conv" in cut.below and model.losses == [] == cut.suffix.losses


# -- graphs ----------------------------------------------------------------------------------------


def test_a_layer_called_twice_may_lie_on_both_sides():
    images, x = stem()
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    x = layers.Conv2D(3, 1, name="trained")(shared(x))
    model = mask(keras.Model(images, head(shared(x))), "trained", "output")
    cut = frontier.split(model)
    assert cut.below == ("scaling", "shared") and cut.boundary == ("shared",)
    assert cut.suffix.get_layer("shared") is shared
    assert np.array_equal(cut.suffix(cut.prefix(pixels())), model(pixels()))


def test_a_layer_called_twice_that_trains_lies_above_with_both():
    images, x = stem()
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    x = layers.Conv2D(3, 1, name="frozen")(shared(layers.Conv2D(3, 1, name="first")(x)))
    assert frontier.find(mask(keras.Model(images, head(shared(x))), "shared")) == ("scaling", "first")


class Weighted(layers.Layer):
    def call(self, inputs, weights, where=None, power=1):
        return inputs * keras.ops.where(where, weights, 1.0) ** power


def test_operations_lists_and_keyword_arguments():
    images, x = stem()
    x = layers.Conv2D(4, 3, name="conv")(x)
    y = keras.ops.relu(x) * 2.0 + keras.ops.mean(x, axis=-1, keepdims=True)
    y = Weighted(name="weighted")(y, weights=x, where=x > 0.0, power=2)
    z = layers.Conv2D(4, 1, name="trained")(x)
    z = layers.Concatenate(name="joined")([y, keras.ops.sigmoid(z), x])
    y = keras.ops.concatenate([y, y, x], axis=-1)
    z = Weighted(name="above")(z, weights=y, where=z > 0.1, power=2)
    model = mask(keras.Model(images, head(z)), "trained", "output")
    cut = frontier.split(model)
    assert cut.boundary == ("conv", "weighted") and cut.below == ("scaling", "conv", "weighted")
    assert np.array_equal(cut.suffix(cut.prefix(pixels())), model(pixels()))


def test_fit_overrides_a_training_argument_in_a_call():
    images, x = stem()
    x = layers.Dropout(0.5, name="dropout")(layers.Conv2D(4, 3, name="conv")(x), training=False)
    model = mask(keras.Model(images, head(x)), "output")
    assert frontier.find(model) == ("scaling", "conv")


def test_a_frozen_model_called_with_a_training_argument():
    inner = keras.Input((8, 8, 3))
    y = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, name="conv")(inner))
    images, x = stem()
    x = keras.Model(inner, layers.Dropout(0.5, name="dropout")(y))(x, training=False)
    x = layers.Conv2D(4, 3, name="trained")(x)
    model = mask(keras.Model(images, head(x)), "trained", "output")
    cut = frontier.split(model)
    assert cut.boundary == ("bn",) and cut.suffix.layers[1].name == "dropout"
    assert np.array_equal(cut.suffix(cut.prefix(pixels())), model(pixels()))


def test_a_layer_with_two_outputs_of_which_one_crosses():
    images, x = stem()
    x = layers.Conv2D(4, 3, name="conv")(x)
    a, b = layers.Lambda(lambda t: (t[..., :1], t[..., 1:]), name="parts")(x)
    b = layers.Conv2D(4, 1, name="frozen")(b)
    model = mask(keras.Model(images, head(layers.Concatenate()([a, layers.Conv2D(4, 1, name="c")(b)]))), "c", "output")
    cut = frontier.split(model)
    assert cut.boundary == ("parts", "frozen") and cut.feature_shapes == ((6, 6, 1), (6, 6, 4))
    assert np.array_equal(cut.suffix(cut.prefix(pixels())), model(pixels()))


def test_images_cross_where_the_suffix_reads_them():
    images, x = stem()
    y = layers.Conv2D(4, 3, padding="same", name="frozen")(x)
    z = layers.Rescaling(1 / 128, name="scaling_above")(images)
    z = layers.Conv2D(4, 3, padding="same", name="trained")(z)
    model = mask(keras.Model(images, head(layers.Add(name="add")([y, z]))), "trained", "output")
    cut = frontier.split(model)
    assert cut.boundary == ("images", "frozen") and cut.feature_dtypes == ("uint8", "float32")
    assert np.array_equal(cut.suffix(cut.prefix(pixels())), model(pixels()))


def test_what_only_makes_features_larger_is_left_to_the_suffix():
    images, x = stem()
    x = layers.MaxPooling2D(name="pool")(layers.Conv2D(4, 3, name="frozen")(x))
    x = layers.ZeroPadding2D(name="padding")(layers.UpSampling2D(name="larger")(x))
    model = mask(keras.Model(images, head(layers.Conv2D(4, 3, name="trained")(x))), "trained", "output")
    cut = frontier.split(model)
    assert cut.boundary == ("pool",) and cut.below == ("scaling", "frozen", "pool")
    assert np.array_equal(cut.suffix(cut.prefix(pixels())), model(pixels()))


def test_flat_networks_answer_as_nested_ones_with_the_same_layers():
    model = nested()
    flat = graphs.flatten(model)
    assert flat.get_layer("conv_2") is model.get_layer("backbone").get_layer("block").get_layer("conv_2")
    assert [x.name for x in flat.layers if x.weights] == ["conv_1", "conv_2", "bn", "output"]
    assert np.array_equal(flat.predict(pixels(), verbose=0), model.predict(pixels(), verbose=0))


def test_a_nested_model_with_a_call_of_its_own_is_one_layer():
    class Scaled(keras.Model):
        def call(self, inputs, training=None):
            return 2.0 * super().call(inputs, training=training)

    inner = keras.Input((8, 8, 3))
    images, x = stem()
    model = keras.Model(images, head(Scaled(inner, layers.Conv2D(4, 3, name="conv")(inner), name="scaled")(x)))
    cut = frontier.split(mask(model, "output"))
    assert cut.below == ("scaling", "scaled", "pooling")
    assert np.array_equal(cut.suffix(cut.prefix(pixels())), model(pixels()))


# -- what is refused -------------------------------------------------------------------------------


def test_an_unknown_mode():
    with pytest.raises(UserError, match=r"unknown frontier 'exakt'; did you mean 'exact'\?"):
        frontier.find(residual(), mode="exakt")


def test_two_inputs():
    a, b = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([a, b], layers.Dense(2)(layers.Add()([a, b])), name="two")
    with pytest.raises(UserError, match="two cannot be split: it has to be a functional or sequential model of one"):
        frontier.split(model)


def test_a_network_without_a_graph():
    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    for model in (Subclassed(name="opaque"), keras.Sequential([layers.Dense(2)], name="opaque")):
        with pytest.raises(UserError, match="opaque cannot be split"):
            frontier.split(model)


def test_masks():
    x = keras.Input((4, 3))
    y = layers.Dense(3, name="dense")(layers.Masking(name="masking")(x))
    with pytest.raises(UserError, match="network hands a mask from masking along, which features cannot carry"):
        frontier.split(keras.Model(x, layers.GlobalAveragePooling1D()(y), name="network"))


def test_nested_layers_of_one_name():
    block = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="dense")])
    model = keras.Sequential([keras.Input((4,)), block, layers.Dense(2, name="dense")], name="network")
    with pytest.raises(UserError, match=r'network cannot be split: .* "dense" is used 2 times'):
        frontier.split(model)


# -- published networks ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "trained_from", "exact", "inference"),
    [
        ("MobileNetV2", "block_5_project", ["block_4_add", "block_5_depthwise_relu"], None),
        ("EfficientNetB0", "top_conv", ["block2a_project_bn", "block2b_project_bn"], ["block7a_project_bn"]),
    ],
)
def test_published_networks(name, trained_from, exact, inference):
    model = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=3)
    names = [x.name for x in model.layers]
    mask(model, *names[names.index(trained_from) :])
    images = pixels(2, 32)
    answers = model(images, training=False)
    for mode, boundary in zip(MODES, (exact, inference or exact), strict=True):
        cut = frontier.split(model, mode=mode)
        assert list(cut.boundary) == boundary
        assert np.array_equal(cut.suffix(cut.prefix(images)), answers)
