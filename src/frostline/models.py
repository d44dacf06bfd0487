"""Pixels to scaling to backbone to head: one Keras model."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline import backbones, freezing, heads, own
from frostline.errors import UserError, lookup
from frostline.studies import FILE, Backbone, Head

LayerWeights = Mapping[str, list[Any]]  # by the names of layers, as Keras orders them
# Pixel scaling as (factor, offset) of a Rescaling layer. "none" is a layer too: a convolution refuses uint8.
SCALINGS: dict[str, tuple[Any, Any]] = {
    "none": (1.0, 0.0),
    "unit": (1 / 255, 0.0),
    "symmetric": (1 / 127.5, -1.0),
    "caffe": (1.0, [-103.939, -116.779, -123.68]),  # of blue, green, red: ImageNet's means
    "lite": (1 / 128, -127 / 128),
    "torch": ([1 / 58.395, 1 / 57.12, 1 / 57.375], [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]),
}
BLUE_FIRST = {"caffe"}


@dataclass(frozen=True)
class Network:
    """A Keras model from uint8 `images` [N, H, W, 3] to float32 logits, its backbone, and each layer's freeze group.

    The backbone is whole, as its weights are, also where the model has only the part of it below a cut.
    """

    model: Any
    backbone: Any
    groups: dict[str, str]
    head: Head


def build(backbone: Backbone, head: Head | str | None, scaling: str, size: int, classes: int) -> Network:
    """The network for images of `size` pixels, with freshly initialised weights; raises UserError for unknown names."""
    import keras

    entry = backbones.get(backbone.name)
    resolved = heads.resolve(head, entry.head)
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    scaled = scale(images, entry.scaling if scaling == "backbone" else scaling)
    try:
        body = _with_our_batch_norm(keras.Model(images, entry.build(scaled)))
    except ValueError as error:
        raise UserError(f"{backbone.name} does not work on {size}×{size} images: {error}") from error
    body = _without_classifier(body, entry, backbone.cut) if entry.features else body
    kept = _cut(body, backbone) if backbone.cut else body
    _check_end(kept, backbone.name)
    _penalize(kept, backbone.l2)
    names = {layer.name for layer in kept.layers}
    model = keras.Model(kept.input, heads.build(kept.output, resolved, classes, names), name="frostline")
    inner = _inner(kept)
    groups = backbones.groups(backbone.name, inner)
    groups.update({layer.name: "head" for layer in model.layers if layer.name not in names})
    return Network(model, body, groups, resolved)


def _inner(body: Any) -> list[Any]:
    """The layers of a backbone that are its own."""
    return [layer for layer in body.layers if layer.name not in ("images", "scaling")]


def _without_classifier(body: Any, entry: backbones.Backbone, cut: str | None) -> Any:
    """A network up to its features, whole where it is to be cut above them."""
    import keras

    assert entry.features
    below = keras.Model(body.input, entry.features(body))
    return body if cut and cut not in {layer.name for layer in below.layers} else below


def _cut(body: Any, backbone: Backbone) -> Any:
    """The part of a backbone up to a layer; raises UserError where there is no such layer."""
    import keras

    layers = {layer.name: layer for layer in _inner(body)}
    end = lookup(layers, backbone.cut or "", f"cut of {backbone.name}")
    return keras.Model(body.input, end.output)


def _check_end(kept: Any, name: str) -> None:
    """Refuse what cannot stand below a head; raises UserError."""
    if len(shape := getattr(kept.output, "shape", ())) not in (2, 4):
        raise UserError(f"{name} ends in {shape}, and a head needs [N, h, w, c] or [N, c]; cut it")
    if not kept.trainable_weights:
        raise UserError(f"{name} ends before its first layer with weights; cut it further up")


def _penalize(body: Any, l2: float) -> None:
    """Add an L2 penalty on every kernel to the loss; Keras leaves out those that are frozen."""
    import keras

    for weight in body.trainable_weights if l2 else []:
        if weight.name.endswith("kernel"):
            weight.regularizer = keras.regularizers.L2(l2)


def scaling(backbone: str, asked: str) -> dict[str, Any]:
    """What a network does with pixels, `asked` of a study: name, factor and offset, and the order of the channels."""
    name = backbones.get(backbone).scaling if asked == "backbone" else asked
    factor, offset = SCALINGS[name]
    return {"name": name, "factor": factor, "offset": offset, "channels": "BGR" if name in BLUE_FIRST else "RGB"}


def scale(images: Any, scaling: str) -> Any:
    """Float pixels [N, H, W, 3] as a network expects them, from the uint8 images."""
    import keras

    factor, offset = SCALINGS[scaling]
    ordered = keras.ops.take(images, [2, 1, 0], axis=-1) if scaling in BLUE_FIRST else images
    return keras.layers.Rescaling(factor, offset, name="scaling")(ordered)


def _with_our_batch_norm(body: Any) -> Any:
    """The same network with BatchNormalization layers whose mode a freeze configuration can set."""
    import keras

    from frostline.layers import BatchNormalization

    if not any(type(layer) is keras.layers.BatchNormalization for layer in body.layers):
        return body
    inputs = keras.Input(body.input_shape[1:], dtype="uint8", name="images")
    return _copy(body, inputs, {keras.layers.BatchNormalization: BatchNormalization})


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
        if not isinstance(layer, keras.Layer):
            return layer  # an operation, such as the order of the channels, has no state
        return classes.get(type(layer), type(layer)).from_config({**layer.get_config(), **changes})

    copy = keras.models.clone_model(model, input_tensors=inputs, clone_function=clone)
    _set_weights(copy, model.get_weights())
    return copy


def _set_weights(model: Any, values: list[Any]) -> None:
    import keras

    model.set_weights(values)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # set_weights leaves its constants as they were


def load_weights(network: Network, path: Path, *, head: bool, skip: set[str]) -> None:
    """Load a weights file of the whole network when `head`, else of the backbone alone.

    It is one of Keras 3, or one of the older `.h5` files that Keras publishes. Layers that `skip` names keep their own
    weights. Raises UserError when the file does not fit.
    """
    try:
        with _keeping(network, skip), warnings.catch_warnings():
            warnings.simplefilter("error")  # Keras only warns of some layers that it leaves as they were
            (network.model if head else network.backbone).load_weights(path.expanduser())
    except (ValueError, OSError, KeyError, UserWarning) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path} does not hold the weights of this network: {reason}") from error


def load_published(network: Network, name: str, *, skip: set[str]) -> None:
    """Give the backbone called `name` its ImageNet weights, but not the layers that `skip` names; raises UserError."""
    values = backbones.published(name, network.model.input_shape[1])
    try:
        with _keeping(network, skip):
            _set_weights(network.backbone, values)
    except ValueError as error:
        raise UserError(f"the published weights are not those of {name}: {error}") from error


def load_own(network: Network, name: str, *, skip: set[str]) -> None:
    """Give a backbone that is a file the weights in it, but not the layers that `skip` names; raises UserError."""
    values = own.weights(name.removeprefix(FILE))
    with _keeping(network, skip):
        _set_weights(network.backbone, [x for layer in network.backbone.layers for x in values.get(layer.name, [])])


@contextlib.contextmanager
def _keeping(network: Network, names: set[str]) -> Iterator[None]:
    """Some layers get the weights back that they had before."""
    kept = layer_weights(network, names)
    yield
    set_layer_weights(network, kept)


def layer_weights(network: Network, names: Iterable[str]) -> LayerWeights:
    """The weights of some layers as they are now."""
    return {name: network.model.get_layer(name).get_weights() for name in names}


def set_layer_weights(network: Network, weights: LayerWeights) -> None:
    """Give layers weights, by their names."""
    for name, values in weights.items():
        network.model.get_layer(name).set_weights(values)


def reset_names(network: Network, rules: tuple[str, ...]) -> set[str]:
    """Names of the layers that keep their fresh initialisation; raises UserError for a rule without a match."""
    return freezing.resolve(rules, freezing.describe(network.model, network.groups)) if rules else set()
