"""Images and labels of a task: found or downloaded, checked, split; and the one decoder of image files."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import http.client
import importlib.util
import io
import os
import pickle
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool  # its exit drops the waiting work, so that Ctrl-C is heard
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from frostline import machine, tfds
from frostline.errors import UserError, lookup, nearest
from frostline.studies import TFDS, Data, Splits

if TYPE_CHECKING:
    import numpy as np

PUBLISHER = "https://www.cs.toronto.edu/~kriz/"
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
PARTS = ("train", "validation", "test")
TEST_SHARE = 0.2
TEST_SEED = 20  # not the study's split_seed: a test set that moves with it could not be compared
DECODER = 1  # counted up when `decode` changes, so that no cached pixel outlives it

Report = Callable[[str, int, int], None]
Files = list[tuple[str, Path]]
Encoded = Sequence[tuple[str, Path | bytes]]  # images by their keys, in files or as bytes


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, H, W, 3], labels int32 [N], and a stable, unique key for each image."""

    images: np.ndarray
    labels: np.ndarray
    keys: list[str]


@dataclass(frozen=True)
class Dataset:
    """The three splits, each in the order of its source, and the names of classes 0, 1, 2, …"""

    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """All that a dataset holds: images uint8 [N, H, W, 3], labels int [N], and which rows make which part."""

    images: np.ndarray
    labels: np.ndarray
    keys: list[str]
    class_names: list[str]
    rows: dict[str, np.ndarray]


@dataclass(frozen=True)
class Entry:
    """A dataset: how its files are found, without NumPy, and how they are read for a size of image."""

    summary: str
    files: Callable[[Data, list[Path], Report | None], Files]
    read: Callable[[Files, int], Source]
    image_size: int = 32
    needs_path: bool = False


def load(
    data: Data, *, data_dir: Path | None = None, limit: int | None = None, report: Report | None = None
) -> Dataset:
    """The splits of a task, each of at most `limit` images in equal parts per class; raises UserError.

    `report` hears of a download: the file's name, bytes done, bytes in all (0 where not known).
    """
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} leaves no image; give at least 1")
    entry, files = _found(data, data_dir, report)
    size = data.image_size or entry.image_size
    with _explained(data):
        source = entry.read(files, size)
    chosen = _chosen(data, source.class_names)
    labels = _renumbered(source, chosen)
    splits = {}
    for part, rows in _parts(data, source).items():
        rows = rows[labels[rows] >= 0]
        if not len(rows):
            raise UserError(f"{data.dataset}: no image is left in {part}; change classes or validation")
        if limit is not None:
            rows = _limited(labels, rows, limit, data.split_seed)
        keys = [source.keys[row] for row in rows]
        splits[part] = Split(_resized(source.images[rows], size), labels[rows], keys)
    names = tuple(source.class_names[number] for number in chosen)
    return Dataset(splits["train"], splits.get("validation", splits["test"]), splits["test"], names)


def part(dataset: Dataset, data: Data) -> tuple[np.ndarray | None, Dataset]:
    """The dataset with the training images that `data.train_images` leaves, and their rows (None: all).

    Dealt out class by class, a smaller number being a part of a larger one. Raises UserError where there are too few.
    """
    import numpy as np

    (wanted,) = data.train_images
    train = dataset.train
    if isinstance(wanted, str):
        return None, dataset
    if wanted > len(train.labels):
        raise UserError(f'train_images = {wanted}: there are {len(train.labels)}; give a smaller number, or "all"')
    rows = _limited(train.labels, np.arange(len(train.labels)), wanted, data.split_seed)
    keys = [train.keys[row] for row in rows]
    return rows, dataclasses.replace(dataset, train=Split(train.images[rows], train.labels[rows], keys))


def fingerprint(data: Data, *, data_dir: Path | None = None, report: Report | None = None) -> str:
    """Hex SHA-256 over names and bytes of the source files, found as `load` finds them; raises UserError."""
    _, files = _found(data, data_dir, report)
    with _explained(data):
        return _digest(files)


def check_unchanged(data: Data, expected: str, model: str, *, data_dir: Path | None = None) -> None:
    """Refuse source files whose fingerprint is not the one a model was trained on; raises UserError."""
    if fingerprint(data, data_dir=data_dir) != expected:
        raise UserError(
            f"the images of {data.dataset} are not those that {model} was trained on; give the --data-dir that holds "
            "them as they were, or run the study again"
        )


