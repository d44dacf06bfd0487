"""Which engine `auto` takes, by figures that the tests make up: seconds of a pass and of a step of each engine."""

import keras
import pytest
from keras import layers
from test_frontier import behind_dropout, head, residual, stem

from frostline import augment, cached, costs, models, prefix, training
from frostline.errors import UserError
from frostline.layers import BatchNormalization
from frostline.studies import Augment, Head, Stage

IMAGES = {"train": 1000, "validation": 100, "test": 400, "pass": 1500}
ROOMY = costs.Room(disk_bytes=2**40, memory_bytes=2**40)
BATCH = 10
IMAGE_BYTES = 6 * 6 * 4 * 4  # a tensor of `residual`


def network(build):
    keras.utils.set_random_seed(0)
    model = build()
    groups = {x.name: "head" for x in model.layers if not isinstance(x, layers.InputLayer)}
    return models.Network(model, model, groups, Head())


def stage(*names, **changes):
    rules = tuple(f"only:{name}" for name in names) or ("all",)
    return Stage(**{"train": rules, "batch_size": BATCH, "epochs": 5} | changes)


@pytest.fixture
def measured(monkeypatch):
    """Sets what is measured: seconds an image of the pass, a step of the suffix, a step of the whole; 1 s compiles."""
    counted = []

    def measure(*, image=0.01, suffix=0.001, plain=0.1):
        def seconds_per_image(cut, **how):
            counted.append(cut.boundary)
            return image

        monkeypatch.setattr(prefix, "seconds_per_image", seconds_per_image)
        monkeypatch.setattr(cached, "time_steps", lambda *args: (1.0, suffix))
        monkeypatch.setattr(training, "time_steps", lambda *args, **how: training.StepTimes(1.0, plain))
        return counted

    return measure


def find(net, *stages, asked="auto", images=IMAGES, room=ROOMY, known=None):
    return costs.stages(net, stages, images, asked, xla=False, room=room, known={} if known is None else known)


def handled(rate=costs.MEMORY_BYTES_PER_SECOND):
    """Seconds for storing the features of 1500 images and for reading those of 7000."""
    return 2 * IMAGE_BYTES * (1500 / costs.STORE_BYTES_PER_SECOND + 7000 / rate)


def test_features_are_taken_where_they_are_cheaper(measured):
    measured(image=0.01, suffix=0.01)
    (cost,) = find(network(residual), stage("conv_3", "output"))
    assert (cost.engine, cost.reason, cost.boundary) == ("cached", "cheaper", ("relu_1", "relu_2"))
    assert cost.features_bytes == 2 * IMAGE_BYTES * 1500 and cost.most_bytes is None
    # 1500 images pass once; 5000 are trained on and 2000 answered, each of these at a third of a step's share
    assert cost.seconds == pytest.approx(0.01 * 1500 + handled() + 1 + 0.001 * (5000 + 2000 / 3))
    assert cost.other_seconds == pytest.approx(0.01 * 7000 + 1 + 0.001 * (5000 + 2000 / 3))
    assert (cost.step_seconds, cost.first_step_seconds) == (0.01, 1.0)


def test_a_plain_stage_costs_its_steps_and_its_answers(measured):
    measured(plain=0.2)
    (cost,) = find(network(residual), stage())
    assert (cost.engine, cost.reason) == ("plain", "nothing below the frontier")
    assert cost.seconds == pytest.approx(1 + 0.02 * (5000 + 2000 / 3))
    assert cost.features_bytes is None and cost.other_seconds is None and cost.boundary == ()


def test_everything_is_answered_once_at_the_end_of_the_last_stage(measured):
    measured(plain=0.2)
    first, last = find(network(residual), stage(), stage(epochs=2))
    assert first.seconds == pytest.approx(1 + 0.02 * (5000 + 500 / 3))
    assert last.seconds == pytest.approx(1 + 0.02 * (2000 + 1700 / 3))


