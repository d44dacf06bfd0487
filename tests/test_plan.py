import dataclasses

import pytest

from frostline import plan, studies
from frostline.errors import UserError
from frostline.plan import Options, Run

PRETRAIN = """
[pretrain]
classes = [0, 1]
epochs = 7
[[freeze]]
name = "kept"
head = "inherit"
[[freeze]]
name = "scratch"
head = "inherit"
weights = "none"
"""


def runs(text, options=None, fingerprint="data"):
    options = options or Options()
    study = plan.resolve(studies.parse(text, "tiny"), options)
    return plan.runs(study, options, lambda data: fingerprint, lambda path: "digest of " + path)


def with_pretrain(tiny):
    return tiny.replace('weights = "none"\n', "", 1) + PRETRAIN


def test_every_number_of_training_images_is_a_configuration_of_its_own(tiny_study):
    text = with_pretrain(tiny_study).replace("[data]", '[data]\ntrain_images = [20, "all"]', 1)
    planned = runs(text)
    named = [(r.freeze.name, r.variant, r.data.train_images) for r in planned]
    assert named[:3] == [("pretrain", "", ("all",)), ("output", "20_images", (20,)), ("output", "all_images", ("all",))]
    assert len({r.configuration for r in planned}) == len(planned) == 1 + 2 * 4
    (one,) = {r.variant for r in runs(tiny_study.replace("[data]", "[data]\ntrain_images = 20", 1))}
    assert one == ""


def test_a_limit_holds_for_numbers_of_training_images_too(tiny_study):
    text = tiny_study.replace("[data]", '[data]\ntrain_images = [20, 50, 1000, "all"]', 1)
    planned = runs(text, Options(limit=50, only=("all",)))
    assert [run.data.train_images for run in planned] == [(20,), ("all",)]
    assert [run.data.train_images for run in runs(text, Options(limit=51, only=("all",)))] == [(20,), (50,), ("all",)]


def test_each_seed_has_its_own_pretraining_first(tiny_study):
    planned = runs(with_pretrain(tiny_study), Options(seeds=(3, 4)))
    assert [(r.freeze.name, r.seed) for r in planned[:5]] == [
        ("pretrain", 3), ("output", 3), ("all", 3), ("kept", 3), ("scratch", 3),
    ]  # fmt: skip
    sources = {r.freeze.name: r.pretrain_run for r in planned[:5]}
    assert sources == dict.fromkeys(("output", "all", "kept"), planned[0].id) | dict.fromkeys(("pretrain", "scratch"))
    assert [r.inherit_head for r in planned[:5]] == [False, False, False, True, False]


def test_a_cut_is_of_the_transfer_alone_and_keeps_no_head(tiny_study):
    text = with_pretrain(tiny_study).replace("[backbone]", '[backbone]\ncut = "relu_1"', 1)
    with pytest.raises(UserError, match=r"kept: head = \"inherit\" keeps a head that stands on the whole small_cnn"):
        runs(text)
    planned = runs(text.replace('head = "inherit"', 'head = "linear"'))
    assert {r.freeze.name: r.backbone.cut for r in planned} == {
        "pretrain": None, "output": "relu_1", "all": "relu_1", "kept": "relu_1", "scratch": "relu_1",
    }  # fmt: skip


def test_a_configuration_may_have_a_scaling_and_a_cut_of_its_own(tiny_study):
    text = tiny_study.replace("[data]", '[data]\nscaling = "unit"', 1).replace("[backbone]", '[backbone]\ncut = "a"', 1)
    asked: list[object] = []
    study = plan.resolve(studies.parse(text + 'scaling = "symmetric"\ncut = "b"', "tiny"), Options())
    shared, own = plan.runs(study, Options(), lambda data: asked.append(data) or "data", lambda path: path)
    assert (shared.data.scaling, shared.backbone.cut, own.data.scaling, own.backbone.cut) == (
        "unit",
        "a",
        "symmetric",
        "b",
    )
    assert shared.origin != own.origin, "the same frozen layers say other things about other pixels"
    assert len(asked) == 1 and plan.whole(shared.data) == plan.whole(own.data) == asked[0], "the files are the same"
    said = runs(text.replace('"unit"', '"symmetric"').replace('cut = "a"', 'cut = "b"'))[1]
    assert own.identity == said.identity, "wherever it is written"