def decode(image_bytes: Any, size: int) -> Any:
    """A string tensor with a JPEG, PNG, BMP or GIF (its first frame) -> uint8 [size, size, 3].

    Alpha is dropped, and a camera's orientation tag is not applied. All of it is TensorFlow's operations, so
    that a served model can trace it and see what training saw.
    """
    import tensorflow as tf

    return _resize(tf.io.decode_image(image_bytes, channels=3, expand_animations=False), size)


# -- choosing images -------------------------------------------------------------------------------


def _parts(data: Data, source: Source) -> dict[str, np.ndarray]:
    """Rows of train, test and, where the protocol has one of its own, validation."""
    if data.protocol == "document":
        return {part: source.rows[part] for part in ("train", "test")}
    if "validation" in source.rows:
        return source.rows
    # Before classes are chosen, so that an image held out of one task is never trained on in another.
    train, validation = _held_out(source.labels, source.rows["train"], data.validation, data.split_seed)
    return {"train": train, "validation": validation, "test": source.rows["test"]}


def _chosen(data: Data, names: list[str]) -> list[int]:
    """Numbers of the classes in the order asked; raises UserError for an unknown one or fewer than two."""
    asked = range(len(names)) if data.classes is None else data.classes
    chosen = [_number(data, one, names) for one in asked]
    if len(set(chosen)) < len(chosen):
        raise UserError(f"classes = {list(asked)}: one is listed twice, by number and by name")
    if len(chosen) < 2:
        raise UserError(f"{data.dataset}: {len(chosen)} class is nothing to tell apart; give at least two")
    return chosen


def _number(data: Data, one: int | str, names: list[str]) -> int:
    if isinstance(one, int):
        if one < len(names):
            return one
        raise UserError(f"unknown class {one} of {data.dataset}; they are numbered 0 to {len(names) - 1}")
    if one in names:
        return names.index(one)
    raise UserError(f"unknown class {one!r} of {data.dataset}; {nearest(one, names)}")


def _renumbered(source: Source, chosen: list[int]) -> np.ndarray:
    """Labels int32 [N] as places in `chosen`, -1 for the classes left out."""
    import numpy as np

    places = np.full(len(source.class_names), -1, np.int32)
    places[chosen] = np.arange(len(chosen))
    return places[source.labels]


def _ranks(labels: np.ndarray, seed: int) -> np.ndarray:
    """The place of each row in a drawn order of its class, int [N]."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(labels))
    ranks = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        ranks[members] = np.arange(len(members))
    return ranks


def _held_out(labels: np.ndarray, rows: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that stay and rows held out: of each class about `share`, at least one where there are two."""
    import numpy as np

    labels = labels[rows]
    counts = np.bincount(labels)
    quota = np.minimum(np.maximum(np.rint(share * counts), 1), counts - 1)
    held = _ranks(labels, seed) < quota[labels]
    return rows[~held], rows[held]


