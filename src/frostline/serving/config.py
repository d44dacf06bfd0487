"""models.config: which models are served, from where, which of their versions, and what the versions are called."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frostline.serving.status import Refused, invalid

MAX_VERSION = 2**63 - 1


@dataclass(frozen=True)
class Model:
    """One served model; `newest` and `specific` are the version policy, all versions where neither is given."""

    name: str
    base_path: Path
    newest: int | None = 1
    specific: tuple[int, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)


def models(config: Any) -> dict[str, Model]:
    """The models of a ModelServerConfig by name; raises Refused as TensorFlow Serving does."""
    if config.WhichOneof("config") != "model_config_list":
        raise invalid("only a model_config_list can be served")
    found: dict[str, Model] = {}
    for entry in config.model_config_list.config:
        if entry.name in found:
            raise invalid(f"Illegal to list model {entry.name} multiple times in config list")
        if entry.model_platform != "tensorflow":
            raise invalid(f'model {entry.name}: model_platform must be "tensorflow", not "{entry.model_platform}"')
        if not Path(entry.base_path).is_absolute():
            path = entry.base_path
            raise invalid(f"Expected model {entry.name} to have an absolute path or URI; got base_path()={path}")
        policy = entry.model_version_policy
        some = policy.WhichOneof("policy_choice") in ("all", "specific")
        newest = None if some else policy.latest.num_versions or 1
        labels = dict(entry.version_labels)
        found[entry.name] = Model(entry.name, Path(entry.base_path), newest, tuple(policy.specific.versions), labels)
    return found


def wanted(model: Model) -> dict[int, Path]:
    """The version folders that are there and that the policy asks for; raises Refused where the base path is missing.

    A version is a child whose name is a whole number; all other children are passed over.
    """
    try:
        children = [c for c in model.base_path.iterdir() if re.fullmatch("[0-9]+", c.name) and c.is_dir()]
    except OSError as error:
        about = f"Could not find base path {model.base_path} for servable {model.name}"
        raise Refused("NOT_FOUND", f"{about} with error {error}") from error
    versions = {int(child.name): child for child in children if int(child.name) <= MAX_VERSION}
    chosen = model.specific or sorted(versions, reverse=True)[: model.newest]
    return {number: versions[number] for number in chosen if number in versions}


def check_labels(
    asked: Mapping[str, Model], present: Mapping[str, Model], available: Mapping[str, list[int]], allow_new: bool
) -> None:
    """Refuse a label on a version that does not answer yet, unless `allow_new` and the label is new."""
    for model in asked.values():
        old = present[model.name].labels if model.name in present else {}
        for label, version in model.labels.items():
            fresh = allow_new and old.get(label, version) == version
            if not fresh and version not in available.get(model.name, ()):
                about = f"Request to assign label to version {version} of model {model.name}"
                raise Refused("FAILED_PRECONDITION", f"{about}, which is not currently available for inference")
