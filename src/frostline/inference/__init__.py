"""Artifact × runtime × scenario -> records: how fast a published model answers, and how well."""

from __future__ import annotations

import itertools
import math
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from frostline import device, machine, runtimes, timing
from frostline.inference import loadgen, rules
from frostline.inference.loadgen import Load, Window
from frostline.inference.rules import PROFILES, Profile
from frostline.inference.served import Served, request_seconds
from frostline.records import FIGURES
from frostline.runtimes import How, Runtime

PEAKS = ("peak_memory_bytes", "device_peak_memory_bytes")
# What is measured once for all cells of a process, and with each of them.
OF_PROCESS = ("load_seconds", "first_answer_seconds", "test_top1", "test_images", "agreement", "validation_top1",
              "validation_change", "validation_error", "validation_images", *PEAKS)  # fmt: skip
OF_CELL = (
    "server_seconds",
    "client_seconds",
    "cpu_utilisation",
    "stable",
    "windows",
    "same_image_ratio",
    "same_image_noise",
    "warmup_calls",
    "latency_bound_seconds",
    "latency_bound_asked_seconds",
    "loadgen",
    "log",
)
WARMUP_CALLS = 4  # of each batch size, the first of which may trace or compile a function
LEAST_IMAGE_SECONDS = 5e-6  # what LoadGen and Python take themselves: no runtime is expected to be faster
ACCURACY_BATCH = 32
WORKERS = 16  # requests in flight at most, in the server scenario
# The look for answers from memory: what its windows take at least, and what they may take for offline to have it.
SAME_SECONDS, SAME_CALLS, SAME_SECONDS_AT_MOST = 0.15, 5, 4.0
BOUND_FACTOR = 10.0  # of the single-stream p90: what an answer may take in the server scenario unless told
# How far one image's probabilities may be apart in two batches. A GPU rounds inputs to ten bits (TF32), and which
# algorithm it takes depends on the batch.
TOLERANCE = {"cpu": 1e-4, "gpu": 1e-2}
# How far answers may be from the stored predictions of the run: float32 from float32 (the largest difference of a
# probability), and where one of them was rounded (half the sum of an image's differences, its mean over the images).
FROM_STORED = {"cpu": 1e-3, "gpu": 2e-2}
FROM_STORED_ROUNDED = 0.1

Clock = Callable[[], float]
Row = dict[str, Any]


class WrongAnswer(Exception):
    """A runtime gave an answer that cannot be right."""


@dataclass(frozen=True)
class Subject:
    """What is measured: the artifact in `folder`, described by its manifest, on a runtime."""

    manifest: Row
    folder: Path
    runtime: str
    how: How = field(default_factory=How)
    host_copies: bool = True
    server: Served | None = None

    @property
    def process(self) -> int | None:
        """The process that answers, None for this one."""
        return self.server.pid if self.server else None

    @property
    def entry(self) -> Runtime:
        return runtimes.RUNTIMES[self.runtime]


Images = np.ndarray | list[bytes]  # uint8 [N,H,W,3], or N encoded ones


