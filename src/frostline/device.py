"""Seeds, precision and XLA: what was asked and what is in effect."""

import ctypes
import sysconfig
from pathlib import Path
from typing import Any

from frostline.errors import UserError


def configure(precision: str) -> None:
    """Set the precision policy of the models built from here on."""
    import keras

    keras.config.set_dtype_policy(precision)


def seed_everything(seed: int) -> None:
    """Forget earlier models, whose automatic layer names would count on, and seed Python, NumPy and TensorFlow."""
    import keras

    policy = keras.config.dtype_policy().name
    keras.utils.clear_session(free_memory=True)  # forgets the precision policy too
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(seed)


def kind() -> str:
    """`gpu` when TensorFlow sees one, else `cpu`."""
    import tensorflow as tf

    return "gpu" if tf.config.list_physical_devices("GPU") else "cpu"


def mixed_precision() -> str:
    """The mixed precision that fits the device: float16 on a GPU below compute capability 8, else bfloat16."""
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU")[:1]:
        major, _ = tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
        return "mixed_bfloat16" if major >= 8 else "mixed_float16"
    return "mixed_bfloat16"


def disable_xla() -> None:
    """Switch XLA off for this process, by the function that TensorFlow Serving calls: what demands it then fails."""
    import tensorflow  # noqa: F401  its library finds its neighbours once it is loaded

    for library in Path(sysconfig.get_paths()["purelib"], "tensorflow").glob("libtensorflow_cc.*"):
        function = getattr(ctypes.CDLL(str(library)), "_ZN10tensorflow21DisableXlaCompilationEv", None)
        if function is not None:
            function()
            return
    raise UserError("this TensorFlow cannot switch XLA off, as TensorFlow Serving does; install tensorflow 2.21")


def drain() -> None:
    """Wait until the device has done what was asked of it, so that a clock read next tells the truth."""
    if kind() == "gpu":
        import tensorflow as tf

        tf.test.experimental.sync_devices()


def reset_peak_memory() -> None:
    """Start the GPU's peak memory anew; nothing to do without one."""
    if kind() == "gpu":
        import tensorflow as tf

        tf.config.experimental.reset_memory_stats("GPU:0")


def peak_memory_bytes() -> int | None:
    """Largest memory TensorFlow held on the first GPU since the reset; None without a GPU."""
    if kind() != "gpu":
        return None
    import tensorflow as tf

    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


def effective(model: Any) -> dict[str, Any]:
    """Precision and XLA as a compiled model will run: Keras may have declined what was asked."""
    precision = model.get_layer("scaling").dtype_policy.name
    return {"precision": precision, "xla": bool(model.jit_compile), "device": kind()}
