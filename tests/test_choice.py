import pytest

from frostline import choice
from frostline.errors import UserError


def cell(precision, xla, seconds, timing="a", outcome="ok"):
    return {
        "precision": precision, "xla": xla, "timing": timing, "step_seconds": seconds, "outcome": outcome,
        "elapsed_seconds": seconds,
    }  # fmt: skip


CELLS = [
    cell("float32", "off", 3.0),
    cell("mixed_bfloat16", "off", 2.0),
    cell("float32", "on", 1.0, outcome="given up"),
    cell("mixed_bfloat16", "on", 9.0),
]


def test_auto_is_the_fastest_that_was_measured_to_its_end():
    assert choice.pick(CELLS, "auto", "auto", "cpu") == ("mixed_bfloat16", "off")


def test_what_is_asked_stays():
    assert choice.pick(CELLS, "float32", "auto", "cpu") == ("float32", "off")
    assert choice.pick(CELLS, "auto", "on", "cpu") == ("mixed_bfloat16", "on")
    assert choice.pick([], "mixed_float16", "on", "cpu") == ("mixed_float16", "on")


def test_the_sum_over_configurations_decides():
    cells = [cell("float32", "off", 1.0), cell("float32", "off", 9.0, "b"), cell("float32", "on", 4.0),
             cell("float32", "on", 4.0, "b")]  # fmt: skip
    assert choice.pick(cells, "auto", "auto", "cpu") == ("float32", "on")


def test_one_unfinished_cell_rules_a_candidate_out():
    cells = [cell("float32", "off", 9.0), cell("float32", "on", 1.0), cell("float32", "on", 1.0, "b", "not tried")]
    assert choice.pick(cells, "auto", "auto", "cpu") == ("float32", "off")


def test_a_gpu_takes_mixed_precision_with_xla_unless_asked_otherwise():
    cells = [cell(p, x, 1.0) for p in ("float32", "mixed_float16") for x in ("off", "on")]
    assert choice.pick(cells, "auto", "auto", "gpu") == ("mixed_float16", "on")
    assert choice.pick(cells, "float32", "auto", "gpu") == ("float32", "on")
    assert choice.pick(cells, "auto", "off", "gpu") == ("mixed_float16", "off")


def test_nothing_left_is_an_error_with_advice():
    with pytest.raises(UserError, match="name both, such as --precision float32 --xla off"):
        choice.pick(CELLS[2:3], "auto", "on", "cpu")


def test_later_candidates_are_given_ten_times_the_best_so_far():
    seen = []

    def one(candidate, limits):
        seen.append((candidate, dict(limits)))
        return [cell(*candidate, {"first": 2.0, "second": 1.0}.get(candidate[0], 5.0))]

    choice.measure([("first", "off"), ("second", "off"), ("third", "on")], one)
    assert [limits for _, limits in seen] == [{}, {"a": 20.0}, {"a": 10.0}]


def test_a_precision_that_is_asked_for_is_timed_too(tiny_study):
    from frostline import plan, studies
    from frostline.plan import Options

    def runs(*precision):
        options = Options(precision=precision)
        study = plan.resolve(studies.parse(tiny_study, "tiny"), options)
        return plan.runs(study, options, lambda data: "", lambda path: "")

    assert [c[0] for c in choice.candidates(runs("mixed_float16"), "mixed_bfloat16")[:3]] == [
        "float32", "mixed_bfloat16", "mixed_float16",
    ]  # fmt: skip
    assert len(choice.candidates(runs("float32"), "mixed_bfloat16")) == 4


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_precision_that_was_not_timed_is_a_clear_error(device):
    with pytest.raises(UserError, match="no candidate could be measured"):
        choice.pick(CELLS, "mixed_float16", "auto", device)