def test_cut_and_penalty_are_part_of_an_identity(tiny_study):
    keys = ("", 'cut = "relu_1"', 'cut = "relu_2"', "l2 = 0.1", "l2 = 0.0")
    found = [runs(tiny_study.replace("[backbone]", f"[backbone]\n{key}", 1))[0].configuration for key in keys]
    assert len(set(found)) == 4 and found[0] == found[-1]


def test_a_backbone_that_is_a_file_brings_its_weights_and_is_known_by_its_content(tiny_study):
    text = tiny_study.replace('"small_cnn"\nweights = "none"', '"file:my.keras"', 1)
    study = plan.resolve(studies.parse(text, "tiny"), Options())
    found = []
    for name, content in (("my", "one"), ("my", "two"), ("renamed", "one")):
        backbone = dataclasses.replace(study.backbone, name=f"file:{name}.keras")
        asked = []
        again = dataclasses.replace(study, backbone=backbone)
        planned = plan.runs(again, Options(), lambda data: "data", lambda path, c=content, a=asked: a.append(path) or c)
        assert {run.freeze.weights for run in planned} == {"file"} and set(asked) == {f"{name}.keras"}
        found.append(planned[0].configuration)
    assert found[0] == found[2] != found[1]
    assert {run.freeze.weights for run in runs(text.replace("[backbone]", '[backbone]\nweights = "none"'))} == {"none"}


@pytest.mark.parametrize("weights", ["none", "some.h5"])
def test_weights_from_the_flag_replace_the_pretraining(tiny_study, weights):
    planned = runs(with_pretrain(tiny_study), Options(weights=weights))
    assert "pretrain" not in [r.freeze.name for r in planned]
    assert {r.freeze.name: r.freeze.weights for r in planned}["kept"] == weights
    assert {r.freeze.name: r.inherit_head for r in planned}["kept"] == (weights != "none")


def test_a_pretraining_that_is_not_there_gives_no_weights(tiny_study):
    with pytest.raises(UserError, match=r"'output' has weights = \"pretrain\", and there is no \[pretrain\]; add one"):
        runs(tiny_study, Options(weights="pretrain"))


def test_a_limit_holds_for_the_images_of_the_pretraining_too(tiny_study):
    text = with_pretrain(tiny_study).replace("[pretrain]", "[pretrain]\ntrain_images = 100")
    shown = {limit: runs(text, Options(limit=limit))[0].data.train_images for limit in (None, 50)}
    assert shown == {None: (100,), 50: ("all",)}


def test_only_leaves_the_pretraining_it_needs(tiny_study):
    assert [r.freeze.name for r in runs(with_pretrain(tiny_study), Options(only=("kept",)))] == ["pretrain", "kept"]
    assert [r.freeze.name for r in runs(with_pretrain(tiny_study), Options(only=("scratch",)))] == ["scratch"]


def test_a_configuration_may_have_seeds_of_its_own(tiny_study):
    text = with_pretrain(tiny_study).replace('title = "tiny"', 'title = "tiny"\nseeds = [0, 1]')
    own = text.replace('name = "kept"', 'name = "kept"\nseeds = [1, 7]')
    planned = [(r.freeze.name, r.seed) for r in runs(own)]
    assert [seed for name, seed in planned if name == "kept"] == [1, 7]
    assert [seed for name, seed in planned if name == "pretrain"] == [0, 1, 7]
    assert [seed for name, seed in planned if name == "all"] == [0, 1]
    assert {r.configuration for r in runs(own)} == {r.configuration for r in runs(text)}
    assert {r.seed for r in runs(own, Options(seeds=(3,)))} == {3}


