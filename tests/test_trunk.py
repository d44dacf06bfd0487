"""Runs that share a trunk train to what they train to alone, and say so."""

import contextlib
import itertools

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from frostline import cached, device, features, freezing, frontier, models, plan, records, studies, trunk
from frostline.jobs import common, group, sharing, store
from frostline.layers import Dropout
from frostline.plan import Options
from frostline.studies import Backbone, Stage

STUDY = """
title = "Two rows"
[data]
dataset = "digits"
classes = [5, 6]
[backbone]
name = "small_cnn"
weights = "none"
[train]
batch_size = 16
engine = "cached"
[[freeze]]
name = "output"
stages = [{ train = ["head/output"], epochs = 2 }, { train = ["head/.*"], epochs = 1 }]
[[freeze]]
name = "dense_output"
train = ["head/dense_2", "head/output"]
epochs = 3
"""
NO_TRUNK = """
[[freeze]]
name = "fully_connected"
train = ["head/.*"]
epochs = 1
"""


def runs(text, **options):
    """The runs of a study, on 40 images."""
    asked = Options(limit=40, **options)
    study = plan.resolve(studies.parse(text, "rows"), asked)
    return plan.runs(study, asked, lambda data: "digits", lambda path: "")


def setting(run):
    """What is in effect for a run on features."""
    count = len(run.freeze.stages)
    engines, estimate = [{"name": "cached", "most_bytes": None}] * count, [{"boundary": ["max_pool"]}] * count
    return {"xla": "off", "engines": engines, "estimate": estimate}


def train(folder, chosen, emit=lambda event, **facts: None, *, precision="float32"):
    """The records of a group of runs that a child trains, by configuration and seed."""
    job = {"runs": [plan.plain(run) for run in chosen], "settings": [setting(run) for run in chosen]}
    job |= {"precision": precision, "results": str(folder), "data_dir": None, "features_memory": None}
    job |= {"since": 0.0, "computed": []}
    before = len(records.read(folder)) if folder.exists() else 0
    folder.mkdir(exist_ok=True)
    group.run_here({**job, "process_start_seconds": 0.0}, emit)
    return {(r["freeze"], r["seed"]): r for r in records.read(folder)[before:]}


def weights(folder, record):
    """Every tensor that a run kept, by its path."""
    found = {}

    def keep(path, item):
        if isinstance(item, h5py.Dataset):
            found[path] = item[()]

    with h5py.File(records.weights_file(folder, record["run"])) as file:
        file.visititems(keep)
    return found


def assert_equal(a, b):
    """Weights bit by bit, and all that the records say of the training and its end."""
    (folder_a, one), (folder_b, other) = a, b
    assert (one["outcome"], other["outcome"]) == ("ok", "ok"), (one["reason"], other["reason"])
    left, right = weights(folder_a, one), weights(folder_b, other)
    assert left.keys() == right.keys() and len(left) > 8
    assert [path for path in left if not np.array_equal(left[path], right[path])] == []
    for x, y in zip(one["history"], other["history"], strict=True):
        assert {**x, "seconds": 0} == {**y, "seconds": 0}
    for name in ("stages", "test_top1", "test_loss", "train_loss", "validation_loss", "frontier", "engine"):
        assert one[name] == other[name], name


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Each row by itself: its records and where they are."""
    folder = tmp_path_factory.mktemp("alone")
    told = {}
    for run in runs(STUDY):
        told |= train(folder, [run])
        cached._kept.clear()
    return folder, told


def test_two_rows_share_a_trunk_and_train_as_if_alone(tmp_path, alone):
    """The first has a second stage that the dropout below trains, the second goes on where the first has stopped."""
    folder, by_itself = alone
    told = train(tmp_path, runs(STUDY))
    for name, record in told.items():
        assert by_itself[name]["trunk"] is None
        assert_equal((tmp_path, record), (folder, by_itself[name]))
    first, second = told["output", 0]["trunk"], told["dense_output", 0]["trunk"]
    assert (first["reused"], second["reused"]) == (False, True)
    assert first["boundary"] == ["dropout_1"] and first["runs"] == [r["run"] for r in told.values()]
    assert 0 <= first["difference"] < 1e-5 and 0 <= second["difference"] < 1e-5
    images = [told["output", 0][f"{name}_images"] for name in ("train", "validation", "test")]
    answers = 3 * images[0] + sum(images)
    assert first["bytes"] == second["bytes"] == 4 * 128 * answers
    assert told["dense_output", 0]["total_seconds"] > second["seconds"] > first["seconds"] > 0


def test_a_trunk_in_mixed_precision_is_held_to_what_it_says_of_its_features(tmp_path, precision):
    """Whatever the features' own rounding is, which has a proof of its own."""
    told = train(tmp_path, runs(STUDY, epochs=1), precision="mixed_bfloat16")
    for record in told.values():
        assert (record["outcome"], record["precision"]) == ("ok", "mixed_bfloat16")
        assert 1e-6 < record["features_difference"] < 2e-2 and 0 <= record["trunk"]["difference"] < 2**-6


