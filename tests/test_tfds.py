"""Sets of TensorFlow Datasets: made here by that library's own builder, where it is installed."""

import importlib.machinery
import sys
import types

import numpy as np
import pytest

from frostline import datasets, tfds
from frostline.errors import UserError
from frostline.studies import Data, Splits

ONE = "import pathlib, sys; f = pathlib.Path(sys.argv[2], sys.argv[1], '{}1.0.0'); f.mkdir(parents=True); "
ONE += "(f / 'dataset_info.json').touch()"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Where the library keeps its sets, and our cache."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "home"


@pytest.fixture
def installed(monkeypatch):
    """The library is there, whether it is or not; nothing of it is called."""
    stub = types.ModuleType("tensorflow_datasets")
    stub.__spec__ = importlib.machinery.ModuleSpec("tensorflow_datasets", None)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", stub)


def write(folder):
    folder.mkdir(parents=True)
    for name in ("dataset_info.json", "pets-train.tfrecord-00000-of-00001"):
        (folder / name).touch()


# -- finding ---------------------------------------------------------------------------------------


def test_without_the_library_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"not installed; type: pip install 'frostline\[tfds\]'"):
        datasets.fingerprint(Data("tfds:pets"))


def test_the_newest_version_of_the_first_place_is_taken(installed, home, tmp_path):
    for version in ("1.9.0", "1.10.0", "1.2.0", "incomplete.1.11.0"):
        write(tmp_path / "data" / "pets" / version)
    write(home / "pets" / "2.0.0")
    found = tfds.files("pets", [tmp_path / "nothing", tmp_path / "data"], None)
    assert found == [(path.name, path) for path in sorted((tmp_path / "data" / "pets" / "1.10.0").iterdir())]
    assert tfds.files("pets", [], None)[0][1].parent == home / "pets" / "2.0.0"


def test_a_set_that_is_not_there_is_prepared_by_the_library(installed, home, monkeypatch):
    told = []
    monkeypatch.setattr(tfds, "PREPARE", ONE.format(""))
    found = tfds.files("pets/small", [], lambda *event: told.append(event))
    assert [path.parent for _, path in found] == [home / "pets" / "small" / "1.0.0"] and told == [("pets/small", 0, 0)]
    monkeypatch.setattr(tfds, "PREPARE", ONE.format("small/"))
    with pytest.raises(UserError, match="tfds:birds has several configurations; name one: tfds:birds/CONFIG"):
        tfds.files("birds", [], None)


def test_a_set_that_cannot_be_prepared_says_why(installed, home, monkeypatch):
    monkeypatch.setattr(tfds, "PREPARE", "raise ValueError('no such set\\nthere are many')")
    with pytest.raises(UserError, match=r"tfds:pets is not in .*home and could not .*: ValueError: no such set$"):
        tfds.files("pets", [], None)


def test_other_datasets_take_no_splits():
    with pytest.raises(UserError, match="'digits' takes no splits; it has its own"):
        datasets.load(Data("digits", splits=Splits()))


# -- reading ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """A set of 20 + 4 photographs of several sizes, whose grey value is their number, and one without labels."""
    library = pytest.importorskip("tensorflow_datasets", reason="needs the extra `tfds`")
    features = library.features.FeaturesDict
    image, label = library.features.Image(shape=(None, None, 3)), library.features.ClassLabel(names=["cat", "dog"])

    class Toys(library.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = library.core.Version("1.0.0")
        FEATURES = features({"image": image, "label": label})

        def _info(self):
            return library.core.DatasetInfo(builder=self, features=self.FEATURES)

        def _split_generators(self, manager):
            return {"train": self._generate_examples(0, 20), "test": self._generate_examples(100, 104)}

        def _generate_examples(self, first, last):
            for number in range(first, last):
                values = {"image": np.full((8 + number % 3, 8, 3), number, np.uint8), "label": number % 2}
                yield number, {key: values[key] for key in self.FEATURES}

    class Unlabelled(Toys, skip_registration=True):
        FEATURES = features({"image": image})

    class Hidden(Toys, skip_registration=True):
        """As sets are whose test labels are kept secret."""

        def _generate_examples(self, first, last):
            for number, values in super()._generate_examples(first, last):
                yield number, values | {"label": -1 if first else values["label"]}

    folder = tmp_path_factory.mktemp("toys")
    for each in (Toys, Unlabelled, Hidden):
        each(data_dir=folder).download_and_prepare()
    return folder


def test_a_set_is_read_part_by_part(toys):
    slices = Splits(train="train[:50%]", validation="train[50%:]", test="test")
    loaded = datasets.load(Data("tfds:toys", splits=slices, image_size=8), data_dir=toys)
    splits = (loaded.train, loaded.validation, loaded.test)
    assert [len(split.labels) for split in splits] == [10, 10, 4] and loaded.class_names == ("cat", "dog")
    for split in splits:
        grey = split.images[:, 0, 0, 0].astype(int)
        assert np.array_equal(split.images, np.broadcast_to(grey[:, None, None, None], split.images.shape))
        assert np.array_equal(grey % 2, split.labels), "each image has its own label"
    assert sorted(loaded.test.images[:, 0, 0, 0]) == [100, 101, 102, 103]
    keys = [key for split in splits for key in split.keys]
    assert len(set(keys)) == 24 and all("tfrecord" in key for key in keys)
    again = datasets.load(Data("tfds:toys", splits=slices, image_size=8), data_dir=toys)
    assert np.array_equal(again.train.images, loaded.train.images)
    other = datasets.load(Data("tfds:toys", image_size=8), data_dir=toys)
    assert [len(split.labels) for split in (other.train, other.validation, other.test)] == [18, 2, 4]


@pytest.mark.parametrize(
    ("name", "splits", "message"),
    [
        ("toys", Splits(train="train[:60%]", test="train[50%:]"), "share images; give splits that lie apart"),
        ("toys", Splits(train="trian"), r"Unknown split 'trian'.*'test'.* Write such as splits = \{ test ="),
        ("toys", Splits(train="train[:60"), "Error parsing split"),
        ("hidden", Splits(), 'images of test = "test" have no label; give other splits'),
        ("unlabelled", Splits(), "is no image classification: it has image, not image and label"),
    ],
)
def test_what_cannot_be_read_is_named(toys, name, splits, message):
    with pytest.raises(UserError, match=message):
        datasets.load(Data(f"tfds:{name}", splits=splits, image_size=8), data_dir=toys)