def _limited(labels: np.ndarray, rows: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """`limit` of the rows, dealt out class by class, so that a smaller limit is a part of a larger one."""
    import numpy as np

    dealt = np.lexsort((labels[rows], _ranks(labels[rows], seed)))
    return np.sort(rows[dealt[:limit]])


def _test_fifth(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of train and test where the source draws no line between them."""
    import numpy as np

    train, test = _held_out(labels, np.arange(len(labels)), TEST_SHARE, TEST_SEED)
    return {"train": train, "test": test}


# -- pixels ----------------------------------------------------------------------------------------


def _resize(images: Any, size: int) -> Any:
    """Tensor [..., H, W, 3] -> uint8 tensor [..., size, size, 3]."""
    import tensorflow as tf

    smooth = tf.image.resize(images, [size, size], method="bilinear", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(smooth), 0.0, 255.0), tf.uint8)


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    """Images uint8 [N, H, W, 3] -> uint8 [N, size, size, 3]; some at a time, as they pass through float32."""
    import numpy as np

    if images.shape[1:3] == (size, size):
        return np.ascontiguousarray(images)
    import tensorflow as tf

    resized = np.empty((len(images), size, size, 3), np.uint8)
    with tf.device("CPU"):
        for start in range(0, len(images), 256):
            resized[start : start + 256] = _resize(images[start : start + 256], size)
    return resized


# -- files -----------------------------------------------------------------------------------------


def _found(data: Data, data_dir: Path | None, report: Report | None) -> tuple[Entry, Files]:
    """The dataset's entry and the source files, downloaded where they must be."""
    entry = _tfds_entry(data) if data.dataset.startswith(TFDS) else lookup(DATASETS, data.dataset, "dataset")
    if data.splits is not None and not data.dataset.startswith(TFDS):
        raise UserError(f"dataset {data.dataset!r} takes no splits; it has its own, and validation is a share of train")
    if entry.needs_path and data.path is None:
        raise UserError(f'dataset {data.dataset!r} needs the folder of the images: path = "..."')
    if data.path is not None and not entry.needs_path:
        raise UserError(f"dataset {data.dataset!r} takes no path; --data-dir says where its files are")
    asked = {"--data-dir": data_dir, "FROSTLINE_DATA": os.environ.get("FROSTLINE_DATA")}
    places = {name: Path(place).expanduser() for name, place in asked.items() if place}
    for name, place in places.items():
        if not place.is_dir():
            raise UserError(f"{name}: there is no folder {place}")
    with _explained(data):
        return entry, entry.files(data, [*places.values()], report)


@contextlib.contextmanager
def _explained(data: Data) -> Iterator[None]:
    """What the system refuses (a right, space on the disk), as a UserError."""
    try:
        yield
    except OSError as error:
        advice = f"the cache is {machine.cache()}; FROSTLINE_CACHE names another"
        raise UserError(f"{data.dataset}: {error}; {advice}") from error


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _digest(files: Files) -> str:
    """Hex SHA-256 over the names and contents of files."""
    whole = hashlib.sha256()
    for name, path in files:
        whole.update(os.fsencode(name) + b"\0" + _sha256(path))
    return whole.hexdigest()


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when all of it is written, and leaves nothing behind when not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            yield file
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


# -- digits ----------------------------------------------------------------------------------------


def _digits_files(data: Data, places: list[Path], report: Report | None) -> Files:
    """The table that scikit-learn carries, found without the seconds that importing scikit-learn takes."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise UserError("the digits come with scikit-learn, which is missing; type: pip install scikit-learn")
    return [("digits.csv.gz", Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz")]


def _digits(files: Files, size: int) -> Source:
    """Grey values 0 to 16 as uint8 [1797, 8, 8, 3]; a fixed fifth is the test."""
    import numpy as np

    table = np.loadtxt(files[0][1], delimiter=",")
    grey = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = table[:, -1].astype(np.int64)
    keys = [f"digits/{row:05d}" for row in range(len(table))]
    return Source(np.repeat(grey, 3, axis=3), labels, keys, [str(n) for n in range(10)], _test_fifth(labels))


# -- CIFAR -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Release:
    """What a CIFAR archive is called, the SHA-256 of its publisher's copy, its pickles and their keys."""

    archive: str
    sha256: str
    folder: str
    train: tuple[str, ...]
    test: str
    labels: bytes
    meta: str
    names: bytes


CIFAR10 = Release(
    archive="cifar-10-python.tar.gz",
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    labels=b"labels",
    meta="batches.meta",
    names=b"label_names",
)
CIFAR100 = Release(
    archive="cifar-100-python.tar.gz",
    sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    folder="cifar-100-python",
    train=("train",),
    test="test",
    labels=b"fine_labels",
    meta="meta",
    names=b"fine_label_names",
)


# What the pickle of an array calls; NumPy 2 writes numpy._core where NumPy 1, and so the release, has numpy.core.
CALLABLE = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


def _release_files(release: Release, data: Data, places: list[Path], report: Report | None) -> Files:
    """The pickles from the first place that has their folder or their archive, else from the publisher."""
    keras = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "datasets"
    own = machine.cache() / "datasets"
    for place in (*places, keras, own):
        if folder := _release_folder(release, place):
            return _listed(release, folder)
    return _listed(release, _unpacked(release, _download(release, own / release.archive, report)))


def _release_folder(release: Release, place: Path) -> Path | None:
    """The folder in one place, unpacked if need be; named as its publisher, Keras 3 or Keras 2 do."""
    target = f"{release.folder}-target"
    for folder in (place / release.folder, place / target / release.folder):
        if folder.is_dir():
            return folder
    for archive in (release.archive, f"{target}_archive", f"{release.folder}.tar.gz"):
        if (place / archive).is_file():
            return _unpacked(release, place / archive)
    return None


def _listed(release: Release, folder: Path) -> Files:
    """Names and paths of the pickles in their folder; raises UserError when one is missing."""
    files = [(name, folder / name) for name in _pickles(release)]
    if missing := [name for name, path in files if not path.is_file()]:
        raise UserError(f"{folder} lacks {', '.join(missing)}; unpack {release.archive} anew or remove it")
    return files


def _pickles(release: Release) -> tuple[str, ...]:
    return (*release.train, release.test, release.meta)


def _unpacked(release: Release, archive: Path) -> Path:
    """The archive's folder, unpacked once per content into the cache."""
    home = machine.cache() / "datasets" / _sha256(archive).hex()[:16]
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
            _extract(release, archive, Path(scratch) / "all")
            try:
                os.rename(Path(scratch) / "all", home)
            except OSError:
                if not home.is_dir():  # else another process was faster, with the same content
                    raise
    return home / release.folder


def _extract(release: Release, archive: Path, to: Path) -> None:
    """Unpack the release's own files and nothing else; raises UserError that names the archive."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            members = [tar.getmember(f"{release.folder}/{name}") for name in _pickles(release)]
            if links := [member.name for member in members if not member.isfile()]:
                raise tarfile.TarError(f"{links[0]} is not a file")
            tar.extractall(to, members, filter="data")
    except (tarfile.TarError, KeyError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _foreign(archive, release.archive, error) from error


def _download(release: Release, path: Path, report: Report | None) -> Path:
    """The publisher's archive, checked; raises UserError that says where to put it by hand."""
    url = PUBLISHER + release.archive
    advice = f"put it into {path.parent}, or name its folder with --data-dir"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, _replacing(path) as file:
            total = int(answer.headers.get("Content-Length") or 0)
            digest = hashlib.sha256()
            while chunk := answer.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
                if report:
                    report(release.archive, file.tell(), total)
            if digest.hexdigest() != release.sha256:
                raise UserError(f"{url} sent a file whose SHA-256 is wrong; try again, or {advice}")
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"no {release.archive} here, and none from {url} ({error}); {advice}") from error
    return path


def _release(release: Release, files: Files, size: int) -> Source:
    """Images uint8 [N, 32, 32, 3], train before test; as many as the files hold."""
    import numpy as np

    paths = dict(files)
    names = _class_names(paths[release.meta], release)
    train = [_batch(paths[name], release, len(names)) for name in release.train]
    batches = [*train, _batch(paths[release.test], release, len(names))]
    labels = np.concatenate([labels for _, labels in batches])
    count = sum(len(labels) for _, labels in train)
    keys = [f"train/{row:05d}" if row < count else f"test/{row - count:05d}" for row in range(len(labels))]
    rows = {"train": np.arange(count), "test": np.arange(count, len(labels))}
    return Source(np.concatenate([images for images, _ in batches]), labels, keys, names, rows)


class _Unpickler(pickle.Unpickler):
    """Builds arrays and the language's own containers, and calls nothing else that a file may name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in CALLABLE:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _foreign(path: Path, wanted: str, reason: object) -> UserError:
    """The error for a file that is not what it should be, on one line."""
    why = " ".join(str(reason).split()) or type(reason).__name__
    return UserError(f"{path} is damaged, or not {wanted}: {why}; remove or replace it")


def _unpickled(path: Path) -> dict[Any, Any]:
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises anything
        raise _foreign(path, "a file of CIFAR", error) from error
    if not isinstance(content, dict):
        raise _foreign(path, "a file of CIFAR", f"it holds a {type(content).__name__}, not a dict")
    return content


def _class_names(path: Path, release: Release) -> list[str]:
    names = _unpickled(path).get(release.names)
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise _foreign(path, "a file of CIFAR", f"{release.names.decode()} is no list of names")
    return [name.decode("utf-8", "replace") for name in names]


def _batch(path: Path, release: Release, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and labels int [N] of one pickle, whose rows are channel first."""
    import numpy as np

    content = _unpickled(path)
    images, labels = content.get(b"data"), content.get(release.labels)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3072,):
        raise _foreign(path, "a file of CIFAR", "data is not uint8 [N, 3072]")
    if not isinstance(labels, list) or len(labels) != len(images):
        raise _foreign(path, "a file of CIFAR", f"{release.labels.decode()} is not a list of {len(images)}")
    if wrong := [label for label in labels if not isinstance(label, int) or not 0 <= label < classes]:
        raise _foreign(path, "a file of CIFAR", f"label {wrong[0]!r} is none of 0 to {classes - 1}")
    return images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels, np.int64)


