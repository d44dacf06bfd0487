"""A person's own network: a Keras file, of which the part below its classifier is the backbone."""

import functools
import re
from pathlib import Path
from typing import Any

from frostline import graphs
from frostline.errors import UserError

TAKEN = ("images", "scaling", "pooling", "output")  # by layers of ours


def build(path: str, x: Any) -> Any:
    """What the network answers to pixels [N, H, W, 3], its weights fresh; raises UserError."""
    import keras

    model = _load(path)
    if any(known not in (None, asked) for known, asked in zip(model.input_shape[1:], x.shape[1:], strict=True)):
        height, width = model.input_shape[1:3]
        raise UserError(
            f"{path} takes images of {height}×{width} pixels, not {x.shape[1]}×{x.shape[2]}; set image_size"
        )
    (images,) = keras.utils.get_source_inputs(x)

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = keras.tree.map_structure(lambda given: x if given is images else given, (args, kwargs))
        return layer(*args, **kwargs)

    inputs, names = keras.tree.map_structure(lambda _: images, model.input), _names(model)
    clone = functools.partial(_fresh, names=names)
    return keras.models.clone_model(model, inputs, clone_function=clone, call_function=call).outputs[0]


def weights(path: str) -> dict[str, list[Any]]:
    """The weights in the file by the names that `build` gives to the layers; raises UserError."""
    model = _load(path)
    names = _names(model)
    return {names[layer.name]: layer.get_weights() for layer in model.layers}


def features(model: Any) -> Any:
    """What the last dense layer of a network reads; the answer itself where no dense layer is the classifier."""
    import keras

    x = model.outputs[0]
    while True:
        operation, number, _ = x._keras_history
        inputs = operation._inbound_nodes[number].input_tensors  # of this call: an operation may be called elsewhere
        if isinstance(operation, keras.layers.Dense):
            return inputs[0]
        if getattr(operation, "weights", None) or len(inputs) != 1:
            return model.outputs[0]
        (x,) = inputs


def _load(path: str) -> Any:
    """The network in a file as one graph; nothing that is code in it is run. Raises UserError."""
    import keras

    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"there is no file {path}; a relative path starts from the current folder, {Path.cwd()}")
    if file.suffix != ".keras":
        raise UserError(f"{path} is not a Keras file; save the network with model.save('{file.stem}.keras')")
    try:
        model = keras.saving.load_model(file, compile=False, safe_mode=True)
    except Exception as error:  # what a file holds can be wrong in any way
        raise UserError(_not_loaded(path, str(error))) from error
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[-1] != 3 or len(model.outputs) != 1:
        raise UserError(f"{path} is no network from images [N, H, W, 3] to one tensor: its input is {shape}")
    return graphs.flatten(model)


def _not_loaded(path: str, reason: str) -> str:
    if "ambda" in reason and "safe_mode" in reason:
        return (
            f"{path} holds a Lambda layer, which is code, and code from files is not run; use a layer of Keras instead"
        )
    if unknown := re.search(r"Could not locate class '(\w+)'", reason):
        return f"{path} needs the layer {unknown[1]}, which Keras does not have; use layers of Keras alone"
    return f"{path} is not a Keras file, or damaged: {reason.strip().split(chr(10))[0]}"


def _fresh(layer: Any, names: dict[str, str]) -> Any:
    """The same layer with weights of its own that train, in the precision that is set."""
    import keras

    if not isinstance(layer, keras.Layer):
        return layer  # an operation has no state
    changes = {"name": names[layer.name], "dtype": keras.config.dtype_policy().name, "trainable": True}
    return type(layer).from_config({**layer.get_config(), **changes})


def _names(model: Any) -> dict[str, str]:
    """What its layers are called in a network of ours, by their names in the file."""
    names = {layer.name: layer.name for layer in model.layers}
    for name in names.keys() & {*TAKEN}:
        while names[name] in TAKEN or list(names.values()).count(names[name]) > 1:
            names[name] = f"file_{names[name]}"
    return names
