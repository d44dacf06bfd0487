"""Whether published versions are whole, are what their manifests say, and load as TensorFlow Serving loads them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from frostline import batching, children, device, protos
from frostline.errors import nothing_published
from frostline.exporting import SCHEMA, versions, warmup
from frostline.exporting.versions import KINDS, MANIFEST

SAME = ("name", "version", "run", "run_time", "class_names", "graph")  # in the manifests of a version's three kinds


class Wrong(Exception):
    """What is wrong with a version."""


def check(exports: Path) -> list[dict[str, Any]]:
    """Check every version of every model in a child of its own; `model`, `version` and what is `wrong` with each.

    Raises UserError where there is no model.
    """
    places = _places(exports)
    if not places:
        raise nothing_published(exports)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        while len(found) < len(places):
            job = {"exports": str(exports), "places": places[len(found) :]}
            try:
                children.run("frostline.exporting.checking", job, log=Path(place) / "log.txt", on_event=_collect(found))
            except children.Died as error:  # of the version that it was at
                if len(found) == len(places):
                    raise
                model, version = places[len(found)]
                found.append({"model": model, "version": version, "wrong": [f"a process that loaded it died: {error}"]})
    return found


def _collect(found: list[dict[str, Any]]) -> Callable[[dict[str, Any]], None]:
    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "checked":
            found.append({key: event[key] for key in ("model", "version", "wrong")})

    return on_event


def _places(exports: Path) -> list[tuple[str, str]]:
    """Models and versions; without one that an export is at work on, or was killed over: the next export removes it."""
    found = {(folder.parent.name, folder.name) for kind in KINDS for folder in _folders(exports / kind)}
    left = {place for place in found if int(place[1]) in versions.unfinished(exports, place[0])}
    return sorted(found - left, key=lambda place: (place[0], int(place[1])))


def _folders(kind: Path) -> Iterator[Path]:
    """What TensorFlow Serving takes for versions: folders whose name is a whole number, in whatever form."""
    for folder in kind.glob("*/*"):
        if folder.is_dir() and re.fullmatch(r"[+-]?\d+", folder.name):
            yield folder


# -- in the child ------------------------------------------------------------------------------------------


def work(job: dict[str, Any], emit: Callable[..., None]) -> None:
    """Check one version after the other, without XLA, as TensorFlow Serving runs."""
    device.disable_xla()
    for model, version in job["places"]:
        emit("checked", model=model, version=version, wrong=problems(Path(job["exports"]), model, version))


def problems(exports: Path, model: str, version: str) -> list[str]:
    """What is wrong with one version, a line for each of its kinds at most."""
    if version != str(int(version)) or int(version) < 1:
        return [f"{version} is no name of a version; they are 1, 2, 3, …"]
    wrong, manifests = [], {}
    for kind in KINDS:
        try:
            manifests[kind] = _whole(exports / kind / model / version, kind)
            LOADED[kind](exports / kind / model / version, manifests[kind])
        except Wrong as error:
            wrong.append(f"{kind}: {error}")
        except Exception as error:  # whatever a library says of a file that it cannot read
            wrong.append(f"{kind}: {type(error).__name__}: {_line(error)}")
    for key in SAME:
        if len({json.dumps(manifest.get(key)) for manifest in manifests.values()}) > 1:
            wrong.append(f"its manifests differ in {key}")
    return wrong


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def _whole(folder: Path, kind: str) -> dict[str, Any]:
    """The manifest of a version folder that holds what the manifest says and nothing else."""
    if not (folder / MANIFEST).is_file():
        raise Wrong(f"there is no {MANIFEST}" if folder.is_dir() else "there is no such version; it was half published")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        expected, own = manifest["sha256"], (manifest["name"], str(manifest["version"]), manifest["kind"])
    except (ValueError, KeyError, TypeError) as error:
        raise Wrong(f"{MANIFEST} is damaged") from error
    if manifest.get("schema") != SCHEMA:
        raise Wrong(f"{MANIFEST} is of another frostline: schema {manifest.get('schema')}, not {SCHEMA}; export again")
    if own != (folder.parent.name, folder.name, kind):
        raise Wrong(f"{MANIFEST} is that of {'/'.join((own[2], *own[:2]))}")
    found = versions.sums(folder)
    if missing := set(expected) - set(found):
        raise Wrong(f"{min(missing)} is missing")
    if extra := set(found) - set(expected):
        raise Wrong(f"{min(extra)} does not belong here")
    if changed := sorted(name for name in found if found[name] != expected[name]):
        raise Wrong(f"{changed[0]} is not the file that was published")
    return manifest


def _keras(folder: Path, manifest: dict[str, Any]) -> None:
    """Load it; it is not run, as Keras compiles grouped convolutions with XLA."""
    from frostline.runtimes import keras_predict

    model = keras_predict.load(folder)
    if [tuple(manifest["input"]["shape"])] != [tuple(pixels.shape) for pixels in model.inputs]:
        raise Wrong(f"its input is not that of {MANIFEST}")


def _saved_model(folder: Path, manifest: dict[str, Any]) -> None:
    """Load it as TensorFlow Serving does, by its tag into a session, and run its warm-up by the names of tensors."""
    import tensorflow as tf

    from frostline.exporting import saved_model

    if saved_model.XLA_MARK.encode() in (folder / "saved_model.pb").read_bytes():
        raise Wrong("a function demands XLA, which TensorFlow Serving has switched off")
    if saved_model.signatures(folder) != manifest["signatures"]:
        raise Wrong(f"its signatures are not those of {MANIFEST}")
    try:
        requests = [warmup.feeds(request) for request in warmup.read(folder)]
    except ValueError as error:
        raise Wrong(str(error)) from error
    sizes = protos.read(folder / batching.FILE, protos.BatchingParameters).allowed_batch_sizes
    asked = {(signature, len(next(iter(feeds.values())))) for signature, feeds in requests}
    if unasked := set(itertools.product(manifest["signatures"], sizes)) - asked:
        raise Wrong("{} does not ask {} with {} images".format(warmup.FILE, *min(unasked)))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder))
        for signature, feeds in requests:
            _replay(session, graph.signature_def, signature, feeds, manifest)


def _replay(session: Any, known: Any, signature: str, feeds: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Run a warm-up request and look at the answer's form."""
    if signature not in known or set(known[signature].inputs) != set(feeds):
        raise Wrong(f"{warmup.FILE} asks {signature!r} with {', '.join(feeds)}, which it does not take")
    given = {known[signature].inputs[alias].name: array for alias, array in feeds.items()}
    count = len(next(iter(feeds.values())))
    try:
        found = session.run({alias: info.name for alias, info in known[signature].outputs.items()}, given)
    except Exception as error:  # any error of TensorFlow, and what Python says of feeds of another form
        raise Wrong(f"its warm-up fails: {signature} with {count} images: {_line(error)}") from error
    _check_answer(found, count, manifest["class_names"], signature)


