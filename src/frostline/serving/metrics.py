"""Counts and latencies under TensorFlow Serving's names, as the text that Prometheus reads."""

import bisect
import json
from collections import Counter
from dataclasses import dataclass, field

BOUNDS = tuple(10 * 1.8**i for i in range(33))  # microseconds; the real server's buckets


@dataclass
class Metrics:
    """What was counted since the server began: by name and labels, and where it is a time by bucket."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    buckets: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    sums: Counter[tuple[str, str]] = field(default_factory=Counter)


def count(metrics: Metrics, name: str, **labels: str) -> None:
    """Add one to a counter."""
    metrics.counts[name, _text(labels)] += 1


def observe(metrics: Metrics, name: str, seconds: float, **labels: str) -> None:
    """Add to a distribution of microseconds."""
    key, micros = (name, _text(labels)), round(seconds * 1e6)
    metrics.buckets.setdefault(key, [0] * (len(BOUNDS) + 1))[bisect.bisect_right(BOUNDS, micros)] += 1
    metrics.sums[key] += micros


def page(metrics: Metrics) -> str:
    """All of it in Prometheus's text format."""
    kinds = {name: "counter" for name, _ in metrics.counts} | {name: "histogram" for name, _ in metrics.buckets}
    lines: dict[str, list[str]] = {name: [f"# TYPE {name} {kind}"] for name, kind in kinds.items()}
    for (name, labels), n in metrics.counts.items():
        lines[name].append(f"{name}{{{labels}}} {n}")
    for (name, labels), buckets in metrics.buckets.items():
        seen = 0
        for bound, n in zip((*(f"{bound:g}" for bound in BOUNDS), "+Inf"), buckets, strict=True):
            seen += n
            lines[name].append(f'{name}_bucket{{{labels},le="{bound}"}} {seen}')
        total = metrics.sums[name, labels]
        lines[name] += [f"{name}_sum{{{labels}}} {total}", f"{name}_count{{{labels}}} {seen}"]
    return "\n".join(line for name in sorted(lines) for line in lines[name]) + "\n"


def _text(labels: dict[str, str]) -> str:
    return ",".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in labels.items())
