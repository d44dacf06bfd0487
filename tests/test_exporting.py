import json
import os
import re
import shutil
import stat
import subprocess
import sys

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from onnx import TensorProto, helper

from frostline import batching, datasets, exporting, protos
from frostline.datasets import Dataset, Split
from frostline.exporting import ParityError, checking, parity, saved_model, variants, versions, warmup
from frostline.exporting import onnx as to_onnx
from frostline.heads import probabilities
from frostline.runtimes import keras_predict
from frostline.runtimes import onnxruntime as on_runtime

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
CLASSES = ("a", "b", "c")
FACTS = {"study": "tiny", "freeze": "output", "run": "0123"}


def network(seed=0, *, outputs=3, scale=1 / 255, width=4):
    """Small, but with what converters stumble over: Normalization, BatchNormalization, a grouped convolution, GELU."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    random = {"bias_initializer": "random_normal"}
    images = keras.Input((8, 8, 3), dtype="uint8", name="images")
    x = keras.layers.Rescaling(scale)(images)
    x = keras.layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.1, 0.2, 0.3])(x)
    x = keras.layers.Conv2D(width, 3, **random)(x)
    x = keras.layers.BatchNormalization(beta_initializer="random_normal")(x)
    x = keras.layers.Conv2D(width, 3, groups=2, activation="gelu", **random)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(outputs, **random)(x))


def publish(model, exports, *, name="tiny.output", activation="softmax", class_names=CLASSES, images=IMAGES):
    return exporting.publish(
        model,
        name=name,
        activation=activation,
        class_names=class_names,
        images=images,
        facts=FACTS,
        exports=exports,
    )


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def published(exports):
    return publish(network(), exports)


# -- the three artifacts -------------------------------------------------------------------------------


def test_a_version_appears_in_every_kind_with_its_manifest(published, exports):
    assert published.version == 1
    assert files(published.paths["keras"]) == ["manifest.json", "model.keras"]
    assert files(published.paths["onnx"]) == ["manifest.json", "model.onnx"]
    assert "saved_model.pb" in files(published.paths["saved_model"])
    assert sorted(os.listdir(exports / "onnx" / "tiny.output")) == ["1"]
    assert max(published.parity.differences.values()) <= 1e-5
    assert published.parity.batch_sizes == (1, 7, 32, 3) and published.parity.images == 9


def test_the_manifest_tells_what_is_in_the_folder(published):
    for kind, folder in published.paths.items():
        manifest = json.loads((folder / "manifest.json").read_text())
        others = [path for path in files(folder) if path != "manifest.json"]
        assert manifest["kind"] == kind
        assert sorted(manifest["sha256"]) == others
        assert manifest["size_bytes"] == published.sizes[kind] == sum((folder / p).stat().st_size for p in others)
        assert FACTS.items() <= manifest.items()
        assert manifest["class_names"] == ["a", "b", "c"] and manifest["activation"] == "softmax"
        assert manifest["input"] == {"name": "images", "dtype": "uint8", "shape": [None, 8, 8, 3]}
        assert manifest["sizes"] == {path: (folder / path).stat().st_size for path in others}
        assert manifest["graph"] == published.graph
        assert manifest["parity"]["differences"].keys() == {*versions.KINDS, "serving_bytes"}


def test_the_manifests_have_the_signatures(published, exports):
    def told(tensors):
        return {alias: {"dtype": dtype.name, "shape": shape} for alias, (dtype, shape) in tensors.items()}

    expected = {
        name: {"inputs": told({alias: rest}), "outputs": told(outputs)}
        for name, ((alias, *rest), outputs) in SIGNATURES.items()
    }
    served, converted = (exporting.current(exports, "tiny.output", kind) for kind in ("saved_model", "onnx"))
    assert served["signatures"] == expected
    assert converted["signatures"] == {"serving_default": expected["serving_default"]}


def test_every_user_may_read_a_version(published):
    for folder in published.paths.values():
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()} == {0o644}


ANSWER = {
    "logits": (tf.float32, [None, 3]),
    "probabilities": (tf.float32, [None, 3]),
    "top_k_scores": (tf.float32, [None, 3]),
    "top_k_classes": (tf.string, [None, 3]),
}
SIGNATURES = {
    "serving_default": (("images", tf.uint8, [None, 8, 8, 3]), ANSWER),
    "serving_bytes": (("image_bytes", tf.string, [None]), ANSWER),
    "classify": (("inputs", tf.string, [None]), {"classes": (tf.string, [None, 3]), "scores": (tf.float32, [None, 3])}),
}


@pytest.mark.parametrize(("name", "expected"), SIGNATURES.items())
def test_a_signature(name, expected, published):
    loaded = tf.saved_model.load(str(published.paths["saved_model"]))
    assert loaded.signatures.keys() == SIGNATURES.keys()
    signature = loaded.signatures[name]
    ((alias, given),) = signature.structured_input_signature[1].items()
    assert (alias, given.dtype, given.shape.as_list()) == expected[0]
    found = {name: (spec.dtype, spec.shape.as_list()) for name, spec in signature.structured_outputs.items()}
    assert found == expected[1]


def files_of(images):
    return [tf.io.encode_png(image).numpy() for image in images]


def test_a_file_is_answered_as_its_pixels_are(published):
    signatures = tf.saved_model.load(str(published.paths["saved_model"])).signatures
    large = np.repeat(np.repeat(IMAGES, 4, axis=1), 3, axis=2)
    pixels = np.stack([datasets.decode(file, 8) for file in files_of(large)])
    expected = signatures["serving_default"](images=tf.constant(pixels))
    found = signatures["serving_bytes"](image_bytes=tf.constant(files_of(large)))
    assert all(np.array_equal(found[name], expected[name]) for name in ANSWER)


def test_what_is_no_image_is_said_to_be_none(published):
    signatures = tf.saved_model.load(str(published.paths["saved_model"])).signatures
    with pytest.raises(tf.errors.InvalidArgumentError, match="Unknown image file format"):
        signatures["serving_bytes"](image_bytes=tf.constant([*files_of(IMAGES[:1]), b"no image"]))


def test_names_and_scores_of_the_best_classes(tmp_path):
    model = network(outputs=7)
    names = [f"Klasse {letter} – é" for letter in "abcdefg"]
    found = publish(model, tmp_path, class_names=names)
    signatures = tf.saved_model.load(str(found.paths["saved_model"])).signatures
    session = onnxruntime.InferenceSession(found.paths["onnx"] / "model.onnx")
    best = np.argsort(-model(IMAGES).numpy(), axis=1)[:, :5]
    expected = [[names[number] for number in row] for row in best]
    (answer,) = session.run(["top_k_classes"], {"images": IMAGES})
    assert answer.tolist() == expected
    examples = tf.constant([warmup.example(file).SerializeToString() for file in files_of(IMAGES)])
    classified = signatures["classify"](inputs=examples)
    assert [[name.decode() for name in row] for row in classified["classes"].numpy()] == expected
    assert classified["scores"].shape == (9, 5) and np.all(np.diff(classified["scores"]) <= 0)


def test_a_graph_for_a_gpu_has_no_strings(published):
    session = onnxruntime.InferenceSession(on_runtime.without_strings(published.paths["onnx"] / "model.onnx"))
    whole = onnxruntime.InferenceSession(published.paths["onnx"] / "model.onnx")
    names = ["logits", "probabilities", "top_k_scores"]
    assert [output.name for output in session.get_outputs()] == names
    for found, expected in zip(
        session.run(names, {"images": IMAGES}), whole.run(names, {"images": IMAGES}), strict=True
    ):
        assert np.array_equal(found, expected)


def test_weights_are_stored_once(published):
    stored = tf.train.list_variables(str(published.paths["saved_model"] / "variables" / "variables"))
    names = [name for name, shape in stored if shape]
    assert len(names) == len(network().weights)


def test_the_onnx_graph_has_one_input_and_a_symbolic_batch(published):
    session = onnxruntime.InferenceSession(published.paths["onnx"] / "model.onnx")
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("images", "tensor(uint8)", ["batch", 8, 8, 3])
    ]
    assert {(o.name, o.type, tuple(o.shape)) for o in session.get_outputs()} == {
        ("logits", "tensor(float)", ("batch", 3)),
        ("probabilities", "tensor(float)", ("batch", 3)),
        ("top_k_scores", "tensor(float)", ("batch", 3)),
        ("top_k_classes", "tensor(string)", ("batch", 3)),
    }


def test_flattening_needs_no_shape_arithmetic(tmp_path):
    images = keras.Input((8, 8, 3), dtype="uint8", name="images")
    x = keras.layers.Flatten()(keras.layers.Conv2D(4, 3)(keras.layers.Rescaling(1 / 255)(images)))
    saved_model.write(keras.Model(images, keras.layers.Dense(3)(x)), "softmax", CLASSES, tmp_path / "saved")
    to_onnx.write(tmp_path / "saved", tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    operators = [node.op_type for node in graph.node]
    assert "Reshape" in operators and "Shape" not in operators
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert session.run(["logits"], {"images": IMAGES})[0].shape == (9, 3)


def test_a_version_is_warmed_up_for_each_signature_and_batch_size(published):
    folder = published.paths["saved_model"]
    requests = warmup.read(folder)
    asked = [(name, len(array)) for name, feeds in map(warmup.feeds, requests) for array in feeds.values()]
    assert asked == [(name, size) for size in batching.ALLOWED_SIZES for name in SIGNATURES]
    assert (folder / warmup.FILE).stat().st_size < 100_000
    assert {getattr(log, log.WhichOneof("log_type")).request.model_spec.name for log in requests} == {"tiny.output"}
    signatures = tf.saved_model.load(str(folder)).signatures
    for name, feeds in map(warmup.feeds, requests):
        answer = signatures[name](**{alias: tf.constant(array) for alias, array in feeds.items()})
        assert {len(value) for value in answer.values()} == {len(array) for array in feeds.values()}


def test_a_tensor_of_a_warm_up_is_whole_for_tensorflow_too(published):
    logs = warmup.read(published.paths["saved_model"])
    for tensor in (tensor for log in logs for tensor in log.predict_log.request.inputs.values()):
        whole = tf.io.parse_tensor(tensor.SerializeToString(), tf.as_dtype(tensor.dtype)).numpy()
        assert np.array_equal(whole, tf.make_ndarray(tensor)) and len(np.unique(whole)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no"), (b"these are no records", "is damaged"), (b"", "holds 0 requests, 1 to 1000 are allowed")],
)
def test_a_broken_warm_up(content, message, tmp_path):
    (tmp_path / "assets.extra").mkdir()
    if content is not None:
        (tmp_path / warmup.FILE).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        warmup.read(tmp_path)


def test_the_parameters_of_batching_are_those_that_tensorflow_serving_reads(published):
    params = protos.read(published.paths["saved_model"] / "batching_params.pbtxt", protos.BatchingParameters)
    assert tuple(params.allowed_batch_sizes) == batching.ALLOWED_SIZES
    assert params.max_batch_size.value == batching.ALLOWED_SIZES[-1]


def test_no_demand_for_xla_is_left(published, tmp_path, monkeypatch):
    mark = saved_model.XLA_MARK.encode()
    folder = published.paths["saved_model"]
    assert mark not in (folder / "saved_model.pb").read_bytes()
    monkeypatch.setattr(saved_model, "strip_xla", lambda folder: None)
    saved_model.write(network(), "softmax", CLASSES, tmp_path)
    assert mark in (tmp_path / "saved_model.pb").read_bytes()


def test_the_fingerprint_is_that_of_the_stripped_graph(tmp_path, monkeypatch):
    strip = saved_model.strip_xla
    monkeypatch.setattr(saved_model, "strip_xla", lambda folder: None)
    saved_model.write(network(), "softmax", CLASSES, tmp_path)
    before = tf.saved_model.experimental.read_fingerprint(str(tmp_path)).saved_model_checksum
    strip(tmp_path)
    assert tf.saved_model.experimental.read_fingerprint(str(tmp_path)).saved_model_checksum != before


@pytest.mark.parametrize("activation", ["sigmoid", "logit"])
def test_one_logit_becomes_two_columns(activation, tmp_path):
    model = network(outputs=1)
    found = publish(model, tmp_path, activation=activation, class_names=("cat", "dog"))
    session = onnxruntime.InferenceSession(found.paths["onnx"] / "model.onnx")
    (answer,) = session.run(["probabilities"], {"images": IMAGES})
    dog = 1 / (1 + np.exp(-model(IMAGES).numpy()[:, 0]))
    np.testing.assert_allclose(answer, np.stack([1 - dog, dog], axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ("a", "b")}, "do not fit softmax over 2 classes"),
        ({"activation": "logit"}, "do not fit logit over 3 classes"),
        ({"images": IMAGES.astype(np.float32)}, "images float32"),
        ({"images": IMAGES[:, :4]}, r"images uint8 \(9, 4, 8, 3\)"),
        ({"images": IMAGES[:0]}, r"images uint8 \(0, 8, 8, 3\)"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        publish(network(), tmp_path, **change)
    assert not files(tmp_path)


def test_a_float_input_is_refused(tmp_path):
    images = keras.Input((8, 8, 3), name="images")
    model = keras.Model(images, keras.layers.Dense(3)(keras.layers.Flatten()(images)))
    with pytest.raises(ValueError, match="one uint8 input named images"):
        publish(model, tmp_path)


# -- parity can fail -----------------------------------------------------------------------------------


def alter_keras(model, monkeypatch):
    check = parity.check

    def altered(model, folders, *args):
        copy = keras_predict.load(folders["keras"])
        copy.weights[-1].assign(copy.weights[-1] + 0.01)
        copy.save(folders["keras"] / "model.keras")
        return check(model, folders, *args)

    monkeypatch.setattr(parity, "check", altered)


def alter_saved_model(model, monkeypatch):
    write = saved_model.write

    def altered(model, *args):
        bias = model.weights[-1]
        right = bias.numpy()
        bias.assign(right + 0.01)
        write(model, *args)
        bias.assign(right)

    monkeypatch.setattr(saved_model, "write", altered)


def alter_onnx(model, monkeypatch):
    write = to_onnx.write

    def altered(folder, path):
        write(folder, path)
        proto = onnx.load(path)
        weight = next(t for t in proto.graph.initializer if len(t.dims) == 4)
        values = onnx.numpy_helper.to_array(weight).copy()
        values.flat[0] += 0.1
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(proto, path)

    monkeypatch.setattr(to_onnx, "write", altered)


@pytest.mark.parametrize("alter", [alter_keras, alter_saved_model, alter_onnx])
def test_one_altered_weight_publishes_nothing(alter, tmp_path, monkeypatch):
    model = network()
    alter(model, monkeypatch)
    with pytest.raises(ParityError, match=r"logits differ .*keras .*saved_model .*onnx .*1e-05 is allowed"):
        publish(model, tmp_path)
    assert not files(tmp_path)
    assert exporting.current(tmp_path, "tiny.output") is None and exporting.manifests(tmp_path) == []


def test_other_probabilities_publish_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_model, "probabilities", lambda logits, activation: tf.nn.sigmoid(logits))
    with pytest.raises(ParityError, match="probabilities are not the softmax of the logits"):
        publish(network(), tmp_path)
    assert not files(tmp_path)


def test_other_names_of_classes_publish_nothing(tmp_path, monkeypatch):
    write = saved_model.write
    monkeypatch.setattr(saved_model, "write", lambda *args: write(args[0], args[1], args[2][::-1], args[3]))
    with pytest.raises(ParityError, match="top_k_classes are not those with the highest probabilities"):
        publish(network(), tmp_path)
    assert not files(tmp_path)


def test_another_decoder_publishes_nothing(tmp_path, monkeypatch):
    write = saved_model.write

    def altered(*args):
        with monkeypatch.context() as patch:
            patch.setattr(datasets, "decode", lambda file, size: tf.io.decode_image(file, 3)[::-1])
            write(*args)

    monkeypatch.setattr(saved_model, "write", altered)
    with pytest.raises(ParityError, match=r"logits differ .*serving_bytes 0\.\d"):
        publish(network(), tmp_path)
    assert not files(tmp_path)


def test_a_classify_of_its_own_mind_publishes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(warmup, "example", lambda file, right=warmup.example: right(files_of(IMAGES[:1])[0]))
    with pytest.raises(ParityError, match="classify answers otherwise than serving_bytes"):
        publish(network(), tmp_path)
    assert not files(tmp_path)


def test_logits_of_another_form_are_no_answer():
    answer = {"logits": np.zeros((4, 3), np.float64), "probabilities": np.full((4, 3), 1 / 3)}
    with pytest.raises(ParityError, match=r"logits are float64 \(4, 3\), the model's float32 \(4, 3\)"):
        parity._difference(answer, np.zeros((4, 3), np.float32), "softmax")


def test_a_model_that_answers_nan_is_not_published(tmp_path):
    model = network()
    model.weights[-1].assign(np.full(3, np.nan, np.float32))
    with pytest.raises(ParityError):
        publish(model, tmp_path)
    assert not files(tmp_path)


# -- version folders -----------------------------------------------------------------------------------


def put(exports, name, version, kinds=versions.KINDS):
    for kind in kinds:
        folder = exports / kind / name / str(version)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"name": name, "version": version, "kind": kind}))


def test_the_next_version_is_above_the_highest_of_any_kind(tmp_path):
    assert versions.next_version(tmp_path, "m") == 1
    put(tmp_path, "m", 3)
    put(tmp_path, "m", 11, ["saved_model"])
    put(tmp_path, "other", 20)
    (tmp_path / "onnx" / "m" / "notes").mkdir()
    assert versions.next_version(tmp_path, "m") == 12


def test_a_version_that_is_not_in_every_kind_is_not_current(tmp_path):
    put(tmp_path, "m", 2)
    put(tmp_path, "m", 10)
    put(tmp_path, "m", 11, ["keras", "onnx"])
    put(tmp_path, "half", 1, ["keras"])
    put(tmp_path, "another", 1)
    assert exporting.current(tmp_path, "m") == {"name": "m", "version": 10, "kind": "onnx"}
    assert exporting.current(tmp_path, "m", "keras")["kind"] == "keras"
    assert exporting.current(tmp_path, "half") is None
    assert [(m["name"], m["version"]) for m in exporting.manifests(tmp_path)] == [("another", 1), ("m", 10)]


def test_the_next_export_sweeps_what_a_killed_one_left(tmp_path):
    put(tmp_path, "m", 1)
    leftover = tmp_path / "saved_model" / "m" / ".tmp-2-cafe"
    busy = tmp_path / "saved_model" / "other" / ".tmp-1-cafe"
    for folder in (leftover, busy):
        folder.mkdir(parents=True)
        (folder / "saved_model.pb").write_text("half")
    with versions.staging(tmp_path, "m", 2) as folders:
        assert not leftover.exists() and busy.exists()
        assert all(folder.parent == tmp_path / kind / "m" for kind, folder in folders.items())
        assert all(folder.name.startswith(".tmp-2-") for folder in folders.values())


# A process that shows a version and dies at the rename it is told, as if it were killed; 2 has its folders renamed.
DYING = """
import os, sys
from pathlib import Path
from frostline.exporting import versions
exports, last = Path(sys.argv[1]), int(sys.argv[2])
done, rename = [], os.rename
def count(*paths):
    if len(done) == last:
        os._exit(9)
    done.append(paths)
    rename(*paths)
