"""The operations of a jaxpr, each written as one expression of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.lax import GatherScatterMode

from lopt.errors import InputError, needs_extra

with needs_extra("torch"):
    import torch

DTYPES = {
    "bool": torch.bool,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
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
    "rsqrt": "rsqrt",
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

SAME = {"copy", "copy_p", "stop_gradient"}
CUMULATIVE = {"cumsum": "", "cumprod": "", "cummax": ".values", "cummin": ".values"}
REDUCTIONS = {"reduce_max": "amax", "reduce_min": "amin", "reduce_sum": "sum"}
FLAT_REDUCTIONS = {"reduce_and": "all", "reduce_or": "any", "reduce_prod": "prod"}  # of one axis in PyTorch

# The places of the operands that may be written as numbers, unless all are; all others are handed tensors.
NUMBERS = {name: {0, 1} for name in (*BINARY, "div", "max", "min")} | {"select_n": {1, 2}, "clamp": {0, 2}}


class Number(str):
    """A number, as it stands in the source."""

    __slots__ = ()


def takes_numbers(eqn: Any) -> set[int]:
    """The places of the operands of an equation that may be written as numbers."""
    name, kind = eqn.primitive.name, np.dtype(eqn.outvars[0].aval.dtype).kind
    return set() if name == "div" and kind in "iu" else NUMBERS.get(name, set())


def dtype(given: Any) -> str:
    """A NumPy dtype as the source names it."""
    name = np.dtype(given).name
    if name not in DTYPES:
        raise InputError(f"The rule computes with {name}; lopt.torch has {', '.join(DTYPES)}.")
    return str(DTYPES[name])


def number(tensor: torch.Tensor) -> Number:
    """A tensor without axes as a number."""
    return _written(tensor.item())


def _written(value: Any) -> Number:
    return Number(f"float('{value}')" if isinstance(value, float) and not math.isfinite(value) else f"({value!r})")


def expression(eqn: Any, args: Sequence[str]) -> str:
    """One equation of a jaxpr as an expression.

    Args:
        eqn: the equation.
        args: its operands as they stand in the source: names of tensors or, where `takes_numbers` allows it, a `Number`.

    Raises:
        InputError: for a primitive that is not in the tables, and for a dtype that is not.
    """
    name, p, out = eqn.primitive.name, eqn.params, eqn.outvars[0].aval
    for v in (*eqn.invars, *eqn.outvars):
        dtype(v.aval.dtype)
    a = args[0] if args else ""
    if name in UNARY:
        return f"torch.{UNARY[name]}({a})"
    if name in BINARY:
        return f"{a} {BINARY[name]} {args[1]}"
    if name in SAME:
        return a
    exact = f", dtype={dtype(out.dtype)}" if np.dtype(out.dtype).kind in "iu" else ""  # PyTorch sums in int64
    if name in REDUCTIONS:
        if name != "reduce_sum" and not eqn.invars[0].aval.size:  # PyTorch has no extreme of nothing
            bound = _bounds(out.dtype)[name == "reduce_min"]
            return f"torch.full({_dims(out.shape)}, {bound}, dtype={dtype(out.dtype)}, device=device)"
        return f"{a}.{REDUCTIONS[name]}({_dims(p['axes'])}{exact * (name == 'reduce_sum')})" if p["axes"] else a
    if name in CUMULATIVE:
        x = f"{a}.flip({int(p['axis'])})" if p["reverse"] else a
        kind = exact * (not CUMULATIVE[name])
        x = f"torch.{name}({x}, {int(p['axis'])}{kind}){CUMULATIVE[name]}"
        return f"{x}.flip({int(p['axis'])})" if p["reverse"] else x
    if name in FLAT_REDUCTIONS:
        if name != "reduce_prod" and out.dtype != np.bool_:
            raise InputError(f"The rule uses {name} of integers, for which lopt.torch has no operation of PyTorch.")
        count = len(p["axes"])
        flat = f"{a}.movedim({_dims(p['axes'])}, {_dims(range(count))}).flatten(0, {count - 1})"
        return f"torch.{FLAT_REDUCTIONS[name]}({flat}, 0{exact * (name == 'reduce_prod')})" if count else a
    found = FORMS.get(name)
    if found is None:
        raise InputError(f"The rule uses the JAX primitive {name}, for which lopt.torch has no operation of PyTorch.")
    return found(eqn, args, p, out)


def _dims(axes: Any) -> tuple[int, ...]:
    return tuple(int(i) for i in axes)


def _bounds(kind: Any) -> tuple[Number, Number]:
    """The least and the greatest number of a dtype."""
    if np.dtype(kind).kind == "b":
        return Number("False"), Number("True")
    if np.dtype(kind).kind not in "iu":
        return Number("-float('inf')"), Number("float('inf')")
    return Number(f"({np.iinfo(kind).min})"), Number(f"({np.iinfo(kind).max})")


def _div(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
    if np.dtype(out.dtype).kind not in "iu":
        return f"{a[0]} / {a[1]}"
    # PyTorch raises where it divides by zero; in JAX the quotient has all bits set. -1 is apart for the least number, whose opposite does not exist.
    least, most = _bounds(out.dtype)
    every = most if np.dtype(out.dtype).kind == "u" else Number("(-1)")
    quotient = f"torch.div({a[0]}, {_divisor(a[1], out)}, rounding_mode='trunc')"
    if least != "(0)":
        quotient = f"torch.where({a[1]} == -1, -{a[0]}, {quotient})"
    return f"torch.where({a[1]} == 0, {every}, {quotient})"


def _rem(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
    if np.dtype(out.dtype).kind not in "iu":
        return f"torch.fmod({a[0]}, {a[1]})"
    found = f"torch.fmod({a[0]}, {_divisor(a[1], out)})"
    return f"torch.where({a[1]} == 0, {a[0]}, {found})"


def _divisor(x: str, out: Any) -> str:
    """An integer by which PyTorch can divide any other, 1 in place of those by which it cannot."""
    bad = f"{x} == 0" if np.dtype(out.dtype).kind == "u" else f"({x} == 0) | ({x} == -1)"
    return f"torch.where({bad}, 1, {x})"


def _convert(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
    """A float that is no integer of the kind becomes the nearest one, and a NaN zero."""
    given, kind = eqn.invars[0].aval.dtype, np.dtype(out.dtype).kind
    if kind not in "iu" or np.dtype(given).kind in "iub":
        return f"{a[0]}.to({dtype(out.dtype)})"
    x = a[0] if np.dtype(given).itemsize > 2 else f"{a[0]}.to(torch.float32)"
    least, most = _bounds(out.dtype)
    inside = f"({x} > {least}) & ({x} < {most})"
    nearest = f"torch.where({x} > 0, {most}, torch.where({x} < 0, {least}, 0))"
    return f"torch.where({inside}, torch.where({inside}, {x}, 0.0).to({dtype(out.dtype)}), {nearest}).to({dtype(out.dtype)})"


def _round(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
    if int(p["rounding_method"]) == 1:  # to the even one of two that are as near
        return f"torch.round({a[0]})"
    away = f"torch.trunc({a[0]}) + torch.sign({a[0]}) * (torch.abs({a[0]} - torch.trunc({a[0]})) >= 0.5)"
    return f"torch.copysign({away}, {a[0]})"


def _reduce_precision(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
    kinds = {(11, 52): "float64", (8, 23): "float32", (8, 7): "bfloat16"}
    bits, own = (int(p["exponent_bits"]), int(p["mantissa_bits"])), np.dtype(out.dtype).name
    if own == kinds.get(bits) or (own, bits) == ("float16", (5, 10)):
        return a[0]
    if (own, bits) == ("float32", (8, 7)):
        return f"{a[0]}.to(torch.bfloat16).to(torch.float32)"
    raise InputError(f"The rule reduces {own} to {bits[0]} and {bits[1]} bits, for which lopt.torch has no operation.")


def _extreme(name: str, bound: str) -> Any:
    def form(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
        for x, y in ((a[0], a[1]), (a[1], a[0])):
            if isinstance(y, Number):
                return f"{x}.clamp({bound}={y})"
        return f"torch.{name}({a[0]}, {a[1]})"

    return form


def _select(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
    which, found, *others = a
    for i, other in enumerate(others, 1):
        chosen = which if eqn.invars[0].aval.dtype == np.bool_ else f"{which} >= {i}"
        found = f"torch.where({chosen}, {other}, {found})"
        if i == 1 and isinstance(a[1], Number) and isinstance(other, Number):
            found += f".to({dtype(out.dtype)})"
    return found


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

    a = [x if v.aval.dtype == out.dtype else f"{x}.to({dtype(out.dtype)})" for x, v in zip(a, eqn.invars, strict=True)]
    product = f"torch.matmul({arranged(a[0], left, lf, lc, lb)}, {arranged(a[1], right, rc, rf, rb)})"
    natural = (*batch, math.prod(left[i] for i in lf), math.prod(right[i] for i in rf))
    return product if natural == out.shape else f"{product}.reshape({_dims(out.shape)})"


def _gather(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
    numbers, sizes = p["dimension_numbers"], p["slice_sizes"]
    x, i = (v.aval.shape for v in eqn.invars)
    batch_axes = [k for k in range(len(out.shape)) if k not in numbers.offset_dims]
    offset_axes = iter(numbers.offset_dims)
    where, within = [], []
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
            begin = f"{a[1]}[..., {numbers.start_index_map.index(axis)}].reshape({tuple(shape)})"
            within.append(f"({begin} >= 0) & ({begin} <= {n - k})")
            terms.append(f"{begin}.clamp(0, {n - k})")
        where.append(
            " + ".join(terms) or f"torch.zeros({tuple([1] * len(out.shape))}, dtype=torch.int64, device=device)"
        )
    found = f"{a[0]}[{', '.join(where)}]" if where else a[0]
    if p["mode"] != GatherScatterMode.FILL_OR_DROP or not within:
        return found
    least, most = _bounds(out.dtype)
    fill = {"i": least, "u": most, "b": most}.get(np.dtype(out.dtype).kind, _written(math.nan))
    if p["fill_value"] is not None:
        fill = _written(np.asarray(p["fill_value"]).item())
    return f"torch.where({' & '.join(within)}, {found}, {fill})"


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


def _argument(name: str) -> Any:
    def form(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
        x = f"{a[0]}.to(torch.uint8)" if eqn.invars[0].aval.dtype == np.bool_ else a[0]
        return f"{x}.{name}({int(p['axes'][0])}).to({dtype(out.dtype)})"

    return form


def _sign(eqn: Any, a: Sequence[str], p: Any, out: Any) -> str:
    if np.dtype(out.dtype).kind in "iu":
        return f"torch.sign({a[0]})"
    return f"torch.where(torch.abs({a[0]}) > 0, torch.sign({a[0]}), {a[0]})"  # NaN and the zeros are their own


FORMS = {
    "argmax": _argument("argmax"),
    "argmin": _argument("argmin"),
    "atan2": lambda e, a, p, o: f"torch.atan2({a[0]}, {a[1]})",
    "broadcast_in_dim": _broadcast,
    "cbrt": lambda e, a, p, o: f"torch.copysign(torch.abs({a[0]}) ** (1 / 3), {a[0]})",
    "clamp": _clamp,
    "concatenate": lambda e, a, p, o: f"torch.cat([{', '.join(a)}], {int(p['dimension'])})",
    "convert_element_type": _convert,
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
    "reduce_precision": _reduce_precision,
    "rem": _rem,
    "reshape": _reshape,
    "round": _round,
    "rev": lambda e, a, p, o: f"{a[0]}.flip({_dims(p['dimensions'])})",
    "select_n": _select,
    "sign": _sign,
    "slice": _slice,
    "split": lambda e, a, p, o: f"torch.split({a[0]}, {list(_dims(p['sizes']))}, {int(p['axis'])})",
    "squeeze": _reshape,
    "stack": lambda e, a, p, o: f"torch.stack([{', '.join(a)}], {p.get('axis', p.get('dimension', 0))})",
    "transpose": lambda e, a, p, o: f"{a[0]}.permute({_dims(p['permutation'])})",
}
