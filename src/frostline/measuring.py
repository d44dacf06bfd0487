"""The child that measures an artifact on a runtime, and loads no library that the runtime does without."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
os.environ["KERAS_BACKEND"] = "tensorflow"

from frostline import children, inference, machine, plan, records
from frostline.errors import UserError
from frostline.inference import Given, Subject, rules
from frostline.inference.served import Served
from frostline.runtimes import How

Job = dict[str, Any]


def work(job: Job, emit: Any) -> None:
    """Measure the first model, then how well those do that share its graph; each cell becomes a record."""
    try:
        first, *others = job["manifests"]
        rows = job["figures"]
        if not rows:
            rows = _measure(_subject(job, first), job)
            _keep(job, rows)
        for manifest in others if any(row["outcome"] == "ok" for row in rows) else []:
            emit("scoring", model=manifest["name"])
            own = inference.accuracy(_subject(job, manifest), _given(manifest, job))
            _keep(job, [inference.share(row, own) for row in rows])
    except UserError as error:
        emit("user_error", message=str(error))


def _subject(job: Job, manifest: Job) -> Subject:
    folder = Path(job["exports"]) / manifest["kind"] / manifest["name"] / str(manifest["version"])
    server = Served(**job["server"]) if job["server"] else None
    return Subject(manifest, folder, job["runtime"], plan.restore(How, job["how"]), server=server)


def _measure(subject: Subject, job: Job) -> list[Job]:
    """All cells of one artifact; on a GPU again on images that lie there already."""
    _set_threads(subject)
    given = _given(subject.manifest, job)
    logs = Path(job["results"]) / "loadgen" / job["logs"]
    settings: Job = {"profile": rules.PROFILES[job["profile"]], "latency_bound": job["latency_bound"]}
    cells = [tuple(cell) for cell in job["cells"]]
    rows = inference.measure(subject, cells, given, logs, **settings)
    if subject.how.device == "gpu" and subject.entry.hold:
        held = Subject(subject.manifest, subject.folder, subject.runtime, subject.how, host_copies=False)
        rows += inference.measure(held, cells, given, logs / "no-copies", **settings)
    log = logs.relative_to(job["results"]).as_posix()
    return [row | {"log": log if row["outcome"] == "ok" else None} for row in rows]


def _set_threads(subject: Subject) -> None:
    """Give TensorFlow its threads, before it starts; the other runtimes take them when they load."""
    if subject.how.threads and not subject.server and subject.entry.library in ("keras", "tensorflow"):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(subject.how.threads)
        tf.config.threading.set_inter_op_parallelism_threads(subject.how.threads)


def _given(manifest: Job, job: Job) -> Given:
    """The test images of a model, which another child left in a file: making them may take TensorFlow."""
    with np.load(job["tests"][manifest["name"]]) as kept:
        images, labels = kept["images"], kept["labels"]
    if job["how"]["payload"] == "jpeg":
        images = [_jpeg(image) for image in images]
    return Given(images, labels, _stored(manifest, labels, Path(job["results"])))


def _jpeg(image: np.ndarray) -> bytes:
    """The image as a file that a client would have, with little loss."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return file.getvalue()


def _stored(manifest: Job, labels: np.ndarray, results: Path) -> np.ndarray | None:
    """The test predictions that the run left, where these are of the training that was published."""
    try:
        with np.load(records.run_folder(results, manifest["run"]) / "predictions.npz") as kept:
            stored, same = kept["test"], np.array_equal(kept["test_labels"], labels)
    except (OSError, ValueError, KeyError):
        return None
    top1 = (manifest.get("trained") or {}).get("test_top1")
    of_it = same and top1 is not None and abs(float(np.mean(stored.argmax(axis=1) == labels)) - top1) < 1e-9
    return stored if of_it else None


def _keep(job: Job, rows: list[Job]) -> None:
    for row in rows:
        records.append(Path(job["results"]), {**row, "time": records.now(), "machine": machine.facts()})


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        children.serve(work)
