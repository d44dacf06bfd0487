"""Artifact × runtime × batch size -> records: how fast a published model answers, and how well."""

import itertools
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frostline import runtimes, timing

FIGURES = (
    "images_per_second",
    "latency_p50_seconds",
    "latency_p90_seconds",
    "latency_p95_seconds",
    "latency_p99_seconds",
    "count",
)
WARMUP_CALLS = 3
DISTINCT_BATCHES = 8
ACCURACY_BATCH = 32
# How far one image's probabilities may be apart in two batches. A GPU rounds inputs to ten bits (TF32), and which
# algorithm it takes depends on the batch.
TOLERANCE = {"cpu": 1e-4, "gpu": 1e-2}

Clock = Callable[[], float]


class WrongAnswer(Exception):
    """A runtime gave an answer that cannot be right."""


@dataclass(frozen=True)
class Opened:
    """A runtime that has answered every test image once: its probabilities [N, classes] and what that took."""

    predict: runtimes.Predict
    hold: runtimes.Hold | None
    probabilities: np.ndarray
    facts: dict[str, float]


def measure(
    manifest: dict[str, Any],
    version_folder: Path,
    runtime: str,
    device: str,
    *,
    batch_sizes: Sequence[int],
    images: np.ndarray,
    labels: np.ndarray,
    host_copies: bool = True,
    min_seconds: float = 1.0,
    min_count: int = 10,
    clock: Clock = time.perf_counter,
) -> list[dict[str, Any]]:
    """One record per batch size: latency, throughput, and accuracy over all of `images`, uint8 [N,H,W,3].

    `manifest` is the one in `version_folder`, whose kind is the runtime's. `first_answer_seconds` is the first image
    after loading. Without `host_copies` images lie on the device before the clock starts, and answers stay there. A
    device that is missing makes records `skipped`; an exception, or an answer that differs from the
    accuracy pass, makes a record `failed`, and the other batch sizes go on.
    """
    cells = [_blank(manifest, runtime, device, size) | {"host_copies": host_copies} for size in batch_sizes]
    opened, trouble = _try(_open, manifest, version_folder, runtime, device, images, labels, clock, host_copies)
    if not opened:
        return [cell | trouble for cell in cells]
    records = []
    for cell in cells:
        figures, trouble = _try(_figures, opened, images, cell, min_seconds, min_count, clock)
        records.append(cell | opened.facts | (figures or trouble))
    return records


def accuracy(
    manifest: dict[str, Any],
    version_folder: Path,
    runtime: str,
    device: str,
    *,
    images: np.ndarray,
    labels: np.ndarray,
    clock: Clock = time.perf_counter,
) -> dict[str, Any]:
    """A record with accuracy and loading times only, for an artifact whose graph is timed under another model."""
    cell = _blank(manifest, runtime, device, None)
    opened, trouble = _try(_open, manifest, version_folder, runtime, device, images, labels, clock)
    return cell | (opened.facts | {"outcome": "ok", "reason": "accuracy only"} if opened else trouble)


