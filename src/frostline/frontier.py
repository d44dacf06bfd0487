"""The frontier: what lies below it answers the same in every step of a stage, so it is computed once."""

import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from frostline import freezing, graphs
from frostline.errors import UserError, nearest

MODES = ("exact", "inference_prefix")
TRUNK = "trunk"

# Stateful TensorFlow ops that neither write a variable nor draw a number; the bodies of calls are looked at themselves.
HARMLESS = {"ReadVariableOp", "ResourceGather", "StatefulPartitionedCall", "If", "While", "Case"}


@dataclass(frozen=True)
class Cut:
    """A network in two parts that share its layers, so that training the suffix trains the network.

    `prefix` maps images to features, `suffix` features to logits; as everywhere in Keras one tensor is bare, several
    are a list. `boundary` (the layer each feature comes from), `feature_shapes` (without the batch) and
    `feature_dtypes` have one entry per feature. Where nothing is worth computing once, `prefix` is None, the suffix is
    the network itself and the tuples are empty.
    """

    prefix: Any | None
    suffix: Any
    boundary: tuple[str, ...]
    below: tuple[str, ...]
    feature_shapes: tuple[tuple[int, ...], ...]
    feature_dtypes: tuple[str, ...]
    mode: str

    @property
    def image_bytes(self) -> int:
        """Bytes of the features of one image."""
        import tensorflow as tf

        sizes = [tf.as_dtype(dtype).size for dtype in self.feature_dtypes]
        return sum(math.prod(shape) * size for shape, size in zip(self.feature_shapes, sizes, strict=True))


def find(model: Any, *, mode: str = "exact") -> tuple[str, ...]:
    """Names of the layers below the frontier of a masked network, in its order; raises UserError as `split` does."""
    return _names(_below(model, _record(model), _checked(mode)))


def split(model: Any, *, mode: str = "exact", most_bytes: int | None = None) -> Cut:
    """Cut a network, after `freezing.apply`, at the highest frontier that its freeze mask allows.

    With `most_bytes`, at the highest one below it where the features of an image take no more than that.

    A call of a layer lies below when all that it reads does, when none of its weights trains or is moved by training,
    and when it adds nothing to the loss. In the mode `exact` it also computes the same with training on and off and
    draws nothing at random; in the mode `inference_prefix` it may, and the prefix then runs as in inference: without
    dropout, noise and augmentation. A layer that is called twice may lie below with one call and above with the other.

    Penalties on frozen weights need no care, for Keras leaves them out of the loss. A layer that mixes the images of a
    batch without keeping statistics is not recognised. Raises UserError for a network that is not one graph from one
    input, and for one that hands masks along.
    """
    graph = _record(model)
    below = _below(model, graph, _checked(mode), most_bytes)
    return _cut(graph, below, mode) if below else Cut(None, model, (), (), (), (), mode)


def trunk(suffix: Any) -> Cut | None:
    """Cut a suffix of one input above its trunk: what is frozen as well but draws random numbers while training.

    Dropout of ours alone may draw them: the generator of each, and how often it was called, tell its masks, so that
    runs whose trunks are equal meet the same outputs step by step. None where that is no kernel, or leaves another
    number of tensors than one.
    """
    from frostline.layers import Dropout

    if len(suffix.inputs) != 1:
        return None
    graph = _record(suffix)
    below = _below(suffix, graph, TRUNK)
    calls = [call.operation for call in graph.calls]
    twice = any(isinstance(call.operation, Dropout) and calls.count(call.operation) > 1 for call in below)
    return _cut(graph, below, TRUNK) if below and not twice and len(_crossing(graph, below)) == 1 else None


# -- the graph as calls ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a layer or a Keras operation; `inputs` are the tensors among its arguments."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[Any]
    outputs: list[Any]


@dataclass(frozen=True)
class _Graph:
    """A flat network as its calls, each behind those whose outputs it reads."""

    images: Any
    calls: list[_Call]
    outputs: list[Any]


