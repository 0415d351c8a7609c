"""A Keras model comes in, the graph of its operations goes out, or the same layers wired anew.

The wall between this library and the inside of Keras' functional models: what reads or calls their
operations one by one does it through this room. It knows nothing of blocks, images or training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import keras

Shape: TypeAlias = tuple[int | None, ...]

_TO_VECTOR = (
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
)


@dataclass(frozen=True)
class Graph:
    """Operations in topological order; what operation i reads and feeds, by position.

    `shapes[i]` is the shape of its (first) output, `sizes[i]` the spatial part of that,
    `kernels[i]` tells whether it has a weight matrix (a convolution or a dense layer).
    """

    operations: Sequence[Any]
    reads: Sequence[frozenset[int]]
    shapes: Sequence[Shape]
    sizes: Sequence[Shape]
    kernels: Sequence[bool]
    feeds: Sequence[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        feeds: list[list[int]] = [[] for _ in self.operations]
        for i, sources in enumerate(self.reads):
            for source in sources:
                feeds[source].append(i)
        object.__setattr__(self, "feeds", feeds)

    def bottlenecks(self) -> list[bool]:
        """For each position: is its output the only tensor that crosses to what comes after?

        Tensors without a kernel above them (an attention mask, the input of a global residual)
        are not counted: they pass any boundary at no cost.
        """
        last_use = [max(feeds, default=i) for i, feeds in enumerate(self.feeds)]
        learned = list(self.kernels)
        reach, found = -1, []  # furthest reader of what was learned before position i
        for i, use in enumerate(last_use):
            learned[i] = learned[i] or any(learned[j] for j in self.reads[i])
            found.append(reach <= i and (use > i or i == len(last_use) - 1))
            reach = max(reach, use) if learned[i] else reach
        return found

    def without_top(self) -> Graph:
        """The graph without the classifier that follows a global pooling or a flattening."""
        for i, alone in enumerate(self.bottlenecks()):
            if alone and isinstance(self.operations[i], _TO_VECTOR) and any(self.kernels[i:]):
                return Graph(
                    self.operations[:i],
                    self.reads[:i],
                    self.shapes[:i],
                    self.sizes[:i],
                    self.kernels[:i],
                )
        return self


def read(model: keras.Model) -> Graph:
    """The graph of a functional model; one for images of any size is measured at 256 x 256."""
    graph = _read(model)
    if not any(None in _spatial(tuple(tensor.shape)) for tensor in model.inputs):
        return graph
    inputs = keras.tree.map_structure(
        lambda x: keras.Input([256 if n is None else n for n in x.shape[1:]], dtype=x.dtype),
        model.input,
    )
    trial = keras.Model(inputs, rewire(model.input, inputs, model.output))
    return replace(graph, sizes=_read(trial).sizes)


def functional(model: Any) -> keras.Model:
    """The model as one flat graph that shares its layers; a ValueError for what has no graph.

    A model that holds another as one layer (a backbone, a head) is opened, and so is a layer that
    is a stack of repeating units (keras-hub's ViT encoder); the small models that an architecture
    is made of (a stem, a residual unit written as a Sequential) stay one operation.
    """
    inputs = getattr(model, "inputs", None)
    if not isinstance(model, keras.Model) or not inputs or not hasattr(model, "outputs"):
        raise ValueError(
            "`backbone` must be a functional Keras model (or a Sequential that knows its input "
            "shape), because its blocks are read from its graph. Subclass models have none: "
            "rebuild it with the functional API. "
            f"Received: {getattr(model, 'name', model)!r} of type {type(model).__name__}"
        )
    if not hasattr(model, "operations"):  # a Sequential keeps its graph to itself
        model = keras.Model(model.inputs, model.outputs, name=model.name)
    nested = [op for op in model.operations if _is_model(op)]
    heads = [op for op in nested if any(isinstance(layer, _TO_VECTOR) for layer in op.layers)]
    large = [op for op in nested if op not in heads and _count_kernels(op) > 1]
    opened = {id(op) for op in heads + (large if len(large) == 1 else [])}
    stacks = {id(op) for op in model.operations if _is_stack(op)}
    if not opened | stacks:
        return model

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if id(operation) in opened:
            inner = functional(operation)
            return rewire(inner.input, args[0], inner.output)
        if id(operation) in stacks:  # on symbolic tensors, its code wires its own layers
            return operation.call(*args, **kwargs)
        return operation(*args, **kwargs)

    inputs = fresh_inputs(model.input)
    flat = keras.Model(inputs, rewire(model.input, inputs, model.output, call), name=model.name)
    return functional(flat)


def call_operation(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """What `rewire` does for each operation unless told otherwise."""
    return operation(*args, **kwargs)


def rewire(
    sources: Any, targets: Any, outputs: Any, call: Callable[..., Any] = call_operation
) -> Any:
    """Call the operations between two sets of symbolic tensors again, on other tensors.

    Layers are shared, not copied.

    Args:
        sources: where to begin: symbolic tensors that together feed all of `outputs`.
        targets: what takes their place, in the same structure.
        outputs: where to end: symbolic tensors.
        call: what to do for one operation; receives it with its arguments, returns its outputs.

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
        args, kwargs = node.arguments.fill_in(known)
        made = keras.tree.flatten(call(operation, *args, **kwargs))
        known |= {id(old): new for old, new in zip(node.outputs, made, strict=True)}
    return keras.tree.map_structure(lambda tensor: known[id(tensor)], outputs)


def made_by(tensor: Any) -> tuple[Any, Any]:
    """The operation that made a symbolic tensor, and the node of the graph: its call."""
    # Keras has no public way to ask; `_keras_history` is what its own functional models live by.
    operation, node_index, _ = tensor._keras_history
    return operation, operation._inbound_nodes[node_index]


def fresh_inputs(tensors: Any) -> Any:
    """New symbolic inputs of the same structure, shapes and types."""
    return keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype), tensors
    )


