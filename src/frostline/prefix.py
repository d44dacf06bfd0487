"""The pass: what the frozen part of a network says about the images of a data set, computed once into files."""

import contextlib
import functools
import hashlib
import itertools
import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frostline import device, features, graphs, im2col, machine, models
from frostline.errors import UserError
from frostline.frontier import Cut
from frostline.models import Network

SAMPLE = 32
TIMED_SECONDS = 0.25
TRY_IM2COL_SECONDS = 10.0  # of a pass by TensorFlow as it is; tracing another program takes a second or two
TRY_FLOAT32_SECONDS = 60.0  # of the same in mixed precision; a second network is built and traced, and mostly slower
TRY_ONNX_SECONDS = 120.0  # of the pass by then; the conversion takes a part of it: bench/NOTES.md
TOLERANCE = {"float32": 1e-4, "mixed_bfloat16": 2e-2, "mixed_float16": 2e-2}
AGREES = 2 / 3  # of the tolerance; other images were up to 1.35 times as far off as the sample: bench/NOTES.md
FLOAT32 = "TensorFlow float32"
Call = Callable[[Any], list[Any]]
Write = Callable[[str, tuple[np.ndarray, ...]], None]
Report = Callable[[int, int], None]
Images = Any  # uint8 [N, H, W, 3]: an array, or views (`augment.Shown`) that are made as they are asked for


# The last program of `_whole`, for the pass and the runs that ask for it again with the same weights below.
_kept: dict[tuple[Any, ...], Call] = {}


@dataclass(frozen=True)
class Program:
    """A way to compute a model's outputs from images, and how records call it."""

    name: str
    model: Any
    call: Call


class FeaturesDiffer(Exception):
    """Features are not what the whole network computes."""


@dataclass(frozen=True)
class Need:
    """A frontier whose features are needed: the network it was found in, and the key they are kept under.

    `layers` are checksums of the layers below by name; two frontiers that agree on theirs share a pass.
    """

    network: Network
    cut: Cut
    key: str
    layers: dict[str, str]


@dataclass(frozen=True)
class Sample:
    """Images on which the programs of a pass are tried, and the frontier that they are for."""

    highest: Need
    images: np.ndarray

    @functools.cached_property
    def right(self) -> list[np.ndarray]:
        """The features by the whole network."""
        return _call(_whole(self.highest), self.images)

    def agrees(self, program: Program) -> bool:
        """Whether features are well within the tolerance of the run's precision: each run proves it on others."""
        found = _call(program.call, self.images)[: len(self.highest.cut.boundary)]
        return _largest_difference(found, self.right) <= AGREES * TOLERANCE[_precision(self.highest.network)]


def need(network: Network, cut: Cut, data: Mapping[str, Any]) -> Need:
    """The features that a cut of a network calls for on the images that `data` identifies."""
    assert cut.prefix is not None
    layers = {layer.name: digest(layer) for layer in cut.prefix.layers}
    versions = {name: machine.versions()[name] for name in ("tensorflow", "keras")}
    graph = graphs.without(cut.prefix.get_config(), "trainable")
    parts = {"layers": layers, "graph": graph, "boundary": cut.boundary, "data": data}
    program = {"precision": _precision(network), "xla": _compiled(), "mode": cut.mode, "device": device.kind()}
    return Need(network, cut, features.key({**parts, **program, **versions}), layers)


def compute(
    needs: Iterable[Need],
    splits: Mapping[str, Images],
    *,
    about: Mapping[str, Any],
    limit_bytes: int | None = None,
    report: Report = lambda done, total: None,
    waiting: Callable[[], None] = lambda: None,
) -> set[str]:
    """Make the features that are not there yet of uint8 images [N, H, W, 3]; returns the keys computed now.

    Frontiers below others are computed in one pass with them. `report` is told images done and all images; `waiting` is
    called before another process that makes the same is waited for. Raises UserError when the disk has no room.
    """
    computed: set[str] = set()
    missing = {n.key: n for n in needs if features.touched(n.key) is None}
    found = _nested(sorted(missing.values(), key=lambda n: -len(n.layers)))
    for together in found:

        def run(writers: Mapping[str, Write], together: list[Need] = together) -> dict[str, Any]:
            told: dict[str, Any] = {}
            for part in _nested([n for n in together if n.key in writers]):  # the highest may not be among them
                told |= _run(part, splits, writers, report)
            computed.update(writers)
            return told

        ordered = sorted(together, key=lambda n: n.key)
        _write_all(ordered, {}, run, splits, about, limit_bytes, waiting)
    return computed


