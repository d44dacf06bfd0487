"""What may be said about measured windows, and the search for the highest rate a server holds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

AGREEMENT = 0.10
LAST = 3
PRECISION = 1.05
MOST_DOUBLINGS = 20
MOST_HALVINGS = 6  # at lower rates a window is one query and a long wait
SAME_PAIRS = 4
STUDENT = 4.541  # the 99 % quantile of Student's distribution with SAME_PAIRS - 1 degrees of freedom
SAME_LEAST = 1 / 1.1  # MLPerf's TEST04 lets one image be answered at a rate 10 % above that of different ones

Pair = tuple[float, float]


@dataclass(frozen=True)
class Profile:
    """How long a cell is measured: windows of at least `seconds` and `queries` (or images, in `offline`).

    Windows are repeated up to `most` times until the last three agree; one window is cut into ten to see whether it was
    stable. `seconds_at_most` limits what the count may cost, but windows of single images have the count of a median.
    """

    name: str
    seconds: float
    queries: dict[str, int]
    windows: int
    most: int
    seconds_at_most: float | None = None


# The minima of `valid` are MLPerf's: ten minutes, 64 queries for a p90, 24,576 images offline, 662 queries for a p99.
PROFILES = {
    "quick": Profile("quick", 0.5, {"single_stream": 22, "offline": 1, "server": 221}, 3, 6, seconds_at_most=4.0),
    "valid": Profile("valid", 600.0, {"single_stream": 64, "offline": 24_576, "server": 662}, 1, 1),
}


def brief(profile: Profile) -> Profile:
    """The profile with the fewest windows, a tenth of a second each."""
    return replace(profile, seconds=0.1, most=profile.windows, seconds_at_most=0.5)


def spread(windows: Sequence[Pair]) -> float | None:
    """By how much the last three windows differ, in images a second or in latency; None where there are fewer."""
    last = windows[-LAST:]
    if len(last) < LAST:
        return None
    return max(_apart(values) for values in zip(*last, strict=True))


def _apart(values: Sequence[float]) -> float:
    low, high = min(values), max(values)
    return high / low - 1 if low else float("inf") if high else 0.0


def stable(windows: Sequence[Pair]) -> bool:
    """Whether the last three windows agree within 10 % in images a second and in latency."""
    found = spread(windows)
    return found is not None and found <= AGREEMENT + 1e-9  # 110 / 100 - 1 is a little more than 0.1


def slices(seconds: Sequence[float], batch_size: int, count: int = 10) -> list[Pair]:
    """One long window as several, each with its images a second and its median latency; empty where it is too short."""
    from statistics import fmean, median

    size = len(seconds) // count
    parts = [seconds[i * size : (i + 1) * size] for i in range(count)] if size else []
    return [(batch_size / fmean(part), median(part)) for part in parts]


@dataclass(frozen=True)
class Same:
    """What one image again and again takes of the time of different ones, and the factor by which that may be off.

    The noise is that of the pairs of windows themselves: their ratio is below `ratio` × `noise` with 99 % confidence.
    """

    ratio: float
    noise: float

    @property
    def faster(self) -> bool:
        """Whether one image is faster beyond the noise; data in the processor's cache may be all there is to it."""
        return self.ratio * self.noise < 1

    @property
    def from_memory(self) -> bool:
        """Whether it is faster by more than MLPerf lets pass, beyond the noise."""
        return self.ratio * self.noise < SAME_LEAST

    def __str__(self) -> str:
        at_most = f"at most {self.ratio * self.noise:.0%} for certain"
        return f"one image again and again takes {self.ratio:.0%} of what different ones take, {at_most}"


def same_image(pairs: Sequence[Pair]) -> Same | None:
    """Of SAME_PAIRS medians of different images and of one, taken in turns: Student's one-sided bound on the mean of
    their log ratios. None where nothing was timed."""
    if not all(one and other for one, other in pairs):
        return None
    logs = [math.log(same / different) for different, same in pairs]
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    return Same(math.exp(statistics.fmean(logs)), math.exp(STUDENT * error))


def highest_rate(holds: Callable[[float], bool], start: float, confirmed: Callable[[float], bool]) -> float | None:
    """The highest rate that `holds`, within 5 %: doubled or halved from `start`, bisected, then `confirmed`.

    A rate that is not confirmed is lowered by 5 %. None where no rate down to a 64th of `start` is held, or none of
    twenty is confirmed.
    """
    low, high = _bracket(holds, start)
    if low is None:
        return None
    while high / low > PRECISION:
        middle = (low * high) ** 0.5
        if holds(middle):
            low = middle
        else:
            high = middle
    for _ in range(MOST_DOUBLINGS):
        if confirmed(low):
            return low
        low /= PRECISION
    return None


def _bracket(holds: Callable[[float], bool], start: float) -> tuple[float | None, float]:
    """A rate that is held and one, at most twice as high, that is not."""
    rate = start
    if holds(rate):
        for _ in range(MOST_DOUBLINGS):
            if not holds(2 * rate):
                break
            rate *= 2
        return rate, 2 * rate
    for _ in range(MOST_HALVINGS):
        rate /= 2
        if holds(rate):
            return rate, 2 * rate
    return None, start
