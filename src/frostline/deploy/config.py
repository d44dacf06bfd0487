"""`models.config`: which versions of a model a server loads, and which of them is called stable, which canary."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline.errors import UserError, lookup

STABLE, CANARY = "stable", "canary"
FILE = "models.config"
HEADER = """\
# TensorFlow Serving's models, versions and labels. `frostline bundle`, `rollout` and `rollback` write this file anew,
# and comments are not kept. A label may only be moved to a version that the server has loaded already.
"""


@dataclass(frozen=True)
class Served:
    """The versions of one model that a server holds, and those its two labels mean."""

    versions: tuple[int, ...]
    stable: int
    canary: int

    def __str__(self) -> str:
        listed = ", ".join(str(number) for number in self.versions)
        return f"version{'s' * (len(self.versions) > 1)} {listed}; stable is {self.stable}, canary is {self.canary}"


def read(path: Path) -> Any:
    """The file as a ModelServerConfig; raises UserError where it is missing or wrong."""
    from frostline import protos

    if not path.is_file():
        raise UserError(f"there is no {path}; type: frostline bundle {path.parent.parent}")
    return protos.read(path, protos.ModelServerConfig)


def write(path: Path, config: Any) -> None:
    """Replace the file in one step: a server that polls it sees the old one or the new one, whole."""
    from google.protobuf import text_format

    replace(path, HEADER + text_format.MessageToString(config))


def replace(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file beside `path`, force it to the disk, and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
        os.chmod(draft, mode)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def entry(config: Any, model: str) -> Any:
    """The part of the file that is about one model; raises UserError that lists the models."""
    return lookup({one.name: one for one in config.model_config_list.config}, model, "model in models.config")


def served(entry: Any) -> Served:
    """What the entry says; raises UserError where it has no list of versions or no label `stable`."""
    versions = tuple(sorted(entry.model_version_policy.specific.versions))
    labels = entry.version_labels
    if not versions or labels.get(STABLE) not in versions or labels.get(CANARY, versions[0]) not in versions:
        raise UserError(
            f"{entry.name} in models.config needs `specific` versions, and the labels stable and canary among them; "
            "mend it, or remove its entry and type: frostline bundle EXPORTS"
        )
    return Served(versions, labels[STABLE], labels.get(CANARY, labels[STABLE]))


def set_served(entry: Any, new: Served) -> None:
    """Change an entry; raises UserError where another label means a version that would go."""
    for label, version in entry.version_labels.items():
        if label not in (STABLE, CANARY) and version not in new.versions:
            raise UserError(f"{label} of {entry.name} means version {version}; move that label in models.config first")
    entry.model_version_policy.specific.versions[:] = new.versions
    entry.version_labels[STABLE] = new.stable
    entry.version_labels[CANARY] = new.canary
