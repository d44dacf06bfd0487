"""What `auto` means for precision and XLA: the fastest candidate that was measured for this study on this machine."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from frostline import machine
from frostline.errors import UserError
from frostline.plan import Run, plain

GIVE_UP_FACTOR = 10.0
Candidate = tuple[str, str]


def key(runs: Sequence[Run]) -> str:
    """Hash of what the measured times depend on: the machine, the versions, and what is trained."""
    facts = {k: v for k, v in machine.facts().items() if k in ("cpu", "cores", "gpus", "versions")}
    facts["versions"] = {k: v for k, v in facts["versions"].items() if k in ("tensorflow", "keras")}
    timed = sorted({json.dumps([timing_key(run), plain(run.backbone), run.data.image_size]) for run in runs})
    return hashlib.sha256(json.dumps([facts, timed], sort_keys=True).encode()).hexdigest()


def timing_key(run: Run) -> str:
    """Equal for runs whose training steps do the same work: stages and head, whatever their names and weights."""
    stages = [
        {k: v for k, v in plain(stage).items() if k in ("train", "optimizer", "batch_size", "batch_norm")}
        for stage in run.freeze.stages
    ]
    head = run.freeze.head if run.freeze.head is None or isinstance(run.freeze.head, str) else plain(run.freeze.head)
    return json.dumps([stages, head, len(run.data.classes or ())], sort_keys=True)


def pick(cells: Sequence[dict[str, Any]], precision: str, xla: str, device: str) -> tuple[str, str]:
    """(precision, "on" or "off") in effect for what was asked, from measured cells.

    On a CPU the candidate with the smallest sum of step times over all configurations; one with a cell that was
    given up or failed is not eligible. On a GPU mixed precision with XLA. Raises UserError when nothing is left.
    """
    if precision != "auto" and xla != "auto":
        return precision, xla
    candidates: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        candidates.setdefault((cell["precision"], cell["xla"]), []).append(cell)
    matching = {
        candidate: own
        for candidate, own in candidates.items()
        if precision in ("auto", candidate[0]) and xla in ("auto", candidate[1])
    }
    if device == "gpu":
        wanted = [c for c in matching if c[0] != "float32" or precision == "float32"]
        if wanted:
            return max(wanted, key=lambda c: c[1] == "on")
    complete = {c: own for c, own in matching.items() if all(cell["outcome"] == "ok" for cell in own)}
    if not complete:
        raise UserError(
            f"precision = {precision!r} with xla = {xla!r}: no candidate could be measured to its end; "
            "name both, such as --precision float32 --xla off"
        )
    return min(complete, key=lambda c: sum(cell["step_seconds"] for cell in complete[c]))


def candidates(runs: Sequence[Run], mixed: str) -> list[Candidate]:
    """(precision, "off" or "on") to be timed: float32, the device's mixed precision, and what else is asked for."""
    asked = [run.precision for run in runs if run.precision != "auto" and run.xla == "auto"]
    return [(precision, xla) for xla in ("off", "on") for precision in dict.fromkeys(["float32", mixed, *asked])]


def needed(runs: Sequence[Run]) -> bool:
    """Whether any run leaves its precision or XLA to a measurement."""
    return any("auto" in (run.precision, run.xla) for run in runs)


Measure = Callable[[Candidate, dict[str, float]], list[dict[str, Any]]]


def measure(candidates: Sequence[Candidate], one: Measure) -> list[dict[str, Any]]:
    """Cells of all candidates, in turn. `one` measures a candidate, given the seconds each cell may take at most."""
    best: dict[str, float] = {}
    cells: list[dict[str, Any]] = []
    for candidate in candidates:
        limits = {name: GIVE_UP_FACTOR * seconds for name, seconds in best.items()}
        for cell in one(candidate, limits):
            cells.append(cell)
            if cell["outcome"] == "ok":
                best[cell["timing"]] = min(cell["elapsed_seconds"], best.get(cell["timing"], float("inf")))
    return cells
