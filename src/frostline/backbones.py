"""The networks without their classifiers."""

import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from frostline import lite0, own
from frostline.errors import UserError, lookup
from frostline.studies import FILE


@dataclass(frozen=True)
class Backbone:
    """One entry of BACKBONES.

    `build` maps a float tensor [N, H, W, 3] to the features [N, h, w, c]; `scaling` is what its weights expect of
    pixels; `head` names the entry of HEADS used where a study asks for none; `stages` tells whether a change of
    resolution starts a new freeze group; `published` is the function of keras.applications that has ImageNet weights,
    `weights` reads them where they are not Keras's; `features` finds them in a network that ends in a classifier.
    """

    summary: str
    build: Callable[[Any], Any]
    scaling: str
    head: str
    stages: bool = True
    published: str | None = None
    weights: Callable[[], list[Any]] | None = None
    features: Callable[[Any], Any] | None = None


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


def residual_cnn(x):
    """A 3×3 convolution of 128 filters, then residual blocks of 256, 128 and 128, each with max-pooling."""
    import keras

    from frostline.layers import residual_block

    x = keras.layers.Conv2D(128, 3, padding="same", name="conv_1")(x)
    x = keras.layers.BatchNormalization(name="conv_1_norm")(x)
    x = keras.layers.ReLU(name="relu_1")(x)
    for number, filters in enumerate((256, 128, 128), 1):
        x = residual_block(x, filters, f"block_{number}")
    return x


def _keras(function: str, x: Any) -> Any:
    """Features of a network of keras.applications with random weights."""
    return _network(function, x).output


def _efficientnet(function: str, x: Any) -> Any:
    """EfficientNet as its published weights were trained: Keras adds this scale only where it loads them itself."""
    import keras

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        y = layer(*args, **kwargs)
        if not isinstance(layer, keras.layers.Normalization):
            return y
        return keras.layers.Rescaling([deviation**-0.5 for deviation in (0.229, 0.224, 0.225)])(y)

    network = _network(function, x)
    same = keras.models.clone_model(network, network.inputs, clone_function=lambda layer: layer, call_function=call)
    return same.output


def _network(function: str, x: Any) -> Any:
    import keras

    build = getattr(keras.applications, function)
    return build(include_top=False, weights=None, input_tensor=x, input_shape=x.shape[1:])


def _application(function: str, scaling: str, build: Callable[[str, Any], Any] = _keras) -> Backbone:
    """The entry of a network of keras.applications; those that scale their pixels themselves have `scaling` none."""
    summary = f"{function} of keras.applications"
    return Backbone(summary, partial(build, function), scaling, head="linear", published=function)


BACKBONES: dict[str, Backbone] = {
    "small_cnn": Backbone(
        "two convolutions, max-pooling, dropout (the CIFAR-10 split study)",
        small_cnn,
        scaling="none",
        head="dense_128_64",
        stages=False,
    ),
    "residual_cnn": Backbone(
        "a convolution and three residual blocks (the CIFAR-10 to CIFAR-100 study)",
        residual_cnn,
        scaling="unit",
        head="dense_256_128",
    ),
    "vgg16": _application("VGG16", "caffe"),
    "vgg19": _application("VGG19", "caffe"),
    "inception_v3": _application("InceptionV3", "symmetric"),
    "inception_resnet_v2": _application("InceptionResNetV2", "symmetric"),
    "xception": _application("Xception", "symmetric"),
    "resnet50": _application("ResNet50", "caffe"),
    "resnet101": _application("ResNet101", "caffe"),
    "resnet152": _application("ResNet152", "caffe"),
    "resnet50_v2": _application("ResNet50V2", "symmetric"),
    "resnet101_v2": _application("ResNet101V2", "symmetric"),
    "resnet152_v2": _application("ResNet152V2", "symmetric"),
    "densenet121": _application("DenseNet121", "torch"),
    "densenet169": _application("DenseNet169", "torch"),
    "densenet201": _application("DenseNet201", "torch"),
    "nasnet_mobile": _application("NASNetMobile", "symmetric"),
    "nasnet_large": _application("NASNetLarge", "symmetric"),
    "mobilenet": _application("MobileNet", "symmetric"),
    "mobilenet_v2": _application("MobileNetV2", "symmetric"),
    "mobilenet_v3_small": _application("MobileNetV3Small", "none"),
    "mobilenet_v3_large": _application("MobileNetV3Large", "none"),
    "efficientnet_b0": _application("EfficientNetB0", "none", _efficientnet),
    "efficientnet_b1": _application("EfficientNetB1", "none", _efficientnet),
    "efficientnet_b2": _application("EfficientNetB2", "none", _efficientnet),
    "efficientnet_b3": _application("EfficientNetB3", "none", _efficientnet),
    "efficientnet_b4": _application("EfficientNetB4", "none", _efficientnet),
    "efficientnet_b5": _application("EfficientNetB5", "none", _efficientnet),
    "efficientnet_b6": _application("EfficientNetB6", "none", _efficientnet),
    "efficientnet_b7": _application("EfficientNetB7", "none", _efficientnet),
    "efficientnet_lite0": Backbone(
        "EfficientNet-Lite0; its ImageNet weights are an extra of frostline",
        lite0.build,
        scaling="lite",
        head="linear",
        weights=lite0.weights,
    ),
    "efficientnet_v2_b0": _application("EfficientNetV2B0", "none"),
    "efficientnet_v2_b1": _application("EfficientNetV2B1", "none"),
    "efficientnet_v2_b2": _application("EfficientNetV2B2", "none"),
    "efficientnet_v2_b3": _application("EfficientNetV2B3", "none"),
    "efficientnet_v2_s": _application("EfficientNetV2S", "none"),
    "efficientnet_v2_m": _application("EfficientNetV2M", "none"),
    "efficientnet_v2_l": _application("EfficientNetV2L", "none"),
    "convnext_tiny": _application("ConvNeXtTiny", "none"),
    "convnext_small": _application("ConvNeXtSmall", "none"),
    "convnext_base": _application("ConvNeXtBase", "none"),
    "convnext_large": _application("ConvNeXtLarge", "none"),
    "convnext_xlarge": _application("ConvNeXtXLarge", "none"),
}


