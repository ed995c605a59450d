"""The operations of a jaxpr, each written as one expression of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lopt.errors import InputError, needs_extra

with needs_extra("torch"):
    import torch

DTYPES = {
    "bool": torch.bool,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
    "uint32": torch.int64,  # PyTorch does no arithmetic on uint32
    "int64": torch.int64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}

UNARY = {
    "abs": "abs",
    "acos": "acos",
    "asin": "asin",
    "asinh": "asinh",
    "atan": "atan",
    "ceil": "ceil",
    "cos": "cos",
    "cosh": "cosh",
    "erf": "erf",
    "erf_inv": "erfinv",
    "exp": "exp",
    "exp2": "exp2",
    "expm1": "expm1",
    "floor": "floor",
    "is_finite": "isfinite",
    "lgamma": "lgamma",
    "log": "log",
    "log1p": "log1p",
    "logistic": "sigmoid",
    "neg": "neg",
    "not": "bitwise_not",
    "round": "round",
    "rsqrt": "rsqrt",
    "sign": "sign",
    "sin": "sin",
    "sinh": "sinh",
    "sqrt": "sqrt",
    "square": "square",
    "tan": "tan",
    "tanh": "tanh",
}

BINARY = {
    "add": "+",
    "add_any": "+",
    "and": "&",
    "eq": "==",
    "ge": ">=",
    "gt": ">",
    "le": "<=",
    "lt": "<",
    "mul": "*",
    "ne": "!=",
    "or": "|",
    "pow": "**",
    "sub": "-",
    "xor": "^",
}

SAME = {"copy", "copy_p", "optimization_barrier", "reduce_precision", "stop_gradient"}
CUMULATIVE = {"cumsum": "", "cumprod": "", "cummax": ".values", "cummin": ".values"}
REDUCTIONS = {"reduce_max": "amax", "reduce_min": "amin", "reduce_sum": "sum"}
FLAT_REDUCTIONS = {"reduce_and": "all", "reduce_or": "any", "reduce_prod": "prod"}  # of one axis in PyTorch

# Primitives whose operands may be written as numbers; all others are handed tensors.
TAKES_NUMBERS = {*BINARY, "div", "max", "min", "select_n", "clamp", "integer_pow"}


class Number(str):
    """A number, as it stands in the source."""

    __slots__ = ()


def dtype(given: Any) -> str:
    """A NumPy dtype as the source names it."""
    name = np.dtype(given).name
    if name not in DTYPES:
        raise InputError(f"The rule computes with {name}; PyTorch has {', '.join(DTYPES)}.")
    return str(DTYPES[name])


def number(tensor: torch.Tensor) -> Number:
    """A tensor without axes as a number."""
    value = tensor.item()
    return Number(f"float('{value}')" if isinstance(value, float) and not math.isfinite(value) else f"({value!r})")


def expression(eqn: Any, args: Sequence[str]) -> str:
    """One equation of a jaxpr as an expression.

    Args:
        eqn: the equation.
        args: its operands as they stand in the source: names of tensors or, where `TAKES_NUMBERS`, a `Number`.

    Raises:
        InputError: for a primitive that is not in the tables.
    """
    name, p, out = eqn.primitive.name, eqn.params, eqn.outvars[0].aval
    a = args[0] if args else ""
    if name in UNARY:
        return f"torch.{UNARY[name]}({a})"
    if name in BINARY:
        return f"{a} {BINARY[name]} {args[1]}"
    if name in SAME:
        return a
    if name in REDUCTIONS:
        if name != "reduce_sum" and not eqn.invars[0].aval.size:  # PyTorch has no extreme of nothing
            return f"torch.full({_dims(out.shape)}, {'-' * (name == 'reduce_max')}float('inf'), dtype={dtype(out.dtype)}, device=device)"
        return f"{a}.{REDUCTIONS[name]}({_dims(p['axes'])})" if p["axes"] else a
    if name in CUMULATIVE:
        x = f"{a}.flip({int(p['axis'])})" if p["reverse"] else a
        x = f"torch.{name}({x}, {int(p['axis'])}){CUMULATIVE[name]}"
        return f"{x}.flip({int(p['axis'])})" if p["reverse"] else x
    if name in FLAT_REDUCTIONS:
        count = len(p["axes"])
        flat = f"{a}.movedim({_dims(p['axes'])}, {_dims(range(count))}).flatten(0, {count - 1})"
        return f"torch.{FLAT_REDUCTIONS[name]}({flat}, 0)" if count else a
    found = _FORMS.get(name)
    if found is None:
        raise InputError(f"The rule uses the JAX primitive {name}, for which lopt.torch has no operation of PyTorch.")
    return found(eqn, args, p, out)


def _dims(axes: Any) -> tuple[int, ...]:
    return tuple(int(i) for i in axes)


def _div(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
    if np.issubdtype(out.dtype, np.integer):
        return f"torch.div({a[0]}, {a[1]}, rounding_mode='trunc')"
    return f"{a[0]} / {a[1]}"


def _extreme(name: str, bound: str) -> Any:
    def form(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
        for x, y in ((a[0], a[1]), (a[1], a[0])):
            if isinstance(y, Number):
                return f"{x}.clamp({bound}={y})"
        return f"torch.{name}({a[0]}, {a[1]})"

    return form


def _select(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
    if len(a) != 3 or eqn.invars[0].aval.dtype != np.bool_:
        raise InputError(
            "The rule chooses among more than two arrays (select_n), for which lopt.torch has no operation."
        )
    found = f"torch.where({a[0]}, {a[2]}, {a[1]})"
    return f"{found}.to({dtype(out.dtype)})" if isinstance(a[1], Number) and isinstance(a[2], Number) else found


def _clamp(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
    low, x, high = a
    if isinstance(low, Number) == isinstance(high, Number):
        return f"torch.clamp({x}, {low}, {high})"
    return f"torch.clamp(torch.clamp({x}, min={low}), max={high})"


def _broadcast(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
    shape, source = _dims(p["shape"]), eqn.invars[0].aval.shape
    view = [1] * len(shape)
    for i, axis in enumerate(p["broadcast_dimensions"]):
        view[axis] = source[i]
    x = a[0] if tuple(view) == source else f"{a[0]}.reshape({tuple(view)})"
    return x if tuple(view) == shape else f"{x}.expand({shape})"


def _reshape(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
    return a[0] if eqn.invars[0].aval.shape == out.shape else f"{a[0]}.reshape({_dims(out.shape)})"


def _slice(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
    strides = p["strides"] or [1] * len(out.shape)
    whole = zip(*map(_dims, (p["start_indices"], p["limit_indices"], strides, eqn.invars[0].aval.shape)), strict=True)
    cuts = [":" if (b, e, k) == (0, n, 1) else f"{b}:{e}" + (f":{k}" if k != 1 else "") for b, e, k, n in whole]
    while cuts and cuts[-1] == ":":
        cuts.pop()
    return f"{a[0]}[{', '.join(cuts)}]" if cuts else a[0]


def cut(begins: Sequence[str], sizes: Sequence[int], shape: Sequence[int]) -> str:
    """The index of a slice that begins at numbers of the host; as in JAX it is moved so that it lies within the array."""
    cuts = []
    for i, k, n in zip(begins, sizes, shape, strict=True):
        begin = f"max(0, min({i}, {n - k}))"
        cuts.append(":" if k == n else f"{begin}:{begin} + {k}")
    return ", ".join(cuts) or "..."


def _dynamic_slice(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
    shape, x = eqn.invars[0].aval.shape, a[0]
    for axis, (i, k, n) in enumerate(zip(a[1:], p["slice_sizes"], shape, strict=True)):
        if k != n:  # no number of a tensor is read on the host
            x = f"{x}.index_select({axis}, {i}.clamp(0, {n - k}).reshape(1) + torch.arange({k}, device=device))"
    return x


def _dynamic_update_slice(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
    x, update = (v.aval.shape for v in eqn.invars[:2])
    where = [
        f"({i}.clamp(0, {n - k}) + torch.arange({k}, device=device)).reshape({_along(axis, len(x), k)})"
        for axis, (i, k, n) in enumerate(zip(a[2:], update, x, strict=True))
    ]
    return f"{a[0]}.index_put(({', '.join(where)},), {a[1]})" if where else a[1]


def _along(axis: int, rank: int, size: int) -> tuple[int, ...]:
    return tuple(size if i == axis else 1 for i in range(rank))


def _dot(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
    (lc, rc), (lb, rb) = p["dimension_numbers"]
    left, right = (v.aval.shape for v in eqn.invars)
    lf = [i for i in range(len(left)) if i not in (*lc, *lb)]
    rf = [i for i in range(len(right)) if i not in (*rc, *rb)]
    batch = (math.prod(left[i] for i in lb),) if lb else ()

    def arranged(x: str, shape: Sequence[int], first: Sequence[int], second: Sequence[int], lead: Sequence[int]) -> str:
        order = (*lead, *first, *second)
        x = x if order == tuple(range(len(shape))) else f"{x}.permute({_dims(order)})"
        target = (*batch, math.prod(shape[i] for i in first), math.prod(shape[i] for i in second))
        return x if tuple(shape[i] for i in order) == target else f"{x}.reshape({target})"

    product = f"torch.matmul({arranged(a[0], left, lf, lc, lb)}, {arranged(a[1], right, rc, rf, rb)})"
    natural = (*batch, math.prod(left[i] for i in lf), math.prod(right[i] for i in rf))
    return product if natural == out.shape else f"{product}.reshape({_dims(out.shape)})"


def _gather(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
    numbers, sizes = p["dimension_numbers"], p["slice_sizes"]
    x, i = (v.aval.shape for v in eqn.invars)
    batch_axes = [k for k in range(len(out.shape)) if k not in numbers.offset_dims]
    offset_axes = iter(numbers.offset_dims)
    where = []
    for axis, (k, n) in enumerate(zip(sizes, x, strict=True)):
        shape = [1] * len(out.shape)
        if axis in numbers.operand_batching_dims:
            along = batch_axes[numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(axis)]]
            shape[along] = n
            where.append(f"torch.arange({n}, device=device).reshape({tuple(shape)})")
            continue
        terms = []
        if axis not in numbers.collapsed_slice_dims:
            shape[next(offset_axes)] = k
            terms.append(f"torch.arange({k}, device=device).reshape({tuple(shape)})")
        if axis in numbers.start_index_map:
            shape = [1] * len(out.shape)
            for along, size in zip(batch_axes, i[:-1], strict=True):
                shape[along] = size
            begin = f"{a[1]}[..., {numbers.start_index_map.index(axis)}].clamp(0, {n - k})"
            terms.append(f"{begin}.reshape({tuple(shape)})")
        where.append(
            " + ".join(terms) or f"torch.zeros({tuple([1] * len(out.shape))}, dtype=torch.int64, device=device)"
        )
    return f"{a[0]}[{', '.join(where)}]" if where else a[0]


def _pad(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
    config = p["padding_config"]
    if any(low < 0 or high < 0 or inner for low, high, inner in config):
        raise InputError(
            "The rule pads within an array or by less than nothing, for which lopt.torch has no operation."
        )
    widths = [n for low, high, _ in reversed(config) for n in (int(low), int(high))]
    # The padding is a tensor without axes: one is added to it, so that its number is not read on the host.
    mask = f"torch.nn.functional.pad(torch.ones_like({a[0]}, dtype=torch.bool), {widths})"
    return f"torch.where({mask}, torch.nn.functional.pad({a[0]}, {widths}), {a[1]})"


_FORMS = {
    "argmax": lambda e, a, p, o: f"{a[0]}.argmax({int(p['axes'][0])}).to({dtype(o.dtype)})",
    "argmin": lambda e, a, p, o: f"{a[0]}.argmin({int(p['axes'][0])}).to({dtype(o.dtype)})",
    "atan2": lambda e, a, p, o: f"torch.atan2({a[0]}, {a[1]})",
    "broadcast_in_dim": _broadcast,
    "cbrt": lambda e, a, p, o: f"torch.sign({a[0]}) * torch.abs({a[0]}) ** (1 / 3)",
    "clamp": _clamp,
    "concatenate": lambda e, a, p, o: f"torch.cat([{', '.join(a)}], {int(p['dimension'])})",
    "convert_element_type": lambda e, a, p, o: f"{a[0]}.to({dtype(o.dtype)})",
    "div": _div,
    "dot_general": _dot,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "expand_dims": _reshape,
    "gather": _gather,
    "integer_pow": lambda e, a, p, o: f"{a[0]} ** {int(p['y'])}",
    "iota": lambda e, a, p, o: (
        f"torch.arange({o.shape[p['dimension']]}, dtype={dtype(o.dtype)}, device=device)"
        f".reshape({_along(p['dimension'], len(o.shape), o.shape[p['dimension']])}).expand({_dims(o.shape)})"
    ),
    "max": _extreme("maximum", "min"),
    "min": _extreme("minimum", "max"),
    "pad": _pad,
    "rem": lambda e, a, p, o: f"torch.fmod({a[0]}, {a[1]})",
    "reshape": _reshape,
    "rev": lambda e, a, p, o: f"{a[0]}.flip({_dims(p['dimensions'])})",
    "select_n": _select,
    "slice": _slice,
    "split": lambda e, a, p, o: f"torch.split({a[0]}, {list(_dims(p['sizes']))}, {int(p['axis'])})",
    "squeeze": _reshape,
    "stack": lambda e, a, p, o: f"torch.stack([{', '.join(a)}], {p.get('axis', p.get('dimension', 0))})",
    "transpose": lambda e, a, p, o: f"{a[0]}.permute({_dims(p['permutation'])})",
}
