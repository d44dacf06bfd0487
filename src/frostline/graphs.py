"""Networks made of networks as one graph, and what their configurations have in common."""

from typing import Any

from frostline.errors import UserError


def flatten(model: Any) -> Any:
    """An equal functional model of the same layers in which no layer is a model with a graph of its own.

    A `training` argument baked into a call of a nested model is handed to the layers in it, where `fit` and `predict`
    override it as they do outside. Raises UserError when the network is not one graph from one input, or when two
    nested layers share a name.
    """
    import keras

    if not _is_graph(model) or len(model.inputs) != 1:
        raise UserError(f"{model.name} cannot be split: it has to be a functional or sequential model of one input")

    def inline(operation: Any, *args: Any, **kwargs: Any) -> Any:
        return (operation.call if _is_graph(operation) else operation)(*args, **kwargs)

    flat = keras.Model(model.inputs, model.outputs, name=model.name)
    while any(_is_graph(layer) for layer in flat.layers):
        try:
            flat = keras.models.clone_model(flat, clone_function=lambda layer: layer, call_function=inline)
        except ValueError as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"{model.name} cannot be split: its nested models do not fit in one: {reason}") from error
    return flat


def without(config: Any, *keys: str) -> Any:
    """A configuration of Keras without some keys, wherever they stand in it."""
    if isinstance(config, dict):
        return {k: without(v, *keys) for k, v in config.items() if k not in keys}
    return [without(v, *keys) for v in config] if isinstance(config, (list, tuple)) else config


def _is_graph(operation: Any) -> bool:
    """Whether it is a functional or sequential model; one with a `call` of its own is a layer like others."""
    import keras

    if not isinstance(operation, keras.Model) or getattr(operation, "inputs", None) is None:
        return False
    return type(operation).call.__module__.startswith("keras.")
