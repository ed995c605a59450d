"""`LearnedOptimizer`: an optimizer of lopt as one of PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from lopt.blocks.progress import require_horizon
from lopt.errors import InputError, needs_extra
from lopt.optimizer import Optimizer
from lopt.torch import _trace as trace
from lopt.torch._bridge import Bridge
from lopt.torch._checks import check_parameters, dense, evaluates_elsewhere, known, needs_loss
from lopt.torch._elsewhere import eval_params
from lopt.torch._program import Program
from lopt.torch._sharding import is_sharded, local_part, whole
from lopt.torch._state import States, adopt, card_of, gather, scatter
from lopt.torch._steps import TorchStep
from lopt.zoo import RELEASED, load

with needs_extra("torch"):
    import torch
    from torch import Tensor

Backend = Literal["auto", "jax", "torch"]
_Loss = Tensor | float
_TRAINED = "params before eval"  # what a parameter was before `LearnedOptimizer.eval`


class LearnedOptimizer(torch.optim.Optimizer):
    r"""A learned optimizer, saved or any other of lopt's, as a `torch.optim.Optimizer`.

    $$w \leftarrow (1 - \eta \lambda)\, w + \eta\, u, \qquad (u, s) \leftarrow \mathrm{update}(g, s, w)$$

    The rule is the one of lopt, in JAX. On a CPU JAX compiles its update and runs it on the memory of the tensors; elsewhere the update is
    traced, once for a set of tensors, and written as operations of PyTorch. It sees gradients and parameters in float32, and its state is
    float32, whatever the parameters are. A step in which a gradient or a parameter is a NaN, an infinity or at least 1e15 is skipped:
    parameters and state stay as they are.

    A parameter without gradient takes no part in a step. All parameters share the number of steps and what else the rule keeps for all.

    Args:
        params: parameters, or groups of them, as for any optimizer of PyTorch; `lr` and `weight_decay` may differ among groups. Rules that
            `eval` changes something for, as that of `general-2`, keep parameters of their own and would undo both: there `lr` must be 1 and
            `weight_decay` 0. A rate that is a tensor on another device, or within a compiled graph, is not looked at.
        rule: the name or path of a saved optimizer, or an `Optimizer`.
        lr: $\eta$, a multiplier of the learned update: the learned optimizer has its own step size, so 1 is where to begin.
        weight_decay: $\lambda$, decoupled from the update as in AdamW.
        horizon: steps of the training, for rules that want to know. `load_state_dict` restores it.
        backend: what computes the update: `"jax"`, compiled for the CPU; `"torch"`, operations of PyTorch, on any device; or `"auto"`: JAX
            for plain tensors on a CPU, PyTorch for all others.

    Raises:
        InputError: for an unknown name, parameters that are not real floating-point numbers or lie on several devices, a horizon below
            1, an unknown backend, JAX for parameters that are not on a CPU, or an `lr` or `weight_decay` that the rule would undo.

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
        rule: str | Path | Optimizer = RELEASED,
        *,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        horizon: int | None = None,
        backend: Backend = "auto",
    ):
        for name, given in (("lr", lr), ("weight_decay", weight_decay)):
            if not isinstance(given, Tensor) and not given >= 0:
                raise InputError(f"{name} is {given}; it must not be negative.")
        if horizon is not None:
            require_horizon("LearnedOptimizer", horizon)
        if backend not in get_args(Backend):
            raise InputError(f"backend is {backend!r}; it must be one of {', '.join(get_args(Backend))}.")
        if not isinstance(rule, str | Path | Optimizer):
            raise InputError(
                f"rule is {rule!r}; it must be an Optimizer, or the name or path of a saved one: no learning rate is needed."
            )
        self.backend: Backend = backend
        self.rule = rule if isinstance(rule, Optimizer) else load(rule)
        self.called = type(rule).__name__ if isinstance(rule, Optimizer) else str(rule)
        self.fingerprint = card_of(self.rule).fingerprint
        self._forget()
        defaults = {"lr": lr, "weight_decay": weight_decay, "horizon": horizon, "fingerprint": self.fingerprint}
        super().__init__(params, defaults)

    def _forget(self) -> None:
        """Trace anew at the next step."""
        self._needs_loss: bool | None = None
        self._elsewhere: bool | None = None
        self._layouts: dict[Any, trace.Layout] = {}
        self._programs: dict[Any, Program] = {}
        self._release()

    def _release(self) -> None:
        """Bind the state anew at the next step."""
        self._bound: tuple[Any, trace.Layout, Sequence[Tensor], TorchStep | Bridge] | None = None

    @property
    def needs_loss(self) -> bool:
        """Whether the rule needs the training loss."""
        if self._needs_loss is None:
            self._needs_loss = needs_loss(self.rule, self._horizon)
        return self._needs_loss

    @property
    def _evaluates_elsewhere(self) -> bool:
        """Whether `eval` changes anything."""
        if self._elsewhere is None:
            self._elsewhere = evaluates_elsewhere(self.rule)
        return self._elsewhere

    @property
    def state(self) -> States:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The state by parameter. JAX holds it between steps: it is handed back here, and copied again at the next step."""
        states = self.__dict__["state"]  # where the base class and pickles keep it
        bound = self.__dict__.get("_bound")
        if bound is not None and isinstance(bound[3], Bridge):
            self._release()
            scatter(states, bound[1], bound[2], bound[3].leaves())
        return states

    @state.setter
    def state(self, states: States) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.__dict__["state"] = states

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, whose state begins with their first gradient.

        Args:
            param_group: `params`, and `lr` and `weight_decay` where they differ.

        Raises:
            InputError: for parameters that are not real floating-point numbers or lie on another device, a horizon of its own, and an `lr`
                or `weight_decay` that the rule would undo.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for name in ("horizon", "fingerprint"):
                if group[name] != self.defaults[name]:
                    raise InputError(
                        f"The group has {name} {group[name]}; there is one for the whole optimizer, {self.defaults[name]}."
                    )
            check_parameters([p for g in self.param_groups for p in g["params"]], self.backend)
            if known(group["lr"]) != 0:  # where a schedule may begin
                self._refuse_changes([group])
        except InputError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        closure: Callable[[], _Loss] | None = None,
        *,
        loss: _Loss | None = None,
        valid_loss: _Loss | None = None,
    ) -> _Loss | None:
        """Take a step.

        Where the rule needs the loss and it is missing, or `eval` changes something for it, a step with all rates zero starts the state and does no more:
        `torch.distributed.checkpoint` makes the tensors that it loads into by such a step.

        Args:
            closure: computes the loss anew, with its gradients, and returns it.
            loss: the training loss, for rules that want it and where there is no closure.
            valid_loss: a validation loss, for rules that want it, at the steps that have one.

        Returns:
            What the closure returned.

        Raises:
            InputError: without the loss where the rule needs it and a rate is not zero, without the horizon where the rule needs it, for
                parameters that have moved to where the optimizer does not run, and for a sparse gradient; for an `lr` or
                `weight_decay` that the rule would undo; with low memory, for parameters that are not float32.
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
            if any(group["lr"] != 0 for group in self.param_groups):
                raise InputError(
                    f"{type(self.rule).__name__} needs the training loss: call step(loss=loss), or step(closure) with one that returns it."
                )
            self._start(params)
            return found
        if all(known(group["lr"]) == 0 for group in self.param_groups) and self._evaluates_elsewhere:
            self._start(params)
            return found
        self._refuse_changes(self.param_groups)
        if self.rule.exact_params and (other := {str(p.dtype).removeprefix("torch.") for p in params} - {"float32"}):
            name = type(self.rule).__name__
            raise InputError(f"A parameter is {min(other)}; {name} with low memory takes float32 alone.")
        named = {"value": loss, "valid_value": valid_loss}
        losses = {k: torch.as_tensor(x).detach() for k, x in named.items() if x is not None}
        step = self._bind(params, tuple(losses))
        grads, seen = [_seen(dense(p.grad)) for p in params], [_seen(p) for p in params]
        values = [x.to(grads[0].device, torch.float32).reshape(()) for x in losses.values()]
        updates, finite = step(grads, seen, values)
        self._add(dict(zip(params, updates, strict=True)), finite)
        return found

    def _refuse_changes(self, groups: Iterable[Mapping[str, Any]]) -> None:
        """Refuse what would change parameters otherwise than by the rule's own updates, where the rule keeps parameters of its own."""
        for field, allowed, own, advice in (
            ("lr", 1, "learning_rate", "leave lr at 1 and use no learning-rate scheduler"),
            ("weight_decay", 0, "weight_decay", "leave it at 0"),
        ):
            if any(known(g[field]) not in (None, allowed) for g in groups) and self._evaluates_elsewhere:
                # Without the number: a compiled graph knows none.
                instead = f", or load it with another {own}" if hasattr(self.rule, own) else ""
                raise InputError(
                    f"{field} is not {allowed}, which {self.called} would undo at its next step: {advice}{instead}."
                )

    def _add(self, updates: Mapping[Tensor, Tensor], finite: Tensor) -> None:
        """Add updates to parameters. Nothing is read on the host.

        Args:
            updates: of parameters.
            finite: whether all numbers were; if not, the updates are zero and nothing decays.
        """
        for group in self.param_groups:
            lr, decay = group["lr"], group["weight_decay"]
            pairs = [local_part(p, updates[p]) for p in group["params"] if p in updates]
            if not pairs:
                continue
            own, found = (list(x) for x in zip(*pairs, strict=True))
            wide = own
            if decay:
                # A half has no digits for a small decay: it is rounded once, with the update.
                wide = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in own]
                most = max((x.dtype for x in wide), key=lambda kind: kind.itemsize)
                kept = 1.0 - finite.to(most) * (lr * decay)
                torch._foreach_mul_(wide, kept)  # pyright: ignore[reportPrivateImportUsage]
            if isinstance(lr, Tensor) or lr != 1:
                found = torch._foreach_mul(found, lr)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_add_(wide, found)  # pyright: ignore[reportPrivateImportUsage]
            if wide is not own:
                for x, exact in zip(own, wide, strict=True):
                    if x is not exact:
                        x.copy_(exact)

    def _bind(self, params: Sequence[Tensor], losses: tuple[str, ...]) -> TorchStep | Bridge:
        """The step for these parameters, which holds their state."""
        seen = (*map(id, params), *(p.device for p in params), *losses)
        if self._bound is not None and self._bound[0] == seen:
            return self._bound[3]
        return self._bind_anew(params, losses, seen)

    @torch.compiler.disable  # what starts states, traces rules and hands over to JAX is no part of a graph
    def _bind_anew(self, params: Sequence[Tensor], losses: tuple[str, ...], seen: Any) -> TorchStep | Bridge:
        states = self.state
        if any(_TRAINED in s for s in states.values()):
            raise InputError("The model holds the parameters to evaluate; call optimizer.train() before the next step.")
        check_parameters(params, self.backend)  # they may have moved to another device since they were given
        for p, own in states.items():
            own.update({name: x.to(p.device) for name, x in own.items()})
        self._start(params)
        layout, shapes = self._layout(params), [tuple(p.shape) for p in params]
        leaves = gather(self.state, layout, params)
        plain = params[0].device.type == "cpu" and not any(map(is_sharded, params))
        if self.backend == "jax" or (self.backend == "auto" and plain):
            step = Bridge(self.rule, shapes, layout, leaves, losses)
            scatter(self.state, layout, params, [x.to("meta") for x in leaves])  # JAX holds it, once
        else:
            key = (*shapes, *losses, params[0].device)
            if key not in self._programs:
                self._programs[key] = trace.step_program(self.rule, shapes, layout, params[0].device, losses=losses)
            step = TorchStep(self._programs[key], leaves)
        self._bound = (seen, layout, params, step)
        return step

    def _start(self, params: Sequence[Tensor]) -> None:
        """Give parameters that have no state theirs."""
        states = self.state
        fresh = [p for p in params if not states.get(p)]
        if fresh:
            leaves = trace.start(self.rule, [_seen(p) for p in fresh], self._horizon)
            adopt(states, self._layout(fresh), fresh, leaves)

    def _layout(self, params: Sequence[Tensor]) -> trace.Layout:
        """The leaves of the state of parameters."""
        shapes = tuple(tuple(p.shape) for p in params)
        if shapes not in self._layouts:
            self._layouts[shapes] = trace.layout(self.rule, shapes, self._horizon)
        return self._layouts[shapes]

    @torch.no_grad()
    def eval(self) -> None:
        """Let the model hold the parameters to evaluate and deploy, for rules that take their gradients elsewhere.

        A schedule-free rule is one. For all others, nothing changes. `train` goes back; a step before that is refused.
        """
        states = self.state
        params = [p for group in self.param_groups for p in group["params"] if states.get(p)]
        if not params or _TRAINED in states[params[0]] or not self._evaluates_elsewhere:
            return
        layout, seen = self._layout(params), [_seen(p) for p in params]
        found = eval_params(self.rule, layout, gather(states, layout, params), seen)
        self._release()
        for p, x in zip(params, found, strict=True):
            states[p][_TRAINED] = p.detach().clone()
            own, part = local_part(p, x.to(p.device))
            own.copy_(part)

    @torch.no_grad()
    def train(self) -> None:
        """Let the model hold the parameters at which the rule takes its gradients, as before `eval`."""
        for p, state in self.state.items():
            if _TRAINED in state:
                p.copy_(state.pop(_TRAINED))

    @property
    def _horizon(self) -> int | None:
        return self.defaults["horizon"]

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """The state and the groups, as any optimizer of PyTorch gives them, with the fingerprint of the rule in each group.

        A parameter that has a gradient has a state, before the first step too: what `torch.distributed.checkpoint` finds no state of, it
        does not load, and says nothing.
        """
        self._start([p for group in self.param_groups for p in group["params"] if p.grad is not None])
        return super().state_dict()

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
            "called": self.called,
            "backend": self.backend,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()


def _seen(x: Tensor) -> Tensor:
    """A parameter or a gradient as the rule sees it."""
    return whole(x).to(torch.float32)
