"""The pass over the frozen part: which features are the same, that they are right, and that wrong ones are found."""

import contextlib
import dataclasses
import itertools
import os

import keras
import numpy as np
import pytest
from keras import layers
from test_frontier import head, head_only, mask, nested, pixels, residual, stem

from frostline import augment, device, features, frontier, im2col, models, plan, prefix, studies
from frostline.errors import UserError
from frostline.jobs import store
from frostline.studies import Augment, Head, Stage

DATA = {"data": {"dataset": "pixels"}, "fingerprint": "f", "limit": None}
SPLITS = {"train": pixels(70), "validation": pixels(5)[::-1]}


@pytest.fixture(autouse=True)
def _store(tmp_path, monkeypatch):
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path))
    monkeypatch.delenv("FROSTLINE_FEATURES_LIMIT", raising=False)


@pytest.fixture
def bfloat16():
    device.configure("mixed_bfloat16")
    yield
    device.configure("float32")


def network(build, *trained):
    keras.utils.set_random_seed(0)
    model = mask(build(), *trained)
    return models.Network(model, model, {}, Head())


def needed(net, *, data=DATA, **how):
    return prefix.need(net, frontier.split(net.model, **how), data)


def compute(*needs, **kwargs):
    return prefix.compute(needs, SPLITS, **{"about": {"study": "tiny"}} | kwargs)


def stored(need):
    with features.load(need.key, memory_bytes=2**30) as book:
        return book.arrays


def expected(net, names, split="train"):
    """What the whole network says at some layers."""
    outputs = [net.model.get_layer(name).output for name in names]
    answers = keras.Model(net.model.input, outputs)(SPLITS[split], training=False)
    return [np.array(x) for x in keras.tree.flatten(answers)]


def assert_right(need, tolerance=1e-6):
    for split in SPLITS:
        right = expected(need.network, need.cut.boundary, split)
        for a, b in zip(stored(need)[split], right, strict=True):
            assert a.shape == b.shape and np.allclose(a.astype(np.float32), b.astype(np.float32), atol=tolerance)


# -- identity --------------------------------------------------------------------------------------


def test_features_are_those_of_weights_data_boundary_precision_and_program(monkeypatch):
    net = network(residual, "conv_3", "output")
    with monkeypatch.context() as gpu:
        gpu.setattr(prefix, "_compiled", lambda: True)
        compiled = needed(net).key
    keys = [
        needed(net).key,
        compiled,
        needed(net, data={**DATA, "fingerprint": "g"}).key,
        needed(net, data={**DATA, "limit": 10}).key,
        needed(net, most_bytes=1000).key,
        needed(network(residual, "conv_2", "conv_3", "output")).key,
    ]
    device.configure("mixed_bfloat16")
    try:
        keys.append(needed(network(residual, "conv_3", "output")).key)
    finally:
        device.configure("float32")
    net.model.get_layer("conv_2").bias.assign_add([0.0, 0.0, 0.0, 1e-6])
    keys.append(needed(net).key)
    assert len(set(keys)) == len(keys) - 1  # below 1000 bytes lies what the shorter mask freezes
    assert keys[4] == keys[5]


def test_nothing_above_the_frontier_and_no_mask_changes_the_features():
    def other_head():
        images, x = stem()
        x = layers.ReLU(name="relu_1")(layers.Conv2D(4, 3, name="conv_1")(x))
        return keras.Model(images, layers.Flatten(name="flatten")(layers.Conv2D(7, 1, name="own")(x)), name="other")

    net = network(residual, "conv_2", "conv_3", "output")
    key = needed(net).key
    net.model.get_layer("conv_3").kernel.assign_add(np.ones((3, 3, 4, 4)))
    net.model.get_layer("relu_1").trainable = net.model.get_layer("scaling").trainable = True
    assert needed(net).key == key
    mask(net.model, "conv_2")
    assert needed(net).key == key
    assert needed(network(other_head, "own")).key == key


# -- the pass --------------------------------------------------------------------------------------


