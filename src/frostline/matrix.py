"""Which cells of artifact × runtime × scenario are to be measured, and which are already."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from frostline import machine, runtimes, serving
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
    """A runtime as it is to be run, and the cells that are measured on it.

    `server` is the backend that would answer, None where nothing is sent; `facts` are those of this machine. Records
    that were made with another server or on another machine are made again.
    """

    runtime: str
    how: How
    profile: str
    cells: tuple[Cell, ...]
    reason: str | None
    latency_bound: float | None = None
    brief: bool = False
    server: str | None = None
    facts: Row = field(default_factory=dict)

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
    facts = machine.facts()
    names = asked.runtimes or tuple(runtimes.RUNTIMES)
    backend = serving.choose("auto") if any(runtimes.RUNTIMES[name].scheme for name in names) else None
    for name in names:
        runtime = runtimes.RUNTIMES[name]
        cells = tuple(_cells(asked, runtime))
        server = backend if runtime.scheme else None
        for device in runtime.devices if cells else ():
            reason = _unmeasurable(asked, name, device)
            for variant, payload in itertools.product(runtime.variants[device], runtime.payloads):
                how = How(device, variant, asked.threads, payload)
                way = Way(name, how, asked.profile, cells, reason, asked.latency_bound, asked.brief, server, facts)
                found.append(way)
    if not found:
        raise UserError("--scenario server is for a runtime that asks a server: tf_serving_grpc, tf_serving_rest")
    return found


def _unmeasurable(asked: Asked, runtime: str, device: str) -> str | None:
    if device == "gpu":  # whether a library sees it, the child finds out: here none is imported
        return None if runtimes.cuda_devices() else "no CUDA device"
    if not runtimes.RUNTIMES[runtime].answers and asked.profile == "valid":  # 100 GB of LoadGen's memory
        return "measured in quick alone: ten minutes of it are hundreds of millions of queries"
    return runtimes.unavailable(runtime, device)


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
    """What a measurement is of, without the model and the machine."""
    names = ("runtime", "variant", "payload", "device", "threads", "scenario", "profile", "batch_size")
    return tuple(record.get(name) for name in names)


def missing(way: Way, manifest: Row, told: Sequence[Row]) -> list[Cell]:
    """The cells that no record of this training holds: the newest one decides, and so does a reason to skip."""
    return [cell for cell in way.cells if not _kept(way, manifest, cell, told)]


def figures(way: Way, manifest: Row, told: Sequence[Row]) -> list[Row]:
    """The records of the cells that are not missing, which models with an equal graph share; no shared ones."""
    kept = [_kept(way, manifest, cell, told) for cell in way.cells]
    return [record for of_cell in kept for record in of_cell if not record.get("figures_of")]


def _kept(way: Way, manifest: Row, cell: Cell, told: Sequence[Row]) -> list[Row]:
    """The newest records of a cell, with host copies and without; empty where one of them has to be made again."""
    how, threads = way.how, way.how.threads or machine.cores()
    own = (way.runtime, how.variant, how.payload, how.device, threads, cell[0], way.profile, cell[1])
    training = (manifest["run"], manifest["run_time"])
    newest = {r.get("host_copies"): r for r in told
              if r["kind"] == "infer" and (r["run"], r["run_time"]) == training and key(r) == own}  # fmt: skip
    idle = ("skipped", way.reason or refused(way, manifest))
    if any((r["outcome"], r["reason"]) == idle for r in newest.values()):
        return list(newest.values())
    whole = set(runtimes.copies(way.runtime, how.device)) <= newest.keys()
    return list(newest.values()) if whole and all(_stays(way, r) for r in newest.values()) else []


def _stays(way: Way, record: Row) -> bool:
    """Whether a record need not be made again: it was made as it would be now, of a rate with the bound asked for.

    Where nothing can be measured now, one of another machine is better than none.
    """
    as_bound = record["scenario"] != "server" or record.get("latency_bound_asked_seconds") == way.latency_bound
    same = _setting(way, record.get("machine") or {}, record.get("server")) == _setting(way, way.facts, way.server)
    return record["outcome"] == "ok" and as_bound and (same or way.reason is not None)


def _setting(way: Way, facts: Row, server: str | None) -> tuple[Any, ...]:
    """What of a machine and a server figures depend on: the CPU, the GPUs, versions of what the runtime is made of."""
    gpus = [gpu["name"] for gpu in facts.get("gpus", ())] if way.how.device == "gpu" else []
    versions = [facts.get("versions", {}).get(name) for name in runtimes.RUNTIMES[way.runtime].packages]
    return facts.get("cpu"), gpus, versions, server


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
