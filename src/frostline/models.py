"""Pixels to scaling to backbone to head: one Keras model."""

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
    """A Keras model from uint8 `images` [N, H, W, 3] to float32 logits, its backbone, and the freeze group of each layer."""

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
    groups.update({x.name: "head" for x in model.layers if x.name not in groups and x.name not in ("images", "scaling")})
    return Network(model, body, groups, resolved)


def _with_our_batch_norm(inputs: Any, features: Any) -> Any:
    """The same features through BatchNormalization layers whose mode a freeze configuration can set."""
    import keras

    from frostline.layers import BatchNormalization

    body = keras.Model(inputs, features)
    if not any(type(layer) is keras.layers.BatchNormalization for layer in body.layers):
        return features

    def clone(layer):
        cls = BatchNormalization if type(layer) is keras.layers.BatchNormalization else type(layer)
        return cls.from_config(layer.get_config())

    copy = keras.models.clone_model(body, input_tensors=inputs, clone_function=clone)
    copy.set_weights(body.get_weights())
    return copy.output


def standard(network: Network) -> Any:
    """The same function, weights copied, made of Keras's own layers under float32: what is exported."""
    import keras

    from frostline import layers

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        def clone(layer):
            config = layers.standard(layer).get_config()
            return layers.STANDARD.get(type(layer), type(layer)).from_config({**config, "dtype": "float32"})

        inputs = keras.Input(network.model.input_shape[1:], dtype="uint8", name="images")
        copy = keras.models.clone_model(network.model, input_tensors=inputs, clone_function=clone)
    finally:
        keras.config.set_dtype_policy(policy.name)
    copy.set_weights(network.model.get_weights())
    return copy


def load_weights(network: Network, path: Path, *, head: bool, skip: set[str]) -> None:
    """Load a Keras weights file of the whole network when `head`, else of the backbone alone.

    Layers that `skip` names keep their own weights. Raises UserError when the file does not fit.
    """
    kept = {name: network.model.get_layer(name).get_weights() for name in skip}
    try:
        (network.model if head else network.backbone).load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path} does not hold the weights of this network: {reason}") from error
    for name, values in kept.items():
        network.model.get_layer(name).set_weights(values)


def reset_names(network: Network, rules: tuple[str, ...]) -> set[str]:
    """Names of the layers that keep their fresh initialisation; raises UserError for a rule without a match."""
    return freezing.resolve(rules, freezing.describe(network.model, network.groups)) if rules else set()