# -- folders of images -----------------------------------------------------------------------------


def _folder_files(data: Data, places: list[Path], report: Report | None) -> Files:
    """Images under `path`, by "train/cats/1.jpg" or "cats/1.jpg", sorted; raises UserError."""
    asked = Path(data.path or "").expanduser()
    # An absolute path stays itself, whatever it is joined to.
    tried = list(dict.fromkeys(place / asked for place in (*places, Path.cwd())))
    root = next((folder for folder in tried if folder.is_dir()), None)
    if root is None:
        raise UserError(f"no folder {' nor '.join(map(str, tried))}; mend path, or give --data-dir")
    root = root.resolve()
    classes = [folder for part in _part_folders(root) for folder in _folders(part, root)]
    images = [image for folder in classes for image in _images(folder, root)]
    if not images:
        raise UserError(f"{root} has no folders of classes; images belong into {root / 'CLASS'}")
    return [(image.relative_to(root).as_posix(), image) for image in images]


def _part_folders(root: Path) -> list[Path]:
    """The folders of train, test and maybe validation, or `root` alone where there is no such folder."""
    parts = _folders(root, root)
    names = [part.name for part in parts]
    if not set(names) & set(PARTS):
        return [root]
    if other := [name for name in names if name not in PARTS]:
        raise UserError(f"{root / other[0]} is no part of the data; {nearest(other[0], PARTS)}")
    if missing := [name for name in ("train", "test") if name not in names]:
        raise UserError(f"{root} has {', '.join(names)} but no {missing[0]}; add it, or keep classes alone")
    known = {folder.name for folder in _folders(root / "train", root)}
    for part in parts:
        if odd := sorted(known ^ {folder.name for folder in _folders(part, root)}):
            raise UserError(f"{root}: class {odd[0]!r} is in only one of train and {part.name}; both need it")
    return parts


