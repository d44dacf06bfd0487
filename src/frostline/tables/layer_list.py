"""The layers of configurations, and where their frontiers lie."""

from collections import Counter
from typing import Any

from frostline.tables.cells import frontier
from frostline.tables.text import Form, Row, cut, paragraphs, tabulated


def layers(found: list[Row], *, each: bool = False, width: int | None = None) -> str:
    """The layers of some configurations, stage by stage; runs of equal ones in one line unless `each` is asked for.

    `width`: how many characters wide a table may be; the kinds of layers are cut to it.
    """
    parts = []
    for entry in found:
        for number, stage in enumerate(entry["stages"], 1):
            of = f", stage {number} of {len(entry['stages'])}" if len(entry["stages"]) > 1 else ""
            as_if = ", as if everything trained" if stage["problem"] else ""
            parts += [f"{entry['freeze']}{of}{as_if}", _layer_table(stage, each, width), _layer_summary(stage)]
    note = "What stands before a frontier says the same about an image in every epoch of its stage."
    parts.append(note if each else f"{note} --all shows every layer in a line of its own.")
    return "\n\n".join(paragraphs(part, Form("plain", width)) if "\n" not in part else part for part in parts)


def _layer_table(stage: Row, each: bool, width: int | None) -> str:
    """A line for each run of layers, those below the frontier first, and one that marks it."""
    lines: list[list[str]] = []
    below = 0
    for side in (True, False):
        runs = _folded([layer for layer in stage["layers"] if layer["below_frontier"] is side], each)
        lines += [_layer_line(run) for run in runs]
        below = below or len(lines)
    headers = ["#", "group", "layers", "parameters", "state", "BatchNorm", "class"]
    if width:
        others = tabulated([line[:-1] for line in lines], headers[:-1], Form("plain"), right=(3,))
        room = width - max(map(len, others.split("\n"))) - 4  # two between, and two that tabulate keeps behind a header
        if room < 10:
            lines, headers = [line[:-1] for line in lines], headers[:-1]
        else:
            lines = [[*line[:-1], cut(line[-1], room)] for line in lines]
    text = tabulated(lines, headers, Form("plain"), right=(3,)).split("\n")
    mode = "" if stage["frontier_mode"] == "exact" else f" ({stage['frontier_mode']})"
    where = f"frontier{mode}: {frontier(stage)}" if stage["frontier"] else "no frontier: every step runs all layers"
    where = cut(f"---- {where} ", width or len(where) + 6)
    text.insert(1 + below * bool(stage["frontier"]), where.ljust(max(map(len, text)), "-"))
    return "\n".join(text)


def _folded(listed: list[Row], each: bool) -> list[list[Row]]:
    """Neighbours of one group and state together; a layer without weights is of its neighbours' state."""
    runs: list[list[Row]] = []
    for layer in listed:
        if each or not runs or not _alike(runs[-1], layer):
            runs.append([])
        runs[-1].append(layer)
    return runs


def _alike(run: list[Row], layer: Row) -> bool:
    same = all(_of(run, key) in (None, layer[key]) or layer[key] is None for key in ("trains", "batch_norm"))
    return same and run[0]["group"] == layer["group"]


def _of(run: list[Row], key: str) -> Any:
    """What the layers of a run have in common; None where it does not concern them."""
    return next((layer[key] for layer in run if layer[key] is not None), None)


def _layer_line(run: list[Row]) -> list[str]:
    names, numbers = [layer["name"] for layer in run], sorted(layer["number"] for layer in run)
    kinds = Counter(layer["kind"] for layer in run)
    return [
        str(numbers[0]) if len(run) == 1 else f"{numbers[0]}-{numbers[-1]}",
        run[0]["group"] or "",
        ", ".join(names) if len(names) < 3 else f"{names[0]} ... {names[-1]} ({len(names)})",
        f"{sum(layer['params'] for layer in run):,}",
        {None: "", True: "trainable", False: "frozen"}[_of(run, "trains")],
        _of(run, "batch_norm") or "",
        ", ".join(f"{count} {kind}" if count > 1 else kind for kind, count in kinds.items()),
    ]


def _layer_summary(stage: Row) -> str:
    return (
        f"{stage['trainable_params']:,} of {stage['total_params']:,} parameters train; trainable weight tensors "
        f"{stage['tensors']} → {stage['trainable_tensors']}; BatchNorm: {stage['batch_norm']}."
    )
