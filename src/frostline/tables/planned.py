"""What a dry run found."""

from collections.abc import Sequence

from frostline.progress import duration
from frostline.records import MARKS
from frostline.tables.cells import frontier, label
from frostline.tables.text import MIB, Form, Row, paragraphs, tabulated


def plan(found: list[Row], width: int | None = None) -> str:
    """What a dry run found: one line per stage of each configuration, and what each engine choice rests on.

    `width`: how many characters wide the table may be; wider ones are put below each other in parts.
    """
    lines = []
    reasons: dict[str, list[str]] = {}
    for entry in found:
        first = label(entry)
        for number, (stage, cost) in enumerate(zip(entry["stages"], entry["estimate"], strict=True), 1):
            last = number == len(entry["stages"])
            lines.append(
                [
                    first if number == 1 else "",
                    str(number),
                    f"{stage['trainable_params']:,}",
                    f"{stage['total_params']:,}",
                    _short(stage["trained"]),
                    _short(stage["frozen"]),
                    stage["batch_norm"],
                    frontier(stage) + _mark(stage),
                    cost["engine"],
                    _features(cost),
                    duration(_predicted(entry) * entry["seeds"]) if last else "",
                    f"{entry['memory_bytes'] * MIB:,.0f}" if last else "",
                ]
            )
            other = cost["other_seconds"]
            against = "" if other is None else f" ({_fine(cost['seconds'])} against at least {_fine(other)})"
            shown = f" Trains on views: {stage['augment']}." if stage.get("augment") else ""
            name = first if len(entry["stages"]) == 1 else f"{first}, stage {number}"
            reasons.setdefault(f"{cost['engine']}, {cost['reason']}{against}.{shown}", []).append(name)
    notes = [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()] + _to_come(found)
    headers = ["freeze", "stage", "trainable", "total", "trains", "frozen", "BatchNorm", "frontier"]
    headers += ["engine", "features MiB", "all seeds", "memory MiB"]
    seconds = sum(_predicted(entry) * entry["seeds"] for entry in found)
    notes += [f"auto: {found[0]['auto']}."] * bool(found[0]["auto"])
    notes += [f"‡ {MARKS['‡']}"] * any(_mark(stage) for entry in found for stage in entry["stages"])
    note = (
        f"About {duration(seconds)} of training in all, from a few measured steps in float32 without XLA, each run "
        "with a pass of its own; the start of processes, exports and inference come on top. Nothing was trained.\n"
        "Below the frontier nothing changes while a stage trains: the features of an image are the same in every epoch."
    )
    form = Form("plain", width)
    table = tabulated(lines, headers, form, keys=2)
    return "\n\n".join([table, paragraphs("\n".join(notes), form), paragraphs(note, form)])


def _to_come(found: list[Row]) -> list[str]:
    """What each search will train that follows from the trials a dry run knows."""
    searches = {entry["search"]["freeze"]: entry["search"] for entry in found if entry.get("search")}
    lines = []
    for name, search in searches.items():
        own = [entry["search"] for entry in found if entry.get("search") and entry["search"]["freeze"] == name]
        more = search["trials"] - sum(not s["best"] for s in own)
        if any(s["best"] for s in own) or (more and search["sampler"] == "random"):
            continue  # all is known, or --only asks for less
        trials = f"{more} more trials, each drawn from the results before it, then " if more else ""
        lines.append(f"{name}: {trials}{name}_best, the best trial with all seeds: not in this list nor its sum.")
    return lines


def _mark(stage: Row) -> str:
    """Whether what is frozen below a frontier runs as in inference, as the marks of training tables tell it."""
    return " ‡" if stage["frontier"] and stage["frontier_mode"] == "inference_prefix" else ""


def _predicted(entry: Row) -> float:
    return sum(cost["seconds"] for cost in entry["estimate"])


def _fine(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def _features(cost: Row) -> str:
    return "-" if cost["features_bytes"] is None else f"{cost['features_bytes'] * MIB:,.1f}"


def _short(names: Sequence[str], shown: int = 3) -> str:
    if len(names) <= shown + 1:
        return ", ".join(names) or "nothing"
    return f"{', '.join(names[:shown])}, ... {names[-1]} ({len(names)})"
