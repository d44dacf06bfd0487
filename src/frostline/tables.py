"""Records to comparison tables: text for people, one flat list of objects for scripts."""

import json
import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from frostline import whole
from frostline.progress import duration
from frostline.records import FIGURES, Configuration, configurations, explained, marks

MIB = 1 / 2**20
FORMATS = ("github", "plain", "csv", "latex", "json")
MEANS = (
    "first_step_seconds",
    "step_seconds",
    "epoch_seconds",
    "features_seconds",
    "total_seconds",
    "process_start_seconds",
    "marginal_seconds",
    "features_difference",
    "augment_seconds",
    "images_per_second",
    "peak_memory_bytes",
    "device_peak_memory_bytes",
    "train_top1",
    "train_running_top1",
    "train_loss",
    "validation_top1",
    "validation_loss",
    "test_top1",
    "test_loss",
)
SAME = (
    "trainable_params",
    "total_params",
    "engine",
    "frontier",
    "precision",
    "xla",
    "device",
    "batch_norm",
    "train_images",
    "features_bytes",
    "augment",
    "augment_views",
)
ASKED = (
    "title",
    "protocol",
    "limit",
    "epochs_cap",
    "precision_asked",
    "xla_asked",
    "engine_asked",
    "reported",
    "search",
)
INFER_KEY = (
    "model",
    "runtime",
    "variant",
    "payload",
    "device",
    "host_copies",
    "threads",
    "scenario",
    "profile",
    "batch_size",
)
INFER = (
    "version",
    "run",
    *INFER_KEY,
    "server",
    *FIGURES,
    "warmup_calls",
    "latency_bound_seconds",
    "server_seconds",
    "client_seconds",
    "cpu_utilisation",
    "size_bytes",
    "load_seconds",
    "first_answer_seconds",
    "peak_memory_bytes",
    "device_peak_memory_bytes",
    "test_top1",
    "test_images",
    "agreement",
    "validation_top1",
    "validation_change",
    "validation_error",
    "validation_images",
    "figures_of",
    "stable",
    "windows",
    "same_image_ratio",
    "same_image_noise",
    "valid",
    "log",
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """How tables are written: one of FORMATS, and how many characters wide a plain one may be."""

    name: str
    width: int | None = None


# -- rows ----------------------------------------------------------------------------------------------


def rows(records: list[Row], wanted: Collection[str] | None = None) -> list[Row]:
    """All rows of the tables: one per freeze configuration, then one per measured artifact, runtime and batch size.

    `wanted` restricts the first to some configurations, by their identity without the seed.
    """
    train = [train_row(configuration, records) for configuration in configurations(records, wanted)]
    infer = infer_rows(records)
    return whole.joined(_with_reported(train), infer) + infer


def _with_reported(train: list[Row]) -> list[Row]:
    """What a document reports of a search's best trial, beside that trial."""
    best = {
        (row["study"], row["search"]["freeze"], row["search"]["trial"]): row["search"]["reported"]
        for row in train
        if row["search"] and row["search"]["best"]
    }
    for row in train:
        if row["search"] and not row["search"]["best"]:
            row["reported"] = best.get((row["study"], row["search"]["freeze"], row["search"]["trial"]))
    return train


def train_row(configuration: Configuration, records: list[Row]) -> Row:
    """Means over the finished seeds of one configuration, with `_std`, the sample deviation, null below two."""
    finished, newest = configuration.finished, configuration.rows[-1]
    failures = [f"seed {r['seed']}: {r['reason']}" for r in configuration.rows if r["outcome"] != "ok"]
    row: Row = {
        "kind": "train",
        "study": configuration.study,
        "freeze": configuration.freeze,
        "variant": configuration.variant,
        "task": whole.task(newest),
        "runs": [r["run"] for r in finished],
        "outcome": "ok" if finished else "failed",
        "reason": "; ".join(failures) or None,
        "seeds": [r["seed"] for r in finished],
        "failed_seeds": [r["seed"] for r in configuration.rows if r["outcome"] != "ok"],
        **{key: newest.get(key) for key in ASKED},
        **{key: (finished or [newest])[-1].get(key) for key in SAME},
        "frozen_layers": max((len(s["frozen"]) for s in finished[-1]["stages"]), default=None) if finished else None,
        "other_configurations": configuration.others,
        "exported_seed": configuration.representative["seed"] if configuration.representative else None,
        "machine": newest.get("machine"),
    }
    for key in MEANS:
        values = [r[key] for r in finished if r.get(key) is not None]
        row[key] = statistics.fmean(values) if values else None
        row[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else None
    waited = [r for r in records if r["kind"] == "study" and r["study"] == configuration.study]
    row["study_seconds"] = waited[-1]["study_seconds"] if waited else None
    # A trial was timed as what it varies, whose cells they are.
    row["step_cells"] = None if row["search"] else step_cells(records, configuration) or None
    return row


def step_cells(records: list[Row], configuration: Configuration) -> list[Row]:
    """The newest step times of this configuration and engine under each precision and XLA setting."""
    newest = next((r for r in reversed(records) if r["kind"] == "choice" and r["study"] == configuration.study), None)
    keys = ("precision", "xla", "engine", "step_seconds", "outcome", "reason")
    asked = configuration.rows[-1].get("engine_asked")
    cells = [c for c in newest["cells"] if c["freeze"] == configuration.freeze] if newest else []
    return [{key: cell.get(key) for key in keys} for cell in cells if cell.get("engine_asked", asked) == asked]


def infer_rows(records: list[Row]) -> list[Row]:
    """The newest record of every model, runtime, device and batch size, of the training that was measured last.

    `seed` and `trained_test_top1` are those of the run that was published.
    """
    found = [r for r in records if r["kind"] == "infer"]
    last = {r["model"]: (r["run"], r["run_time"]) for r in found}
    trained = {(r["run"], r["time"]): r for r in records if r["kind"] == "train"}
    newest = {tuple(r.get(key) for key in INFER_KEY): r for r in found}
    shown = ("kind", "study", "freeze", "outcome", "reason", *INFER)
    measured = []
    for r in newest.values():
        run = (r["run"], r["run_time"])
        if run == last[r["model"]]:
            source = trained.get(run, {})
            own = {"seed": source.get("seed"), "trained_test_top1": source.get("test_top1")}
            measured.append({key: r.get(key) for key in shown} | own)
    exports = {r["model"]: r for r in records if r["kind"] == "export"}
    refused = [r for r in exports.values() if r["outcome"] == "failed"]
    blank = dict.fromkeys(shown)
    return measured + [
        {
            **blank,
            "kind": "infer",
            **{k: r[k] for k in ("study", "freeze", "model", "outcome", "reason", "run")},
            "valid": False,
        }
        for r in refused
    ]


def plan(found: list[Row], width: int | None = None) -> str:
    """What a dry run found: one line per stage of each configuration, and what each engine choice rests on.

    `width`: how many characters wide the table may be; wider ones are put below each other in parts.
    """
    lines = []
    reasons: dict[str, list[str]] = {}
    for entry in found:
        first = _label(entry)
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
                    _frontier(stage),
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
    note = (
        f"About {duration(seconds)} of training in all, from a few measured steps in float32 without XLA, each run "
        "with a pass of its own; the start of processes, exports and inference come on top. Nothing was trained.\n"
        "Below the frontier nothing changes while a stage trains: the features of an image are the same in every epoch."
    )
    form = Form("plain", width)
    table = _tabulate(lines, headers, form, keys=2)
    return "\n\n".join([table, _note("\n".join(notes), form), _note(note, form)])


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
    return "\n\n".join(_note(part, Form("plain", width)) if "\n" not in part else part for part in parts)


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
        others = _tabulate([line[:-1] for line in lines], headers[:-1], Form("plain"), right=(3,))
        room = width - max(map(len, others.split("\n"))) - 4  # two between, and two that tabulate keeps behind a header
        if room < 10:
            lines, headers = [line[:-1] for line in lines], headers[:-1]
        else:
            lines = [[*line[:-1], _cut(line[-1], room)] for line in lines]
    text = _tabulate(lines, headers, Form("plain"), right=(3,)).split("\n")
    mode = "" if stage["frontier_mode"] == "exact" else f" ({stage['frontier_mode']})"
    where = f"frontier{mode}: {_frontier(stage)}" if stage["frontier"] else "no frontier: every step runs all layers"
    where = _cut(f"---- {where} ", width or len(where) + 6)
    text.insert(1 + below * bool(stage["frontier"]), where.ljust(max(map(len, text)), "-"))
    return "\n".join(text)


def _cut(text: str, room: int) -> str:
    """A text, or its beginning where it does not fit the room."""
    return text if len(text) <= room else f"{text[: room - 3]}..."


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


def _predicted(entry: Row) -> float:
    return sum(cost["seconds"] for cost in entry["estimate"])


def _fine(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def _features(cost: Row) -> str:
    return "-" if cost["features_bytes"] is None else f"{cost['features_bytes'] * MIB:,.1f}"


def _frontier(stage: Row) -> str:
    """The layers whose outputs cross the frontier, with the shape of those features of one image."""
    shapes = ["×".join(map(str, shape)) for shape in stage["feature_shapes"]]
    return ", ".join(f"{name} {shape}" for name, shape in zip(stage["frontier"], shapes, strict=True)) or "-"


def _short(names: Sequence[str], shown: int = 3) -> str:
    if len(names) <= shown + 1:
        return ", ".join(names) or "nothing"
    return f"{', '.join(names[:shown])}, ... {names[-1]} ({len(names)})"


# -- text ----------------------------------------------------------------------------------------------


def render(
    records: list[Row],
    name: str,
    wanted: Collection[str] | None = None,
    kinds: Collection[str] = ("train", "infer"),
    width: int | None = None,
) -> str:
    """The tables of some records in one of FORMATS; `wanted` and `kinds` restrict them.

    `width`: how many characters wide a plain table may be; wider ones are put below each other in parts.
    """
    form = Form(name, width)
    flat = [row for row in rows(records, wanted) if row["kind"] in kinds]
    if name == "json":
        return json.dumps(flat, indent=2, ensure_ascii=False)
    if name == "csv":
        return _csv(flat)
    parts = []
    for study in dict.fromkeys(row["study"] for row in flat):
        own = [row for row in flat if row["study"] == study]
        parts += _study_tables([r for r in own if r["kind"] == "train"], form)
        infer = [r for r in own if r["kind"] == "infer"]
        parts += _infer_tables(study, infer, form)
        parts += _whole_table(study, [r for r in own if r["kind"] == "train"], form)
    return "\n\n".join(parts) if parts else "no records"


def _study_tables(train: list[Row], form: Form) -> list[str]:
    if not train:
        return []
    study, title = train[0]["study"], train[0]["title"]
    everything = _everything(train)
    parts = [
        _titled(f"{study}: what training costs", form, title),
        _grid(COST, [{**row, "speedup": _speedup(row, everything)} for row in train], form),
        _titled(f"{study}: how well it does", form, None),
        _grid(ACCURACY, train, form),
        _caption(train, everything, form),
    ]
    if any(cell["outcome"] != "not timed" for row in train for cell in row["step_cells"] or []):
        parts += [_titled(f"{study}: one training step, by precision and XLA", form, None), _steps(train, form)]
    return parts


def _whole_table(study: str, train: list[Row], form: Form) -> list[str]:
    """What each configuration costs to train and to ask, with the fronts marked."""
    if not any(row["outcome"] == "ok" for row in train):
        return []
    notes = [
        "On the front of time: no other row of its task is as good on validation in as little total time, and better "
        "in one of the two; of latency: the same with the best median of one image. "
        "These are means: frostline recommend says what they can bear. "
        f"Best figures are those of artifacts that lose at most {whole.MARGIN:g} of the run's validation top-1."
    ]
    if any(row["protocol"] == "document" for row in train):
        notes.append("Rows validated on test are on no front.")
    title = _titled(f"{study}: the whole", form, None)
    return [title, _grid(WHOLE, train, form), *(_note(note, form) for note in notes)]


def _fronts(row: Row) -> str:
    on = [name for name, key in (("time", "pareto_train"), ("latency", "pareto_latency")) if row[key]]
    few = " (one seed)" if len(row["seeds"]) == 1 else ""
    return f"{', '.join(on)}{few}" if on else "-"


def _everything(train: list[Row]) -> Row | None:
    """The first row that freezes nothing, the yardstick of the speed-up; the pre-training is another task."""
    return next((r for r in train if r["freeze"] != "pretrain" and r["frozen_layers"] == 0), None)


def _speedup(row: Row, everything: Row | None) -> float | None:
    """Ratio of total seconds, never for a row of another task."""
    if not everything or row["freeze"] == "pretrain" or not row["total_seconds"]:
        return None
    return everything["total_seconds"] / row["total_seconds"]


def _infer_tables(study: str, infer: list[Row], form: Form) -> list[str]:
    """What a graph costs on each runtime, one line for all models that share it, then how well each model does."""
    if not infer:
        return []
    timed = [row for row in infer if row["runtime"] and not row["figures_of"]]
    idle = _idle_device(timed)
    lines: dict[tuple[Any, ...], Row] = {}
    for row in [row for row in timed if row["device"] != idle]:
        skipped = row["outcome"] == "skipped"  # which is told once for all models and scenarios
        own = (row["model"], row["scenario"], row["profile"], row["batch_size"], row["threads"])
        line = {**row, "model": None if skipped else row["model"].removeprefix(f"{study}."), "idle": skipped}
        lines.setdefault((_runtime(row), row["reason"] if skipped else own), line)
    shared: dict[str, list[str]] = {}
    for row in infer:
        if row["figures_of"] and row["freeze"] not in shared.setdefault(row["figures_of"], []):
            shared[row["figures_of"]].append(row["freeze"])
    notes = [SCENARIO_NOTE]
    notes += [
        f"The graph of {model.removeprefix(f'{study}.')} is also that of {', '.join(names)}."
        for model, names in shared.items()
    ]
    failed = dict.fromkeys((_runtime(row), row["reason"]) for row in timed if row["outcome"] == "failed")
    notes += [f"{runtime} failed: {reason}." for runtime, reason in failed]
    if idle:
        reason = next(row["reason"] for row in infer if row["device"] == idle)
        names = dict.fromkeys(row["runtime"] for row in infer if row["device"] == idle)
        notes.append(f"Skipped on {idle}, {reason}: {', '.join(names)}.")
    grid = _grid(ANSWERING, list(lines.values()), form, keys=3)
    costs = [_titled(f"{study}: what answering costs", form, None), grid, _note("\n".join(notes), form)]
    return [
        *(costs if timed else []),
        _titled(f"{study}: how well the artifacts do (test top-1)", form, None),
        _answers(infer, form),
    ]


def _idle_device(timed: list[Row]) -> str | None:
    """A device on which all cells are skipped for one and the same reason, where another has cells to show."""
    reasons: dict[str, set[str | None]] = {}
    for row in timed:
        reasons.setdefault(row["device"], set()).add(row["reason"] if row["outcome"] == "skipped" else None)
    idle = [device for device, why in reasons.items() if len(why) == 1 and None not in why]
    return idle[0] if len(idle) == 1 < len(reasons) else None


def _runtime(row: Row) -> str:
    """A runtime with its variant and payload, the server behind it, and the device unless it is the CPU."""
    variant = row["variant"] if row["variant"] not in (None, "float32") else None
    device = row["device"] if row["device"] != "cpu" else None
    copies = "no copies" if row["host_copies"] is False else None
    server = f"({row['server']})" if row["server"] else None
    return " ".join(filter(None, [row["runtime"], variant, row["payload"], device, copies, server]))


def _scenario(row: Row) -> str:
    if row["idle"] or not row["scenario"]:
        return "-"
    if row["latency_bound_seconds"]:
        return f"{row['scenario']}, p99 ≤ {row['latency_bound_seconds'] * 1e3:.3g} ms"
    return f"{row['scenario']} @{row['batch_size']}" if row["scenario"] == "offline" else row["scenario"]


def _rate(row: Row) -> str:
    if row["outcome"] == "ok":
        none = row["scenario"] == "server" and row["images_per_second"] == 0
        return "none" if none else _plain("images_per_second", digits=0)(row)
    return row["outcome"] if row["outcome"] == "failed" else f"{row['outcome']}: {row['reason']}"


def _valid(row: Row) -> str:
    if row["outcome"] != "ok":
        return "-"
    unstable = [] if row["stable"] in (True, None) else ["unstable"]
    return ", ".join(["valid" if row["valid"] else f"no, {row['profile']}", *unstable])


def _answers(infer: list[Row], form: Form) -> str:
    """Test accuracy of each published model as it was trained and through each artifact and runtime."""
    measured = [row for row in infer if row["runtime"] and row["outcome"] != "skipped"]
    runtimes = list(dict.fromkeys(_runtime(row) for row in measured if row["host_copies"] is not False))
    table = []
    for model in dict.fromkeys(row["model"] for row in infer):
        own = [row for row in infer if row["model"] == model and row["runtime"]]
        refused = next((r["reason"] for r in infer if r["model"] == model and r["runtime"] is None), None)
        version = str(own[0]["version"]) if own else "none"
        if refused:
            version += f" (not published: {refused})"
        cells = {_runtime(r): r for r in own}
        shown = [_plain("test_top1", digits=4)(cells[r]) if r in cells else "-" for r in runtimes]
        source = own[0] if own else {}
        trained = _plain("trained_test_top1", digits=4)(source)
        table.append([model, version, _plain("seed", digits=0)(source), trained, *shown])
    headers = ["model", "version", "seed", "as trained", *runtimes]
    notes = ["The seed is the one with the median validation top-1 (the lower of two)."]
    lacking = [r for r in infer if r["variant"] and f"{r['variant']} is not published" in str(r["reason"])]
    notes += dict.fromkeys(f"{r['model']}: {r['reason']}." for r in lacking)
    return _tabulate(table, headers, form) + "\n\n" + _note("\n".join(notes), form)


def _titled(text: str, form: Form, title: str | None) -> str:
    line = f"{text} - {title}" if title else text
    return {"github": f"### {line}", "latex": f"% {line}"}.get(form.name, line)


def _note(text: str, form: Form) -> str:
    if form.name == "plain" and form.width:
        return "\n".join(
            textwrap.fill(line, form.width, break_long_words=False, break_on_hyphens=False)
            for line in text.splitlines()
        )
    return "\n".join(f"% {line}" for line in text.splitlines()) if form.name == "latex" else text


def _caption(train: list[Row], everything: Row | None, form: Form) -> str:
    done = [row for row in train if row["outcome"] == "ok"]
    machine: Row = next((row["machine"] for row in reversed(train) if row["machine"]), {})
    versions = machine.get("versions", {})
    gpus = ", ".join(gpu["name"] for gpu in machine.get("gpus", [])) or "no GPU"
    libraries = ", ".join(f"{k} {versions[k]}" for k in ("frostline", "tensorflow", "keras") if k in versions)
    effective = sorted({f"{r['precision']} with XLA {'on' if r['xla'] else 'off'} on {r['device']}" for r in done})
    cached = [row for row in done if row["features_difference"] is not None]
    lines = [
        f"{machine.get('cpu')}, {machine.get('cores')} cores, {gpus}; {libraries}; "
        f"effective: {', '.join(effective) or 'nothing finished'}; "
        f"seeds {', '.join(map(str, sorted({s for r in done for s in r['seeds']}))) or 'none'}. "
        "Mean ± sample deviation (seeds)."
    ]
    if everything:
        lines.append(f"Speed-up: total time of {_name(everything)} over that of the row.")
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
            "frostline export --variant int8 and frostline infer --fresh do the rest."
        )
        lines.append(f"A quick try: {' '.join(limits + caps)}.{shared if limits else ''}")
    failures: dict[str, list[str]] = {}
    for row in train:
        if row["reason"]:
            failures.setdefault(row["reason"], []).append(_name(row))
    lines += [f"{', '.join(names)}: {reason}." for reason, names in failures.items()]
    if train[0]["study_seconds"]:
        lines.append(f"The last command that trained took {duration(train[0]['study_seconds'])} in all.")
    if others := sum(row["other_configurations"] for row in train):
        lines.append(f"{others} older configurations under these names are not shown.")
    return "\n".join(_note(line, form) for line in lines)


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
            shown.setdefault(row["augment"], []).append(_name(row))
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
        table.append([_name(row), *shown])
    head = ["freeze", *[f"{p}, XLA {x}, ms" for p, x in settings]]
    text = "* what the row was trained with; a cell is given up at ten times the best so far."
    note = _note(f"{text} The step of a cached row is one on features.", form)
    return _tabulate(table, head, form) + "\n\n" + note


def _step(cell: Row | None, mark: str) -> str:
    if cell is None:
        return "-"
    return f"{cell['step_seconds'] * 1e3:.2f}{mark}" if cell["outcome"] == "ok" else cell["outcome"]


# -- columns: header and how a row's cell is written ---------------------------------------------------

Column = tuple[str, Callable[[Row], str]]


ONCE = ("first_step_seconds", "features_seconds", "process_start_seconds")  # seeds may share what these tell


def _mean(key: str, scale: float = 1.0, digits: int = 2) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        if row[key] is None:
            return row["outcome"] if row["outcome"] != "ok" else "-"
        text = f"{row[key] * scale:,.{digits}f}"
        spread = row.get(f"{key}_std")
        if spread == 0.0 and key in ONCE:
            return f"{text} (once)"
        return f"{text} ± {spread * scale:.{digits}f} ({len(row['seeds'])})" if spread is not None else text

    return show


def _plain(key: str, scale: float = 1.0, digits: int = 2) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        return "-" if row.get(key) is None else f"{row[key] * scale:,.{digits}f}"

    return show


def _value(key: str) -> Callable[[Row], str]:
    return lambda row: "-" if row[key] is None else f"{row[key]:,}" if isinstance(row[key], int) else str(row[key])


def _label(row: Row) -> str:
    """A freeze configuration with its variant, a trial with its values."""
    search = row.get("search")
    values = [f"{key.replace('_', ' ')} {_drawn(value)}" for key, value in (search["values"] if search else {}).items()]
    told = ", ".join([row["variant"]] * bool(row["variant"]) + values)
    return f"{row['freeze']} ({told})" if told else row["freeze"]


def _drawn(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _name(row: Row) -> str:
    return _label(row) + marks(row)


def _share(row: Row) -> str:
    return "-" if not row["total_params"] else f"{100 * row['trainable_params'] / row['total_params']:.2f} %"


def _reported(key: str, scale: float = 1.0, digits: int = 4) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        value = (row["reported"] or {}).get(key)
        return "-" if value is None else f"{value * scale:,.{digits}f}"

    return show


def _setting(row: Row) -> str:
    if row["precision"] is None:
        return "-"
    return f"{row['engine']}, {row['precision']}{' + XLA' if row['xla'] else ''}"


SCENARIO_NOTE = (
    "single_stream: one image after the other; offline: all at once, in calls of @ images, whose times p50 to p99 are; "
    "server: images at random times, at the highest rate that keeps p99 (none: no rate does, and the percentiles are "
    "those of the lowest one tried). A percentile is shown where the count supports it; agrees: test images that get "
    "the class the trained model gave them. quick: seconds a cell, not valid in MLPerf's sense; unstable: the last "
    "three windows differ by more than 10 %."
)
ANSWERING: list[Column] = [
    ("graph of", _value("model")),
    ("runtime", _runtime),
    ("scenario", _scenario),
    ("images/s", _rate),
    ("p50 ms", _plain("latency_p50_seconds", 1e3)),
    ("p90 ms", _plain("latency_p90_seconds", 1e3)),
    ("p95 ms", _plain("latency_p95_seconds", 1e3)),
    ("p99 ms", _plain("latency_p99_seconds", 1e3)),
    ("first ms", _plain("first_answer_seconds", 1e3, 0)),
    ("load s", _plain("load_seconds")),
    ("peak MiB", _plain("peak_memory_bytes", MIB, 0)),
    ("size MiB", _plain("size_bytes", MIB)),
    ("top-1", _plain("test_top1", digits=4)),
    ("agrees", _plain("agreement", digits=4)),
    ("valid", _valid),
]
COST: list[Column] = [
    ("freeze", _name),
    ("trainable", _value("trainable_params")),
    ("total", _value("total_params")),
    ("share", _share),
    ("first step s", _mean("first_step_seconds")),
    ("features s", _mean("features_seconds")),
    ("epoch s", _mean("epoch_seconds", digits=3)),
    ("augment s", _mean("augment_seconds")),
    ("total s", _mean("total_seconds", digits=1)),
    ("reported min", _reported("minutes", digits=2)),
    ("added s", _mean("marginal_seconds", digits=1)),
    ("start s", _mean("process_start_seconds", digits=1)),
    ("images/s", _mean("images_per_second", digits=0)),
    ("peak MiB", _mean("peak_memory_bytes", MIB, 0)),
    ("speed-up", _plain("speedup")),
    ("ran as", _setting),
]
ACCURACY: list[Column] = [
    ("freeze", _name),
    ("train top-1", _mean("train_top1", digits=4)),
    ("reported train", _reported("train_top1")),
    ("validation top-1", _mean("validation_top1", digits=4)),
    ("test top-1", _mean("test_top1", digits=4)),
    ("reported test", _reported("top1")),
    ("test loss", _mean("test_loss", digits=4)),
    ("reported loss", _reported("loss")),
]

WHOLE: list[Column] = [
    ("freeze", _name),
    ("trainable", _value("trainable_params")),
    ("epoch s", _mean("epoch_seconds", digits=3)),
    ("total s", _mean("total_seconds", digits=1)),
    ("validation top-1", _mean("validation_top1", digits=4)),
    ("test top-1", _mean("test_top1", digits=4)),
    ("best images/s", _plain("best_images_per_second", digits=0)),
    ("by", _value("best_images_per_second_of")),
    ("best p50 ms", _plain("best_latency_p50_seconds", 1e3)),
    ("from", _value("best_latency_p50_seconds_of")),
    ("on the front of", _fronts),
]


def _grid(columns: Iterable[Column], table: list[Row], form: Form, keys: int = 1) -> str:
    """A table whose rows the first `keys` columns tell apart; a column that has nothing to say in any row, or no more
    than that others failed, is left out."""
    cells = {header: [show(row) for row in table] for header, show in columns}
    kept = {h: column for h, column in cells.items() if "-" not in column or set(column) - {"-", "failed"}}
    lines = [list(line) for line in zip(*kept.values(), strict=True)]
    right = [i for i, header in enumerate(kept) if i and header not in ("runtime", "scenario", "by", "from")]
    return _tabulate(lines, list(kept), form, right, keys)


def _csv(flat: list[Row]) -> str:
    """The rows as they are, numbers unrounded, one line each; what is itself a table is left to JSON."""
    import csv
    import io

    nested = {key for row in flat for key, value in row.items() if isinstance(value, (dict, list))} - {"seeds"}
    keys = [key for key in dict.fromkeys(key for row in flat for key in row) if key not in nested]
    out = io.StringIO()
    writer = csv.DictWriter(out, keys, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in flat:
        writer.writerow({**row, "seeds": " ".join(map(str, row.get("seeds") or []))})
    return out.getvalue().rstrip("\n")


def _tabulate(
    table: list[list[str]], headers: list[str], form: Form, right: Collection[int] | None = None, keys: int = 1
) -> str:
    """A table; the columns `right` (None: all but the first) are aligned to the right.

    A plain one that is wider than it may be is cut into several, each of which begins with the first `keys` columns.
    """
    from tabulate import tabulate

    right = range(1, len(headers)) if right is None else right
    kind = {"latex": "latex_booktabs"}.get(form.name, form.name)

    def draw(start: int, end: int) -> str:
        columns = [*range(min(keys, start)), *range(start, end)]
        return tabulate(
            [[line[i] for i in columns] for line in table],
            headers=[headers[i] for i in columns],
            tablefmt=kind,
            colalign=["right" if i in right else "left" for i in columns],
            disable_numparse=True,
        )

    if form.name != "plain" or form.width is None:
        return draw(0, len(headers))
    parts, start = [], 0
    while start < len(headers):
        end = start + 1 if start else min(keys + 1, len(headers))
        while end < len(headers) and max(map(len, draw(start, end + 1).split("\n"))) <= form.width:
            end += 1
        parts.append(draw(start, end))
        start = end
    return "\n\n".join(parts)
