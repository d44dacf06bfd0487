"""Warm-up: the requests that a version brings along are answered once before anybody else's."""

from pathlib import Path
from typing import Any

from frostline.serving import classify, predict, servables
from frostline.serving.flags import Flags
from frostline.serving.servables import Servable
from frostline.serving.status import Refused, invalid

FILE = Path("assets.extra", "tf_serving_warmup_requests")
MOST = 1000


def replay(servable: Servable, flags: Flags) -> None:
    """Answer every recorded request; raises Refused or TensorFlow's errors, and then the version must not be served."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    path = servable.path / FILE
    if not path.is_file():
        return
    for i, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()):
        if i >= MOST:
            raise invalid(f"Number of warmup records exceeds the maximum ({MOST}) at {path}")
        log = prediction_log_pb2.PredictionLog.FromString(record)
        for _ in range(flags.num_request_iterations_for_warmup):
            _answer(servable, log, flags.enable_signature_method_name_check)


def _answer(servable: Servable, log: Any, check_method: bool) -> None:
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        job = predict.prepare(servable, log.predict_log.request)
        predict.respond(servable, job, servables.run(servable, job.feeds, list(job.fetches.values())))
    elif kind in ("classify_log", "regress_log"):
        request = getattr(log, kind).request
        method = classify.CLASSIFY if kind == "classify_log" else classify.REGRESS
        tensor, fetches = classify.prepare(servable, request.model_spec.signature_name, method, check_method)
        servables.run(servable, {tensor: classify.examples(request.input)}, list(fetches.values()))
    elif kind == "multi_inference_log":
        request = log.multi_inference_log.request
        for task in request.tasks:
            task.model_spec.name = servable.name
        tensor, several = classify.tasks(servable, request.tasks, check_method)
        names = [name for fetches in several for name in fetches.values()]
        servables.run(servable, {tensor: classify.examples(request.input)}, names)
    else:
        raise Refused("UNIMPLEMENTED", f"Unsupported log_type for warmup: {kind}")
