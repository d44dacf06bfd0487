"""What training costs, and how well it does."""

from collections.abc import Callable

from frostline.progress import duration
from frostline.records import explained
from frostline.tables.cells import Column, grid, mean, measured_on, name_of, plain, value
from frostline.tables.text import MIB, Form, Row, paragraphs, tabulated, titled


def tables(train: list[Row], form: Form) -> list[str]:
    """What the configurations of a study cost to train, how well they do, and the steps that were timed."""
    if not train:
        return []
    study, title = train[0]["study"], train[0]["title"]
    yardsticks = _yardsticks(train)
    started = any(row["outcome"] != "skipped" for row in train)
    costs = [
        titled(f"{study}: what training costs", form, title),
        grid(COST, [{**row, "speedup": _speedup(row, yardsticks)} for row in train], form),
    ]
    parts = [
        *(costs if started else []),
        titled(f"{study}: how well it does", form, None if started else title),
        grid(ACCURACY, train, form),
        _caption(train, yardsticks, form),
    ]
    if any(cell["outcome"] != "not timed" for row in train for cell in row["step_cells"] or []):
        parts += [titled(f"{study}: one training step, by precision and XLA", form, None), _steps(train, form)]
    return parts


def _yardsticks(train: list[Row]) -> dict[str, Row]:
    """Of each task the first row that freezes nothing, which speed-ups are measured by."""
    found: dict[str, Row] = {}
    for row in train:
        if row["freeze"] != "pretrain" and row["frozen_layers"] == 0:
            found.setdefault(row["task"], row)
    return found


def _speedup(row: Row, yardsticks: dict[str, Row]) -> float | None:
    """Ratio of total seconds to the row of the same task that freezes nothing."""
    everything = yardsticks.get(row["task"])
    return everything["total_seconds"] / row["total_seconds"] if everything and row["total_seconds"] else None


def _caption(train: list[Row], yardsticks: dict[str, Row], form: Form) -> str:
    done = [row for row in train if row["outcome"] == "ok"]
    machine: Row = next((row["machine"] for row in reversed(train) if row["machine"]), {})
    effective = sorted({f"{r['precision']} with XLA {'on' if r['xla'] else 'off'} on {r['device']}" for r in done})
    cached = [row for row in done if row["features_difference"] is not None]
    lines = [
        f"{measured_on(machine, ('frostline', 'tensorflow', 'keras'))}; "
        f"effective: {', '.join(effective) or 'nothing finished'}; "
        f"seeds {', '.join(map(str, sorted({s for r in done for s in r['seeds']}))) or 'none'}. "
        "Mean ± sample deviation (seeds)."
    ]
    if yardsticks:
        names = " or ".join(map(name_of, yardsticks.values()))
        lines.append(
            f"Speed-up: total time of {names}{', by task,' if len(yardsticks) > 1 else ''} over that of the row."
        )
    if cached:
        worst = max(row["features_difference"] for row in cached)
        lines.append(
            "cached: trained on features computed once; total s holds the whole pass (features s), also where another "
            f"run had made them. Features re-computed by whole networks differed by {worst:.1e} of the largest at most."
        )
    lines += _augmentation(done)
    lines += _not_timed(train)
    lines += explained(train)
    lines += [_chosen(row) for row in train if row["search"] and row["search"]["best"]]
    limits = sorted({f"--limit {r['limit']}" for r in train if r["limit"]})
    caps = sorted({f"--epochs {r['epochs_cap']}" for r in train if r["epochs_cap"]})
    if limits or caps:
        shared = (
            " Rows shared processes, models have no int8, and only what is deployed is measured, briefly; "
            "frostline export RESULTS --variant int8 and frostline infer EXPORTS --fresh do the rest."
        )
        lines.append(f"A quick try: {' '.join(limits + caps)}.{shared if limits else ''}")
    failures: dict[str, list[str]] = {}
    for row in train:
        if row["reason"]:
            failures.setdefault(row["reason"], []).append(name_of(row))
    lines += [f"{', '.join(names)}: {reason}." for reason, names in failures.items()]
    if train[0]["study_seconds"]:
        lines.append(f"The last command that trained took {duration(train[0]['study_seconds'])} in all.")
    if others := sum(row["other_configurations"] for row in train):
        lines.append(f"{others} older configurations under these names are not shown.")
    return "\n".join(paragraphs(line, form) for line in lines)


def _chosen(row: Row) -> str:
    search = row["search"]
    return (
        f"{row['freeze']}: {search['freeze']}_trial_{search['trial']}, trained with all seeds; of {search['trials']} "
        f"trials ({search['sampler']} search, seed {search['seed']}) it had the best top-1 on validation, "
        "then the lower loss."
    )


