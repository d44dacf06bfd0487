"""TensorFlow Serving, or the embedded server in its place, over gRPC or REST."""

from __future__ import annotations

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
    """The `probabilities` of the model and version that the server at `how.url` serves.

    Takes pixels, or a list of encoded images, from any thread. A connection has one call at a time and is kept for
    later ones, whichever thread makes them: a new one costs its first call two round trips more. A call that fails is
    not tried again: it would pass for a slow one.
    """
    url, name, version = how.url, manifest["name"], manifest["version"]
    assert url
    opened: list[Connection] = []
    idle: list[Connection] = []

    def predict(images: Images) -> np.ndarray:
        try:
            connection = idle.pop()
        except IndexError:
            connection = client.connect(url, timeout=TIMEOUT_SECONDS, retries=0)
            opened.append(connection)
        try:
            return connection.predict(name, images, version=version)["probabilities"]
        finally:
            idle.append(connection)

    weakref.finalize(predict, _close, opened)
    return predict


def _close(opened: list[Connection]) -> None:
    for connection in opened:
        connection.close()
