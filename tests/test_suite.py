"""The studies of the suite: every row of every one can be built, and has the counts that its document gives."""

import subprocess
import sys

import pytest
from test_datasets import write_folder, write_release

from frostline import datasets, device, freezing, models, plan, records, search, studies, training
from frostline.plan import Options

CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "image_folder": 2}
SIZES = {"digits": 32, "cifar10": 32, "cifar100": 32, "image_folder": 224}

# (parameters in all, those that train in each stage) as the documents give them.
DOCUMENTS = {
    ("cifar10_split", "pretrain"): (1_633_733, [1_633_733]),
    ("cifar10_split", "output"): (1_633_733, [325]),
    ("cifar10_split", "dense_output"): (1_633_733, [8_581]),
    ("cifar10_to_cifar100", "first_layer"): (169_220, [164_248]),
    ("cats_and_dogs_vgg16", "frozen"): (16_812_353, [2_097_665]),
    ("cats_and_dogs_vgg16", "last_block"): (16_812_353, [9_177_089]),
    ("cats_and_dogs_vgg16", "head_then_last_block"): (16_812_353, [2_097_665, 9_177_089]),
    ("cats_and_dogs_inception_v3", "frozen"): (26_521_889, [4_719_105]),
    ("cats_and_dogs_inception_v3", "last_12"): (26_521_889, [5_112_833]),
    ("cats_and_dogs_inception_v3", "head_then_last_12"): (26_521_889, [4_719_105, 5_112_833]),
    ("cats_and_dogs_xception", "frozen"): (20_863_529, [2_049]),
    ("cats_and_dogs_xception", "frozen_then_all"): (20_863_529, [2_049, 20_809_001]),
    ("cats_and_dogs_xception", "frozen_then_all_as_run"): (20_863_529, [2_049, 20_809_001]),
    ("cifar10_vgg16", "head"): (14_848_586, [133_898]),
    ("cifar10_vgg16", "head_l2"): (14_848_586, [133_898]),
    ("cifar10_vgg16", "extra_conv"): (17_210_442, [2_494_730]),
}


def rows(name):
    """One run of each configuration, trials left out."""
    study = plan.resolve(studies.load(name), Options())
    planned = plan.runs(study, Options(), lambda data: "data", lambda path: "weights")
    return list({run.freeze.name: run for run in planned}.values())


@pytest.mark.parametrize("name", studies.names())
def test_every_row_is_built_and_has_the_counts_of_its_document(name):
    built = {}
    for run in rows(name):
        classes = len(run.data.classes or ()) or CLASSES[run.data.dataset]
        key = (run.backbone, run.freeze.head, run.data.image_size or SIZES[run.data.dataset], classes)
        if key not in built:
            device.seed_everything(0)
            built[key] = models.build(*key[:2], run.data.scaling, *key[2:])
        net = built[key]
        masks = [freezing.apply(net.model, net.groups, stage) for stage in run.freeze.stages]
        for stage in run.freeze.stages:
            training.optimizer(stage.optimizer, stage.learning_rate, stage.momentum)
        if (name, run.freeze.name) in DOCUMENTS:
            found = (masks[0].total_params, [mask.trainable_params for mask in masks])
            assert found == DOCUMENTS[name, run.freeze.name], run.freeze.name
        for count in {"total_params", "trainable_params"} & set(run.freeze.reported or {}):
            assert run.freeze.reported[count] == getattr(masks[-1], count), run.freeze.name


def test_every_row_of_a_document_is_there():
    assert set(DOCUMENTS) <= {(name, run.freeze.name) for name in studies.names() for run in rows(name)}


