"""What `auto` means for precision, XLA and engine: what was measured to be fastest for this study on this machine."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from frostline import machine
from frostline.errors import UserError
from frostline.plan import PRETRAIN, Run, plain

GIVE_UP_FACTOR = 10.0
NOT_TIMED = "not timed"  # the outcome of a cell that says what is in effect, and rests on no measurement
TIMED = ("train", "optimizer", "momentum", "batch_size", "batch_norm", "frontier", "epochs", "augment", "augment_views")
Candidate = tuple[str, str]
Cell = tuple[str, str, str]  # precision, XLA, timing key


@dataclass(frozen=True)
class Setting:
    """Precision, XLA ("on" or "off") and, for each stage, the estimate that names its engine; none: as asked."""

    precision: str
    xla: str
    stages: tuple[dict[str, Any], ...]

    def engines(self, run: Run) -> list[dict[str, Any]]:
        """What the training is told of each stage of a run."""
        if self.stages:
            return [{"name": stage["engine"], "most_bytes": stage["most_bytes"]} for stage in self.stages]
        name = "cached" if run.engine == "cached" and run.freeze.name != PRETRAIN else "plain"
        return [{"name": name, "most_bytes": None} for _ in run.freeze.stages]


def key(runs: Sequence[Run]) -> str:
    """Hash of what is measured: the machine, the versions, what is trained, and the settings that are asked for."""
    facts = {k: v for k, v in machine.facts().items() if k in ("cpu", "cores", "gpus", "versions")}
    facts["versions"] = {k: v for k, v in facts["versions"].items() if k in ("frostline", "tensorflow", "keras")}
    timed = sorted(
        {json.dumps([timing_key(r), plain(r.backbone), r.network, r.data.image_size, r.precision, r.xla]) for r in runs}
    )
    return hashlib.sha256(json.dumps([facts, timed], sort_keys=True).encode()).hexdigest()


def timing_key(run: Run) -> str:
    """Equal for runs that do the same work: stages, engine, head and data, whatever their names and weights.

    The trials of a search are timed as what they vary, once for all of them.
    """
    freeze = run.freeze.drawn.varied if run.freeze.drawn else run.freeze
    stages = [{k: v for k, v in plain(stage).items() if k in TIMED} for stage in freeze.stages]
    head = freeze.head if freeze.head is None or isinstance(freeze.head, str) else plain(freeze.head)
    data = [plain(run.data), run.fingerprint, run.limit]
    return json.dumps([stages, head, run.backbone.cut, run.engine, data], sort_keys=True)


def pick(cells: Sequence[dict[str, Any]], run: Run, device: str) -> Setting:
    """What is in effect for a run, from measured cells.

    The precision is one for all that leave it open, so that rows compare: the one with the smallest sum of predicted
    seconds over the configurations; on a GPU the mixed one. XLA changes no result and is taken where it is faster, on
    a GPU always. Raises UserError when nothing is left.
    """
    timing = timing_key(run)
    if untimed := _untimed(cells, run, timing):
        return untimed
    precision = _precision(cells, run, device)
    own = [c for c in cells if c["timing"] == timing and c["precision"] == precision and c["outcome"] == "ok"]
    matching = [c for c in own if run.xla in ("auto", c["xla"])]
    if not cells or run.freeze.name == PRETRAIN:
        return Setting(precision, _pretrain_xla(cells, run, precision, device), ())
    if own and not matching:  # XLA was asked for by name; what it is not measured with tells the engine all the same
        return Setting(precision, run.xla, tuple(min(own, key=seconds)["stages"]))
    if not own:
        raise UserError(
            f"{run.freeze.name}: no step in {precision} could be measured to its end; name another precision, such as "
            "--precision float32"
        )
    on = [c for c in matching if c["xla"] == "on"]
    best = on[0] if device == "gpu" and on else min(matching, key=seconds)
    return Setting(precision, best["xla"], tuple(best["stages"]))


def _untimed(cells: Sequence[dict[str, Any]], run: Run, timing: str) -> Setting | None:
    """What is in effect where nothing was timed: as asked, and what the cell names where that is open."""
    untimed = [c for c in cells if c["outcome"] == NOT_TIMED]
    whole = len(untimed) == len(cells) and run.freeze.name == PRETRAIN
    cell = next((c for c in untimed if whole or c["timing"] == timing), None)
    if cell is None:
        return None
    precision = cell["precision"] if run.precision == "auto" else run.precision
    xla = cell["xla"] if run.xla == "auto" else run.xla
    return Setting(precision, xla, () if run.freeze.name == PRETRAIN else tuple(cell["stages"]))


def _precision(cells: Sequence[dict[str, Any]], run: Run, device: str) -> str:
    if run.precision != "auto":
        return run.precision
    rows = {_row(c) for c in cells if c["outcome"] != NOT_TIMED}
    totals = {}
    for precision in dict.fromkeys(c["precision"] for c in cells):
        ok = [c for c in cells if c["precision"] == precision and c["outcome"] == "ok"]
        if {_row(c) for c in ok} == rows:
            totals[precision] = sum(min(seconds(c) for c in ok if _row(c) == row) for row in rows)
    if not totals:
        raise UserError("no precision could be measured to its end; name one, such as --precision float32 --xla off")
    mixed = [p for p in totals if p != "float32"]
    return mixed[0] if device == "gpu" and mixed else min(totals, key=lambda p: totals[p])


def _pretrain_xla(cells: Sequence[dict[str, Any]], run: Run, precision: str, device: str) -> str:
    """The pre-training is not timed: as on the costliest row that the plain engine trains, else off."""
    if run.xla != "auto":
        return run.xla
    if device == "gpu":
        return "on"
    ok = [c for c in cells if c["outcome"] == "ok" and c["precision"] == precision]
    plain_ones = [c for c in ok if all(stage["engine"] == "plain" for stage in c["stages"])]
    if not plain_ones:
        return "off"
    row = _row(max(plain_ones, key=seconds))
    return min((c for c in plain_ones if _row(c) == row), key=seconds)["xla"]


def engine(names: Sequence[str]) -> str:
    """How a run is called whose stages ran with these engines."""
    return names[0] if len(set(names)) == 1 else "mixed"


def _row(cell: dict[str, Any]) -> tuple[str, str]:
    """A configuration as it was timed; the engines asked for may make several of one."""
    return cell["freeze"], cell["timing"]


def seconds(cell: dict[str, Any]) -> float:
    """What a run is predicted to take."""
    return sum(stage["seconds"] for stage in cell["stages"])


def candidates(runs: Sequence[Run], mixed: str) -> list[Candidate]:
    """(precision, "off" or "on") to be timed: what is asked for, and float32, mixed precision and both where open."""
    precisions = {p for run in runs for p in (["float32", mixed] if run.precision == "auto" else [run.precision])}
    settings = {x for run in runs for x in (["off", "on"] if run.xla == "auto" else [run.xla])}
    return [(p, x) for x in sorted(settings) for p in sorted(precisions)]


def lacking(runs: Sequence[Run], cells: Sequence[dict[str, Any]], mixed: str) -> list[Cell]:
    """What is still to be timed for some runs, candidate by candidate, given cells that are there."""
    timings = dict.fromkeys(timing_key(run) for run in runs if run.freeze.name != PRETRAIN)
    settled = {c["timing"] for c in cells if c["outcome"] == NOT_TIMED}
    there = {(c["precision"], c["xla"], c["timing"]) for c in cells}
    wanted = [(*candidate, timing) for candidate in candidates(runs, mixed) for timing in timings]
    return [cell for cell in wanted if cell not in there and cell[2] not in settled]


def default(device: str, mixed: str) -> Candidate:
    """The candidate that `auto` is where timing would take longer than all training."""
    return (mixed, "on") if device == "gpu" else ("float32", "off")


def described(device: str, mixed: str) -> str:
    """What `auto` is where nothing was timed, in words."""
    precision, xla = default(device, mixed)
    return f"{precision} with XLA {xla}, and features wherever a part is frozen"


def needed(runs: Sequence[Run]) -> bool:
    """Whether any run leaves its precision or XLA to a measurement, or features to a look at their cost and room."""
    return any("auto" in (run.precision, run.xla) or run.engine != "plain" for run in runs)
