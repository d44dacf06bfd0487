"""The classifiers that are put on a backbone."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from frostline.errors import UserError, lookup
from frostline.studies import Head, HeadLayer

if TYPE_CHECKING:
    import numpy as np

HEADS: dict[str, Head] = {
    "linear": Head(pooling="average"),
    "dense_256": Head(pooling="flatten", layers=(HeadLayer("dense", 256), HeadLayer("dropout", 0.5))),
    "dense_256_128": Head(
        layers=(
            HeadLayer("dense", 256),
            HeadLayer("batch_norm", 1),
            HeadLayer("dropout", 0.5),
            HeadLayer("dense", 128),
            HeadLayer("batch_norm", 1),
            HeadLayer("dropout", 0.5),
        ),
    ),
    "dense_128_64": Head(
        pooling="flatten",
        layers=(
            HeadLayer("dense", 128),
            HeadLayer("dropout", 0.2),
            HeadLayer("dense", 64),
            HeadLayer("dropout", 0.2),
        ),
    ),
}


def describe(head: Head) -> str:
    """The layers of a head in one line."""
    shown = {"batch_norm": lambda size: "batch norm", "dense": lambda size: f"dense {size:g}"}
    parts = [shown.get(x.kind, lambda size, k=x.kind: f"{k} {size:g}")(x.size) for x in head.layers]
    return ", ".join([f"{head.pooling} pooling" if head.pooling != "flatten" else "flatten", *parts, "output"])


def resolve(asked: Head | str | None, default: str) -> Head:
    """The head a study asks for by table or by name, else the backbone's default; raises UserError."""
    return asked if isinstance(asked, Head) else lookup(HEADS, asked or default, "head")


def units(head: Head, classes: int) -> int:
    """Number of logits; raises UserError when a binary head meets another number of classes than two."""
    if head.activation == "softmax":
        return classes
    if classes != 2:
        raise UserError(f'activation = "{head.activation}" is for two classes, and there are {classes}; use "softmax"')
    return 1


def build(x: Any, head: Head, classes: int, taken: Collection[str] = ()) -> Any:
    """Put the head on features [N, h, w, c] (or [N, c]); returns float32 logits [N, classes], [N, 1] if binary.

    ReLU follows each dense or convolution layer, behind its batch normalization where one follows directly. A layer
    whose name, or a beginning of one, the backbone has `taken` is called `head_...`.
    """
    import keras

    from frostline.layers import Dropout

    regularizer = keras.regularizers.L2(head.l2) if head.l2 else None
    pooled = len(x.shape) == 2
    counts: dict[str, int] = {}
    for i, layer in enumerate(head.layers):
        counts[layer.kind] = counts.get(layer.kind, 0) + 1
        name = f"{layer.kind}_{counts[layer.kind]}"
        while any(f"{other}_".startswith(f"{name}_") for other in taken):
            name = f"head_{name}"
        if layer.kind in ("conv", "block") and pooled:
            raise UserError(f"a {layer.kind} layer of a head stands before the dense and dropout layers; move it up")
        if layer.kind == "block":
            x = _block(x, int(layer.size), name, regularizer)
            continue
        if layer.kind == "conv":
            x = keras.layers.Conv2D(int(layer.size), 3, padding="same", kernel_regularizer=regularizer, name=name)(x)
        elif layer.kind == "batch_norm":
            x = keras.layers.BatchNormalization(name=name)(x)
            if i and head.layers[i - 1].kind in ("dense", "conv"):
                x = keras.layers.ReLU(name=f"{name}_relu")(x)
            continue
        else:
            x, pooled = (x, True) if pooled else (_pool(x, head.pooling), True)
            if layer.kind == "dropout":
                x = Dropout(layer.size, name=name)(x)
                continue
            x = keras.layers.Dense(int(layer.size), kernel_regularizer=regularizer, name=name)(x)
        if not (i + 1 < len(head.layers) and head.layers[i + 1].kind == "batch_norm"):
            x = keras.layers.ReLU(name=f"{name}_relu")(x)
    x = x if pooled else _pool(x, head.pooling)
    return keras.layers.Dense(units(head, classes), dtype="float32", name="output")(x)


def _block(x: Any, filters: int, name: str, regularizer: Any) -> Any:
    from frostline.layers import residual_block

    height, width = x.shape[1:3]
    if min(height, width) < 2:
        raise UserError(f"{name} of the head ends in max-pooling, and there are only {height}×{width} features")
    return residual_block(x, filters, name, regularizer)


def _pool(x: Any, pooling: str) -> Any:
    import keras

    layers = {
        "average": keras.layers.GlobalAveragePooling2D,
        "max": keras.layers.GlobalMaxPooling2D,
        "flatten": keras.layers.Flatten,
    }
    return layers[pooling](name="pooling")(x)


def probabilities(logits: "np.ndarray") -> "np.ndarray":
    """Float32 [N, classes] from logits [N, classes] by softmax, or from one logit [N, 1] as [N, 2] by the sigmoid."""
    import numpy as np

    return np.exp(_log_softmax(logits)).astype(np.float32)


def cross_entropy(logits: "np.ndarray", labels: "np.ndarray", smoothing: float = 0.0) -> "np.ndarray":
    """Float64 [N]: minus the log-probability of each label [N], from logits [N, classes] or [N, 1], nothing clipped.

    The share `smoothing` of it is the mean over all classes.
    """
    logs = _log_softmax(logits)
    return -(1 - smoothing) * logs[range(len(labels)), labels] - smoothing * logs.mean(axis=1)


def _log_softmax(logits: "np.ndarray") -> "np.ndarray":
    import numpy as np

    x = logits.astype(np.float64)
    if x.shape[1] == 1:
        x = np.concatenate([np.zeros_like(x), x], axis=1)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))
