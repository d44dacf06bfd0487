"""Counts and latencies under TensorFlow Serving's names, as the text that Prometheus reads."""

import bisect
import json
from collections import Counter
from dataclasses import dataclass, field

BOUNDS = tuple(10 * 1.8**i for i in range(33))  # microseconds; the real server's buckets
Key = tuple[str, tuple[tuple[str, str], ...]]  # a name and labels


@dataclass
class Metrics:
    """What was counted since the server began; a time is counts by bucket, the last of them without a bound."""

    counts: Counter[Key] = field(default_factory=Counter)
    times: dict[Key, list[int]] = field(default_factory=dict)
    sums: Counter[Key] = field(default_factory=Counter)


def count(metrics: Metrics, name: str, **labels: str) -> None:
    """Add one to a counter."""
    metrics.counts[name, tuple(labels.items())] += 1


def observe(metrics: Metrics, name: str, seconds: float, **labels: str) -> None:
    """Add to a distribution of microseconds."""
    key, micros = (name, tuple(labels.items())), round(seconds * 1e6)
    metrics.times.setdefault(key, [0] * (len(BOUNDS) + 1))[bisect.bisect_right(BOUNDS, micros)] += 1
    metrics.sums[key] += micros


def page(metrics: Metrics) -> str:
    """All of it in Prometheus's text format."""
    lines: dict[str, list[str]] = {}
    for (name, labels), n in metrics.counts.items():
        lines.setdefault(name, [f"# TYPE {name} counter"]).append(f"{name}{{{_text(labels)}}} {n}")
    for key, buckets in metrics.times.items():
        name, text, seen = key[0], _text(key[1]), 0
        entries = lines.setdefault(name, [f"# TYPE {name} histogram"])
        for bound, n in zip((*(f"{bound:g}" for bound in BOUNDS), "+Inf"), buckets, strict=True):
            seen += n
            entries.append(f'{name}_bucket{{{text},le="{bound}"}} {seen}')
        entries += [f"{name}_sum{{{text}}} {metrics.sums[key]}", f"{name}_count{{{text}}} {seen}"]
    return "\n".join(line for name in sorted(lines) for line in lines[name]) + "\n"


def _text(labels: tuple[tuple[str, str], ...]) -> str:
    return ",".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in labels)
