"""What the README tells of study files is what the program reads."""

import dataclasses
import re
from pathlib import Path

import pytest

from frostline import studies

README = Path(__file__).resolve().parents[1] / "README.md"
TABLES = {
    "[data]": studies.Data,
    "[data] splits": studies.Splits,
    "[backbone]": studies.Backbone,
    "[head]": studies.Head,
    "[augment]": studies.Augment,
    "[train]": studies.Stage,
    "early_stopping": studies.EarlyStopping,
    "reduce_on_plateau": studies.ReduceOnPlateau,
    "[[freeze]]": studies.Freeze,
    "[search]": studies.Search,
}
# Keys that are no field, or whose default in a file is another than the field's.
OTHER = {
    "[train]": {key: '`"auto"`' for key in studies.RUN_KEYS},
    "[search]": {"freeze": "`-`", **dict.fromkeys(studies.SEARCHED, "`-`")},
    "[[freeze]]": {"stages": "`-`"},
}
NO_KEYS = {"[train]": {"reset"}, "[[freeze]]": {"drawn", *studies.RUN_KEYS}, "[search]": {"space"}}


def told():
    """Default by table and key, as the README has it."""
    section = README.read_text(encoding="utf-8").partition("## Every key of a study file")[2].partition("\n## ")[0]
    found = {}
    for line in section.splitlines():
        if row := re.fullmatch(r"\| (\S.*?) \| `(\w+)` \|(.*)\| (.+) \|", line):
            found.setdefault(row[1].strip("`"), {})[row[2]] = row[4]
    return found


def shown(field):
    """The default of a field as TOML, as a reader would write it."""
    default = field.default
    if default is dataclasses.MISSING:
        return "required"
    if default is None:
        return "`-`"
    if default == ("all",) and field.name == "train_images":
        return '`"all"`'
    if isinstance(default, tuple):
        return f"`{list(default)}`".replace("'", '"')
    return f'`"{default}"`' if isinstance(default, str) else f"`{str(default).lower()}`"


@pytest.mark.parametrize("table", TABLES)
def test_the_readme_has_every_key_with_its_default(table):
    fields = {f.name: shown(f) for f in dataclasses.fields(TABLES[table]) if f.name not in NO_KEYS.get(table, ())}
    assert told()[table] == fields | OTHER.get(table, {})


def test_the_readme_has_every_table_and_what_stands_above_them():
    assert set(told()) == {*TABLES, "top"}
    assert told()["top"] == {"title": "the file's name", "seeds": "`[0]`"}
