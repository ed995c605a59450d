r"""One step of a per-parameter network on one tensor: the passes that `adafactor_mlp` and `optimizers.mlp` share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopt.blocks.features import rms_scale
from lopt.blocks.nets import MLP, Units, add_biases
from lopt.blocks.tensors import chunked

Arrays = tuple[Array, ...]


def network_step(
    net: MLP,
    rows: Sequence[int],
    gradient: Array,
    param: Array,
    accumulators: Arrays,
    *,
    accumulate: Callable[[Array, Arrays], Arrays],
    features: Callable[[Array, Array, Arrays, Arrays], list[Array]],
    readout: Callable[[list[Array], Array, Array, Arrays], Array],
    constant: Float[Array, " width"],
    factors: Arrays = (),
    shares: Sequence[Units] = (),
    given: Callable[[Arrays], Arrays] = lambda accumulators: (),
    average: Sequence[int] = (),
) -> tuple[Array, Arrays]:
    r"""Accumulate, normalise, run the network, read out.

    $$h_j = b_j + \sum_i \frac{x_i}{\sqrt{10^{-5} + \overline{x_i^2}}}\, W_{ij} + \sum_k S_{kj}$$

    is the first layer, $x_i$ the features, overlines means over the tensor, $b_j$ what is the same for all parameters and $S_{kj}$ what is
    computed on vectors. One pass over the tensor accumulates and finds the means, a second one runs the network.

    Args:
        net: the network.
        rows: the row of its first weight matrix that each feature meets.
        gradient: of the loss, float32.
        param: the parameter, float32.
        accumulators: arrays of the shape of the parameter.
        accumulate: `(gradient, accumulators) -> accumulators`, elementwise.
        features: `(gradient, param, accumulators, factors) -> features`, elementwise.
        readout: `(network outputs, gradient, param, (*accumulators, *given)) -> update`, elementwise.
        constant: $b$.
        factors: arrays that broadcast against the parameter, for `features`.
        shares: the $S_k$, units that broadcast against the parameter.
        given: `accumulators -> arrays` of the shape of the parameter, for `readout` alone; it sees whole tensors.
        average: network outputs to replace by their mean over the tensor.

    Returns:
        The update and the new accumulators.
    """

    def first(overwrite: Arrays, read: Arrays) -> tuple[Arrays, Array]:
        new = accumulate(read[0], overwrite)
        found = features(read[0], read[1], new, read[2:])
        return new, jnp.stack([jnp.sum(jnp.square(f)) for f in found])

    accumulators, squares = chunked(first, accumulators, (gradient, param, *factors))
    scales, seen_whole = rms_scale(squares / gradient.size), given(accumulators)
    ends = tuple(itertools.accumulate((1, len(accumulators), len(factors), len(seen_whole))))
    share_leaves, treedef = jax.tree.flatten(list(shares))

    def outputs(gradient: Array, read: Arrays) -> tuple[Units, tuple[Array, Array, Arrays]]:
        param, rest = read[0], read[ends[3] :]
        accumulators, factors, given = (read[begin:end] for begin, end in itertools.pairwise(ends))
        hidden = net.first_layer(rows, features(gradient, param, accumulators, factors), scales)
        for share in treedef.unflatten(rest):
            hidden = jax.tree.map(jnp.add, hidden, share)
        return net.rest(add_biases(hidden, constant)), (gradient, param, (*accumulators, *given))

    read = (param, *accumulators, *factors, *seen_whole, *share_leaves)
    means: dict[int, Array] = {}
    if average:

        def sums(overwrite: Arrays, read: Arrays) -> tuple[Arrays, Array]:
            out, _ = outputs(overwrite[0], read)
            return overwrite, jnp.stack([jnp.sum(out[i]) for i in average])

        _, totals = chunked(sums, (gradient,), read, chunk=net.chunk)
        means = {i: totals[k] / gradient.size for k, i in enumerate(average)}

    def second(overwrite: Arrays, read: Arrays) -> tuple[Arrays, tuple[()]]:
        out, seen = outputs(overwrite[0], read)
        out = [jnp.broadcast_to(means[i], x.shape) if i in means else x for i, x in enumerate(out)]
        return (readout(out, *seen),), ()

    if net.is_narrow:
        # Elementwise from end to end: XLA makes one loop of it, without temporaries and over all cores, so no chunks.
        ((update,), _) = second((gradient,), read)
    else:
        (update,), _ = chunked(second, (gradient,), read, chunk=net.chunk)
    return update, accumulators
