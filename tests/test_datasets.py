"""Datasets made here, so small that every row can be checked; the real ones where a folder holds them."""

import collections
import dataclasses
import hashlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frostline import datasets
from frostline.errors import UserError
from frostline.studies import Data

CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}
RED, BLUE = (200, 30, 60), (20, 130, 240)


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Caches of the test's own, and a publisher that has nothing."""
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.delenv("FROSTLINE_DATA", raising=False)
    (tmp_path / "publisher").mkdir()
    monkeypatch.setattr(datasets, "PUBLISHER", (tmp_path / "publisher").as_uri() + "/")


# -- making data -----------------------------------------------------------------------------------


def batch(labels, key, seed):
    """A pickle of CIFAR: the first pixel's red is the label, the rest is noise."""
    rows = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    rows[:, 0] = labels
    return {b"data": rows, key: list(labels)}


def write_release(place, release, per_class=4, inside=""):
    """A small release under `place`; returns its folder."""
    classes = 10 if release is datasets.CIFAR10 else 100
    folder = place / inside / release.folder
    folder.mkdir(parents=True)
    for seed, name in enumerate((*release.train, release.test)):
        labels = np.random.default_rng(seed).permutation(classes * per_class) % classes
        content = batch(labels.tolist(), release.labels, seed)
        (folder / name).write_bytes(pickle.dumps(content, protocol=3))
    names = [f"class {n}".encode() for n in range(classes)]
    (folder / release.meta).write_bytes(pickle.dumps({release.names: names}, protocol=3))
    return folder


def pack(folder, archive):
    """Pack a release's folder as its publisher does, and remove it."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    shutil.rmtree(folder)
    return archive


def python2_pickle(rows, labels):
    """The bytes Python 2 and NumPy 1 wrote for the release: byte strings, and arrays under numpy.core."""
    n = len(rows).to_bytes(2, "little")
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01M" + n + b"M\x00\x0c\x86"
        b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + rows.nbytes.to_bytes(4, "little") + rows.tobytes() + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + numbers + b"u."


def picture(width=30, height=20):
    """Red above, blue below."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2], pixels[height // 2 :] = RED, BLUE
    return Image.fromarray(pixels)


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def write_folder(root, parts=("train", "test"), classes=("cats", "dogs"), count=5):
    """A folder of small PNG files, each of another grey."""
    for part in parts:
        for number, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                grey = Image.new("L", (4, 3), 20 * i + number)
                (root / part / name / f"{i}.png").write_bytes(encoded(grey, "PNG"))
    return root


def folder(root, **keys):
    return Data("image_folder", path=str(root), image_size=8, **keys)


def by_class(split):
    return collections.Counter(split.labels.tolist())


# -- every entry of the table ----------------------------------------------------------------------