def share(record: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The record of an artifact, measured by `accuracy`, with the figures of one whose graph is equal."""
    if own["outcome"] != "ok":
        return own | {"batch_size": record["batch_size"]}
    figures = {key: record[key] for key in ("batch_size", "host_copies", *FIGURES, "valid", "reason")}
    return own | figures | {"figures_of": record["model"]}


def unmeasured(
    manifest: dict[str, Any], runtime: str, device: str, batch_sizes: Sequence[int], outcome: str, reason: str
) -> list[dict[str, Any]]:
    """Records, one per batch size, of an artifact that could not be tried: `skipped` or `failed`, and why."""
    told = {"outcome": outcome, "reason": reason}
    return [_blank(manifest, runtime, device, size) | told for size in batch_sizes]


def _blank(manifest: dict[str, Any], runtime: str, device: str, batch_size: int | None) -> dict[str, Any]:
    """A record in which nothing is measured yet."""
    return {
        "kind": "infer",
        "model": manifest["name"],
        "version": manifest["version"],
        **{key: manifest.get(key) for key in ("study", "freeze", "run", "run_time")},
        "runtime": runtime,
        "device": device,
        "batch_size": batch_size,
        "host_copies": True,
        **dict.fromkeys(FIGURES),
        "size_bytes": manifest["size_bytes"],
        "load_seconds": None,
        "first_answer_seconds": None,
        "test_top1": None,
        "figures_of": None,
        "valid": False,
        "outcome": None,
        "reason": None,
    }


def _try(work: Callable[..., Any], *args: Any) -> tuple[Any, dict[str, Any]]:
    """What the work returns, else None and the outcome to record."""
    try:
        return work(*args), {}
    except runtimes.Unavailable as error:
        return None, {"outcome": "skipped", "reason": str(error)}
    except Exception as error:
        traceback.print_exc()
        first_line = str(error).partition("\n")[0]
        return None, {"outcome": "failed", "reason": f"{type(error).__name__}: {first_line}"}


def _open(
    manifest: dict[str, Any],
    folder: Path,
    runtime: str,
    device: str,
    images: np.ndarray,
    labels: np.ndarray,
    clock: Clock,
    host_copies: bool = True,
) -> Opened:
    """Load the artifact, then let it answer one image, then all of them."""
    executor = runtimes.ready(runtime, device)
    started = clock()
    predict = executor.open(folder, manifest, device)
    loaded = clock()
    predict(images[:1])
    answered = clock()
    probabilities = _answer_all(predict, images, len(manifest["class_names"]))
    facts = {
        "load_seconds": loaded - started,
        "first_answer_seconds": answered - loaded,
        "test_top1": float(np.mean(probabilities.argmax(axis=1) == labels)),
    }
    if host_copies:
        return Opened(predict, None, probabilities, facts)
    if executor.hold is None:
        raise runtimes.Unavailable(f"{runtime} always copies between host and device")
    return Opened(predict, executor.hold(folder, manifest, device), probabilities, facts)


def _answer_all(predict: runtimes.Predict, images: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities [N, classes] of all images; raises WrongAnswer where they are something else."""
    starts = range(0, len(images), ACCURACY_BATCH)
    answers = np.concatenate([predict(images[start : start + ACCURACY_BATCH]) for start in starts])
    if answers.shape != (len(images), classes) or not np.isfinite(answers).all():
        raise WrongAnswer(f"answers {answers.shape} are not a finite probability for each image and {classes} classes")
    return answers


def _figures(
    opened: Opened, images: np.ndarray, cell: dict[str, Any], min_seconds: float, min_count: int, clock: Clock
) -> dict[str, Any]:
    """Time one batch size over different images in turn; raises WrongAnswer where the answers are not theirs."""
    size = cell["batch_size"]
    starts = range(0, len(images), size)[:DISTINCT_BATCHES]
    batches = [np.arange(start, start + size) % len(images) for start in starts]
    pixels = [images[rows] for rows in batches]
    turns = itertools.cycle(range(len(batches)))
    answers: dict[int, np.ndarray] = {}
    held = [opened.hold(batch) for batch in pixels] if opened.hold else None

    def call() -> None:
        turn = next(turns)
        if held:
            held[turn][0]()
        else:
            answers[turn] = opened.predict(pixels[turn])

    seconds = timing.sample(call, warmup=WARMUP_CALLS, min_seconds=min_seconds, min_count=min_count, clock=clock)
    if held:
        answers = {turn: read() for turn, (_, read) in enumerate(held[: len(seconds)])}
    for turn, found in answers.items():
        _check(found, opened.probabilities[batches[turn]], TOLERANCE[cell["device"]])
    summary = timing.summarize(seconds)
    return {
        "images_per_second": size / summary.mean_seconds,
        "latency_p50_seconds": summary.p50_seconds,
        "latency_p90_seconds": summary.p90_seconds,
        "latency_p95_seconds": summary.p95_seconds,
        "latency_p99_seconds": summary.p99_seconds,
        "count": summary.count,
        "outcome": "ok",
        "reason": f"quick: {summary.count} samples in {sum(seconds):.1f} s; no scenario was held for its full length",
    }


def _check(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    if found.shape != expected.shape:
        raise WrongAnswer(f"a batch of {len(expected)} images was answered by {found.shape}, not {expected.shape}")
    difference = float(np.abs(found - expected).max())
    if not difference <= tolerance:
        raise WrongAnswer(f"answers are {difference:.3g} off those of the accuracy pass, {tolerance:g} is allowed")
