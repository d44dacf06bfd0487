"""ONNX Runtime over an `.onnx` file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline import machine
from frostline.errors import optional_import

if TYPE_CHECKING:
    import numpy as np

    from frostline.runtimes import How
    from frostline.runtimes.tf_function import Held

PROVIDERS = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider"}
# The files of a version, by variant.
FILES = {"float32": "model.onnx", "int8": "model.int8.onnx", "float16": "model.float16.onnx"}


def open(folder: Path, manifest: dict[str, Any], how: How) -> Callable[[np.ndarray], np.ndarray]:
    """The `probabilities` of the graph."""
    session = _session(folder, how.device, threads(how), how.variant)
    return lambda images: session.run(["probabilities"], {"images": images})[0]


def hold(folder: Path, manifest: dict[str, Any], how: How) -> Callable[[np.ndarray], Held]:
    """The same graph through an IO binding: images lie on the device already, probabilities are left there."""
    ort = optional_import("onnxruntime", how.device)
    session = _session(folder, how.device, threads(how), how.variant)
    place = {"cpu": "cpu", "gpu": "cuda"}[how.device]

    def put(images: np.ndarray) -> Held:
        binding = session.io_binding()
        binding.bind_ortvalue_input("images", ort.OrtValue.ortvalue_from_numpy(images, place, 0))
        binding.bind_output("probabilities", place)

        def run() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run, lambda: binding.copy_outputs_to_cpu()[0]

    return put


def outputs(
    folder: Path, device: str, threads: int = 0, variant: str = "float32"
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """From uint8 images [N,H,W,3] to what the graph gives, by name; `threads` of a call, 0: as many as cores."""
    session = _session(folder, device, threads, variant)
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


def threads(how: How) -> int:
    """Threads of a call, said in numbers: left alone, libraries count cores in ways of their own."""
    return how.threads or machine.cores()


def _session(folder: Path, device: str, threads: int = 0, variant: str = "float32") -> Any:
    """A session that runs on the device and nowhere else; raises where ONNX Runtime would take another."""
    ort = optional_import("onnxruntime", device)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    graph: str | bytes = str(folder / FILES[variant])
    if device == "gpu":
        # A node that CUDA cannot run is an error; ONNX Runtime would move it to the CPU and say so in a log.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        graph = without_strings(folder / FILES[variant])
    session = ort.InferenceSession(graph, options, providers=[PROVIDERS[device]])
    if session.get_providers()[0] != PROVIDERS[device]:
        raise RuntimeError(f"ONNX Runtime chose {session.get_providers()[0]}, not {PROVIDERS[device]}")
    return session


def without_strings(path: Path) -> bytes:
    """The graph without the outputs that are class names: CUDA knows no strings."""
    import onnx

    proto = onnx.load(path)
    kept = [value for value in proto.graph.output if value.type.tensor_type.elem_type != onnx.TensorProto.STRING]
    needed = {value.name for value in kept}
    nodes: list[Any] = []
    for node in reversed(proto.graph.node):
        if not needed.isdisjoint(node.output):
            nodes.insert(0, node)
            needed.update(node.input)
    del proto.graph.output[:], proto.graph.node[:]
    proto.graph.output.extend(kept)
    proto.graph.node.extend(nodes)
    return proto.SerializeToString()
