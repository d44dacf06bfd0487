"""What a stage will cost with each engine, from a few measured steps, and so which engine `auto` takes."""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from frostline import augment, cached, freezing, frontier, prefix, training
from frostline.errors import UserError
from frostline.features import size
from frostline.models import Network
from frostline.studies import Stage

# Rough rates of reading features in random order from a disk and from memory, and of storing them and reading them
# back; only the last is near to what was measured (bench/NOTES.md).
DISK_BYTES_PER_SECOND, MEMORY_BYTES_PER_SECOND, STORE_BYTES_PER_SECOND = 200e6, 1.5e9, 250e6
FORWARD = 1 / 3  # of a training step: forward, and twice that backward


@dataclass(frozen=True)
class Room:
    """Bytes that features may take on the disk, and bytes of memory within which they are read at its speed.

    That is all that is free, whatever `--features-memory` says: the page cache holds a file as well (bench/NOTES.md).
    """

    disk_bytes: int
    memory_bytes: int


@dataclass(frozen=True)
class Cost:
    """The engine for a stage and why; predicted seconds with it and, where both were looked at, with the other.

    `pass_seconds` is the pass over all images, `features_bytes` what is stored of them; None for the plain engine.
    All seconds are None where nothing was timed.
    """

    engine: str
    reason: str
    seconds: float | None = None
    other_seconds: float | None = None
    step_seconds: float | None = None
    first_step_seconds: float | None = None
    pass_seconds: float | None = None
    features_bytes: int | None = None
    boundary: tuple[str, ...] = ()
    most_bytes: int | None = None


def stages(
    network: Network,
    stages: tuple[Stage, ...],
    images: Mapping[str, int],
    asked: str,
    *,
    xla: bool,
    room: Room,
    known: dict[tuple[str, ...], float] | None,
) -> list[Cost]:
    """The cost of each stage of a network for `images` in `train`, `validation` and `test`; changes its weights.

    `images["pass"]` are those that features are made of: all of them, also where a part is trained on.

    `known` keeps the time of each prefix in one precision; without it nothing is timed, and features are taken wherever
    a part is frozen and they have room. Raises UserError where the cached engine is asked for and
    its features have no room.
    """
    moved: set[str] = set()
    found = []
    end = images["train"] + images["validation"] + images.get("test", 0)
    for number, stage in enumerate(stages, 1):
        mask = freezing.apply(network.model, network.groups, stage)
        counted = {**images, "end": end if number == len(stages) else 0}
        found.append(_stage(network, stage, counted, asked, moved, xla, room, known))
        moved |= {*mask.trained, *freezing.moving(network.model)}
    return found


