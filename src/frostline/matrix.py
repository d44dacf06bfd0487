"""Which cells of artifact × runtime × scenario are to be measured, and which are already."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from frostline import machine, runtimes
from frostline.errors import UserError, lookup
from frostline.inference.rules import PROFILES
from frostline.runtimes import How

Row = dict[str, Any]
Cell = tuple[str, int]  # a scenario and a batch size
SCENARIOS = {"single_stream": (1,), "offline": (32, 256), "server": (1,)}  # and the batch sizes each is measured at
OF_A_STUDY = ("keras_predict", "tf_function", "saved_model", "onnxruntime")  # what `frostline run` measures
OF_A_QUICK_TRY = OF_A_STUDY[2:]  # with --limit: what is deployed


@dataclass(frozen=True)
class Asked:
    """What a person asks `frostline infer` for; empty means all that there is, `threads` 0 as many as cores.

    `brief` windows are fewer and shorter than those of the `quick` profile.
    """

    runtimes: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    profile: str = "quick"
    threads: int = 0
    latency_bound: float | None = None
    brief: bool = False

    def __post_init__(self) -> None:
        for name in self.runtimes:
            lookup(runtimes.RUNTIMES, name, "runtime")
        for name in self.scenarios:
            lookup(SCENARIOS, name, "scenario")
        lookup(PROFILES, self.profile, "profile")
        if self.threads > machine.cores():
            raise UserError(f"--threads {self.threads}: this machine has {machine.cores()} cores")


@dataclass(frozen=True)
class Way:
    """A runtime as it is to be run, and the cells that are measured on it."""

    runtime: str
    how: How
    profile: str
    cells: tuple[Cell, ...]
    reason: str | None
    latency_bound: float | None = None
    brief: bool = False

    @property
    def label(self) -> str:
        variant = f" {self.how.variant}" if self.how.variant != "float32" else ""
        payload = f" {self.how.payload}" if self.how.payload else ""
        return f"{self.runtime}{variant}{payload} on {self.how.device}"


def of_a_study(quick: bool) -> Asked:
    """What `frostline run` measures, of a quick try or of a study that trained in full."""
    return Asked(runtimes=OF_A_QUICK_TRY if quick else OF_A_STUDY, brief=quick)


def ways(asked: Asked) -> list[Way]:
    """Every runtime, device and variant that is asked for; with the reason where it cannot be measured here."""
    found = []
    for name in asked.runtimes or runtimes.RUNTIMES:
        runtime = runtimes.RUNTIMES[name]
        cells = tuple(_cells(asked, runtime))
        for device in runtime.devices if cells else ():
            missing = "no CUDA device" if device == "gpu" and not runtimes.cuda_devices() else None
            for variant, payload in itertools.product(runtime.variants[device], runtime.payloads):
                how = How(device, variant, asked.threads, payload)
                found.append(Way(name, how, asked.profile, cells, missing, asked.latency_bound, asked.brief))
    if not found:
        raise UserError("--scenario server is for a runtime that asks a server: tf_serving_grpc, tf_serving_rest")
    return found


def _cells(asked: Asked, runtime: runtimes.Runtime) -> Iterator[Cell]:
    """Scenarios and batch sizes: those that are asked for concern `offline` alone, the others send single images.

    `server` is for runtimes that ask a server; what is sent to one is kept small.
    """
    for scenario in asked.scenarios or SCENARIOS:
        if scenario == "server" and not runtime.scheme:
            continue
        sizes = SCENARIOS[scenario][:1] if runtime.scheme else SCENARIOS[scenario]
        for size in asked.batch_sizes if scenario == "offline" and asked.batch_sizes else sizes:
            yield scenario, size


def key(record: Row) -> tuple[Any, ...]:
    """What a measurement is of, without the model; a cell of two records with equal keys need not be measured twice."""
    names = ("runtime", "variant", "payload", "device", "threads", "scenario", "profile", "batch_size")
    return tuple(record.get(name) for name in names)


def missing(way: Way, manifest: Row, told: Sequence[Row]) -> list[Cell]:
    """The cells that no record of this training holds: the newest one decides, and so does a reason to skip."""
    training = (manifest["run"], manifest["run_time"])
    newest = {(key(r), r.get("host_copies")): r for r in told
              if r["kind"] == "infer" and (r["run"], r["run_time"]) == training}  # fmt: skip
    idle = ("skipped", way.reason or refused(way, manifest))
    again = {k for (k, _), r in newest.items() if not _stays(way, r, idle)}
    done = {k for k, _ in newest} - again
    threads = way.how.threads or machine.cores()
    stem = (way.runtime, way.how.variant, way.how.payload, way.how.device, threads)
    return [cell for cell in way.cells if (*stem, cell[0], way.profile, cell[1]) not in done]


def _stays(way: Way, record: Row, idle: tuple[str, str | None]) -> bool:
    """Whether a record need not be made again: one of a rate, where that kept to the bound that is asked for."""
    as_bound = record["scenario"] != "server" or record.get("latency_bound_asked_seconds") == way.latency_bound
    return (record["outcome"] == "ok" and as_bound) or (record["outcome"], record["reason"]) == idle


def tried(way: Way, manifest: Row) -> bool:
    """Whether the variant that a way runs was asked for when the model was published."""
    return way.how.variant == "float32" or way.how.variant in manifest.get("variants", {})


def refused(way: Way, manifest: Row) -> str | None:
    """Why a variant that was asked for is not there; None where it is."""
    about = manifest.get("variants", {}).get(way.how.variant, {"reason": None})
    return f"{way.how.variant} is not published: {about['reason']}" if about["reason"] else None


def groups(manifests: Iterable[Row]) -> list[list[Row]]:
    """Models by graph: one of each is timed, the others share its figures."""
    found: dict[str, list[Row]] = {}
    for manifest in manifests:
        found.setdefault(manifest["graph"], []).append(manifest)
    return list(found.values())