def _not_timed(train: list[Row]) -> list[str]:
    """What `auto` was where timing would have taken longer than all training."""
    cells = [cell for row in train for cell in row["step_cells"] or []]
    told = {
        f"auto was not timed, because {c['reason']}: it is {c['precision']} with XLA {c['xla']}, and features wherever "
        "a part is frozen."
        for c in cells
        if c["outcome"] == "not timed" and c["reason"]
    }
    return sorted(told)


def _augmentation(done: list[Row]) -> list[str]:
    """What rows trained on views of their images did to them, and what became of features."""
    shown: dict[str, list[str]] = {}
    for row in done:
        if row["augment"]:
            shown.setdefault(row["augment"], []).append(name_of(row))
    if not shown:
        return []
    of = {what: "" if len(names) == len(done) else f" of {', '.join(names)}" for what, names in shown.items()}
    lines = [f"Training images{of[what]}: {what}." for what in shown]
    lines.append("augment s: making views of training images in the epochs, on the plain engine beside its steps.")
    if any(row["augment"] and not row["augment_views"] and row["engine"] != "plain" for row in done):
        lines.append(
            "cached with augmentation: the frozen part ran forward over new views in every epoch (in epoch s)."
        )
    return lines


def _steps(train: list[Row], form: Form) -> str:
    """Step times in ms, one column per precision and XLA setting; * marks what the row ran with."""
    timed = [c for r in train for c in r["step_cells"] or [] if c["outcome"] != "not timed"]
    settings = list(dict.fromkeys((c["precision"], c["xla"]) for c in timed))
    table = []
    for row in train:
        cells = {(c["precision"], c["xla"]): c for c in row["step_cells"] or []}
        if not cells or "not timed" in {cell["outcome"] for cell in cells.values()}:
            continue
        mark = (row["precision"], "on" if row["xla"] else "off")
        shown = [_step(cells.get(s), "*" if s == mark else "") for s in settings]
        table.append([name_of(row), *shown])
    head = ["freeze", *[f"{p}, XLA {x}, ms" for p, x in settings]]
    text = "* what the row was trained with; a cell is given up at ten times the best so far."
    note = paragraphs(f"{text} The step of a cached row is one on features.", form)
    return tabulated(table, head, form) + "\n\n" + note


def _step(cell: Row | None, mark: str) -> str:
    if cell is None:
        return "-"
    return f"{cell['step_seconds'] * 1e3:.2f}{mark}" if cell["outcome"] == "ok" else cell["outcome"]


def _share(row: Row) -> str:
    return "-" if not row["total_params"] else f"{100 * row['trainable_params'] / row['total_params']:.2f} %"


def _count(key: str) -> Callable[[Row], str]:
    """Writes a number of epochs, with the deviation where seeds differ."""

    def show(row: Row) -> str:
        if row[key] is None:
            return "-"
        return (
            f"{row[key]:.1f} ± {row[f'{key}_std']:.1f} ({len(row['seeds'])})" if row[f"{key}_std"] else f"{row[key]:g}"
        )

    return show


def _reported(key: str, scale: float = 1.0, digits: int = 4) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        value = (row["reported"] or {}).get(key)
        return "-" if value is None else f"{value * scale:,.{digits}f}"

    return show


def _setting(row: Row) -> str:
    if row["precision"] is None:
        return "-"
    return f"{row['engine']}, {row['precision']}{' + XLA' if row['xla'] else ''}"


COST: list[Column] = [
    ("freeze", name_of),
    ("trainable", value("trainable_params")),
    ("total", value("total_params")),
    ("share", _share),
    ("first step s", mean("first_step_seconds")),
    ("features s", mean("features_seconds")),
    ("epoch s", mean("epoch_seconds", digits=3)),
    ("augment s", mean("augment_seconds")),
    ("total s", mean("total_seconds", digits=1)),
    ("reported min", _reported("minutes", digits=2)),
    ("added s", mean("marginal_seconds", digits=1)),
    ("start s", mean("process_start_seconds", digits=1)),
    ("images/s", mean("images_per_second", digits=0)),
    ("peak MiB", mean("peak_memory_bytes", MIB, 0)),
    ("speed-up", plain("speedup")),
    ("ran as", _setting),
]


ACCURACY: list[Column] = [
    ("freeze", name_of),
    ("train top-1", mean("train_top1", digits=4)),
    ("reported train", _reported("train_top1")),
    ("validation top-1", mean("validation_top1", digits=4)),
    ("test top-1", mean("test_top1", digits=4)),
    ("reported test", _reported("top1")),
    ("test loss", mean("test_loss", digits=4)),
    ("reported loss", _reported("loss")),
    ("epochs", _count("epochs")),
    ("weights of epoch", _count("restored_epoch")),
]
