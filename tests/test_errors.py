import pytest

from frostline.errors import UserError, lookup, nearest, optional_import


def test_lookup_names_the_nearest_and_all_that_exist():
    message = r"unknown dataset 'cifar'; did you mean 'cifar10'\? There are: cifar10, digits"
    with pytest.raises(UserError, match=message):
        lookup({"cifar10": 1, "digits": 2}, "cifar", "dataset")


def test_a_word_far_from_all_gets_the_list():
    assert nearest("zzz", ["one", "two"]) == "there are: one, two"


def test_a_missing_extra_says_what_to_install():
    with pytest.raises(UserError, match=r"pip install 'frostline\[plot\]'"):
        optional_import("no_such_library_here", "plot")


def test_a_broken_dependency_of_an_extra_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        optional_import("half_installed", "plot")


def test_a_long_list_is_left_out_beside_a_word_that_is_probably_meant():
    known = [*(f"name_{number}" for number in range(40)), "digits"]
    assert nearest("digit", known) == "did you mean 'digits'?"
    assert nearest("xyz", known).endswith("name_39, digits")
