"""Where a command reads and writes, and its way to the children and to the person."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline import children, progress
from frostline.errors import UserError

STARTING = "starting TensorFlow"  # what a child does before its first event
Event = dict[str, Any]


@dataclass(frozen=True)
class Places:
    """Where things are read and written, and bytes of memory that features may take (None: a third of what is free)."""

    results: Path
    exports: Path
    data_dir: Path | None = None
    features_memory: int | None = None


def spawn(
    job: Event,
    places: Places,
    log: str,
    on_event: Callable[[Event], None],
    deadline: Callable[[], float | None] = lambda: None,
    module: str = "frostline.jobs",
) -> None:
    """Run a job in a child whose output goes to `log` in the results folder.

    Raises Died and GivenUp, and UserError for a mistake of the user that the child found.
    """
    mistakes: list[str] = []

    def handle(event: Event) -> None:
        if event["event"] == "user_error":
            mistakes.append(event["message"])
        elif event["event"] != "finished":
            on_event(event)

    path = places.results / log
    where = {"results": str(places.results), "exports": str(places.exports), "spawned": time.time()}
    job = {**job, **where, "data_dir": str(places.data_dir) if places.data_dir else None}
    try:
        children.run(module, job, log=path, on_event=handle, deadline=deadline)
    except children.Died as error:
        if not mistakes:
            raise children.Died(f"{error} (see {path})") from error
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space, or give another results folder"
        ) from error
    if mistakes:
        raise UserError(mistakes[0])


def say(text: str) -> None:
    """A line for the person who waits; standard output is for tables alone."""
    progress.tell(text)
