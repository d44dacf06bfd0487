"""What the children do: each job is one fresh interpreter, started by the harness with `python -m frostline.jobs`."""

import gc
import os
import time
from typing import Any

os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # a GPU's memory is taken as it is needed, and its peak tells
os.environ["KERAS_BACKEND"] = "tensorflow"  # before anything imports Keras; a person's own choice is for their own code

from frostline.errors import UserError
from frostline.jobs import after, before, group, store
from frostline.jobs.common import Emit

JOBS = {
    "preflight": before.preflight,
    "steps": before.steps,
    "features": store.make_features,
    "train": group.run_here,
    "export": after.export,
}


def work(job: dict[str, Any], emit: Emit) -> None:
    """Do one job; a mistake of the user becomes an event, everything else that is wrong ends the child."""
    import keras  # noqa: F401  loading it and TensorFlow is part of the start, not of what is timed

    gc.freeze()  # every new network asks for a collection, which need not go over what stays: 0.2 s each
    job["process_start_seconds"] = time.time() - job["spawned"]
    emit("ready")
    try:
        JOBS[job["action"]](job, emit)
    except UserError as error:
        emit("user_error", message=str(error))
