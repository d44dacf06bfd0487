"""Image classification sets of TensorFlow Datasets, where that library keeps them; it is imported in children alone."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline.errors import UserError, optional_import

PREPARE = "import sys, tensorflow_datasets as t; t.builder(sys.argv[1], data_dir=sys.argv[2]).download_and_prepare()"


@dataclass(frozen=True)
class Records:
    """Encoded images with their labels, unique keys and parts (`train`, ...), in the order of the set."""

    images: list[bytes]
    labels: list[int]
    keys: list[str]
    parts: list[str]
    class_names: list[str]


def files(name: str, places: Sequence[Path], report: Callable[[str, int, int], None] | None) -> list[tuple[str, Path]]:
    """Names and paths of the files of a set, `NAME` or `NAME/CONFIG`, prepared first where it is not; raises UserError.

    It is looked for in `places`, then where the library itself looks, and prepared there.
    """
    if importlib.util.find_spec("tensorflow_datasets") is None:
        optional_import("tensorflow_datasets", "tfds")
    own = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    folder = _newest(name, [*places, own])
    if folder is None:
        if report:
            report(name, 0, 0)
        _prepare(name, own)
        folder = _newest(name, [own])
    if folder is None:
        raise UserError(f"tfds:{name} has several configurations; name one: tfds:{name}/CONFIG")
    return [(path.name, path) for path in sorted(folder.iterdir()) if path.is_file()]


def _newest(name: str, places: Sequence[Path]) -> Path | None:
    """The folder of the newest version in the first place that has one."""
    for place in places:
        found = [path for path in (place / name).glob("*") if (path / "dataset_info.json").is_file()]
        versions = {tuple(map(int, path.name.split("."))): path for path in found if re.fullmatch(r"[\d.]+", path.name)}
        if versions:
            return versions[max(versions)]
    return None


def _prepare(name: str, place: Path) -> None:
    """Let the library download and write a set, in a process of its own, because it may load TensorFlow."""
    done = subprocess.run([sys.executable, "-c", PREPARE, name, str(place)], capture_output=True, text=True)
    if done.returncode:
        reason = next((x for x in done.stderr.splitlines() if re.match(r"[\w.]*(Error|Exception)\b", x)), "it died")
        raise UserError(f"tfds:{name} is not in {place} and could not be prepared there: {reason}")


def read(name: str, folder: Path, splits: Mapping[str, str]) -> Records:
    """The images of some parts, `splits` being what the library calls each; raises UserError."""
    library = optional_import("tensorflow_datasets", "tfds")
    builder = library.builder_from_directory(folder)
    known = dict(builder.info.features.items())
    if not isinstance(known.get("image"), library.features.Image) or not hasattr(known.get("label"), "names"):
        raise UserError(f"tfds:{name} is no image classification: it has {', '.join(known)}, not image and label")
    found = Records([], [], [], [], list(known["label"].names))
    for part, split in splits.items():
        for record in _records(name, builder, split, library):
            found.images.append(record["image"])
            found.labels.append(int(record["label"]))
            found.keys.append(record["tfds_id"].decode())
            found.parts.append(part)
    if unlabelled := sorted({part for part, label in zip(found.parts, found.labels, strict=True) if label < 0}):
        told = ", ".join(f'{part} = "{splits[part]}"' for part in unlabelled)
        raise UserError(f"tfds:{name}: images of {told} have no label; give other splits")
    if len(set(found.keys)) < len(found.keys):
        raise UserError(f"tfds:{name}: {', '.join(splits.values())} share images; give splits that lie apart")
    return found


def _records(name: str, builder: Any, split: str, library: Any) -> Any:
    """Records of one split as NumPy values, the images still encoded."""
    try:
        found = builder.as_dataset(
            split=split,
            shuffle_files=False,
            decoders={"image": library.decode.SkipDecoding()},
            read_config=library.ReadConfig(add_tfds_id=True),
        )
    except ValueError as error:
        reason = str(error).split("\n")[0]
        raise UserError(f'tfds:{name}: {reason} Write such as splits = {{ test = "train[80%:]" }}') from error
    return found.as_numpy_iterator()
