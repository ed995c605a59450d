"""`LearnedOptimizer`: an optimizer of lopt as one of PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lopt.errors import InputError, needs_extra
from lopt.optimizer import LARGEST, Optimizer
from lopt.torch import _trace as trace
from lopt.torch._program import Program
from lopt.torch._sharding import local_part, whole
from lopt.torch._state import adopt, card_of, gather
from lopt.zoo import load

with needs_extra("torch"):
    import torch
    from torch import Tensor

_Loss = Tensor | float


class _Bound(NamedTuple):
    """A program with the state that it reads and writes.

    Attributes:
        key: of what was bound: the parameters, and which losses there are.
        program: the step.
        leaves: the leaves of the state, in memory that `Optimizer.state` shares.
    """

    key: tuple[Any, ...]
    program: Program
    leaves: list[Tensor]


class LearnedOptimizer(torch.optim.Optimizer):
    r"""A learned optimizer, saved or any other of lopt's, as a `torch.optim.Optimizer`.

    $$w \leftarrow (1 - \eta \lambda)\, w + \eta\, u, \qquad (u, s) \leftarrow \mathrm{update}(g, s, w)$$

    The rule is the one that JAX runs: its update is traced, once for a set of tensors, and written as operations of PyTorch. It sees
    gradients and parameters in float32, and its state is float32, whatever the parameters are. A step in which a gradient or a parameter is
    a NaN, an infinity or at least 1e15 is skipped: parameters and state stay as they are.

    A parameter without gradient takes no part in a step. All parameters share the number of steps and what else the rule keeps for all.

    Args:
        params: parameters, or groups of them, as for any optimizer of PyTorch; `lr` and `weight_decay` may differ among groups.
        rule: the name or path of a saved optimizer, or an `Optimizer`.
        lr: $\eta$, a multiplier of the learned update: the learned optimizer has its own step size, so 1 is where to begin.
        weight_decay: $\lambda$, decoupled from the update as in AdamW.
        horizon: steps of the training, for rules that want to know.

    Raises:
        InputError: for an unknown name, parameters that are not real floating-point numbers or lie on several devices, a horizon below
            1, a rule that needs the horizon and was not given it, or one that uses what PyTorch has no operation for.

    Examples:
        >>> import torch
        >>> from lopt.torch import LearnedOptimizer
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = LearnedOptimizer(model.parameters(), "demo-1")
        >>> model(torch.ones(2, 4)).square().mean().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        rule: str | Path | Optimizer = "general-1",
        *,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        horizon: int | None = None,
    ):
        for name, given in (("lr", lr), ("weight_decay", weight_decay)):
            if not isinstance(given, Tensor) and not given >= 0:
                raise InputError(f"{name} is {given}; it must not be negative.")
        if horizon is not None and not horizon >= 1:
            raise InputError(f"horizon is {horizon}; it must be a number of steps, at least 1.")
        self.rule = rule if isinstance(rule, Optimizer) else load(rule)
        self.fingerprint = card_of(self.rule).fingerprint
        self.needs_loss = _needs(self.rule, horizon)
        if _evaluates_elsewhere(self.rule, horizon):
            raise InputError(
                f"{type(self.rule).__name__} is to be evaluated at other parameters than those at which it takes gradients, "
                "and a model of PyTorch holds one set of parameters; use it in JAX."
            )
        self._forget()
        defaults = {"lr": lr, "weight_decay": weight_decay, "horizon": horizon, "fingerprint": self.fingerprint}
        super().__init__(params, defaults)

    def _forget(self) -> None:
        """Trace anew at the next step."""
        self._layouts: dict[Any, trace.Layout] = {}
        self._programs: dict[Any, Program] = {}
        self._bound: _Bound | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, whose state begins with their first gradient.

        Args:
            param_group: `params`, and `lr` and `weight_decay` where they differ.

        Raises:
            InputError: for parameters that are not real floating-point numbers or lie on another device, and a horizon of its own.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for name in ("horizon", "fingerprint"):
                if group[name] != self.defaults[name]:
                    raise InputError(
                        f"The group has {name} {group[name]}; it is one for the whole optimizer: {self.defaults[name]}."
                    )
            device = self.param_groups[0]["params"][0].device if self.param_groups[0]["params"] else None
            for p in group["params"]:
                _check_parameter(p, device)
        except InputError:
            self.param_groups.pop()
            raise
        self._bound = None

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        closure: Callable[[], _Loss] | None = None,
        *,
        loss: _Loss | None = None,
        valid_loss: _Loss | None = None,
    ) -> _Loss | None:
        """Take a step.

        Args:
            closure: computes the loss anew, with its gradients, and returns it.
            loss: the training loss, for rules that want it and where there is no closure.
            valid_loss: a validation loss, for rules that want it, at the steps that have one.

        Returns:
            What the closure returned.

        Raises:
            InputError: without the loss where the rule needs it, and for a sparse gradient.
        """
        found = None
        if closure is not None:
            with torch.enable_grad():
                found = closure()
            loss = found if loss is None else loss
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not params:
            return found
        if loss is None and self.needs_loss:
            raise InputError(
                f"{type(self.rule).__name__} needs the training loss: call step(loss=loss), or step(closure) with one that returns it."
            )
        bound = self._bind(params, loss is not None, valid_loss is not None)
        grads, seen = [_seen(_dense(p.grad)) for p in params], [_seen(p) for p in params]
        losses = [
            torch.as_tensor(x).detach().to(grads[0].device, torch.float32).reshape(())
            for x in (loss, valid_loss)
            if x is not None
        ]
        out = bound.program.run(*grads, *seen, *bound.leaves, *losses)
        self._commit(params, [*grads, *seen], bound.leaves, out[: len(params)], out[len(params) :])
        return found

    def _commit(
        self,
        params: Sequence[Tensor],
        inputs: Sequence[Tensor],
        leaves: Sequence[Tensor],
        updates: Sequence[Tensor],
        new: Sequence[Tensor],
    ) -> None:
        """Add the updates and keep the new state, unless an input is not finite. Nothing is read on the host."""
        norms = torch._foreach_norm(  # pyright: ignore[reportPrivateImportUsage]
            [*(x for x in inputs if x.numel()), inputs[0].new_zeros(1)], float("inf")
        )
        finite = torch.stack(norms).max() < LARGEST
        for old, leaf in zip(leaves, new, strict=True):
            if old is not leaf:
                old.copy_(torch.where(finite, leaf, old))
        by_parameter = dict(zip(params, updates, strict=True))
        for group in self.param_groups:
            lr, decay = group["lr"], group["weight_decay"]
            for p in group["params"]:
                if p in by_parameter:
                    own, u = local_part(p, by_parameter[p])
                    moved = (own * (1.0 - lr * decay) if decay else own) + u * lr
                    own.copy_(torch.where(finite, moved, own))

    def _bind(self, params: Sequence[Tensor], loss: bool, valid_loss: bool) -> _Bound:
        """The program for these parameters, and their state."""
        seen = (*map(id, params), loss, valid_loss)
        if self._bound is not None and self._bound.key == seen:
            return self._bound
        fresh = [p for p in params if not self.state[p]]
        if fresh:
            adopt(
                self.state, self._layout(fresh), fresh, trace.start(self.rule, [_seen(p) for p in fresh], self._horizon)
            )
        layout = self._layout(params)
        key = (*(tuple(p.shape) for p in params), loss, valid_loss)
        if key not in self._programs:
            device = params[0].device
            self._programs[key] = trace.step_program(
                self.rule, key[:-2], layout, device, loss=loss, valid_loss=valid_loss
            )
        self._bound = _Bound(seen, self._programs[key], gather(self.state, layout, params))
        return self._bound

    def _layout(self, params: Sequence[Tensor]) -> trace.Layout:
        """The leaves of the state of parameters."""
        shapes = tuple(tuple(p.shape) for p in params)
        if shapes not in self._layouts:
            self._layouts[shapes] = trace.layout(self.rule, shapes, self._horizon)
        return self._layouts[shapes]

    @property
    def _horizon(self) -> int | None:
        return self.defaults["horizon"]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` gave, of an optimizer with the same rule and weights.

        Args:
            state_dict: from `state_dict`; `torch.load(..., weights_only=True)` suffices to read it.

        Raises:
            InputError: for a state of another rule or of other weights.
        """
        for group in state_dict["param_groups"]:
            found = group.get("fingerprint")
            if found is None:
                raise InputError("The state dict is not one of LearnedOptimizer: its groups have no fingerprint.")
            if found != self.fingerprint:
                raise InputError(
                    f"The state dict is of another rule or other weights: its fingerprint is {found[:12]}, expected {self.fingerprint[:12]}."
                )
        super().load_state_dict(dict(state_dict))
        self.defaults["horizon"] = self.param_groups[0]["horizon"]
        # PyTorch has cast the state to the dtypes of the parameters.
        numbers = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(numbers, params, strict=True):
            if i in state_dict["state"]:
                self.state[p] = {k: v.detach().clone().to(p.device) for k, v in state_dict["state"][i].items()}
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "rule": self.rule,
            "fingerprint": self.fingerprint,
            "needs_loss": self.needs_loss,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()


def _check_parameter(p: Tensor, device: torch.device | None) -> None:
    """Refuse a parameter that no rule can take.

    Args:
        p: the parameter.
        device: of the other parameters.

    Raises:
        InputError: for one that is sparse, or not real floating-point, or on another device.
    """
    if p.layout != torch.strided:
        raise InputError(f"A parameter is sparse ({p.layout}); LearnedOptimizer takes dense ones.")
    if not p.is_floating_point():
        raise InputError(f"A parameter is {p.dtype}; LearnedOptimizer takes real floating-point ones.")
    if device is not None and p.device != device:
        raise InputError(f"Parameters are on {device} and {p.device}; LearnedOptimizer takes those of one device.")


def _seen(x: Tensor) -> Tensor:
    """A parameter or a gradient as the rule sees it."""
    return whole(x).to(torch.float32)


def _dense(gradient: Any) -> Tensor:
    if gradient.layout != torch.strided:
        raise InputError("A gradient is sparse; build the embedding with sparse=False.")
    return gradient


def _evaluates_elsewhere(rule: Optimizer, horizon: int | None) -> bool:
    """Whether the parameters to deploy, `eval_params`, are others than those that a training holds."""
    found: list[bool] = []

    def look(x: jax.Array) -> jax.Array:
        params = {"x": x}
        state = rule.init(params, horizon=horizon, key=jax.random.key(0))
        found.append(rule.eval_params(state, params) is not params)
        return x

    jax.eval_shape(look, jax.ShapeDtypeStruct((2, 2), "float32"))
    return found[0]


def _needs(rule: Optimizer, horizon: int | None) -> bool:
    """Whether the rule needs the loss.

    Raises:
        InputError: where it needs the horizon and has none.
    """
    name = type(rule).__name__
    try:
        trace.layout(rule, [(1,)], horizon)
    except InputError as error:
        if horizon is not None:
            raise
        raise InputError(
            f"{name} needs the length of the training in steps: LearnedOptimizer(..., horizon=steps)."
        ) from error

    def step(x: jax.Array) -> Any:
        params = {"x": x}
        return rule.update(params, rule.init(params, horizon=horizon, key=jax.random.key(0)), params)

    try:
        jax.eval_shape(step, jax.ShapeDtypeStruct((1,), "float32"))
    except InputError:
        return True
    return False
