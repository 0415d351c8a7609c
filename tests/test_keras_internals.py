"""What the library takes from the inside of Keras: one test for each private name and behaviour.

If a test fails with a new release of Keras, its docstring names what must be adapted.
"""

from __future__ import annotations

import ast
import random
from pathlib import Path

import keras
import numpy as np
import pytest

import finetune_kit as ftk
from finetune_kit._train.callbacks import _STATE
from finetune_kit._train.workers import _own_randomness

PACKAGE = Path(ftk.__file__).parent
# The only module that may use private names of Keras, and the names of other origin.
WALL = "_model/graph.py"
OWN = {"_repr_html_", "_exit"}  # of IPython and of os

layers = keras.layers


def numpy(tensor) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


def private_names(file: Path) -> set[str]:
    """The private attributes that a module reads of other objects than `self`."""
    return {
        node.attr
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }


def test_private_names_of_keras_are_used_in_the_wall_only():
    private = {file: private_names(file) - OWN for file in PACKAGE.rglob("*.py")}
    outside = {file for file, names in private.items() if names}
    assert outside == {PACKAGE / WALL}


# The graph of a model: used in _model/graph.py.


def test_keras_history_leads_from_a_tensor_to_the_call_that_made_it():
    """`_keras_history`, `_inbound_nodes`, `input_tensors`, `outputs`: used by `made_by`.

    Without them no model can be read, cut, stitched or trained, and `grad_cam` finds no block.
    """
    inputs = keras.Input((4,))
    shared = layers.Dense(4)
    first = shared(inputs)
    second = shared(first)
    for number, (source, made) in enumerate([(inputs, first), (first, second)]):
        operation, node_index, tensor_index = made._keras_history
        assert (operation, node_index, tensor_index) == (shared, number, 0)
        node = operation._inbound_nodes[node_index]
        assert [id(tensor) for tensor in node.input_tensors] == [id(source)]
        assert [id(tensor) for tensor in node.outputs] == [id(made)]


def test_fill_in_replaces_the_tensors_of_a_recorded_call():
    """`node.arguments.fill_in`: used by `call_arguments`, without which nothing can be rewired."""
    inputs = keras.Input((4,))
    one, several = layers.ReLU()(inputs), layers.Add()([inputs, inputs])
    by_name = layers.Dropout(0.5)(inputs, training=False)
    for tensor, expected in [
        (one, (("new",), {})),
        (several, ((["new", "new"],), {})),
        (by_name, (("new",), {"training": False})),
    ]:
        operation, node_index, _ = tensor._keras_history
        args, kwargs = operation._inbound_nodes[node_index].arguments.fill_in({id(inputs): "new"})
        assert (tuple(args), kwargs) == expected


def test_a_functional_model_lists_its_operations_in_topological_order():
    """`Functional.operations`: used by `read`, without which there are no blocks."""
    inputs = keras.Input((4,))
    late, early = layers.Dense(4, name="late"), layers.Dense(4, name="early")
    x = early(inputs)
    model = keras.Model(inputs, x + late(x))
    names = [operation.name for operation in model.operations]
    assert names[1:3] == ["early", "late"]
    assert names[3].startswith("add")
    assert len(names) == 4


def test_flatten_layers_lists_a_layer_before_the_layers_inside_it():
    """`_flatten_layers`: used by `layers_within`, without which plans miss nested layers."""
    inner, deep = layers.Dense(2, name="inner"), layers.Dense(2, name="deep")
    middle = keras.Sequential([deep], name="middle")
    outer = keras.Sequential([inner, middle], name="outer")
    names = [layer.name for layer in outer._flatten_layers()]
    assert names[0] == "outer"
    assert sorted(names[1:]) == ["deep", "inner", "middle"]
    assert names.index("middle") < names.index("deep")
    assert [layer.name for layer in deep._flatten_layers()] == ["deep"]