# What the documents say of each stage of a row: optimizer, learning rate, batch size, epochs; patience and whether the
# best is restored; factor, patience and floor of the plateau. Then the accuracy and the loss they report.
SPLIT = ("rmsprop", 1e-3, 64, 10, None, None)
VGG16 = ("adam", 1e-3, 32, 10, (3, True), None)
PHOTOS, XCEPTION = ("sgd", 1e-3, 20, 5, None, None), ("adam", 1e-3, 32, 5, None, None)
LONGER, SLOWER = ("sgd", 1e-3, 20, 10, None, None), ("sgd", 1e-4, 20, 10, None, None)
TOLD = {
    ("cifar10_split", "pretrain"): ([SPLIT], 0.7662, None),
    ("cifar10_split", "output"): ([SPLIT], 0.6060, None),
    ("cifar10_split", "dense_output"): ([SPLIT], 0.6904, None),
    ("cifar10_to_cifar100", "pretrain"): ([("adam", 1e-3, 64, 150, (30, True), (0.5, 3, 0.0))], 0.85, 0.79),
    ("cifar10_to_cifar100", "first_layer"): ([("adam", 1e-3, 32, 100, (20, True), (0.5, 7, 1e-6))], 0.5516, 2.1407),
    ("cats_and_dogs_vgg16", "frozen"): ([PHOTOS], 0.8360, 0.3978),
    ("cats_and_dogs_vgg16", "last_block"): ([LONGER], 0.9190, 0.1884),
    ("cats_and_dogs_vgg16", "head_then_last_block"): ([PHOTOS, SLOWER], None, None),
    ("cats_and_dogs_inception_v3", "frozen"): ([PHOTOS], 0.9640, 0.0885),
    ("cats_and_dogs_inception_v3", "last_12"): ([LONGER], 0.9610, 0.0949),
    ("cats_and_dogs_inception_v3", "head_then_last_12"): ([PHOTOS, SLOWER], None, None),
    ("cats_and_dogs_xception", "frozen"): ([XCEPTION], None, None),
    ("cats_and_dogs_xception", "frozen_then_all"): ([XCEPTION, ("adam", 1e-5, 32, 5, None, None)], None, None),
    ("cats_and_dogs_xception", "frozen_then_all_as_run"): ([XCEPTION, ("adam", 1e-5, 32, 5, None, None)], None, None),
    ("cifar10_vgg16", "head"): ([VGG16], 0.6087, None),
    ("cifar10_vgg16", "head_l2"): ([("adam", 1e-3, 32, 10, (3, False), None)], 0.5374, None),
    ("cifar10_vgg16", "extra_conv"): ([VGG16], 0.6154, None),
    ("cifar10_vgg16", "head_sgd"): ([("sgd", 1e-3, 32, 10, (3, False), None)], None, None),
}
ROWS = {
    "cats_and_dogs_data_size": "linear_probe dense_head",
    "cats_and_dogs_efficientnet_lite0": "linear_probe last_block last_two_blocks first_block batch_norm all_inference "
    "all probe_then_all scratch",
    "cats_and_dogs_inception_v3": "frozen frozen_expected_scaling last_12 head_then_last_12 "
    "head_then_last_12_inference",
    "cats_and_dogs_vgg16": "frozen frozen_expected_scaling last_block head_then_last_block last_block_expected_scaling",
    "cats_and_dogs_xception": "frozen frozen_then_all frozen_then_all_as_run",
    "cifar10_efficientnet_lite0": "linear_probe last_block",
    "cifar10_split": "pretrain output dense_output fully_connected all output_new scratch",
    "cifar10_to_cifar100": "pretrain first_layer first_layer_augmented first_block two_blocks norm_trains "
    "nothing_frozen scratch",
    "cifar10_vgg16": "head head_l2 extra_conv head_sgd head_dropout_02 head_dropout_05 head_augmented "
    "head_expected_scaling extra_conv_expected_scaling",
    "cifar10_xception": "frozen",
}


def of_stage(stage):
    stop, plateau = stage.early_stopping, stage.reduce_on_plateau
    return (
        stage.optimizer, stage.learning_rate, stage.batch_size, stage.epochs,
        stop and (stop.patience, stop.restore_best),
        plateau and (plateau.factor, plateau.patience, plateau.min_learning_rate),
    )  # fmt: skip