ROWS = STUDY.replace(', { train = ["head/.*"], epochs = 1 }]', "]")
AGAIN = """
[[freeze]]
name = "again"
train = ["head/output"]
"""


def test_an_altered_answer_of_a_trunk_is_found_and_used_by_nobody_else(tmp_path, monkeypatch):
    original = trunk.share

    def altered(kept, *args, **kwargs):
        if kept:
            kept.shown[:] += 0.5
        return original(kept, *args, **kwargs)

    monkeypatch.setattr(trunk, "share", altered)
    told = train(tmp_path, runs(ROWS + AGAIN, epochs=1))
    assert [r["outcome"] for r in told.values()] == ["ok", "failed", "ok"]
    assert "features at dropout_1 differ" in told["dense_output", 0]["reason"]
    assert told["again", 0]["trunk"]["reused"] is False


def test_a_frozen_weight_of_a_trunk_that_moves_is_found(tmp_path, monkeypatch):
    built, original = [], common.build

    def build(run, dataset):
        built.append(original(run, dataset))
        return built[-1]

    def meddle(event, **facts):
        if event == "epoch" and len(built) == 2:
            built[-1].model.get_layer("dense_1").bias.assign_add([1e-6] * 128)

    monkeypatch.setattr(common, "build", build)
    told = train(tmp_path, runs(ROWS, epochs=1), emit=meddle)
    assert told["output", 0]["outcome"] == "ok"
    assert told["dense_output", 0]["reason"] == "FrozenMoved: frozen weights moved while training: dense_1"


# -- who shares ------------------------------------------------------------------------------------


def companies(text):
    """For each run of a study how many may share its trunk."""
    chosen = [(run, setting(run)) for run in runs(text)]
    found = sharing.companies(chosen)
    return [len(found[run.id]) for run, _ in chosen]


def test_rows_of_a_seed_keep_company_whatever_they_train_and_learn_at():
    assert companies(ROWS + AGAIN + "learning_rate = 0.1\nepochs = 7\n") == [3, 3, 3]
    assert companies(ROWS.replace("[data]", "seeds = [0, 1]\n[data]", 1)) == [2] * 4


@pytest.mark.parametrize(
    "other",
    [
        "batch_size = 8",
        "seeds = [1]",
        "head = { layers = [{ dense = 8 }, { dropout = 0.2 }, { dense = 8 }] }",
        'batch_norm = "inference"',
        'augment = { flip = "horizontal" }',
        'scaling = "unit"',
    ],
)
def test_other_steps_are_no_company(other):
    assert companies(STUDY + other) == [1, 1]


