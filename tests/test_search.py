import dataclasses
import statistics

import pytest

from frostline import choice, plan, search, studies
from frostline.errors import UserError
from frostline.plan import Options

SEARCH = """
[[freeze]]
name = "head"
train = ["head/.*"]
head = { layers = [ { dense = 8 }, { dropout = 0.5 }, { dense = 4 } ], l2 = 0.5 }
precision = ["float32", "auto"]
seeds = [3, 4]
reported = { top1 = 0.1 }
[search]
freeze = "head"
trials = 6
units = { low = 256, high = 1024, step = 128 }
l2 = { low = 1e-4, high = 1e-2, log = true }
learning_rate = { low = 1e-4, high = 1e-2, log = true }
batch_size = [8, 32]
optimizer = ["adam", "sgd"]
dropout = { low = 0.1, high = 0.6 }
"""
TPE = SEARCH.replace("trials = 6", 'trials = 8\nsampler = "tpe"')
ENDED = {f"head_trial_{n}": (0.5 + n / 100, -1.0) for n in range(1, 9)}


def resolved(text, options=None):
    return plan.resolve(studies.parse(text, "tiny"), options or Options())


def drawn(text, ended=(), options=None):
    """The configurations that a search makes of what has ended."""
    return [f for f in search.expand(resolved(text, options), dict(ended)).freeze if f.drawn]


def runs(text, ended=(), options=None):
    options = options or Options()
    study = search.expand(resolved(text, options), dict(ended))
    return plan.runs(study, options, lambda data: "data", lambda path: "digest")


def values(text, ended=()):
    return [dict(freeze.drawn.values) for freeze in drawn(text, ended)]


def test_a_trial_is_the_varied_configuration_with_its_values_and_one_seed(tiny_study):
    trials = drawn(tiny_study + SEARCH)
    assert [f.name for f in trials] == [f"head_trial_{n}" for n in range(1, 7)]
    for trial in trials:
        known = dict(trial.drawn.values)
        (stage,) = trial.stages
        assert (stage.learning_rate, stage.batch_size, stage.optimizer) == (
            known["learning_rate"], known["batch_size"], known["optimizer"],
        )  # fmt: skip
        assert [(x.kind, x.size) for x in trial.head.layers] == [
            ("dense", known["units"]), ("dropout", known["dropout"]), ("dense", 4),
        ]  # fmt: skip
        assert trial.head.l2 == known["l2"] and stage.train == ("head/.*",)
        assert (trial.seeds, trial.precision, trial.reported) == ((3,), ("float32",), None)
    assert drawn(tiny_study + SEARCH, options=Options(seeds=(7, 8)))[0].seeds == (7,)


def test_values_lie_in_their_ranges_and_the_seed_decides_them(tiny_study):
    found = values(tiny_study + SEARCH)
    assert all(v["units"] in range(256, 1025, 128) and 1e-4 <= v["l2"] <= 1e-2 for v in found)
    assert len({v["units"] for v in found}) > 1 and {v["optimizer"] for v in found} == {"adam", "sgd"}
    assert found == values(tiny_study + SEARCH)
    assert found != values(tiny_study + SEARCH + "seed = 1")


def test_more_trials_keep_the_first_ones(tiny_study):
    more = (tiny_study + SEARCH).replace("trials = 6", "trials = 9")
    assert values(more)[:6] == values(tiny_study + SEARCH)
    few = {r.freeze.name: r.identity for r in runs(tiny_study + SEARCH)}
    assert few.items() <= {r.freeze.name: r.identity for r in runs(more)}.items()


def test_a_trial_is_its_values_not_the_search_it_came_from(tiny_study):
    trial = next(r for r in runs(tiny_study + SEARCH) if r.trial)
    freeze = dataclasses.replace(trial.freeze, drawn=None)
    study = dataclasses.replace(resolved(tiny_study + SEARCH), freeze=(freeze,))
    (alone,) = plan.runs(study, Options(), lambda data: "data", lambda path: "digest")
    assert alone.identity == trial.identity