@pytest.mark.parametrize(("plain", "engine"), [(0.001, "plain"), (1.0, "cached")])
def test_the_plain_engine_is_measured_where_reading_is_dear(measured, plain, engine):
    """Mapped from a disk, a feature takes 1152 bytes at 200 MB/s; computing it takes less here."""
    measured(image=1e-6, suffix=0.001, plain=plain)
    room = costs.Room(disk_bytes=2**40, memory_bytes=0)
    (cost,) = find(network(residual), stage("conv_3", "output"), room=room)
    with_features = 1e-6 * 1500 + handled(costs.DISK_BYTES_PER_SECOND) + 1 + 0.0001 * (5000 + 2000 / 3)
    without = 1 + plain / BATCH * (5000 + 2000 / 3)
    assert cost.engine == engine
    assert (cost.seconds, cost.other_seconds) == pytest.approx(sorted([with_features, without]))
    if engine == "plain":
        assert cost.reason == "reading features would cost more than computing them"


def test_memory_counts_only_where_features_do_not_fit_it(measured):
    measured(image=0.01)
    needed = 2 * IMAGE_BYTES * 1500
    told = [
        find(network(residual), stage("conv_3", "output"), room=costs.Room(2**40, memory))[0].seconds
        for memory in (needed, needed - 1)
    ]
    assert told[1] - told[0] == pytest.approx(handled(costs.DISK_BYTES_PER_SECOND) - handled())


def test_a_lower_cut_is_taken_where_the_disk_has_no_room_for_the_higher(measured):
    measured()
    room = costs.Room(disk_bytes=2 * IMAGE_BYTES * 1500 - 1, memory_bytes=2**40)
    (cost,) = find(network(residual), stage("conv_3", "output"), room=room)
    assert cost.engine == "cached" and cost.boundary == ("relu_1",) and cost.features_bytes == IMAGE_BYTES * 1500
    assert cost.most_bytes == 2 * IMAGE_BYTES - 1
    assert cost.reason.startswith("cut lower: its features take 1.6 MiB, and there is room for 1.6 MiB")


def test_plain_where_no_cut_fits_the_disk(measured):
    measured()
    room = costs.Room(disk_bytes=1500, memory_bytes=2**40)
    (cost,) = find(network(residual), stage("conv_3", "output"), room=room)
    assert (cost.engine, cost.most_bytes) == ("plain", None)
    assert cost.reason == "its features take 1.6 MiB, and there is room for 0.0 MiB"


@pytest.mark.parametrize("changes", [{}, {"frontier": "inference_prefix"}])
def test_features_that_are_asked_for_need_room(measured, changes):
    measured()
    asked = "auto" if changes else "cached"
    with pytest.raises(UserError, match=r"features take 1\.6 MiB, and there is room for 0\.0 MiB; type --engine plain"):
        find(network(residual), stage("conv_3", "output", **changes), asked=asked, room=costs.Room(1500, 2**40))


def test_the_engine_that_is_asked_for_is_taken(measured):
    measured(image=0.01, plain=0.001)
    (plain,) = find(network(residual), stage("output"), asked="plain")
    assert (plain.engine, plain.reason) == ("plain", "asked for")
    room = costs.Room(disk_bytes=2**40, memory_bytes=0)
    measured(image=1e-9, plain=1e-9)
    (dear,) = find(network(residual), stage("output"), asked="cached", room=room)
    assert (dear.engine, dear.reason) == ("cached", "asked for")
    assert find(network(residual), stage("output"), room=room)[0].engine == "plain"


def test_a_frontier_that_leaves_out_dropout_is_taken_whatever_it_costs(measured):
    measured(image=1e-9, plain=1e-9)
    room = costs.Room(disk_bytes=2**40, memory_bytes=0)
    (cost,) = find(network(behind_dropout), stage("output", frontier="inference_prefix"), room=room)
    assert (cost.engine, cost.boundary) == ("cached", ("relu",))


