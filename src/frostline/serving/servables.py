"""One version of a model in memory: loaded the way TensorFlow Serving loads it, and run by the names of its tensors."""

from __future__ import annotations

import ctypes
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline.errors import UserError
from frostline.serving.flags import Flags
from frostline.serving.status import Refused

if TYPE_CHECKING:
    import numpy as np

KEPT_CALLS = 64  # compiled ways to run a servable; a client may ask for any subset of the outputs


@dataclass(frozen=True)
class Servable:
    """A loaded version; `signatures` are SignatureDef protos by name."""

    name: str
    version: int
    path: Path
    session: Any
    signatures: Mapping[str, Any]
    calls: dict[tuple[tuple[str, ...], tuple[str, ...]], Any] = field(default_factory=dict)


def load(name: str, version: int, path: Path, flags: Flags) -> Servable:
    """Load a SavedModel into a TF1 session; raises Refused or one of TensorFlow's errors."""
    import tensorflow as tf

    if not any((path / file).is_file() for file in ("saved_model.pb", "saved_model.pbtxt")):
        raise Refused("NOT_FOUND", f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {path}")
    session = tf.compat.v1.Session(graph=tf.Graph(), config=_session_config(flags))
    try:
        meta = tf.compat.v1.saved_model.loader.load(session, flags.saved_model_tags.split(","), str(path))
    except BaseException:
        session.close()
        raise
    return Servable(name, version, path, session, dict(meta.signature_def))


def _session_config(flags: Flags) -> Any:
    import tensorflow as tf

    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=flags.tensorflow_intra_op_parallelism or flags.tensorflow_session_parallelism,
        inter_op_parallelism_threads=flags.tensorflow_inter_op_parallelism or flags.tensorflow_session_parallelism,
    )
    config.gpu_options.per_process_gpu_memory_fraction = flags.per_process_gpu_memory_fraction
    config.gpu_options.allow_growth = True  # other programs of a developer's machine want some of it, too
    return config


def run(servable: Servable, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
    """Values of the tensors `fetches`, for arrays by tensor name; raises TensorFlow's errors.

    Arrays go to the runtime as they are: `Session.run` would convert them to what the graph expects, which the real
    server does not.
    """
    import numpy as np

    key = (tuple(feeds), tuple(fetches))
    call = servable.calls.get(key)
    if call is None:
        call = servable.session.make_callable(list(fetches), feed_list=list(feeds))
        if len(servable.calls) < KEPT_CALLS:
            servable.calls[key] = call
    found = call(*feeds.values())
    return [np.asarray(value, dtype=object if isinstance(value, bytes) else None) for value in found]


def close(servable: Servable) -> None:
    """Give the memory back; nothing may be running."""
    servable.calls.clear()
    servable.session.close()


def disable_xla() -> None:
    """Switch XLA off for this process, by the function that TensorFlow Serving calls: what demands it then fails."""
    libraries = list(Path(sysconfig.get_paths()["purelib"], "tensorflow").glob("libtensorflow_cc.*"))
    import tensorflow  # noqa: F401  the library finds its neighbours once it is loaded

    for library in libraries:
        function = getattr(ctypes.CDLL(str(library)), "_ZN10tensorflow21DisableXlaCompilationEv", None)
        if function is not None:
            function()
            return
    raise UserError("this TensorFlow cannot switch XLA off; give --xla_cpu_compilation_enabled")