def forward(need: Need, images: np.ndarray, total: int) -> tuple[str, Callable[[Images], tuple[np.ndarray, ...]]]:
    """A program for `total` images like these, whose features are not kept, and its name; chosen as that of a pass."""
    program = _chosen(need, need.cut.prefix, images, total)

    def run(images: Images) -> tuple[np.ndarray, ...]:
        answers = _batches(program.call, images, need.cut.feature_dtypes)
        return tuple(np.concatenate(parts) for parts in zip(*answers, strict=True))

    return program.name, run


def verify(need: Need, images: np.ndarray, rows: tuple[np.ndarray, ...]) -> float:
    """Largest difference between features and those the whole network computes in float32 TensorFlow for the same
    images, relative to the largest of them; raises FeaturesDiffer above the tolerance of the network's precision."""
    return compare(need.network, need.cut.boundary, rows, _call(_whole(need), images))


def compare(
    network: Network, boundary: Sequence[str], rows: Sequence[np.ndarray], right: Sequence[np.ndarray]
) -> float:
    """Largest difference between what is kept of some layers and what is right; raises FeaturesDiffer as `verify`."""
    worst = _largest_difference(rows, right)
    tolerance = TOLERANCE[_precision(network)]
    if not worst <= tolerance:
        raise FeaturesDiffer(
            f"features at {', '.join(boundary)} differ by {worst:.2g} of the largest from what is computed anew, "
            f"more than {tolerance:g}"
        )
    return worst


def seconds_per_image(cut: Cut, *, size: int) -> float:
    """Seconds the prefix takes for one of many random images of `size` pixels, tracing and compiling left out."""
    return forward_seconds(cut.prefix, images_per_call(size))


def forward_seconds(model: Any, count: int) -> float:
    """Seconds a model takes for one of `count` random images in a call in inference mode, tracing left out."""
    images = np.random.default_rng(0).integers(0, 256, (count, *model.input_shape[1:]), dtype=np.uint8)
    return _seconds(_program(model, _compiled()), images) / count


def _seconds(program: Call, images: np.ndarray) -> float:
    """Seconds of one call, the first left out."""
    _call(program, images)
    taken: list[float] = []
    while len(taken) < 3 and sum(taken) < TIMED_SECONDS:
        before = time.perf_counter()
        _call(program, images)
        taken.append(time.perf_counter() - before)
    return statistics.median(taken)


