"""TensorFlow Serving's batching: the sizes that models are warmed up for, and its parameter files."""

from collections.abc import Sequence

FILE = "batching_params.pbtxt"  # a version's own
WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
MOST_WARMUP = 1000  # with more records TensorFlow Serving refuses the version
# A batch is padded to the next of these. Each is warmed up for every signature of a version, so they are few.
ALLOWED_SIZES = (1, 2, 4, 8, 16, 32)
# How long the first image of a batch waits for others, where nothing was measured.
TIMEOUT_MICROS = 5_000
# Batches that may wait for a thread; what comes on top is refused with UNAVAILABLE. TensorFlow Serving's own 10 is too
# few for a few hundred clients at once.
MAX_ENQUEUED = 100


def threads(cores: int) -> int:
    """How many batches run at once: each uses several cores itself, and while it runs the next one fills."""
    return max(1, cores // 2)


def parameters(
    sizes: Sequence[int] = ALLOWED_SIZES, *, timeout_micros: int = TIMEOUT_MICROS, threads: int | None = None
) -> str:
    """A text BatchingParameters: batches of up to the last of `sizes`, padded to one of them.

    A request may have as many images as warm-up requests have, which come through the same batching: larger ones are
    spread over several batches.
    Without `threads` it is a version's own, which lies in a version's folder and is read under
    `--enable_per_model_batching_parameters`; the number of threads always comes from the server's file.
    """
    lines = [
        f"max_batch_size {{ value: {ALLOWED_SIZES[-1]} }}  # a request with more images is refused",
        f"batch_timeout_micros {{ value: {timeout_micros} }}",
        f"max_enqueued_batches {{ value: {MAX_ENQUEUED} }}",
    ]
    if sizes[-1] < ALLOWED_SIZES[-1]:
        lines.append(f"max_execution_batch_size {{ value: {sizes[-1]} }}  # the last allowed size")
        lines.append("enable_large_batch_splitting { value: true }")
    if threads is not None:
        lines.append(f"num_batch_threads {{ value: {threads} }}")
    return "\n".join(lines + [f"allowed_batch_sizes: {size}" for size in sizes]) + "\n"