@pytest.fixture
def task(request, tmp_path):
    """A small task of each dataset, under tmp_path."""
    if request.param in CIFAR_CLASSES:
        write_release(tmp_path, {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[request.param])
    if request.param == "image_folder":
        return folder(write_folder(tmp_path / "pets"))
    return Data(request.param)


each_dataset = pytest.mark.parametrize("task", datasets.DATASETS, indirect=True)


@each_dataset
def test_splits_are_sound(task, tmp_path):
    loaded = datasets.load(task, data_dir=tmp_path)
    splits = (loaded.train, loaded.validation, loaded.test)
    for split in splits:
        size = task.image_size or 32
        assert split.images.dtype == np.uint8 and split.images.shape == (len(split.labels), size, size, 3)
        assert split.images.flags.c_contiguous and split.labels.dtype == np.int32
        assert len(split.keys) == len(split.labels)
        assert set(split.labels.tolist()) == set(range(len(loaded.class_names)))
    keys = [key for split in splits for key in split.keys]
    assert len(set(keys)) == len(keys)


@each_dataset
def test_loading_twice_gives_the_same(task, tmp_path):
    first, second = (datasets.load(task, data_dir=tmp_path).train for _ in range(2))
    assert first.keys == second.keys and np.array_equal(first.images, second.images)


@each_dataset
def test_a_size_can_be_asked(task, tmp_path):
    loaded = datasets.load(dataclasses.replace(task, image_size=6), data_dir=tmp_path, limit=20)
    assert loaded.train.images.shape[1:] == loaded.test.images.shape[1:] == (6, 6, 3)


@each_dataset
def test_fingerprint_is_a_sha256_that_stays(task, tmp_path):
    first, second = (datasets.fingerprint(task, data_dir=tmp_path) for _ in range(2))
    assert first == second and len(first) == 64 and int(first, 16)


@each_dataset
def test_entry_has_a_summary(task):
    assert datasets.DATASETS[task.dataset].summary


def test_unknown_dataset():
    with pytest.raises(UserError, match="unknown dataset 'cifar1'; did you mean 'cifar10'"):
        datasets.load(Data("cifar1"))


def test_path_where_it_means_nothing():
    with pytest.raises(UserError, match="'digits' takes no path; --data-dir"):
        datasets.load(Data("digits", path="somewhere"))


def test_fingerprint_needs_no_numpy(tmp_path):
    code = (
        "import sys; from frostline import datasets; from frostline.studies import Data;"
        "print(datasets.fingerprint(Data('digits')));"
        "print([m for m in ('numpy', 'sklearn', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [datasets.fingerprint(Data("digits")), "[]"]


# -- protocols, classes, limits --------------------------------------------------------------------


def test_clean_holds_a_share_of_every_class_out_of_train():
    loaded = datasets.load(Data("digits", validation=0.25))
    train, validation = by_class(loaded.train), by_class(loaded.validation)
    assert all(abs(validation[c] / (validation[c] + train[c]) - 0.25) < 0.01 for c in range(10))


def test_document_validates_on_test_and_trains_on_all_of_train():
    clean, document = datasets.load(Data("digits")), datasets.load(Data("digits", protocol="document"))
    assert document.validation is document.test
    assert document.test.keys == clean.test.keys
    assert sorted(document.train.keys) == sorted(clean.train.keys + clean.validation.keys)


def test_split_seed_moves_validation_and_not_test():
    first, second = datasets.load(Data("digits")), datasets.load(Data("digits", split_seed=1))
    assert first.validation.keys != second.validation.keys and first.test.keys == second.test.keys


def test_held_out_images_do_not_depend_on_the_classes():
    every, some = datasets.load(Data("digits")), datasets.load(Data("digits", classes=(7, 2)))
    held_out = zip(every.validation.keys, every.validation.labels, strict=True)
    assert set(some.validation.keys) == {key for key, label in held_out if label in (2, 7)}


def test_classes_are_numbered_in_the_order_given(tmp_path):
    write_release(tmp_path, datasets.CIFAR10)
    loaded = datasets.load(Data("cifar10", classes=(7, "class 2", 5)), data_dir=tmp_path)
    assert loaded.class_names == ("class 7", "class 2", "class 5")
    for split in (loaded.train, loaded.validation, loaded.test):
        assert np.array_equal(split.images[:, 0, 0, 0], np.array([7, 2, 5])[split.labels])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((0, 10), "unknown class 10 of digits; they are numbered 0 to 9"),
        (("0", "tree"), "unknown class 'tree' of digits; there are: 0, 1"),
        ((3, "3"), "one is listed twice, by number and by name"),
        ((3,), "1 class is nothing to tell apart"),
    ],
)
def test_bad_classes(classes, message):
    with pytest.raises(UserError, match=message):
        datasets.load(Data("digits", classes=classes))


def test_a_part_without_an_image_is_an_error(tmp_path):
    root = write_folder(tmp_path / "pets", count=1)
    with pytest.raises(UserError, match="no image is left in validation; change classes or validation"):
        datasets.load(folder(root))


def test_limits_are_equal_per_class_and_nested():
    small, large = (datasets.load(Data("digits", classes=(0, 1, 2)), limit=n) for n in (10, 90))
    assert sorted(by_class(small.train).values()) == [3, 3, 4]
    assert set(by_class(large.train).values()) == {30}
    assert set(small.train.keys) < set(large.train.keys)
    assert len(small.validation.keys) == len(small.test.keys) == 10
    assert large.train.keys == sorted(large.train.keys)


def test_a_limit_takes_more_of_a_class_where_another_has_no_more(tmp_path):
    root = write_folder(tmp_path / "pets", count=3)
    for i in range(3, 9):
        (root / "train" / "dogs" / f"{i}.png").write_bytes(encoded(picture(), "PNG"))
    loaded = datasets.load(folder(root, protocol="document"), limit=8)
    assert by_class(loaded.train) == {0: 3, 1: 5}


