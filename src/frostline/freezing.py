"""Which layers train: rules in, a mask out, and the proof that what was frozen did not move."""

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frostline.errors import UserError
from frostline.studies import Stage

NUMBERED = {"last": lambda names, n: names[-n:], "first": lambda names, n: names[:n]}


@dataclass(frozen=True)
class Mask:
    """What one stage trains: layer names with weights, and counts of parameters and of weight tensors.

    `tensors` are those that train where nothing is frozen, `trainable_tensors` those that do.
    """

    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    trainable_params: int
    total_params: int
    trainable_tensors: int
    tensors: int
    batch_norm: str


@dataclass(frozen=True)
class Layer:
    """One layer of a masked network; `number` counts from 1 in Keras's order.

    `group` is None before the backbone, `trains` where there are no weights, `batch_norm` (`inference` or `training`)
    for all but BatchNormalization.
    """

    number: int
    group: str | None
    name: str
    kind: str
    params: int
    trainable_tensors: int
    trains: bool | None
    batch_norm: str | None


class FrozenMoved(Exception):
    """A weight that was called frozen changed while training."""


def resolve(rules: Sequence[str], layers: Sequence[tuple[str, str, str]]) -> set[str]:
    """Names of the layers that train.

    `layers` are (group, name, class name) in the network's order. A layer trains if a rule matches it and no rule
    with a leading `!` does. Raises UserError for a rule that matches nothing.
    """
    yes: set[str] = set()
    no: set[str] = set()
    check_form(rules)
    for rule in rules:
        (no if rule.startswith("!") else yes).update(_match(rule.removeprefix("!"), rule, layers))
    return yes - no


def check_form(rules: Sequence[str]) -> None:
    """Refuse rules that fit no network at all; raises UserError."""
    for written in rules:
        rule = written.removeprefix("!")
        kind, _, value = rule.partition(":")
        if kind in NUMBERED and value and not (value.isdecimal() and int(value)):
            raise UserError(f"rule {written!r}: give a number of layers of the backbone, from 1 on")
        try:
            re.compile(rule)
        except re.error as error:
            raise UserError(f"rule {written!r} is not a regular expression: {error}") from error


def _match(rule: str, written: str, layers: Sequence[tuple[str, str, str]]) -> set[str]:
    everything = [name for _, name, _ in layers]
    backbone = [name for group, name, _ in layers if group != "head"]
    kind, _, value = rule.partition(":")
    if rule in ("all", "none"):
        return set(everything) if rule == "all" else set()
    if kind in NUMBERED and value:
        if not value.isdigit() or not 0 < int(value) <= len(backbone):
            raise UserError(f"rule {written!r}: give a number from 1 to {len(backbone)}, the layers of the backbone")
        return set(NUMBERED[kind](backbone, int(value)))
    if kind in ("from", "only") and value:
        if value not in everything:
            raise UserError(
                f"rule {written!r} matches nothing: there is no layer {value!r}; {_near(value, everything)}"
            )
        start = everything.index(value)
        return set(everything[start:] if kind == "from" else [value])
    if kind == "type" and value:
        found = {name for _, name, cls in layers if value == cls}
        known = list(dict.fromkeys(cls for _, _, cls in layers))
    else:
        found = {name for group, name, _ in layers if re.fullmatch(rule, f"{group}/{name}")}
        known = [f"{group}/{name}" for group, name, _ in layers]
        known += [f"{group}/.*" for group in dict.fromkeys(group for group, _, _ in layers)]
    if not found:
        raise UserError(f"rule {written!r} matches nothing; {_near(value if kind == 'type' else rule, known)}")
    return found


def _near(asked: str, known: list[str]) -> str:
    """A clause with the known words that come nearest, the best first."""
    close = difflib.get_close_matches(asked, known, n=3, cutoff=0.0)
    return f"nearest: {', '.join(close)}"