@dataclass(frozen=True)
class Given:
    """The test images with labels [N] and the run's predictions [N, classes], and the same of validation images, where
    these are others and the predictions are at hand."""

    images: Images
    labels: np.ndarray
    stored: np.ndarray | None = None
    validation: tuple[Images, np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Opened:
    """A runtime that has answered every test image once: its probabilities [N, classes] and what that took."""

    predict: runtimes.Predict
    hold: runtimes.Hold | None
    probabilities: np.ndarray
    facts: Row


@dataclass(frozen=True)
class Spent:
    """What a window took: seconds on the wall, of the cores, and of the server on its requests, with their number."""

    wall_seconds: float
    cpu_seconds: float
    server_seconds: float = 0.0
    requests: int = 0


@dataclass
class Cell:
    """A scenario and batch size of a subject, and what its windows found so far."""

    scenario: str
    batch_size: int
    call_seconds: float | None = None
    windows: list[Window] = field(default_factory=list)
    trouble: Row = field(default_factory=dict)
    spent: list[Spent] = field(default_factory=list)  # by test of LoadGen, those of the windows last
    bound_seconds: float | None = None
    bound_asked_seconds: float | None = None
    same_image: rules.Same | None = None
    held: bool = True  # False in the server scenario where no rate keeps the bound

    @property
    def pairs(self) -> list[rules.Pair]:
        """Images a second and median latency of each window; a long single one counts as ten."""
        if len(self.windows) == 1:
            (one,) = self.windows
            slices = rules.slices(one.seconds, self.batch_size)
            # At which rate images arrive in the server scenario is LoadGen's doing.
            return [(one.images_per_second, p50) for _, p50 in slices] if self.scenario == "server" else slices
        return [(w.images_per_second, _median(w, self.scenario)) for w in self.windows]


def measure(
    subject: Subject,
    cells: Sequence[tuple[str, int]],
    given: Given,
    logs: Path,
    *,
    profile: Profile = PROFILES["quick"],
    latency_bound: float | None = None,
    clock: Clock = time.perf_counter,
) -> Iterator[Row]:
    """One record per scenario and batch size, measured in turns by LoadGen, whose logs are left below `logs`.

    Cells of a profile with one window are measured one after the other, each yielded before the next begins.
    `first_answer_seconds` is the first image after loading. Without `host_copies` images lie on the device before the
    clock starts, and answers stay there. A device that is missing makes records `skipped`; an exception, or an answer
    that differs from the accuracy pass, makes a record `failed`, and the other cells go on.
    """
    found = [Cell(*cell) for cell in cells]
    opened, trouble = _try(_open, subject, given, clock)
    if not opened:
        yield from (_blank(subject, cell.scenario, cell.batch_size, profile) | trouble for cell in found)
        return
    bench = Bench(subject, opened, given, logs, profile, latency_bound, clock)
    for cell in found:
        _, cell.trouble = _try(bench.warm_up, cell)
    peak = _peak_memory(subject, given)  # before LoadGen makes its queries ready, which are many in ten minutes
    for turns in [found] if profile.most > 1 else [[cell] for cell in found]:
        bench.measure(turns)
        peak = _peak_memory(subject, given) if subject.server else peak  # it has grown with the requests in flight
        facts = opened.facts | {"peak_memory_bytes": peak, "device_peak_memory_bytes": _device_memory(subject)}
        for cell in turns:
            row = cell.trouble or _figures(cell, profile)
            yield _blank(subject, cell.scenario, cell.batch_size, profile) | facts | row


def _peak_memory(subject: Subject, given: Given) -> int | None:
    """The largest resident memory of the server, or of this process since before loading, without the images."""
    if subject.server:
        return machine.peak_memory_bytes(subject.server.pid) if subject.server.pid else None
    peak = machine.peak_memory_bytes()
    held = [*given.images, *(given.validation[0] if given.validation else ())]
    return peak and peak - sum(memoryview(image).nbytes for image in held)


def _device_memory(subject: Subject) -> int | None:
    """The largest memory TensorFlow held on the GPU, or what the process holds there at the end; None without one."""
    if subject.how.device != "gpu":
        return None
    if subject.entry.library in ("keras", "tensorflow"):
        return device.peak_memory_bytes()
    return machine.gpu_memory_bytes(os.getpid())


def accuracy(subject: Subject, given: Given, clock: Clock = time.perf_counter) -> Row:
    """A record with accuracy and loading times only, for an artifact whose graph is timed under another model."""
    blank = _blank(subject, None, None, PROFILES["quick"])
    opened, trouble = _try(_open, subject, given, clock)
    return blank | (opened.facts | {"outcome": "ok", "reason": "accuracy only"} if opened else trouble)


def share(record: Row, own: Row) -> Row:
    """The record of an artifact, measured by `accuracy`, with what was measured of one whose graph is equal."""
    cell = {key: record[key] for key in ("scenario", "profile", "batch_size", "host_copies")}
    if own["outcome"] != "ok":
        return own | cell
    if record["outcome"] != "ok":
        return own | cell | {key: record[key] for key in ("outcome", "reason")}
    figures = {key: record[key] for key in (*FIGURES, *OF_CELL, *PEAKS, "valid", "reason")}
    return own | cell | figures | {"figures_of": record["model"]}


def unmeasured(
    subject: Subject, cells: Sequence[tuple[str, int]], profile: Profile, outcome: str, reason: str
) -> list[Row]:
    """Records, one per cell, of an artifact that could not be tried: `skipped` or `failed`, and why."""
    told = {"outcome": outcome, "reason": reason}
    return [_blank(subject, *cell, profile) | told for cell in cells]


def _blank(subject: Subject, scenario: str | None, batch_size: int | None, profile: Profile) -> Row:
    """A record in which nothing is measured yet."""
    manifest, how = subject.manifest, subject.how
    return {
        "kind": "infer",
        "model": manifest["name"],
        "version": manifest["version"],
        **{key: manifest.get(key) for key in ("study", "freeze", "run", "run_time")},
        "runtime": subject.runtime,
        "variant": how.variant,
        "payload": how.payload,
        "server": subject.server.backend if subject.server else None,
        "device": how.device,
        "threads": how.threads or machine.cores(),
        "host_copies": subject.host_copies,
        "scenario": scenario,
        "profile": profile.name,
        "batch_size": batch_size,
        **dict.fromkeys((*FIGURES, *OF_PROCESS, *OF_CELL)),
        "size_bytes": manifest.get("variants", {}).get(how.variant, manifest)["size_bytes"],
        "figures_of": None,
        "valid": False,
        "outcome": None,
        "reason": None,
    }


def _try(work: Callable[..., Any], *args: Any) -> tuple[Any, Row]:
    """What the work returns, else None and the outcome to record."""
    try:
        return work(*args), {}
    except runtimes.Unavailable as error:
        return None, {"outcome": "skipped", "reason": str(error)}
    except Exception as error:
        traceback.print_exc()
        first_line = str(error).partition("\n")[0]
        return None, {"outcome": "failed", "reason": f"{type(error).__name__}: {first_line}"}


# -- loading and accuracy ------------------------------------------------------------------------------


def _open(subject: Subject, given: Given, clock: Clock) -> Opened:
    """Load the artifact, then let it answer one image, then all of them."""
    entry = runtimes.ready(subject.runtime, subject.how.device)
    if not subject.server:  # whose peak holds its start
        machine.reset_peak_memory()
    started = clock()
    predict = entry.open(subject.folder, subject.manifest, subject.how)
    loaded = clock()
    predict(given.images[:1])
    answered = clock()
    probabilities = _answer_all(predict, given.images, len(subject.manifest["class_names"]))
    load_seconds = subject.server.load_seconds if subject.server else loaded - started
    facts: Row = {"load_seconds": load_seconds, "first_answer_seconds": answered - loaded}
    if entry.answers:
        facts["test_top1"] = float(np.mean(probabilities.argmax(axis=1) == given.labels))
        facts["test_images"] = len(given.labels)
        facts["agreement"] = _agreement(subject, probabilities, given.stored)
        if given.validation:
            facts |= _on_validation(predict, *given.validation)
    if subject.host_copies:
        return Opened(predict, None, probabilities, facts)
    if entry.hold is None:
        raise runtimes.Unavailable(f"{subject.runtime} always copies between host and device")
    return Opened(predict, entry.hold(subject.folder, subject.manifest, subject.how), probabilities, facts)


def _on_validation(predict: runtimes.Predict, images: Images, labels: np.ndarray, stored: np.ndarray) -> Row:
    """Validation top-1 of an artifact, how far it lies above that of the stored predictions, and the standard error."""
    right = _answer_all(predict, images, stored.shape[1]).argmax(axis=1) == labels
    change = right.astype(float) - (stored.argmax(axis=1) == labels)
    error = float(change.std() / np.sqrt(len(change)))
    told = {"validation_top1": float(right.mean()), "validation_images": len(change)}
    return told | {"validation_change": float(change.mean()), "validation_error": error}


def _answer_all(predict: runtimes.Predict, images: Images, classes: int) -> np.ndarray:
    """Probabilities [N, classes] of all images; raises WrongAnswer where they are something else."""
    starts = range(0, len(images), ACCURACY_BATCH)
    answers = np.concatenate([predict(images[start : start + ACCURACY_BATCH]) for start in starts])
    if answers.shape != (len(images), classes) or not np.isfinite(answers).all():
        raise WrongAnswer(f"answers {answers.shape} are not a finite probability for each image and {classes} classes")
    return answers


def _agreement(subject: Subject, answers: np.ndarray, stored: np.ndarray | None) -> float | None:
    """The share of images that get the class the trained model gave them; raises WrongAnswer where answers are others.

    None where the predictions of the run are not at hand.
    """
    if stored is None:
        return None
    off = np.abs(answers - stored)
    how, trained = subject.how, subject.manifest.get("trained") or {}
    rounded = how.variant != "float32" or how.payload == "jpeg" or trained.get("precision") != "float32"
    if not rounded:
        found, allowed = float(off.max()), FROM_STORED[how.device]
    else:
        found, allowed = float(off.sum(axis=1).mean() / 2), FROM_STORED_ROUNDED
    if not found <= allowed:
        raise WrongAnswer(f"answers are {found:.3g} off the predictions of the run, {allowed:g} is allowed")
    return float(np.mean(answers.argmax(axis=1) == stored.argmax(axis=1)))


def _check(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    if found.shape != expected.shape:
        raise WrongAnswer(f"a batch of {len(expected)} images was answered by {found.shape}, not {expected.shape}")
    difference = float(np.abs(found - expected).max())
    if not difference <= tolerance:
        raise WrongAnswer(f"answers are {difference:.3g} off those of the accuracy pass, {tolerance:g} is allowed")


# -- one window after the other ------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """An opened runtime and how it is to be measured."""

    subject: Subject
    opened: Opened
    given: Given
    logs: Path
    profile: Profile
    latency_bound: float | None
    clock: Clock

    def measure(self, cells: Sequence[Cell]) -> None:
        """Measure cells in turns until each has windows enough, then look at what one image again and again costs."""
        for number in range(self.profile.most):
            for cell in cells:
                if not cell.trouble and not _enough(cell, number, self.profile):
                    _, cell.trouble = _try(self.window, cell)
        for cell in cells:
            if not cell.trouble and self.audits(cell):
                _, cell.trouble = _try(self.audit, cell)

    def window(self, cell: Cell) -> None:
        """Add one window to a cell. Raises WrongAnswer."""
        answer, finish = self._answer(cell)
        load = self.load(cell)
        if cell.scenario == "server":
            self._serve(cell, load, answer)
        else:
            cell.windows.append(self.run(cell, load, answer, len(cell.windows)))
        finish()

    def audits(self, cell: Cell) -> bool:
        """Whether it is looked at what one image again and again costs: of single images, and offline where cheap."""
        if cell.scenario == "server" or not (self.subject.host_copies and self.subject.entry.answers):
            return False
        assert cell.call_seconds
        seconds = 2 * rules.SAME_PAIRS * max(SAME_SECONDS, SAME_CALLS * cell.call_seconds)
        return cell.scenario == "single_stream" or seconds <= SAME_SECONDS_AT_MOST

    def audit(self, cell: Cell) -> None:
        """Send one image again and again in turns with different ones, as MLPerf's TEST04 compares two runs.

        Each pair of windows has another image. Raises WrongAnswer where that is faster beyond the noise and MLPerf's
        allowance.
        """
        answer, finish = self._answer(cell)
        calls = SAME_CALLS * (cell.batch_size if cell.scenario == "offline" else 1)
        seconds = min(SAME_SECONDS, self.profile.seconds)
        load = replace(self.load(cell), min_seconds=seconds, min_queries=calls)
        images, logs = len(self.given.images), self.logs / f"{cell.scenario}-{cell.batch_size}" / "same-image"

        def median(number: int, same: int | None) -> float:
            place = logs / f"{number + 1}-{'different' if same is None else 'same'}"
            window = loadgen.run(replace(load, same=same), images, answer, self.check, place, self.clock)
            return statistics.median(window.seconds)

        turns = [(n, n * images // rules.SAME_PAIRS) for n in range(rules.SAME_PAIRS)]
        pairs = [(median(number, None), median(number, image)) for number, image in turns]
        finish()
        cell.same_image = rules.same_image(pairs)
        if cell.same_image and cell.same_image.from_memory:
            raise WrongAnswer(f"{cell.same_image}; it keeps its answers")

    def _cpu(self) -> float:
        """CPU seconds of what answers; NaN where it does not tell."""
        if not self.subject.server:
            return time.process_time()
        found = machine.cpu_seconds(self.subject.server.pid) if self.subject.server.pid else None
        return float("nan") if found is None else found

    def _requests(self) -> tuple[float, int] | None:
        server = self.subject.server
        return request_seconds(server.rest, self.subject.manifest["name"]) if server else None

    def load(self, cell: Cell) -> Load:
        """What LoadGen is to send in a window of this cell."""
        profile, seconds = self.profile, cell.call_seconds
        assert seconds
        queries = profile.queries[cell.scenario]
        if profile.seconds_at_most:
            of_median = math.ceil(timing.samples_needed(0.50) / profile.windows)
            least = of_median if cell.scenario == "single_stream" else 1  # offline the rate is what is asked for
            queries = max(least, min(queries, int(profile.seconds_at_most / seconds)))
        return Load(cell.scenario, cell.batch_size, profile.seconds, queries, seconds)

    def run(self, cell: Cell, load: Load, answer: loadgen.Answer, number: int) -> Window:
        """One LoadGen test over the test images, its log in a folder of its own."""
        logs = self.logs / f"{cell.scenario}-{cell.batch_size}" / str(number + 1)
        requests, cpu, wall = self._requests(), self._cpu(), time.perf_counter()
        window = loadgen.run(load, len(self.given.images), answer, self.check, logs, self.clock)
        spent = Spent(time.perf_counter() - wall, self._cpu() - cpu)
        after = self._requests()
        if requests and after:
            spent = replace(spent, server_seconds=after[0] - requests[0], requests=after[1] - requests[1])
        cell.spent.append(spent)
        return window

    def check(self, rows: Sequence[int], found: np.ndarray) -> None:
        _check(found, self.opened.probabilities[np.asarray(rows)], TOLERANCE[self.subject.how.device])

    def _answer(self, cell: Cell) -> tuple[loadgen.Answer, Callable[[], None]]:
        """How the images of a call are answered, and what is left to check at the end of a window."""
        predict, images = self.opened.predict, self.given.images
        if self.opened.hold:
            return self._held(cell, self.opened.hold)
        if isinstance(images, list):
            return (lambda rows: predict([images[row] for row in rows])), _nothing
        if cell.batch_size == 1:  # one image needs no copy to stand alone
            return (lambda rows: predict(images[rows[0] : rows[0] + 1])), _nothing
        return (lambda rows: predict(images[rows])), _nothing

    def _held(self, cell: Cell, hold: runtimes.Hold) -> tuple[loadgen.Answer, Callable[[], None]]:
        """Batches that lie on the device already take turns, whatever images LoadGen names."""
        assert isinstance(self.given.images, np.ndarray)
        count, size = len(self.given.images), cell.batch_size
        batches = [np.arange(start, start + size) % count for start in range(0, count, size)[:8]]
        held = [hold(self.given.images[rows]) for rows in batches]
        calls = 0

        def answer(rows: Sequence[int]) -> None:
            nonlocal calls
            held[calls % len(held)][0]()
            calls += 1

        def finish() -> None:
            for rows, (_, read) in list(zip(batches, held, strict=True))[:calls]:
                self.check(rows.tolist(), read())

        return answer, finish

    def warm_up(self, cell: Cell) -> None:
        """Find the seconds of a call, the shortest of a few after the first."""
        answer, _ = self._answer(cell)
        rows = (np.arange(cell.batch_size) % len(self.given.images)).tolist()
        count = WARMUP_CALLS - 1
        seconds = timing.sample(lambda: answer(rows), warmup=1, min_seconds=0, min_count=count, clock=self.clock)
        cell.call_seconds = max(min(seconds), LEAST_IMAGE_SECONDS * cell.batch_size)

    def _serve(self, cell: Cell, load: Load, answer: loadgen.Answer) -> None:
        """Find the highest rate of single images that keeps p99 within the bound; its windows are the cell's.

        Where no rate does, the cell has the last window, which is one of the lowest rate.
        """
        rows = itertools.cycle(range(len(self.given.images)))
        single = timing.sample(lambda: answer([next(rows)]), warmup=0, min_seconds=0, min_count=64, clock=self.clock)
        cell.bound_asked_seconds = self.latency_bound
        cell.bound_seconds = self.latency_bound or BOUND_FACTOR * timing.percentile(single, 0.90)
        tried: list[Window] = []

        def probe(rate: float, profile: Profile) -> Window:
            most = profile.seconds_at_most
            queries = profile.queries["server"]
            queries = max(1, min(queries, int(most * rate))) if most else queries
            asked = replace(load, min_seconds=profile.seconds, min_queries=queries, rate=rate,
                            bound_seconds=cell.bound_seconds, workers=WORKERS)  # fmt: skip
            tried.append(self.run(cell, asked, answer, len(tried)))
            return tried[-1]

        def confirmed(rate: float) -> bool:
            cell.windows[:] = []
            while len(cell.windows) < self.profile.windows:
                cell.windows.append(probe(rate, self.profile))
                if not (cell.windows[-1].valid if self.profile.name == "valid" else _held_bound(cell.windows[-1])):
                    return False
            return True

        start = 1 / timing.percentile(single, 0.50)
        quick = PROFILES["quick"]
        cell.held = rules.highest_rate(lambda rate: _held_bound(probe(rate, quick)), start, confirmed) is not None
        if not cell.held:
            cell.windows[:] = cell.windows[-1:] or tried[-1:]


def _nothing() -> None:
    pass


def _held_bound(window: Window) -> bool:
    return bool(window.told["result_perf_constraints_met"])


def _enough(cell: Cell, number: int, profile: Profile) -> bool:
    """Whether a cell needs no further window."""
    if cell.scenario == "server":
        return number > 0
    return number >= profile.windows and rules.stable(cell.pairs)


# -- what a cell's windows say -------------------------------------------------------------------------


def _median(window: Window, scenario: str) -> float:
    return window.latency(50) if scenario == "server" else statistics.median(window.seconds)


def _figures(cell: Cell, profile: Profile) -> Row:
    """The figures of the last three windows, or of the only one: the median rate, and percentiles of all calls."""
    last = cell.windows[-rules.LAST :]
    spent = cell.spent[-len(last) :]
    stable = rules.stable(cell.pairs) if cell.held else None
    valid = cell.held and profile.name == "valid" and all(window.valid for window in last)
    return {
        "images_per_second": statistics.median(window.images_per_second for window in last) if cell.held else 0.0,
        **_latencies(cell.scenario, last),
        **_split(cell.scenario, last, spent),
        "cpu_utilisation": sum(s.cpu_seconds for s in spent) / sum(s.wall_seconds for s in spent) / machine.cores(),
        "stable": stable,
        "windows": [list(pair) for pair in cell.pairs],
        "same_image_ratio": cell.same_image and cell.same_image.ratio,
        "same_image_noise": cell.same_image and cell.same_image.noise,
        "warmup_calls": WARMUP_CALLS,
        "latency_bound_seconds": cell.bound_seconds,
        "latency_bound_asked_seconds": cell.bound_asked_seconds,
        "loadgen": last[-1].told,
        "valid": valid,
        "outcome": "ok",
        "reason": _reason(cell, last, profile, valid, stable),
    }


def _split(scenario: str, last: Sequence[Window], spent: Sequence[Spent]) -> Row:
    """Mean seconds of a call that the server says it took, and what is left for the client and the way."""
    count = sum(s.requests for s in spent)
    server = sum(s.server_seconds for s in spent) / count if count else None
    if server is None or scenario == "server":  # whose calls wait for each other
        return {"server_seconds": server, "client_seconds": None}
    calls = statistics.fmean(second for window in last for second in window.seconds)
    return {"server_seconds": server, "client_seconds": max(0.0, calls - server)}


def _latencies(scenario: str, last: Sequence[Window]) -> Row:
    """Percentiles as far as the count supports them: LoadGen's own of one window, else of the calls of all.

    LoadGen keeps the latencies of the server scenario to itself: the worst window's bounds that of all.
    """
    own = scenario == "server" or (scenario == "single_stream" and len(last) == 1)
    if not own:
        summary = timing.summarize([second for window in last for second in window.seconds])
        told = {f"latency_p{p}_seconds": getattr(summary, f"p{p}_seconds") for p in (50, 90, 95, 99)}
        return told | {"count": summary.count}
    count = sum(window.count for window in last)
    found = {p: max(window.latency(p) for window in last) for p in (50, 90, 95, 99)}
    supported = {p: count >= timing.samples_needed(p / 100) for p in found}
    return {f"latency_p{p}_seconds": found[p] if supported[p] else None for p in found} | {"count": count}


def _reason(cell: Cell, last: Sequence[Window], profile: Profile, valid: bool, stable: bool | None) -> str | None:
    """Why a result is not valid, and by how much its windows differ where they do."""
    told = []
    if not cell.held:
        (one,) = last
        rate = f"no rate keeps p99 within {cell.bound_seconds:.3g} s: it was {one.latency(99):.3g} s at "
        told.append(f"{rate}{one.images_per_second:.3g} images/s")
    if profile.name != "valid":
        at_once = cell.scenario == "server"
        seconds = sum(w.count / w.images_per_second if at_once else sum(w.seconds) for w in last)
        full, what = PROFILES["valid"], "images" if cell.scenario == "offline" else "queries"
        told.append(
            f"{profile.name}: {_latencies(cell.scenario, last)['count']:,} calls in {seconds:.1f} s; MLPerf asks for "
            f"{full.seconds:.0f} s and at least {full.queries[cell.scenario]:,} {what}"
        )
    elif cell.held and not valid:
        reasons = [w.told.get("result_invalid_reason") or "INVALID" for w in last if not w.valid]
        told.append(f"LoadGen: {'; '.join(str(reason).strip() for reason in reasons)}")
    if stable is False:
        spread = rules.spread(cell.pairs)
        told.append(f"unstable: the last three windows differ by {spread:.0%}" if spread else "unstable: too few calls")
    if cell.same_image and cell.same_image.faster:
        told.append(str(cell.same_image))
    return "; ".join(told) or None
