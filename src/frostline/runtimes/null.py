"""A runtime that costs nothing, and so shows what measuring costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from frostline.runtimes import How


def open(folder: Path, manifest: dict[str, Any], how: How) -> Callable[[np.ndarray], np.ndarray]:
    """The same probabilities for whatever images, from memory."""
    import numpy as np

    classes = len(manifest["class_names"])
    answers: dict[int, np.ndarray] = {}

    def predict(images: np.ndarray) -> np.ndarray:
        count = len(images)
        if count not in answers:
            answers[count] = np.full((count, classes), 1 / classes, np.float32)
        return answers[count]

    return predict
