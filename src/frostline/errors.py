"""Errors that are for a person: what was asked, what exists, what to type."""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


class UserError(Exception):
    """A mistake the user can mend; printed as one line without a traceback, exit status 2."""


MOST_LISTED = 160  # characters of a list beside a word that is probably meant


def nearest(asked: str, known: Iterable[str]) -> str:
    """A clause that names the closest known word, and lists all of them where that is short or none is close."""
    words = list(known)
    close = difflib.get_close_matches(asked, words, n=1, cutoff=0.6)
    listed = ", ".join(words) if words else "none"
    if not close:
        return f"there are: {listed}"
    return f"did you mean {close[0]!r}?{f' There are: {listed}' if len(listed) <= MOST_LISTED else ''}"


def lookup(table: Mapping[str, T], name: str, noun: str) -> T:
    """The entry called `name`; raises UserError that lists what exists."""
    if name in table:
        return table[name]
    raise UserError(f"unknown {noun} {name!r}; {nearest(name, table)}")


def nothing_published(exports: Path) -> UserError:
    """What to say of a folder without a model."""
    return UserError(f"{exports} holds no published model; type: frostline run STUDY --exports {exports}")


def optional_import(module: str, extra: str) -> ModuleType:
    """Import a module that belongs to an extra; raises UserError that says what to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and not (module == error.name or module.startswith(error.name + ".")):
            raise
        raise UserError(f"{module} is not installed; type: pip install 'frostline[{extra}]'") from error
