"""The store of features: what is read is what was written, or it is not used; whoever dies, the next one recovers."""

import contextlib
import fcntl
import json
import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from frostline import cli, features
from frostline.errors import UserError

KEY = features.key({"study": "tiny"})
LAYOUT = features.Layout({"train": 10, "test": 3}, ((4, 2), (5,)), ("float32", "bfloat16"))
ABOUT = {"study": "tiny", "backbone": "small_cnn", "boundary": ["conv", "pool"], "images": 13}

# What a child needs of this module; it waits for a line on its standard input in the middle of `fill`.
CHILD = """
import sys
import numpy as np
from frostline import features
layout = features.Layout({"train": 10}, ((4,),), ("float32",))
rows = np.arange(40, dtype="float32").reshape(10, 4)
def fill(write):
    open(sys.argv[2], "a").write("filled\\n")
    write("train", [rows[:6]])
    print("filling", flush=True)
    assert sys.stdin.readline()
    write("train", [rows[6:]])
"""
COMPUTE = (
    CHILD
    + """
made = features.compute(sys.argv[1], layout, {}, fill, waiting=lambda: print("waiting", flush=True))
with features.load(sys.argv[1], memory_bytes=0) as found:
    print(made, np.array_equal(found.arrays["train"][0], rows), flush=True)
"""
)


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """A store of the test's own."""
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path))
    monkeypatch.delenv("FROSTLINE_FEATURES_LIMIT", raising=False)
    return tmp_path / "features"


def arrays(layout=LAYOUT, seed=0):
    """Features by split for a layout."""
    rng = np.random.default_rng(seed)
    dtypes = [getattr(ml_dtypes, name, name) for name in layout.dtypes]
    return {
        split: [rng.normal(size=(rows, *s)).astype(d) for s, d in zip(layout.shapes, dtypes, strict=True)]
        for split, rows in layout.rows.items()
    }


def filler(content, batch=4):
    """A `fill` that writes what is given in batches."""

    def fill(write):
        for split, tensors in content.items():
            for start in range(0, len(tensors[0]), batch):
                write(split, [tensor[start : start + batch] for tensor in tensors])
        return {"seconds": 1.5}

    return fill


def make(key=KEY, layout=LAYOUT, **options):
    return features.compute(key, layout, ABOUT, filler(arrays(layout)), **options)


def unwanted(write):
    raise AssertionError("computed although it must not be")


def left(store):
    """All that the store holds besides its lock."""
    return sorted(path.name for path in store.iterdir() if path.name != ".lock")


def same(found, expected=None):
    expected = arrays() if expected is None else expected
    assert found.keys() == expected.keys()
    for split, tensors in expected.items():
        for got, tensor in zip(found[split], tensors, strict=True):
            assert got.dtype == tensor.dtype and np.array_equal(got, tensor)


def child(code, *args):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], text=True, **pipes)


# -- written and read ------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_bytes", [LAYOUT.nbytes, LAYOUT.nbytes - 1])
def test_what_is_read_is_what_was_written(memory_bytes, store):
    assert LAYOUT.nbytes == 13 * (8 * 4 + 5 * 2)
    assert make()
    with features.load(KEY, memory_bytes=memory_bytes) as found:
        same(found.arrays)
        assert found.in_memory == (memory_bytes == LAYOUT.nbytes)
        tensors = [tensor for split in found.arrays.values() for tensor in split]
        assert all(isinstance(tensor, np.memmap) != found.in_memory for tensor in tensors)
        assert not any(tensor.flags.writeable for tensor in tensors)
        assert found.about == features.about(KEY) and found.about["seconds"] == 1.5
    assert left(store) == [KEY]


def test_features_that_are_ready_are_not_computed_again():
    assert make()
    assert not features.compute(KEY, LAYOUT, ABOUT, unwanted)


def test_a_key_is_that_of_its_parts():
    parts = {"precision": "float32", "shape": (2, 3)}
    assert features.key(dict(reversed(parts.items()))) == features.key({**parts, "shape": [2, 3]})
    assert features.key(parts) != features.key({**parts, "precision": "bfloat16"})
    assert len(features.key(parts)) == 64


