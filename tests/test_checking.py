"""`frostline check`: every check has a version at which it fails."""

import json
import shutil

import keras
import numpy as np
import pytest

from frostline import batching, children, exporting
from frostline.exporting import checking, saved_model, versions, warmup

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
CLASSES = ("a", "b", "c")


def network():
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    images = keras.Input((8, 8, 3), dtype="uint8", name="images")
    x = keras.layers.Conv2D(4, 3)(keras.layers.Rescaling(1 / 255)(images))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, groups=2)(x))
    return keras.Model(images, keras.layers.Dense(3)(x))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    exports = tmp_path_factory.mktemp("exports")
    about = {"activation": "softmax", "class_names": CLASSES, "images": IMAGES, "facts": {"run": "r", "run_time": "t"}}
    exporting.publish(network(), name="m", exports=exports, **about)
    return exports


@pytest.fixture
def exports(good, tmp_path):
    shutil.copytree(good, tmp_path / "exports")
    return tmp_path / "exports"


def folder(exports, kind="saved_model"):
    return exports / kind / "m" / "1"


def describe_again(folder, **changes):
    """A manifest that fits what is in the folder, as if it had been published so."""
    manifest = json.loads((folder / "manifest.json").read_text())
    known = {key: value for key, value in manifest.items() if key not in ("size_bytes", "sizes", "sha256")}
    versions.describe(folder, known | changes)


def flip_a_byte(exports):
    path = folder(exports) / "variables" / "variables.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)


def demand_xla(exports):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved_model, "strip_xla", lambda folder: None)
        saved_model.write(network(), "softmax", CLASSES, exports / "marked")
    shutil.copy(exports / "marked" / "saved_model.pb", folder(exports))
    shutil.rmtree(exports / "marked")
    describe_again(folder(exports))


def write_warmup(exports, size=8, content=None):
    path = folder(exports) / warmup.FILE
    path.unlink()
    path.parent.rmdir()
    warmup.write(folder(exports), "m", size)
    if content:
        path.write_bytes(content)
    describe_again(folder(exports))


def half(exports):
    shutil.rmtree(folder(exports, "saved_model"))
    shutil.rmtree(folder(exports, "onnx"))


def another_name(exports):
    manifest = folder(exports, "keras") / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "m"', '"name": "n"'))


def other_classes(exports):
    for kind in versions.KINDS:
        describe_again(folder(exports, kind), class_names=["a", "b", "x"])


BROKEN = {
    "a flipped byte": (flip_a_byte, "saved_model: variables/variables.data-00000-of-00001 is not the file that was"),
    "a missing file": (lambda e: (folder(e, "onnx") / "model.onnx").unlink(), "onnx: model.onnx is missing"),
    "an extra file": (lambda e: (folder(e) / "notes").touch(), "saved_model: notes does not belong here"),
    "an XLA function": (demand_xla, "saved_model: a function demands XLA"),
    "a damaged warm-up": (
        lambda e: write_warmup(e, content=b"this is no list of records"),
        f"saved_model: {warmup.FILE} is damaged",
    ),
    "a warm-up of another size": (
        lambda e: write_warmup(e, size=9),
        "saved_model: its warm-up fails: serving_default with 1 images: ",
    ),
    "a size that is allowed and not warmed up": (
        lambda e: (folder(e) / batching.FILE).write_text(batching.parameters((1, 2, 64))) and describe_again(folder(e)),
        f"saved_model: {warmup.FILE} does not ask classify with 64 images",
    ),
    "half a version": (half, "saved_model: there is no such version; it was half published"),
    "no manifest": (lambda e: (folder(e) / "manifest.json").unlink(), "saved_model: there is no manifest.json"),
    "a damaged manifest": (
        lambda e: (folder(e) / "manifest.json").write_text("{"),
        "saved_model: manifest.json is damaged",
    ),
    "another's manifest": (another_name, "keras: manifest.json is that of keras/n/1"),
    "an old manifest": (lambda e: describe_again(folder(e), schema=1), "is of another frostline: schema 1, not 2"),
    "other signatures": (
        lambda e: describe_again(folder(e), signatures={}),
        "saved_model: its signatures are not those of manifest.json",
    ),
    "other signatures of the ONNX file": (
        lambda e: describe_again(folder(e, "onnx"), signatures={}),
        "onnx: inputs and outputs of model.onnx are not those of manifest.json",
    ),
    "a variant without a word": (
        lambda e: (
            shutil.copy(folder(e, "onnx") / "model.onnx", folder(e, "onnx") / "model.int8.onnx")
            and describe_again(folder(e, "onnx"))
        ),
        "onnx: model.int8.onnx and the variants of manifest.json do not belong together",
    ),
    "no ONNX file": (
        lambda e: (folder(e, "onnx") / "model.onnx").write_bytes(b"") or describe_again(folder(e, "onnx")),
        "onnx: ",
    ),
    "other classes": (other_classes, "saved_model: serving_default answers 'c', which is no class"),
    "another run": (lambda e: describe_again(folder(e, "keras"), run="s"), "its manifests differ in run"),
}


@pytest.mark.parametrize(("breaking", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_said(breaking, message, exports):
    breaking(exports)
    wrong = checking.problems(exports, "m", "1")
    assert any(message in line for line in wrong), wrong


def test_a_version_is_found_whole_in_a_process_without_xla(exports):
    shutil.copytree(folder(exports), exports / "saved_model" / "m" / "02")
    (exports / "saved_model" / "m" / ".tmp-2-cafe").mkdir()  # an export may be running
    found = checking.check(exports)
    assert found[0] == {"model": "m", "version": "1", "wrong": []}
    assert found[1:] == [{"model": "m", "version": "02", "wrong": ["02 is no name of a version; they are 1, 2, 3, …"]}]


def test_a_model_whose_loading_ends_the_process_is_said_and_the_others_go_on(exports, monkeypatch):
    jobs = []

    def run(module, job, *, log, on_event):
        jobs.append(job["places"])
        if len(jobs) == 1:
            raise children.Died("ended by signal 11")
        on_event({"event": "checked", "model": "n", "version": "1", "wrong": []})

    (exports / "onnx" / "n" / "1").mkdir(parents=True)
    monkeypatch.setattr(children, "run", run)
    assert checking.check(exports) == [
        {"model": "m", "version": "1", "wrong": ["a process that loaded it died: ended by signal 11"]},
        {"model": "n", "version": "1", "wrong": []},
    ]
    assert jobs == [[("m", "1"), ("n", "1")], [("n", "1")]]
