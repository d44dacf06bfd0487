"""SavedModel -> ONNX file, and what its graph is apart from its weights."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

OPSET = 18  # the newest that tf2onnx 1.17 knows


def write(saved_model: Path, path: Path) -> None:
    """Convert the serving signature: names and dtypes kept, a symbolic batch; raises where the result is invalid."""
    import tf2onnx
    from tf2onnx import tf_loader

    signature = "serving_default"
    graph, inputs, outputs, renamed = tf_loader.from_saved_model(
        str(saved_model), None, None, tag=["serve"], signatures=[signature], return_tensors_to_rename=True
    )
    # The public functions start from a Keras model or a Python function. Both turn the constants of a Normalization
    # layer into inputs that the caller would have to give.
    proto, _ = tf2onnx.convert._convert_common(
        graph,
        name=signature,
        input_names=inputs,
        output_names=outputs,
        opset=OPSET,
        tensors_to_rename=renamed,
        custom_op_handlers={"Erfc": (_erfc, [])},
    )
    for value in [*proto.graph.input, *proto.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    _fix_reshapes(proto)
    # tf2onnx only logs what it cannot convert.
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def _erfc(context: Any, node: Any, name: str, args: Any) -> Any:
    """Erfc(x) as 1 - Erf(x): TensorFlow's exact GELU holds it, ONNX and tf2onnx do not."""
    from tf2onnx import utils

    one = np.array(1, utils.map_onnx_to_numpy_type(context.get_dtype(node.output[0])))
    constant = context.make_const(utils.make_name("one"), one)
    node.type, node.domain = "Erf", ""
    difference = context.insert_new_node_on_output("Sub", node.output[0], name=utils.make_name("erfc"))
    context.replace_inputs(difference, [constant.output[0], node.output[0]])
    return difference


def _fix_reshapes(proto: onnx.ModelProto) -> None:
    """Write down the target of each Reshape that is known but for the batch, and drop the nodes that computed it.

    ONNX Runtime computes shapes on the CPU even beside a GPU, which a session without a fallback refuses.
    """
    graph = proto.graph
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in [*inferred.value_info, *inferred.output]}
    for node in graph.node:
        sizes = [size.dim_value for size in shapes.get(node.output[0], [])][1:]
        if node.op_type == "Reshape" and sizes and all(sizes):
            target = onnx.numpy_helper.from_array(np.array([-1, *sizes], np.int64), f"{node.output[0]}/target")
            graph.initializer.append(target)
            node.input[1] = target.name
    needed = {output.name for output in graph.output}
    for i in reversed(range(len(graph.node))):
        if needed.isdisjoint(graph.node[i].output):
            del graph.node[i]
        else:
            needed.update(graph.node[i].input)
    for i in reversed(range(len(graph.initializer))):
        if graph.initializer[i].name not in needed:
            del graph.initializer[i]


def signatures(path: Path) -> dict[str, Any]:
    """What the graph takes and gives, in the form of a SavedModel's signatures."""

    def told(values: Any) -> dict[str, Any]:
        types = {value.name: value.type.tensor_type for value in values}
        return {
            name: {
                "dtype": onnx.TensorProto.DataType.Name(kind.elem_type).lower().replace("float", "float32"),
                "shape": [None if size.dim_param else size.dim_value for size in kind.shape.dim],
            }
            for name, kind in sorted(types.items())
        }

    graph = onnx.load(path).graph
    return {"serving_default": {"inputs": told(graph.input), "outputs": told(graph.output)}}


# -- identity of a graph ---------------------------------------------------------------------------


def graph_hash(path: Path) -> str:
    """SHA-256 of the graph: equal for files that differ in names, in the order of nodes or in values of weights.

    Each tensor's hash is made of its node's type, its attributes and the hashes of the node's inputs. The converter
    drops additions of exact zeros, so a network with untrained offsets has another graph than a trained one.
    """
    graph = onnx.load(path).graph
    known = {"": ""}  # an optional input that is not given
    for value in graph.input:
        known[value.name] = _digest(["input", value.name, value.type.SerializeToString(deterministic=True)])
    for tensor in graph.initializer:
        known[tensor.name] = _digest(_constant(tensor))
    for node in graph.node:  # a node comes after the nodes it reads
        attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
        inputs = [known[name] for name in node.input]
        for i, output in enumerate(node.output):
            known[output] = _digest([node.op_type, node.domain, attributes, inputs, i])
    return _digest([output.name, known[output.name]] for output in graph.output)


def _constant(tensor: onnx.TensorProto) -> list[Any]:
    """What of a constant is structure: dtype and shape, and the values of whole numbers and of scalars.

    Axes, shapes and pads are whole numbers and a pixel scale is a scalar, while weights are floats of rank 1 or more,
    and the names of classes are strings.
    """
    form = ["constant", tensor.data_type, list(tensor.dims)]
    values = onnx.numpy_helper.to_array(tensor)
    return form if values.ndim and values.dtype.kind not in "iub" else [*form, values.tolist()]


def _digest(parts: Iterable[Any]) -> str:
    return hashlib.sha256(repr(list(parts)).encode()).hexdigest()
