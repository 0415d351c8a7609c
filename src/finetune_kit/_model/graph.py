"""Read, rewire and copy the operations of a Keras model.

Keras has no public interface for the single calls inside a functional model. The names that it
keeps private are therefore used in this module only, each in one small function, and
`tests/test_keras_internals.py` holds one test for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, TypeAlias

import keras

Shape: TypeAlias = tuple[int | None, ...]

# Layers that turn a feature map into a vector. What follows one of them is a classifier.
TO_VECTOR = (
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
)


# What Keras keeps private.


def made_by(tensor: Any) -> tuple[Any, Any]:
    """Return the operation that made a symbolic tensor, and the graph node of that call."""
    operation, node_index, _ = tensor._keras_history
    return operation, operation._inbound_nodes[node_index]


def call_arguments(node: Any, tensors: dict[int, Any]) -> tuple[Any, Any]:
    """Return the arguments of a recorded call, with other tensors in place of its symbolic ones.

    `tensors` maps the `id` of each symbolic tensor to the tensor that replaces it.
    """
    return node.arguments.fill_in(tensors)


def layers_within(layer: keras.Layer) -> list[Any]:
    """Return a layer and, after it, all layers that it contains at any depth."""
    return list(layer._flatten_layers())


def direct_sublayers(layer: keras.Layer) -> list[Any]:
    """Return the layers that a layer itself holds, without those inside them."""
    return list(layer._layers)


def own_weights(layer: keras.Layer) -> list[Any]:
    """Return the variables of this layer alone that could train, whatever `trainable` says."""
    return list(layer._trainable_variables)


def own_statistics(layer: keras.Layer) -> list[Any]:
    """Return the variables of this layer alone that never train, such as moving averages."""
    return list(layer._non_trainable_variables)


def held_back(layer: keras.Layer) -> frozenset[int]:
    """Return the `id` of the weights that a layer keeps from training: the kernel under LoRA."""
    names = ("_kernel", "_embeddings") if getattr(layer, "lora_enabled", False) else ()
    return frozenset(id(getattr(layer, name, None)) for name in names)


# What is built on it.


@dataclass(frozen=True)
class Graph:
    """The operations of a model in topological order, and how they are connected.

    Attributes:
        operations: Keras layers and operations.
        sources: for each operation, the positions of those whose outputs it reads.
        shapes: for each operation, the shape of its first output.
        sizes: the spatial part of these shapes.
        has_kernel: for each operation, whether it has a weight matrix.
        readers: for each operation, the positions of those that read its outputs.
    """

    operations: Sequence[Any]
    sources: Sequence[frozenset[int]]
    shapes: Sequence[Shape]
    sizes: Sequence[Shape]
    has_kernel: Sequence[bool]
    readers: Sequence[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        readers: list[list[int]] = [[] for _ in self.operations]
        for i, sources in enumerate(self.sources):
            for source in sources:
                readers[source].append(i)
        object.__setattr__(self, "readers", readers)

    def bottlenecks(self) -> list[bool]:
        """Return, for each operation, whether all that follows depends on its output alone.

        Tensors without a kernel above them (an attention mask, the input of a global residual)
        do not count: they may cross any boundary, because nothing has to be kept for them.
        """
        last_reader = [max(readers, default=i) for i, readers in enumerate(self.readers)]
        learned = list(self.has_kernel)
        furthest = -1  # the last reader of any learned tensor before position i
        found = []
        for i, last in enumerate(last_reader):
            learned[i] = learned[i] or any(learned[j] for j in self.sources[i])
            found.append(furthest <= i and (last > i or i == len(last_reader) - 1))
            furthest = max(furthest, last) if learned[i] else furthest
        return found

    def without_top(self) -> Graph:
        """Return the graph without the classifier that follows a global pooling or flattening."""
        for i, is_bottleneck in enumerate(self.bottlenecks()):
            to_vector = isinstance(self.operations[i], TO_VECTOR)
            if is_bottleneck and to_vector and any(self.has_kernel[i:]):
                return Graph(
                    self.operations[:i],
                    self.sources[:i],
                    self.shapes[:i],
                    self.sizes[:i],
                    self.has_kernel[:i],
                )
        return self


def read(model: keras.Model) -> Graph:
    """Return the graph of a functional model.

    The sizes in a model for images of any size are those for images of 256 x 256 pixels.
    """
    graph = _read(model)
    if not any(None in _spatial(tuple(tensor.shape)) for tensor in model.inputs):
        return graph
    inputs = keras.tree.map_structure(
        lambda x: keras.Input([256 if n is None else n for n in x.shape[1:]], dtype=x.dtype),
        model.input,
    )
    trial = keras.Model(inputs, rewire(model.input, inputs, model.output))
    return replace(graph, sizes=_read(trial).sizes)


def call_operation(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Call an operation as it is: the default of `rewire`."""
    return operation(*args, **kwargs)


