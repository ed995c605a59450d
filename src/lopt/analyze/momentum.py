"""The momentum of a rule: the modes of its linearised state, their timescales and learning rates."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from lopt.analyze._record import Record
from lopt.analyze.probing import NOISE_STEPS, Probe, difference, move, moving, probe_of, row_of, with_first
from lopt.analyze.problem import Loss
from lopt.checks import at_least
from lopt.errors import InputError
from lopt.evaluate.report.page import panels
from lopt.optimizer import Optimizer, State
from lopt.task import Task

SETTLE = 1_000  # steps without gradient that lead to the fixed point
FIXED = 1e-3  # distance between a state and its successor, relative, at which it counts as fixed
PUSH = 0.1  # of the usual gradient: by which one gradient is changed where a response is measured
RANK = 0.02  # singular values of a measured kernel below this share are noise
SEEN = 0.02  # of the greatest strength: weaker modes are not worth a word


@dataclasses.dataclass(frozen=True)
class Modes(Record):
    r"""A rule as a sum of momenta: $u_t = -\sum_{k \ge 0} \kappa_k\, g_{t-k}$ with $\kappa_k = \alpha_0 [k = 0] + \sum_j \alpha_j \lambda_j^k$.

    Attributes:
        eigenvalues: $\lambda_j$, the strongest mode first; the modulus is the $\beta$ of a momentum.
        rates: $\alpha_j$, the learning rate of each mode.
        direct: $\alpha_0$, the learning rate without memory.
        kernel: $\kappa_k$, as measured or as the modes give it.
        from_fixed_point: whether modes are those of the Jacobian at the fixed point; if not, of the measured response after noise.
        fixed_points: how many fixed points without gradient were found from visited states; 0 where none was looked for.
        distance: between the fixed point and its successor, relative; NaN where there is none.
    """

    eigenvalues: Complex[np.ndarray, " modes"]
    rates: Complex[np.ndarray, " modes"]
    direct: float
    kernel: Float[np.ndarray, " steps"]
    from_fixed_point: bool
    fixed_points: int
    distance: float

    @property
    def strengths(self) -> Float[np.ndarray, " modes"]:
        r"""$|\alpha_j| / \sqrt{1 - |\lambda_j|^2}$: the size of a mode's share under noise."""
        return _strengths(self.eigenvalues, self.rates)

    @property
    def dominant(self) -> tuple[float, float]:
        r"""$\alpha$ and $\beta = |\lambda|$ of the strongest mode; $\alpha_0$ and 0 where that is stronger."""
        if not len(self.rates) or abs(self.direct) > self.strengths[0]:
            return self.direct, 0.0
        return float(self.rates[0].real), float(abs(self.eigenvalues[0]))

    @property
    def sentence(self) -> str:
        """In one sentence."""
        if not np.isfinite(self.kernel).all():
            return "The response to a gradient is not finite: the rule diverges while it is probed."
        rate, decay = self.dominant
        how = "at its fixed point" if self.from_fixed_point else "as measured after noise"
        greatest = max(abs(self.direct), self.strengths.max(initial=0.0))
        seen = int((self.strengths > SEEN * greatest).sum())
        if not seen:
            return f"The rule is plain gradient descent {how}, with a learning rate of {rate:.3g}: it has no momentum that matters."
        more = f"; {seen} modes matter" if seen > 1 else ""
        strongest = f"The strongest mode {how} is {self._first_mode}{more}."
        return (
            strongest
            if decay
            else f"{strongest} A step along the gradient of the moment is larger, with a learning rate of {rate:.3g}."
        )

    @property
    def _first_mode(self) -> str:
        """In words."""
        value, decay = self.eigenvalues[0], abs(self.eigenvalues[0])
        kind = "an oscillation" if value.real < 0.0 or abs(value.imag) > 1e-3 * decay else "a momentum"
        memory = f"a memory of {1 / (1 - decay):.3g} steps" if decay < 0.9999 else "a memory that does not fade"
        return f"{kind} with β = {decay:.3f}, {memory}, and a learning rate of {self.rates[0].real:.3g}"

    def plot(self) -> Any:
        """The modes as learning rate against decay, and the response to one gradient: a matplotlib figure."""
        fig, ((left, right),) = panels(2, width=4.6)
        size = 8 + 60 * self.strengths / max(self.strengths.max(initial=0.0), 1e-30)
        left.scatter(np.abs(self.rates), np.abs(self.eigenvalues), s=size, color="#0072b2", alpha=0.7)
        left.axhline(1.0, color="0.8", lw=1)
        left.set(xlabel="learning rate of a mode", ylabel="|λ|", title="modes", ylim=(-0.05, 1.1))
        right.plot(self.kernel, ".-", color="#0072b2", ms=3, lw=1)
        right.set(xlabel="steps since a gradient", ylabel="share in the update", title="response to one gradient")
        return fig