def test_features_are_what_the_network_says_and_are_computed_once(monkeypatch):
    monkeypatch.setattr(prefix, "images_per_call", lambda size: 64)
    need = needed(network(residual, "conv_3", "output"))
    told = []
    assert compute(need, report=lambda done, total: told.append((done, total))) == {need.key}
    assert need.cut.boundary == ("relu_1", "relu_2") and told == [(64, 75), (70, 75), (75, 75)]
    assert_right(need)
    about = features.about(need.key)
    assert about["program"] == "TensorFlow float32" and about["seconds"] > 0
    assert about["study"] == "tiny" and about["boundary"] == ["relu_1", "relu_2"] and about["mode"] == "exact"
    assert compute(need, report=lambda done, total: pytest.fail("computed again")) == set()


def test_features_that_are_needed_count_as_used_before_others_are_computed():
    ready, missing = needed(network(residual, "output")), needed(network(nested, "output"))
    compute(ready)
    os.utime(features.folder() / ready.key / features.ABOUT, (0, 0))
    compute(missing, ready)
    assert all(entry.used > 0 for entry in features.entries())


@pytest.fixture
def three():
    """Three frontiers of one network, each inside the one before; the middle one is of two tensors."""
    masks = (["output"], ["conv_3", "output"], ["conv_2", "conv_3", "output"])
    return [needed(network(residual, *trained)) for trained in masks]


def test_nested_frontiers_share_a_pass(three, monkeypatch):
    monkeypatch.setattr(prefix, "images_per_call", lambda size: 64)
    told = []
    assert compute(*three, report=lambda done, total: told.append(done)) == {need.key for need in three}
    assert told == [64, 70, 75]
    for need in three:
        assert_right(need)
    seconds = [features.about(need.key)["seconds"] for need in three]
    assert seconds[0] == max(seconds) and min(seconds) > 0


@pytest.mark.parametrize("elsewhere", [0, 1, 2])
def test_what_another_process_finished_meanwhile_is_left_out(elsewhere, three, monkeypatch):
    ours = [need for i, need in enumerate(three) if i != elsewhere]
    real = features.compute

    def hurried(key, *args, **kwargs):
        return key != three[elsewhere].key and real(key, *args, **kwargs)

    monkeypatch.setattr(features, "compute", hurried)
    assert compute(*three) == {need.key for need in ours}
    for need in ours:
        assert_right(need)


def forked():
    """Two branches; which of them is computed once depends on what trains above."""
    images, x = stem()
    x = layers.Conv2D(4, 3, name="conv")(x)
    a, b = layers.Conv2D(4, 1, name="left")(x), layers.Conv2D(4, 1, name="right")(x)
    a, b = layers.Conv2D(2, 1, name="left_2")(a), layers.Conv2D(2, 1, name="right_2")(b)
    return keras.Model(images, head(layers.Concatenate(name="joined")([a, b])), name="network")


@pytest.mark.parametrize("whole_is_there", [False, True])
def test_frontiers_of_two_branches(whole_is_there, monkeypatch):
    masks = (["output"], ["left", "left_2", "output"], ["right", "right_2", "output"])
    whole, left, right = needs = [needed(network(forked, *trained)) for trained in masks]
    real = features.compute
    if whole_is_there:
        monkeypatch.setattr(features, "compute", lambda key, *a, **k: key != whole.key and real(key, *a, **k))
    assert compute(*needs) == {need.key for need in needs[whole_is_there:]}
    for need in (left, right):
        assert_right(need)


def test_layers_of_one_name_are_told_apart():
    def pooled(pooling):
        def build():
            images, x = stem()
            x = pooling(name="pooling")(layers.Conv2D(4, 3, name="conv")(x))
            return keras.Model(images, layers.Dense(3, name="output")(x), name="network")

        return needed(network(build, "output"))

    average, largest = pooled(layers.GlobalAveragePooling2D), pooled(layers.GlobalMaxPooling2D)
    assert average.key != largest.key
    compute(average, largest)
    for need in (average, largest):
        assert_right(need)


def test_too_little_room_is_found_before_the_pass():
    need = needed(network(residual, "conv_3", "output"))
    with pytest.raises(UserError, match=r"the features need 0\.1 MiB, and the store may hold 0\.0 MiB"):
        compute(need, limit_bytes=1000, report=lambda done, total: pytest.fail("the pass began"))
    assert features.entries() == []


def test_seconds_of_a_prefix():
    assert 0 < prefix.seconds_per_image(needed(network(residual, "conv_3", "output")).cut, size=8) < 1


