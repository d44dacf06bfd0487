"""The studies of the suite: every row of every one can be built, and has the counts that its document gives."""

import pytest

from frostline import device, freezing, models, plan, search, studies, training
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


@pytest.mark.parametrize("name", studies.names())
def test_a_study_begins_with_its_command(name):
    text = (studies.folder() / f"{name}.toml").read_text()
    assert text.startswith(f"# frostline run {name} "), "then what it needs, and how long it takes or why nobody knows"


@pytest.mark.parametrize("name", [name for name in studies.names() if studies.load(name).search])
def test_the_searches_of_a_study_can_be_drawn(name):
    study = plan.resolve(studies.load(name), Options())
    trials = [freeze for freeze in search.expand(study, {}).freeze if freeze.drawn]
    assert len(trials) == sum(one.trials for one in study.search)
    assert len({(freeze.head, freeze.stages) for freeze in trials}) > 1
