"""The tables of the property tests: one row for each optimizer, task, estimator, paper and analysis.

A file in `lopt/optimizers`, `lopt/tasks` or `lopt/estimators` without a row here fails `test_public_api.py`. Adding an optimizer is
one file and one row; every property of `test_optimizers.py` then holds for it or a test fails.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from jaxtyping import Array, PRNGKeyArray, PyTree

import lopt
from lopt.estimators import Particles
from lopt.optimizer import Optimizer
from lopt.task import Task
from lopt.tasks.data.images import fashion_mnist_folder


def _same(optimizer: Optimizer) -> Optimizer:
    return optimizer


class OptimizerRow(NamedTuple):
    """An optimizer.

    Attributes:
        name: its key in `lopt.optimizers.OPTIMIZERS`.
        kind: its class.
        meta_parameters: how many numbers its leaves hold at the defaults.
        converging: constructor arguments with which `prepare` makes it converge on a small quadratic in 800 steps.
        prepare: sets meta-parameters, where random ones cannot be expected to converge.
        per_parameter: whether permuting the rows of a matrix permutes its update.
        learned: whether its meta-parameters are weights that start at random.
        sees_other_tensors: whether the update of a tensor depends on the others.
        sees_axes: whether it knows one axis of a tensor from another.
        heavy: whether its update takes long to compile: most of its properties are then slow tests.
    """

    name: str
    kind: type[Optimizer]
    meta_parameters: int
    converging: Mapping[str, Any]
    prepare: Callable[[Optimizer], Optimizer] = _same
    per_parameter: bool = True
    learned: bool = False
    sees_other_tensors: bool = False
    sees_axes: bool = False
    heavy: bool = False

    def create(self, *, seed: int = 0, **fields: Any) -> Optimizer:
        """The optimizer at its defaults, with some fields changed."""
        return lopt.create(self.name, key=jax.random.key(seed), **fields)

    def create_converging(self, *, seed: int = 0) -> Optimizer:
        """The optimizer with meta-parameters at which it converges on a small quadratic."""
        return self.prepare(self.create(seed=seed, **self.converging))


class TaskRow(NamedTuple):
    """A task.

    Attributes:
        name: of the row.
        kind: its key in `lopt.tasks.TASKS`, or the name of the wrapper.
        module: the file in `lopt/tasks` that it is there to test, as `surfaces/quadratic`.
        build: makes it; use `create`, which makes it once.
        learning_rate: at which 100 steps of Adam lower the loss.
        noisy: whether two keys give two training losses.
        splits: whether its splits hold different examples.
        smooth: whether its loss has the gradient that it shows; not where it rounds.
        precision: relative, of its arithmetic.
        reports: its metrics.
        slow: a second row of its file, or one that takes long to compile.
    """

    name: str
    kind: str
    module: str
    build: Callable[[], Task]
    learning_rate: float
    noisy: bool
    splits: bool
    smooth: bool = True
    precision: float = 1e-5
    reports: tuple[str, ...] = ("loss",)
    slow: bool = False

    def create(self) -> Task:
        """The task; the same object every time."""
        return _build_once(self.name)


class EstimatorRow(NamedTuple):
    """An estimator.

    Attributes:
        name: its key in `lopt.estimators.ESTIMATORS`.
        kind: its class.
        unbiased: whether it is, for truncations shorter than the horizon, where it has truncations.
        fields: constructor arguments of the property tests.
        paired: whether its particles come in antithetic pairs.
        whole: whether it knows no truncation, and every estimate is of whole problems.
        differentiates: whether it backpropagates through the unroll.
    """

    name: str
    kind: type[Particles]
    unbiased: bool
    fields: Mapping[str, Any] = MappingProxyType({})
    paired: bool = True
    whole: bool = False
    differentiates: bool = False

    def create(self, task: Task, **fields: Any) -> Particles:
        """The estimator on a task; `pairs`, `std` and `truncation` are translated or left out where it has no such thing."""
        if not self.paired:
            fields["particles"] = fields.pop("pairs", 8)
            fields.pop("std", None)
        if self.whole:
            truncation = fields.pop("truncation", 20)
            fields["horizon"] = truncation
        return self.kind(task, **{**self.fields, **fields})


def normalised_descent(optimizer: Optimizer) -> Optimizer:
    r"""Weights of a `SmallFC`, and of others with an `AdafactorMLP`, that make it $u = -\lambda_1\, g / \sqrt{10^{-5} + \overline{g^2}}$.

    Two hidden units carry $\mathrm{relu}(\pm g)$ to the direction; all else is zero.
    """
    zero = jax.tree.map(jnp.zeros_like, optimizer)
    first, *middle, last = zero.rule.net.weights  # pyright: ignore[reportAttributeAccessIssue]
    first = first.at[0, 0].set(1.0).at[0, 1].set(-1.0)
    middle = [w.at[0, 0].set(1.0).at[1, 1].set(1.0) for w in middle]
    last = last.at[0, 0].set(1.0).at[1, 0].set(-1.0)
    return eqx.tree_at(lambda o: o.rule.net.weights, zero, (first, *middle, last))


def descent_from_the_bank(optimizer: Optimizer) -> Optimizer:
    """`normalised_descent` for a `VeLO` or `Celo`: all networks of the bank, blended with equal weights, and steps of length one."""
    rule: Any = optimizer.rule  # pyright: ignore[reportAttributeAccessIssue]
    one = normalised_descent(eqx.tree_at(lambda o: o.rule, optimizer, jax.tree.map(lambda x: x[0], rule)))
    share = getattr(optimizer, "bank_mult", 1.0)
    net = jax.tree.map(lambda x: jnp.stack([x / share] * len(rule.net.biases[0])), one.rule.net)  # pyright: ignore[reportAttributeAccessIssue]
    steered = eqx.tree_at(lambda o: o.rule.net, one, net)  # all else is zero
    biases = [steered.controller.controls.bias, steered.controller.step.bias]  # pyright: ignore[reportAttributeAccessIssue]
    return eqx.tree_at(
        lambda o: (o.controller.controls.bias, o.controller.step.bias), steered, [jnp.ones_like(b) for b in biases]
    )


def descent_without_advice(optimizer: Optimizer) -> Optimizer:
    """`normalised_descent` for a `HierarchicalLSTM`, its LSTM silent."""
    zero = jax.tree.map(jnp.zeros_like, optimizer)
    first, *middle, last = zero.net.weights  # pyright: ignore[reportAttributeAccessIssue]
    first = first.at[0, 0].set(1.0).at[0, 1].set(-1.0)
    middle = [w.at[0, 0].set(1.0).at[1, 1].set(1.0) for w in middle]
    last = last.at[0, 0].set(1.0).at[1, 0].set(-1.0)
    return eqx.tree_at(lambda o: o.net.weights, zero, (first, *middle, last))


def without_black_box(optimizer: Optimizer) -> Optimizer:
    """A `STAR` or `RelativeMLP` whose network puts out zero: its nominal term alone."""
    return eqx.tree_at(lambda o: o.rule.net.weights[-1], optimizer, replace_fn=jnp.zeros_like)


def mlp_normalised_descent(optimizer: Optimizer) -> Optimizer:
    """`normalised_descent` for `MLPOptimizer`."""
    zero = jax.tree.map(jnp.zeros_like, optimizer)
    first, *middle, last = zero.net.weights  # pyright: ignore[reportAttributeAccessIssue]
    first = first.at[0, 0].set(1.0).at[0, 1].set(-1.0)
    middle = [w.at[0, 0].set(1.0).at[1, 1].set(1.0) for w in middle]
    last = last.at[0, 0].set(1.0).at[1, 0].set(-1.0)
    return eqx.tree_at(lambda o: o.net.weights, zero, (first, *middle, last))


def gru_descent(optimizer: Optimizer) -> Optimizer:
    r"""Weights of a `GRUOptimizer` that make it $u = -5 \tanh(g/10)$: its first unit forgets at once and holds $\tanh(g/10)$."""
    zero = jax.tree.map(jnp.zeros_like, optimizer)
    return eqx.tree_at(
        lambda o: (o.cell.gates_bias, o.cell.candidate, o.readout),
        zero,
        replace_fn=lambda x: {1: lambda: x - 30.0, 2: lambda: x.at[0, 0].set(0.1 if x.shape[1] > 1 else -5.0)}[
            x.ndim
        ](),
    )


def lstm_descent(optimizer: Optimizer) -> Optimizer:
    r"""Weights of an `LSTMOptimizer` that make it about $u = -g/2$ for moderate $g$.

    In the first layer an input gate $\sigma(\log|g| - 7) \approx e^{-7} |g|$ meets the candidate $\mathrm{sign}\, g$; the second passes it on.
    """
    zero = jax.tree.map(jnp.zeros_like, optimizer)
    n = zero.hidden  # pyright: ignore[reportAttributeAccessIssue]
    write, candidate, forget, read = 0, n, 2 * n, 3 * n
    first, second = zero.cells  # pyright: ignore[reportAttributeAccessIssue]
    weight, bias = first.weight.at[0, write].set(10.0).at[1, candidate].set(20.0), first.bias.at[write].set(-7.0)
    bias = bias.at[forget].set(-30.0).at[read].set(30.0)
    next_weight, next_bias = second.weight.at[0, candidate].set(1.0), second.bias.at[write].set(30.0)
    next_bias = next_bias.at[forget].set(-30.0).at[read].set(30.0)
    return eqx.tree_at(
        lambda o: (*(x for c in o.cells for x in (c.weight, c.bias)), o.readout.weight),
        zero,
        (weight, bias, next_weight, next_bias, zero.readout.weight.at[0, 0].set(-5.0 * math.exp(7.0))),  # pyright: ignore[reportAttributeAccessIssue]
    )


def annealed_hierarchy(optimizer: Optimizer) -> Optimizer:
    """A `HierarchicalRNN` that follows its fastest scaled momentum, at a learning rate that falls by a constant factor a step."""
    return eqx.tree_at(
        lambda o: (o.direction, o.shortcut, o.rate.bias, o.momentum_decay.weight),
        optimizer,
        (
            jnp.zeros_like(optimizer.direction),  # pyright: ignore[reportAttributeAccessIssue]
            jnp.zeros_like(optimizer.shortcut).at[0].set(1.0),  # pyright: ignore[reportAttributeAccessIssue]
            jnp.full_like(optimizer.rate.bias, -0.3),  # pyright: ignore[reportAttributeAccessIssue]
            jnp.zeros_like(optimizer.momentum_decay.weight),  # pyright: ignore[reportAttributeAccessIssue]
        ),
    )


OPTIMIZERS = [
    OptimizerRow("sgd", lopt.optimizers.SGD, 1, {"learning_rate": 0.5}),
    OptimizerRow("momentum", lopt.optimizers.Momentum, 2, {"learning_rate": 0.1, "decay": 0.8}),
    OptimizerRow("rmsprop", lopt.optimizers.RMSProp, 3, {"learning_rate": 0.5, "eps": 1.0}),
    OptimizerRow("adam", lopt.optimizers.Adam, 4, {"learning_rate": 0.05}),
    OptimizerRow("adamw", lopt.optimizers.AdamW, 5, {"learning_rate": 0.05}),
    OptimizerRow(
        "small_fc", lopt.optimizers.SmallFC, 197, {"step_mult": 6e-3}, prepare=normalised_descent, learned=True
    ),
    OptimizerRow(
        "mlp", lopt.optimizers.MLPOptimizer, 1_762, {"step_mult": 6e-3}, prepare=mlp_normalised_descent, learned=True
    ),
    OptimizerRow("gru", lopt.optimizers.GRUOptimizer, 12_801, {"hidden": 4}, prepare=gru_descent, learned=True),
    OptimizerRow(
        "lstm",
        lopt.optimizers.LSTMOptimizer,
        5_141,
        {"hidden": 3},
        prepare=lstm_descent,
        learned=True,
        heavy=True,
    ),
    OptimizerRow(
        "hierarchical_rnn",
        lopt.optimizers.HierarchicalRNN,
        8_349,
        {"initial_rates": (0.5, 0.5)},
        prepare=annealed_hierarchy,
        learned=True,
        sees_other_tensors=True,
        heavy=True,
    ),
    OptimizerRow(
        "star",
        lopt.optimizers.STAR,
        207,
        {"nominal_step": 0.02, "momentum_decays": (0.5, 0.8, 0.9), "second_decay": 0.99},
        prepare=without_black_box,
        learned=True,
    ),
    OptimizerRow(
        "relative_mlp",
        lopt.optimizers.RelativeMLP,
        579,
        {"nominal_step": 0.05, "least_size": 0.2},
        prepare=without_black_box,
        learned=True,
    ),
    OptimizerRow(
        "controlled_muon",
        lopt.optimizers.ControlledMuon,
        1_056,
        {"learning_rate": 0.05, "averaging": 0.95, "weight_decay": 0.0},
        learned=True,
        sees_other_tensors=True,
        sees_axes=True,
    ),
    OptimizerRow(
        "hierarchical_lstm",
        lopt.optimizers.HierarchicalLSTM,
        35_799,
        {"step_mult": 6e-3, "lstm_hidden": 8},
        prepare=descent_without_advice,
        learned=True,
        heavy=True,
        sees_other_tensors=True,
        sees_axes=True,
    ),
    OptimizerRow(
        "velo",
        lopt.optimizers.VeLO,
        2_320_385,
        {"step_mult": 5.2e-3, "lstm_hidden": 8, "bank": 4},
        prepare=descent_from_the_bank,
        learned=True,
        heavy=True,
        sees_other_tensors=True,
    ),
    OptimizerRow(
        "celo",
        lopt.optimizers.Celo,
        37_089,
        {"step_mult": 5.2e-3, "lstm_hidden": 8, "scheduled": False},
        prepare=descent_from_the_bank,
        learned=True,
        heavy=True,
    ),
    OptimizerRow(
        "celo2",
        lopt.optimizers.Celo2,
        347,
        {"learning_rate": 6e-3, "normalize": False},
        prepare=normalised_descent,
        learned=True,
        heavy=True,
    ),
]


def _digits(**fields: Any) -> Callable[[], Task]:
    return lambda: lopt.tasks.digits_mlp(**fields)


def _small_quadratic() -> Task:
    return lopt.tasks.Quadratic(dim=5)


def _reparametrized(level: Any) -> Callable[[], Task]:
    return lambda: lopt.tasks.Reparametrized(_small_quadratic(), level, low=0.1, high=10.0)


AUGMENTED = [
    TaskRow(
        "normalized",
        "Normalized",
        "wrappers/normalized",
        lambda: lopt.tasks.Normalized(_small_quadratic(), initial=1.1, best=0.01),
        0.05,
        noisy=False,
        splits=False,
    ),
    TaskRow(
        "noisy_delayed",
        "NoisyGradients",
        "wrappers/gradients",
        lambda: lopt.tasks.NoisyGradients(lopt.tasks.DelayedGradients(_small_quadratic(), 2), 0.05),
        0.05,
        noisy=False,  # the loss is not
        splits=False,
    ),
    TaskRow(
        "random_subspace",
        "RandomSubspace",
        "wrappers/coordinates",
        lambda: lopt.tasks.RandomSubspace(_small_quadratic(), 4),
        0.05,
        noisy=False,
        splits=False,
    ),
    TaskRow(
        "reduced_batch_bfloat16",
        "ReducedBatch",
        "wrappers/reduced",
        lambda: lopt.tasks.ReducedBatch(
            lopt.tasks.LowPrecision(_digits(widths=(8,), batch_size=32)(), "bfloat16"), 0.5
        ),
        0.01,
        noisy=True,
        splits=True,
        smooth=False,
        precision=2.0**-7,  # a digit of bfloat16
        reports=("loss", "accuracy"),
    ),
]

META_TASKS = [
    TaskRow(
        "learned_optimizer_training",
        "learned_optimizer_training",
        "learned_optimizer_training",
        lambda: lopt.tasks.LearnedOptimizerTraining(lopt.create("momentum"), _small_quadratic(), steps=8, batch_size=2),
        0.1,
        noisy=True,
        splits=False,
    ),
    TaskRow(
        "analytic_continuation",
        "analytic_continuation",
        "surfaces/analytic_continuation",
        lambda: lopt.tasks.AnalyticContinuation(frequencies=17, points=12, noise=0.01, entropy=0.1),
        0.05,
        noisy=False,
        splits=False,  # other measurements of one spectrum, not other examples
        reports=("loss", "l1"),
    ),
    TaskRow(
        "quantized_gnn",
        "quantized_gnn",
        "networks/quantized_gnn",
        lambda: lopt.tasks.QuantizedGNN(nodes=48, classes=3, features=6, hidden=5, noise=1.0, bits=(2, 8)),
        0.02,
        noisy=False,
        splits=False,  # other nodes of the problem's graph: the task holds no examples
        smooth=False,
        reports=("loss", "accuracy", "bits"),
    ),
]


def _learning(
    name: str, kind: str, module: str, *, classifies: bool = True, slow: bool = False, **fields: Any
) -> TaskRow:
    fields = {"batch_size": 16, "eval_size": 300} | fields
    build = functools.partial(lopt.tasks.create, kind, **fields)
    reports = ("loss", "accuracy") if classifies else ("loss",)
    return TaskRow(name, kind, module, build, 0.02, noisy=True, splits=True, reports=reports, slow=slow)


TASKS = [
    TaskRow("quadratic", "quadratic", "surfaces/quadratic", _small_quadratic, 0.05, noisy=False, splits=False),
    TaskRow(
        "quadratic_noisy",
        "quadratic",
        "surfaces/quadratic",
        lambda: lopt.tasks.Quadratic(dim=5, low=-1.0, noise=0.1),
        0.05,
        noisy=True,
        splits=False,
    ),
    TaskRow(
        "digits_mlp",
        "digits_mlp",
        "networks/image_mlp",
        _digits(widths=(8,), batch_size=16),
        0.01,
        noisy=True,
        splits=True,
        reports=("loss", "accuracy"),
    ),
    TaskRow(
        "digits_softmax",
        "digits_mlp",
        "networks/image_mlp",
        _digits(widths=(), batch_size=16),
        0.01,
        noisy=True,
        splits=True,
        reports=("loss", "accuracy"),
    ),
    TaskRow(
        "digits_deep_tanh",
        "digits_mlp",
        "networks/image_mlp",
        _digits(widths=(8, 4), activation="tanh", batch_size=16),
        0.01,
        noisy=True,
        splits=True,
        reports=("loss", "accuracy"),
    ),
    TaskRow(
        "fashion_mlp",
        "fashion_mlp",
        "networks/image_mlp",
        lambda: lopt.tasks.fashion_mlp(size=7, widths=(8,), batch_size=16),
        0.01,
        noisy=True,
        splits=True,
        reports=("loss", "accuracy"),
    ),
    # Learning from real data.
    _learning(
        "digits_mlp_batch_norm", "digits_mlp", "networks/image_mlp", widths=(8,), norm="batch", activation="tanh"
    ),
    _learning(
        "digits_mlp_dropout",
        "digits_mlp",
        "networks/image_mlp",
        slow=True,
        widths=(16,),
        norm="layer",
        activation="gelu",
        dropout=0.2,
    ),
    _learning(
        "conv_net",
        "conv_net",
        "networks/image_conv",
        slow=True,
        filters=((3, 3, 4),),
        objective="squared_error",
        activation="silu",
    ),
    _learning(
        "residual_net",
        "residual_net",
        "networks/image_conv",
        slow=True,
        channels=4,
        blocks=1,
        norm="layer",
        activation="gelu",
    ),
    _learning("inception_net", "inception_net", "networks/inception", slow=True, channels=4, blocks=1),
    _learning("plain_autoencoder", "plain_autoencoder", "networks/autoencoder", widths=(), code=4, classifies=False),
    _learning(
        "variational_autoencoder",
        "variational_autoencoder",
        "networks/autoencoder",
        slow=True,
        widths=(),
        code=4,
        classifies=False,
    ),
    _learning("table_mlp", "table_mlp", "networks/tabular", table="wine", widths=(8,), activation="tanh"),
    _learning(
        "table_regression", "table_mlp", "networks/tabular", slow=True, table="diabetes", widths=(), classifies=False
    ),
    _learning("char_rnn", "char_rnn", "networks/language", slow=True, length=4, cell="rnn", hidden=8, embedding=4),
    _learning(
        "char_transformer", "char_transformer", "networks/language", slow=True, length=4, width=8, depth=1, heads=2
    ),
    _learning("image_vit", "image_vit", "networks/vision_transformer", slow=True, patch=4, width=8, depth=1, heads=2),
    # An MLP on digits with a tenth of the labels noisy; see `test_sampled.py` for the others.
    TaskRow(
        "sampled",
        "sampled",
        "corpora/sampled",
        lambda: lopt.tasks.sample_task(165),
        0.02,
        True,
        True,
        reports=("loss", "accuracy"),
    ),
    # End of learning from real data.
    *(
        TaskRow(
            f"reparametrized_{level}",
            "Reparametrized",
            "wrappers/coordinates",
            _reparametrized(level),
            0.02,
            False,
            False,
        )
        for level in ("global", "tensor", "parameter")
    ),
    TaskRow(
        "reparametrized_digits",
        "Reparametrized",
        "wrappers/coordinates",
        lambda: lopt.tasks.Reparametrized(_digits(widths=(8,), batch_size=16)(), "parameter", low=0.5, high=2.0),
        0.03,
        noisy=True,
        splits=True,
        reports=("loss", "accuracy"),
    ),
    *AUGMENTED,
    *META_TASKS,
    # Analytic families and the ensemble of Wichrowska et al.
    *(
        TaskRow(
            name,
            kind,
            module,
            functools.partial(lopt.tasks.create, kind, **fields),
            rate,
            noisy,
            splits,
            reports=("loss", "accuracy") if module == "networks/small_mlp" else ("loss",),
            slow=slow,
        )
        for name, kind, module, fields, rate, noisy, splits, slow in (
            ("rosenbrock", "landscape", "surfaces/landscapes", {"function": "rosenbrock"}, 0.3, False, False, False),
            (
                "styblinski_tang",
                "landscape",
                "surfaces/landscapes",
                {"function": "styblinski_tang"},
                0.1,
                False,
                False,
                True,
            ),
            ("bowl", "bowl", "surfaces/quadratic", {"angle": 0.8}, 0.05, False, False, True),
            (
                "quadratic_tilted",
                "quadratic",
                "surfaces/quadratic",
                {"dim": 5, "low": -2.0, "tilted": True},
                0.3,
                False,
                False,
                True,
            ),
            ("least_squares", "least_squares", "surfaces/least_squares", {"dim": 6}, 0.05, False, False, True),
            ("p_norm", "p_norm", "surfaces/least_squares", {"dim": 6, "power": 1.5}, 0.05, False, False, False),
            (
                "linear_regression",
                "linear_regression",
                "surfaces/linear_regression",
                {"low": -1.0},
                0.05,
                True,
                False,
                False,
            ),
            (
                "noisy_quadratic",
                "noisy_quadratic",
                "surfaces/noisy_quadratic",
                {"covariance": [0.0, 0.1, 0.1]},
                0.05,
                True,
                False,
                False,
            ),
            ("matmul_search", "matmul_search", "surfaces/matmul", {}, 0.05, False, False, True),
            ("chaotic", "chaotic", "surfaces/chaotic", {"spread": 0.5}, 0.1, False, False, True),
            ("dependency_chain", "dependency_chain", "surfaces/winding", {"dim": 4}, 0.05, False, False, True),
            ("min_max_well", "min_max_well", "surfaces/winding", {"dim": 5}, 0.02, False, False, True),
            ("outward_snake", "outward_snake", "surfaces/winding", {"dim": 4}, 0.05, True, False, False),
            ("projection", "data_quadratic", "surfaces/data_quadratics", {"dim": 4}, 0.05, True, False, False),
            (
                "sum_of_quadratics",
                "data_quadratic",
                "surfaces/data_quadratics",
                {"form": "sum", "dim": 4},
                0.05,
                True,
                False,
                True,
            ),
            ("influence_balancing", "influence_balancing", "surfaces/influence", {}, 0.02, False, False, True),
            ("sparse_softmax", "sparse_softmax", "surfaces/sparse_softmax", {}, 0.1, False, False, True),
            ("clusters", "clusters_mlp", "networks/small_mlp", {"batch_size": 20}, 0.03, True, True, False),
            (
                "random_network_mlp",
                "random_network_mlp",
                "networks/small_mlp",
                {"inputs": 4, "widths": (8,), "batch_size": 64},
                0.1,
                True,
                False,
                True,
            ),
            (
                "two_moons",
                "two_moons",
                "networks/small_mlp",
                {"widths": (8,), "batch_size": 64},
                0.05,
                True,
                True,
                True,
            ),
        )
    ),
    TaskRow(
        "log_bowl",
        "LogObjective",
        "wrappers/combinators",
        lambda: lopt.tasks.LogObjective(lopt.tasks.Bowl()),
        0.05,
        noisy=False,
        splits=False,
        slow=True,
    ),
    TaskRow(
        "sum_of_tasks",
        "SumOfTasks",
        "wrappers/combinators",
        lambda: lopt.tasks.SumOfTasks([lopt.tasks.Bowl(), lopt.tasks.Quadratic(dim=3, noise=0.1)]),
        0.05,
        noisy=True,
        splits=False,
    ),
]

ESTIMATORS = [
    EstimatorRow("pes", lopt.estimators.PES, unbiased=True),
    EstimatorRow("es_single", lopt.estimators.ESSingle, unbiased=True),
    EstimatorRow("noise_reuse_es", lopt.estimators.NoiseReuseES, unbiased=True, fields={"noise_period": 10}),
    EstimatorRow("truncated_es", lopt.estimators.TruncatedES, unbiased=False),
    EstimatorRow("full_es", lopt.estimators.FullES, unbiased=True, whole=True),
    EstimatorRow("backprop", lopt.estimators.Backprop, unbiased=False, paired=False, differentiates=True),
    EstimatorRow("merged", lopt.estimators.Merged, unbiased=False, differentiates=True),
]


@functools.cache
def _build_once(name: str) -> Task:
    return next(row for row in TASKS if row.name == name).build()


def task_marks(row: TaskRow) -> list[pytest.MarkDecorator]:
    """A task whose data are not on this machine is skipped, and nothing else is."""
    missing = row.kind == "fashion_mlp" and fashion_mnist_folder() is None
    marks = [pytest.mark.skip(reason="Fashion-MNIST is not installed")] if missing else []
    return [*marks, pytest.mark.slow] if row.slow else marks


def _rows(
    rows: Sequence[Any], marks: Callable[[Any], list[pytest.MarkDecorator]] = lambda _: []
) -> pytest.MarkDecorator:
    """For `pytest.mark.parametrize`. All tests of a row run in one process, so that what they share is compiled once."""
    return pytest.mark.parametrize(
        "row", [pytest.param(r, id=r.name, marks=[pytest.mark.xdist_group(r.name), *marks(r)]) for r in rows]
    )


optimizer_rows = _rows(OPTIMIZERS)
# One of each family: hand-designed, a tensor at a time, recurrent. For properties of code that all optimizers share.
optimizer_representatives = _rows([row for row in OPTIMIZERS if row.name in ("adam", "small_fc", "gru")])
optimizer_rows_heavy_ones_slow = _rows(OPTIMIZERS, lambda row: [pytest.mark.slow] if row.heavy else [])
task_rows = _rows(TASKS, task_marks)
estimator_rows = _rows(ESTIMATORS)


@contextlib.contextmanager
def as_users_run_it() -> Iterator[None]:
    """Without the type checks of the tests, which would stop a bad argument before lopt's own sentence about it does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def example_params(key: PRNGKeyArray | None = None, dtype: Any = jnp.float32) -> PyTree[Array]:
    """Parameters of every rank that matters: scalar, vector, matrix, convolution, an empty tensor, and a `None`."""
    shapes = {"scalar": (), "bias": (5,), "matrix": (6, 5), "conv": (3, 3, 2, 4), "empty": (0, 3)}
    keys = jax.random.split(jax.random.key(0) if key is None else key, len(shapes))
    params = {
        n: jax.random.normal(k, s, jnp.float32).astype(dtype) for k, (n, s) in zip(keys, shapes.items(), strict=True)
    }
    return params | {"absent": None}


