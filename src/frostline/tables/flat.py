"""Records to rows: one flat list of objects, which scripts read and tables show."""

import statistics
from collections.abc import Collection

from frostline import whole
from frostline.records import FIGURES, Configuration, configurations
from frostline.tables.text import Row

MEANS = (
    "first_step_seconds",
    "step_seconds",
    "epoch_seconds",
    "features_seconds",
    "total_seconds",
    "process_start_seconds",
    "marginal_seconds",
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


EPOCHS = ("epochs", "restored_epoch")


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


INFER = (
    "version",
    "run",
    "run_time",
    *whole.CELL,
    "threads",
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
    "machine",
)


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
    row: Row = {
        "kind": "train",
        "study": configuration.study,
        "freeze": configuration.freeze,
        "variant": configuration.variant,
        "task": whole.task(newest),
        "runs": [r["run"] for r in finished],
        "run_times": [r["time"] for r in finished],
        "outcome": "ok" if finished else newest["outcome"],
        "reason": _reason(configuration.rows),
        "seeds": [r["seed"] for r in finished],
        "failed_seeds": [r["seed"] for r in configuration.rows if r["outcome"] != "ok"],
        **{key: newest.get(key) for key in ASKED},
        **{key: (finished or [newest])[-1].get(key) for key in SAME},
        "frozen_layers": max((len(s["frozen"]) for s in finished[-1]["stages"]), default=None) if finished else None,
        "other_configurations": configuration.others,
        "exported_seed": configuration.representative["seed"] if configuration.representative else None,
        "machine": newest.get("machine"),
    }
    counted = [r | _epochs(r) for r in finished]
    for key in (*MEANS, *EPOCHS):
        values = [r[key] for r in counted if r.get(key) is not None]
        row[key] = statistics.fmean(values) if values else None
        row[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else None
    differences = [r["features_difference"] for r in finished if r.get("features_difference") is not None]
    row["features_difference"] = max(differences, default=None)  # what is proved holds for all seeds
    waited = [r for r in records if r["kind"] == "study" and r["study"] == configuration.study]
    row["study_seconds"] = waited[-1]["study_seconds"] if waited else None
    # A trial was timed as what it varies, whose cells they are.
    row["step_cells"] = None if row["search"] else step_cells(records, configuration) or None
    return row


def _epochs(record: Row) -> Row:
    """How many epochs a run had in all its stages, and of which one of the last stage its weights are: None where they
    are those of the end."""
    restored = record.get("restored_epochs") or [None]
    return {"epochs": len(record.get("history") or []) or None, "restored_epoch": restored[-1]}


def _reason(rows: list[Row]) -> str | None:
    """Why seeds have no result, each reason once; seeds are named where others ended otherwise."""
    seeds: dict[str, list[int]] = {}
    for record in rows:
        if record["outcome"] != "ok":
            seeds.setdefault(record["reason"], []).append(record["seed"])
    if len(seeds) == 1 and {r["outcome"] for r in rows} == {"skipped"}:
        return next(iter(seeds))
    told = (f"seed{'s' if len(of) > 1 else ''} {', '.join(map(str, of))}: {why}" for why, of in seeds.items())
    return "; ".join(told) or None


def step_cells(records: list[Row], configuration: Configuration) -> list[Row]:
    """The newest step times of this configuration and engine under each precision and XLA setting."""
    newest = configuration.rows[-1]
    same = ("study", "limit", "epochs_cap")  # a quick try has steps of its own
    choices = (r for r in reversed(records) if r["kind"] == "choice" and all(r.get(k) == newest[k] for k in same))
    keys = ("precision", "xla", "engine", "step_seconds", "outcome", "reason")
    asked = newest.get("engine_asked")
    cells = [c for c in next(choices, {"cells": []})["cells"] if c["freeze"] == configuration.freeze]
    return [{key: cell.get(key) for key in keys} for cell in cells if cell.get("engine_asked", asked) == asked]


def infer_rows(records: list[Row]) -> list[Row]:
    """The newest record of every model, runtime, device and batch size, of the training that was measured last.

    As many threads as cores are one thing on every machine. `seed` and `trained_test_top1` are those of the run that
    was published.
    """
    found = [r for r in records if r["kind"] == "infer"]
    last = {r["model"]: (r["run"], r["run_time"]) for r in found}
    trained = {(r["run"], r["time"]): r for r in records if r["kind"] == "train"}
    newest = {(whole.threads(r), *(r.get(key) for key in whole.CELL)): r for r in found}
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
