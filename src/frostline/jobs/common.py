"""What several jobs need: the runs and the images of a job, and the network that a run starts from."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from frostline import datasets, models, plan, records
from frostline.plan import Run
from frostline.studies import Data

Emit = Callable[..., None]


def runs(job: dict[str, Any]) -> list[Run]:
    return [plan.restore(Run, run) for run in job["runs"]]


def data_dir(job: dict[str, Any]) -> Path | None:
    return Path(job["data_dir"]) if job["data_dir"] else None


@functools.lru_cache(maxsize=1)
def load(data: Data, data_dir: Path | None, limit: int | None) -> datasets.Dataset:
    """The images of a run, kept for the next run of its group."""
    return datasets.load(data, data_dir=data_dir, limit=limit)


def splits(dataset: datasets.Dataset) -> dict[str, np.ndarray]:
    """The images of each split that is not another."""
    test = {} if dataset.test is dataset.validation else {"test": dataset.test.images}
    return {"train": dataset.train.images, "validation": dataset.validation.images, **test}


def build(run: Run, dataset: datasets.Dataset) -> models.Network:
    """The network of a run, for the images and classes of its data."""
    size, classes = dataset.train.images.shape[1], len(dataset.class_names)
    return models.build(run.backbone, run.freeze.head, run.data.scaling, size, classes)


def start_weights(network: models.Network, run: Run, results: Path) -> list[str]:
    """Give the network the weights its configuration starts from; returns the layers that keep their fresh ones."""
    fresh = models.reset_names(network, run.freeze.reset)
    weights = run.freeze.weights
    if weights == plan.PRETRAIN:
        assert run.pretrain_run
        weights = str(records.weights_file(results, run.pretrain_run))
    if weights == "imagenet":
        models.load_published(network, run.backbone.name, skip=fresh)
    elif weights == plan.OWN:
        models.load_own(network, run.backbone.name, skip=fresh)
    elif weights not in (None, "none"):
        models.load_weights(network, Path(weights), head=run.inherit_head, skip=fresh)
    return sorted(fresh)


def reason(error: Exception) -> str:
    """Why a run failed, in one line."""
    import tensorflow as tf

    first = str(error).strip().split("\n")[0]
    if isinstance(error, (MemoryError, tf.errors.ResourceExhaustedError)):
        return f"out of memory: {first}"
    return f"{type(error).__name__}: {first}"
