import pytest

from frostline import plan, studies
from frostline.errors import UserError
from frostline.studies import Augment, Backbone, Head, HeadLayer, Parameter


def parse(tiny, old="", new=""):
    assert old in tiny
    return studies.parse(tiny.replace(old, new) if old else tiny + new, "tiny")


def test_what_train_says_every_stage_inherits(tiny_study):
    study = parse(
        tiny_study,
        new="""
        [[freeze]]
        name = "two"
        batch_size = 8
        stages = [ { train = ["head/.*"], epochs = 5 }, { learning_rate = 1e-5, batch_norm = "inference" } ]
        """,
    )
    first, second = study.freeze[2].stages
    assert (first.train, first.epochs, first.batch_size) == (("head/.*",), 5, 8)
    assert (second.train, second.epochs, second.batch_norm, second.learning_rate) == (("all",), 1, "inference", 1e-5)


def test_a_pretraining_inherits_data_and_trains_all(tiny_study):
    study = parse(tiny_study, new='[pretrain]\nclasses = [0, 1]\nlearning_rate = 0.5\npooling = "max"')
    assert study.pretrain.data.classes == (0, 1) and study.pretrain.data.dataset == "digits"
    assert study.pretrain.freeze.stages[0].train == ("all",)
    assert study.pretrain.freeze.stages[0].learning_rate == 0.5
    assert study.pretrain.freeze.head == Head(pooling="max")


def test_a_pretraining_on_another_dataset_takes_over_what_means_something_there(tiny_study):
    own = 'dataset = "image_folder"\npath = "flowers"\nvalidation = 0.2'
    study = parse(tiny_study.replace('dataset = "digits"', own), new='[pretrain]\ndataset = "cifar10"')
    data = study.pretrain.data
    assert (data.dataset, data.path, data.classes, data.validation) == ("cifar10", None, None, 0.2)
    with pytest.raises(UserError, match=r"\[pretrain\]: train_images = \[10, 20\]; a pre-training has one number"):
        parse(tiny_study, new="[pretrain]\ntrain_images = [10, 20]")


def test_precision_and_xla_are_inherited_by_all_runs(tiny_study):
    study = parse(
        tiny_study.replace("epochs = 1", 'epochs = 1\nprecision = "float32"\nxla = ["off", "on"]'),
        new='precision = "mixed_bfloat16"\n[pretrain]\nclasses = [0, 1]\nxla = "off"',
    )
    assert [f.precision for f in study.freeze] == [("float32",), ("mixed_bfloat16",)]
    assert [f.xla for f in study.freeze] == [("off", "on")] * 2
    assert (study.pretrain.freeze.precision, study.pretrain.freeze.xla) == (("float32",), ("off",))


def test_engines_are_inherited_by_all_runs(tiny_study):
    study = parse(
        tiny_study.replace("epochs = 1", 'epochs = 1\nengine = ["cached", "plain"]'),
        new='engine = "auto"\n[pretrain]\nclasses = [0, 1]\nengine = "plain"',
    )
    assert [f.engine for f in study.freeze] == [("cached", "plain"), ("auto",)]
    assert study.pretrain.freeze.engine == ("plain",)
    assert parse(tiny_study).freeze[0].engine == ("auto",)


def test_what_is_inherited_can_be_left_out(tiny_study):
    study = parse(
        tiny_study.replace(
            "epochs = 1", "epochs = 1\nearly_stopping = { patience = 2 }\n"
            "reduce_on_plateau = { factor = 0.5, patience = 1 }"
        ),
        new="""
        [[freeze]]
        name = "to_the_end"
        early_stopping = "none"
        stages = [ { reduce_on_plateau = false }, {} ]
        """,
    )  # fmt: skip
    kept = [[(s.early_stopping is not None, s.reduce_on_plateau is not None) for s in f.stages] for f in study.freeze]
    assert kept == [[(True, True)], [(True, True)], [(False, False), (False, True)]]