def copy(layer: keras.Layer) -> keras.Layer:
    """The same model or layer with variables of its own, and the weights where it has them.

    A layer that was not built yet stays so: it draws its initial weights when it is.
    """
    plain = type(layer).__module__.startswith("keras.")
    if isinstance(layer, keras.Model) and plain:  # others, such as keras-hub's, know how to be made
        twin = keras.models.clone_model(layer)
    else:
        twin = layer.__class__.from_config(layer.get_config())
    if layer.built and layer.weights:
        if not twin.built:
            twin.build_from_config(layer.get_build_config())
        twin.set_weights(layer.get_weights())
    return twin


def is_layer(operation: Any) -> bool:
    """Is it a layer, and no bare operation such as an addition?"""
    return isinstance(operation, keras.Layer)


def is_stochastic(operation: Any) -> bool:
    """Does it, or a layer inside it, draw random numbers in training (Dropout, noise)?"""
    return is_layer(operation) and bool(random_states(operation))


def random_states(layer: keras.Layer) -> list[Any]:
    """The states of its random generators: what Keras keeps among `variables`, not `weights`."""
    weights = {id(weight) for weight in layer.weights}
    return [variable for variable in layer.variables if id(variable) not in weights]


def is_composite(operation: Any) -> bool:
    """Is it one layer made of several weighted ones, such as a transformer's encoder layer?"""
    return is_layer(operation) and _count_kernels(operation) > 1


def _read(model: keras.Model) -> Graph:
    operations = list(model.operations)
    position = {id(op): i for i, op in enumerate(operations)}
    reads: list[set[int]] = [set() for _ in operations]
    shapes = [_shape(op.output) for op in operations]
    pending, seen = list(model.outputs), set()
    while pending:
        operation, node = made_by(pending.pop())
        if id(node) in seen:
            continue
        seen.add(id(node))
        i = position[id(operation)]
        shapes[i] = _shape(node.outputs)
        reads[i] |= {position[id(made_by(tensor)[0])] for tensor in node.input_tensors}
        pending += node.input_tensors
    return Graph(
        operations=operations,
        reads=[frozenset(sources) for sources in reads],
        shapes=shapes,
        sizes=[_spatial(shape) for shape in shapes],
        kernels=[_has_kernel(operation) for operation in operations],
    )


def _has_kernel(operation: Any) -> bool:
    """Has it a weight of two or more axes? PReLU and LayerNorm may, but convolve nothing."""
    if not is_layer(operation):
        return False
    if isinstance(operation, (keras.layers.PReLU, keras.layers.LayerNormalization)):
        return False
    return any(len(weight.shape) > 1 for weight in operation.weights)


def _count_kernels(layer: keras.Layer) -> int:
    inner = layer._flatten_layers(include_self=False)
    return sum(_has_kernel(x) for x in inner if not any(x._flatten_layers(include_self=False)))


def _is_stack(operation: Any) -> bool:
    """Is it a layer that is nothing but two or more composite layers of one kind?"""
    if not is_layer(operation) or isinstance(operation, keras.Model) or _own_variables(operation):
        return False
    units = [x for x in operation._layers if is_composite(x) and not _is_model(x)]
    kinds = {type(unit) for unit in units}
    within = sum(map(_count_kernels, units))
    return len(units) > 1 and len(kinds) == 1 and within == _count_kernels(operation)


def _own_variables(layer: keras.Layer) -> bool:
    return bool(layer._trainable_variables or layer._non_trainable_variables)


def _is_model(operation: Any) -> bool:
    return isinstance(operation, keras.Model) and bool(getattr(operation, "inputs", None))


def _shape(output: Any) -> Shape:
    return tuple(keras.tree.flatten(output)[0].shape)


def _spatial(shape: Shape) -> Shape:
    first = 2 if keras.config.image_data_format() == "channels_first" else 1
    return shape[first : first + len(shape) - 2]