def test_epochs_cap_every_stage_and_the_pretraining(tiny_study):
    planned = runs(with_pretrain(tiny_study), Options(epochs=2))
    assert [r.freeze.stages[0].epochs for r in planned] == [2, 1, 1, 1, 1]


def test_lists_of_precision_and_xla_are_variants(tiny_study):
    planned = runs(tiny_study, Options(only=("all",), precision=("float32", "auto"), xla=("off", "on")))
    assert [r.variant for r in planned] == [
        "float32-xla_off", "float32-xla_on", "auto-xla_off", "auto-xla_on",
    ]  # fmt: skip
    assert planned[0].model == "tiny.all.float32-xla_off"
    assert len({r.configuration for r in planned}) == 4


def test_a_list_of_engines_is_one_variant_each_named_by_it(tiny_study):
    planned = runs(tiny_study, Options(only=("all",), engine=("plain", "cached")))
    assert [(r.variant, r.engine) for r in planned] == [("plain", "plain"), ("cached", "cached")]
    assert planned[1].model == "tiny.all.cached" and planned[0].configuration != planned[1].configuration
    both = runs(tiny_study, Options(only=("all",), engine=("plain", "cached"), xla=("off", "on")))
    assert [r.variant for r in both] == [
        "auto-xla_off-plain", "auto-xla_off-cached", "auto-xla_on-plain", "auto-xla_on-cached",
    ]  # fmt: skip


def test_the_engine_of_a_study_is_inherited_and_the_flag_replaces_it(tiny_study):
    text = tiny_study.replace("[train]", '[train]\nengine = "cached"') + 'engine = ["plain", "auto"]\n'
    assert [(r.freeze.name, r.engine) for r in runs(text)] == [("output", "cached"), ("all", "plain"), ("all", "auto")]
    assert {r.engine for r in runs(text, Options(engine=("plain",)))} == {"plain"}
    pretrained = with_pretrain(text.replace('engine = ["plain", "auto"]\n', ""))
    asked = {r.freeze.name: r.engine for r in runs(pretrained, Options(engine=("cached", "plain")))}
    assert asked["pretrain"] == "plain"  # all of it trains, once


CHANGES = [
    Options(limit=10),
    Options(epochs=1),
    Options(weights="x.h5"),
    Options(precision=("float32",)),
    Options(xla=("on",)),
    Options(engine=("cached",)),
]


@pytest.mark.parametrize("options", CHANGES)
def test_each_flag_that_changes_an_experiment_changes_its_identity(tiny_study, options):
    plain, changed = runs(tiny_study)[0], runs(tiny_study, options)[0]
    assert plain.identity != changed.identity and plain.configuration != changed.configuration


def test_the_frontier_mode_changes_the_identity(tiny_study):
    other = tiny_study.replace("[train]", '[train]\nfrontier = "inference_prefix"')
    assert runs(tiny_study)[0].identity != runs(other)[0].identity


def test_a_weights_file_counts_by_its_content(tiny_study):
    study = studies.parse(tiny_study, "tiny")

    def identity(path, digest):
        options = Options(weights=path)
        return plan.runs(plan.resolve(study, options), options, lambda data: "", lambda path: digest)[0].identity

    assert identity("a.h5", "one") == identity("./a.h5", "one") != identity("a.h5", "other")


def test_the_augmentation_changes_the_identity_and_comes_back_from_json(tiny_study):
    turned = tiny_study.replace("epochs = 1", "epochs = 1\naugment = { rotation = 0.1 }")
    several = turned.replace("epochs = 1", "epochs = 1\naugment_views = 2")
    found = [runs(text)[0] for text in (tiny_study, turned, turned.replace("0.1", "0.2"), several)]
    assert len({run.identity for run in found}) == 4
    assert plan.restore(plan.Run, plan.plain(found[3])) == found[3]