def test_a_stage_may_begin_with_fresh_weights(tiny_study):
    study = parse(tiny_study + 'reset = ["head/output"]\nstages = [ {}, { reset = ["head/.*"] } ]')
    assert study.freeze[1].reset == ("head/output",)
    assert [stage.reset for stage in study.freeze[1].stages] == [(), ("head/.*",)]
    with pytest.raises(UserError, match=r"\[train\]: unknown key 'reset'"):
        parse(tiny_study.replace("epochs = 1", 'epochs = 1\nreset = ["head/.*"]'))


TURNED = '[augment]\nflip = "both"\nrotation = 0.1\n'


def augmented(freezes):
    """What each stage of each configuration does to its images."""
    return [[(stage.augment, stage.augment_views) for stage in freeze.stages] for freeze in freezes]


def test_all_stages_are_augmented_unless_they_say_otherwise(tiny_study):
    study = parse(
        tiny_study.replace("epochs = 1", "epochs = 1\naugment_views = 4"),
        new=f"""
        {TURNED}
        [[freeze]]
        name = "none"
        augment = "none"
        [[freeze]]
        name = "own"
        augment = {{ zoom = 0.2 }}
        stages = [ {{ augment = false }}, {{ augment_views = 2 }}, {{ }} ]
        """,
    )
    turned, own = Augment("both", rotation=0.1), Augment(zoom=0.2)
    assert turned.fill == "nearest"
    expected = [[(turned, 4)], [(turned, 4)], [(None, None)], [(None, None), (own, 2), (own, 4)]]
    assert augmented(study.freeze) == expected
    assert augmented(parse(tiny_study).freeze) == [[(None, None)]] * 2


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("", Augment("both", rotation=0.1)),
        ("rotation = 0.2", Augment("both", rotation=0.2)),
        ("augment = false", None),
        ("augment = { zoom = 0.1 }", Augment(zoom=0.1)),
    ],
)
def test_a_pretraining_inherits_the_augmentation(tiny_study, own, expected):
    study = parse(tiny_study, new=f"{TURNED}[pretrain]\nclasses = [0, 1]\n{own}")
    assert study.pretrain.freeze.stages[0].augment == expected


def test_the_frontier_mode_is_each_stages_own(tiny_study):
    study = parse(
        tiny_study,
        new="""
        frontier = "inference_prefix"
        stages = [ { train = ["head/.*"] }, { frontier = "exact" } ]
        """,
    )
    assert [stage.frontier for stage in study.freeze[1].stages] == ["inference_prefix", "exact"]
    assert study.freeze[0].stages[0].frontier == "exact"


def test_a_document_may_report_its_epochs(tiny_study):
    study = parse(tiny_study, new="reported = { top1 = 0.9, history = { validation_top1 = [0.38, 1], loss = [2.5] } }")
    assert study.freeze[1].reported == {"top1": 0.9, "history": {"validation_top1": [0.38, 1], "loss": [2.5]}}
    assert plan.restore(studies.Freeze, plan.plain(study.freeze[1])).reported == study.freeze[1].reported


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ("0.5", r"reported\.history: 0\.5 is not a table"),
        ("{}", r"history = {}; give a number for each epoch, such as { validation_top1 = \[0\.4, 0\.5\] }"),
        ("{ loss = [] }", r"give a number for each epoch"),
        ("{ loss = 0.5 }", r"reported\.history\.loss = 0\.5 is not a list"),
        ('{ loss = [0.5, "x"] }', r"reported\.history\.loss\[1\] = 'x'; give a number"),
        ("{ val_loss = [0.5] }", r"unknown key 'val_loss'; .*validation_loss"),
    ],
)
def test_reported_epochs_are_lists_of_numbers(tiny_study, history, message):
    with pytest.raises(UserError, match=message):
        parse(tiny_study, new=f"reported = {{ history = {history} }}")


@pytest.mark.parametrize("value", ["[]", "0", '["some"]', "[20, 20]", "1.5", "true"])
def test_numbers_of_training_images_are_whole_and_different(tiny_study, value):
    with pytest.raises(UserError, match=r"train_images = .*; give different numbers of images, or \"all\""):
        parse(tiny_study.replace("[data]", f"[data]\ntrain_images = {value}", 1))


def test_a_pretraining_takes_the_named_head_of_the_study(tiny_study):
    study = parse(tiny_study.replace("[data]", 'head = "linear"\n[data]', 1), new="[pretrain]\nclasses = [0, 1]")
    assert study.pretrain.freeze.head == study.freeze[0].head == "linear"