def norm_inside():
    images, x = stem()
    x = BatchNormalization(name="bn")(layers.Conv2D(4, 3, name="conv")(x))
    return keras.Model(images, head(layers.Conv2D(4, 3, name="conv_2")(x)), name="network")


EARLIER = {
    "nothing below": (["output"], ["conv_2", "output"], "cached"),
    "a kernel": (["conv_2", "output"], ["output"], "plain"),
    "batch norm": (["bn", "output"], ["output"], "plain"),
    "what lies above later": (["conv_2"], ["conv_2", "output"], "cached"),
}


@pytest.mark.parametrize(("first", "second", "engine"), EARLIER.values(), ids=EARLIER)
@pytest.mark.parametrize("asked", ["auto", "cached"])
def test_features_of_what_an_earlier_stage_trains_cannot_be_known(first, second, engine, asked, measured):
    measured()
    found = find(network(norm_inside), stage(*first), stage(*second), asked=asked)
    assert [cost.engine for cost in found] == ["cached", engine]
    if engine == "plain":
        assert found[1].reason == "an earlier stage trains below the frontier"


def test_a_frontier_that_leaves_out_dropout_takes_features_or_nothing(measured):
    measured()
    stages = stage("conv_2", "output"), stage("output", frontier="inference_prefix")
    with pytest.raises(
        UserError, match="needs a frozen part that no earlier stage trains, and one trains conv_2; give"
    ):
        find(network(norm_inside), *stages)


def test_a_stage_that_does_not_train_what_lies_below_forgets_no_earlier_one(measured):
    measured()
    found = find(network(norm_inside), stage("conv"), stage("conv_2", "output"), stage("output"))
    assert [cost.engine for cost in found] == ["plain", "plain", "plain"]


def called_twice():
    """A network whose frozen part ends in a layer that is called twice."""
    images, relu = keras.Input((8, 8, 3), dtype="uint8", name="images"), layers.ReLU(name="relu")
    x = relu(layers.Conv2D(4, 3, name="conv_1")(layers.Rescaling(1 / 255, name="scaling")(images)))
    x = relu(layers.Conv2D(4, 3, name="conv_2")(x))
    return keras.Model(images, layers.Dense(2, name="output")(layers.Flatten(name="flat")(x)))


def test_features_that_could_not_be_checked_are_not_taken(measured):
    measured(image=0.01, suffix=0.01)
    net, told = network(called_twice), "features at relu, which is called more than once, cannot be checked"
    above = stage("conv_2", "output")
    (cost,) = find(net, above)
    assert (cost.engine, cost.reason) == ("plain", told)
    for asked, changes in (("cached", {}), ("auto", {"frontier": "inference_prefix"})):
        with pytest.raises(UserError, match=f"{told}; give --engine plain"):
            find(net, stage("conv_2", "output", **changes), asked=asked)


def test_the_same_prefix_is_timed_once(measured):
    counted, known = measured(), {}
    find(network(residual), stage("output"), stage("output"), known=known)
    find(network(residual), stage("output"), stage("conv_3", "output"), known=known)
    assert counted == [("pooling",), ("relu_1", "relu_2")] and set(known) == set(counted)


def cifar100():
    """The first convolution of the CIFAR-100 study frozen; the little behind it stands for the rest."""
    images = keras.Input((32, 32, 3), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 255, name="scaling")(images)
    x = layers.Conv2D(128, 3, padding="same", activation="relu", name="conv_1")(x)
    return keras.Model(images, head(layers.Conv2D(2, 3, strides=8, name="conv_2")(x)), name="network")


@pytest.mark.parametrize("memory", [0, 8 * 2**30, 2**40])
def test_one_convolution_of_large_output_is_not_worth_storing(memory, measured):
    """0.5 MB an image, 29 GiB in all, on a machine that computes the convolution in 0.2 ms an image."""
    measured(image=2e-4, suffix=0.2, plain=0.21)
    images = {"train": 50_000, "validation": 5_000, "test": 10_000, "pass": 65_000}
    rules = stage("conv_2", "output", batch_size=128, epochs=30)
    (cost,) = find(network(cifar100), rules, images=images, room=costs.Room(2**40, memory))
    assert (cost.engine, cost.reason) == ("plain", "reading features would cost more than computing them")
    assert cost.other_seconds > cost.seconds