def test_layers_lists_the_direct_sublayers():
    """`_layers`: used by `direct_sublayers`, without which stacks of units stay one block."""

    class Stack(keras.Layer):
        def __init__(self):
            super().__init__()
            self.units = [keras.Sequential([layers.Dense(2)]) for _ in range(3)]

    stack = Stack()
    assert list(stack._layers) == stack.units


def test_own_variables_are_listed_whatever_the_flags_say():
    """`_trainable_variables`, `_non_trainable_variables`: used by `own_weights`, `own_statistics`.

    Without them a plan does not know which variables training would update.
    """
    norm = layers.BatchNormalization(name="norm")
    norm.build((None, 4))
    for trainable in (True, False):
        norm.trainable = trainable
        assert [v.path for v in norm._trainable_variables] == ["norm/gamma", "norm/beta"]
        statistics = [v.path for v in norm._non_trainable_variables]
        assert statistics == ["norm/moving_mean", "norm/moving_variance"]
    nested = keras.Sequential([keras.Input((4,)), norm])
    assert not nested._trainable_variables
    assert not nested._non_trainable_variables


def test_lora_keeps_the_kernel_under_a_private_name():
    """`_kernel`, `_embeddings`: used by `held_back`. Otherwise plans list kernels that stay."""
    for layer, name in ((layers.Dense(2), "_kernel"), (layers.Embedding(4, 3), "_embeddings")):
        layer.build((None, 3))
        layer.enable_lora(1)
        assert layer.lora_enabled
        assert getattr(layer, name) is layer.weights[0]
        assert not layer.weights[0].trainable


def test_random_generators_keep_their_state_in_variables_and_not_in_weights():
    """Used by `random_states` and `is_stochastic`, by which Dropout and its like are recognized."""
    dropout, dense = layers.Dropout(0.5), layers.Dense(2)
    dense.build((None, 2))
    assert len(dropout.variables) == 1
    assert not dropout.weights
    assert len(dense.variables) == len(dense.weights) == 2