def rewire(
    sources: Any, targets: Any, outputs: Any, call: Callable[..., Any] = call_operation
) -> Any:
    """Call the operations between two sets of symbolic tensors again, on other tensors.

    Layers are shared, not copied.

    Args:
        sources: where to begin: symbolic tensors on which all of `outputs` depend.
        targets: the tensors that replace them, in the same structure.
        outputs: where to end: symbolic tensors.
        call: called with each operation and its arguments; returns the operation's outputs.

    Returns:
        Symbolic tensors in the structure of `outputs`.
    """
    pairs = zip(keras.tree.flatten(sources), keras.tree.flatten(targets), strict=True)
    known = {id(source): target for source, target in pairs}
    pending = keras.tree.flatten(outputs)
    while pending:
        if id(pending[-1]) in known:
            pending.pop()
            continue
        operation, node = made_by(pending[-1])
        missing = [tensor for tensor in node.input_tensors if id(tensor) not in known]
        if missing:
            pending += missing
            continue
        args, kwargs = call_arguments(node, known)
        results = keras.tree.flatten(call(operation, *args, **kwargs))
        known |= {id(old): new for old, new in zip(node.outputs, results, strict=True)}
    return keras.tree.map_structure(lambda tensor: known[id(tensor)], outputs)


def fresh_inputs(tensors: Any) -> Any:
    """Return new symbolic inputs of the same structure, shapes and types, for any batch size."""
    return keras.tree.map_structure(lambda x: keras.Input(x.shape[1:], dtype=x.dtype), tensors)


def functional(inputs: Any, outputs: Any, name: str) -> keras.Model:
    """Return the model between symbolic tensors, with a name of its own for each operation.

    Keras requires that the names in a model differ. Automatic names repeat where layers come from
    different sessions, for example from a file and from this process. Of several operations with
    the same name, all but the first are renamed.
    """
    give_distinct_names(_operations_before(outputs))
    return keras.Model(inputs, outputs, name=name)


def give_distinct_names(operations: Sequence[Any]) -> None:
    """Rename operations whose name an earlier one has: `dense` becomes `dense_x2`."""
    unique = list({id(operation): operation for operation in operations}.values())
    taken = {operation.name for operation in unique}
    seen: set[str] = set()
    for operation in unique:
        if operation.name in seen:
            operation.name = free_name(operation.name, taken)
            taken.add(operation.name)
        seen.add(operation.name)


def free_name(name: str, taken: Container[str]) -> str:
    """Return the name, or the first of `name_x2`, `name_x3`, ... that is not taken."""
    numbered = (f"{name}_x{i}" for i in count(2))
    return name if name not in taken else next(new for new in numbered if new not in taken)


def distinct_paths(variables: Sequence[Any]) -> dict[int, str]:
    """Return the paths of variables by `id`; those that repeat are numbered, see `free_name`."""
    paths: dict[int, str] = {}
    taken: set[str] = set()
    for variable in variables:
        paths[id(variable)] = free_name(variable.path, taken)
        taken.add(paths[id(variable)])
    return paths


def _operations_before(outputs: Any) -> list[Any]:
    """Return the operations that make some tensors: in topological order, but inputs last."""
    found: dict[int, Any] = {}
    pending = keras.tree.flatten(outputs)[::-1]
    while pending:
        operation, node = made_by(pending[-1])
        missing = [x for x in node.input_tensors if id(made_by(x)[1]) not in found]
        if missing and id(node) not in found:
            pending += missing
            continue
        pending.pop()
        found[id(node)] = operation
    return sorted(found.values(), key=lambda op: isinstance(op, keras.layers.InputLayer))


def is_layer(operation: Any) -> bool:
    """Return whether an operation is a layer, and not a bare operation such as an addition."""
    return isinstance(operation, keras.Layer)


def is_composite(operation: Any) -> bool:
    """Return whether an operation is a layer made of several weighted ones (an encoder layer)."""
    return is_layer(operation) and count_kernels(operation) > 1


def count_kernels(layer: keras.Layer) -> int:
    """Return how many of the innermost layers of a layer have a kernel."""
    inner = layers_within(layer)[1:]
    return sum(_has_kernel(x) for x in inner if len(layers_within(x)) == 1)


def _has_kernel(operation: Any) -> bool:
    """Return whether an operation has a weight matrix: a weight of two or more axes.

    PReLU and LayerNormalization may have one too, but scale each value by itself.
    """
    if not is_layer(operation):
        return False
    if isinstance(operation, (keras.layers.PReLU, keras.layers.LayerNormalization)):
        return False
    return any(len(weight.shape) > 1 for weight in operation.weights)


def _read(model: keras.Model) -> Graph:
    operations = list(model.operations)
    position = {id(op): i for i, op in enumerate(operations)}
    sources: list[set[int]] = [set() for _ in operations]
    shapes = [_shape(op.output) for op in operations]
    pending, seen = list(model.outputs), set()
    while pending:
        operation, node = made_by(pending.pop())
        if id(node) in seen:
            continue
        seen.add(id(node))
        i = position[id(operation)]
        shapes[i] = _shape(node.outputs)
        sources[i] |= {position[id(made_by(tensor)[0])] for tensor in node.input_tensors}
        pending += node.input_tensors
    return Graph(
        operations=operations,
        sources=[frozenset(positions) for positions in sources],
        shapes=shapes,
        sizes=[_spatial(shape) for shape in shapes],
        has_kernel=[_has_kernel(operation) for operation in operations],
    )


def _shape(output: Any) -> Shape:
    return tuple(keras.tree.flatten(output)[0].shape)


def _spatial(shape: Shape) -> Shape:
    first = 2 if keras.config.image_data_format() == "channels_first" else 1
    return shape[first : first + len(shape) - 2]
