"""TensorFlow Serving, or the embedded server in its place, over gRPC or REST."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline import client

if TYPE_CHECKING:
    import numpy as np

    from frostline.client import Connection
    from frostline.client.messages import Images
    from frostline.runtimes import How

TIMEOUT_SECONDS = 120.0


def open(folder: Path, manifest: dict[str, Any], how: How) -> Callable[[Images], np.ndarray]:
    """The `probabilities` of the model and version that the server at `how.url` serves, one connection a thread.

    Takes pixels, or a list of encoded images. A call that fails is not tried again: it would pass for a slow one.
    """
    url, name, version = how.url, manifest["name"], manifest["version"]
    assert url
    own = threading.local()
    opened: list[Connection] = []

    def predict(images: Images) -> np.ndarray:
        if not hasattr(own, "connection"):
            own.connection = client.connect(url, timeout=TIMEOUT_SECONDS, retries=0)
            opened.append(own.connection)
        return own.connection.predict(name, images, version=version)["probabilities"]

    weakref.finalize(predict, _close, opened)
    return predict


def _close(opened: list[Connection]) -> None:
    for connection in opened:
        connection.close()