def test_several_entries_are_made_in_one_pass(store):
    first, second = sorted((KEY, features.key({"study": "other"})))

    def both(write_first):
        def fill(write_second):
            filler(arrays())(write_first)
            filler(arrays())(write_second)

        features.compute(second, LAYOUT, ABOUT, fill)

    assert features.compute(first, LAYOUT, ABOUT, both)
    for key in (first, second):
        with features.load(key, memory_bytes=1 << 20) as found:
            same(found.arrays)


WRONG = {
    "shape": {"train": [np.zeros((2, 4, 3), "f4"), np.zeros((2, 5), ml_dtypes.bfloat16)]},
    "dtype": {"train": [np.zeros((2, 4, 2), "f4"), np.zeros((2, 5), "f2")]},
    "byte order": {"train": [np.zeros((2, 4, 2), ">f4"), np.zeros((2, 5), ml_dtypes.bfloat16)]},
    "number": {"train": [np.zeros((2, 4, 2), "f4")]},
    "ragged": {"train": [np.zeros((2, 4, 2), "f4"), np.zeros((1, 5), ml_dtypes.bfloat16)]},
    "too many": {"test": [np.zeros((4, 4, 2), "f4"), np.zeros((4, 5), ml_dtypes.bfloat16)]},
    "split": {"validation": [np.zeros((2, 4, 2), "f4"), np.zeros((2, 5), ml_dtypes.bfloat16)]},
    "too few": {split: [tensor[:2] for tensor in tensors] for split, tensors in arrays().items()},
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_other_features_than_announced_are_refused(content, store):
    with pytest.raises(ValueError, match=r"announced|rows|no split"):
        features.compute(KEY, LAYOUT, ABOUT, filler(content))
    assert left(store) == []


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
def test_a_pass_that_fails_leaves_nothing(error, store):
    def fill(write):
        write("train", [tensor[:2] for tensor in arrays()["train"]])
        raise error("not ours")

    with pytest.raises(error, match="not ours"):
        features.compute(KEY, LAYOUT, ABOUT, fill)
    assert left(store) == []


# -- damage ----------------------------------------------------------------------------------------


def truncate(entry):
    os.truncate(entry / "train.0.bin", 100)


def grow(entry):
    with (entry / "train.0.bin").open("ab") as file:
        file.write(b"\0")


def alter(entry):
    raw = bytearray((entry / "test.1.bin").read_bytes())
    raw[7] ^= 1
    (entry / "test.1.bin").write_bytes(raw)


def lose(entry):
    (entry / "test.0.bin").unlink()


def tear(entry):
    os.truncate(entry / "about.json", 200)


def swap(entry):
    """Another shape of as many bytes: sizes and hashes are as they were."""
    text = (entry / "about.json").read_text()
    swapped = json.dumps({**json.loads(text), "layout": {**json.loads(text)["layout"], "shapes": [[2, 4], [5]]}})
    (entry / "about.json").write_text(swapped)


def forget(entry):
    (entry / "about.json").unlink()


def babble(entry):
    (entry / "about.json").write_text("[1]")


SEEN_AT_ONCE = [truncate, grow, lose, tear, swap, forget, babble]


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
@pytest.mark.parametrize("damage", [*SEEN_AT_ONCE, alter])
def test_damaged_features_are_never_used(damage, memory_bytes, store):
    make()
    damage(store / KEY)
    with pytest.raises(features.Damaged, match="computed again"):
        features.load(KEY, memory_bytes=memory_bytes)
    assert features.about(KEY) is None
    assert make()
    with features.load(KEY, memory_bytes=memory_bytes) as found:
        same(found.arrays)
    assert left(store) == [KEY]


@pytest.mark.parametrize("damage", SEEN_AT_ONCE)
def test_damage_that_shows_without_reading_is_mended_by_the_next_pass(damage, store):
    make()
    damage(store / KEY)
    assert features.entries() == [] and make()
    with features.load(KEY, memory_bytes=0) as found:
        same(found.arrays)
    assert left(store) == [KEY]


def test_an_entry_under_another_key_is_not_used(store):
    make()
    other = features.key({"study": "other"})
    (store / KEY).rename(store / other)
    with pytest.raises(features.Damaged, match="incomplete"):
        features.load(other, memory_bytes=0)


def test_what_is_not_there_is_said():
    with pytest.raises(features.Damaged, match=f"no features {KEY[:12]}"):
        features.load(KEY, memory_bytes=0)


# -- processes -------------------------------------------------------------------------------------


def killed(key, count):
    """Kill a child in the middle of its pass."""
    process = child(COMPUTE, key, count)
    with process:
        assert "filling\n" in iter(process.stdout.readline, "")
        process.kill()


def test_a_killed_pass_is_never_used_and_the_next_recovers(store, tmp_path):
    killed(KEY, tmp_path / "count")
    assert [name.startswith(f".{KEY}.") for name in left(store)] == [True, False]
    assert left(store)[1] == f"{KEY}.lock"
    assert features.about(KEY) is None and features.entries() == []
    with pytest.raises(features.Damaged, match="no features"):
        features.load(KEY, memory_bytes=0)
    assert make()
    with features.load(KEY, memory_bytes=0) as found:
        same(found.arrays)
    assert left(store) == [KEY]


@pytest.mark.parametrize("command", [lambda: features.clear(), lambda: make(features.key({"study": "other"}))])
def test_what_a_killed_pass_left_goes_with_the_next_command(command, store, tmp_path):
    killed(KEY, tmp_path / "count")
    command()
    assert not [name for name in left(store) if KEY in name]


def test_two_processes_compute_the_same_features_once(store, tmp_path):
    count = tmp_path / "count"
    with child(COMPUTE, KEY, count) as first:
        assert "filling\n" in iter(first.stdout.readline, "")
        with child(COMPUTE, KEY, count) as second:
            assert second.stdout.readline() == "waiting\n"  # it has seen that nothing is there
            assert features.clear() == features.Cleared(0, 0, 0)  # what is in the making stays
            answers = [process.communicate("\n", timeout=60)[0] for process in (first, second)]
    assert [answer.splitlines()[-1] for answer in answers] == ["True True", "False True"]
    assert count.read_text() == "filled\n"
    assert left(store) == [KEY]


def test_a_lock_is_that_of_the_file_that_stands_there_now(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    flock, calls = fcntl.flock, []

    def replaced_while_we_wait(handle, operation):
        if not calls:
            path.unlink()
        calls.append(handle)
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", replaced_while_we_wait)
    with features._locked(path, create=True):
        assert len(calls) == 2
        with pytest.raises(BlockingIOError), features._locked(path, wait=False):
            pass


# -- room ------------------------------------------------------------------------------------------


def test_too_little_disk_is_found_before_the_pass(monkeypatch, store):
    free = features.SPARE_BYTES + LAYOUT.nbytes - 1
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(UserError, match=r"need 0\.0 MiB.*disk of .* has 256\.0 MiB left; .*FROSTLINE_CACHE.*clear"):
        features.compute(KEY, LAYOUT, ABOUT, unwanted, limit_bytes=1 << 20)
    assert left(store) == []
    free += 1
    assert make(limit_bytes=1 << 20)


@contextlib.contextmanager
def largest_file(nbytes):
    """A file system on which no file grows beyond this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


BIG = features.Layout({"train": 30}, ((1 << 14,),), ("float32",))


def test_the_room_of_all_files_is_taken_before_the_pass(store):
    message = r"cannot keep features in .*File too large; train with --engine plain"
    with largest_file(1 << 20), pytest.raises(UserError, match=message):
        features.compute(KEY, BIG, ABOUT, unwanted)
    assert left(store) == []


def test_a_disk_that_is_full_in_the_middle_leaves_nothing(monkeypatch, store):
    monkeypatch.delattr(os, "posix_fallocate")
    with largest_file(1 << 20), pytest.raises(UserError, match=r"File too large; .*FROSTLINE_CACHE"):
        features.compute(KEY, BIG, ABOUT, filler(arrays(BIG)))
    assert left(store) == []
    assert make(layout=BIG)


def test_a_disk_that_cannot_reserve_is_no_error(monkeypatch):
    def refuse(handle, offset, size):
        raise OSError(features.errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert make()


def test_a_cache_that_cannot_be_written_is_explained(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot keep features in .*file/features: Not a directory"):
        make()
    assert features.entries() == [] and run("features", "list") == 0


def kept(number):
    return features.key({"number": number})


def three(store, layout):
    """Three entries, of which number 0 was not used for the longest time."""
    for number in range(3):
        make(kept(number), layout)
        aged(store, number)


def aged(store, number):
    os.utime(store / kept(number) / "about.json", (1000 + number, 1000 + number))


EVEN = features.Layout({"train": 16}, ((1 << 10,),), ("float32",))
THREE = 3 * EVEN.nbytes + (32 << 10)  # room for three with their about.json


def remaining():
    return {n for n in range(5) if features.about(kept(n))}


def test_what_was_not_used_for_the_longest_time_goes_first(store):
    three(store, EVEN)
    features.load(kept(0), memory_bytes=0).close()
    assert make(kept(3), EVEN, limit_bytes=THREE)
    assert remaining() == {0, 2, 3}
    assert [entry.key for entry in features.entries()][-1] == kept(2)


def test_features_found_ready_count_as_used(store):
    three(store, EVEN)
    assert not make(kept(0), EVEN)
    assert make(kept(3), EVEN, limit_bytes=THREE)
    assert remaining() == {0, 2, 3}


def test_what_is_in_use_is_never_removed(store):
    three(store, EVEN)
    with features.load(kept(0), memory_bytes=0) as found:
        aged(store, 0)
        assert make(kept(3), EVEN, limit_bytes=THREE)
        assert remaining() == {0, 2, 3}
        same(found.arrays, arrays(EVEN))


def test_nothing_is_removed_where_it_would_not_help(store):
    three(store, EVEN)
    with features.load(kept(0), memory_bytes=0), features.load(kept(1), memory_bytes=0):
        with pytest.raises(UserError, match=r"need 0\.1 MiB, and the store may hold 0\.1 MiB and 0\.2 MiB are in use"):
            features.compute(kept(3), EVEN, ABOUT, unwanted, limit_bytes=2 * EVEN.nbytes)
        assert remaining() == {0, 1, 2}


def test_a_full_disk_gains_room_from_old_features(store, monkeypatch):
    three(store, EVEN)
    before = features._stored()

    def usage(path):
        return SimpleNamespace(free=features.SPARE_BYTES + before - features._stored() + EVEN.nbytes // 2)

    monkeypatch.setattr(features.shutil, "disk_usage", usage)
    features.room(EVEN.nbytes, limit_bytes=1 << 30)
    assert remaining() == {1, 2}


def test_an_entry_beyond_the_limit_is_refused_before_the_pass(store, monkeypatch):
    three(store, EVEN)
    monkeypatch.setenv("FROSTLINE_FEATURES_LIMIT", str(EVEN.nbytes / 2**30 / 2))
    with pytest.raises(UserError, match=r"may hold 0\.0 MiB \(FROSTLINE_FEATURES_LIMIT, in GiB\); .*--engine plain"):
        features.compute(kept(3), EVEN, ABOUT, unwanted)
    assert remaining() == {0, 1, 2}


def test_the_limit_is_half_of_what_the_disk_could_give(monkeypatch):
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 40))
    assert features.limit() == 1 << 39
    make()
    assert features.limit() == (1 << 40) + features._stored() >> 1 > 1 << 39
    monkeypatch.setenv("FROSTLINE_FEATURES_LIMIT", "0.5")
    assert features.limit() == 1 << 29


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_limit_must_be_a_number_of_gib(text, monkeypatch):
    monkeypatch.setenv("FROSTLINE_FEATURES_LIMIT", text)
    with pytest.raises(UserError, match=rf"FROSTLINE_FEATURES_LIMIT = '{text}' is no number of GiB"):
        features.limit()


def test_the_memory_budget_is_what_is_asked_or_a_third_of_what_is_there(monkeypatch):
    monkeypatch.setattr(features.machine, "available_memory_bytes", lambda: 3000)
    assert features.memory_budget(None) == 1000
    assert features.memory_budget(0) == 0 and features.memory_budget(7) == 7
    monkeypatch.setattr(features.machine, "available_memory_bytes", lambda: None)
    assert features.memory_budget(None) == 0


def test_sizes_read_well():
    assert features.size(3 << 19) == "1.5 MiB" and features.size(24 << 30) == "24.0 GiB"


# -- clearing --------------------------------------------------------------------------------------


def test_clear_leaves_what_is_in_use(store):
    three(store, EVEN)
    with features.load(kept(1), memory_bytes=0):
        assert features.clear() == features.Cleared(2, 2 * EVEN.nbytes, 1)
        assert left(store) == [kept(1)]
    assert features.clear() == features.Cleared(1, EVEN.nbytes, 0)
    assert left(store) == []


def test_clear_takes_the_keys_it_is_given(store):
    three(store, EVEN)
    assert features.clear([kept(1)]) == features.Cleared(1, EVEN.nbytes, 0)
    assert remaining() == {0, 2}


# -- the command -----------------------------------------------------------------------------------


def run(*args):
    """Exit status of a command in this process."""
    return cli.main(list(args))


def test_list_shows_what_is_stored(store, capsys, monkeypatch):
    monkeypatch.setenv("FROSTLINE_FEATURES_LIMIT", "2")
    make(layout=EVEN)
    assert run("features", "list") == 0
    header, _, row, _, total = capsys.readouterr().out.splitlines()
    assert header.split() == ["key", "study", "backbone", "frontier", "images", "MiB", "pass", "s", "last", "used"]
    assert row.split()[:8] == [KEY[:12], "tiny", "small_cnn", "conv,", "pool", "13", "0.1", "1.5"]
    assert total == f"1 stored, 0.1 MiB of at most 2.0 GiB, in {store}"


def test_list_as_json_holds_facts(capsys):
    make()
    assert run("features", "list", "--format", "json") == 0
    [entry] = json.loads(capsys.readouterr().out)
    assert entry["used"].startswith("20")
    assert entry == {**ABOUT, "key": KEY, "seconds": 1.5, "bytes": LAYOUT.nbytes, "used": entry["used"]}


def test_an_entry_with_few_facts_can_be_listed(capsys):
    features.compute(KEY, LAYOUT, {}, lambda write: filler(arrays())(write) and None)
    assert run("features", "list") == 0
    assert KEY[:12] in capsys.readouterr().out


def test_clear_by_the_first_digits(store, capsys):
    three(store, EVEN)
    assert run("features", "clear", kept(0)[:6], kept(2)) == 0
    assert capsys.readouterr().out == "2 removed, 0.1 MiB freed\n"
    with features.load(kept(1), memory_bytes=0):
        assert run("features", "clear") == 0
    assert capsys.readouterr().out == "0 removed, 0.0 MiB freed; 1 in use, left as they are\n"
    assert remaining() == {1}


def test_clear_says_what_exists(capsys):
    make("abcdef" + "0" * 58)
    make("abcdef" + "1" * 58)
    for asked, message in [
        ("123456", "no features begin with '123456'; there are: abcdef"),
        ("abcdef", "several features begin with 'abcdef'; "),
        ("abc", "'abc' is too short; give at least 6 digits"),
    ]:
        assert run("features", "clear", asked) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    assert len(features.entries()) == 2


def test_the_command_loads_nothing_heavy():
    make()
    code = """
import sys
from frostline import cli
assert cli.main(["features", "list"]) == 0 and cli.main(["features", "clear"]) == 0
print(sorted({"tensorflow", "keras", "numpy", "ml_dtypes"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "1 removed" in done.stdout and done.stdout.splitlines()[-1] == "[]"
