"""What a person sees while work goes on: a bar in a terminal, plain lines elsewhere; both on standard error."""

import contextlib
import sys
import time
from types import TracebackType
from typing import Any

QUIET_SECONDS = 5.0


class Progress:
    """Shows one running task of known size; opened with `with`. Without `left` nothing is said of the time left: its
    parts are too unequal to tell."""

    def __init__(self, total: float, unit: str = "epochs", clock=time.monotonic, *, left: bool = True) -> None:
        self.total, self.unit, self.clock, self.left = total, unit, clock, left
        self.done = 0.0
        self.part_ends = 0.0
        self.started = clock()
        self.last_line = float("-inf")
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = [TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn()]
            columns += [TimeRemainingColumn()] * self.left
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task("", total=self.total)
            self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def show(self, text: str, advance: float = 0.0) -> None:
        """Say what is going on now, and that `advance` more of the total is done; lines come at most every 5 s."""
        self.done += advance
        if self.bar:
            self.bar.update(self.task, description=text, advance=advance)
        elif self.clock() - self.last_line >= QUIET_SECONDS:
            self.last_line = self.clock()
            tell(f"{text}{self._left()}")

    def begin(self, size: float) -> None:
        """A part of that size starts; one that ends early (early stopping) counts in full all the same."""
        self.part_ends = self.done + size

    def finish(self) -> None:
        """The part that was begun is over."""
        ahead, self.done = self.part_ends - self.done, self.part_ends
        if self.bar:
            self.bar.update(self.task, advance=ahead)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.bar:
            self.bar.console.print(text, highlight=False, markup=False)
        else:
            tell(text)

    def _left(self) -> str:
        if not 0 < self.done < self.total:
            return ""
        if not self.left:
            return f" - {self.done:g}/{self.total:g} {self.unit}"
        seconds = (self.clock() - self.started) / self.done * (self.total - self.done)
        return f" - {self.done:g}/{self.total:g} {self.unit}, about {duration(seconds)} left"


def tell(text: str) -> None:
    """A line on standard error; one whose reader has gone stops no work."""
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