def test_a_limit_below_one_is_refused():
    with pytest.raises(UserError, match="a limit of 0 leaves no image"):
        datasets.load(Data("digits"), limit=0)


def test_parts_of_the_training_images_are_nested_and_equal_per_class():
    data = Data("digits", classes=(0, 1, 2))
    whole = datasets.load(data)
    parts = [datasets.part(whole, dataclasses.replace(data, train_images=(n,))) for n in (9, 60)]
    for rows, part in parts:
        assert set(by_class(part.train).values()) == {len(rows) // 3}
        assert np.array_equal(part.train.images, whole.train.images[rows])
        assert part.train.keys == [whole.train.keys[row] for row in rows]
        assert part.test is whole.test and part.validation is whole.validation
    assert set(parts[0][0]) < set(parts[1][0])
    assert datasets.part(whole, data) == (None, whole)
    with pytest.raises(UserError, match=r"train_images = 5000: there are \d+; give a smaller number, or .all."):
        datasets.part(whole, dataclasses.replace(data, train_images=(5000,)))


# -- digits ----------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    loaded, theirs = datasets.load(Data("digits", image_size=8, protocol="document")), load_digits()
    rows = [int(key.split("/")[1]) for key in loaded.test.keys]
    assert np.array_equal(loaded.test.labels, theirs.target[rows])
    assert np.array_equal(loaded.test.images[..., 0], np.rint(theirs.images[rows] * 255 / 16))
    assert len(loaded.train.keys) + len(rows) == 1797
    assert rows[:5] == [4, 6, 20, 24, 28], "another test set makes every earlier number incomparable"


# -- CIFAR -----------------------------------------------------------------------------------------


def test_rows_keys_and_labels_belong_together(tmp_path):
    source = write_release(tmp_path, datasets.CIFAR10)
    loaded = datasets.load(Data("cifar10", protocol="document"), data_dir=tmp_path)
    second = pickle.loads((source / "data_batch_2").read_bytes())
    assert loaded.train.keys[40:42] == ["train/00040", "train/00041"] and len(loaded.train.keys) == 200
    assert np.array_equal(loaded.train.images[41].transpose(2, 0, 1).ravel(), second[b"data"][1])
    assert loaded.train.labels[41] == second[b"labels"][1]


def test_a_pickle_of_python_2_is_read(tmp_path):
    source = write_release(tmp_path, datasets.CIFAR10)
    rows = np.random.default_rng(0).integers(0, 256, (300, 3072), dtype=np.uint8)
    labels = [i % 10 for i in range(300)]
    (source / "test_batch").write_bytes(python2_pickle(rows, labels))
    test = datasets.load(Data("cifar10"), data_dir=tmp_path).test
    assert test.labels.tolist() == labels
    assert np.array_equal(test.images.transpose(0, 3, 1, 2).reshape(300, -1), rows)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickles_of_python_3_are_read(tmp_path, protocol):
    source = write_release(tmp_path, datasets.CIFAR10)
    content = batch([0, 1, 2, 3], b"labels", 5)
    (source / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
    test = datasets.load(Data("cifar10"), data_dir=tmp_path).test
    assert np.array_equal(test.images.transpose(0, 3, 1, 2).reshape(4, -1), content[b"data"])


def test_places_are_tried_in_order(tmp_path, monkeypatch):
    given, environment, keras, own = (tmp_path / n for n in ("given", "environment", "keras", "cache"))
    monkeypatch.setenv("FROSTLINE_DATA", str(environment))
    with pytest.raises(UserError, match=r"--data-dir: there is no folder .*given"):
        datasets.load(Data("cifar10"), data_dir=given)
    given.mkdir()
    with pytest.raises(UserError, match=r"FROSTLINE_DATA: there is no folder .*environment"):
        datasets.load(Data("cifar10"), data_dir=given)
    environment.mkdir()
    target = "datasets/cifar-10-batches-py-target"
    last_to_first = ((own, "datasets"), (keras, target), (environment, ""), (given, ""))
    for count, (place, inside) in enumerate(last_to_first, 1):
        write_release(place, datasets.CIFAR10, per_class=count, inside=inside)
        assert len(datasets.load(Data("cifar10"), data_dir=given).test.labels) == 10 * count


@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "cifar-10-batches-py-target_archive"])
def test_an_archive_is_unpacked_once(tmp_path, monkeypatch, name):
    plain = write_release(tmp_path, datasets.CIFAR10)
    expected = datasets.fingerprint(Data("cifar10"), data_dir=tmp_path)
    pack(plain, tmp_path / "packed" / name)
    assert datasets.fingerprint(Data("cifar10"), data_dir=tmp_path / "packed") == expected
    monkeypatch.setattr(tarfile, "open", None)
    assert datasets.fingerprint(Data("cifar10"), data_dir=tmp_path / "packed") == expected


