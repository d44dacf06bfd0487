"""What the records say is finished already."""

from pathlib import Path

from frostline import records
from frostline.harness.base import Event
from frostline.plan import Run


def finished(results: Path) -> set[str]:
    """Identities of the runs that need not be done again: recorded as ok, with their weights still there."""
    return {
        identity
        for identity, record in newest(results).items()
        if record["outcome"] == "ok" and records.weights_file(results, record["run"]).is_file()
    }


def all_ok(planned: list[Run], results: Path) -> bool:
    """Whether the newest record of every run is a success."""
    last = newest(results)
    return all(run.identity in last and last[run.identity]["outcome"] == "ok" for run in planned)


def newest(results: Path) -> dict[str, Event]:
    """The newest training record of each identity."""
    return {r["identity"]: r for r in records.read(results) if r["kind"] == "train"}