def images_per_call(size: int) -> int:
    """How many images of `size` pixels the pass gives to the program at once: bench/NOTES.md."""
    return min(128, max(16, 2**18 // size**2))


# -- identity ------------------------------------------------------------------------------------------


def digest(layer: Any) -> str:
    """SHA-256 of a layer's class, configuration and weights, whether it trains aside."""
    what = [type(layer).__name__, graphs.without(layer.get_config(), "trainable")]
    found = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode())
    for weight in layer.weights:
        found.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return found.hexdigest()


def _precision(network: Network) -> str:
    return network.model.get_layer("scaling").dtype_policy.name


# -- the pass ------------------------------------------------------------------------------------------


def _nested(needs: Sequence[Need]) -> list[list[Need]]:
    """Frontiers, highest first, by those that lie in one of them and are computed with it."""
    groups: list[list[Need]] = []
    for n in needs:
        home = next((g for g in groups if n.layers.items() <= g[0].layers.items() and _found(g[0], n)), None)
        if home:
            home.append(n)
        else:
            groups.append([n])
    return groups


def layout(cut: Cut, splits: Mapping[str, Images]) -> features.Layout:
    """What an entry holds of the features of some images."""
    return features.Layout({name: len(x) for name, x in splits.items()}, cut.feature_shapes, cut.feature_dtypes)


def _found(outer: Need, inner: Need) -> list[Any]:
    """The tensors of a lower frontier in the prefix of a higher one; none where one is not to be told by its name."""
    tensors = _tensors(outer.cut.prefix)
    found = [tensors[name] for name in inner.cut.boundary if name in tensors]
    return found if len(found) == len(inner.cut.boundary) else []


def _write_all(
    needs: list[Need],
    writers: dict[str, Write],
    run: Callable[[Mapping[str, Write]], dict[str, Any]],
    splits: Mapping[str, Images],
    about: Mapping[str, Any],
    limit_bytes: int | None,
    waiting: Callable[[], None],
) -> dict[str, Any]:
    """Open an entry for each need, in the order of their keys, which every process keeps, and run the pass into all.

    Returns what the pass tells of each key. An entry that another process finished meanwhile is left out.
    """
    if not needs:
        return run(writers) if writers else {}
    first, rest = needs[0], needs[1:]
    told: dict[str, Any] = {}

    def fill(write: Write) -> dict[str, Any]:
        told.update(_write_all(rest, {**writers, first.key: write}, run, splits, about, limit_bytes, waiting))
        return told[first.key]

    cut = first.cut
    what = {**about, "boundary": list(cut.boundary), "mode": cut.mode, "precision": _precision(first.network)}
    if not features.compute(first.key, layout(cut, splits), what, fill, limit_bytes=limit_bytes, waiting=waiting):
        told.update(_write_all(rest, writers, run, splits, about, limit_bytes, waiting))
    return told


def _run(
    needs: list[Need], splits: Mapping[str, Images], writers: Mapping[str, Write], report: Report
) -> dict[str, Any]:
    """One pass over all images into the writers; what it tells of each key are the program and the seconds.

    A frontier below another is given the share of the pass that its own prefix would take.
    """
    import keras

    before = time.perf_counter()
    highest = needs[0].cut.prefix
    assert highest is not None
    outputs = [*highest.outputs, *(tensor for n in needs[1:] for tensor in _found(needs[0], n))]
    total, done = sum(len(images) for images in splits.values()), 0
    program = _chosen(needs[0], keras.Model(highest.inputs, outputs), splits["train"], total)
    dtypes = [dtype for n in needs for dtype in n.cut.feature_dtypes]
    for split, images in splits.items():
        for rows in _batches(program.call, images, dtypes):
            start = 0
            for n in needs:
                taken = len(n.cut.boundary)
                writers[n.key](split, rows[start : start + taken])
                start += taken
            done += len(rows[0])
            report(done, total)
    seconds = time.perf_counter() - before
    return {
        n.key: {"program": program.name, "seconds": seconds * share, "pass": needs[0].key}
        for n, share in zip(needs, _shares(needs), strict=True)
    }


def _shares(needs: list[Need]) -> list[float]:
    """Time of each prefix alone, as a part of that of the highest."""
    if len(needs) == 1:
        return [1.0]
    size = needs[0].network.model.input_shape[1]
    times = [seconds_per_image(n.cut, size=size) for n in needs]
    return [min(1.0, x / times[0]) for x in times]


def _calls_at_once() -> int:
    """One call a core where a call keeps to one core, as in a process of its own."""
    import tensorflow as tf

    return machine.cores() if tf.config.threading.get_intra_op_parallelism_threads() == 1 else 1


def _batches(call: Call, images: Images, dtypes: Sequence[str]) -> Iterator[tuple[np.ndarray, ...]]:
    """The program's answers for all images in order."""
    import tensorflow as tf

    def answer(start: int) -> tuple[np.ndarray, ...]:
        return tuple(
            tf.cast(x, dtype).numpy()
            for x, dtype in zip(call(tf.constant(images[start : start + count])), dtypes, strict=True)
        )

    count = images_per_call(images.shape[1])
    streams = _calls_at_once()
    with ThreadPoolExecutor(streams) as pool:
        waiting: deque[Any] = deque()
        for start in range(0, len(images), count):
            waiting.append(pool.submit(answer, start))
            if len(waiting) > 2 * streams:  # the writer is never far behind, so memory does not grow
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


# -- programs ------------------------------------------------------------------------------------------


def _compiled() -> bool:
    """Whether the pass is compiled with XLA: on a GPU, as all is there; on CPUs it never was faster: bench/NOTES.md."""
    return device.kind() == "gpu"


def _program(model: Any, xla: bool, *, products: bool = False) -> Call:
    """A Keras model as a TensorFlow function in inference mode, which returns a list.

    `products`: convolutions on small maps by im2col.
    """
    import tensorflow as tf

    @tf.function(
        input_signature=[tf.TensorSpec(model.inputs[0].shape, model.inputs[0].dtype)], autograph=False, jit_compile=xla
    )
    def run(images: Any) -> list[Any]:
        with im2col.traced(model) if products else contextlib.nullcontext():
            outputs = model(images, training=False)
        return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]

    return run


def _chosen(highest: Need, model: Any, images: Images, total: int) -> Program:
    """The program for `total` images like these: accurate, and on a CPU the fastest known."""
    sample = Sample(highest, images[:SAMPLE])
    program = _accurate(sample, model)
    return program if device.kind() == "gpu" else _fastest(sample, program, images, total)


def _accurate(sample: Sample, model: Any) -> Program:
    """The program in the run's precision if its features are well within the tolerance, else the one in float32."""
    precision = _precision(sample.highest.network)
    name = f"TensorFlow {precision}{' XLA' if _compiled() else ''}"
    program = Program(name, model, _program(model, _compiled()))
    if precision == "float32" or sample.agrees(program):
        return program
    return _in_float32(sample.highest, model)


def _in_float32(highest: Need, model: Any) -> Program:
    exact = _exact(highest, model)
    return Program(FLOAT32, exact, _program(exact, False))