def momentum(
    optimizer: Optimizer | optax.GradientTransformation,
    loss: Task | Loss,
    params: Any = None,
    *,
    key: PRNGKeyArray,
    length: int = 100,
    draws: int = 16,
    horizon: int = 1_000,
) -> Modes:
    r"""Linearise a rule and read its momenta off the eigenvalues.

    $$s_{t+1} - s^* \approx A (s_t - s^*) + B g_t, \quad u_t \approx C (s_t - s^*) + D g_t, \qquad A = R \Lambda L, \qquad
      \alpha_j = -\frac{(C r_j)(l_j^\top B)}{\lambda_j}, \quad \alpha_0 = -D - \sum_j \alpha_j$$

    $s^*$ is the fixed point that the rule reaches without gradients, where it treats every parameter alone and has such a point. Else the derivative of
    later updates with respect to one gradient is measured in noise of the usual size and averaged, and the modes are those of the smallest linear system
    with this response (Ho & Kalman 1966).

    Args:
        optimizer: of lopt or of optax.
        loss: a task, or `loss(params, key)`: the tensor and the size of its gradients come from there.
        params: where the training of a loss starts.
        key: draws the problem and noise.
        length: steps over which the response is followed.
        draws: of noise, over which a measured response is averaged; also visited states from which fixed points are sought.
        horizon: what the rule is told.

    Raises:
        InputError: for fewer than eight steps, fewer than one draw, and as `probe_of`.

    Examples:
        >>> import jax, lopt, optax
        >>> from lopt.analyze import momentum
        >>> found = momentum(optax.sgd(0.1, momentum=0.9), lopt.tasks.Quadratic(dim=3), key=jax.random.key(0))
        >>> [round(x, 3) for x in found.dominant]
        [0.1, 0.9]

    Source: Maheswaranathan et al. 2020, *Reverse engineering learned optimizers*: momentum.
    """
    at_least(8, length=length)
    at_least(1, draws=draws)
    probe = probe_of(optimizer, loss, params, key=key, horizon=horizon)
    if probe.alone and probe.quiet:
        state = row_of(probe.settled(np.zeros((1, *probe.param.shape)), SETTLE), 0)
        linear = linearise(probe, state)
        eigenvalues, rates = modes_of(linear) if linear.is_fixed else (np.zeros(0, complex), np.zeros(0, complex))
        direct = float(-linear.direct - rates.sum().real) if linear.is_fixed else 0.0
        if direct or np.any(rates):  # a rule whose steps have died out by then says nothing
            kernel = _kernel(direct, eigenvalues, rates, length)
            points = _fixed_points(probe, draws)
            return Modes(eigenvalues, rates, direct, kernel, True, points, linear.distance)
    kernel = -_responses(probe, draws, length)
    if not np.isfinite(kernel).all():
        nothing = np.zeros(0, complex)
        return Modes(nothing, nothing, float(kernel[0]), kernel, False, 0, math.nan)
    eigenvalues, rates = realise(kernel)
    direct = float(kernel[0] - rates.sum().real)
    return Modes(eigenvalues, rates, direct, kernel, False, 0, math.nan)


@dataclasses.dataclass(frozen=True)
class LinearRule:
    """A rule near a state: $A$, $B$, $C$, $D$ of `momentum`, the state, and how far it is from its successor."""

    state_to_state: Float[np.ndarray, "n n"]
    gradient_to_state: Float[np.ndarray, " n"]
    state_to_update: Float[np.ndarray, " n"]
    direct: float
    state: Float[np.ndarray, " n"]
    update: float  # at the state, without gradient
    distance: float

    @property
    def is_fixed(self) -> bool:
        """Whether the state is a fixed point with finite derivatives."""
        parts = (self.state_to_state, self.gradient_to_state, self.state_to_update, self.direct)
        return all(np.isfinite(x).all() for x in parts) and self.distance < FIXED


