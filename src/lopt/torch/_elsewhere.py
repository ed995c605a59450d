"""The parameters to evaluate, of rules that take their gradients elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lopt.errors import needs_extra
from lopt.optimizer import Optimizer
from lopt.torch._trace import Layout, as_tree

with needs_extra("torch"):
    import torch
    from torch import Tensor


def eval_params(rule: Optimizer, layout: Layout, leaves: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    """What `Optimizer.eval_params` gives, which JAX computes on the CPU.

    Args:
        rule: the optimizer.
        layout: of the state.
        leaves: of the state.
        params: the parameters, in float32.
    """
    with jax.default_device(jax.devices("cpu")[0]):
        state = layout.treedef.unflatten([jnp.array(x.numpy(force=True)) for x in leaves])
        found = rule.eval_params(state, as_tree([jnp.array(p.numpy(force=True)) for p in params]))
    return [torch.from_numpy(np.array(x)) for x in jax.tree.leaves(found)]
