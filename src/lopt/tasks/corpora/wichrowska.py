"""The task ensemble of Wichrowska et al. 2017, member by member.

`WICHROWSKA2017` holds the families that the release meta-trains on, `WICHROWSKA2017_OFF` those that it ships but leaves off, and
`WICHROWSKA2017_TEST` its held-out problems; each from a name to the task as data. Dimensions, noise, batches and scales are the release's. What differs:

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
from collections.abc import Sequence
from typing import Any

from lopt.tasks.naming import TaskName
from lopt.tasks.surfaces.landscapes import SURFACES

FILTERS = ((3, 3, 8), (5, 5, 8))  # of the held-out conv nets: height, width, channels
Members = dict[str, TaskName]


def _task(name: str, /, **fields: Any) -> TaskName:
    return TaskName(name, fields)


def _noisy(task: TaskName, deviation: float) -> TaskName:
    """The task with normal noise of this deviation on every element of its gradient."""
    return task.wrapped("noisy_gradients", deviation=deviation)


def _sparse(task: TaskName) -> TaskName:
    """The task with every element of its gradient zero with probability 0.99."""
    return task.wrapped("sparse_gradients", probability=0.99)


def _sum(tasks: Sequence[TaskName]) -> TaskName:
    first, *others = tasks
    return first.wrapped("sum_with", others=tuple(map(str, others)))


def _quadratic(dim: int) -> TaskName:
    return _task("least_squares", dim=dim)


def _norm(dim: int, power: float) -> TaskName:
    return _task("p_norm", dim=dim, power=power)


def _surface(function: str) -> TaskName:
    return _task("landscape", function=function)


BOWLS: Members = {
    "bowl_0.1": _task("bowl", condition=0.1),
    "bowl_1": _task("bowl", condition=1.0),
    "bowl_5": _task("bowl", condition=5.0),
    "bowl_5_rotated": _task("bowl", condition=5.0, angle=math.pi / 4.0),
}
# inputs, separation of the classes, batch, deviation of the noise in the noisy copy
_LOGISTIC = ((10, 2.0, 100, 0.5), (100, 1.0, 50, 0.1), (200, 1.5, 20, 0.1), (256, 1.5, 100, 0.5))
LOGISTIC: Members = {
    f"logistic_{d}": _task("clusters_mlp", inputs=d, separation=sep, batch_size=batch) for d, sep, batch, _ in _LOGISTIC
}
FUNCTIONS: Members = {name: _surface(name) for name in SURFACES}
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
MLPS: Members = {
    f"mlp_{'_'.join(map(str, (d, *w)))}_batch_{b}": _task("random_network_mlp", inputs=d, widths=w, batch_size=b)
    for d, w, b in _MLPS
}

_ALL_FUNCTIONS = [
    _surface(name)
    for name in (
        *("rosenbrock", "log_sum_exp", "ackley", "beale", "booth"),
        *("styblinski_tang", "matyas", "branin", "michalewicz"),
    )
]
_SEVEN = [_quadratic(n) for n in (11, 3, 9, 7, 5, 13, 12)]

WICHROWSKA2017: Members = {
    "quadratic_20_noisy": _noisy(_quadratic(20), 0.5),
    "quadratic_25": _quadratic(25),
    "quadratic_50_noisy": _noisy(_quadratic(50), 1.0),
    "quadratic_100_noisy": _noisy(_quadratic(100), 2.0),
    **{f"quadratic_{n}": _quadratic(n) for n in (784, 1024, 2048)},
    **BOWLS,
    **{f"{name}_noisy": _noisy(build, 0.1) for name, build in BOWLS.items()},
    **LOGISTIC,
    **{f"logistic_{d}_noisy": _noisy(LOGISTIC[f"logistic_{d}"], noise) for d, _, _, noise in _LOGISTIC},
    **FUNCTIONS,
    **{f"{name}_noisy": _noisy(build, 1.0) for name, build in FUNCTIONS.items()},
    **MLPS,
    **{f"matmul_2_{k}": _task("matmul_search", n=2, k=k) for k in range(5, 9)},
    **{f"matmul_3_{k}": _task("matmul_search", n=3, k=k) for k in range(19, 25)},
    **{f"log_quadratic_{n}": _quadratic(n).wrapped("log_objective") for n in (20, 50, 100)},
    **{f"log_bowl_{k}": BOWLS[f"bowl_{k}"].wrapped("log_objective") for k in ("0.1", "1", "5")},
    **{
        f"rescaled_norm_18_p_{p:g}": _norm(18, p).wrapped("rescaled", scale=scale)
        for p, scale in ((2.5, 0.123), (1.5, 8.0), (2.0, 50.0), (3.0, 200.0), (1.0, 1000.0))
    },
    **{
        f"rescaled_quadratic_{n}": _quadratic(n).wrapped("rescaled", scale=scale)
        for n, scale in ((20, 0.1), (25, 10.0), (50, 350.0), (100, 132.0))
    },
    **{f"norm_{n}_p_{p:g}": _norm(n, p) for n, p in ((27, 1.0), (25, 2.0), (22, 3.0))},
    **{f"norm_{n}_p_{p:g}_noisy": _noisy(_norm(n, p), 0.1) for n, p in ((19, 1.0), (26, 2.0), (23, 3.0))},
    "sum_7_quadratics": _sum(_SEVEN),
    "sum_norm_quadratic_rosenbrock": _sum([_norm(18, 3.0), _quadratic(25), _surface("rosenbrock")]),
    "sum_9_functions": _sum(_ALL_FUNCTIONS),
    "sum_9_functions_2_quadratics": _sum([*_ALL_FUNCTIONS, _quadratic(5), _quadratic(13)]),
    "sum_2_quadratics": _sum([_quadratic(11), _quadratic(3)]),
    "sum_3_functions": _sum(_ALL_FUNCTIONS[:3]),
    "sum_7_quadratics_noisy": _sum([_noisy(build, 0.1) for build in _SEVEN]),
    "sum_9_functions_2_quadratics_noisy": _sum([*_ALL_FUNCTIONS, _quadratic(5), _noisy(_quadratic(13), 0.5)]),
    **{f"sparse_quadratic_{n}": _sparse(_quadratic(n)) for n in (20, 50, 100)},
    **{f"sparse_bowl_{k}": _sparse(BOWLS[f"bowl_{k}"]) for k in ("0.1", "1", "5")},
    **{f"sparse_{name}": _sparse(build) for name, build in list(MLPS.items())[:3]},
}

# parameters, examples, batch
_BINARY = (
    *((20, 1000, 100), (12, 200, 10), (56, 5000, 100), (64, 1000, 50), (13, 10000, 50)),
    *((20, 1000, 128), (12, 300, 16), (56, 5000, 128), (64, 1000, 64), (13, 10000, 32)),
)
_SYMMETRIC = tuple((n, 100 if n == 12 else examples, batch) for n, examples, batch in _BINARY)

WICHROWSKA2017_OFF: Members = {
    **{f"quadratic_{n}": _quadratic(n) for n in (20, 50, 100)},
    "sparse_softmax": _task("sparse_softmax"),
    "one_hot_softmax": _task("sparse_softmax", one_hot=True),
    **{f"dependency_chain_{n}": _task("dependency_chain", dim=n) for n in (20, 12, 56, 64, 13)},
    **{f"min_max_well_{n}": _task("min_max_well", dim=n) for n in (20, 12, 56, 64, 13)},
    **{
        f"outward_snake_{n}_batch_{batch}": _task("outward_snake", dim=n, examples=examples, batch_size=batch)
        for n, examples, batch in _BINARY
    },
    **{
        f"projection_quadratic_{n}_batch_{batch}": _task(
            "data_quadratic", form="projection", dim=n, examples=examples, batch_size=batch
        )
        for n, examples, batch in _SYMMETRIC
    },
    **{
        f"sum_of_quadratics_{n}_batch_{batch}": _task(
            "data_quadratic", form="sum", dim=n, examples=examples, batch_size=batch
        )
        for n, examples, batch in _SYMMETRIC
    },
}
WICHROWSKA2017_FULL: Members = {**WICHROWSKA2017, **WICHROWSKA2017_OFF}


def _clusters(inputs: int, **fields: Any) -> TaskName:
    return _task("clusters_mlp", inputs=inputs, examples=10_000, seed=1234, **fields)


_HELD_OUT_CLUSTERS = _task("clusters_mlp", examples=10_000, seed=1234)
_SOFTMAX = _clusters(10)
_HE = math.sqrt(2.0)  # the held-out networks start as He's rule says

WICHROWSKA2017_TEST: Members = {
    "test_quadratic_20": _quadratic(20),
    "test_quadratic_20_noisy": _noisy(_quadratic(20), 1.0),
    "test_rosenbrock": _surface("rosenbrock"),
    "test_rosenbrock_noisy": _noisy(_surface("rosenbrock"), 1.0),
    "test_softmax_10_2": _SOFTMAX,
    "test_softmax_10_2_noisy": _noisy(_SOFTMAX, 1.0),
    "test_mlp_10_32_64_2": _clusters(10, widths=(32, 64), weight_scale=_HE, bias_scale=0.1),
    "test_mlp_20_32_64_10": _clusters(20, classes=10, widths=(32, 64), weight_scale=_HE, bias_scale=0.1),
    "test_fashion_mlp_784_64_10_sigmoid": _task("fashion_mlp", widths=(64,), activation="sigmoid", batch_size=64),
    "test_fashion_mlp_784_64_10_relu": _task("fashion_mlp", widths=(64,), activation="relu", batch_size=64),
    "test_fashion_conv_sigmoid": _task(
        "conv_net", images="fashion_28", filters=FILTERS, activation="sigmoid", batch_size=64
    ),
    "test_fashion_conv_relu": _task("conv_net", images="fashion_28", filters=FILTERS, activation="relu", batch_size=64),
}