def test_companies_of_equal_networks_and_other_epochs_have_a_trunk_each(tmp_path):
    head = "head = {{ pooling = 'flatten', layers = [{{ dense = 8 }}, {{ dropout = 0.2 }}, {{ dense = 8 }}] {} }}"
    rows = [
        f'[[freeze]]\nname = "{name}_{epochs}"\n{head.format(smooth)}\ntrain = {train}\nepochs = {epochs}\n'
        for name, train in (("output", '["head/output"]'), ("dense", '["head/dense_2", "head/output"]'))
        for epochs, smooth in ((1, ""), (2, ", label_smoothing = 0.1"))
    ]
    told = train(tmp_path / "r", runs(STUDY.partition("[[freeze]]")[0] + "".join(rows)))
    assert {r["outcome"] for r in told.values()} == {"ok"}, [r["reason"] for r in told.values()]
    assert [r["trunk"]["reused"] for r in told.values()] == [False, False, True, True]


def test_what_the_plain_engine_trains_and_what_was_not_estimated_is_alone():
    chosen = [(run, setting(run)) for run in runs(ROWS)]
    plain = [(run, {**told, "engines": [{"name": "plain", "most_bytes": None}]}) for run, told in chosen]
    unknown = [(run, {**told, "estimate": None}) for run, told in chosen]
    for several in (plain, unknown):
        assert [len(found) for found in sharing.companies(several).values()] == [1, 1]


@pytest.mark.parametrize(
    ("train", "boundary", "names"),
    [
        (["output", "dense_output"], "dropout_1", ["output", "dense_output"]),
        (["output", "again"], "dropout_2", ["output", "again"]),
        (["output", "dense_output", "fully_connected"], "dropout_1", ["output", "dense_output"]),
        (["output", "fully_connected"], None, ["output"]),
        (["output"], None, []),
    ],
)
def test_the_trunk_of_a_company_is_what_none_of_it_trains(train, boundary, names):
    company = [run for run in runs(ROWS + AGAIN + NO_TRUNK) if run.freeze.name in train]
    network, above = suffix("head/output")
    found, cut = sharing._trunk_of(network, above, company)
    assert [run.freeze.name for run in found] == names
    assert (cut and cut.boundary) == (boundary and (boundary,))


def test_a_trunk_needs_memory_beside_the_features():
    with contextlib.ExitStack() as opened:
        shelf = store.Shelf(opened, 1000)
        shelf.books = {key: book(300) for key in ("in hand", "other")}
        kept = trunk.Kept(np.zeros(100, np.uint8), [])
        chosen = runs(ROWS)
        shelf.trunks["key"] = (kept, chosen)
        assert shelf.held() == 700 and shelf.has_room(300, ["in hand"]) and len(shelf.books) == 2
        assert shelf.has_room(600, ["in hand"]) and list(shelf.books) == ["in hand"]
        assert not shelf.has_room(601, ["in hand"]) and list(shelf.books) == ["in hand"]
        shelf.drop_trunks({chosen[1].id})
        assert shelf.trunks
        shelf.drop_trunks({"another"})
        assert not shelf.trunks


def book(nbytes):
    """Features in memory."""
    arrays = {"train": (np.zeros(nbytes, np.uint8),)}
    return features.Features(arrays, {}, in_memory=True, held=contextlib.ExitStack())


# -- what counts as a trunk ------------------------------------------------------------------------


def suffix(*train):
    network = models.build(Backbone("small_cnn"), None, "unit", 8, 3)
    freezing.apply(network.model, network.groups, Stage(train=train))
    return network, frontier.split(network.model).suffix


@pytest.mark.parametrize(
    ("train", "boundary"),
    [(("head/output",), "dropout_2"), (("head/dense_2", "head/output"), "dropout_1"), (("head/.*",), None)],
)
def test_a_trunk_ends_where_something_trains(train, boundary):
    _, above = suffix(*train)
    found = frontier.trunk(above)
    assert (found and found.boundary) == (boundary and (boundary,))


