import sys

import pytest

from frostline.progress import Progress, duration


@pytest.fixture
def clock():
    return [0.0]


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def test_lines_come_at_most_every_five_seconds_with_the_time_left(clock, capsys):
    with Progress(4, clock=lambda: clock[0]) as progress:
        for second in (0.0, 3.0, 6.0, 12.0):
            clock[0] = second
            progress.show(f"at {second:g}", advance=1 if second else 0)
    assert lines(capsys) == ["at 0", "at 6 - 2/4 epochs, about 6 s left", "at 12 - 3/4 epochs, about 4 s left"]


def test_work_goes_on_where_nobody_reads_its_lines(monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

        flush = isatty = lambda self: None

    monkeypatch.setattr(sys, "stderr", Gone())
    with Progress(2) as progress:
        progress.show("one")
        progress.say("two")


def test_no_time_left_is_told_where_the_parts_are_too_unequal(clock, capsys):
    with Progress(4, "cells", clock=lambda: clock[0], left=False) as progress:
        progress.show("timing", advance=1)
    assert lines(capsys) == ["timing - 1/4 cells"]


def test_a_part_that_ends_early_counts_in_full(clock, capsys):
    with Progress(10, clock=lambda: clock[0]) as progress:
        progress.begin(5)
        progress.show("a", advance=2)
        progress.finish()
        clock[0] = 10.0
        progress.show("b")
    assert lines(capsys)[-1] == "b - 5/10 epochs, about 10 s left"


def test_the_bar_of_a_terminal_shows_what_goes_on_and_keeps_what_is_said(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    with Progress(4, "cells", left=False) as progress:
        progress.show("[1/9] starting TensorFlow")
        progress.say("[1/9] done")
    out = capsys.readouterr().err
    assert "[1/9] done" in out


@pytest.mark.parametrize(("seconds", "text"), [(3, "3 s"), (89, "89 s"), (90, "2 min"), (7200, "2.0 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text