def test_data_changes_the_identity_the_title_does_not(tiny_study):
    one = runs(tiny_study)[0]
    assert one.identity != runs(tiny_study, fingerprint="other")[0].identity
    assert one.identity == runs(tiny_study.replace('"tiny"', '"another title"'))[0].identity


def test_seeds_share_a_configuration(tiny_study):
    a, b = runs(tiny_study, Options(seeds=(0, 1), only=("all",)))
    assert a.configuration == b.configuration and a.identity != b.identity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(only=("al",)), r"--only al: tiny has no such configuration; did you mean 'all'\?"),
        (Options(precision=("float23",)), r"--precision float23: did you mean 'float32'\?"),
        (Options(xla=("maybe",)), r"--xla maybe: there are: auto, on, off"),
        (Options(engine=("cache",)), r"--engine cache: did you mean 'cached'\?"),
    ],
)
def test_flags_that_fit_nothing(tiny_study, options, message):
    with pytest.raises(UserError, match=message):
        runs(tiny_study, options)


def test_weights_must_come_from_somewhere(tiny_study):
    with pytest.raises(UserError, match="nothing says where the weights of 'output' come from"):
        runs(tiny_study.replace('weights = "none"\n', ""))


def test_a_run_survives_json(tiny_study):
    rich = with_pretrain(tiny_study) + (
        "stages = [ { early_stopping = { patience = 2 } }, { reduce_on_plateau = { factor = 0.5, patience = 1 } } ]\n"
        'head = { layers = [ { dense = 4 } ], activation = "logit" }\nreported = { top1 = 0.5 }'
    ).replace("head = { layers", 'reset = ["head/output"]\nhead = { layers')
    rich = rich.replace('name = "scratch"\nhead = "inherit"\n', 'name = "scratch"\n')
    for run in runs(rich):
        again = plan.restore(Run, plan.plain(run))
        assert again == run
        assert dataclasses.asdict(again) == dataclasses.asdict(run)


def test_what_a_later_stage_resets_is_part_of_an_identity(tiny_study):
    text = tiny_study + "stages = [ {}, {} ]"
    (plain,) = (r for r in runs(text) if r.freeze.name == "all")
    (reset,) = (r for r in runs(text.replace("{} ]", '{ reset = ["head/.*"] } ]')) if r.freeze.name == "all")
    assert plain.identity != reset.identity
    asked = plan._of_freeze(plain.freeze)
    assert all("reset" not in stage for stage in asked["stages"])  # so that runs of before there was such a key count
    assert plain.origin[2] is not None and reset.origin[2] == reset.seed  # whose first weights are random


def test_the_pre_training_can_be_asked_for_alone(tiny_study):
    text = with_pretrain(tiny_study)
    assert [r.freeze.name for r in runs(text, Options(only=("pretrain",), seeds=(0, 1)))] == ["pretrain"] * 2
    with pytest.raises(UserError, match=r"no such configuration; did you mean 'output'.* There are: pretrain, output"):
        runs(text, Options(only=("outptu",)))
    with pytest.raises(UserError, match="there are: output, all"):
        runs(text, Options(only=("pretrain",), weights="none"))


def test_rows_that_flags_override_are_named(tiny_study):
    text = tiny_study.replace('train = ["head/output"]', 'precision = ["float32", "mixed_bfloat16"]\nxla = "on"')
    study = studies.parse(text, "tiny")
    assert plan.overridden(study, Options()) == []
    assert plan.overridden(study, Options(precision=("float32",), xla=("off",), engine=("plain",))) == [
        "--precision float32 stands in place of what the study asks for: output (float32, mixed_bfloat16)",
        "--xla off stands in place of what the study asks for: output (on)",
    ]
    assert plan.overridden(study, Options(precision=("float32",), only=("all",))) == []
    assert plan.overridden(study, Options(xla=("on",))) == []
