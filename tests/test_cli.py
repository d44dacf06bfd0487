import json
import subprocess
import sys

import pytest

from frostline import cli, records


def run(*args):
    """Exit status of a command in this process."""
    return cli.main([str(a) for a in args])


def test_list_prints_names_and_summaries(capsys):
    assert run("list", "datasets") == 0
    out = capsys.readouterr().out
    assert "digits" in out and "image_folder" in out and "tfds:NAME" in out


def test_list_as_json_is_a_list_of_objects(capsys):
    for what in cli.LISTS:
        assert run("list", what, "--format", "json") == 0
        entries = json.loads(capsys.readouterr().out)
        assert entries and all(set(e) == {"name", "summary"} for e in entries)


def test_mistakes_are_one_line_and_status_two(capsys, tmp_path):
    for args, message in [
        (("run", "nothing"), "unknown study 'nothing'"),
        (("run", "digits", "--only", "outputt"), "did you mean 'output'? There are: pretrain, output,"),
        (("run", "petz.toml"), "there is no study file petz.toml; there are: cats_and_dogs_"),
        (("run", "cifar_split.toml"), "there is no study file cifar_split.toml; did you mean 'cifar10_split'?"),
        (("run", "digits", "--precision", "half"), "--precision half: there are: auto, float32"),
        (("run", "digits", "--engine", "cache"), "--engine cache: did you mean 'cached'?"),
        (("run", "cifar10_split", "--data-dir", "nowhere"), "--data-dir: there is no folder nowhere"),
        (("run", "digits", "--weights", "imagnet"), "weights that are no file: did you mean 'imagenet'?"),
        (("table", tmp_path), "holds no records.jsonl"),
        (("export", tmp_path), "holds no finished run; type: frostline run STUDY"),
        (("infer", tmp_path), "holds no published model"),
    ]:
        assert run(*args, *(["--results", tmp_path / "r"] if args[0] == "run" else [])) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1 and "Errno" not in err, err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "the following arguments are required: COMMAND; type: frostline --help"),
        (("rnu",), "argument COMMAND: invalid choice: 'rnu' (choose from "),
        (("run",), "the following arguments are required: STUDY; type: frostline run --help"),
        (("run", "digits", "--lmit", "3"), "arguments: --lmit 3; did you mean --limit?; type: frostline run --help"),
        (("features", "list", "x"), "unrecognized arguments: x; type: frostline features list --help"),
        (("--nothing", "list"), "unrecognized arguments: --nothing; type: frostline --help"),
        (("run", "digits", "--limit", "0"), "argument --limit: '0' is not a whole number from 1; type: frostline run"),
        (("run", "digits", "--epochs", "x"), "argument --epochs: 'x' is not a whole number"),
        (("run", "digits", "--seeds", "0,0"), "argument --seeds: '0,0' is not a list of different whole numbers"),
        (("run", "digits", "--seeds", "a"), "argument --seeds: 'a' is not a list"),
        (("table", "results", "--format", "html"), "argument --format: invalid choice: 'html'"),
        (("features",), "the following arguments are required: list|clear; type: frostline features --help"),
    ],
)
def test_mistakes_in_the_arguments_are_one_line_and_status_two(args, message, capsys):
    assert run(*args) == 2
    err = capsys.readouterr().err
    assert err.startswith("frostline: ") and message in err and err.count("\n") == 1, err
    assert err.rstrip().endswith("--help")


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 4 << 30), ("500MiB", 500 << 20), ("1.5KiB", 1536), ("0.5TiB", 1 << 39), ("1000", 1000), ("0", 0)],
)
def test_sizes(text, size):
    assert cli.parser().parse_args(["run", "digits", "--features-memory", text]).features_memory == size


@pytest.mark.parametrize("text", ["", "GiB", "4GB", "4gib", "4 GiBs", "-1GiB", "four", "1.2.3MiB", "4GiBGiB", "1GMiB"])
def test_what_is_no_size(text, capsys):
    assert run("run", "digits", f"--features-memory={text}") == 2
    assert f"{text!r} is not a size, such as 500MiB or 4GiB" in capsys.readouterr().err


def test_memory_and_engine_reach_the_harness(monkeypatch, tmp_path):
    from frostline import harness, tables

    seen = []
    monkeypatch.setattr(tables, "plan", lambda found, width: "")
    monkeypatch.setattr(harness, "dry_run", lambda study, options, places, fresh: seen.append((options, places, fresh)))
    assert run("run", "digits", "--dry-run", "--engine", "cached,plain", "--features-memory", "1KiB", "--fresh") == 0
    ((options, places, fresh),) = seen
    assert fresh and options.engine == ("cached", "plain") and places.features_memory == 1024