def test_models_of_keras_come_from_modules_of_keras():
    """Used by `copy`: other models, such as keras-hub's, are copied by their config."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    assert type(model).__module__.startswith("keras.")
    assert type(keras.Model(model.inputs, model.outputs)).__module__.startswith("keras.")


def test_call_on_symbolic_tensors_records_the_layers_of_a_stack():
    """Used by `flattened`: `call` of a stack of units records each unit as an operation."""

    class Stack(keras.Layer):
        def __init__(self):
            super().__init__()
            self.units = [layers.Dense(4, name=f"unit{i}") for i in range(2)]

        def call(self, x):
            for unit in self.units:
                x = unit(x)
            return x

    inputs = keras.Input((4,))
    model = keras.Model(inputs, Stack().call(inputs))
    assert [operation.name for operation in model.operations[1:]] == ["unit0", "unit1"]


def test_a_weight_in_a_nested_functional_model_has_the_path_of_its_layer_alone():
    """Why paths are checked to be unique. If this fails, the check may have become superfluous."""
    inputs = keras.Input((4,))
    inner = keras.Model(inputs, layers.Dense(4, name="dense")(inputs), name="inner")
    outer = keras.Model(inputs, inner(inputs), name="outer")
    assert [weight.path for weight in outer.weights] == ["dense/kernel", "dense/bias"]


# How Keras runs frozen layers, and when it builds.


def test_a_frozen_batch_normalization_runs_in_inference_mode():
    """What `batch_norm="frozen"` and the frozen prefix rely on."""
    norm = layers.BatchNormalization()
    x = np.arange(8, dtype="float32").reshape(4, 2)
    norm.build(x.shape)
    norm.trainable = False
    assert np.array_equal(numpy(norm(x, training=True)), numpy(norm(x, training=False)))
    assert np.array_equal(numpy(norm.moving_mean), np.zeros(2))


def test_dropout_runs_in_a_frozen_model_that_is_called_with_training_false():
    """Why `build` leaves frozen Dropout out. If this fails, it need not any more."""
    x = np.ones((64, 8), "float32")
    inputs = keras.Input((8,))
    frozen = keras.Model(inputs, layers.Dropout(0.9)(inputs))
    frozen.trainable = False
    model = keras.Model(inputs, frozen(inputs, training=False))
    assert not np.array_equal(numpy(model(x, training=True)), numpy(model(x, training=False)))


def test_a_sequential_that_begins_with_a_model_is_built_at_once():
    """Why a head with `pooling="avgmax"` begins with an Identity. If this fails, it need not."""
    features = keras.Input((None, None, None))
    pool = keras.Model(features, layers.GlobalAveragePooling2D()(features))
    with pytest.raises(ValueError, match="None"):
        keras.Sequential([pool, layers.Dense(2)])
    assert not keras.Sequential([layers.Identity(), pool, layers.Dense(2)]).built


# How Keras trains: used in _train/.


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow waits there")
def test_the_train_function_takes_the_data_iterator_and_can_be_wrapped():
    """`make_train_function`, `train_function`: used by `_train/iterators.py`.

    Without them `fit` waits for its data iterator when it ends.
    """
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    model.make_train_function()
    step, seen = model.train_function, []

    def wrapped(iterator):
        seen.append(iterator)
        return step(iterator)

    model.train_function = wrapped
    model.fit(np.ones((4, 2)), np.ones((4, 1)), batch_size=2, epochs=2, verbose=0)
    assert len(seen) == 4
    assert model.train_function is wrapped


@pytest.mark.parametrize(("kind", "names"), _STATE.items(), ids=[kind.__name__ for kind in _STATE])
def test_callbacks_keep_their_state_in_these_attributes_and_reset_them(kind, names):
    """`best`, `wait`, `best_weights`, ...: used by `_train/callbacks.py`.

    If a name changes, a resumed run forgets what early stopping or ReduceLROnPlateau knew.
    """
    options = {"filepath": "unused.weights.h5", "save_weights_only": True}
    callback = kind(**options) if kind is keras.callbacks.ModelCheckpoint else kind()
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    callback.set_model(model)
    callback.on_train_begin()
    assert set(names) <= set(vars(callback))


@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop", "adagrad", "lion", "ftrl"])
def test_slots_of_an_optimizer_are_named_by_the_path_of_their_variable(name):
    """The names of `Optimizer.variables`: used by `_train/optimizer.py`.

    Without them the state of a variable is not carried into the next phase.
    """
    variable = keras.Variable(np.ones((2, 2), "float32"), name="kernel")
    options = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = keras.optimizers.get({"class_name": name, "config": options})
    optimizer.build([variable])
    slots = [slot.name for slot in optimizer.variables]
    assert slots[:2] == ["iteration", "learning_rate"]
    assert slots[2:]
    assert all(variable.path.replace("/", "_") in slot for slot in slots[2:])


def test_a_used_optimizer_cannot_take_other_variables():
    """Why each phase has a new optimizer. If this fails, one could be reused."""
    first, second = (keras.Variable(np.ones(2, "float32")) for _ in range(2))
    optimizer = keras.optimizers.SGD()
    optimizer.build([first])
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([np.ones(2, "float32")], [second])


def test_initial_weights_come_from_the_random_numbers_of_two_modules():
    """`_train/workers.py` replaces them, so that other threads do not change the weights."""

    def initial() -> np.ndarray:
        keras.utils.set_random_seed(3)
        random.random()  # as another thread may do
        dense = layers.Dense(4)
        dense.build((None, 4))
        return numpy(dense.kernel)

    shifted = initial()
    with _own_randomness():
        own = initial()
    keras.utils.set_random_seed(3)
    dense = layers.Dense(4)
    dense.build((None, 4))
    assert (own == numpy(dense.kernel)).all()
    assert (shifted != own).any()
