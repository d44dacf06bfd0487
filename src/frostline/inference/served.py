"""What a server that answers over the network tells of itself."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import dataclass

LATENCY = re.compile(r'^:tensorflow:serving:request_latency_(sum|count)\{[^}]*model_name="([^"]*)"[^}]*\} (\S+)$', re.M)
# Of TensorFlow Serving, which publishes its metrics only when it is told to.
MONITORING = 'prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }\n'
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Served:
    """A running server: which it is, where its REST API is, and its process where it is ours.

    `load_seconds` is what it took to start with the one model that is measured, None where it has several.
    """

    backend: str
    rest: str
    load_seconds: float | None
    pid: int | None = None


def request_seconds(rest: str, model: str) -> tuple[float, int] | None:
    """Seconds that the server has spent on requests for a model, and their number; None where it does not tell."""
    try:
        with DIRECT.open(f"{rest}/monitoring/prometheus/metrics", timeout=30) as answer:
            found = LATENCY.findall(answer.read().decode())
    except OSError:
        return None
    totals = {"sum": 0.0, "count": 0.0}
    for what, name, value in found:
        totals[what] += float(value) if name == model else 0.0
    return totals["sum"] / 1e6, int(totals["count"])