def _check_answer(found: dict[str, Any], count: int, class_names: list[str], signature: str) -> None:
    """Raise Wrong unless each image is answered by probabilities and by the names of classes."""
    import numpy as np

    if any(len(value) != count for value in found.values()):
        raise Wrong(f"{signature} does not give an answer to each of {count} images")
    names = found["classes" if "classes" in found else "top_k_classes"]
    texts = {name.decode() if isinstance(name, bytes) else name for name in np.ravel(names)}
    if not texts <= set(class_names):
        raise Wrong(f"{signature} answers {min(texts - set(class_names))!r}, which is no class")
    sums = found["probabilities"].sum(axis=1) if "probabilities" in found else np.ones(1)
    if not np.allclose(sums, 1, atol=1e-4):
        raise Wrong(f"{signature} gives probabilities that do not sum to one")


def _onnx(folder: Path, manifest: dict[str, Any]) -> None:
    """Check the graph of each variant, load it and let it answer one and three images."""
    import numpy as np
    import onnx

    from frostline.exporting.onnx import signatures
    from frostline.runtimes import onnxruntime

    expected = {about["file"] for about in manifest["variants"].values() if about["outcome"] == "ok"} | {"model.onnx"}
    if other := {path.name for path in folder.glob("*.onnx")} ^ expected:
        raise Wrong(f"{min(other)} and the variants of {MANIFEST} do not belong together")
    for name, file in onnxruntime.FILES.items():
        if file not in expected:
            continue
        onnx.checker.check_model(onnx.load(folder / file), full_check=True)
        if signatures(folder / file) != manifest["signatures"]:
            raise Wrong(f"inputs and outputs of {file} are not those of {MANIFEST}")
        answer = onnxruntime.outputs(folder, "cpu", variant=name)
        for count in (1, 3):
            pixels = np.zeros((count, *manifest["input"]["shape"][1:]), np.uint8)
            _check_answer(answer(pixels), count, manifest["class_names"], file)


LOADED = {"keras": _keras, "saved_model": _saved_model, "onnx": _onnx}

if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with contextlib.suppress(KeyboardInterrupt):
        children.serve(work)
