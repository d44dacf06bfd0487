import dataclasses
import math

import numpy as np
import pytest

from frostline import augment, device, freezing, heads, models, training
from frostline.datasets import Split
from frostline.errors import UserError
from frostline.studies import Augment, Backbone, EarlyStopping, Head, ReduceOnPlateau, Stage

SMALL = Backbone("small_cnn")
LINEAR = Head(pooling="average")


def network(head=LINEAR, seed=0):
    device.seed_everything(seed)
    return models.build(SMALL, head, "unit", 8, 2)


@pytest.fixture
def split(images):
    pixels, labels = images
    return Split(pixels[:, :8, :8], labels, [str(i) for i in range(40)])


def fit(net, split, *stages, **kwargs):
    kwargs = {"seed": 0, "xla": False} | kwargs
    return training.train(net, stages, split, split, **kwargs)


def test_history_has_one_entry_per_epoch_and_stage(split):
    seen = []
    head = Stage(train=("head/.*",), epochs=2, batch_size=8)
    stages = (head, Stage(epochs=1, batch_size=8, learning_rate=1e-4, optimizer="sgd"))
    trained = fit(network(), split, *stages, report=lambda **event: seen.append(event))
    assert [(h["stage"], h["epoch"]) for h in trained.history] == [(1, 1), (1, 2), (2, 1)]
    assert [h["learning_rate"] for h in trained.history] == pytest.approx([1e-3, 1e-3, 1e-4])
    assert len(seen) == 3 and seen[0]["epochs"] == 2 and seen[2]["stages"] == 2
    assert trained.masks[0].trainable_params < trained.masks[1].trainable_params
    numbers = ("loss", "top1", "validation_loss", "validation_top1", "learning_rate", "seconds")
    assert all(math.isfinite(h[key]) for h in trained.history for key in numbers)


def test_training_learns(split):
    net = network()
    fit(net, split, Stage(epochs=8, batch_size=8, learning_rate=1e-2))
    probabilities, top1, loss = training.evaluate(net, split)
    assert top1 > 0.9 and loss < 0.5 and np.allclose(probabilities.sum(axis=1), 1)


def test_a_binary_head_trains_and_is_scored_at_logit_zero(split):
    net = network(Head(activation="logit"))
    trained = fit(net, split, Stage(epochs=8, batch_size=8, learning_rate=1e-2))
    probabilities, top1, _ = training.evaluate(net, split)
    assert probabilities.shape == (40, 2) and top1 > 0.9
    assert trained.history[-1]["validation_top1"] == pytest.approx(top1)


def test_the_loss_is_what_keras_evaluates_penalties_included(split):
    net = network(Head(pooling="flatten", layers=(), l2=0.0))
    regular = network(Head(pooling="flatten", layers=(models.heads.HeadLayer("dense", 4),), l2=0.5))
    smoothed = network(Head(label_smoothing=0.2))
    binary = network(Head(activation="logit", label_smoothing=0.2))
    for each in (net, regular, smoothed, binary):
        fit(each, split, Stage(epochs=1))
        _, _, loss = training.evaluate(each, split)
        assert loss == pytest.approx(each.model.evaluate(split.images, split.labels, verbose=0)[0], rel=1e-4)


def test_the_loss_of_a_sure_and_wrong_answer_is_not_clipped():
    logits = np.array([[0.0, 40.0], [0.0, 40.0]], np.float32)
    assert heads.cross_entropy(logits, np.array([0, 1])) == pytest.approx([40.0, 0.0], abs=1e-6)
    assert heads.cross_entropy(logits[:, 1:], np.array([0, 1])) == pytest.approx([40.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "logit"])
def test_smoothed_labels_keep_the_network_from_being_sure(split, activation):
    def surest(smoothing):
        net = network(Head(activation=activation, label_smoothing=smoothing))
        fit(net, split, Stage(epochs=30, batch_size=8, learning_rate=1e-2))
        return training.evaluate(net, split)[0].max()

    assert surest(0.2) < 0.95 < surest(0.0)