# -- augmented images ------------------------------------------------------------------------------


@pytest.fixture
def shown(measured, monkeypatch):
    measured(image=0.01, suffix=0.001, plain=0.3)
    monkeypatch.setattr(augment, "seconds_per_image", lambda settings, size: 0.002)


def test_new_views_pass_in_every_epoch(shown):
    (cost,) = find(network(residual), stage("conv_3", "output", augment=Augment("both")))
    # as ever, and 5000 views are made and pass; only the answers are read
    reading = 2 * IMAGE_BYTES * (1500 / costs.STORE_BYTES_PER_SECOND + 2000 / costs.MEMORY_BYTES_PER_SECOND)
    ours = 0.01 * (1500 + 5000) + 0.002 * 5000 + reading + 1 + 0.0001 * (5000 + 2000 / 3)
    assert (cost.engine, cost.seconds) == ("cached", pytest.approx(ours))
    assert cost.pass_seconds == pytest.approx(0.01 * 1500)
    assert cost.other_seconds == pytest.approx(1 + 0.03 * (5000 + 2000 / 3))  # measured, for it might be less


def test_the_plain_engine_is_taken_where_new_views_cost_more(measured, monkeypatch):
    measured(image=0.01, plain=0.01)
    monkeypatch.setattr(augment, "seconds_per_image", lambda settings, size: 0.002)
    (cost,) = find(network(residual), stage("conv_3", "output", augment=Augment("both")))
    assert (cost.engine, cost.reason) == ("plain", "new views in every epoch leave little")


def test_fixed_views_pass_once_and_take_room(shown):
    four = stage("conv_3", "output", augment=Augment("both"), augment_views=4)
    (cost,) = find(network(residual), four)
    stored = 1500 + 4 * 1000
    handling = 2 * IMAGE_BYTES * (stored / costs.STORE_BYTES_PER_SECOND + 7000 / costs.MEMORY_BYTES_PER_SECOND)
    ours = 0.01 * stored + 0.002 * 4000 + handling + 1 + 0.0001 * (5000 + 2000 / 3)
    assert (cost.engine, cost.seconds, cost.pass_seconds) == ("cached", pytest.approx(ours), 0.01 * stored)
    room = costs.Room(disk_bytes=2 * IMAGE_BYTES * stored - 1, memory_bytes=2**40)
    with pytest.raises(UserError, match=r"its features take 6\.0 MiB, and there is room for 6.0 MiB"):
        find(network(residual), four, room=room, asked="cached")


def test_without_timing_features_are_taken_wherever_a_part_is_frozen(measured):
    net = network(residual)
    counted = measured()
    costs_ = costs.stages(net, (stage("conv_3", "output"), stage()), IMAGES, "auto", xla=False, room=ROOMY, known=None)
    assert [(c.engine, c.reason) for c in costs_] == [("cached", "not timed"), ("plain", "nothing below the frontier")]
    assert costs_[0].boundary == ("relu_1", "relu_2") and costs_[0].features_bytes == 2 * IMAGE_BYTES * 1500
    assert {c.seconds for c in costs_} == {None} and not counted


def test_without_timing_features_need_their_room_all_the_same():
    room = costs.Room(disk_bytes=1500, memory_bytes=2**40)
    (cost,) = costs.stages(
        network(residual), (stage("conv_3", "output"),), IMAGES, "auto", xla=False, room=room, known=None
    )
    assert cost.engine == "plain" and cost.seconds is None


def test_what_a_stage_shows_is_its_epochs_and_a_third_of_what_is_answered():
    images = {"train": 100, "validation": 30, "test": 60}
    assert costs.shown((stage(epochs=5), stage(epochs=1)), images) == pytest.approx(600 + 6 * 10 + 190 / 3)
