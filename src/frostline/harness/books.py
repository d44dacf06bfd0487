"""What the records say is finished already."""

from pathlib import Path

from frostline import machine, plan, records
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


def skip(planned: list[Run], reason: str, results: Path) -> None:
    """Record why runs cannot be done here, so that tables show their rows, with what a document reports of them."""
    last = newest(results)
    for run in planned:
        known = last.get(run.identity, {"outcome": None, "reason": None})
        if not run.trial and known["outcome"] != "ok" and known["reason"] != reason:
            told = {"outcome": "skipped", "reason": reason, "time": records.now(), "machine": machine.facts()}
            records.append(results, plan.heading(run) | told)


def newest(results: Path) -> dict[str, Event]:
    """The newest training record of each identity."""
    return {r["identity"]: r for r in records.read(results) if r["kind"] == "train"}
