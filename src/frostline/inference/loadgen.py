"""MLPerf's load generator around a function that answers images."""

from __future__ import annotations

import itertools
import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Clock = Callable[[], float]
Answer = Callable[[Sequence[int]], Any]
Check = Callable[[Sequence[int], Any], None]

NANO = 1e9
CHECKED = 16  # one answer in so many is checked, after its query is completed
SLACK = 1.25  # more queries are made ready than the warm-up says, for it may have been slow
SEEDS = {
    "qsl_rng_seed": 6023615788873153749,
    "sample_index_rng_seed": 15036839855038426416,
    "schedule_rng_seed": 9933818062894767841,
}  # fmt: skip  of MLPerf inference v5
NAMES = {"single_stream": "SingleStream", "offline": "Offline", "server": "Server"}


@dataclass(frozen=True)
class Load:
    """One test: how queries arrive, for how long at least, and the seconds that one call is expected to take.

    `offline` sends all of its images in one query, which is answered in calls of `batch_size`. `server` sends single
    images at random times, `rate` a second on average, and wants 99 % of the answers within `bound_seconds`; `workers`
    of them are answered at once. With `same` one image is sent again and again, which one depends on that number; so
    MLPerf looks for answers from memory.
    """

    scenario: str
    batch_size: int
    min_seconds: float
    min_queries: int
    call_seconds: float
    rate: float | None = None
    bound_seconds: float | None = None
    workers: int = 1
    same: int | None = None


@dataclass(frozen=True)
class Window:
    """What one test found: seconds of each call in order, and LoadGen's own result by the keys of its log.

    In the server scenario the seconds of a call are from its arrival on.
    """

    seconds: list[float]
    told: dict[str, Any]

    @property
    def valid(self) -> bool:
        """LoadGen's verdict against the minima that it was given."""
        return self.told["result_validity"] == "VALID"

    @property
    def images_per_second(self) -> float:
        for key in ("samples_per_second", "completed_samples_per_sec", "qps_with_loadgen_overhead"):
            if (found := self.told.get(f"result_{key}")) is not None:
                return float(found)
        raise KeyError("LoadGen told no rate")

    @property
    def count(self) -> int:
        return int(self.told["result_query_count"])

    def latency(self, percentile: int) -> float:
        """LoadGen's percentile of the seconds from when a query was due to when it was answered."""
        return float(self.told[f"result_{percentile}.00_percentile_latency_ns"]) / NANO


@dataclass
class _Calls:
    """The system under test: what it is asked, what that took, and the first thing that went wrong."""

    load: Load
    answer: Answer
    check: Check
    complete: Callable[[Sequence[int]], None]
    clock: Clock
    seconds: list[float] = field(default_factory=list)
    trouble: list[Exception] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)  # of calls, in whichever thread they begin

    def issue(self, queries: Sequence[int], images: Sequence[int], arrived: float | None = None) -> None:
        """Answer queries in calls of a batch; an exception must not reach LoadGen, which would not survive it."""
        size = self.load.batch_size
        for start in range(0, len(queries), size):
            rows = images[start : start + size]
            found, number = None, next(self.numbers)
            try:
                if not self.trouble:
                    before = self.clock() if arrived is None else arrived
                    found = self.answer(rows)
                    self.seconds.append(self.clock() - before)
            except Exception as error:
                self.trouble.append(error)
            self.complete(queries[start : start + size])
            if found is not None and number % CHECKED == 0:
                self._look(rows, found)

    def _look(self, rows: Sequence[int], found: Any) -> None:
        try:
            self.check(rows, found)
        except Exception as error:
            self.trouble.append(error)


def run(load: Load, images: int, answer: Answer, check: Check, logs: Path, clock: Clock = time.perf_counter) -> Window:
    """One test over `images` images: `answer` gets the numbers of those in a call, `check` some of the answers too.

    LoadGen's log is left in the folder `logs`. Raises what `answer` or `check` raised first; from then on the queries
    that LoadGen still has are completed without an answer.
    """
    import mlperf_loadgen as lg

    def complete(queries: Sequence[int]) -> None:
        lg.QuerySamplesComplete([lg.QuerySampleResponse(query, 0, 0) for query in queries])

    calls = _Calls(load, answer, check, complete, clock)
    pool = _Pool(calls) if load.scenario == "server" else None
    sut = lg.ConstructFastSUT(pool.issue if pool else calls.issue, lambda: None)
    library = lg.ConstructQSL(images, images, lambda rows: None, lambda rows: None)
    logs.mkdir(parents=True, exist_ok=True)
    try:
        lg.StartTestWithLogSettings(sut, library, _settings(lg, load), _log_settings(lg, logs), "")
    finally:
        lg.DestroyQSL(library)
        lg.DestroyFastSUT(sut)
        if pool:
            pool.end()
    for empty in ("accuracy.json", "trace.json"):  # LoadGen writes all four, whatever the mode
        (logs / f"mlperf_log_{empty}").unlink(missing_ok=True)
    if calls.trouble:
        raise calls.trouble[0]
    return Window(calls.seconds, _told(logs / "mlperf_log_detail.txt"))


class _Pool:
    """Threads that answer queries as they arrive, several at once; it is ended when its test is."""

    def __init__(self, calls: _Calls) -> None:
        self.calls = calls
        self.waiting: queue.SimpleQueue[tuple[Sequence[int], Sequence[int], float] | None] = queue.SimpleQueue()
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(calls.load.workers)]
        for thread in self.threads:
            thread.start()

    def issue(self, queries: Sequence[int], images: Sequence[int]) -> None:
        self.waiting.put((queries, images, self.calls.clock()))

    def _work(self) -> None:
        while (query := self.waiting.get()) is not None:
            self.calls.issue(*query)

    def end(self) -> None:
        for _ in self.threads:
            self.waiting.put(None)
        for thread in self.threads:
            thread.join()


def _settings(lg: Any, load: Load) -> Any:
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, NAMES[load.scenario])
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = round(1000 * load.min_seconds)
    settings.min_query_count = load.min_queries
    settings.performance_issue_same = load.same is not None
    settings.performance_issue_same_index = load.same or 0
    for name, seed in SEEDS.items():
        setattr(settings, name, seed)
    if load.scenario == "single_stream":
        # LoadGen makes ready twice as many queries as fit the time, and ends early when they run out.
        settings.single_stream_expected_latency_ns = max(1, int(NANO * load.call_seconds / SLACK))
        settings.single_stream_target_latency_percentile = 0.90
    elif load.scenario == "offline":
        # Whole batches: a last one of another size would be traced, or compiled, while the clock runs.
        images = max(load.min_queries, SLACK * load.min_seconds * load.batch_size / load.call_seconds)
        settings.min_query_count = load.batch_size * math.ceil(images / load.batch_size)
        settings.offline_expected_qps = load.batch_size / load.call_seconds
    else:
        assert load.rate and load.bound_seconds
        settings.server_target_qps = load.rate
        settings.server_target_latency_ns = int(NANO * load.bound_seconds)
        settings.server_target_latency_percentile = 0.99
    return settings


def _log_settings(lg: Any, logs: Path) -> Any:
    settings = lg.LogSettings()
    settings.log_output.outdir = str(logs)
    settings.enable_trace = False
    return settings


def _told(path: Path) -> dict[str, Any]:
    """LoadGen's result by the keys of its log: verdict, reasons, counts, rates and percentiles."""
    told = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line.partition(" ")[2])
        if entry["key"].startswith(("result_", "early_stopping_met", "error_")):
            told[entry["key"]] = entry["value"]
    return told