class PaperRow(NamedTuple):
    """A paper.

    Attributes:
        name: its key in `lopt.reproduce.PAPERS`.
        sizes: arguments by claim with which all of it is measured in seconds.
        not_run: claims that are not run at these sizes, for want of weights.
        slow: whether compiling it takes more than a few seconds.
    """

    name: str
    sizes: Mapping[str, Mapping[str, Any]]
    not_run: tuple[str, ...] = ()
    slow: bool = False


REPRODUCED: list[PaperRow] = [
    PaperRow(
        "scale",
        {
            "corpus": {"problems": ("bowl_1",), "steps": 20, "seeds": 2, "learning_rates": (1e-2,)},
            "networks": {"names": ("digits, relu",), "steps": 2, "seeds": 2, "learning_rates": (1e-2,)},
            "networks_with_mlps": {"names": ("digits, relu",), "steps": 2, "seeds": 2, "learning_rates": (1e-2,)},
            "large": {"names": ("inception, small",), "steps": 200},
            "large_lstm": {"names": ("inception, small",), "steps": 200},
            "large_with_mlps": {"names": ("inception, small",), "steps": 200},
            "overhead": {"data": "digits", "channels": 2, "blocks": 1, "batches": (1, 2), "turns": 2},
            "ablations": {"meta_steps": 1},
        },
        not_run=("ablations",),
        slow=True,
    ),
    PaperRow(
        "pathologies",
        {
            "landscape": {"unrolls": (2, 6), "std": 0.3, "spacing": 0.05, "pixel": 0.15},
            "explosion": {"lengths": (2, 4, 8), "starts": 3},
            "truncation": {"truncations": (2, 4), "horizon": 4, "flat": 2, "particles": 2, "meta_steps": 8, "seeds": 2}
            | {"rates": 5, "trainings": 8},
            "variance": {"lengths": (2, 4), "pairs": (2, 3), "repeats": 8, "resamples": 5},
            "influence": {"size": 5, "positive": 2, "horizon": 8, "truncation": 2, "longer": 4, "particles": 4}
            | {"few": 2, "meta_steps": 8, "seeds": 2},
            "headline": {"weights": None},  # a slow test of test_reproduce.py runs it
        },
        not_run=("headline",),
    ),
    PaperRow(
        "stability",
        {
            "box": {"draws": 6, "steps": 60},
            "noise": {"lengths": (2, 4, 6, 8), "batches": 2, "repeats": 8},
            "control": {"draws": 3, "steps": 4},
            # Slow tests of test_reproduce_stability.py run these.
            "meta_training": {"names": ()},
            "longer": {"names": ()},
            "zero_shot": {"names": ()},
            "spectra": {"names": ()},
        },
        not_run=("meta_training", "longer", "zero_shot", "spectra"),
    ),
    PaperRow(
        "self-training",
        {
            "parity": {"seeds": 2, "cycles": 5},
            "acceleration": {"seeds": 2, "cycles": 5},
            "controls": {"names": ("selection",), "seeds": 2, "cycles": 5},
            "horizon": {"cycles": 5, "times": 2},
            "held_out": {"seeds": 2, "cycles": 5, "problems": 2},
            "released": {"weights": ("demo-1",), "pupils": 2, "cycles": 2},
        },
        slow=True,
    ),
    PaperRow(
        "tasks",
        {
            # Tests of test_reproduce_tasks.py judge all but the fourth on scores that are given, and that one on a rule with a known bias.
            "more_tasks": {"meta_steps": 1},
            "architecture": {"meta_steps": 1},
            "clip": {},
            "regularisation": {"starts": 4, "steps": 4},
            "validation": {"meta_steps": 1},
            "axes": {"names": ("share",), "starts": 1, "steps": 10},
            "table": {"tasks": 8, "steps": 40, "trials": 10, "candidates": 10, "tuning": 4}
            | {"programs": ("softmax, breast cancer",)},
        },
        not_run=("more_tasks", "architecture", "validation"),
        slow=True,
    ),
    PaperRow(
        "mechanisms",
        {
            "beats": {"names": ("linear",), "seeds": 3, "trials": 2, "tuning": 2},
            "converges": {"names": ("linear",), "steps": 20},
            "rises": {"names": ("linear",)},
            "adapts": {"names": ("linear",)},
            "ours": {"optimizers": ("demo-1",), "width": 8},
        },
        slow=True,
    ),
    PaperRow(
        "neighbours",
        {
            "continuation": {"noises": (1e-2,), "spectra": 16, "tuning": 2, "learning_rates": (0.1,)},
            "default_model": {"noises": (1e-2,), "spectra": 16},
            "frontier": {"graphs": 16, "tuning": 16, "steps": 50, "costs": (0.3,), "learning_rates": (1e-2,)}
            | {"trainer": "demo-1"},
            "bend": {"graphs": 16, "tuning": 16, "steps": 50, "learning_rates": (1e-2,), "trainer": "demo-1"},
        },
        slow=True,
    ),
]


class AnalysisRow(NamedTuple):
    """An analysis.

    Attributes:
        name: its key in `lopt.analyze.ANALYSES`.
        module: the file in `lopt/analyze`.
        fields: arguments besides optimizer, task and key with which it takes seconds.
        remembers: whether it has a meaning only for a rule that keeps something for a parameter.
    """

    name: str
    module: str
    fields: Mapping[str, Any]
    remembers: bool = False


ANALYSES: list[AnalysisRow] = [
    AnalysisRow("adaptation", "adaptation", {"points": 3, "settle": 20}),
    AnalysisRow("dynamics", "dynamics", {"length": 4, "starts": 2}),
    AnalysisRow("explain", "explain", {"steps": 150}),
    AnalysisRow("momentum", "momentum", {"length": 10, "draws": 2}),
    AnalysisRow("response", "response", {"points": 5, "draws": 2}),
    AnalysisRow("schedule", "schedule", {"steps": 5}),
    AnalysisRow("stability", "stability", {"steps": 4, "checkpoints": 2}),
    AnalysisRow("state_space", "state_space", {"steps": 20}, remembers=True),
]