def test_a_backbone_may_be_cut_and_penalized(tiny_study):
    study = parse(tiny_study, "[backbone]", '[backbone]\ncut = "relu_1"\nl2 = 1e-3')
    assert study.backbone == Backbone("small_cnn", "none", cut="relu_1", l2=1e-3)


def test_splits_are_those_of_a_set_and_survive_json(tiny_study):
    study = parse(tiny_study, 'dataset = "digits"', 'dataset = "tfds:a"\nsplits = { train = "train[:40%]" }')
    assert study.data.splits == studies.Splits("train[:40%]", "test", None)
    assert plan.restore(studies.Data, plan.plain(study.data)) == study.data


def test_head_layers(tiny_study):
    study = parse(
        tiny_study,
        new="[head]\nl2 = 0.01\n"
        "layers = [ { conv = 8 }, { block = 16 }, { batch_norm = true }, { dense = 4 }, { dropout = 0.5 } ]",
    )
    kinds = [("conv", 8), ("block", 16), ("batch_norm", 1), ("dense", 4), ("dropout", 0.5)]
    assert study.freeze[0].head == Head(layers=tuple(HeadLayer(k, s) for k, s in kinds), l2=0.01)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("", "[datas]", r"unknown key 'datas'; did you mean 'data'\?"),
        ('dataset = "digits"', 'datset = "digits"', r"unknown key 'datset'; did you mean 'dataset'\?"),
        ("batch_size = 16", "batch_sise = 16", r"\[train\]: unknown key 'batch_sise'; did you mean 'batch_size'\?"),
        ("batch_size = 16", "batch_size = 0", r"batch_size = 0; give a whole number of at least 1"),
        ("batch_size = 16", "batch_size = true", r"batch_size = True"),
        ("batch_size = 16", "learning_rate = 0", r"learning_rate = 0; give a number above 0"),
        (
            'dataset = "digits"',
            'dataset = "tfds:a"\nsplits = { trian = "x" }',
            r"splits: unknown key 'trian'; .*'train'",
        ),
        ('dataset = "digits"', 'dataset = "tfds:a"\nsplits = { test = 1 }', r"splits test = 1 is not a text"),
        ("batch_size = 16", "momentum = 1", r"momentum = 1; give a number between 0 and 1"),
        ('name = "all"', 'name = "all"\nscaling = "uint"', r"'all': scaling = 'uint'; did you mean 'unit'\?"),
        ('name = "all"', 'name = "all"\ncut = ""', r"'all': cut = '' is not a text"),
        ("", "[head]\nlabel_smoothing = 1.5", r"label_smoothing = 1.5; give a number between 0 and 1"),
        ("batch_size = 16", 'batch_norm = "frozen"', r"there are: keras, inference"),
        ('dataset = "digits"', 'dataset = "digits"\nprotocol = "cleen"', r"did you mean 'clean'\?"),
        ('dataset = "digits"', 'dataset = "digits"\nvalidation = 1', r"a number between 0 and 1"),
        ("classes = [5, 6]", "classes = [5, 5]", r"a class is listed twice"),
        ("classes = [5, 6]", "classes = [-1]", r"list class numbers from 0"),
        ('name = "all"', 'name = "output"', r"two freeze configurations are called 'output'"),
        ('name = "all"', 'name = "pretrain"', r"is not 'pretrain'"),
        ('name = "all"', "", r"has no name"),
        ('name = "all"', 'name = "all"\nhead = "inherit"', r"there is none"),
        ('name = "all"', 'name = "all"\nprecision = "fp16"', r"there are: auto, float32, mixed_bfloat16"),
        ('name = "all"', 'name = "all"\nengine = "cache"', r"'all': engine = 'cache'; did you mean 'cached'\?"),
        ('name = "all"', 'name = "all"\nengine = []', r"one or several different of: auto, cached, plain"),
        ('name = "all"', 'name = "all"\nengine = ["plain", "plain"]', r"one or several different of: auto, cached"),
        ('title = "tiny"', "[augment]\nrotate = 0.1", r"\[augment\]: unknown key 'rotate'; did you mean 'rotation'\?"),
        ('title = "tiny"', "[augment]\nrotation = 30", r"rotation = 30; give a number between 0 and 1"),
        ('title = "tiny"', "[augment]\nflip = true", r"flip = True; there are: horizontal, vertical, both"),
        ('title = "tiny"', '[augment]\nzoom = 0.1\nfill = "black"', r"fill = 'black'; there are: nearest, reflect"),
        ('title = "tiny"', '[augment]\nfill = "wrap"', r"\[augment\] = .*; write augment = \{ flip"),
        ("batch_size = 16", "augment = true", r"augment = True; write augment = \{ flip"),
        ("batch_size = 16", "augment_views = 4", r"augment_views = 4 needs an \[augment\] to draw views from"),
        ("batch_size = 16", "augment_views = 0", r"augment_views = 0; give a whole number of at least 1"),
        ("batch_size = 16", 'engine = "fast"', r"engine = 'fast'; there are: auto, cached, plain"),
        ("batch_size = 16", 'frontier = "exakt"', r"frontier = 'exakt'; did you mean 'exact'\?"),
        ("batch_size = 16", 'frontier = ["exact"]', r"frontier = \['exact'\]; did you mean 'exact'\?"),
        ('name = "all"', 'name = "all"\nstages = [ { engine = "plain" } ]', r"stages\[0\]: unknown key 'engine'"),
        ('name = "all"', 'name = "all"\nstages = []', r"stages is empty"),
        ('name = "all"', 'name = "all"\nreported = { top2 = 1 }', r"unknown key 'top2'; did you mean 'top1'\?"),
        ('title = "tiny"', "seeds = [1, 1]", r"different whole numbers"),
        ('title = "tiny"', "title = ", r"is not TOML"),
        ('[backbone]\nname = "small_cnn"\nweights = "none"', "", r"\[backbone\] is missing"),
        ("[backbone]", "[backbone]\nl2 = -1", r"\[backbone\] l2 = -1; give a number of at least 0"),
        ("[backbone]", "[backbone]\ncut = 3", r"\[backbone\] cut = 3 is not a text"),
        ("", "[head]\nlayers = [ { dense = 2, dropout = 0.5 } ]", r"is not a layer; write one of"),
    ],
)
def test_mistakes_in_a_study_are_named(tiny_study, old, new, message):
    with pytest.raises(UserError, match=message):
        parse(tiny_study, old, new)