def _stage(
    network: Network,
    stage: Stage,
    images: Mapping[str, int],
    asked: str,
    moved: set[str],
    xla: bool,
    room: Room,
    known: dict[tuple[str, ...], float] | None,
) -> Cost:
    timed = known is not None
    if asked == "plain":
        return _plain(network, stage, images, xla, "asked for", timed)
    cut = frontier.split(network.model, mode=stage.frontier)
    if cut.prefix is None:
        return _plain(network, stage, images, xla, "nothing below the frontier", timed)
    if moved & set(cut.below):
        if stage.frontier != "exact":
            raise UserError(
                f'frontier = "{stage.frontier}" needs a frozen part that no earlier stage trains, and one trains '
                f'{", ".join(sorted(moved & set(cut.below)))}; give that stage frontier = "exact"'
            )
        return _plain(network, stage, images, xla, "an earlier stage trains below the frontier", timed)
    if told := prefix.uncheckable(network.model, cut.boundary):
        if asked == "cached" or stage.frontier != "exact":
            raise UserError(f"{told}; give --engine plain")
        return _plain(network, stage, images, xla, told, timed)
    total = _passed(images, stage)
    if cut.image_bytes * total > room.disk_bytes:
        told = f"its features take {size(cut.image_bytes * total)}, and there is room for {size(room.disk_bytes)}"
        if asked == "cached" or stage.frontier != "exact":
            raise UserError(
                f"{told}; type --engine plain, free some disk (frostline features clear), or point FROSTLINE_CACHE "
                "to a larger one"
            )
        cut = frontier.split(network.model, mode=stage.frontier, most_bytes=room.disk_bytes // total)
        if cut.prefix is None or prefix.uncheckable(network.model, cut.boundary):
            return _plain(network, stage, images, xla, told, timed)
        cost = _cached(network, cut, stage, images, xla, room, known)
        cost = dataclasses.replace(cost, most_bytes=room.disk_bytes // total, reason=f"cut lower: {told}")
    else:
        cost = _cached(network, cut, stage, images, xla, room, known)
    if asked == "cached" or stage.frontier != "exact":
        return dataclasses.replace(cost, reason="asked for")
    if cost.seconds is None or (cost.other_seconds is not None and cost.seconds <= cost.other_seconds):
        return cost
    reason = (
        "new views in every epoch leave little"
        if _streamed(stage)
        else "reading features would cost more than computing them"
    )
    plain = _plain(network, stage, images, xla, reason, timed)
    if plain.seconds is not None and plain.seconds <= cost.seconds:
        return dataclasses.replace(plain, other_seconds=cost.seconds)
    return dataclasses.replace(cost, other_seconds=plain.seconds)


def _plain(network: Network, stage: Stage, images: Mapping[str, int], xla: bool, reason: str, timed: bool) -> Cost:
    if not timed:
        return Cost("plain", reason)
    times = training.time_steps(network, stage, xla=xla)
    image = times.step_seconds / stage.batch_size
    seconds = times.first_step_seconds + image * (_trained(images, stage) + FORWARD * _answered(images, stage))
    return Cost("plain", reason, seconds, None, times.step_seconds, times.first_step_seconds)


def _cached(
    network: Network,
    cut: frontier.Cut,
    stage: Stage,
    images: Mapping[str, int],
    xla: bool,
    room: Room,
    known: dict[tuple[str, ...], float] | None,
) -> Cost:
    """The cost with features; the other is the least the plain engine could take: the same steps, prefix included."""
    trained, answered, stored = _trained(images, stage), _answered(images, stage), _passed(images, stage)
    if known is None:
        return Cost("cached", "not timed", features_bytes=cut.image_bytes * stored, boundary=cut.boundary)
    if cut.boundary not in known:
        known[cut.boundary] = prefix.seconds_per_image(cut, size=network.model.input_shape[1])
    pass_image = known[cut.boundary]
    training.compile_model(cut.suffix, stage, xla, network.head.label_smoothing)
    rows = _random_rows(cut, stage.batch_size, network.model.output_shape[-1])
    first, step = cached.time_steps(cut.suffix, rows, stage.batch_size, time.perf_counter)
    suffix = first + step / stage.batch_size * (trained + FORWARD * answered)
    again = trained if _streamed(stage) else 0
    fits = cut.image_bytes * stored <= room.memory_bytes
    rate = MEMORY_BYTES_PER_SECOND if fits else DISK_BYTES_PER_SECOND
    storing = cut.image_bytes * stored / STORE_BYTES_PER_SECOND
    reading = cut.image_bytes * (trained - again + answered) / rate
    showing = _view(stage, network, known) * (again or stored - images["pass"])
    return Cost(
        engine="cached",
        reason="cheaper",
        seconds=pass_image * (stored + again) + showing + storing + reading + suffix,
        other_seconds=pass_image * (trained + answered) + suffix,
        step_seconds=step,
        first_step_seconds=first,
        pass_seconds=pass_image * stored,
        features_bytes=cut.image_bytes * stored,
        boundary=cut.boundary,
    )


def shown(stages: tuple[Stage, ...], images: Mapping[str, int]) -> float:
    """Images that pass through a network while some stages train: forward and backward, or a share of that."""
    end = images["train"] + images["validation"] + images.get("test", 0)
    return sum(_trained(images, stage) + FORWARD * stage.epochs * images["validation"] for stage in stages) + (
        FORWARD * end
    )


def _trained(images: Mapping[str, int], stage: Stage) -> int:
    """Images that pass through training steps."""
    return stage.epochs * images["train"]


def _answered(images: Mapping[str, int], stage: Stage) -> int:
    """Images that the network is asked about: validation after each epoch, everything at the end of the run."""
    return stage.epochs * images["validation"] + images["end"]


def _streamed(stage: Stage) -> bool:
    """Whether training images are new in every epoch, so that their features are computed whenever they are shown."""
    return stage.augment is not None and not stage.augment_views


def _passed(images: Mapping[str, int], stage: Stage) -> int:
    """Images whose features are stored: all of them, and the fixed views of those that are trained on."""
    return images["pass"] + (stage.augment_views or 0) * images["train"]


def _view(stage: Stage, network: Network, known: dict[tuple[str, ...], float]) -> float:
    """Seconds that a view of an image takes; none where a stage shows the images themselves."""
    if stage.augment is None:
        return 0.0
    key = ("augment", repr(stage.augment))
    if key not in known:
        known[key] = augment.seconds_per_image(stage.augment, size=network.model.input_shape[1])
    return known[key]


def _random_rows(cut: frontier.Cut, count: int, units: int) -> cached.Rows:
    import tensorflow as tf

    rng = np.random.default_rng(0)
    features = tuple(
        rng.random((count, *shape), np.float32).astype(tf.as_dtype(dtype).as_numpy_dtype)
        for shape, dtype in zip(cut.feature_shapes, cut.feature_dtypes, strict=True)
    )
    return cached.Rows(features, rng.integers(0, max(2, units), count, dtype=np.int32))