def test_another_archive_of_the_same_name_is_not_mistaken(tmp_path):
    for count in (1, 2):
        place = tmp_path / str(count)
        pack(write_release(place, datasets.CIFAR10, per_class=count), place / datasets.CIFAR10.archive)
        assert len(datasets.load(Data("cifar10"), data_dir=place).test.labels) == 10 * count


def use_publisher(tmp_path, monkeypatch, sha256=None):
    """Let the publisher have a small release; its hash unless another is given."""
    source = write_release(tmp_path, datasets.CIFAR10)
    archive = pack(source, tmp_path / "publisher" / datasets.CIFAR10.archive)
    sha256 = sha256 or hashlib.sha256(archive.read_bytes()).hexdigest()
    files = partial(datasets._release_files, dataclasses.replace(datasets.CIFAR10, sha256=sha256))
    entry = dataclasses.replace(datasets.DATASETS["cifar10"], files=files)
    monkeypatch.setitem(datasets.DATASETS, "cifar10", entry)
    return archive


def test_a_download_is_checked_reported_and_kept(tmp_path, monkeypatch):
    archive = use_publisher(tmp_path, monkeypatch)
    size, told = archive.stat().st_size, []
    loaded = datasets.load(Data("cifar10"), report=lambda *seen: told.append(seen))
    assert told[-1] == ("cifar-10-python.tar.gz", size, size)
    archive.unlink()
    assert datasets.load(Data("cifar10")).test.keys == loaded.test.keys


def test_a_wrong_download_is_refused_and_not_kept(tmp_path, monkeypatch):
    use_publisher(tmp_path, monkeypatch, sha256="0" * 64)
    with pytest.raises(UserError, match=r"SHA-256 is wrong; try again, or put it into .*cache/datasets"):
        datasets.load(Data("cifar10"))
    assert list((tmp_path / "cache" / "datasets").iterdir()) == []


def test_no_download_says_what_to_do(tmp_path):
    message = r"no cifar-100-python.tar.gz here, and none from .*publisher.*cache/datasets.*--data-dir"
    with pytest.raises(UserError, match=message):
        datasets.load(Data("cifar100"), data_dir=tmp_path)


def test_a_folder_that_lacks_a_file_is_named(tmp_path):
    (write_release(tmp_path, datasets.CIFAR10) / "data_batch_3").unlink()
    with pytest.raises(UserError, match="cifar-10-batches-py lacks data_batch_3; unpack"):
        datasets.load(Data("cifar10"), data_dir=tmp_path)


class Command:
    """Pickles as a call of a shell."""

    def __reduce__(self):
        return os.system, ("true",)