@pytest.mark.parametrize(("size", "count"), [(8, 128), (64, 64), (96, 28), (224, 16)])
def test_images_per_call(size, count):
    assert prefix.images_per_call(size) == count


@pytest.mark.parametrize(("off", "agrees"), [(0.6, True), (0.7, False)])
def test_a_program_agrees_within_two_thirds_of_the_tolerance(off, agrees):
    need = needed(network(residual, "conv_2", "conv_3", "output"))
    sample = prefix.Sample(need, SPLITS["train"][:4])
    right = sample.right
    shifted = [a + off * prefix.TOLERANCE["float32"] * np.abs(a).max() for a in right]
    assert sample.agrees(prefix.Program("shifted", None, lambda images: shifted)) == agrees


# -- precision -------------------------------------------------------------------------------------


def test_features_of_bfloat16(bfloat16):
    need = needed(network(residual, "conv_3", "output"))
    compute(need)
    assert features.about(need.key)["program"] == "TensorFlow mixed_bfloat16"
    assert {a.dtype.name for a in stored(need)["train"]} == {"bfloat16"}
    assert_right(need, tolerance=1e-2)
    assert 1e-6 < prefix.verify(need, SPLITS["train"], stored(need)["train"]) < 2e-2


def test_a_program_that_is_not_accurate_gives_way_to_float32(bfloat16, monkeypatch):
    net = network(residual, "conv_3", "output")
    high, low = needed(network(residual, "output")), needed(net)
    monkeypatch.setitem(prefix.TOLERANCE, "mixed_bfloat16", 1e-9)
    compute(high, low)
    exact = models.Network(models.standard(net.model), None, {}, Head())
    for need in (high, low):
        assert features.about(need.key)["program"] == "TensorFlow float32"
        for a, b in zip(stored(need)["train"], expected(exact, need.cut.boundary), strict=True):
            assert np.allclose(a.astype(np.float32), b, rtol=2**-8, atol=1e-6)  # rounded once, when they are kept


# -- ONNX Runtime --------------------------------------------------------------------------------


def by_onnx(need):
    return features.about(need.key)["program"] == "ONNX Runtime float32"