def test_a_smoothed_label_is_partly_every_class():
    import keras

    from frostline.layers import SmoothedCrossentropy

    logits, labels = np.array([[0.0, 1.0, 3.0], [2.0, 0.0, 0.0]], np.float32), np.array([2, 1])
    one_hot = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.3)
    expected = float(one_hot(np.eye(3)[labels], logits))
    ours = SmoothedCrossentropy(0.3)
    again = keras.losses.deserialize(keras.losses.serialize(ours))
    assert [float(loss(labels, logits)) for loss in (ours, again)] == pytest.approx([expected] * 2)
    assert heads.cross_entropy(logits, labels, 0.3).mean() == pytest.approx(expected)


def test_the_same_seed_trains_to_the_same_weights_and_another_does_not(split):
    def weights(seed):
        net = network()
        fit(net, split, Stage(epochs=2, batch_size=16), seed=seed)
        return np.concatenate([w.ravel() for w in net.model.get_weights()])

    assert np.array_equal(weights(1), weights(1))
    assert not np.array_equal(weights(1), weights(2))


def test_every_image_is_shown_once_an_epoch_in_a_new_order():
    orders = [
        training.order(40, seed, stage, epoch) for seed, stage, epoch in [(0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0)]
    ]
    assert all(np.array_equal(np.sort(order), np.arange(40)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert np.array_equal(training.order(40, 0, 1, 1), orders[1])


def test_fit_shows_the_images_in_our_order(split):
    """Over two epochs and two stages, the last partial batch kept: Keras neither shuffles nor drops any."""
    import tensorflow as tf

    numbered = Split(np.zeros((40, 8, 8, 3), np.uint8) + np.arange(40, dtype=np.uint8)[:, None, None, None],
                     split.labels, split.keys)  # fmt: skip
    net, seen = network(), []
    step = net.model.train_step

    def watched(data):
        with tf.control_dependencies([tf.py_function(lambda x: seen.append(x.numpy()), [data[0][:, 0, 0, 0]], [])]):
            return step(data)

    net.model.train_step = watched
    fit(net, numbered, Stage(epochs=2, batch_size=16), Stage(epochs=1, batch_size=32), seed=5)
    assert [len(batch) for batch in seen] == [16, 16, 8] * 2 + [32, 8]
    expected = [training.order(40, 5, stage, epoch) for stage, epoch in [(1, 0), (1, 1), (2, 0)]]
    assert np.array_equal(np.concatenate(seen), np.concatenate(expected))


def test_each_epoch_shows_views_of_its_own_in_its_order(split):
    stage = Stage(augment=Augment("horizontal", rotation=0.1))
    views = augment.build(stage, split.images, seed=5, number=2, split_seed=0)
    batches = training._batches(training._Lesson(dataclasses.replace(stage, batch_size=16), 2, 5, split, None, views))
    for epoch in (0, 1):
        images, labels = (np.concatenate(x) for x in zip(*(next(batches) for _ in range(3)), strict=True))
        order = training.order(40, 5, 2, epoch)
        assert np.array_equal(labels, split.labels[order])
        assert np.array_equal(images, augment.show(views, augment.numbers(views, epoch))[order])


def test_a_loss_that_is_not_finite_ends_the_run(split):
    with pytest.raises(training.NotFinite, match="the loss became"):
        fit(network(), split, Stage(optimizer="sgd", learning_rate=1e38, epochs=3))


def test_early_stopping_reports_the_epoch_it_restored(split):
    stage = Stage(epochs=6, learning_rate=0.5, optimizer="sgd", early_stopping=EarlyStopping(patience=1))
    net = network()
    trained = fit(net, split, stage)
    best = min(trained.history, key=lambda h: h["validation_loss"])
    assert trained.restored_epochs == [best["epoch"]]
    assert training.evaluate(net, split)[2] == pytest.approx(best["validation_loss"], rel=1e-3)


def test_a_plateau_lowers_the_learning_rate(split):
    rule = ReduceOnPlateau(factor=0.5, patience=1)
    trained = fit(network(), split, Stage(epochs=5, learning_rate=1e-12, reduce_on_plateau=rule))
    assert trained.history[-1]["learning_rate"] < trained.history[0]["learning_rate"]


def test_optimizers_are_those_of_keras():
    assert type(training.optimizer("rmsprop", 0.1)).__name__ == "RMSprop"
    with pytest.raises(UserError, match=r"unknown optimizer 'adamm'; did you mean 'adamw?'\?"):
        training.optimizer("adamm", 0.1)
    with pytest.raises(UserError, match="unknown optimizer 'multioptimizer'"):  # which takes others, and no rate
        training.optimizer("multioptimizer", 0.1)


def test_momentum_is_for_optimizers_that_have_it(split):
    assert float(training.optimizer("sgd", 0.1, 0.9).momentum) == 0.9 and training.optimizer("sgd", 0.1).momentum == 0.0
    with pytest.raises(UserError, match=r"adam takes no momentum; leave it out, or choose one of: .*rmsprop, sgd"):
        training.optimizer("adam", 0.1, 0.9)
    net = network()
    fit(net, split, Stage(epochs=1, optimizer="sgd", momentum=0.9))
    assert net.model.optimizer.momentum == 0.9


def test_xla_and_precision_are_recorded_as_effective(split):
    device.configure("mixed_bfloat16")
    try:
        trained = fit(network(), split, Stage(epochs=1), xla=True)
    finally:
        device.configure("float32")
    assert trained.effective == {"precision": "mixed_bfloat16", "xla": True, "device": device.kind()}


class Ticks:
    """A clock that is told how long the next thing takes."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_the_clock_keeps_compilation_apart():
    ticks = Ticks()
    clock = training.Clock(ticks)
    clock.epoch_begins()
    for seconds, compiles in [(10.0, True), (1.0, False), (1.0, False), (7.0, True)]:
        clock.step_begins()
        ticks.now += seconds
        clock.step_ends(compiles=compiles)
    assert clock.training_ends() == pytest.approx(4.0)  # two ordinary seconds for two steps, four steps in all
    clock.epoch_begins()
    for _ in range(4):
        clock.step_begins()
        ticks.now += 1.5
        clock.step_ends(compiles=False)
    ticks.now += 0.5  # draining the device
    assert clock.training_ends() == pytest.approx(6.5)
    assert clock.compiling == [10.0, 7.0] and clock.steps == [1.0, 1.0, 1.5, 1.5, 1.5, 1.5]


def test_an_epoch_of_nothing_but_compilation_has_no_time():
    ticks = Ticks()
    clock = training.Clock(ticks)
    clock.epoch_begins()
    clock.step_begins()
    ticks.now += 3.0
    clock.step_ends(compiles=True)
    assert math.isnan(clock.training_ends())


def test_validation_lies_outside_the_epoch(split, monkeypatch):
    ticks = Ticks()
    seen = []
    net = network()
    original = type(net.model).evaluate

    def slow(self, *args, **kwargs):
        answer = original(self, *args, **kwargs)
        ticks.now += 100.0
        return answer

    monkeypatch.setattr(type(net.model), "evaluate", slow)
    fit(net, split, Stage(epochs=2, batch_size=8), read=ticks, report=lambda **event: seen.append(event["seconds"]))
    assert ticks.now == 200.0 and seen == [0.0, 0.0]


def test_step_times_are_of_the_stage(split):
    net = network()
    freezing.apply(net.model, net.groups, Stage(train=("head/.*",)))
    times = training.time_steps(net, Stage(batch_size=4), xla=False)
    assert 0 < times.step_seconds < times.first_step_seconds
    runaway = training.time_steps(net, Stage(batch_size=4, optimizer="sgd", learning_rate=1e38), xla=False)
    assert runaway.step_seconds > 0
