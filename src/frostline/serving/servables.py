"""One version of a model in memory: loaded the way TensorFlow Serving loads it, and run by the names of its tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from frostline.serving.batching import Parameters
from frostline.serving.flags import Flags
from frostline.serving.status import Refused

KEPT_CALLS = 64  # prepared ways to run a servable; a client may ask for any subset of the outputs


@dataclass(frozen=True)
class Signature:
    """A SignatureDef, and its TensorInfo protos by alias; `outputs` in alphabetical order."""

    proto: Any
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


@dataclass(frozen=True)
class Servable:
    """A loaded version."""

    name: str
    version: int
    path: Path
    session: Any
    signatures: Mapping[str, Signature]
    limits: Parameters | None  # of its batches; None where it runs without
    calls: dict[Any, Any] = field(default_factory=dict)


def load(name: str, version: int, path: Path, flags: Flags, limits: Parameters | None) -> Servable:
    """Load a SavedModel into a TF1 session; raises Refused or one of TensorFlow's errors."""
    if not any((path / file).is_file() for file in ("saved_model.pb", "saved_model.pbtxt")):
        raise Refused("NOT_FOUND", f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {path}")
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=flags.tensorflow_intra_op_parallelism,
        inter_op_parallelism_threads=flags.tensorflow_inter_op_parallelism,
    )
    config.gpu_options.allow_growth = True  # other programs of a developer's machine want some of it, too
    session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
    try:
        meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(path))
    except BaseException:
        session.close()
        raise
    signatures = {
        key: Signature(proto, dict(proto.inputs), dict(sorted(proto.outputs.items())))
        for key, proto in meta.signature_def.items()
    }
    return Servable(name, version, path, session, signatures, limits)


def run(servable: Servable, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
    """Values of the tensors `fetches`, for arrays by tensor name; raises TensorFlow's errors.

    Arrays go to the runtime as they are, as in the real server. `Session.run` would convert them to what the graph
    expects and refuse shapes that the graph does not declare.
    """
    key = (tuple(feeds), tuple(fetches))
    call = servable.calls.get(key)
    if call is None:
        call = servable.session._make_callable_from_options(config_pb2.CallableOptions(feed=key[0], fetch=key[1]))
        if len(servable.calls) < KEPT_CALLS:
            servable.calls[key] = call
    found = call(*feeds.values())
    return [np.asarray(value, dtype=object if isinstance(value, bytes) else None) for value in found]


def close(servable: Servable) -> None:
    """Give the memory back; nothing may be running."""
    servable.calls.clear()
    servable.session.close()