def _children(folder: Path, root: Path) -> list[Path]:
    """What a folder shows, sorted; raises UserError for a link that leaves `root`."""
    shown = sorted((path for path in folder.iterdir() if path.name[0] != "."), key=lambda path: path.name)
    for path in shown:
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
            raise UserError(f"{path} is a link that leaves {root}; put a copy in its place, or remove it")
    return shown


def _folders(folder: Path, root: Path) -> list[Path]:
    return [path for path in _children(folder, root) if path.is_dir()]


def _images(folder: Path, root: Path) -> list[Path]:
    """The images of a class; a link to nothing counts as one, so that it is found out."""
    children = [path for path in _children(folder, root) if path.is_file() or path.is_symlink()]
    images = [path for path in children if path.suffix.lower() in EXTENSIONS]
    if not images:
        raise UserError(f"{folder} has no image ({' '.join(EXTENSIONS)}); add some, or remove the folder")
    return images


def _folder(files: Files, size: int) -> Source:
    """Decoded images and their classes, which are the sorted names of the folders they lie in."""
    import numpy as np

    keys = [key for key, _ in files]
    owners = [key.split("/")[-2] for key in keys]
    names = sorted(set(owners))
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[owner] for owner in owners], np.int64)
    parts = np.array([key.split("/")[0] if key.count("/") == 2 else "" for key in keys])
    rows = {part: np.flatnonzero(parts == part) for part in PARTS if part in parts}
    return Source(_decoded(_digest(files), files, size), labels, keys, names, rows or _test_fifth(labels))


