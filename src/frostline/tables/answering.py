"""What answering costs, and how well the artifacts do."""

from typing import Any

from frostline.tables.cells import Column, grid, measured_on, plain, value
from frostline.tables.text import MIB, Form, Row, paragraphs, tabulated, titled
from frostline.whole import threads

SCENARIO_NOTE = (
    "single_stream: one image after the other; offline: all at once, in calls of @ images, whose times p50 to p99 are; "
    "server: images at random times, at the highest rate that keeps p99 (none: no rate does, and the percentiles are "
    "those of the lowest one tried). A percentile is shown where the count supports it; agrees: test images that get "
    "the class the trained model gave them. quick: seconds a cell, not valid in MLPerf's sense; unstable: the last "
    "three windows differ by more than 10 %."
)

MADE_OF = ("frostline", "tensorflow", "keras", "onnxruntime", "onnxruntime-gpu", "openvino", "mlcommons-loadgen")


def tables(study: str, infer: list[Row], form: Form) -> list[str]:
    """What a graph costs on each runtime, one line for all models that share it, then how well each model does."""
    if not infer:
        return []
    timed = [row for row in infer if row["runtime"] and not row["figures_of"]]
    idle = _idle_device(timed)
    lines: dict[tuple[Any, ...], Row] = {}
    for row in [row for row in timed if row["device"] != idle]:
        skipped = row["outcome"] == "skipped"  # which is told once for all models and scenarios
        own = (row["model"], row["scenario"], row["profile"], row["batch_size"])
        line = {**row, "model": None if skipped else row["model"].removeprefix(f"{study}."), "idle": skipped}
        lines.setdefault((_runtime(row), row["reason"] if skipped else own), line)
    shared: dict[str, list[str]] = {}
    for row in infer:
        if row["figures_of"] and row["freeze"] not in shared.setdefault(row["figures_of"], []):
            shared[row["figures_of"]].append(row["freeze"])
    notes = [*_machines(timed), SCENARIO_NOTE]
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
    shown = grid(ANSWERING, list(lines.values()), form, keys=3)
    costs = [titled(f"{study}: what answering costs", form, None), shown, paragraphs("\n".join(notes), form)]
    return [
        *(costs if timed else []),
        titled(f"{study}: how well the artifacts do (test top-1)", form, None),
        _answers(infer, form),
    ]


def _machines(timed: list[Row]) -> list[str]:
    """The machine and the libraries that rows were measured with; which rows they are where there are several."""
    found: dict[str, list[str]] = {}
    for row in timed:
        if row["machine"] and row["outcome"] != "skipped":
            found.setdefault(measured_on(row["machine"], MADE_OF), []).append(_runtime(row))
    names = {told: f"{', '.join(dict.fromkeys(rows))}: " if len(found) > 1 else "" for told, rows in found.items()}
    return [f"{names[told]}{told}." for told in found]


def _idle_device(timed: list[Row]) -> str | None:
    """A device on which all cells are skipped for one and the same reason, where another has cells to show."""
    reasons: dict[str, set[str | None]] = {}
    for row in timed:
        reasons.setdefault(row["device"], set()).add(row["reason"] if row["outcome"] == "skipped" else None)
    idle = [device for device, why in reasons.items() if len(why) == 1 and None not in why]
    return idle[0] if len(idle) == 1 < len(reasons) else None


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
        shown = [plain("test_top1", digits=4)(cells[r]) if r in cells else "-" for r in runtimes]
        source = own[0] if own else {}
        trained = plain("trained_test_top1", digits=4)(source)
        table.append([model, version, plain("seed", digits=0)(source), trained, *shown])
    headers = ["model", "version", "seed", "as trained", *runtimes]
    notes = ["The seed is the one with the median validation top-1 (the lower of two)."]
    lacking = [r for r in infer if r["variant"] and f"{r['variant']} is not published" in str(r["reason"])]
    notes += dict.fromkeys(f"{r['model']}: {r['reason']}." for r in lacking)
    return tabulated(table, headers, form) + "\n\n" + paragraphs("\n".join(notes), form)


def _runtime(row: Row) -> str:
    """A runtime with its variant and payload, threads unless as many as cores, the server behind it, and the device
    unless it is the CPU."""
    variant = row["variant"] if row["variant"] not in (None, "float32") else None
    device = row["device"] if row["device"] != "cpu" else None
    copies = "no copies" if row["host_copies"] is False else None
    server = f"({row['server']})" if row["server"] else None
    return " ".join(filter(None, [row["runtime"], variant, row["payload"], threads(row), device, copies, server]))


def _scenario(row: Row) -> str:
    if row["idle"] or not row["scenario"]:
        return "-"
    if row["latency_bound_seconds"]:
        bound = row["latency_bound_seconds"] * 1e3
        return f"{row['scenario']}, p99 ≤ {f'{bound:,.0f}' if bound >= 100 else f'{bound:.3g}'} ms"
    return f"{row['scenario']} @{row['batch_size']}" if row["scenario"] == "offline" else row["scenario"]


def _rate(row: Row) -> str:
    if row["outcome"] == "ok":
        none = row["scenario"] == "server" and row["images_per_second"] == 0
        return "none" if none else plain("images_per_second", digits=0)(row)
    return row["outcome"] if row["outcome"] == "failed" else f"{row['outcome']}: {row['reason']}"


def _valid(row: Row) -> str:
    if row["outcome"] != "ok":
        return "-"
    unstable = [] if row["stable"] in (True, None) else ["unstable"]
    return ", ".join(["valid" if row["valid"] else f"no, {row['profile']}", *unstable])


ANSWERING: list[Column] = [
    ("graph of", value("model")),
    ("runtime", _runtime),
    ("scenario", _scenario),
    ("images/s", _rate),
    ("p50 ms", plain("latency_p50_seconds", 1e3)),
    ("p90 ms", plain("latency_p90_seconds", 1e3)),
    ("p95 ms", plain("latency_p95_seconds", 1e3)),
    ("p99 ms", plain("latency_p99_seconds", 1e3)),
    ("first ms", plain("first_answer_seconds", 1e3, 0)),
    ("load s", plain("load_seconds")),
    ("peak MiB", plain("peak_memory_bytes", MIB, 0)),
    ("size MiB", plain("size_bytes", MIB)),
    ("top-1", plain("test_top1", digits=4)),
    ("agrees", plain("agreement", digits=4)),
    ("valid", _valid),
]
