"""Pixels to scaling to backbone to head: one Keras model."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline import backbones, freezing, heads
from frostline.errors import UserError
from frostline.studies import Backbone, Head

# Pixel scaling as (scale, offset) of a Rescaling layer. "none" is a layer too: a convolution refuses uint8.
SCALINGS = {"none": (1.0, 0.0), "unit": (1 / 255, 0.0), "symmetric": (1 / 127.5, -1.0)}


@dataclass(frozen=True)
class Network:
    """A Keras model from uint8 `images` [N, H, W, 3] to float32 logits, its backbone, and each layer's freeze group."""

    model: Any
    backbone: Any
    groups: dict[str, str]
    head: Head


def build(backbone: Backbone, head: Head | str | None, scaling: str, size: int, classes: int) -> Network:
    """The network for images of `size` pixels, with freshly initialised weights; raises UserError for unknown names."""
    import keras

    entry = backbones.get(backbone.name)
    resolved = heads.resolve(head, entry.head)
    scale, offset = SCALINGS[entry.scaling if scaling == "backbone" else scaling]
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    scaled = keras.layers.Rescaling(scale, offset, name="scaling")(images)
    try:
        features = _with_our_batch_norm(scaled, entry.build(scaled))
    except ValueError as error:
        raise UserError(f"{backbone.name} does not work on {size}×{size} images: {error}") from error
    body = keras.Model(images, features)
    names = {layer.name for layer in body.layers}
    model = keras.Model(images, heads.build(features, resolved, classes, names), name="frostline")
    inner = [layer for layer in body.layers if layer.name not in ("images", "scaling")]
    groups = backbones.groups(backbone.name, inner)
    groups.update({layer.name: "head" for layer in model.layers if layer.name not in names})
    return Network(model, body, groups, resolved)


def _with_our_batch_norm(inputs: Any, features: Any) -> Any:
    """The same features through BatchNormalization layers whose mode a freeze configuration can set."""
    import keras

    from frostline.layers import BatchNormalization

    body = keras.Model(inputs, features)
    if not any(type(layer) is keras.layers.BatchNormalization for layer in body.layers):
        return features
    return _copy(body, inputs, {keras.layers.BatchNormalization: BatchNormalization}).output


def standard(model: Any, dtype: str = "float32") -> Any:
    """The same function, weights copied, made of Keras's own layers in one float type: what is exported."""
    import keras

    from frostline.layers import STANDARD

    inputs = keras.Input(model.input_shape[1:], dtype="uint8", name="images")
    return _copy(model, inputs, STANDARD, dtype=dtype)


def _copy(model: Any, inputs: Any, classes: dict[Any, Any], **changes: Any) -> Any:
    """A model of the same layers and weights on other inputs, some classes exchanged, some settings changed."""
    import keras

    def clone(layer: Any) -> Any:
        return classes.get(type(layer), type(layer)).from_config({**layer.get_config(), **changes})

    copy = keras.models.clone_model(model, input_tensors=inputs, clone_function=clone)
    copy.set_weights(model.get_weights())
    for layer in copy.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # set_weights leaves its constants as they were
    return copy


def load_weights(network: Network, path: Path, *, head: bool, skip: set[str]) -> None:
    """Load a Keras weights file of the whole network when `head`, else of the backbone alone.

    Layers that `skip` names keep their own weights. Raises UserError when the file does not fit.
    """
    kept = {name: network.model.get_layer(name).get_weights() for name in skip}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Keras only warns of some layers that it leaves as they were
            (network.model if head else network.backbone).load_weights(path)
    except (ValueError, OSError, KeyError, UserWarning) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path} does not hold the weights of this network: {reason}") from error
    for name, values in kept.items():
        network.model.get_layer(name).set_weights(values)


def reset_names(network: Network, rules: tuple[str, ...]) -> set[str]:
    """Names of the layers that keep their fresh initialisation; raises UserError for a rule without a match."""
    return freezing.resolve(rules, freezing.describe(network.model, network.groups)) if rules else set()