os.rename = count
with versions.staging(exports, "m", 2) as folders:
    for kind, folder in folders.items():
        versions.describe(folder, {"name": "m", "version": 2, "kind": kind})
    versions.show(folders, 2)
    os._exit(9)
"""


@pytest.mark.parametrize("renames", range(len(versions.KINDS) + 1))
def test_an_export_that_is_killed_leaves_a_whole_version_or_none(tmp_path, renames):
    put(tmp_path, "m", 1)
    done = subprocess.run([sys.executable, "-c", DYING, str(tmp_path), str(renames)], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    shown = sorted(path.parent.parent.name for path in tmp_path.glob("*/m/2"))
    assert shown == sorted(versions.KINDS[:renames])
    whole = renames == len(versions.KINDS)
    assert exporting.current(tmp_path, "m")["version"] == (2 if whole else 1)
    assert (tmp_path / "saved_model" / "m" / "2").exists() == whole  # a server sees a whole version or none
    numbers = ["1", "2"] if whole else ["1"]
    assert checking._places(tmp_path) == [("m", number) for number in numbers]
    with versions.staging(tmp_path, "m", versions.next_version(tmp_path, "m")) as folders:
        left = {path for path in tmp_path.glob("*/m/*") if path not in folders.values()}
    assert left == {tmp_path / kind / "m" / number for kind in versions.KINDS for number in numbers}


def test_what_a_person_took_away_is_no_unfinished_export(tmp_path):
    put(tmp_path, "m", 1, ["keras", "onnx"])
    with versions.staging(tmp_path, "m", 2) as folders:
        for folder in folders.values():
            (folder / "manifest.json").touch()
        versions.show(folders, 2)
    assert (tmp_path / "keras" / "m" / "1").exists()
    assert checking._places(tmp_path) == [("m", "1"), ("m", "2")]


def test_a_failing_export_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "model.onnx").write_text("half")
        raise KeyError

    with pytest.raises(KeyError), versions.staging(tmp_path, "m", 1) as folders:
        fail(folders["onnx"])
    assert not list(tmp_path.glob("*/m/*"))


def test_a_staging_folder_that_cannot_be_removed_takes_no_published_version_with_it(tmp_path, monkeypatch):
    remove, stuck = shutil.rmtree, tmp_path / "saved_model" / "m" / ".tmp-1-stuck"
    stuck.mkdir(parents=True)
    monkeypatch.setattr(shutil, "rmtree", lambda path, **how: None if path == stuck else remove(path, **how))
    with versions.staging(tmp_path, "m", 1) as folders:
        for folder in folders.values():
            (folder / "manifest.json").touch()
        versions.show(folders, 1)
    assert stuck.exists() and all((tmp_path / kind / "m" / "1").exists() for kind in versions.KINDS)
    assert checking._places(tmp_path) == [("m", "1")]


def test_an_export_that_fails_between_its_renames_shows_nothing(tmp_path, monkeypatch):
    rename = os.rename

    def refuse(old, new):
        if new.parent.parent.name == "saved_model":
            raise OSError("the disk is full")
        rename(old, new)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="disk is full"), versions.staging(tmp_path, "m", 1) as folders:
        versions.show(folders, 1)
    assert not list(tmp_path.glob("*/m/*"))


def test_a_version_is_never_overwritten(tmp_path):
    put(tmp_path, "m", 1)
    before = (tmp_path / "onnx" / "m" / "1" / "manifest.json").read_text()
    with pytest.raises(OSError, match="not empty"), versions.staging(tmp_path, "m", 1) as folders:
        versions.show(folders, 1)
    assert (tmp_path / "onnx" / "m" / "1" / "manifest.json").read_text() == before


def test_publishing_again_takes_the_next_number_and_leaves_the_first_alone(published, exports):
    before = {path: path.stat().st_mtime_ns for folder in published.paths.values() for path in folder.rglob("*")}
    again = publish(network(seed=1), exports)
    assert again.version == 2
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert exporting.current(exports, "tiny.output")["version"] == 2
    assert again.graph == published.graph


# -- the identity of a graph ---------------------------------------------------------------------------


def graph_of(tmp_path, *, value=1.0, scale=2.0, shape=(3, 2), axis=1, target=(-1, 2), prefix="", swap=False):
    """Images -> Mul(scale) -> MatMul(weight) -> Softmax(axis) and Reshape(target), as an ONNX file."""
    weight = helper.make_tensor(prefix + "w", TensorProto.FLOAT, shape, [value] * (shape[0] * shape[1]))
    constants = [
        weight,
        helper.make_tensor(prefix + "s", TensorProto.FLOAT, [], [scale]),
        helper.make_tensor(prefix + "t", TensorProto.INT64, [2], target),
    ]
    first = [
        helper.make_node("Mul", ["images", prefix + "s"], [prefix + "a"]),
        helper.make_node("MatMul", [prefix + "a", prefix + "w"], [prefix + "b"]),
    ]
    last = [
        helper.make_node("Softmax", [prefix + "b"], ["probabilities"], axis=axis),
        helper.make_node("Reshape", [prefix + "b", prefix + "t"], ["logits"]),
    ]
    graph = helper.make_graph(
        first + (last[::-1] if swap else last),
        prefix + "graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("logits", "probabilities")],
        constants,
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph), path)
    return to_onnx.graph_hash(path)


@pytest.mark.parametrize("change", [{"value": 5.0}, {"prefix": "x_"}, {"swap": True}])
def test_weights_names_and_order_are_not_the_graph(change, tmp_path):
    assert graph_of(tmp_path, **change) == graph_of(tmp_path)


@pytest.mark.parametrize("change", [{"scale": 3.0}, {"shape": (3, 4)}, {"axis": 0}, {"target": (2, -1)}])
def test_constants_shapes_and_attributes_are_the_graph(change, tmp_path):
    assert graph_of(tmp_path, **change) != graph_of(tmp_path)


@pytest.mark.parametrize(
    ("change", "names", "same"),
    [({"scale": 1 / 127.5}, CLASSES, False), ({"width": 6}, CLASSES, False), ({}, ("x", "y", "z"), True)],
)
def test_another_network_has_another_graph_and_other_names_have_not(change, names, same, published, tmp_path):
    saved_model.write(network(**change), "softmax", names, tmp_path / "saved")
    to_onnx.write(tmp_path / "saved", tmp_path / "model.onnx")
    assert (to_onnx.graph_hash(tmp_path / "model.onnx") == published.graph) is same


# -- a model whose sums cancel -------------------------------------------------------------------------


def test_the_rounding_of_a_model_is_its_distance_to_float64():
    model = network()
    batches = [IMAGES[:4]]
    rounding = parity._rounding(model, batches, [model(batches[0]).numpy()])
    assert 0 < rounding < 1e-5
    assert parity._rounding(model, batches, [model(batches[0]).numpy() * 1.01]) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(("rounding", "good"), [(1e-6, False), (1e-4, True)])
def test_an_artifact_may_be_as_far_off_as_the_model_itself_is(rounding, good, tmp_path, monkeypatch):
    answer = parity.onnxruntime.outputs

    def slightly_off(folder, device):
        outputs = answer(folder, device)

        def shifted(images):
            found = outputs(images)
            return found | {"logits": found["logits"] * np.float32(1 + 1e-4)}

        return shifted

    monkeypatch.setattr(parity.onnxruntime, "outputs", slightly_off)
    monkeypatch.setattr(parity, "_rounding", lambda *args: rounding)
    if good:
        published = publish(network(), tmp_path)
        assert published.parity.tolerance == pytest.approx(4e-4) and published.parity.rounding == rounding
    else:
        with pytest.raises(ParityError, match=r"onnx 9\.99e-05, .* 1e-05 is allowed"):
            publish(network(), tmp_path)


# -- variants of the ONNX file -------------------------------------------------------------------------


def split(start, count, classes=3):
    images = np.random.default_rng(1).integers(0, 256, (120, 8, 8, 3), dtype=np.uint8)[start : start + count]
    return Split(images, np.arange(count, dtype=np.int32) % classes, [str(start + i) for i in range(count)])


DATA = Dataset(split(0, 60), split(60, 30), split(90, 30), CLASSES)


def publish_variants(exports, data=DATA):
    return exporting.publish(
        network(scale=1 / 64),
        name="tiny.output",
        activation="softmax",
        class_names=CLASSES,
        images=IMAGES,
        facts=FACTS,
        exports=exports,
        data=data,
        onnx_variants=exporting.VARIANTS,
    )


def test_the_variants(tmp_path, monkeypatch):
    seen = []
    int8 = variants.int8
    monkeypatch.setattr(variants, "int8", lambda *args: seen.append(args[2]) or int8(*args))
    found = publish_variants(tmp_path)
    assert {name: about["outcome"] for name, about in found.variants.items()} == dict.fromkeys(exporting.VARIANTS, "ok")
    assert found.variants["int8"]["calibration_images"] == 30 and found.variants["int8"]["images"] == 30
    assert np.array_equal(seen[0], DATA.train.images[np.linspace(0, 59, 30).astype(int)]), "training images alone"
    assert exporting.current(tmp_path, "tiny.output")["variants"] == found.variants
    labels = DATA.test.labels
    expected = float((network(scale=1 / 64)(DATA.test.images).numpy().argmax(axis=1) == labels).mean())
    assert found.accuracy["saved_model"] == found.accuracy["onnx_float32"] == pytest.approx(expected)
    assert found.accuracy.keys() == {"saved_model", "onnx_float32", "onnx_int8", "onnx_float16"}
    types = {name: {t.data_type for t in onnx.load(path).graph.initializer} for name, path in onnx_files(found).items()}
    assert TensorProto.INT8 in types["int8"] and TensorProto.FLOAT16 in types["float16"]
    assert TensorProto.INT8 not in types["float32"]
    for name in exporting.VARIANTS:
        answer = on_runtime.outputs(found.paths["onnx"], "cpu", variant=name)(IMAGES)
        assert {output: value.dtype.kind for output, value in answer.items()} == {
            "logits": "f", "probabilities": "f", "top_k_scores": "f", "top_k_classes": "O"
        }  # fmt: skip
        np.testing.assert_allclose(answer["probabilities"], probabilities(answer["logits"]), atol=1e-6)


def onnx_files(found):
    return {name: found.paths["onnx"] / about["file"] for name, about in found.variants.items()}


def test_variants_that_fail_are_left_out_and_the_others_published(tmp_path, monkeypatch):
    def ruin(source, target, images):
        proto = onnx.load(source)
        bias = next(t for t in proto.graph.initializer if list(t.dims) == [3] and t.data_type == TensorProto.FLOAT)
        bias.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 0, 1e6], np.float32), bias.name))
        onnx.save(proto, target)

    def fail(source, target):
        raise KeyError("an operator\nof another kind")

    monkeypatch.setattr(variants, "int8", ruin)
    monkeypatch.setattr(variants, "float16", fail)
    found = publish_variants(tmp_path)
    assert {name: about["outcome"] for name, about in found.variants.items()} == {
        "float32": "ok", "int8": "failed", "float16": "failed"
    }  # fmt: skip
    assert "the best class is that of float32 for" in found.variants["int8"]["reason"]
    assert found.variants["float16"]["reason"].startswith("KeyError: ")
    assert files(found.paths["onnx"]) == ["manifest.json", "model.onnx"]
    assert found.accuracy.keys() == {"saved_model", "onnx_float32"}


@pytest.mark.parametrize(("bias", "reason"), [(np.nan, "its logits are not finite"), (None, "AssertionError: ")])
def test_a_variant_that_overflows_or_fails_without_a_word_takes_no_other_with_it(bias, reason, tmp_path, monkeypatch):
    def ruin(source, target, images):
        if bias is None:
            raise AssertionError
        proto = onnx.load(source)
        found = next(t for t in proto.graph.initializer if list(t.dims) == [3] and t.data_type == TensorProto.FLOAT)
        found.CopyFrom(onnx.numpy_helper.from_array(np.full(3, bias, np.float32), found.name))
        onnx.save(proto, target)

    monkeypatch.setattr(variants, "int8", ruin)
    found = publish_variants(tmp_path)
    assert found.variants["float32"]["outcome"] == "ok" and found.variants["int8"]["reason"] == reason
    assert files(found.paths["onnx"])[-1] == "model.onnx"


def test_what_validates_on_test_images_is_judged_by_training_images():
    data = Dataset(DATA.train, DATA.test, DATA.test, CLASSES)
    calibration, judged = variants._parts(data)
    assert len(calibration) == len(judged.labels) == 30
    assert set(judged.keys) < set(DATA.train.keys)
    assert not {x.tobytes() for x in calibration} & {x.tobytes() for x in judged.images}


GOOD = np.eye(4, dtype=np.float32)[np.arange(200) % 4]
LABELS = np.arange(200) % 4


def worse(count, to=1):
    """The logits with the first `count` images in another class."""
    logits = GOOD.copy()
    logits[:count] = np.roll(logits[:count], to, axis=1)
    return logits


@pytest.mark.parametrize(
    ("name", "logits", "labels", "reason"),
    [
        ("int8", GOOD, LABELS, None),
        ("float16", GOOD, LABELS, None),
        ("int8", worse(3), LABELS, None),  # 0.015 lost, and 0.009 is the standard error
        ("int8", worse(5), LABELS, r"top-1 falls by 0.0250 ± 0.0110, 0.01 is allowed"),
        ("int8", worse(5), (LABELS + 2) % 4, None),  # wrong before and after
        ("int8", worse(21), (LABELS + 2) % 4, r"the best class is that of float32 for 0.895 of the images, not 0.9"),
        ("float16", GOOD * 1.001, LABELS, None),
        ("float16", GOOD * 1.003, LABELS, r"logits differ by 0.003 of the largest, 0.002 is allowed"),
        ("int8", GOOD * np.nan, LABELS, "its logits are not finite"),
    ],
)
def test_the_verdict_over_a_variant(name, logits, labels, reason):
    verdict = variants.judge(name, GOOD, logits, labels)
    assert verdict.images == 200
    if reason is None:
        assert verdict.reason is None
    else:
        assert re.fullmatch(reason, verdict.reason)