def describe(model: Any, groups: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(group, name, class name) of every layer that belongs to a group, in the network's order."""
    return [(groups[x.name], x.name, type(x).__name__) for x in model.layers if x.name in groups]


def apply(model: Any, groups: Mapping[str, str], stage: Stage) -> Mask:
    """Set `trainable` and the BatchNorm mode of every layer as the stage says, before `compile`; nothing else does.

    Raises UserError when a rule matches nothing or nothing would train.
    """
    trained = resolve(stage.train, describe(model, groups))
    model.trainable = True
    tensors = 0
    for layer in model.layers:
        layer.trainable = True
        tensors += len(layer.trainable_weights)
        layer.trainable = layer.name in trained
        if hasattr(layer, "inference_only"):
            layer.inference_only = stage.batch_norm == "inference"
    if not model.trainable_weights:
        raise UserError(f"train = {list(stage.train)} leaves no weight to train; name a layer that has weights")
    weighted = [layer.name for layer in model.layers if layer.weights]
    return Mask(
        trained=tuple(name for name in weighted if name in trained),
        frozen=tuple(name for name in weighted if name not in trained),
        trainable_params=count(model.trainable_weights),
        total_params=count(model.weights),
        trainable_tensors=len(model.trainable_weights),
        tensors=tensors,
        batch_norm=_batch_norm_mode(model, stage),
    )


def layers(model: Any, groups: Mapping[str, str]) -> list[Layer]:
    """Every layer of a network in its order, as `apply` has left it."""
    moves = {x.name: "inference" if runs_in_inference_mode(x) else "training" for x in _batch_norms(model)}
    return [
        Layer(
            number=number,
            group=groups.get(layer.name),
            name=layer.name,
            kind=type(layer).__name__,
            params=count(layer.weights),
            trainable_tensors=len(layer.trainable_weights),
            trains=layer.trainable if layer.weights else None,
            batch_norm=moves.get(layer.name),
        )
        for number, layer in enumerate(model.layers, 1)
    ]


def count(weights: Sequence[Any]) -> int:
    """Number of scalars in some weights."""
    import math

    return sum(math.prod(w.shape) for w in weights)


def _batch_norms(model: Any) -> list[Any]:
    import keras

    return [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]


def runs_in_inference_mode(layer: Any) -> bool:
    """Whether a BatchNormalization uses its moving statistics while training: it is frozen, or told to."""
    return getattr(layer, "inference_only", False) or not layer.trainable


def moving(model: Any) -> set[str]:
    """Names of the BatchNormalization layers whose statistics move while training."""
    return {x.name for x in _batch_norms(model) if not runs_in_inference_mode(x)}


def _batch_norm_mode(model: Any, stage: Stage) -> str:
    """`none`, `inference`, `training`, or `mixed` over the BatchNormalization layers of the model."""
    modes = {"inference" if runs_in_inference_mode(x) else "training" for x in _batch_norms(model)}
    return "none" if not modes else modes.pop() if len(modes) == 1 else "mixed"


def frozen_digests(model: Any, mask: Mask) -> dict[str, str]:
    """SHA-256 of every frozen weight and of every BatchNorm statistic that must not move, by layer.

    Taken from the mask, not from `layer.trainable`, so that a layer thawed behind our back is found.
    """
    import numpy as np

    frozen = set(mask.frozen)
    still = {x.name for x in _batch_norms(model) if x.name in frozen or runs_in_inference_mode(x)}
    digests = {}
    for layer in model.layers:
        weights = layer.weights if layer.name in frozen else []
        if layer.name in still - frozen:
            weights = layer.non_trainable_weights
        if weights:
            digest = hashlib.sha256()
            for weight in weights:
                digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
            digests[layer.name] = digest.hexdigest()
    return digests


def prove(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, Any]:
    """The proof for a record: one checksum over all frozen layers before and after; raises FrozenMoved."""
    moved = [name for name in before if before[name] != after.get(name)]
    if moved:
        raise FrozenMoved(f"frozen weights moved while training: {', '.join(moved)}")
    return {"frozen_layers": len(before), "before": _digest(before), "after": _digest(after)}


def _digest(digests: Mapping[str, str]) -> str:
    text = "".join(f"{name}={value};" for name, value in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()