def linearise(probe: Probe, state: State) -> LinearRule:
    """The rule of one parameter near a state, at no gradient.

    Args:
        probe: of a rule that treats every parameter alone.
        state: near which.
    """
    vector, unravel = moving(state)

    @jax.jit
    def jacobians(optimizer: Optimizer, vector: Array) -> Any:
        def stepped(vector: Array, gradient: Array) -> tuple[Array, Array]:
            update, after = move(optimizer, probe.param, unravel(vector), gradient)
            return moving(after)[0], update.reshape(-1)[0]

        zero = jnp.zeros_like(probe.param)
        return jax.jacfwd(stepped, argnums=(0, 1))(vector, zero), stepped(vector, zero)

    ((a, b), (c, d)), (after, update) = jax.tree.map(
        lambda x: np.asarray(x, np.float64), jacobians(probe.optimizer, vector)
    )
    now = np.asarray(vector, np.float64)
    distance = float(np.linalg.norm(after - now) / max(np.linalg.norm(now), 1e-3)) if now.size else 0.0
    return LinearRule(a, b.reshape(len(now)), c, float(d.reshape(())), now, float(update), distance)


def modes_of(linear: LinearRule) -> tuple[Complex[np.ndarray, " modes"], Complex[np.ndarray, " modes"]]:
    r"""$\lambda_j$ and $\alpha_j$ of a linear rule, the strongest first; modes that vanish at once belong to $\alpha_0$."""
    if not len(linear.state):
        return np.zeros(0, complex), np.zeros(0, complex)
    values, right = np.linalg.eig(linear.state_to_state)
    reached = np.linalg.lstsq(right, linear.gradient_to_state.astype(complex), rcond=None)[0]  # L B
    seen = np.abs(values) > 1e-4
    rates = -(linear.state_to_update @ right)[seen] * reached[seen] / values[seen]
    return _ordered(values[seen].astype(complex), rates)


def realise(kernel: Float[np.ndarray, " steps"]) -> tuple[Complex[np.ndarray, " modes"], Complex[np.ndarray, " modes"]]:
    r"""$\lambda_j$ and $\alpha_j$ of the smallest linear system whose response is $\kappa_1, \kappa_2, \dots$, as $\kappa_k = \sum_j \alpha_j \lambda_j^k$.

    Source: Ho & Kalman 1966; by singular values: Kung 1978.
    """
    half = len(kernel) // 2
    hankel = np.stack([kernel[1 + i : 1 + i + half - 1] for i in range(half)])
    left, sizes, _ = np.linalg.svd(hankel, full_matrices=False)
    rank = int((sizes > RANK * max(sizes[0], 1e-30)).sum()) if sizes[0] > 1e-6 * abs(kernel[0]) else 0
    if not rank:
        return np.zeros(0, complex), np.zeros(0, complex)
    observed = left[:, :rank]
    values = np.linalg.eigvals(np.linalg.lstsq(observed[:-1], observed[1:], rcond=None)[0]).astype(complex)
    powers = values[None] ** np.arange(1, len(kernel))[:, None]
    rates = np.linalg.lstsq(powers, kernel[1:].astype(complex), rcond=None)[0]
    return _ordered(values, rates)


def heavy_ball(least: float, greatest: float) -> tuple[float, float]:
    r"""The learning rate and the decay with which momentum is fastest on a quadratic of such curvatures.

    $$\alpha^* = \frac{4}{(\sqrt{\lambda_{\max}} + \sqrt{\lambda_{\min}})^2}, \qquad
      \beta^* = \left( \frac{\sqrt{\lambda_{\max}} - \sqrt{\lambda_{\min}}}{\sqrt{\lambda_{\max}} + \sqrt{\lambda_{\min}}} \right)^2$$

    Args:
        least: $\lambda_{\min}$.
        greatest: $\lambda_{\max}$.

    Raises:
        InputError: for curvatures that are not positive and in order.

    Examples:
        >>> from lopt.analyze import heavy_ball
        >>> [round(x, 3) for x in heavy_ball(1e-3, 1.0)]
        [3.759, 0.881]

    Source: Polyak 1964.
    """
    if not 0 < least <= greatest:
        raise InputError(
            f"least is {least} and greatest {greatest}; both must be positive, the first not above the second."
        )
    low, high = math.sqrt(least), math.sqrt(greatest)
    return 4.0 / (high + low) ** 2, ((high - low) / (high + low)) ** 2


