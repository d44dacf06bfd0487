"""The networks without their classifiers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from frostline.errors import UserError, lookup


@dataclass(frozen=True)
class Backbone:
    """One entry of BACKBONES.

    `build` maps a float tensor [N, H, W, 3] to the features [N, h, w, c]; `scaling` is what its weights expect of
    pixels; `head` names the entry of HEADS used where a study asks for none; `stages` tells whether a change of
    resolution starts a new freeze group.
    """

    summary: str
    build: Callable[[Any], Any]
    scaling: str
    head: str
    stages: bool = True


def small_cnn(x):
    """Two 3×3 convolutions of 32 and 64 filters, each with ReLU, max-pooling and Dropout 0.2."""
    import keras

    from frostline.layers import Dropout

    x = keras.layers.Conv2D(32, 3, name="conv_1")(x)
    x = keras.layers.ReLU(name="relu_1")(x)
    x = keras.layers.Conv2D(64, 3, name="conv_2")(x)
    x = keras.layers.ReLU(name="relu_2")(x)
    x = keras.layers.MaxPooling2D(2, name="max_pool")(x)
    return Dropout(0.2, name="dropout")(x)


BACKBONES: dict[str, Backbone] = {
    "small_cnn": Backbone(
        "two convolutions, max-pooling, dropout (the CIFAR-10 split study)",
        small_cnn,
        scaling="none",
        head="dense_128_64",
        stages=False,
    ),
}


def get(name: str) -> Backbone:
    """The entry called `name`; raises UserError that lists what exists."""
    return lookup(BACKBONES, name, "backbone")


def check_weights(name: str, weights: str | None) -> None:
    """Refuse published weights for a backbone that has none; raises UserError."""
    get(name)
    if weights == "imagenet":
        raise UserError(f'{name} has no ImageNet weights; give a weights file, or weights = "none" for random weights')


def groups(name: str, layers: list[Any]) -> dict[str, str]:
    """Freeze group of each backbone layer, in order: `last_1`, `last_2`, ... counted from the head.

    A group ends where the resolution of the feature maps falls; `last_1` is the one nearest to the head.
    """
    if not get(name).stages:
        return {layer.name: "last_1" for layer in layers}
    sizes = [layer.output.shape[1] for layer in layers]
    distinct = sorted(set(sizes))
    return {layer.name: f"last_{distinct.index(size) + 1}" for layer, size in zip(layers, sizes, strict=True)}