SEARCH = """
[search]
trials = 6
reported = { top1 = 0.6 }
l2 = { low = 1e-4, high = 1e-2, log = true }
units = { low = 256, high = 1024, step = 128 }
optimizer = ["adam", "sgd"]
"""


def test_a_search_varies_the_first_configuration_in_the_order_of_its_keys(tiny_study):
    (search,) = parse(tiny_study, new=SEARCH).search
    assert (search.freeze, search.trials, search.sampler, search.seed) == ("output", 6, "random", 0)
    assert search.space == (
        Parameter("l2", 1e-4, 1e-2, log=True),
        Parameter("units", 256, 1024, 128),
        Parameter("optimizer", choices=("adam", "sgd")),
    )
    assert search.reported == {"top1": 0.6} and parse(tiny_study).search == ()


def test_several_searches_each_vary_a_configuration_of_their_own(tiny_study):
    several = SEARCH.replace("[search]", "[[search]]")
    found = parse(tiny_study, new=several + several + 'freeze = "all"\nseed = 1').search
    assert [(search.freeze, search.seed) for search in found] == [("output", 0), ("all", 1)]
    with pytest.raises(UserError, match=r"\[search\] makes a configuration 'output_trial_1', and there is another"):
        parse(tiny_study, new=several + several)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trials = 6", "trial = 6", r"\[search\]: unknown key 'trial'; did you mean 'trials'\?"),
        ("trials = 6", "", r"\[search\]: trials is missing"),
        ("trials = 6", "trials = 0", r"trials = 0; give a whole number of at least 1"),
        ("trials = 6", 'trials = 6\nfreeze = "al"', r"freeze = 'al'; did you mean 'all'\?"),
        ("trials = 6", 'trials = 6\nsampler = "tp"', r"sampler = 'tp'; did you mean 'tpe'\?"),
        ("{ top1 = 0.6 }", "{ top2 = 0.6 }", r"\[search\]: reported: unknown key 'top2'; did you mean 'top1'\?"),
        ("units = {", "unit = {", r"unknown key 'unit'; did you mean 'units'\?"),
        ("step = 128 }", "stop = 128 }", r"units: unknown key 'stop'; did you mean 'step'\?"),
        ("low = 256, high = 1024, step = 128", "low = 256, step = 128", r"units: a range needs low and high"),
        ("low = 256", "low = 1024", r"units: a range needs low and high, and low is the smaller one"),
        ("low = 256", "low = 0.5", r"units low = 0.5; give a whole number"),
        ("step = 128", "step = 100", r"units: steps of 100 from 256 miss 1024; give another high or step"),
        ("step = 128", "step = 128, log = true", r"units: log = true goes without step"),
        ("low = 1e-4", "low = 0", r"l2: log = true goes without step, from a low above 0"),
        ("log = true", "log = 1", r"l2 log = 1; write true or false"),
        ('["adam", "sgd"]', '["adam"]', r"optimizer = \['adam'\]; give at least two different choices"),
        ('["adam", "sgd"]', '["adam", "adam"]', r"give at least two different choices"),
        ('["adam", "sgd"]', '"adam"', r"optimizer = 'adam'; give a list of choices$"),
        ('["adam", "sgd"]', '["adam", "sgd"]\ndropout = [0.2, 1]', r"dropout = 1; give a number between 0 and 1"),
        ('["adam", "sgd"]', '["adam", "sgd"]\nbatch_size = 8', r"batch_size = 8; give a list of choices, or \{ low"),
        ('["adam", "sgd"]', '["adam", "sgd"]\nlearning_rate = [0, 1]', r"learning_rate = 0; give a number above 0"),
        (SEARCH, "[search]\ntrials = 6", r"varies nothing; give one or several of: units, dropout, l2, learning_rate"),
    ],
)
def test_mistakes_in_a_search_are_named(tiny_study, old, new, message):
    assert old in SEARCH
    with pytest.raises(UserError, match=message):
        parse(tiny_study, new=SEARCH.replace(old, new))


