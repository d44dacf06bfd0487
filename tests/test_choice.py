import dataclasses

import pytest

from frostline import choice, plan, studies
from frostline.choice import Setting
from frostline.errors import UserError
from frostline.plan import Options


@pytest.fixture
def planned(tiny_study):
    """A function that gives the runs of the tiny study, `output` and `all`, after a pre-training where asked for."""

    def runs(pretrain=False, **options):
        text = tiny_study.replace('weights = "none"\n', "") + "[pretrain]\nclasses = [0, 1]" if pretrain else tiny_study
        study = plan.resolve(studies.parse(text, "tiny"), Options(**options))
        return plan.runs(study, Options(**options), lambda data: "data", lambda path: "digest")

    return runs


def cell(run, precision, xla, seconds, outcome="ok", engine="plain"):
    """What was predicted of a run under one precision and XLA setting."""
    stage = {"engine": engine, "most_bytes": None, "seconds": seconds}
    timing = choice.timing_key(run)
    row = {"freeze": run.freeze.name, "timing": timing, "precision": precision, "xla": xla, "outcome": outcome}
    return {**row, "stages": [stage] if outcome == "ok" else None}


def table(output, everything, figures):
    """Cells of both runs from (precision, xla): (seconds of `output`, seconds of `all`); None was given up."""
    return [
        cell(run, *candidate, seconds, "ok" if seconds is not None else "given up")
        for candidate, pair in figures.items()
        for run, seconds in zip((output, everything), pair, strict=True)
    ]


def picked(cells, run, device="cpu"):
    setting = choice.pick(cells, run, device)
    return setting.precision, setting.xla


def test_the_precision_with_the_smallest_sum_is_that_of_all_rows_and_xla_is_each_rows_own(planned):
    output, everything = planned()
    cells = table(output, everything, {
        ("float32", "off"): (1.0, 9.0), ("float32", "on"): (3.0, 8.0),
        ("mixed_bfloat16", "off"): (2.0, 6.0), ("mixed_bfloat16", "on"): (1.5, 7.0),
    })  # fmt: skip
    assert picked(cells, output) == ("mixed_bfloat16", "on")  # 7.5 s in all against 9 s
    assert picked(cells, everything) == ("mixed_bfloat16", "off")


def test_what_is_asked_for_stays(planned):
    figures = {(p, x): (s, s) for p, x, s in [
        ("float32", "off", 3.0), ("float32", "on", 4.0), ("mixed_bfloat16", "off", 2.0), ("mixed_bfloat16", "on", 5.0),
    ]}  # fmt: skip

    def asked(**options):
        output, everything = planned(**options)
        return picked(table(output, everything, figures), output)

    assert asked(precision=("float32",)) == ("float32", "off")
    assert asked(xla=("on",)) == ("mixed_bfloat16", "on")
    assert asked() == ("mixed_bfloat16", "off")


def test_a_precision_that_one_row_did_not_finish_is_not_for_all(planned):
    output, everything = planned()
    cells = table(output, everything, {
        ("float32", "off"): (9.0, 9.0), ("float32", "on"): (8.0, None), ("mixed_bfloat16", "off"): (1.0, None),
        ("mixed_bfloat16", "on"): (1.0, None),
    })  # fmt: skip
    assert picked(cells, output) == ("float32", "on")
    assert picked(cells, everything) == ("float32", "off")


def test_one_xla_setting_that_ended_is_enough_for_a_precision(planned):
    output, everything = planned()
    cells = table(output, everything, {
        ("float32", "off"): (9.0, 9.0), ("mixed_bfloat16", "off"): (1.0, None), ("mixed_bfloat16", "on"): (None, 1.0),
    })  # fmt: skip
    assert picked(cells, output) == ("mixed_bfloat16", "off")
    assert picked(cells, everything) == ("mixed_bfloat16", "on")


def test_a_gpu_takes_mixed_precision_with_xla_unless_asked_otherwise(planned):
    figures = {
        (p, x): (s, s) for p, s in [("float32", 1.0), ("mixed_float16", 9.0)] for x, s in [("off", s), ("on", s)]
    }

    def on_gpu(**options):
        output, everything = planned(**options)
        return picked(table(output, everything, figures), output, "gpu")

    assert on_gpu() == ("mixed_float16", "on")
    assert on_gpu(precision=("float32",)) == ("float32", "on")
    assert on_gpu(xla=("off",)) == ("mixed_float16", "off")


def test_xla_that_is_asked_for_needs_no_measurement(planned):
    output, everything = planned(xla=("on",))
    cells = table(output, everything, {("float32", "off"): (1.0, 1.0), ("float32", "on"): (None, 1.0)})
    assert picked(cells, output) == ("float32", "on")


def test_nothing_left_is_an_error_with_advice(planned):
    output, everything = planned(xla=("on",))
    asked = dataclasses.replace(everything.freeze, precision=("mixed_bfloat16",))
    cells = table(output, everything, {("float32", "off"): (1.0, 1.0), ("float32", "on"): (None, 1.0)})
    with pytest.raises(UserError, match="all: no step in mixed_bfloat16 could be measured to its end; name another"):
        choice.pick(cells, dataclasses.replace(everything, freeze=asked), "cpu")
    with pytest.raises(UserError, match="no precision could be measured to its end; name one, such as --precision"):
        choice.pick(table(output, everything, {("float32", "on"): (None, 1.0)}), everything, "cpu")


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_precision_that_was_not_timed_is_a_clear_error(planned, device):
    output, everything = planned(precision=("mixed_float16",))
    with pytest.raises(UserError, match="name another precision, such as --precision float32"):
        choice.pick(table(output, everything, {("float32", "off"): (1.0, 1.0)}), output, device)