def cifar(data, labels):
    return pickle.dumps({b"data": data, b"labels": labels}, protocol=3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Ran out of input"),
        (b"<html>not found</html>", "."),
        (pickle.dumps(batch([0, 1], b"labels", 0))[:4000], "."),
        (pickle.dumps({b"data": Command()}), r"it asks for (posix|nt)\.system"),
        (pickle.dumps([1, 2]), "it holds a list, not a dict"),
        (cifar(np.zeros((2, 3072)), [0, 1]), r"data is not uint8 \[N, 3072\]"),
        (cifar(np.zeros((2, 99), np.uint8), [0, 1]), r"data is not uint8 \[N, 3072\]"),
        (cifar(np.zeros((2, 3072), np.uint8), [0]), "labels is not a list of 2"),
        (cifar(np.zeros((2, 3072), np.uint8), [0, 10]), "label 10 is none of 0 to 9"),
    ],
    ids=["empty", "html", "truncated", "command", "list", "float", "width", "length", "range"],
)
def test_a_bad_pickle_is_one_line_that_names_it(tmp_path, content, reason):
    (write_release(tmp_path, datasets.CIFAR10) / "data_batch_4").write_bytes(content)
    message = f"data_batch_4 is damaged, or not a file of CIFAR: .*{reason}.*; remove or replace"
    with pytest.raises(UserError, match=message) as caught:
        datasets.load(Data("cifar10"), data_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_bad_class_names_are_refused(tmp_path):
    meta = write_release(tmp_path, datasets.CIFAR100) / "meta"
    meta.write_bytes(pickle.dumps({b"fine_label_names": "abc"}))
    with pytest.raises(UserError, match=r"meta is damaged, or .*: fine_label_names is no list of names"):
        datasets.load(Data("cifar100"), data_dir=tmp_path)


def linked_archive(archive):
    """An archive in which one of the files is a link to a file outside."""
    with tarfile.open(archive, "w:gz") as tar:
        for name in datasets._pickles(datasets.CIFAR10):
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(member)


def foreign_archive(archive):
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../../outside"))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (linked_archive, "data_batch_1 is not a file"),
        (foreign_archive, "data_batch_1' not found"),
        (lambda archive: archive.write_bytes(b""), "."),
        (lambda archive: archive.write_bytes(b"<html>"), "not a gzip file"),
        (lambda archive: archive.write_bytes(archive.read_bytes()[:30_000]), "."),
    ],
    ids=["links", "foreign", "empty", "html", "truncated"],
)
def test_a_bad_archive_is_one_line_that_names_it(tmp_path, write, reason):
    archive = pack(write_release(tmp_path, datasets.CIFAR10), tmp_path / "cifar-10-python.tar.gz")
    write(archive)
    message = f"cifar-10-python.tar.gz is damaged, or not cifar-10.*: .*{reason}.*; remove or replace"
    with pytest.raises(UserError, match=message):
        datasets.load(Data("cifar10"), data_dir=tmp_path)
    assert list((tmp_path / "cache" / "datasets").iterdir()) == []


# -- decoding --------------------------------------------------------------------------------------


def translucent():
    image = picture().convert("RGBA")
    image.putalpha(100)
    return image


@pytest.mark.parametrize(
    "content",
    [
        encoded(picture(), "JPEG", quality=95),
        encoded(picture(), "JPEG", progressive=True),
        encoded(picture().convert("L"), "JPEG"),
        encoded(picture().convert("CMYK"), "JPEG", quality=95),
        encoded(picture(), "PNG"),
        encoded(picture().convert("L"), "PNG"),
        encoded(picture().convert("LA"), "PNG"),
        encoded(picture().convert("1"), "PNG"),
        encoded(picture().convert("P"), "PNG"),
        encoded(translucent(), "PNG"),
        encoded(picture(), "BMP"),
        encoded(picture().convert("L"), "BMP"),
        encoded(translucent(), "BMP"),
        encoded(picture().convert("P"), "GIF"),
    ],
    ids=[
        "jpeg",
        "progressive",
        "grey",
        "cmyk",
        "png",
        "png-grey",
        "png-grey-alpha",
        "png-bit",
        "png-palette",
        "png-alpha",
        "bmp",
        "bmp-grey",
        "bmp-alpha",
        "gif",
    ],
)
def test_every_kind_of_file_is_decoded_as_pillow_does(content):
    image = Image.open(io.BytesIO(content))
    theirs = np.asarray(image.convert("RGB").resize((10, 10), Image.Resampling.BILINEAR), int)
    ours = datasets.decode(content, 10).numpy()
    assert ours.dtype == np.uint8 and ours.shape == (10, 10, 3)
    assert np.abs(ours - theirs).max() <= (8 if image.format == "JPEG" else 1), "JPEG decoders may differ"


def test_a_moving_gif_is_its_first_frame():
    frames = [Image.new("RGB", (6, 6), colour).convert("P") for colour in (RED, BLUE)]
    still = encoded(frames[0], "GIF")
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert len(moving) > len(still)
    assert np.array_equal(datasets.decode(moving, 4), datasets.decode(still, 4))


def rows_of_grey(*values):
    return encoded(Image.fromarray(np.repeat(np.array(values, np.uint8)[:, None], 8, axis=1)), "PNG")


def test_decode_averages_where_it_shrinks():
    small = datasets.decode(rows_of_grey(0, 255, 255, 0, 0, 255, 255, 0), 2).numpy()
    assert small.max() < 200, "without antialias the dark rows are not looked at, and all is 255"


def test_decode_rounds():
    large = datasets.decode(rows_of_grey(0, 3), 4).numpy()
    assert large[:, 0, 0].tolist() == [0, 1, 2, 3], "the exact values are 0, 0.75, 2.25 and 3"