def _exact(highest: Need, model: Any) -> Any:
    """A model of the network's inner tensors in float32, made of Keras's own layers."""
    return part(models.standard(highest.network.model), [x._keras_history.operation.name for x in model.outputs])


def _fastest(sample: Sample, known: Program, images: Images, total: int) -> Program:
    """Another program in place of TensorFlow's for a long pass, if it is faster and its features agree.

    A program that cannot be made is left out.
    """
    calls = images[: images_per_call(images.shape[1])]
    best, seconds = known, _seconds(known.call, calls)

    def pass_seconds() -> float:
        return seconds / len(calls) * total / _calls_at_once()

    def float32() -> Program:
        return _in_float32(sample.highest, known.model)

    def products() -> Program:
        return Program(f"{best.name}, im2col", best.model, _program(best.model, False, products=True))

    def onnx() -> Program:
        exact = _exact(sample.highest, known.model)
        return Program("ONNX Runtime float32", exact, _onnx(exact, threads=1 if _calls_at_once() > 1 else 0))

    tries = [(TRY_FLOAT32_SECONDS, float32)] if known.name != FLOAT32 else []
    tries += [(TRY_IM2COL_SECONDS, products)] if im2col.concerns(known.model) else []
    for least, make in [*tries, (TRY_ONNX_SECONDS, onnx)]:
        if pass_seconds() < least:
            continue
        try:
            other = make()
            if sample.agrees(other) and (taken := _seconds(other.call, calls)) < seconds:
                best, seconds = other, taken
        except Exception as error:  # whatever the converter or the session refuses
            print(f"{make.__name__} cannot run this pass: {error}", flush=True)
    return best


def _onnx(model: Any, threads: int) -> Call:
    """A Keras model as a session of ONNX Runtime on the CPU."""
    from frostline.exporting import onnx, saved_model
    from frostline.runtimes import onnxruntime

    with tempfile.TemporaryDirectory() as place:
        saved_model.write_features(model, Path(place) / "saved_model")
        onnx.write(Path(place) / "saved_model", Path(place) / "model.onnx")
        answer = onnxruntime.outputs(Path(place), "cpu", threads)
    names = [f"features_{i}" for i in range(len(model.outputs))]

    def run(images: Any) -> list[Any]:
        found = answer(np.asarray(images))
        return [found[name] for name in names]

    return run


def _whole(need: Need) -> Call:
    """The features by the whole network in float32 TensorFlow, found by the names of its layers and not by the cut."""
    network, precision = need.network, _precision(need.network)
    key = (precision, need.cut.boundary, *need.layers.values())
    if key not in _kept:
        exact = models.standard(network.model)  # a copy: a later stage may train what lies below
        _kept.clear()
        _kept[key] = _program(part(exact, need.cut.boundary), False)
    return _kept[key]


def part(model: Any, names: Sequence[str]) -> Any:
    """The model up to the outputs of the operations called so; what is none of them is its input."""
    import keras

    flat = graphs.flatten(model)
    tensors = _tensors(flat)
    if told := _unnamed(flat, names):
        raise UserError(f"{told}; give --engine plain")
    return keras.Model(flat.inputs, [tensors.get(name, flat.inputs[0]) for name in names])


def uncheckable(model: Any, names: Sequence[str]) -> str:
    """Why features at some layers of a model cannot be checked; empty where they can."""
    return _unnamed(graphs.flatten(model), names)


def _unnamed(flat: Any, names: Sequence[str]) -> str:
    unknown = sorted({*names} - _tensors(flat).keys() - {flat.inputs[0].name})
    return f"features at {unknown[0]}, which is called more than once, cannot be checked" if unknown else ""


def _tensors(model: Any) -> dict[str, Any]:
    """What each operation gives in the graph of a functional model, by name; `layer.output` is that of another graph.

    Operations that are called twice or give several tensors are left out.
    """
    found: dict[str, list[Any]] = {}
    for node in itertools.chain.from_iterable(model._nodes_by_depth.values()):
        found.setdefault(node.operation.name, []).extend(node.outputs)
    return {name: outputs[0] for name, outputs in found.items() if len(outputs) == 1}


def _call(program: Call, images: np.ndarray) -> list[np.ndarray]:
    import tensorflow as tf

    return [np.asarray(x) for x in program(tf.constant(images))]


def _largest_difference(found: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> float:
    """NaN where one of them is, which Python's `max` would pass over."""
    return float(np.max([_difference(a, b) for a, b in zip(found, right, strict=True)]))


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    largest = float(np.abs(b.astype(np.float32)).max())
    return float(np.abs(a.astype(np.float32) - b.astype(np.float32)).max()) / (largest or 1.0)
