import itertools
import json
import subprocess
import sys

import pytest

from frostline import records
from frostline.errors import UserError


def test_what_is_appended_is_read_back_in_order(tmp_path):
    records.append(tmp_path, {"kind": "x", "value": float("nan")})
    records.append(tmp_path, {"kind": "y", "value": [1.5, float("inf")]})
    assert records.read(tmp_path) == [
        {"schema": 1, "kind": "x", "value": None},
        {"schema": 1, "kind": "y", "value": [1.5, None]},
    ]


def test_a_line_torn_by_a_crash_is_dropped_and_nothing_else(tmp_path):
    records.append(tmp_path, {"kind": "x"})
    with (tmp_path / records.FILE).open("a") as file:
        file.write('{"schema": 1, "kind": "to')
    assert [r["kind"] for r in records.read(tmp_path)] == ["x"]
    records.append(tmp_path, {"kind": "y"})
    assert [r["kind"] for r in records.read(tmp_path)] == ["x", "y"]


def test_a_later_schema_is_refused_with_advice(tmp_path):
    (tmp_path / records.FILE).write_text(json.dumps({"schema": 99}) + "\n")
    with pytest.raises(UserError, match="schema 99, this frostline reads 1; upgrade frostline"):
        records.read(tmp_path)


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / records.FILE).write_text("hello\n")
    with pytest.raises(UserError, match=r"records.jsonl:1 is not a frostline record"):
        records.read(tmp_path)


def test_a_second_command_on_the_same_folder_is_refused_and_a_later_one_is_not(tmp_path):
    take = f"""
from pathlib import Path
from frostline import records
with records.lock(Path({str(tmp_path)!r})): pass
"""
    with records.lock(tmp_path):
        other = subprocess.run([sys.executable, "-c", take], capture_output=True, text=True, check=False)
    assert other.returncode and "another frostline command" in other.stderr
    assert subprocess.run([sys.executable, "-c", take], check=False).returncode == 0


def test_a_folder_that_cannot_be_written_is_a_mistake_of_the_user(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to the results folder"), records.lock(tmp_path / "file" / "x"):
        pass


CLOCK = itertools.count()


def row(seed, configuration="a", outcome="ok", top1=0.5, freeze="output", **more):
    """Each record is newer than the one before."""
    return more | {
        "time": f"{next(CLOCK):06}",
        "kind": "train", "study": "s", "freeze": freeze, "variant": "", "seed": seed,
        "configuration": configuration, "outcome": outcome, "validation_top1": top1,
    }  # fmt: skip


def test_two_identities_are_never_mixed():
    found = records.configurations([row(0, "old"), row(1, "old"), row(0, "new"), row(0, freeze="all")])
    assert [(c.freeze, [r["configuration"] for r in c.rows], c.others) for c in found] == [
        ("output", ["new"], 1),
        ("all", ["a"], 0),
    ]


def test_a_repeated_run_replaces_its_record():
    (found,) = records.configurations([row(0, top1=0.1), row(1), row(0, top1=0.9)])
    assert [r["validation_top1"] for r in found.rows] == [0.9, 0.5] and found.others == 0


def test_configurations_stand_in_the_order_of_their_study_whatever_ran_first():
    found = [
        row(0, freeze="all", place=[1, 0]),
        row(0, freeze="pretrain", place=[]),
        row(0, freeze="output", place=[0, 0]),
    ]
    other = [{**row(0, freeze="first", place=[0, 0]), "study": "another"}]
    names = [c.freeze for c in records.configurations([found[0], *other, *found[1:]])]
    assert names == ["pretrain", "output", "all", "first"]


def test_the_representative_is_the_median_of_the_finished():
    rows = [row(0, top1=0.9), row(1, top1=0.1), row(2, top1=0.5), row(3, outcome="failed", top1=None)]
    (found,) = records.configurations(rows)
    assert found.representative["seed"] == 2
    (even,) = records.configurations(rows[:2])
    assert even.representative["seed"] == 1
    (none,) = records.configurations(rows[3:])
    assert none.representative is None


def test_two_machines_or_settings_are_never_averaged():
    cpu, gpu = {"device": "cpu", "precision": "float32"}, {"device": "gpu", "precision": "mixed_bfloat16"}
    (found,) = records.configurations([row(0, **cpu), row(1, **cpu), row(0, **gpu), row(1, outcome="failed")])
    assert [(r["seed"], r["outcome"]) for r in found.rows] == [(0, "ok"), (1, "failed")]
    assert found.rows[0]["device"] == "gpu" and found.others == 1


def test_what_is_wanted_is_found_behind_a_newer_configuration():
    rows = [row(0, "full", top1=0.9), row(0, "quick", top1=0.1)]
    assert records.configurations(rows)[0].representative["configuration"] == "quick"
    assert records.configurations(rows, {"full"})[0].representative["configuration"] == "full"


def test_a_line_torn_inside_a_character_is_dropped(tmp_path):
    records.append(tmp_path, {"kind": "x"})
    with (tmp_path / records.FILE).open("ab") as file:
        file.write('{"schema": 1, "kind": "ü'.encode()[:-1])
    assert [r["kind"] for r in records.read(tmp_path)] == ["x"]
    (tmp_path / records.FILE).write_text('{"schema": "x"}\n')
    with pytest.raises(UserError, match="is not a frostline record"):
        records.read(tmp_path)