def _strengths(values: np.ndarray, rates: np.ndarray) -> np.ndarray:
    return np.abs(rates) / np.sqrt(np.maximum(1.0 - np.abs(values) ** 2, 1e-6))


def _ordered(values: np.ndarray, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-_strengths(values, rates), kind="stable")
    return values[order], rates[order]


def _kernel(direct: float, values: np.ndarray, rates: np.ndarray, length: int) -> np.ndarray:
    kernel = (rates[None] * values[None] ** np.arange(length)[:, None]).sum(axis=1).real
    kernel[0] += direct
    return kernel


def _responses(probe: Probe, draws: int, length: int) -> Float[np.ndarray, " length"]:
    """The derivatives of the first element's next updates with respect to its gradient now, by differences, each in noise of its own, on average."""
    _, states = probe.follow(probe.rows(draws), probe.noise(NOISE_STEPS, draws))
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), states)
    gradients = np.concatenate([probe.noise(length, draws, seed=1)] * 2, axis=1)
    own, push = gradients[0].reshape(2 * draws, -1)[:, 0], PUSH * probe.scale
    gradients[0] = with_first(gradients[0], own + push * np.repeat([1.0, -1.0], draws))
    updates, _ = probe.follow(twice, gradients)
    return difference(updates[:, :draws], updates[:, draws:]).mean(axis=1) / (2.0 * push)


def _fixed_points(probe: Probe, draws: int, steps: int = 30) -> int:
    """How many different fixed points without gradient Newton's method finds from states after noise."""
    _, states = probe.follow(probe.rows(draws), probe.noise(NOISE_STEPS, draws))
    if not moving(row_of(states, 0))[0].size:
        return 0
    zero = jnp.zeros_like(probe.param)

    @jax.jit
    def gaps(optimizer: Optimizer, states: State, points: Array) -> tuple[Array, Array]:
        """What a step without gradient moves the floating-point numbers of each state by, and the Jacobian of that."""

        def from_(state: State, point: Array) -> tuple[Array, Array]:
            _, unravel = moving(state)

            def gap(x: Array) -> Array:
                return moving(move(optimizer, probe.param, unravel(x), zero)[1])[0] - x

            return gap(point), jax.jacfwd(gap)(point)

        return jax.vmap(from_)(states, points)

    points = jax.vmap(lambda state: moving(state)[0])(states)
    for _ in range(steps):
        found = (np.asarray(x, np.float64) for x in gaps(probe.optimizer, states, points))
        points = points - jnp.asarray(
            [_solution(jacobian, gap) for gap, jacobian in zip(*found, strict=True)], points.dtype
        )
    ends, left = (np.asarray(x, np.float64) for x in (points, gaps(probe.optimizer, states, points)[0]))
    far = np.linalg.norm(left, axis=1) / np.maximum(np.linalg.norm(ends, axis=1), 1e-3)
    ends = ends[np.isfinite(ends).all(axis=1) & (far < FIXED)]
    different: list[np.ndarray] = []
    for end in ends:
        if all(np.linalg.norm(end - other) > 0.01 * max(np.linalg.norm(other), 1e-3) for other in different):
            different.append(end)
    return len(different)


def _solution(matrix: Float[np.ndarray, "n n"], vector: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Where there is none, not a number. NumPy's, because XLA's batches of decompositions can wait for each other for ever on two cores."""
    try:
        return np.linalg.solve(matrix, vector)
    except np.linalg.LinAlgError:
        return np.full_like(vector, np.nan)


__all__ = ["LinearRule", "Modes", "heavy_ball", "linearise", "modes_of", "momentum", "realise"]