def _decoded(digest: str, encoded: Encoded, size: int) -> np.ndarray:
    """Images decoded, uint8 [N, size, size, 3], memory-mapped from the cache, which is filled first.

    `digest` identifies them, in their order.
    """
    path = machine.cache() / "images" / f"{digest[:32]}-{size}-{DECODER}.npy"
    shape = (len(encoded), size, size, 3)
    images = _mapped(path, shape)
    if images is None:
        _decode_into(path, encoded, shape)
        images = _mapped(path, shape)
    if images is None:
        raise UserError(f"{path} was written and cannot be read again; is the disk sound?")
    return images


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array in a .npy file, None where it is missing, damaged or another; nothing in it is unpickled."""
    import numpy as np

    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception:  # whatever a damaged file raises, it is made anew
        return None
    return array if array.shape == shape and array.dtype == np.uint8 and array.flags.c_contiguous else None


def _decode_into(path: Path, encoded: Encoded, shape: tuple[int, ...]) -> None:
    """Write a .npy file of all images; raises UserError that names every one that is none."""
    import numpy as np

    broken = []
    with _replacing(path) as out, ThreadPool() as pool:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        images = pool.imap(partial(decode_one, size=shape[1]), [source for _, source in encoded])
        for (key, _), image in zip(encoded, images, strict=True):
            if isinstance(image, str):
                broken.append(f"{key} ({image})")
            else:
                out.write(image.tobytes())
        if broken:
            raise UserError(
                f"{len(broken)} of {len(encoded)} images cannot be used; "
                f"remove or replace these files: {', '.join(broken)}"
            )


def decode_one(source: Path | bytes, size: int) -> np.ndarray | str:
    """The image uint8 [size, size, 3] of a file or of its bytes, or what is wrong with it."""
    import tensorflow as tf

    try:
        raw = source if isinstance(source, bytes) else source.read_bytes()
        if trouble := unfit(raw):
            return trouble
        with tf.device("CPU"):
            return decode(tf.constant(raw), size).numpy()
    except (OSError, tf.errors.OpError):
        return "corrupt, truncated or no image"


def unfit(raw: bytes) -> str | None:
    """What is wrong with the bytes of an image that TensorFlow would not find."""
    from PIL import Image

    if not raw:
        return "empty"
    # TensorFlow takes the indices of a BMP's palette for grey values, and says nothing.
    if raw.startswith(b"BM"):
        try:
            with Image.open(io.BytesIO(raw)) as bitmap:
                if bitmap.mode == "P":
                    return "a BMP with a palette; save it as PNG"
        except (OSError, Image.DecompressionBombError):
            return "corrupt, truncated or no image"
    return None


# -- TensorFlow Datasets ---------------------------------------------------------------------------


def _tfds_entry(data: Data) -> Entry:
    """The entry of a set that TensorFlow Datasets knows."""
    name, splits = data.dataset.removeprefix(TFDS), data.splits or Splits()
    return Entry(
        summary=f"{name} of TensorFlow Datasets",
        files=lambda data, places, report: tfds.files(name, places, report),
        read=partial(_tfds, name, {k: v for k, v in dataclasses.asdict(splits).items() if v}),
        image_size=224,
    )


def _tfds(name: str, splits: dict[str, str], files: Files, size: int) -> Source:
    """Decoded images of the parts that `splits` names, one after the other."""
    import numpy as np

    found = tfds.read(name, files[0][1].parent, splits)
    digest = hashlib.sha256(f"{_digest(files)} {splits}".encode()).hexdigest()
    images = _decoded(digest, list(zip(found.keys, found.images, strict=True)), size)
    parts = np.array(found.parts)
    rows = {part: np.flatnonzero(parts == part) for part in splits}
    return Source(images, np.array(found.labels, np.int64), found.keys, found.class_names, rows)


DATASETS = {
    "digits": Entry(
        summary="1,797 handwritten digits in 10 classes, part of scikit-learn",
        files=_digits_files,
        read=_digits,
    ),
    "cifar10": Entry(
        summary="60,000 pictures in 10 classes, 32 pixels wide",
        files=partial(_release_files, CIFAR10),
        read=partial(_release, CIFAR10),
    ),
    "cifar100": Entry(
        summary="60,000 pictures in 100 classes, 32 pixels wide",
        files=partial(_release_files, CIFAR100),
        read=partial(_release, CIFAR100),
    ),
    "image_folder": Entry(
        summary="your own images, one folder per class: PATH/{train,test}/CLASS/* or PATH/CLASS/*",
        files=_folder_files,
        read=_folder,
        image_size=224,
        needs_path=True,
    ),
}
