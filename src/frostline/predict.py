"""Files to a running server, classes and scores back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from frostline import batching, client, datasets
from frostline.client import ServingError
from frostline.errors import UserError

if TYPE_CHECKING:
    import numpy as np

BATCH = batching.ALLOWED_SIZES[-1]  # a server that batches may refuse more in one request
# What a server says of itself. Any other refusal may be for one image of a request.
OF_THE_SERVER = frozenset({"UNAVAILABLE", "NOT_FOUND", "UNIMPLEMENTED"})


@dataclass(frozen=True)
class Answer:
    """The best classes of one file and their scores, best first, or why there are none."""

    path: Path
    best: tuple[tuple[str, float], ...] = ()
    trouble: str | None = None


@dataclass(frozen=True)
class Asked:
    """The model, which version of it, and `bytes` (the server decodes) or `pixels` (decoded and resized here)."""

    model: str
    version: int | None = None
    label: str | None = None
    form: str = "bytes"
    top: int = 1


def images(places: Sequence[Path]) -> list[Path]:
    """Files as they are given, and all images below folders, sorted; raises UserError where there is none.

    A missing file among others is one of them: it is answered as one that cannot be read.
    """
    if not any(place.exists() for place in places):
        raise UserError(f"{places[0]} does not exist")
    found = []
    for place in places:
        inside = sorted(path for path in place.rglob("*") if path.suffix.lower() in datasets.EXTENSIONS)
        if place.is_dir() and not inside:
            raise UserError(f"{place} holds no image ({' '.join(datasets.EXTENSIONS)})")
        found += inside if place.is_dir() else [place]
    return found


def predict(connection: client.Connection, asked: Asked, paths: Sequence[Path]) -> Iterable[Answer]:
    """Answers in the order of the files, 32 to a request.

    A file that cannot be read, or that the server refuses, is an answer with `trouble`, and the others go on. Raises
    UserError where the model cannot be asked at all.
    """
    size = _size(connection, asked) if asked.form == "pixels" else None
    for start in range(0, len(paths), BATCH):
        chunk = paths[start : start + BATCH]
        read = [_read(path, size) for path in chunk]
        sound = [image for image in read if not isinstance(image, str)]
        found = iter(_ask(connection, asked, sound) if sound else [])
        for path, image in zip(chunk, read, strict=True):
            best = image if isinstance(image, str) else next(found)
            yield Answer(path, trouble=best) if isinstance(best, str) else Answer(path, best)


def _size(connection: client.Connection, asked: Asked) -> int:
    """The side of the images that the model takes."""
    known = connection.metadata(asked.model, version=asked.version, label=asked.label)
    signature = known.signatures.get("serving_default")
    shapes = [tensor.shape for tensor in signature.inputs.values()] if signature else []
    if len(shapes) != 1 or not shapes[0] or len(shapes[0]) != 4 or not shapes[0][1] or shapes[0][1] != shapes[0][2]:
        raise UserError(f"{asked.model} takes no square images at serving_default; try --as bytes")
    return shapes[0][1]


def _read(path: Path, size: int | None) -> bytes | np.ndarray | str:
    """The bytes of a file, or its pixels uint8 [size,size,3], or what is wrong with it."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        return error.strerror or str(error)
    return datasets.unfit(raw) or (raw if size is None else datasets.decode_one(raw, size))


def _ask(
    connection: client.Connection, asked: Asked, sound: Sequence[bytes | np.ndarray]
) -> list[tuple[tuple[str, float], ...] | str]:
    """The best classes of each image, or the words with which the server refused it.

    One image spoils its whole request, so the halves of one that is refused are asked again; and where the server puts
    requests together, it spoils those of others, so a single image is asked twice. What takes too long is asked again
    likewise; raises ServingError where a single image does.
    """
    import numpy as np

    batch = np.stack(sound) if asked.form == "pixels" else list(sound)
    request = connection.prepare(asked.model, batch, version=asked.version, label=asked.label)  # type: ignore[arg-type]
    try:
        return _best(connection.send(request), asked)
    except ServingError as error:
        if error.code in OF_THE_SERVER:
            raise
    if len(sound) == 1:
        try:
            return _best(connection.send(request), asked)
        except ServingError as error:
            if error.code == "DEADLINE_EXCEEDED":
                raise ServingError(error.code, f"{error}; give a longer --timeout") from error
            if error.code in OF_THE_SERVER:
                raise
            return [_reason(error, connection.url)]
    half = len(sound) // 2
    return _ask(connection, asked, sound[:half]) + _ask(connection, asked, sound[half:])


def _reason(error: ServingError, url: str) -> str:
    """The server's words in one line, without the nodes of its graph."""
    return " ".join(str(error).removeprefix(f"{url}: ").partition("[[{{")[0].split())


def _best(found: dict[str, np.ndarray], asked: Asked) -> list[tuple[tuple[str, float], ...] | str]:
    """The first `top` classes of each image; numbers where the model names no classes."""
    import numpy as np

    if "top_k_classes" in found and "top_k_scores" in found:
        names, scores = found["top_k_classes"], found["top_k_scores"]
    elif "probabilities" in found:
        names = np.argsort(-found["probabilities"], axis=1, kind="stable")
        scores = np.take_along_axis(found["probabilities"], names, axis=1)
    else:
        raise UserError(f"{asked.model} gives {', '.join(found)}, and neither top_k_classes nor probabilities")
    if asked.top > names.shape[1]:
        raise UserError(f"--top {asked.top}: {asked.model} names its best {names.shape[1]}")
    rows = zip(names[:, : asked.top], scores[:, : asked.top], strict=True)
    return [tuple((str(name), float(score)) for name, score in zip(*row, strict=True)) for row in rows]