def test_the_best_has_the_values_of_the_best_trial_and_all_seeds(tiny_study):
    text = tiny_study + SEARCH
    six = {name: ENDED[name] for name in list(ENDED)[:6]}
    assert [f.name for f in drawn(text, six) if f.drawn.best] == ["head_best"]
    for change, number in [
        ({}, 6),
        ({"head_trial_2": (0.9, -1.0)}, 2),
        ({"head_trial_2": (0.9, -1.0), "head_trial_4": (0.9, -0.5)}, 4),
        ({"head_trial_6": ()}, 5),
        ({"head_trial_1": (0.56, -1.0)}, 1),
    ]:
        best = drawn(text, six | change)[-1]
        trial = next(f for f in drawn(text) if f.drawn.trial == number)
        assert (best.name, best.drawn.trial, best.drawn.values) == ("head_best", number, trial.drawn.values)
        assert (best.head, best.stages, best.seeds) == (trial.head, trial.stages, (3, 4))


def test_there_is_no_best_while_a_trial_is_open_or_where_all_failed(tiny_study):
    six = {name: ENDED[name] for name in list(ENDED)[:6]}
    del six["head_trial_3"]
    assert not any(f.drawn.best for f in drawn(tiny_study + SEARCH, six))
    assert not any(f.drawn.best for f in drawn(tiny_study + SEARCH, dict.fromkeys(ENDED, ())))


def test_tpe_knows_its_random_draws_at_once_and_then_one_trial_after_the_other(tiny_study):
    text = tiny_study + TPE
    at_once = values(text)
    assert len(at_once) == search.STARTUP == 5
    five, six = dict(list(ENDED.items())[:5]), dict(list(ENDED.items())[:6])
    assert values(text, dict(list(ENDED.items())[1:5])) == at_once
    assert values(text, five)[:5] == values(text, six)[:5] == at_once
    assert [len(values(text, told)) for told in (five, six, ENDED)] == [6, 7, 9]
    assert values(text, six)[:6] == values(text, five) == values(text, five)


def test_what_tpe_draws_depends_on_results(tiny_study):
    five = dict(list(ENDED.items())[:5])
    other = five | {"head_trial_1": (0.99, -1.0), "head_trial_5": (0.01, -1.0)}
    one, two = values(tiny_study + TPE, five)[5], values(tiny_study + TPE, other)[5]
    assert one != two
    assert values(tiny_study + TPE, five | {"head_trial_1": ()})[5] != one


def test_tpe_goes_where_results_are_better():
    rate = studies.Parameter("learning_rate", 1e-4, 1e-2, log=True)
    asked = studies.Search("head", 20, "tpe", 0, (rate,))
    told = []
    while len(told) < asked.trials:
        (_, latest) = search.draw(asked, [*told, None])[-1][0]
        told.append((-latest, 0.0))
    assert statistics.median(value for ((_, value),) in search.draw(asked, told)[10:]) < 5e-4


def test_no_trial_repeats_another_while_there_are_other_values(tiny_study):
    text = tiny_study + '[search]\nfreeze = "all"\ntrials = 6\nbatch_size = [8, 16, 32, 64]\n'
    drawn_sizes = [one["batch_size"] for one in values(text)]
    assert sorted(drawn_sizes[:4]) == [8, 16, 32, 64] and len(drawn_sizes) == 6
    tpe = text.replace("trials = 6", 'trials = 4\nsampler = "tpe"')
    assert sorted(one["batch_size"] for one in values(tpe)) == [8, 16, 32, 64]


def test_all_trials_are_timed_as_what_they_vary(tiny_study):
    planned = [r for r in runs(tiny_study + SEARCH, ENDED) if r.freeze.name.startswith("head")]
    assert len({choice.timing_key(run) for run in planned}) == 1
    found = {r.freeze.name: choice.timing_key(r) for r in runs(tiny_study + SEARCH)}
    assert found["head_trial_1"] == found["head"] != found["output"]


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("head_trial_2", ["head_trial_2"]),
        ("head_best", ["head_trial_1", "head_trial_2", "head_trial_3", "head_trial_4", "head_trial_5", "head_trial_6",
                       "head_best"]),
        ("all", ["all"]),
    ],
)  # fmt: skip
def test_only_brings_what_a_name_needs(tiny_study, only, names):
    assert list(dict.fromkeys(r.freeze.name for r in runs(tiny_study + SEARCH, ENDED, Options(only=(only,))))) == names


