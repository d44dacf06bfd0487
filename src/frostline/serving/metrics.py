"""Counts and latencies under TensorFlow Serving's names, as the text that Prometheus reads."""

import bisect
from collections import Counter
from dataclasses import dataclass, field

BOUNDS = tuple(10 * 1.8**i for i in range(33))  # microseconds; the real server's buckets
Labels = tuple[tuple[str, str], ...]


@dataclass
class Metrics:
    """What was counted since the server began."""

    counts: Counter[tuple[str, Labels]] = field(default_factory=Counter)
    buckets: dict[tuple[str, Labels], list[int]] = field(default_factory=dict)
    sums: Counter[tuple[str, Labels]] = field(default_factory=Counter)


def count(metrics: Metrics, name: str, by: int = 1, **labels: str) -> None:
    """Add to a counter."""
    metrics.counts[name, tuple(labels.items())] += by


def observe(metrics: Metrics, name: str, seconds: float, **labels: str) -> None:
    """Add to a distribution of microseconds."""
    key = (name, tuple(labels.items()))
    micros = round(seconds * 1e6)
    metrics.buckets.setdefault(key, [0] * (len(BOUNDS) + 1))[bisect.bisect_right(BOUNDS, micros)] += 1
    metrics.sums[key] += micros


def page(metrics: Metrics) -> str:
    """All of it in Prometheus's text format."""
    lines = []
    for name in sorted({name for name, _ in metrics.counts}):
        lines.append(f"# TYPE {name} counter")
        lines += [f"{name}{_braces(labels)} {n}" for (of, labels), n in metrics.counts.items() if of == name]
    for name in sorted({name for name, _ in metrics.buckets}):
        lines.append(f"# TYPE {name} histogram")
        for (of, labels), buckets in metrics.buckets.items():
            if of == name:
                lines += _histogram(name, labels, buckets, metrics.sums[of, labels])
    return "\n".join(lines) + "\n"


def _histogram(name: str, labels: Labels, buckets: list[int], total: int) -> list[str]:
    lines, seen = [], 0
    for bound, n in zip((*(f"{bound:g}" for bound in BOUNDS), "+Inf"), buckets, strict=True):
        seen += n
        lines.append(f"{name}_bucket{_braces((*labels, ('le', bound)))} {seen}")
    return [*lines, f"{name}_sum{_braces(labels)} {total}", f"{name}_count{_braces(labels)} {seen}"]


def _braces(labels: Labels) -> str:
    quoted = (value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for _, value in labels)
    return "{" + ",".join(f'{name}="{value}"' for (name, _), value in zip(labels, quoted, strict=True)) + "}"
