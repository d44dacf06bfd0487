"""`make bench-compare`: what counts as a regression, on saved runs made by hand."""

import importlib.util
import json
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "bench" / "compare.py"
spec = importlib.util.spec_from_file_location("bench_compare", SOURCE)
compare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare)


def run(**benchmarks):
    """A saved run: medians and interquartile ranges in seconds."""
    listed = [
        {"fullname": name, "stats": {"median": median, "iqr": iqr}, "extra_info": {"versions": {"keras": "3"}}}
        for name, (median, iqr) in benchmarks.items()
    ]
    return {one["fullname"]: one for one in listed}


def test_a_median_is_slower_when_it_is_further_than_both_ranges_together():
    old = run(step=(1.0, 0.05), noisy=(1.0, 0.5), gone=(1.0, 0.0))
    assert compare.slower(old, run(step=(1.09, 0.05), noisy=(1.8, 0.5), new=(9.0, 0.0))) == []
    assert compare.slower(old, run(step=(1.11, 0.05), noisy=(2.1, 0.5))) == ["step", "noisy"]
    assert compare.slower(old, run(step=(0.5, 0.01))) == []


def test_the_table_names_what_is_slower_faster_new_and_gone():
    old, new = run(a=(1.0, 0.01), b=(1.0, 0.01), c=(1.0, 0.01)), run(a=(2.0, 0.01), b=(0.5, 0.01), d=(1.0, 0.0))
    new["a"]["extra_info"]["versions"] = {"keras": "4"}
    text = [line.split() for line in compare.table(old, new, ["a"]).splitlines()]
    assert text[1] == ["1000.000", "2000.000", "20.000", "a:", "SLOWER", "(other", "versions)"]
    assert text[2][3:] == ["b:", "faster"] and text[3][3:] == ["d:", "new"] and text[4] == ["c:", "not", "run"]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Runs that save, in turn, what they are given; returns what each was asked to run."""
    monkeypatch.setattr(compare, "STORAGE", tmp_path / "saved")
    asked, coming = [], []

    def measure(arguments, save=compare.STORAGE):
        asked.append(arguments)
        folder = save / "Linux-CPython"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{len(asked):04d}_now.json").write_text(json.dumps({"benchmarks": list(coming.pop(0).values())}))
        return 0

    monkeypatch.setattr(compare, "measure", measure)
    return asked, coming


def test_a_regression_has_to_show_twice(machine, capsys):
    asked, coming = machine
    coming += [run(step=(1.0, 0.01)), run(step=(1.001, 0.01))]
    assert compare.main([]) == 0 and "no earlier run" in capsys.readouterr().out
    assert compare.main([]) == 0 and asked == [[], []]
    coming += [run(step=(2.0, 0.01)), run(step=(1.0, 0.01))]  # a neighbour passed
    assert compare.main([]) == 0 and asked[2:] == [[], ["step"]]
    assert "SLOWER" not in capsys.readouterr().out
    coming += [run(step=(1.5, 0.01)), run(step=(1.4, 0.01))]  # what seemed slower before is no measure now
    assert compare.main([]) == 1
    assert "step: SLOWER" in capsys.readouterr().out


def test_a_run_of_a_part_does_not_hide_a_regression_of_the_rest(machine, capsys):
    _, coming = machine
    coming += [run(step=(1.0, 0.01), epoch=(1.0, 0.01)), run(epoch=(1.0, 0.01))]
    coming += [run(step=(2.0, 0.01), epoch=(1.0, 0.01)), run(step=(2.0, 0.01))]
    assert compare.main([]) == 0 and compare.main(["-k", "epoch"]) == 0
    assert compare.main([]) == 1 and "step: SLOWER" in capsys.readouterr().out


def test_what_pytest_says_of_a_failure_is_passed_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compare, "STORAGE", tmp_path)
    monkeypatch.setattr(compare, "measure", lambda arguments, save=None: 4)
    assert compare.main([]) == 4
    monkeypatch.setattr(compare, "measure", lambda arguments, save=None: 0)
    assert compare.main([]) == 1 and "no benchmark ran" in capsys.readouterr().out