def test_rows_of_documents_train_as_the_documents_say():
    for name in dict.fromkeys(name for name, _ in TOLD):
        for run in rows(name):
            if (name, run.freeze.name) in TOLD:
                stages, top1, loss = TOLD[name, run.freeze.name]
                told = run.freeze.reported or {}
                assert list(map(of_stage, run.freeze.stages)) == stages, (name, run.freeze.name)
                assert (told.get("top1"), told.get("loss")) == (top1, loss), (name, run.freeze.name)
                assert run.precision == "float32", "whose numbers stand beside those of a document"
    momenta = {run.freeze.name: run.freeze.stages[0].momentum for run in rows("cifar10_vgg16")}
    assert {row for row, momentum in momenta.items() if momentum} == {"head_sgd"} and momenta["head_sgd"] == 0.9


def test_documents_that_augment_say_how():
    photos = studies.Augment("horizontal", 0.0833, 0.2, 0.0035, 0.2, fill="nearest")
    turned = studies.Augment("horizontal", 0.1, fill="reflect")
    built = studies.Augment("horizontal", 0.1, zoom=0.1, brightness=0.05, contrast=0.05, fill="reflect")
    expected = {"cats_and_dogs_vgg16": photos, "cats_and_dogs_inception_v3": photos, "cats_and_dogs_xception": turned}
    for name, augment in expected.items():
        assert {stage.augment for run in rows(name) for stage in run.freeze.stages} == {augment}
    shown = {run.freeze.name: run.freeze.stages[0].augment for run in rows("cifar10_to_cifar100")}
    assert {row: one for row, one in shown.items() if one} == {"first_layer_augmented": built}


def test_no_row_is_missing():
    for name, expected in ROWS.items():
        assert [run.freeze.name for run in rows(name)] == expected.split(), name
    assert set(studies.names()) - ROWS.keys() == {"digits", "digits_aa"}


def test_the_searches_of_the_document_are_its_own():
    head, extra = studies.load("cifar10_vgg16").search
    space = {p.name: (p.low, p.high, p.step, p.log) for p in head.space}
    assert space == {"units": (256, 1024, 128, False), "l2": (1e-4, 1e-2, None, True),
                     "learning_rate": (1e-4, 1e-2, None, True)}  # fmt: skip
    assert (head.freeze, head.trials, head.reported) == ("head", 6, {"top1": 0.6005, "loss": 1.2706})
    assert (extra.freeze, extra.trials, extra.space) == ("extra_conv", 6, head.space)
    (sizes,) = studies.load("cifar10_to_cifar100").search
    assert (sizes.freeze, sizes.space[0].choices) == ("first_layer", (16, 32, 64, 128))


@pytest.mark.parametrize("name", studies.names())
def test_a_study_begins_with_its_command(name):
    text = (studies.folder() / f"{name}.toml").read_text()
    assert text.startswith(f"# frostline run {name} "), "then what it needs, and how long it takes or why nobody knows"


@pytest.mark.parametrize("name", [name for name in studies.names() if studies.load(name).search])
def test_the_searches_of_a_study_can_be_drawn(name):
    study = plan.resolve(studies.load(name), Options())
    trials = [freeze for freeze in search.expand(study, {}).freeze if freeze.drawn]
    assert len(trials) == sum(one.trials for one in study.search)
    assert len({(freeze.drawn.search.freeze, freeze.drawn.values) for freeze in trials}) == len(trials)


@pytest.mark.slow
@pytest.mark.parametrize("name", studies.names())
def test_every_row_trains_and_is_published_on_a_few_images(name, tmp_path):
    for release in (datasets.CIFAR10, datasets.CIFAR100):
        write_release(tmp_path, release)
    write_folder(tmp_path / "cats_and_dogs", count=10)
    quick = ["--limit", "20", "--epochs", "1", "--weights", "none", "--seeds", "0", "--data-dir", tmp_path]
    places = ["--results", tmp_path / "results", "--exports", tmp_path / "exports"]
    done = subprocess.run(
        [sys.executable, "-m", "frostline.cli", "run", name, *quick, *places],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = {r["freeze"] for r in records.read(tmp_path / "results") if r["kind"] == "train" and r["outcome"] == "ok"}
    assert {run.freeze.name for run in rows(name)} - {"pretrain"} <= told