def _record(model: Any) -> _Graph:
    """The calls of a network: its own layers, called once more on an input of their own."""
    import keras

    calls: list[_Call] = []

    def record(operation: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = operation(*args, **kwargs)
        calls.append(_Call(operation, args, kwargs, _tensors((args, kwargs)), _tensors(outputs)))
        return outputs

    copy = keras.models.clone_model(graphs.flatten(model), clone_function=lambda layer: layer, call_function=record)
    for call in calls:
        if any(getattr(x, "_keras_mask", None) is not None for x in call.outputs):
            raise UserError(f"{model.name} hands a mask from {call.operation.name} along, which features cannot carry")
    return _Graph(copy.inputs[0], calls, copy.outputs)


def _tensors(structure: Any) -> list[Any]:
    import keras

    return [x for x in keras.tree.flatten(structure) if isinstance(x, keras.KerasTensor)]


def _call_again(call: _Call, values: Mapping[int, Any], **changes: Any) -> Any:
    """The call on other tensors; `values` gives them by the id of those it was recorded with."""
    import keras

    args, kwargs = keras.tree.map_structure(lambda x: values.get(id(x), x), (call.args, call.kwargs))
    return call.operation(*args, **{**kwargs, **changes})


def _names(calls: Iterable[_Call]) -> tuple[str, ...]:
    """Names of the layers among the operations called, each once."""
    import keras

    return tuple(dict.fromkeys(x.operation.name for x in calls if isinstance(x.operation, keras.Layer)))


# -- where the frontier lies -----------------------------------------------------------------------


def _checked(mode: str) -> str:
    if mode not in MODES:
        raise UserError(f"unknown frontier {mode!r}; {nearest(mode, MODES)}")
    return mode


def _below(model: Any, graph: _Graph, mode: str, most_bytes: int | None = None) -> list[_Call]:
    """The calls below the frontier; none where no kernel is among them, as scaled images are not worth storing."""
    trained = _ids(model.trainable_weights)
    below: list[_Call] = []
    known = {id(graph.images)}
    for call in graph.calls:
        frozen = _ids(call.inputs) <= known and not _ids(_weights(call)) & trained
        if frozen and _left_alone(call, mode):
            below.append(call)
            known |= _ids(call.outputs)
    below = _trim(graph, below)
    while most_bytes is not None and below and _bytes(_crossing(graph, below)) > most_bytes:
        below = _trim(graph, below[:-1])  # the calls are in order, so what is left reads nothing that went
    return below if any(len(weight.shape) > 1 for call in below for weight in _weights(call)) else []


def _trim(graph: _Graph, below: list[_Call]) -> list[_Call]:
    """Leave to the suffix what has no weights, is read by nothing below and makes the features larger: padding, say."""
    read: set[int] = set()
    for call in reversed(below):
        if not _weights(call) and not _ids(call.outputs) & read:
            rest = [x for x in below if x is not call]
            if _bytes(_crossing(graph, rest)) < _bytes(_crossing(graph, below)):
                below = rest
                continue
        read |= _ids(call.inputs)
    return below


def _crossing(graph: _Graph, below: list[_Call]) -> list[Any]:
    """The tensors that are made below, or are the images, and read above."""
    inside = _ids(below)
    read = _ids(graph.outputs).union(*(_ids(call.inputs) for call in graph.calls if id(call) not in inside))
    return [x for x in (graph.images, *(x for call in below for x in call.outputs)) if id(x) in read]


def _cut(graph: _Graph, below: list[_Call], mode: str) -> Cut:
    """Both parts of a graph, given the calls of the lower one."""
    import keras

    features = _crossing(graph, below)
    origin = {id(x): call.operation.name for call in below for x in call.outputs}
    return Cut(
        prefix=keras.Model(graph.images, features, name="prefix"),
        suffix=_suffix(graph, below, features),
        boundary=tuple(origin.get(id(x), x.name) for x in features),
        below=_names(below),
        feature_shapes=tuple(x.shape[1:] for x in features),
        feature_dtypes=tuple(x.dtype for x in features),
        mode=mode,
    )


def _suffix(graph: _Graph, below: list[_Call], features: list[Any]) -> Any:
    """The model of all calls above."""
    import keras

    inputs = [keras.Input(batch_shape=x.shape, dtype=x.dtype, name=f"frontier_{i}") for i, x in enumerate(features)]
    values = dict(zip(map(id, features), inputs, strict=True))
    inside = _ids(below)
    for call in graph.calls:
        if id(call) not in inside:
            outputs = _tensors(_call_again(call, values))
            values.update(zip(map(id, call.outputs), outputs, strict=True))
    bare = inputs[0] if len(inputs) == 1 else inputs
    return keras.Model(bare, [values[id(x)] for x in graph.outputs], name="suffix")


def _ids(things: Iterable[Any]) -> set[int]:
    return {id(x) for x in things}


def _weights(call: _Call) -> list[Any]:
    return getattr(call.operation, "weights", [])


def _bytes(tensors: Iterable[Any]) -> int:
    """Bytes of the tensors of one image; a size that is not known counts as one."""
    import tensorflow as tf

    return sum(math.prod(size or 1 for size in x.shape[1:]) * tf.as_dtype(x.dtype).size for x in tensors)


# -- what training does to a call ------------------------------------------------------------------


@dataclass(frozen=True)
class _Trace:
    """A call as TensorFlow would run it, with its side effects.

    `program` are the ops and constants; `draws` tells whether it changes any state, as random generators do, `moves`
    whether it changes a weight, `adds_loss` whether it adds to the loss.
    """

    program: tuple[tuple[str, bytes], ...]
    draws: bool
    moves: bool
    adds_loss: bool


def _left_alone(call: _Call, mode: str) -> bool:
    """Whether a frozen call answers as in inference while the rest of the network trains, as the mode wants it."""
    known = _known(call.operation, mode)
    if known is not None:
        return known
    on, off = _trace(call, True), _trace(call, False)
    if on.moves or on.adds_loss or off.draws or off.adds_loss:
        return False
    return mode == "inference_prefix" or on == off


def _known(operation: Any, mode: str) -> bool | None:
    """What is known of a layer without two traces, which take milliseconds; None where they are needed."""
    import keras

    from frostline.layers import Dropout

    if not isinstance(operation, keras.Layer):
        return None
    if type(operation) in (keras.layers.Dropout, Dropout) and operation.activity_regularizer is None:
        drops = mode == "exact" or (mode == TRUNK and type(operation) is keras.layers.Dropout)
        return not drops or operation.rate == 0
    return True if _ignores_training(operation) else None


def _ignores_training(layer: Any) -> bool:
    """Whether a layer is known to do the same with training on and off."""
    import keras

    from frostline.layers import BatchNormalization

    if layer.activity_regularizer is not None:
        return False
    if type(layer) in (keras.layers.BatchNormalization, BatchNormalization):
        return freezing.runs_in_inference_mode(layer)
    if type(layer) in (keras.layers.Dense, keras.layers.EinsumDense):
        return layer.quantization_mode is None  # they take `training` for the statistics of float8 alone
    of_keras = getattr(keras.layers, type(layer).__name__, None) is type(layer)
    return of_keras and "training" not in inspect.signature(layer.call).parameters


def _trace(call: _Call, training: bool) -> _Trace:
    """What the call does with training on or off, found without running it and without changing its state."""
    import keras
    import tensorflow as tf

    changes = {"training": training} if isinstance(call.operation, keras.Layer) else {}  # layers alone take it

    def run(*tensors: Any) -> Any:
        return _call_again(call, dict(zip(map(id, call.inputs), tensors, strict=True)), **changes)

    signature = [tf.TensorSpec(x.shape, x.dtype) for x in call.inputs]
    with keras.StatelessScope(collect_losses=True) as scope:
        graph = tf.function(run, autograph=False).get_concrete_function(*signature).graph
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for body in definition.library.function for node in body.node_def)]
    return _Trace(
        program=tuple((node.op, node.attr["value"].SerializeToString()) for node in nodes),
        draws=bool(scope.state_mapping) or any(_is_stateful(node.op) for node in nodes),
        moves=any(scope.get_current_value(weight) is not None for weight in _weights(call)),
        adds_loss=bool(scope.losses),
    )


def _is_stateful(op: str) -> bool:
    """Whether an op of TensorFlow writes or draws, for all that its definition says."""
    from tensorflow.python.framework import op_def_registry

    definition = op_def_registry.get(op)
    return op not in HARMLESS and (definition is None or definition.is_stateful)
