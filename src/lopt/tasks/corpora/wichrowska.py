"""The task ensemble of Wichrowska et al. 2017, member by member.

`WICHROWSKA2017` holds the families that the release meta-trains on, `WICHROWSKA2017_OFF` those that it ships but leaves off, and
`WICHROWSKA2017_TEST` its held-out problems; each from a name to what builds the task. Dimensions, noise, batches and scales are the release's. What differs:

- Every problem of a task draws its own matrices, data and labels; a process of the release draws them once.
- Parameters of one column are vectors. Minibatches are drawn with replacement.
- In the noisy sums the parts' gradients are noisy, as their definition says; the release's sum loses that noise.
- Off: its ten dependency chains differ by data that their loss never reads, so there are five here. `quadratic_25` is on already.
- Test: Fashion-MNIST stands in for MNIST, in networks with equinox's initialisation; the ten-class network of clusters, on which the release raises an
  error, has softmax cross-entropy.

Source: Wichrowska et al. 2017, the released problem sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from lopt.task import Task
from lopt.tasks.networks.image_conv import conv_net
from lopt.tasks.networks.image_mlp import fashion_mlp
from lopt.tasks.networks.small_mlp import clusters_mlp, random_network_mlp
from lopt.tasks.surfaces.data_quadratics import DataQuadratic
from lopt.tasks.surfaces.landscapes import SURFACES, Landscape
from lopt.tasks.surfaces.least_squares import LeastSquares, PNorm
from lopt.tasks.surfaces.matmul import MatMulSearch
from lopt.tasks.surfaces.quadratic import Bowl
from lopt.tasks.surfaces.sparse_softmax import SparseSoftmax
from lopt.tasks.surfaces.winding import DependencyChain, MinMaxWell, OutwardSnake
from lopt.tasks.wrappers.combinators import LogObjective, SumOfTasks, rescaled
from lopt.tasks.wrappers.gradients import NoisyGradients, SparseGradients

Builder = Callable[[], Task]
FILTERS = ((3, 3, 8), (5, 5, 8))  # of the held-out conv nets: height, width, channels


def _noisy(build: Builder, deviation: float) -> Task:
    """The task of `build` with normal noise of this deviation on every element of its gradient."""
    return NoisyGradients(build(), deviation)


def _sparse(build: Builder) -> Task:
    """The task of `build` with every element of its gradient zero with probability 0.99."""
    return SparseGradients(build(), 0.99)


def _log(build: Builder) -> Task:
    return LogObjective(build())


def _rescaled(build: Builder, scale: float) -> Task:
    return rescaled(build(), scale)


def _sum(builders: Sequence[Builder]) -> Task:
    return SumOfTasks([build() for build in builders])


def _quadratic(dim: int) -> Builder:
    return partial(LeastSquares, dim=dim)


def _norm(dim: int, power: float) -> Builder:
    return partial(PNorm, dim=dim, power=power)


def _surface(function: str) -> Builder:
    return partial(Landscape, function)


def _mlp(inputs: int, widths: tuple[int, ...], batch_size: int) -> Builder:
    return partial(random_network_mlp, inputs=inputs, widths=widths, batch_size=batch_size)


BOWLS: dict[str, Builder] = {
    "bowl_0.1": partial(Bowl, condition=0.1),
    "bowl_1": partial(Bowl, condition=1.0),
    "bowl_5": partial(Bowl, condition=5.0),
    "bowl_5_rotated": partial(Bowl, condition=5.0, angle=math.pi / 4.0),
}
# inputs, separation of the classes, batch, deviation of the noise in the noisy copy
_LOGISTIC = ((10, 2.0, 100, 0.5), (100, 1.0, 50, 0.1), (200, 1.5, 20, 0.1), (256, 1.5, 100, 0.5))
LOGISTIC: dict[str, Builder] = {
    f"logistic_{d}": partial(clusters_mlp, inputs=d, separation=sep, batch_size=batch) for d, sep, batch, _ in _LOGISTIC
}
FUNCTIONS: dict[str, Builder] = {name: _surface(name) for name in SURFACES}
# inputs, hidden widths, batch
_MLPS = (
    (8, (8, 5), 10),
    (12, (8, 5, 3), 200),
    (5, (4, 4, 4, 4), 100),
    (11, (4, 5, 6), 64),
    (9, (8,), 128),
    (7, (8, 5), 16),
    (8, (32, 64), 10),
    (12, (16, 8, 3), 200),
    (5, (8, 8, 8, 8), 100),
    (11, (10, 12, 12), 64),
    (9, (32,), 128),
    (7, (32, 64), 16),
)
MLPS: dict[str, Builder] = {f"mlp_{'_'.join(map(str, (d, *w)))}_batch_{b}": _mlp(d, w, b) for d, w, b in _MLPS}

_ALL_FUNCTIONS = [
    _surface(name)
    for name in (
        *("rosenbrock", "log_sum_exp", "ackley", "beale", "booth"),
        *("styblinski_tang", "matyas", "branin", "michalewicz"),
    )
]
_SEVEN = [_quadratic(n) for n in (11, 3, 9, 7, 5, 13, 12)]

WICHROWSKA2017: dict[str, Builder] = {
    "quadratic_20_noisy": partial(_noisy, _quadratic(20), 0.5),
    "quadratic_25": _quadratic(25),
    "quadratic_50_noisy": partial(_noisy, _quadratic(50), 1.0),
    "quadratic_100_noisy": partial(_noisy, _quadratic(100), 2.0),
    **{f"quadratic_{n}": _quadratic(n) for n in (784, 1024, 2048)},
    **BOWLS,
    **{f"{name}_noisy": partial(_noisy, build, 0.1) for name, build in BOWLS.items()},
    **LOGISTIC,
    **{f"logistic_{d}_noisy": partial(_noisy, LOGISTIC[f"logistic_{d}"], noise) for d, _, _, noise in _LOGISTIC},
    **FUNCTIONS,
    **{f"{name}_noisy": partial(_noisy, build, 1.0) for name, build in FUNCTIONS.items()},
    **MLPS,
    **{f"matmul_2_{k}": partial(MatMulSearch, n=2, k=k) for k in range(5, 9)},
    **{f"matmul_3_{k}": partial(MatMulSearch, n=3, k=k) for k in range(19, 25)},
    **{f"log_quadratic_{n}": partial(_log, _quadratic(n)) for n in (20, 50, 100)},
    **{f"log_bowl_{k}": partial(_log, BOWLS[f"bowl_{k}"]) for k in ("0.1", "1", "5")},
    **{
        f"rescaled_norm_18_p_{p:g}": partial(_rescaled, _norm(18, p), scale)
        for p, scale in ((2.5, 0.123), (1.5, 8.0), (2.0, 50.0), (3.0, 200.0), (1.0, 1000.0))
    },
    **{
        f"rescaled_quadratic_{n}": partial(_rescaled, _quadratic(n), scale)
        for n, scale in ((20, 0.1), (25, 10.0), (50, 350.0), (100, 132.0))
    },
    **{f"norm_{n}_p_{p:g}": _norm(n, p) for n, p in ((27, 1.0), (25, 2.0), (22, 3.0))},
    **{f"norm_{n}_p_{p:g}_noisy": partial(_noisy, _norm(n, p), 0.1) for n, p in ((19, 1.0), (26, 2.0), (23, 3.0))},
    "sum_7_quadratics": partial(_sum, _SEVEN),
    "sum_norm_quadratic_rosenbrock": partial(_sum, [_norm(18, 3.0), _quadratic(25), _surface("rosenbrock")]),
    "sum_9_functions": partial(_sum, _ALL_FUNCTIONS),
    "sum_9_functions_2_quadratics": partial(_sum, [*_ALL_FUNCTIONS, _quadratic(5), _quadratic(13)]),
    "sum_2_quadratics": partial(_sum, [_quadratic(11), _quadratic(3)]),
    "sum_3_functions": partial(_sum, _ALL_FUNCTIONS[:3]),
    "sum_7_quadratics_noisy": partial(_sum, [partial(_noisy, build, 0.1) for build in _SEVEN]),
    "sum_9_functions_2_quadratics_noisy": partial(
        _sum, [*_ALL_FUNCTIONS, _quadratic(5), partial(_noisy, _quadratic(13), 0.5)]
    ),
    **{f"sparse_quadratic_{n}": partial(_sparse, _quadratic(n)) for n in (20, 50, 100)},
    **{f"sparse_bowl_{k}": partial(_sparse, BOWLS[f"bowl_{k}"]) for k in ("0.1", "1", "5")},
    **{f"sparse_{name}": partial(_sparse, build) for name, build in list(MLPS.items())[:3]},
}

# parameters, examples, batch
_BINARY = (
    *((20, 1000, 100), (12, 200, 10), (56, 5000, 100), (64, 1000, 50), (13, 10000, 50)),
    *((20, 1000, 128), (12, 300, 16), (56, 5000, 128), (64, 1000, 64), (13, 10000, 32)),
)
_SYMMETRIC = tuple((n, 100 if n == 12 else examples, batch) for n, examples, batch in _BINARY)

WICHROWSKA2017_OFF: dict[str, Builder] = {
    **{f"quadratic_{n}": _quadratic(n) for n in (20, 50, 100)},
    "sparse_softmax": SparseSoftmax,
    "one_hot_softmax": partial(SparseSoftmax, one_hot=True),
    **{f"dependency_chain_{n}": partial(DependencyChain, dim=n) for n in (20, 12, 56, 64, 13)},
    **{f"min_max_well_{n}": partial(MinMaxWell, dim=n) for n in (20, 12, 56, 64, 13)},
    **{
        f"outward_snake_{n}_batch_{batch}": partial(OutwardSnake, dim=n, examples=examples, batch_size=batch)
        for n, examples, batch in _BINARY
    },
    **{
        f"projection_quadratic_{n}_batch_{batch}": partial(
            DataQuadratic, "projection", dim=n, examples=examples, batch_size=batch
        )
        for n, examples, batch in _SYMMETRIC
    },
    **{
        f"sum_of_quadratics_{n}_batch_{batch}": partial(
            DataQuadratic, "sum", dim=n, examples=examples, batch_size=batch
        )
        for n, examples, batch in _SYMMETRIC
    },
}
WICHROWSKA2017_FULL: dict[str, Builder] = {**WICHROWSKA2017, **WICHROWSKA2017_OFF}

_HELD_OUT_CLUSTERS = partial(clusters_mlp, examples=10_000, seed=1234)
_SOFTMAX = partial(_HELD_OUT_CLUSTERS, inputs=10)
_HE = math.sqrt(2.0)  # the held-out networks start as He's rule says

WICHROWSKA2017_TEST: dict[str, Builder] = {
    "test_quadratic_20": _quadratic(20),
    "test_quadratic_20_noisy": partial(_noisy, _quadratic(20), 1.0),
    "test_rosenbrock": _surface("rosenbrock"),
    "test_rosenbrock_noisy": partial(_noisy, _surface("rosenbrock"), 1.0),
    "test_softmax_10_2": _SOFTMAX,
    "test_softmax_10_2_noisy": partial(_noisy, _SOFTMAX, 1.0),
    "test_mlp_10_32_64_2": partial(_HELD_OUT_CLUSTERS, inputs=10, widths=(32, 64), weight_scale=_HE, bias_scale=0.1),
    "test_mlp_20_32_64_10": partial(
        _HELD_OUT_CLUSTERS, inputs=20, classes=10, widths=(32, 64), weight_scale=_HE, bias_scale=0.1
    ),
    "test_fashion_mlp_784_64_10_sigmoid": partial(fashion_mlp, widths=(64,), activation="sigmoid", batch_size=64),
    "test_fashion_mlp_784_64_10_relu": partial(fashion_mlp, widths=(64,), activation="relu", batch_size=64),
    "test_fashion_conv_sigmoid": partial(
        conv_net, images="fashion_28", filters=FILTERS, activation="sigmoid", batch_size=64
    ),
    "test_fashion_conv_relu": partial(conv_net, images="fashion_28", filters=FILTERS, activation="relu", batch_size=64),
}