def test_a_status_is_told_also_where_nobody_reads_the_tables(monkeypatch, tmp_path):
    from frostline.exporting import checking

    def gone(*args, **kwargs):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", gone)
    monkeypatch.setattr(cli.os, "dup2", lambda *args: None)
    for wrong, status in (([], 0), (["half a version"], 1)):
        found = [{"model": "m", "version": 1, "wrong": wrong}]
        monkeypatch.setattr(checking, "check", lambda exports, found=found: found)
        assert run("check", tmp_path) == status


def test_only_of_export_must_exist(tmp_path, capsys):
    row = {"kind": "train", "study": "s", "freeze": "output", "variant": "", "seed": 0, "configuration": "c",
           "outcome": "failed", "reason": "x", "time": "t"}  # fmt: skip
    records.append(tmp_path, row)
    assert run("export", tmp_path, "--only", "outptu") == 2
    assert "no such configuration" in capsys.readouterr().err


def test_trials_of_a_search_are_published_where_asked_for_alone(tmp_path, monkeypatch):
    from frostline import harness

    row = {"kind": "train", "study": "s", "variant": "", "seed": 0, "outcome": "ok", "time": "t"}
    for name, search in (("head", None), ("head_trial_1", {"best": False}), ("head_best", {"best": True})):
        records.append(tmp_path, {**row, "freeze": name, "configuration": f"c-{name}", "search": search})
    chosen = []
    monkeypatch.setattr(harness, "export_models", lambda found, *where: chosen.append(found) or True)
    assert run("export", tmp_path) == run("export", tmp_path, "--only", "head_trial_1") == 0
    assert chosen == [{"c-head", "c-head_best"}, {"c-head_trial_1"}]


def test_an_unknown_variant_is_named(tmp_path, capsys):
    assert run("export", tmp_path, "--variant", "int4") == 2
    assert "unknown variant 'int4'; did you mean 'int8'" in capsys.readouterr().err


@pytest.mark.parametrize(("wrong", "status", "text"), [([], 0, "m 3: ok"), (["a", "b"], 1, "m 3: a; b")])
def test_check_says_what_is_wrong(wrong, status, text, tmp_path, capsys, monkeypatch):
    from frostline.exporting import checking

    found = [{"model": "m", "version": "3", "wrong": wrong}]
    monkeypatch.setattr(checking, "check", lambda exports: found)
    assert run("check", tmp_path) == status
    assert capsys.readouterr().out.strip() == text
    assert run("check", tmp_path, "--format", "json") == status
    assert json.loads(capsys.readouterr().out) == found


def test_check_without_models(tmp_path, capsys):
    assert run("check", tmp_path) == 2
    assert "holds no published model; type: frostline run" in capsys.readouterr().err


def test_table_reads_several_folders(tmp_path, capsys):
    from test_tables import train

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        records.append(tmp_path / name, train(name, 0))
    assert run("table", tmp_path / "a", tmp_path / "b", "--format", "json") == 0
    assert [r["freeze"] for r in json.loads(capsys.readouterr().out)] == ["a", "b"]


@pytest.mark.parametrize(("terminal", "mark"), [(True, "freeze "), (False, "| freeze |")])
def test_tables_are_plain_and_as_wide_as_the_terminal_or_github_elsewhere(
    terminal, mark, tmp_path, capsys, monkeypatch
):
    from test_tables import train

    records.append(tmp_path, train("a", 0))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "80")
    assert run("table", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if " ".join(line.split()).startswith(mark)]
    assert (len(heads) > 2 and max(map(len, heads)) <= 80) is terminal and len(heads) > 1


def test_ctrl_c_is_said_and_is_status_130(monkeypatch, capsys):
    from frostline import harness

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(harness, "run_study", interrupted)
    assert run("run", "digits") == 130
    assert "what is finished is kept" in capsys.readouterr().err


def test_a_child_that_dies_is_one_line_and_status_one(monkeypatch, capsys):
    from frostline import children, harness

    def died(*args, **kwargs):
        raise children.Died("exit status 1: MemoryError (see results/logs/preflight.txt)")

    monkeypatch.setattr(harness, "run_study", died)
    assert run("run", "digits") == 1
    err = capsys.readouterr().err
    assert "MemoryError (see results/logs/preflight.txt)" in err and err.count("\n") == 1


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["list", "runtimes"]])
def test_light_commands_load_nothing_heavy(args):
    code = f"""
import sys
from frostline import cli
try:
    cli.main({args})
except SystemExit:
    pass
print(sorted({{"tensorflow", "keras", "numpy"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]" and done.stdout
