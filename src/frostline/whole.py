"""The whole of a study: what each configuration costs to train and to ask, and which are worth their cost."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

# How much of the training images a row shows, and which, is part of its task; how they are scaled is not.
NOT_OF_THE_TASK = ("scaling",)
MEASURED_ON = ("images_per_second", "latency_p50_seconds", "latency_p99_seconds")
# What tells measured cells of artifacts apart, besides `threads`.
CELL = ("model", "runtime", "variant", "payload", "device", "host_copies", "scenario", "profile", "batch_size")
MARGIN = 0.01  # of accuracy that an artifact may lose on validation and still stand for its row, in the mean


def task(record: Row) -> str:
    """What a training record's accuracy is of, as a hash: only rows that share it are compared.

    The study, its images and classes, how many of them, whether the epochs were cut, and the pre-training apart.
    """
    config = record.get("config") or {}
    data = {key: value for key, value in (config.get("data") or {}).items() if key not in NOT_OF_THE_TASK}
    of = {"data": data, "fingerprint": config.get("fingerprint"), "pretrain": record["freeze"] == "pretrain"}
    of |= {key: record.get(key) for key in ("study", "protocol", "limit", "epochs_cap")}
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:12]


def described(record: Row) -> str:
    """The task of a training record in words."""
    config = record.get("config") or {}
    data = config.get("data") or {}
    parts = ["the pre-training"] if record["freeze"] == "pretrain" else []
    parts += [str(data["dataset"])] if data.get("dataset") else []
    parts += [f"classes {', '.join(map(str, data['classes']))}"] if data.get("classes") else []
    sizes = [size for size in data.get("train_images") or [] if size != "all"]
    parts += [f"{size} training images" for size in sizes]
    parts += [f"--limit {record['limit']}"] if record["limit"] else []
    parts += [f"--epochs {record['epochs_cap']}"] if record["epochs_cap"] else []
    return "; ".join(parts)


def competes(row: Row, *, on_test: bool = False) -> bool:
    """Whether a row may be preferred to others: no trial of a search and, unless `on_test`, not validated on test."""
    trial = row["search"] and not row["search"]["best"]
    return row["outcome"] == "ok" and not trial and (on_test or row["protocol"] != "document")


def lost(row: Row, artifact: Row) -> tuple[float, float] | None:
    """What an artifact loses of its run's accuracy on validation, and the variance of that; None where nothing tells.

    A float32 artifact of a run in float32 is published when its logits are the model's. Without validation images of
    their own, test images whose best class is another one than the run's count as lost: no label is looked at. Half an
    image is counted each way (Agresti and Min 2005).
    """
    as_is = artifact.get("variant") in (None, "float32") and artifact.get("payload") != "jpeg"
    if as_is and row["precision"] == "float32":
        return 0.0, 0.0
    if artifact.get("validation_change") is not None:
        half = 1 / artifact["validation_images"] ** 2
        return -artifact["validation_change"], artifact["validation_error"] ** 2 + half
    if artifact.get("agreement") is None or not artifact.get("test_images"):
        return None
    share, count = 1 - artifact["agreement"], artifact["test_images"]
    return share, share * (1 - share) / count + 1 / count**2


def artifacts(row: Row, infer: Sequence[Row], measure: str) -> list[Row]:
    """Measurements of a row's own artifacts that have a figure, the best first: of latency those of single images.

    Where a cell was measured for ten minutes, what its seconds gave does not count, faster or not.
    """
    trained = set(zip(row["runs"], row["run_times"], strict=True))  # a run that was trained again is another
    own = [r for r in infer if (r.get("run"), r.get("run_time")) in trained]
    own = [r for r in own if r["outcome"] == "ok" and r["runtime"] != "null"]
    if measure != "images_per_second":
        own = [r for r in own if r["batch_size"] == 1 and r.get("scenario") in (None, "single_stream")]
    cells = [(threads(r), *(r.get(key) for key in CELL if key != "profile")) for r in own]
    long = {cell for r, cell in zip(own, cells, strict=True) if r.get("profile") == "valid"}
    own = [r for r, cell in zip(own, cells, strict=True) if r.get("profile") == "valid" or cell not in long]
    found = [r for r in own if r.get(measure)]  # 0 images/s: no rate kept the bound
    return sorted(found, key=lambda r: r[measure], reverse=measure == "images_per_second")


def joined(train: list[Row], infer: list[Row]) -> list[Row]:
    """Training rows with the best figures of their artifacts, and whether each lies on a front of its task.

    What loses more than MARGIN of the run's validation accuracy, or is not known to lose less, has no figures to give.

    Adds `best_images_per_second`, `best_latency_p50_seconds` (one image), `best_latency_p99_seconds` and, under the
    same names with `_of`, where they were measured; `pareto_train` and `pareto_latency` are null where a row does not
    compete, has nobody to compete with, or was not measured.
    """
    for row in train:
        for key in MEASURED_ON:
            best = next((r for r in artifacts(row, infer, key) if (loss := lost(row, r)) and loss[0] <= MARGIN), None)
            row[f"best_{key}"] = best and best[key]
            row[f"best_{key}_of"] = best and where(best)
    for key, cost in (("pareto_train", "total_seconds"), ("pareto_latency", "best_latency_p50_seconds")):
        for row in train:
            same = [r for r in train if r["task"] == row["task"] and competes(r)]
            rivals = [r for r in same if None not in (r[cost], r["validation_top1"])]
            row[key] = _undominated(row, rivals, cost) if row in rivals and len(rivals) > 1 else None
    return train


def threads(record: Row) -> str | None:
    """The threads of a call in words; None where they are as many as the machine has cores, or neither is known."""
    asked, cores = record.get("threads"), (record.get("machine") or {}).get("cores")
    return None if cores is None or asked in (None, cores) else f"{asked} thread{'s' if asked > 1 else ''}"


def where(row: Row) -> str:
    """The runtime, what sets artifact, requests, threads, device and images apart, the batch, and whether it was
    unstable."""
    variant = row.get("variant") if row.get("variant") not in (None, "float32") else None
    device = row["device"] if row["device"] != "cpu" else None
    copies = "no copies" if row.get("host_copies") is False else None
    unstable = "unstable" if row.get("stable") is False else None
    batch = f"@{row['batch_size']}"
    parts = (row["runtime"], variant, row.get("payload"), threads(row), device, copies, batch, unstable)
    return " ".join(part for part in parts if part)


def _undominated(row: Row, rivals: Sequence[Row], cost: str) -> bool:
    """Whether no rival is as good on validation and as cheap, and better in one of the two."""
    own = (row["validation_top1"], -row[cost])
    others = [(r["validation_top1"], -r[cost]) for r in rivals]
    return not any(o != own and o[0] >= own[0] and o[1] >= own[1] for o in others)