@pytest.fixture
def tensorflow_is(monkeypatch):
    """Says what TensorFlow's program is timed at in a pass that is long, where that of ONNX Runtime takes a second."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(prefix, "TRY_ONNX_SECONDS", 0.0)

    def say(seconds):
        def timed(program, images):
            return seconds if hasattr(program, "get_concrete_function") else 1.0

        monkeypatch.setattr(prefix, "_seconds", timed)

    return say


@pytest.mark.parametrize(("build", "trained"), [(residual, ["conv_3", "output"]), (nested, ["conv_2", "bn", "output"])])
def test_a_long_pass_takes_onnx_runtime_where_it_is_faster(build, trained, tensorflow_is):
    tensorflow_is(2.0)
    need = needed(network(build, *trained))
    compute(need)
    assert by_onnx(need)
    assert prefix.verify(need, SPLITS["train"], stored(need)["train"]) < 1e-5


def test_nested_frontiers_by_onnx_runtime(tensorflow_is):
    tensorflow_is(2.0)
    high, low = needed(network(residual, "output")), needed(network(residual, "conv_3", "output"))
    compute(high, low)
    for need in (high, low):
        assert by_onnx(need)
        assert prefix.verify(need, SPLITS["train"], stored(need)["train"]) < 1e-5


def test_features_of_bfloat16_by_onnx_runtime_are_those_of_float32_rounded_once(bfloat16, tensorflow_is):
    tensorflow_is(2.0)
    need = needed(network(residual, "conv_3", "output"))
    compute(need)
    assert by_onnx(need) and {a.dtype.name for a in stored(need)["train"]} == {"bfloat16"}
    assert prefix.verify(need, SPLITS["train"], stored(need)["train"]) < 2**-8


@pytest.mark.parametrize("why", ["it is slower", "the pass is short", "it answers otherwise", "it cannot be converted"])
def test_tensorflow_stays_where(why, tensorflow_is, monkeypatch):
    tensorflow_is(0.5 if why == "it is slower" else 2.0)
    if why == "the pass is short":
        monkeypatch.setattr(prefix, "TRY_ONNX_SECONDS", 60.0)
    if why == "it answers otherwise":
        monkeypatch.setattr(prefix, "_onnx", lambda model, threads: lambda x: [1.001 * y.numpy() for y in model(x)])
    if why == "it cannot be converted":
        monkeypatch.setattr(prefix, "_onnx", lambda model, threads: 1 / 0)
    need = needed(network(residual, "conv_3", "output"))
    compute(need)
    assert features.about(need.key)["program"] == "TensorFlow float32"


@pytest.mark.parametrize(
    ("seconds", "program"),
    [
        ([2.0, 1.0], "TensorFlow float32"),
        ([1.0, 2.0], "TensorFlow mixed_bfloat16"),
        ([3.0, 2.0, 1.0], "TensorFlow float32, im2col"),
    ],
)
def test_a_pass_in_mixed_precision_takes_float32_where_it_is_faster(seconds, program, bfloat16, monkeypatch):
    monkeypatch.setattr(prefix, "TRY_IM2COL_SECONDS", 0.0)
    monkeypatch.setattr(prefix, "TRY_FLOAT32_SECONDS", 0.0)
    monkeypatch.setattr(im2col, "LARGEST", 1000 if len(seconds) > 2 else 0)
    timed = iter(seconds)
    monkeypatch.setattr(prefix, "_seconds", lambda call, images: next(timed))
    need = needed(network(residual, "output"))
    compute(need)
    assert features.about(need.key)["program"] == program
    assert {a.dtype.name for a in stored(need)["train"]} == {"bfloat16"}
    assert prefix.verify(need, SPLITS["train"], stored(need)["train"]) < (2e-2 if "mixed" in program else 2**-8)


# -- im2col --------------------------------------------------------------------------------------


@pytest.mark.parametrize("faster", [True, False])
def test_a_pass_takes_products_where_they_are_faster(faster, monkeypatch):
    monkeypatch.setattr(prefix, "TRY_IM2COL_SECONDS", 0.0)
    monkeypatch.setattr(im2col, "LARGEST", 1000)
    seconds = iter([1.0, 0.5 if faster else 2.0])
    monkeypatch.setattr(prefix, "_seconds", lambda call, images: next(seconds))
    need = needed(network(residual, "output"))
    compute(need)
    assert features.about(need.key)["program"] == f"TensorFlow float32{', im2col' if faster else ''}"
    assert_right(need, tolerance=1e-5)


def test_products_that_answer_otherwise_are_not_taken(monkeypatch):
    monkeypatch.setattr(prefix, "TRY_IM2COL_SECONDS", 0.0)
    monkeypatch.setattr(im2col, "LARGEST", 1000)
    monkeypatch.setattr(im2col, "_padding", lambda *shapes: [[0, 0], [0, 2], [0, 2], [0, 0]])
    always_faster = itertools.count(10.0, -1.0)
    monkeypatch.setattr(prefix, "_seconds", lambda call, images: next(always_faster))
    need = needed(network(residual, "output"))
    compute(need)
    assert features.about(need.key)["program"] == "TensorFlow float32"


# -- the proof -------------------------------------------------------------------------------------


@pytest.fixture
def computed():
    """A frontier of two tensors, and the right features of five images."""
    need = needed(network(residual, "conv_3", "output"))
    return need, tuple(np.array(x) for x in need.cut.prefix(SPLITS["validation"]))


def test_right_features_pass(computed):
    need, rows = computed
    assert 0 <= prefix.verify(need, SPLITS["validation"], rows) < 1e-6


def test_what_a_later_stage_trains_is_not_what_features_are_compared_with(computed):
    """The run that computed them may train on; the next one starts from the same weights as it did."""
    need, rows = computed
    prefix.verify(need, SPLITS["validation"], rows)
    same = needed(network(residual, "conv_3", "output"))
    for weight in need.network.model.weights:
        weight.assign(weight + 1.0)
    assert same.layers == need.layers and prefix.verify(same, SPLITS["validation"], rows) < 1e-6


@pytest.mark.parametrize("tensor", [0, 1])
@pytest.mark.parametrize("value", [100.0, np.nan, np.inf])
def test_one_altered_value_is_found(computed, tensor, value):
    need, rows = computed
    rows[tensor].flat[7] = value
    with pytest.raises(prefix.FeaturesDiffer, match=r"features at relu_1, relu_2 differ by .* more than 0\.0001"):
        prefix.verify(need, SPLITS["validation"], rows)


def test_a_cut_that_is_wrong_is_found(computed):
    """The features are compared with what the network says, not with what the cut does."""
    need, _ = computed
    relu_1 = need.network.model.get_layer("relu_1").output
    wrong = dataclasses.replace(need.cut, prefix=keras.Model(need.network.model.input, [relu_1, relu_1]))
    rows = tuple(np.array(x) for x in wrong.prefix(SPLITS["validation"]))
    with pytest.raises(prefix.FeaturesDiffer, match="differ"):
        prefix.verify(dataclasses.replace(need, cut=wrong), SPLITS["validation"], rows)


def test_features_of_other_images_are_found(computed):
    need, rows = computed
    with pytest.raises(prefix.FeaturesDiffer, match="differ"):
        prefix.verify(need, SPLITS["validation"][::-1], rows)


@pytest.mark.parametrize(("build", "trained"), [(head_only, ["output"]), (nested, ["conv_2", "bn", "output"])])
def test_a_network_with_models_in_it_is_verified(build, trained):
    net = network(build, *trained)
    need = needed(net)
    compute(need)
    assert prefix.verify(need, SPLITS["train"], stored(need)["train"]) < 1e-6


# -- the shelf of a process ------------------------------------------------------------------------


@pytest.fixture
def shelf():
    with contextlib.ExitStack() as opened:
        yield store.Shelf(opened, 2**20)


def test_damaged_features_are_computed_again(shelf):
    need = needed(network(head_only, "output"))
    compute(need)
    right = [np.array(a) for a in stored(need)["train"]]
    path = features.folder() / need.key / "train.0.bin"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    book = shelf.take(need.key, lambda: compute(need))
    assert shelf.new == {need.key}
    assert all(np.array_equal(a, b) for a, b in zip(right, book.arrays["train"], strict=True))


def test_features_that_are_there_are_taken_as_they_are_and_stay_open(shelf):
    need = needed(network(head_only, "output"))
    compute(need)
    book = shelf.take(need.key, lambda: compute(need))
    assert shelf.new == set() and book.in_memory
    assert shelf.take(need.key, lambda: pytest.fail("made again")) is book


# -- views of training images ----------------------------------------------------------------------


@pytest.fixture
def taken(shelf, tiny_study):
    """A function that takes features of the views of a stage as a run of some seed does; what it used of the shelf."""
    net = network(head_only, "output")
    cut = frontier.split(net.model)
    options = plan.Options(seeds=(0, 1))
    text = tiny_study.replace("epochs = 1", "epochs = 5")
    planned = plan.runs(plan.resolve(studies.parse(text, "tiny"), options), options, lambda x: "f", lambda x: "w")

    def take(seed, count, turn=0.1):
        run = next(run for run in planned if run.seed == seed)
        stage = Stage(augment=Augment("horizontal", rotation=turn), augment_views=count)
        views = augment.build(stage, SPLITS["train"], seed=seed, number=1, split_seed=0)
        used = store.Used()
        need = store._need(net, cut, run)
        store._open(need.key, lambda: store._compute([need], SPLITS, run, lambda *told, **more: None), shelf, used)
        of_views = store.of_views(net, cut, run, views, shelf, used, lambda *told, **more: None)
        return views, of_views, used

    return cut, take


@pytest.mark.parametrize("count", [None, 3])
def test_features_are_those_of_the_views_of_an_epoch(taken, count):
    cut, take = taken
    views, of_views, used = take(0, count)
    assert views.seconds == 0 and used.difference < 1e-4  # the proof is no part of the training
    for epoch in (0, 1):
        numbers = augment.numbers(views, epoch)[::-1]
        assert np.allclose(of_views(numbers)[0], cut.prefix(augment.show(views, numbers)), atol=1e-6)


def test_views_that_are_fixed_are_kept_and_shared_by_seeds(taken):
    _, take = taken
    used = [take(*how)[2] for how in ((0, 3), (1, 3), (0, 4), (0, 3, 0.2))]
    assert [u.reused for u in used] == [False, True, False, False]
    facts = [list(u.facts.values())[-1] for u in used]
    assert [f["views"] for f in facts] == [3, 3, 4, 3]
    assert facts[0]["key"] == facts[1]["key"] and len({f["key"] for f in facts}) == 3
    assert features.nbytes(facts[0]["key"]) == 3 * 70 * 4 * 4  # four channels in float32


def test_a_run_keeps_the_features_it_uses_within_the_memory_of_all(taken, shelf):
    _, take = taken
    shelf.memory_bytes = 4000  # for 75 images of 16 bytes each, or 210 views, not for both
    _, _, used = take(0, 3)
    assert [facts["in_memory"] for facts in used.facts.values()] == [True, False]
    assert shelf.held() == 75 * 16 and features.clear().left == 2  # both are in use


def test_rows_of_a_part_are_gathered_when_they_are_asked_for():
    class Mapped(np.ndarray):
        def __getitem__(self, rows):
            asked.append(len(rows))
            return np.asarray(self)[rows]

    asked: list[int] = []
    whole = np.arange(40.0).reshape(20, 2)
    rows = np.array([3, 1, 19, 7])
    (part,) = store.of_rows({"train": (whole.view(Mapped),)}, rows)["train"]
    assert (part.shape, part.dtype, len(part)) == ((4, 2), np.float64, 4) and asked == []
    assert np.array_equal(part[np.array([2, 0])], whole[[19, 3]]) and np.array_equal(part[1:], whole[rows[1:]])
    assert asked == [2, 3]


def test_new_views_take_the_program_that_is_fastest_for_all_their_epochs(taken, tensorflow_is, monkeypatch):
    tensorflow_is(2.0)
    monkeypatch.setattr(prefix, "TRY_ONNX_SECONDS", 5.0)  # a pass over 75 images takes 2.3 s, five epochs of 70 11 s
    cut, take = taken
    views, of_views, used = take(0, None)
    (facts,) = used.facts.values()
    assert (facts["program"], facts["train_program"]) == ("TensorFlow float32", "ONNX Runtime float32")
    numbers = augment.numbers(views, 1)
    assert np.allclose(of_views(numbers)[0], cut.prefix(augment.show(views, numbers)), atol=1e-5)


def test_new_views_are_not_kept(taken):
    _, take = taken
    _, _, used = take(0, None)
    (facts,) = used.facts.values()
    assert facts["train_images"] == "computed each epoch" and len(features.entries()) == 1


@pytest.mark.parametrize("count", [None, 3])
def test_wrong_features_of_views_are_found(taken, count, monkeypatch):
    _, take = taken
    right = augment.Shown.__getitem__
    monkeypatch.setattr(augment.Shown, "__getitem__", lambda shown, rows: 255 - right(shown, rows))
    with pytest.raises(prefix.FeaturesDiffer, match="differ"):
        take(0, count)


def test_only_what_trains_on_features_may_need_several_frontiers(tiny_study):
    options = plan.Options(limit=20, seeds=(0,))
    planned = plan.runs(plan.resolve(studies.parse(tiny_study, "tiny"), options), options, lambda x: "f", lambda x: "w")
    assert len(planned) > 1

    def job(engine):
        setting = {"estimate": None, "engines": [{"name": engine, "most_bytes": None}]}
        return {"runs": [plan.plain(run) for run in planned], "settings": [setting] * len(planned)}

    assert store.lie_apart(job("cached")) and not store.lie_apart(job("plain"))


def test_a_process_of_its_own_makes_the_views_too(tmp_path, tiny_study):
    text = tiny_study.replace("epochs = 1", "epochs = 1\naugment = { rotation = 0.1 }\naugment_views = 3")
    options = plan.Options(limit=20, only=("output",), seeds=(0,))
    study = plan.resolve(studies.parse(text, "tiny"), options)
    planned = plan.runs(study, options, lambda data: "f", lambda path: "w")
    setting = {"estimate": None, "engines": [{"name": "cached", "most_bytes": None}]}
    job = {"runs": [plan.plain(run) for run in planned], "settings": [setting] * len(planned)}
    job |= {"results": str(tmp_path), "data_dir": None}
    keys = store.compute_all(job, lambda event, **facts: None)
    made = {entry.about["images"]: entry.about["layout"]["rows"] for entry in features.entries()}
    assert made == {20: {"train": 20, "validation": 20, "test": 20}, 60: {"train": 60}}
    assert keys == {entry.key for entry in features.entries()}
