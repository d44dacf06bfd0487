"""The cached engine trains what Keras's `fit` trains: the same weights, the same figures, the same decisions."""

import dataclasses
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from test_frontier import behind_dropout, head_only, mask, nested, norm_above, pixels, residual, stem

from frostline import augment, cached, device, freezing, frontier, heads, models, prefix, training
from frostline.datasets import Split
from frostline.layers import BatchNormalization, Dropout
from frostline.studies import Augment, Backbone, EarlyStopping, Head, ReduceOnPlateau, Stage


def split(count, seed=0):
    """Images whose brightness tells one of three classes from the others; no batch of 8 divides the 20 or the 7."""
    labels = np.random.default_rng(seed).integers(0, 3, count, dtype=np.int32)
    return Split((pixels(count) // (1 + labels % 2)[:, None, None, None]).astype(np.uint8), labels, [])


TRAIN, VALIDATION = split(20), split(7, seed=1)


def network(build, head=Head()):  # noqa: B008  a frozen dataclass
    keras.utils.set_random_seed(0)
    model = build()
    groups = {x.name: "head" for x in model.layers if not isinstance(x, layers.InputLayer)}
    return models.Network(model, model, groups, head)


def stage(*names, **changes):
    rules = tuple(f"only:{name}" for name in names)
    return Stage(
        **{"train": rules, "optimizer": "rmsprop", "learning_rate": 1e-2, "batch_size": 8, "epochs": 2} | changes
    )


def compute(cut):
    """Features of both splits, by the cut itself."""
    images = {"train": TRAIN.images, "validation": VALIDATION.images}
    return {name: tuple(x.numpy() for x in keras.tree.flatten(cut.prefix(x))) for name, x in images.items()}


def train(build, *stages, engines=("cached",), validation=VALIDATION, source=compute, xla=False, **kwargs):
    """A network after training, and what training told."""
    net = network(build, kwargs.pop("head", Head()))
    chosen = [training.Engine(name) for name in engines]
    return net, training.train(net, stages, TRAIN, validation, seed=3, xla=xla, engines=chosen, source=source, **kwargs)


def furthest(a, b):
    """The largest relative distance of two networks' weights, tensor by tensor."""
    pairs = zip(a.model.weights, b.model.weights, strict=True)
    return max(float(np.linalg.norm(x - y) / (np.linalg.norm(x) or 1.0)) for x, y in pairs)


def figures(entry):
    """What an entry of the history says, the time aside; nothing measured is -1."""
    return {name: -1 if value is None else value for name, value in entry.items() if name != "seconds"}


def assert_alike(plain, ours, tolerance=1e-4):
    """The same weights, history, proof of freezing and decisions."""
    (net_a, told_a), (net_b, told_b) = plain, ours
    assert furthest(net_a, net_b) < tolerance
    for a, b in zip(told_a.history, told_b.history, strict=True):
        assert figures(a) == pytest.approx(figures(b), rel=10 * tolerance, abs=tolerance)
    for name in ("masks", "proofs", "effective", "restored_epochs"):
        assert getattr(told_a, name) == getattr(told_b, name)


def both(build, *stages, engines=("cached",), **kwargs):
    """The same training by the plain engine and by the engines named, found alike."""
    tolerance = kwargs.pop("tolerance", 1e-4)
    plain = train(build, *stages, engines=["plain"] * len(stages), **kwargs)
    ours = train(build, *stages, engines=engines, **kwargs)
    assert_alike(plain, ours, tolerance)
    return plain, ours


@pytest.fixture(autouse=True)
def nothing_kept():
    """Programs that other tests compiled."""
    cached._kept.clear()


def test_a_stage_that_resets_begins_with_the_weights_it_is_given():
    still = stage("output", learning_rate=1e-9, epochs=1)
    first = network(residual).model.get_layer("output").get_weights()
    given = [values + 1.0 for values in first]
    stages, engines = (stage("output"), still), ["cached", "cached"]
    _, (net, told) = both(residual, *stages, engines=engines, fresh=[{}, {"output": given}])
    for weights, wanted in zip(net.model.get_layer("output").get_weights(), given, strict=True):
        np.testing.assert_allclose(weights, wanted, atol=1e-5)
    assert told.cuts[1] is not None


# -- the same weights ------------------------------------------------------------------------------

# (network, its stages, the engine of each)
CASES = {
    "head only": (head_only, [stage("output", optimizer="sgd")], ["cached"]),
    "last block of a residual network": (
        residual,
        [stage("conv_2", "conv_3", "output", optimizer="adam")],
        ["cached"],
    ),
    "two dense layers behind a dropout": (behind_dropout, [stage("dense", "output")], ["cached"]),
    "batch norm that learns its statistics": (norm_above, [stage("bn", "output", optimizer="adamw")], ["cached"]),
    "batch norm in inference mode": (norm_above, [stage("bn", "output", batch_norm="inference")], ["cached"]),
    "a frontier of two tensors": (residual, [stage("conv_3", "output", optimizer="nadam")], ["cached"]),
    "a nested backbone in a sequential": (nested, [stage("output")], ["cached"]),
    "two stages, the first cached": (
        residual,
        [stage("output"), stage("conv_2", "conv_3", "output", optimizer="sgd", epochs=1)],
        ["cached", "plain"],
    ),
}


@pytest.mark.parametrize(("build", "stages", "engines"), CASES.values(), ids=CASES)
def test_training_on_features_is_training_the_network(build, stages, engines):
    _, (net, told) = both(build, *stages, engines=engines)
    assert furthest(network(build), net) > 1e-2
    assert ["cached" if cut else "plain" for cut in told.cuts] == engines
    assert told.proofs[0]["frozen_layers"] > 0


def test_a_frontier_that_leaves_out_dropout_trains_the_network_without_it():
    def without():
        model = behind_dropout()
        model.get_layer("dropout").rate = 0.0
        return model

    above = stage("output", frontier="inference_prefix")
    ours = train(behind_dropout, above)
    assert ours[1].cuts[0].boundary == ("relu",)
    assert_alike(train(without, above, engines=["plain"]), ours)
    assert furthest(train(behind_dropout, stage("output"))[0], ours[0]) > 1e-3


def test_smoothed_labels_and_momentum():
    nets = both(head_only, stage("output", optimizer="sgd", momentum=0.9), head=Head(label_smoothing=0.2))
    for net, told in nets:
        assert told.history[-1]["validation_loss"] == pytest.approx(training.evaluate(net, VALIDATION)[2], rel=1e-4)
    assert furthest(nets[1][0], train(head_only, stage("output", optimizer="sgd", momentum=0.9))[0]) > 1e-3
    assert (
        furthest(nets[1][0], train(head_only, stage("output", optimizer="sgd"), head=Head(label_smoothing=0.2))[0])
        > 1e-3
    )


def test_penalties_below_the_frontier_and_above_it():
    def penalized():
        return models.build(Backbone("small_cnn", l2=0.05), Head(), "unit", 8, 3).model

    nets = both(penalized, stage("conv_2", "output"))
    for net, told in nets:
        (cut,) = told.cuts
        seen = [training.evaluate(net, TRAIN)]
        if cut:
            assert cut.below[-1] == "relu_1"
            seen.append(training.evaluate(net, TRAIN, cut.suffix, told.features["train"]))
        penalty = 0.05 * float(np.square(net.model.get_layer("conv_2").kernel).sum())
        entropy = heads.cross_entropy(net.model.predict(TRAIN.images, verbose=0), TRAIN.labels).mean()
        assert penalty > 0.05
        assert [loss for _, _, loss in seen] == pytest.approx([entropy + penalty] * len(seen), rel=1e-4)


def test_compiled_by_xla():
    _, (_, told) = both(behind_dropout, stage("dense", "output"), xla=True)
    assert told.effective["xla"] is True


def test_a_single_logit_without_validation_on_a_clock():
    def binary():
        images, x = stem()
        x = layers.GlobalAveragePooling2D(name="pooling")(layers.Conv2D(4, 3, name="conv")(x))
        return keras.Model(images, layers.Dense(1, name="output")(x), name="network")

    ticks = itertools.count()
    one = stage("output", optimizer="sgd")
    _, (_, told) = both(binary, one, validation=None, read=lambda: float(next(ticks)))
    assert [entry["validation_loss"] for entry in told.history] == [None, None]
    assert (told.first_step_seconds, told.epoch_seconds, told.step_seconds) == (1.0, 1.0, pytest.approx(1 / 3))


def test_one_altered_feature_shows_in_the_weights():
    def altered(cut):
        features = compute(cut)
        features["train"][0].flat[0] += 0.5
        return features

    right = train(head_only, stage("output"), validation=None)
    wrong = train(head_only, stage("output"), validation=None, source=altered)
    assert furthest(right[0], wrong[0]) > 1e-3


# -- augmented images --------------------------------------------------------------------------------

TURNED = Augment("horizontal", rotation=0.1, zoom=0.2, brightness=0.1)


def view_source(cut, views):
    """Features of views by the cut itself: in each epoch, or of all views once."""

    def features(images):
        return tuple(x.numpy() for x in keras.tree.flatten(cut.prefix(images)))

    if views.count is None:
        return lambda numbers: features(augment.show(views, numbers))
    every = augment.every(views)
    stored = features(every[0 : len(every)])
    return lambda numbers: tuple(a[numbers] for a in stored)


@pytest.mark.parametrize("views", [None, 3])
@pytest.mark.parametrize(("build", "names"), [(head_only, ["output"]), (residual, ["conv_3", "output"])])
def test_training_on_features_of_views_is_training_the_network_on_views(build, names, views, monkeypatch):
    monkeypatch.setattr(cached, "BLOCK_BYTES", 2 * 8 * 6 * 6 * 4 * 4)  # blocks of a batch or two
    turned = stage(*names, augment=TURNED, augment_views=views)
    (_, plain), (net, told) = both(build, turned, view_source=view_source)
    straight, without = train(build, stage(*names))
    assert furthest(straight, net) > 1e-3
    assert plain.augment_seconds > 0 and without.augment_seconds is None and told.cuts[0] is not None
    assert [type(x) for x in net.model.layers] == [type(x) for x in network(build).model.layers]


def test_stages_draw_apart_and_only_where_they_augment():
    turned, straight = stage("output", augment=TURNED, epochs=1), stage("output", epochs=1)
    once, twice = (
        both(head_only, turned, last, engines=["cached"] * 2, view_source=view_source)[1][0]
        for last in (straight, turned)
    )
    assert furthest(once, twice) > 1e-4


def test_an_epoch_of_views_is_one_forward_pass(monkeypatch):
    """By the program of the pass, which is given every training image once an epoch."""
    calls, original, nets = [], prefix._program, []

    def counted(model, xla):
        program = original(model, xla)

        def run(images):
            calls.append(len(images))
            return program(images)

        return run

    def build():
        nets.append(head_only())
        return nets[-1]

    def passing(cut, views):
        need = prefix.need(models.Network(nets[-1], None, {}, Head()), cut, {})
        _, forward = prefix.forward(need, TRAIN.images, len(TRAIN.images))
        calls.clear()  # of choosing it
        return lambda numbers: forward(augment.Shown(views, numbers))

    monkeypatch.setattr(prefix, "_program", counted)
    turned = stage("output", augment=TURNED, epochs=3)
    ours = train(build, turned, view_source=passing)
    assert calls == [16, 4] * 3  # the full batches and the last one
    assert_alike(train(head_only, turned, engines=["plain"]), ours)


def test_one_altered_view_shows_in_the_weights():
    def altered(cut, views):
        right = view_source(cut, views)
        return lambda numbers: tuple(a + (numbers == 5)[:, None] for a in right(numbers))

    turned = stage("output", augment=TURNED)
    right, wrong = (
        train(head_only, turned, validation=None, view_source=source)[0] for source in (view_source, altered)
    )
    assert furthest(right, wrong) > 1e-3


@pytest.mark.parametrize("engine", ["plain", "cached"])
def test_what_is_exported_knows_nothing_of_augmentation(engine):
    net, _ = train(head_only, stage("output", augment=TURNED), engines=[engine], view_source=view_source)
    traced = tf.function(models.standard(net.model)).get_concrete_function(TRAIN.images)
    ops = {op.type for op in traced.graph.get_operations()}
    assert "Conv2D" in ops and not [op for op in ops if "Random" in op or "Projective" in op or "Reverse" in op]


# -- the same decisions ----------------------------------------------------------------------------


def penalised():
    images, x = stem()
    x = layers.Flatten(name="flatten")(layers.Conv2D(4, 3, kernel_regularizer="l2", name="conv")(x))
    x = layers.Dense(5, kernel_regularizer=keras.regularizers.L2(0.1), name="dense")(x)
    return keras.Model(images, layers.Dense(3, name="output")(x), name="network")


def test_penalties_count_and_callbacks_decide_alike():
    overshooting = stage(
        "dense",
        "output",
        learning_rate=0.1,
        epochs=12,
        early_stopping=EarlyStopping(patience=3),
        reduce_on_plateau=ReduceOnPlateau(factor=0.5, patience=1),
    )
    _, (net, told) = both(penalised, overshooting)
    restored = told.restored_epochs[0]
    assert restored < len(told.history) < overshooting.epochs
    assert len({entry["learning_rate"] for entry in told.history}) > 1
    answer = training.evaluate(net, VALIDATION, told.cuts[0].suffix, told.features["validation"])
    assert float(sum(net.model.losses)) > 0.01
    assert answer[2] == pytest.approx(told.history[restored - 1]["validation_loss"], rel=1e-4)


@pytest.mark.parametrize("engine", ["plain", "cached"])
def test_a_loss_that_is_not_finite_ends_the_run(engine):
    runaway = stage("output", optimizer="sgd", learning_rate=1e38, epochs=3)
    with pytest.raises(training.NotFinite, match="the loss became"):
        train(behind_dropout, runaway, engines=[engine], validation=None)


def test_a_frozen_weight_below_that_moves_is_found():
    built = []

    def build():
        built.append(behind_dropout())
        return built[0]

    def meddle(**event):
        built[0].get_layer("conv").bias.assign_add([0.0, 0.0, 0.0, 1e-6])

    with pytest.raises(freezing.FrozenMoved, match=r"frozen weights moved while training: conv$"):
        train(build, stage("output"), validation=None, report=meddle)


# -- mixed precision -------------------------------------------------------------------------------


@pytest.fixture
def precision():
    yield device.configure
    device.configure("float32")


def raw():
    """Raw pixels behind a dense layer: gradients that float16 cannot hold once the loss is scaled by 2^15."""
    images = keras.Input((8, 8, 3), dtype="uint8", name="images")
    x = layers.Flatten(name="flatten")(layers.Rescaling(1.0, name="scaling")(images))
    x = layers.ReLU(name="relu")(layers.Dense(6, name="frozen")(x))
    x = layers.Dense(5, name="dense")(Dropout(0.2, name="dropout")(x))
    return keras.Model(images, layers.Dense(3, dtype="float32", name="output")(x), name="network")


def test_bfloat16(precision):
    precision("mixed_bfloat16")
    _, (_, told) = both(raw, stage("dense", "output", learning_rate=1e-3), tolerance=1e-2)
    assert told.cuts[0].feature_dtypes == ("bfloat16",) and told.effective["precision"] == "mixed_bfloat16"


def test_the_loss_is_scaled_alike_in_float16(precision):
    precision("mixed_float16")
    (net, _), (_, told) = both(raw, stage("dense", "output", learning_rate=1e-3), tolerance=1e-2)
    a, b = net.model.optimizer, told.cuts[0].suffix.optimizer
    assert float(a.dynamic_scale) == float(b.dynamic_scale) < 2.0**15  # halved by each step that was left out
    assert int(a.inner_optimizer.iterations) == int(b.inner_optimizer.iterations) < 6


# -- features in memory, in a file, in blocks ------------------------------------------------------

SMALL_BATCHES = stage("conv_3", "output", batch_size=3)  # six batches and two images
BATCH_BYTES = 3 * 2 * 6 * 6 * 4 * 4


@pytest.fixture(scope="module")
def in_one_block():
    return train(residual, SMALL_BATCHES)


@pytest.mark.parametrize("batches", [0, 4])
def test_many_blocks_train_as_one(batches, in_one_block, monkeypatch):
    monkeypatch.setattr(cached, "BLOCK_BYTES", batches * BATCH_BYTES)
    assert_alike(in_one_block, train(residual, SMALL_BATCHES), tolerance=1e-6)


def test_a_mapped_file_trains_as_memory_does(in_one_block, tmp_path):
    def mapped(cut):
        found = {}
        for name, arrays in compute(cut).items():
            paths = [tmp_path / f"{name}.{i}.npy" for i in range(len(arrays))]
            for path, array in zip(paths, arrays, strict=True):
                np.save(path, array)
            found[name] = tuple(np.load(path, mmap_mode="r") for path in paths)
        return found

    assert_alike(in_one_block, train(residual, SMALL_BATCHES, source=mapped), tolerance=1e-6)


def test_an_epoch_is_cut_into_blocks(monkeypatch):
    features = (np.zeros((20, 4), np.float32), np.zeros((20, 2), np.float32))
    monkeypatch.setattr(cached, "BLOCK_BYTES", 4 * 3 * 24)
    shapes = cached._blocks(features, 20, 3)
    assert shapes == {(4, 3): 6, (1, 2): 1}
    assert list(cached._plan(shapes)) == [(slice(0, 12), (4, 3)), (slice(12, 18), (4, 3)), (slice(18, 20), (1, 2))]
    assert cached._blocks(features, 2, 3) == {(1, 2): 1} and cached._blocks(features, 6, 3) == {(2, 3): 2}


# -- a program for several runs --------------------------------------------------------------------


def dropout_head():
    images, x = stem()
    x = layers.GlobalAveragePooling2D(name="pooling")(layers.Conv2D(4, 3, name="conv")(x))
    x = BatchNormalization(name="bn")(Dropout(0.5, name="dropout")(layers.Dense(8, name="dense")(x)))
    return keras.Model(images, layers.Dense(3, name="output")(x), name="network")


HEAD = stage("dense", "bn", "output", optimizer="adam", epochs=3, early_stopping=EarlyStopping(1))


def train_seed(seed, one=HEAD, **kwargs):
    net = network(dropout_head)
    keras.utils.set_random_seed(seed)
    for layer in net.model.layers:  # what a seed changes: the first weights, and the state of random numbers
        layer.set_weights([np.random.normal(0.2, 0.3, w.shape) ** 2 for w in layer.get_weights()])
    net.model.get_layer("dropout").seed_generator.state.assign([seed, 0])
    return net, training.train(
        net,
        (one,),
        TRAIN,
        VALIDATION,
        seed=seed,
        xla=False,
        engines=[training.Engine("cached")],
        source=compute,
        **kwargs,
    )


def test_a_run_on_the_program_of_another_trains_as_if_alone():
    other = dataclasses.replace(HEAD, learning_rate=0.1)
    alone = [train_seed(1), (cached._kept.clear(), train_seed(2, other))[1]]
    cached._kept.clear()
    together = [train_seed(1), train_seed(2, other)]
    for a, b in zip(alone, together, strict=True):
        assert_alike(a, b, tolerance=1e-9)
    assert [told.spared_seconds > 0 for _, told in alone + together] == [False, False, False, True]
    assert together[1][1].first_step_seconds == together[0][1].first_step_seconds
    assert furthest(*(net for net, _ in together)) > 1e-2


@pytest.mark.parametrize(
    "change",
    [{"optimizer": "sgd"}, {"batch_size": 5}, {"train": ("only:output",)}, {"batch_norm": "inference"}],
    ids=lambda change: next(iter(change)),
)
def test_another_program_is_not_taken(change):
    train_seed(1)
    _, told = train_seed(1, dataclasses.replace(HEAD, **change))
    assert told.spared_seconds == 0 and len(cached._kept) == 2


def test_a_penalty_set_on_a_weight_is_another_program():
    train_seed(1)
    build = dropout_head

    def penalized():
        model = build()
        model.get_layer("dense").kernel.regularizer = keras.regularizers.L2(0.1)
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "dropout_head", penalized)
        _, told = train_seed(1)
    assert told.spared_seconds == 0 and len(cached._kept) == 2


def test_few_programs_are_kept(monkeypatch):
    monkeypatch.setattr(cached, "KEPT_PROGRAMS", 1)
    train_seed(1)
    train_seed(1, dataclasses.replace(HEAD, batch_size=5))
    assert len(cached._kept) == 1


# -- the suffix by itself --------------------------------------------------------------------------


@pytest.fixture
def parts():
    """A network cut at two tensors, its suffix compiled, and its training rows."""
    net = network(residual)
    mask(net.model, "conv_3", "output")
    cut = frontier.split(net.model)
    training.compile_model(cut.suffix, SMALL_BATCHES, xla=False)
    return net, cut.suffix, cached.Rows(compute(cut)["train"], TRAIN.labels)


def test_both_parts_predict_what_the_whole_predicts(parts):
    net, suffix, rows = parts
    logits = cached.predict(suffix, rows.features, batch_size=8)
    assert logits.dtype == np.float32
    assert np.allclose(logits, net.model(TRAIN.images), atol=1e-6)
    for a, b in zip(training.evaluate(net, TRAIN), training.evaluate(net, TRAIN, suffix, rows.features), strict=True):
        assert np.allclose(a, b, atol=1e-6)


def test_compiling_takes_no_step_and_comes_before_the_first(parts):
    net, suffix, rows = parts
    before = net.model.get_weights()
    ticks = itertools.count()
    settings = {"epochs": 0, "batch_size": 8, "evaluation_batch": 8, "callbacks": []}
    settings |= {"order": lambda epoch: np.arange(20), "read": lambda: float(next(ticks))}
    assert cached.fit(suffix, rows, rows, **settings) == (1.0, False)
    assert int(suffix.optimizer.iterations) == 0
    assert all(np.array_equal(a, b) for a, b in zip(before, net.model.get_weights(), strict=True))


def test_steps_are_timed_apart_from_compiling(parts):
    _, suffix, rows = parts
    ticks = iter([10.0, 13.0, 20.0, 20.0, 20.5, 21.5, 22.0])  # two blocks of five, then its second is over
    assert cached.time_steps(suffix, rows, 8, lambda: next(ticks)) == (3.0, 0.2)
    assert int(suffix.optimizer.iterations) == 10
