"""Repeated measurements of one call, and what may be said about them."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.99


@dataclass(frozen=True)
class Summary:
    """Seconds per call; a percentile the sample cannot support is None."""

    count: int
    mean_seconds: float
    p50_seconds: float | None
    p90_seconds: float | None
    p95_seconds: float | None
    p99_seconds: float | None


def sample(
    call: Callable[[], object],
    *,
    warmup: int,
    min_seconds: float,
    min_count: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Seconds of each call, repeated until both the time and the count are reached; warm-up calls are dropped."""
    for _ in range(warmup):
        call()
    seconds: list[float] = []
    started = clock()
    while len(seconds) < min_count or clock() - started < min_seconds:
        before = clock()
        call()
        seconds.append(clock() - before)
    return seconds


def samples_needed(quantile: float) -> int:
    """Smallest sample whose second-largest value lies above the quantile with 99 % confidence.

    The order-statistic bound of Wilks (1941): 11 for the median, 64 for p90, 130 for p95, 662 for p99, 6,636 for p99.9.
    """
    count = 2
    while 1 - quantile**count - count * (1 - quantile) * quantile ** (count - 1) < CONFIDENCE:
        count += 1
    return count


def percentile(seconds: Sequence[float], quantile: float) -> float:
    """The nearest-rank percentile: the smallest value that at least `quantile` of the sample does not exceed."""
    ordered = sorted(seconds)
    return ordered[max(0, math.ceil(quantile * len(ordered)) - 1)]


def summarize(seconds: Sequence[float]) -> Summary:
    """Mean, deviation and percentiles of a sample of at least one."""
    n = len(seconds)

    def supported(quantile: float) -> float | None:
        return percentile(seconds, quantile) if n >= samples_needed(quantile) else None

    return Summary(
        count=n,
        mean_seconds=statistics.fmean(seconds),
        p50_seconds=statistics.median(seconds) if n >= samples_needed(0.50) else None,
        p90_seconds=supported(0.90),
        p95_seconds=supported(0.95),
        p99_seconds=supported(0.99),
    )
