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
    if config.WhichOneof("config") == "custom_model_config":
        raise invalid("ModelServer does not yet support custom model config.")
    found: dict[str, Model] = {}
    for entry in config.model_config_list.config:
        if entry.name in found:
            raise invalid(f"Illegal to list model {entry.name} multiple times in config list")
        found[entry.name] = _model(entry)
    return found


def _model(entry: Any) -> Model:
    if not entry.model_platform and not entry.model_type:
        raise invalid(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform."
        )
    if entry.model_platform != "tensorflow" and entry.model_type != 1:
        raise invalid(f"model {entry.name}: platform {entry.model_platform!r} is not served here, only tensorflow")
    if not Path(entry.base_path).is_absolute():
        raise invalid(f"Expected model {entry.name} to have an absolute path or URI; got base_path()={entry.base_path}")
    policy = entry.model_version_policy
    kind = policy.WhichOneof("policy_choice")
    newest = None if kind in ("all", "specific") else policy.latest.num_versions or 1
    specific = tuple(policy.specific.versions) if kind == "specific" else ()
    if kind == "specific" and not specific:
        raise invalid(f"model {entry.name}: a specific version policy lists at least one version")
    return Model(entry.name, Path(entry.base_path), newest, specific, dict(entry.version_labels))


def wanted(model: Model) -> dict[int, Path]:
    """The version folders that are there and that the policy asks for; raises Refused where the base path is missing.

    A version is a child whose name is a whole number; all other children are passed over.
    """
    try:
        children = sorted(model.base_path.iterdir())
    except OSError as error:
        raise Refused(
            "NOT_FOUND", f"Could not find base path {model.base_path} for servable {model.name} with error {error}"
        ) from error
    versions = {
        int(child.name): child
        for child in children
        if re.fullmatch(r"[0-9]+", child.name) and int(child.name) <= MAX_VERSION and child.is_dir()
    }
    if model.specific:
        return {number: versions[number] for number in model.specific if number in versions}
    keep = sorted(versions, reverse=True)[: model.newest]
    return {number: versions[number] for number in keep}


def check_labels(
    asked: Mapping[str, Model], present: Mapping[str, Model], available: Mapping[str, set[int]], allow_new: bool
) -> None:
    """Refuse a label on a version that does not answer yet, unless `allow_new` and the label is new."""
    for model in asked.values():
        for label, version in model.labels.items():
            old = present[model.name].labels.get(label) if model.name in present else None
            fresh = allow_new and old in (None, version)
            if not fresh and version not in available.get(model.name, set()):
                raise Refused(
                    "FAILED_PRECONDITION",
                    f"Request to assign label to version {version} of model {model.name}, "
                    "which is not currently available for inference",
                )