def above_convolution(noise):
    images = keras.Input((8, 8, 3), name="images")
    x = noise(layers.Conv2D(4, 3, name="conv")(images))
    x = noise(layers.Flatten(name="flatten")(x)) if isinstance(noise, Twice) else layers.Flatten(name="flatten")(x)
    x = layers.Dense(5, name="dense")(x)
    model = keras.Model(images, layers.Dense(3, name="output")(x), name="network")
    for layer in model.layers:
        layer.trainable = layer.name == "output"
    return frontier.split(model).suffix


class Twice(Dropout):
    """A layer of ours that is called at two places: how often it was called tells no step."""


@pytest.mark.parametrize(
    ("noise", "boundary"),
    [
        (Dropout(0.2, name="noise"), ("dense",)),
        (Twice(0.2, name="noise"), None),
        (Dropout(0.2, name="noise", activity_regularizer="l2"), None),
        (layers.Dropout(0.2, name="noise"), None),
        (layers.GaussianNoise(0.2, name="noise"), None),
    ],
    ids=["ours", "called twice", "penalised", "of Keras", "other noise"],
)
def test_only_dropout_of_ours_that_is_called_once_may_draw(noise, boundary):
    found = frontier.trunk(above_convolution(noise))
    assert (found and found.boundary) == boundary


@pytest.fixture
def precision():
    yield device.configure
    device.configure("float32")


@pytest.mark.parametrize(("name", "xla"), [("float32", False), ("float32", True), ("mixed_bfloat16", False)])
def test_answers_of_a_trunk_are_those_of_the_suffix_step_by_step(precision, name, xla):
    precision(name)
    network, above = suffix("head/output")
    cut = frontier.trunk(above)
    rows = np.random.default_rng(0).random((10, *above.input_shape[1:]), np.float32)
    arrays = {"train": (np.asarray(keras.ops.cast(rows, above.input_dtype)),)}
    labels, orders = np.arange(10), [np.random.default_rng(epoch).permutation(10) for epoch in range(2)]
    states = [x.seed_generator.state for x in network.model.layers if isinstance(x, Dropout)]
    ticks = itertools.count()
    settings = {"epochs": 2, "batch_size": 4, "xla": xla, "read": lambda: float(next(ticks))}
    one, kept = trunk.share(None, cut, arrays, labels, **settings)
    assert [one.show(epoch, order) for epoch, order in enumerate(orders)] == [0.0, 0.0]
    one.finish(1)
    assert [int(state[1]) for state in states] == [3, 3, 3]  # batches of 4, 4 and 2
    other, _ = trunk.share(kept, cut, arrays, labels, **settings)
    assert [other.show(epoch, order) for epoch, order in enumerate(orders)] == [1.0, 1.0]
    assert (one.spared_seconds, other.spared_seconds, one.compile_seconds, other.compile_seconds) == (0, 2.0, 1.0, 1.0)
    for state, value in zip(states, kept.states[0], strict=True):
        state.assign(value)
    for epoch, order in enumerate(orders):
        for batch in (order[:4], order[4:8], order[8:]):
            whole = above(arrays["train"][0][batch], training=True)
            (answers,) = other.of_epochs(10 * epoch + batch)
            assert np.allclose(whole, other.rest(answers, training=True), rtol=0, atol=TOLERANCE[name])


TOLERANCE = {"float32": 1e-5, "mixed_bfloat16": 3e-2}


def test_the_key_of_a_trunk_tells_weights_and_generators():
    network, above = suffix("head/output")
    cut = frontier.trunk(above)
    first = trunk.key(cut, {"seed": 0})
    assert first == trunk.key(frontier.trunk(above), {"seed": 0}) != trunk.key(cut, {"seed": 1})
    network.model.get_layer("output").bias.assign_add([1.0] * 3)  # above it
    assert trunk.key(cut, {"seed": 0}) == first
    network.model.get_layer("dense_1").bias.assign_add([1.0] * 128)
    second = trunk.key(cut, {"seed": 0})
    network.model.get_layer("dropout_1").seed_generator.next()
    assert len({first, second, trunk.key(cut, {"seed": 0})}) == 3