def test_decode_can_be_traced():
    import tensorflow as tf

    scalar = tf.TensorSpec([], tf.string)
    traced = tf.function(lambda raw: datasets.decode(raw, 5), input_signature=[scalar])
    assert traced.get_concrete_function().structured_outputs.shape == (5, 5, 3)
    for kind in ("PNG", "GIF", "JPEG", "BMP"):
        content = encoded(picture(), kind)
        assert np.array_equal(traced(content), datasets.decode(content, 5))


# -- folders of images -----------------------------------------------------------------------------


def test_a_folder_with_parts(tmp_path):
    root = write_folder(tmp_path / "pets", parts=("train", "validation", "test"), count=3)
    loaded = datasets.load(folder(root))
    assert loaded.class_names == ("cats", "dogs")
    assert loaded.train.keys[2:4] == ["train/cats/2.png", "train/dogs/0.png"]
    assert len(loaded.train.keys) == 6, "a validation of its own leaves train whole"
    assert {key.split("/")[0] for key in loaded.validation.keys} == {"validation"}
    assert loaded.train.images[3, 0, 0].tolist() == [1, 1, 1]


def test_a_folder_without_parts_tests_a_fifth(tmp_path):
    root = write_folder(tmp_path / "pets", parts=("",), count=10)
    loaded = datasets.load(folder(root, protocol="document"))
    assert by_class(loaded.test) == {0: 2, 1: 2} and by_class(loaded.train) == {0: 8, 1: 8}
    assert loaded.train.keys[0].startswith("cats/")


def test_the_path_may_be_relative(tmp_path, monkeypatch):
    write_folder(tmp_path / "data" / "pets")
    relative = Data("image_folder", path="pets", image_size=8)
    found = datasets.fingerprint(relative, data_dir=tmp_path / "data")
    monkeypatch.setenv("FROSTLINE_DATA", str(tmp_path / "data"))
    assert datasets.fingerprint(relative, data_dir=tmp_path) == found
    monkeypatch.delenv("FROSTLINE_DATA")
    with pytest.raises(UserError, match=r"no folder .*pets; mend path, or give --data-dir"):
        datasets.fingerprint(relative)
    monkeypatch.chdir(tmp_path / "data")
    assert datasets.fingerprint(relative) == found


def test_what_is_hidden_or_no_image_does_not_count(tmp_path):
    root = write_folder(tmp_path / "pets")
    before = datasets.fingerprint(folder(root))
    (root / ".cache").mkdir()
    (root / "train" / "cats" / "._0.png").write_bytes(b"x")
    (root / "train" / "cats" / "notes.txt").write_bytes(b"x")
    assert datasets.fingerprint(folder(root)) == before


def test_the_fingerprint_sees_names_and_bytes(tmp_path):
    root = write_folder(tmp_path / "pets")
    seen = {datasets.fingerprint(folder(root))}
    image = root / "train" / "cats" / "0.png"
    image.write_bytes(encoded(picture(), "PNG"))
    seen.add(datasets.fingerprint(folder(root)))
    image.rename(image.with_name("00.png"))
    seen.add(datasets.fingerprint(folder(root)))
    assert len(seen) == 3


