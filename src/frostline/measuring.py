"""The child that measures an artifact on a runtime, and loads no library that the runtime does without."""

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
os.environ["KERAS_BACKEND"] = "tensorflow"

from frostline import children, datasets, inference, machine, plan, records, runtimes
from frostline.errors import UserError
from frostline.inference import Given, Subject, rules
from frostline.inference.served import Served
from frostline.runtimes import How
from frostline.studies import Data

Job = dict[str, Any]
VALIDATION_IMAGES = 1024  # on which each artifact is judged, at most


def work(job: Job, emit: Any) -> None:
    """Measure the first model, then how well those do that share its graph; each cell becomes a record when it is done.

    `figures` are records of the first model that the others share too. Or leave the images of some data in files, for
    children that are to load nothing else.
    """
    try:
        if job.get("action") == "test_images":
            for test in job["tests"]:
                _leave(test, Path(job["data_dir"]) if job["data_dir"] else None)
            return
        first, *others = job["manifests"]
        rows = job["figures"]
        for row in _measure(_subject(job, first), job) if job["cells"] else ():
            _keep(job, row)
            rows.append(row)
        for manifest in others if any(row["outcome"] == "ok" for row in rows) else []:
            emit("scoring", model=manifest["name"])
            own = inference.accuracy(_subject(job, manifest), _given(manifest, job))
            for row in rows:
                _keep(job, inference.share(row, own))
    except UserError as error:
        emit("user_error", message=str(error))


def _leave(test: Job, data_dir: Path | None) -> None:
    """Test images, and some of the validation images with their rows, where these are others."""
    data = plan.restore(Data, test["data"])
    datasets.check_unchanged(data, test["fingerprint"], test["model"], data_dir=data_dir)
    dataset = datasets.load(data, data_dir=data_dir, limit=test["limit"])
    left: Job = {"images": dataset.test.images, "labels": dataset.test.labels}
    own = dataset.validation
    if own is not dataset.test and len(own.labels):
        rows = np.unique(np.linspace(0, len(own.labels) - 1, VALIDATION_IMAGES).astype(int))
        left |= {"validation_images": own.images[rows], "validation_labels": own.labels[rows], "validation_rows": rows}
    np.savez(test["path"], **left)


def _subject(job: Job, manifest: Job) -> Subject:
    folder = Path(job["exports"]) / manifest["kind"] / manifest["name"] / str(manifest["version"])
    server = Served(**job["server"]) if job["server"] else None
    return Subject(manifest, folder, job["runtime"], plan.restore(How, job["how"]), server=server)


def _measure(subject: Subject, job: Job) -> Iterator[Job]:
    """The cells of one artifact; on a GPU again on images that lie there already."""
    _set_threads(subject)
    given = _given(subject.manifest, job)
    logs = Path(job["results"]) / "loadgen" / job["logs"]
    profile = rules.PROFILES[job["profile"]]
    profile = rules.brief(profile) if job["brief"] else profile
    settings: Job = {"profile": profile, "latency_bound": job["latency_bound"]}
    cells = [tuple(cell) for cell in job["cells"]]
    log = logs.relative_to(job["results"]).as_posix()
    for copies in runtimes.copies(subject.runtime, subject.how.device):
        place = logs if copies else logs / "no-copies"
        for row in inference.measure(replace(subject, host_copies=copies), cells, given, place, **settings):
            yield row | {"log": log if row["outcome"] == "ok" else None}


def _set_threads(subject: Subject) -> None:
    """Give TensorFlow its threads, before it starts; the other runtimes take them when they load."""
    if subject.how.threads and not subject.server and subject.entry.library in ("keras", "tensorflow"):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(subject.how.threads)
        tf.config.threading.set_inter_op_parallelism_threads(subject.how.threads)


def _given(manifest: Job, job: Job) -> Given:
    """The images of a model, which another child left in a file, with what its run answered to them."""
    with np.load(job["tests"][manifest["name"]]) as kept:
        files = dict(kept)
    as_sent = _jpegs if job["how"]["payload"] == "jpeg" else lambda images: images
    stored = _stored(manifest, files["labels"], Path(job["results"]))
    validation = None
    if stored and {"validation", "validation_labels"} <= stored.keys() and "validation_rows" in files:
        labels, rows = files["validation_labels"], files["validation_rows"]
        if len(stored["validation"]) > rows[-1] and np.array_equal(stored["validation_labels"][rows], labels):
            validation = as_sent(files["validation_images"]), labels, stored["validation"][rows]
    return Given(as_sent(files["images"]), files["labels"], stored["test"] if stored else None, validation)


def _jpegs(images: np.ndarray) -> list[bytes]:
    return [_jpeg(image) for image in images]


def _jpeg(image: np.ndarray) -> bytes:
    """The image as a file that a client would have, with little loss."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return file.getvalue()


def _stored(manifest: Job, labels: np.ndarray, results: Path) -> dict[str, np.ndarray] | None:
    """The predictions that the run left, where these are of the training that was published."""
    try:
        stored = records.predictions(results, manifest["run"])
    except records.Damaged:
        return None
    if stored is None or not {"test", "test_labels"} <= stored.keys():
        return None
    same = np.array_equal(stored["test_labels"], labels)
    top1 = (manifest.get("trained") or {}).get("test_top1")
    of_it = same and top1 is not None and abs(float(np.mean(stored["test"].argmax(axis=1) == labels)) - top1) < 1e-9
    return stored if of_it else None


def _keep(job: Job, row: Job) -> None:
    records.append(Path(job["results"]), {**row, "time": records.now(), "machine": machine.facts()})


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        children.serve(work)