def test_a_search_needs_names_and_numbers_of_images_that_are_clear(tiny_study):
    with pytest.raises(UserError, match=r"which of several train_images would choose\?"):
        parse(tiny_study.replace("[data]", "[data]\ntrain_images = [20, 40]", 1), new=SEARCH)
    with pytest.raises(UserError, match="makes a configuration 'output_best', and there is another"):
        parse(tiny_study.replace('name = "all"', 'name = "output_best"'), new=SEARCH)
    with pytest.raises(UserError, match=r"\[search\]: 3 is not a table of keys and values"):
        parse("search = 3\n" + tiny_study)


def test_an_unknown_study_lists_those_that_exist():
    with pytest.raises(UserError, match=r"unknown study 'digit', and no path of a .* file; did you mean 'digits'\?$"):
        studies.load("digit")


def test_a_missing_file_and_a_name_that_cannot_be_a_model(tmp_path, tiny_study):
    with pytest.raises(UserError, match=r"there is no study file .*no\.toml; there are: .*digits"):
        studies.load(str(tmp_path / "no.toml"))
    odd = tmp_path / "my study.toml"
    odd.write_text(tiny_study)
    with pytest.raises(UserError, match="cannot stand in one"):
        studies.load(str(odd))


def test_a_share_of_zero_switches_off_what_is_inherited(tiny_study):
    text = tiny_study.replace("epochs = 1", 'epochs = 1\noptimizer = "sgd"\nmomentum = 0.9\naugment = { zoom = 0.1 }')
    text = text.replace('name = "output"', 'name = "output"\nmomentum = 0\naugment = { zoom = 0.0 }', 1)
    output, everything = (freeze.stages[0] for freeze in parse(text).freeze)
    assert (output.momentum, output.augment) == (0.0, None)
    assert (everything.momentum, everything.augment) == (0.9, Augment(zoom=0.1))


@pytest.mark.parametrize("name", studies.names())
def test_every_study_of_the_suite_is_read(name):
    study = studies.load(name)
    assert study.freeze and study.title