def test_all_broken_images_are_named_and_nothing_is_kept(tmp_path):
    cats = write_folder(tmp_path / "pets") / "train" / "cats"
    for kind in ("JPEG", "PNG", "BMP", "GIF"):
        whole = encoded(picture(), kind)
        (cats / f"cut.{kind}").write_bytes(whole[: len(whole) // 2])
    (cats / "empty.jpg").write_bytes(b"")
    (cats / "text.jpg").write_bytes(b"no image")
    (cats / "palette.bmp").write_bytes(encoded(picture().convert("P"), "BMP"))
    with pytest.raises(UserError, match=r"^7 of 27 images cannot be used; remove or replace these") as caught:
        datasets.load(folder(cats.parents[1]))
    for name in ("cut.JPEG", "cut.PNG", "cut.BMP", "cut.GIF", "text.jpg"):
        assert f"train/cats/{name} (corrupt, truncated or no image)" in str(caught.value)
    assert "train/cats/empty.jpg (empty)" in str(caught.value)
    assert "train/cats/palette.bmp (a BMP with a palette; save it as PNG)" in str(caught.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize("link", ["train/cats/out.jpg", "train/more", "train/cats/gone.jpg"])
def test_a_link_that_leaves_the_folder_is_refused(tmp_path, link):
    root = write_folder(tmp_path / "pets")
    (root / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{link} is a link that leaves .*pets; put a copy"):
        datasets.fingerprint(folder(root))


def test_a_link_within_the_folder_is_followed(tmp_path):
    root = write_folder(tmp_path / "pets")
    (root / "train" / "cats" / "again.png").symlink_to(root / "train" / "cats" / "0.png")
    assert "train/cats/again.png" in datasets.load(folder(root, protocol="document")).train.keys


def test_a_link_to_nothing_is_an_error(tmp_path):
    root = write_folder(tmp_path / "pets")
    (root / "train" / "cats" / "gone.png").symlink_to(root / "nowhere")
    with pytest.raises(UserError, match=r"image_folder: .*gone\.png"):
        datasets.load(folder(root))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "val").mkdir(), "val is no part of the data; there are: train, validation"),
        (lambda root: (root / "test").rename(root / ".test"), "has train but no test"),
        (lambda root: (root / "test" / "birds").mkdir(), "class 'birds' is in only one of train and test"),
        (lambda root: [path.unlink() for path in (root / "train" / "cats").iterdir()], "cats has no image"),
        (lambda root: shutil.rmtree(root) or root.mkdir(), "no folders of classes"),
    ],
    ids=["part", "test", "class", "images", "nothing"],
)
def test_a_folder_of_another_form_is_explained(tmp_path, change, message):
    root = write_folder(tmp_path / "pets")
    change(root)
    with pytest.raises(UserError, match=message):
        datasets.load(folder(root))


def test_a_folder_needs_a_path():
    with pytest.raises(UserError, match="'image_folder' needs the folder of the images: path"):
        datasets.load(Data("image_folder"))


def test_images_are_decoded_once_per_size(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "pets")
    expected = datasets.load(folder(root)).train.images
    monkeypatch.setattr(datasets, "decode_one", lambda source, size: "decoded again")
    assert np.array_equal(datasets.load(folder(root)).train.images, expected)
    with pytest.raises(UserError, match="decoded again"):
        datasets.load(dataclasses.replace(folder(root), image_size=9))


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:-1],
        lambda whole: b"PK" + whole[2:],
        lambda whole: whole.replace(b"|u1", b"|i1"),
        lambda whole: whole.replace(b"(20, 8, 8, 3)", b"(10, 8, 8, 6)"),
    ],
    ids=["empty", "short", "magic", "dtype", "shape"],
)
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    root = write_folder(tmp_path / "pets")
    expected = datasets.load(folder(root)).train.images
    [kept] = (tmp_path / "cache" / "images").iterdir()
    whole = kept.read_bytes()
    assert damage(whole) != whole
    kept.write_bytes(damage(whole))
    assert np.array_equal(datasets.load(folder(root)).train.images, expected)
    assert kept.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_explained(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"image_folder: .*file.*FROSTLINE_CACHE names another"):
        datasets.load(folder(write_folder(tmp_path / "pets")))


# -- the real ones ---------------------------------------------------------------------------------


@pytest.fixture
def real():
    where = os.environ.get("FROSTLINE_REAL_DATA")
    if not where:
        pytest.skip("FROSTLINE_REAL_DATA names no folder with the real data")
    return Path(where)


@pytest.mark.real_data
@pytest.mark.parametrize("name", CIFAR_CLASSES)
def test_real_cifar(real, name):
    loaded = datasets.load(Data(name, protocol="document"), data_dir=real)
    assert len(loaded.class_names) == CIFAR_CLASSES[name]
    for split in (loaded.train, loaded.test):
        assert len(set(by_class(split).values())) == 1, "as many of each class"
        assert 80 < split.images.mean() < 160
    assert len(loaded.train.labels) == 5 * len(loaded.test.labels)


@pytest.mark.real_data
def test_real_photographs(real):
    loaded = datasets.load(Data("image_folder", path="cats_and_dogs", image_size=32), data_dir=real)
    assert loaded.class_names == ("cats", "dogs")
    assert [by_class(split)[0] for split in (loaded.train, loaded.validation, loaded.test)] == [900, 100, 500]
    sample = real / "cats_and_dogs" / loaded.test.keys[7]
    assert np.array_equal(loaded.test.images[7], datasets.decode(sample.read_bytes(), 32))