def test_the_pretraining_is_run_as_the_costliest_row_that_is_trained_without_features(planned):
    source, output, everything = planned(pretrain=True)
    figures = {("float32", "off"): (90.0, 9.0), ("float32", "on"): (80.0, 7.0)}
    cells = table(output, everything, figures)
    assert choice.pick(cells, source, "cpu") == Setting("float32", "on", ())
    assert picked(cells, source, "gpu") == ("float32", "on")
    for c in cells:
        if c["freeze"] == "output":  # cached, and so no measure of what the pre-training does
            c["stages"][0]["engine"] = "cached"
    cells[1]["stages"][0]["seconds"] = 6.0
    assert picked(cells, source) == ("float32", "off")


def test_the_pretraining_runs_without_xla_where_every_row_is_cached_and_as_asked_otherwise(planned):
    source, output, _ = planned(pretrain=True)
    cells = [cell(output, "float32", "on", 1.0, engine="cached")]
    assert picked(cells, source) == ("float32", "off")
    (asked, *_) = planned(pretrain=True, xla=("on",))
    assert picked(cells, asked) == ("float32", "on")


def test_a_row_is_told_the_engines_that_were_found_cheapest(planned):
    output, _ = planned()
    cells = [cell(output, "float32", "off", 1.0, engine="cached")]
    cells[0]["stages"] = [{"engine": "cached", "most_bytes": 100, "seconds": 1.0}]
    setting = choice.pick(cells, output, "cpu")
    assert setting.engines(output) == [{"name": "cached", "most_bytes": 100}]
    assert choice.seconds(cells[0]) == 1.0


@pytest.mark.parametrize(("engine", "name"), [("cached", "cached"), ("plain", "plain")])
def test_without_cells_the_engine_is_the_one_that_was_asked_for(planned, engine, name):
    source, output, everything = planned(pretrain=True, precision=("float32",), xla=("off",), engine=(engine,))
    for run in (output, everything):
        assert choice.pick([], run, "cpu").engines(run) == [{"name": name, "most_bytes": None}]
    assert choice.pick([], source, "cpu").engines(source) == [{"name": "plain", "most_bytes": None}]


def test_each_engine_that_is_asked_for_has_cells_of_its_own(planned):
    plain, cached = planned(engine=("plain", "cached"), only=("output",))
    cells = [cell(plain, "float32", "off", 9.0), cell(cached, "float32", "off", 1.0, engine="cached")]
    assert [choice.pick(cells, run, "cpu").engines(run)[0]["name"] for run in (plain, cached)] == ["plain", "cached"]


def test_what_is_timed_is_what_is_asked_for(planned):
    assert choice.candidates(planned(), "mixed_bfloat16") == [
        ("float32", "off"), ("mixed_bfloat16", "off"), ("float32", "on"), ("mixed_bfloat16", "on"),
    ]  # fmt: skip
    assert choice.candidates(planned(precision=("mixed_float16",)), "mixed_bfloat16") == [
        ("mixed_float16", "off"), ("mixed_float16", "on"),
    ]  # fmt: skip
    assert choice.candidates(planned(precision=("float32",), xla=("on",)), "mixed_bfloat16") == [("float32", "on")]


def test_one_open_question_is_enough_to_measure(planned):
    settled = {"precision": ("float32",), "xla": ("off",), "engine": ("plain",)}
    assert not choice.needed(planned(**settled))
    for question in settled:
        assert choice.needed(planned(**settled | {question: ("auto",)}))


def test_what_was_measured_for_other_settings_is_measured_anew(planned):
    keys = {choice.key(planned(**options)) for options in (
        {}, {"precision": ("float32",)}, {"xla": ("on",)}, {"engine": ("cached",)}, {"limit": 50}, {"epochs": 1},
    )}  # fmt: skip
    assert len(keys) == 5  # the tiny study has one epoch as it is
    assert choice.key(planned(weights="other.h5")) == choice.key(planned())


def test_augmentation_is_other_work(tiny_study):
    def timing(more):
        study = studies.parse(tiny_study.replace("epochs = 1", f"epochs = 1\n{more}"), "tiny")
        runs = plan.runs(plan.resolve(study, Options()), Options(), lambda data: "data", lambda path: "digest")
        return choice.timing_key(runs[0])

    turned = "augment = { rotation = 0.1 }"
    assert len({timing(more) for more in ("", turned, f"{turned}\naugment_views = 2")}) == 3


def test_another_network_in_the_same_file_is_timed_anew(tiny_study):
    study = plan.resolve(studies.parse(tiny_study.replace("small_cnn", "file:mine.keras"), "tiny"), Options())
    assert study.backbone.name == "file:mine.keras"
    planned = [plan.runs(study, Options(), lambda data: "data", lambda path, found=found: found) for found in "ab"]
    assert choice.key(planned[0]) == choice.key(planned[0]) != choice.key(planned[1])