def test_only_a_varied_configuration_brings_its_search(tiny_study):
    names = {r.freeze.name for r in runs(tiny_study + SEARCH, ENDED, Options(only=("head",)))}
    assert names == {"head", "head_best", *(f"head_trial_{n}" for n in range(1, 7))}


def test_only_a_trial_of_tpe_brings_those_before_it(tiny_study):
    names = [r.freeze.name for r in runs(tiny_study + TPE, ENDED, Options(only=("head_trial_7",)))]
    assert names == [f"head_trial_{n}" for n in range(1, 8)]


def test_a_name_that_no_search_makes(tiny_study):
    with pytest.raises(UserError, match=r"--only head_trial_7: .* did you mean 'head_trial_6'\?"):
        resolved(tiny_study + SEARCH, Options(only=("head_trial_7",)))


def test_outcomes_are_those_of_trials_with_a_record(tiny_study):
    planned = runs(tiny_study + SEARCH)
    identity = {r.freeze.name: r.identity for r in planned}
    ok = {"outcome": "ok", "validation_top1": 0.5, "validation_loss": 2.0}
    known = {
        identity["head_trial_1"]: ok,
        identity["head_trial_2"]: {"outcome": "failed"},
        identity["head_trial_3"]: ok | {"validation_loss": None},
        identity["head"]: ok,
    }
    found = {"head_trial_1": (0.5, -2.0), "head_trial_2": (), "head_trial_3": (0.5, -float("inf"))}
    assert search.outcomes(planned, known) == found


def test_the_first_seed_of_the_best_is_its_trial(tiny_study):
    planned = runs(tiny_study + SEARCH, ENDED)
    origins = {(r.freeze.name, r.seed): search.origin(r, planned) for r in planned}
    found = {key: trial.freeze.name for key, trial in origins.items() if trial}
    assert found == {("head_best", 3): "head_trial_6"}


def test_optimizers_are_those_that_may_be_drawn(tiny_study):
    freeze = next(f for f in drawn(tiny_study + SEARCH))
    assert search.optimizers(freeze) == {"adam", "sgd"} and not search.optimizers(resolved(tiny_study).freeze[0])


def test_an_inherited_head_stays_and_is_timed_with_what_it_varies(tiny_study):
    text = tiny_study.replace('weights = "none"\n', "", 1) + (
        '[pretrain]\nclasses = [0, 1]\n[[freeze]]\nname = "kept"\nhead = "inherit"\n'
        '[search]\nfreeze = "kept"\ntrials = 1\nlearning_rate = [0.1, 0.2]'
    )
    kept, trial = (r for r in runs(text) if r.freeze.name.startswith("kept"))
    assert trial.inherit_head and trial.freeze.head == kept.freeze.head
    assert trial.pretrain_run == kept.pretrain_run
    assert choice.timing_key(trial) == choice.timing_key(kept)
    with pytest.raises(UserError, match=r"\[search\] l2: 'kept' inherits its head; give it a head of its own"):
        runs(text.replace("learning_rate = [", "l2 = ["))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{ dense = 8 }, { dropout = 0.5 }, { dense = 4 }", "", r"units: the head of 'head' has no dense layer"),
        ("{ dropout = 0.5 }, ", "", r"dropout: the head of 'head' has no dropout layer; add one"),
        ('train = ["head/.*"]\n', 'stages = [ {}, {} ]\n', r"learning_rate: 'head' has 2 stages"),
    ],
)  # fmt: skip
def test_what_the_varied_configuration_lacks_is_named(tiny_study, old, new, message):
    assert old in SEARCH
    with pytest.raises(UserError, match=message):
        drawn(tiny_study + SEARCH.replace(old, new))


def test_a_trial_survives_json(tiny_study):
    text = tiny_study + SEARCH + "reported = { top1 = 0.6 }"
    for run in runs(text, ENDED):
        assert plan.restore(plan.Run, plan.plain(run)) == run
    told = plan.heading(runs(text, ENDED)[-1])["search"]
    assert (told["freeze"], told["trial"], told["best"], told["reported"]) == ("head", 6, True, {"top1": 0.6})
    assert list(told["values"]) == ["units", "l2", "learning_rate", "batch_size", "optimizer", "dropout"]