def get(name: str) -> Backbone:
    """The entry called `name`, or that of a Keras file; raises UserError that lists what exists."""
    if name.startswith(FILE):
        build = partial(own.build, name.removeprefix(FILE))
        return Backbone("a network of one's own", build, scaling="none", head="linear", features=own.features)
    return lookup(BACKBONES, name, "backbone")


class Unavailable(UserError):
    """Published weights that cannot be had here."""


def check_weights(name: str, weights: str | None, size: int = 224) -> None:
    """Refuse published weights that there are not, or that Keras cannot get; raises UserError."""
    get(name)
    if weights == "file" and not name.startswith(FILE):
        raise UserError(f'weights = "file" are those of a backbone "{FILE}NAME.keras", and this one is {name}')
    if weights == "imagenet":
        _check_published(name, size)


@cache
def _check_published(name: str, size: int) -> None:
    published(name, size)


def published(name: str, size: int) -> list[Any]:
    """Published weights for images of `size` pixels, in the order of the network's own.

    Keras's loader takes its file from its cache or fetches it, and checks it. Raises UserError where there are none,
    and Unavailable where it cannot.
    """
    entry = get(name)
    if entry.weights:
        return entry.weights()
    function = entry.published
    if not function:
        raise UserError(f'{name} has no ImageNet weights; give a weights file, or weights = "none" for random weights')
    import keras

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MobileNetV2 tells that its weights are those of another size
            build = getattr(keras.applications, function)
            network = build(include_top=False, weights="imagenet", input_shape=(size, size, 3))
    except Exception as error:  # Keras raises nothing narrower where it cannot fetch a file
        raise Unavailable(_not_published(name, str(error))) from error
    return network.get_weights()


def _not_published(name: str, reason: str) -> str:
    """What to do about ImageNet weights that Keras did not get; its reason names the file as the end of an address."""
    file = re.search(r"[\w.-]+\.h5\b", reason)
    folder = Path(os.environ.get("KERAS_HOME", "~/.keras"), "models")
    advice = f"; put the file that Keras publishes as {file[0]} into {folder}" if file else f": {reason}"
    return f"Keras cannot get the ImageNet weights of {name}{advice}, or give a weights file"


def groups(name: str, layers: list[Any]) -> dict[str, str]:
    """Freeze group of each backbone layer, in order: `last_1`, `last_2`, ... counted from the head.

    A group ends at the last layer of its resolution that trains; `last_1` is the one nearest to the head. What is
    smaller only for a while (squeeze and excite) belongs to the resolution around it, what has nothing to train to the
    layer before it. A convolution without padding makes no new group: the side has to fall by a third.
    """
    if not get(name).stages:
        return {layer.name: "last_1" for layer in layers}
    kernels = [layer for layer in layers if layer.trainable_weights]
    found: dict[str, str] = {}
    stage, side = 1, _side(kernels[-1])
    for layer in reversed(kernels):
        stage += _side(layer) >= 1.5 * side
        side = max(side, _side(layer))
        found[layer.name] = f"last_{stage}"
    group = found[kernels[0].name]
    return {layer.name: (group := found.get(layer.name, group)) for layer in layers}


def _side(layer: Any) -> int:
    """Height of what a layer gives; 1 where that is no image."""
    shape: tuple[int, ...] = getattr(layer.output, "shape", ())
    return shape[1] if len(shape) == 4 else 1
