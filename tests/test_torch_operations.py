"""Each operation of PyTorch that stands for one of JAX gives the same numbers, of the same dtype, on awkward input too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

torch = pytest.importorskip("torch")

from lopt.errors import InputError
from lopt.torch import _operations as operations
from lopt.torch._program import convert

NAN, INF = float("nan"), float("inf")
FLOATS = np.array(
    [-INF, -1e30, -3.7, -2.5, -1.0, -0.5, -0.0, 0.0, 0.49999997, 0.5, 1.5, 2.5, 1e-18, 3e9, INF, NAN], "f4"
)
OTHERS = np.array([2.0, -1.0, 0.0, -0.0, NAN, 0.3, 1.0, -2.0, 0.5, INF, -INF, 3.0, 1e10, -1e-3, 7.0, 1.0], "f4")
UNITS = np.array([-1.0, -0.9, -1e-6, -0.0, 0.0, 0.3, 0.999, 1.0, NAN, 2.0], "f4")
POSITIVE = np.array([0.0, 1e-20, 0.3, 1.0, 2.5, 60.0, 1e30, INF, NAN], "f4")
MODERATE = np.array([-8.0, -3.1, -0.4, -1e-6, -0.0, 0.0, 1e-4, 0.7, 2.0, 9.0, INF, -INF, NAN], "f4")
INTS = np.array([-(2**31), -7, -5, -1, 0, 1, 3, 100, 2**31 - 1], "i4")
DIVISORS = np.array([-1, 2, -3, 0, 5, -1, 0, 7, 2**31 - 1], "i4")
BYTES = np.array([0, 1, 3, 127, 128, 200, 255], "u1")
SMALL = np.array([-128, -100, -1, 0, 1, 100, 127], "i1")
TRUTHS = np.array([True, False, True, True, False])
GRID = np.array([[1.5, NAN, -2.0, 1.5], [-0.5, 3.0, 3.0, -INF], [0.0, -0.0, 7.0, 7.0]], "f4")
WHOLE = np.array([[2**30, 5, 2**30, 5], [3, -4, 2**30, 5], [1, 0, 2**30, -7]], "i4")
HALVES = np.linspace(-2, 2, 12).astype(jnp.bfloat16).reshape(3, 4)
NOTHING = np.zeros((0, 3), "f4")


class Row(NamedTuple):
    """A function, what it is given, and how near the results must be, relatively."""

    function: Callable[..., Any]
    inputs: Sequence[Any]
    near: float = 0.0


def cast(kind: Any) -> Callable[..., Any]:
    return lambda x: lax.convert_element_type(x, kind)


def barrier(x: Any, y: Any) -> Any:
    return lax.optimization_barrier((x, y))


def dot(x: Any, y: Any) -> Any:
    return lax.dot_general(x, y, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def take(mode: str) -> Callable[..., Any]:
    return lambda x, i: jnp.take(x, i, axis=0, mode=mode)


def counted(x: Any) -> Any:
    """Numbers made of the counter of a loop: products beyond 32 bits, floats, quotients and squares."""

    def turn(i: Any, carry: Any) -> Any:
        whole, real = carry
        mixed = i * 1_103_515_245 + 12_345
        near = jnp.where(i.astype(jnp.float32) * np.float32(0.1) < np.float32(0.3), 1.0, 2.0)
        square = lax.integer_pow(i + 1, 2) + lax.div(i, jnp.int32(2)) + lax.rem(mixed, i + 1)
        odd = jnp.where(lax.convert_element_type(i & 2, jnp.bool_), 1, 0)
        return whole * 3 + mixed + square + odd, real * 1.5 + near + x

    return lax.fori_loop(0, 6, turn, (jnp.zeros(x.shape, jnp.int32), x))


def of(*names: str) -> dict[str, Callable[..., Any]]:
    return {name: getattr(lax, name) for name in names}


ROWS: dict[str, Row] = {
    **{k: Row(f, [FLOATS]) for k, f in of("abs", "ceil", "floor", "is_finite", "neg", "sign", "square").items()},
    **{k: Row(f, [MODERATE], 3e-6) for k, f in of("erf", "exp", "exp2", "expm1", "sinh", "cosh", "tanh").items()},
    **{k: Row(f, [MODERATE], 3e-6) for k, f in of("atan", "asinh", "logistic", "cbrt").items()},
    **{k: Row(f, [MODERATE[:-3]], 3e-6) for k, f in of("sin", "cos", "tan").items()},
    **{k: Row(f, [UNITS], 3e-6) for k, f in of("acos", "asin", "erf_inv").items()},
    **{k: Row(f, [POSITIVE], 3e-6) for k, f in of("log", "log1p", "rsqrt", "sqrt").items()},
    "lgamma": Row(lax.lgamma, [POSITIVE[POSITIVE != 1]], 3e-6),
    "add_any": Row(jax.grad(lambda x: jnp.sum(x * jnp.tanh(x))), [UNITS], 3e-6),
    **{f"{k} of integers": Row(f, [INTS]) for k, f in of("abs", "neg", "sign", "square", "bitwise_not").items()},
    **{f"{k} of bytes": Row(f, [BYTES]) for k, f in of("sign", "bitwise_not", "square").items()},
    "not": Row(lax.bitwise_not, [TRUTHS]),
    "round away": Row(lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO), [FLOATS]),
    "round to even": Row(lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN), [FLOATS]),
    **{
        k: Row(f, [FLOATS, OTHERS])
        for k, f in of("add", "sub", "mul", "div", "eq", "ne", "ge", "gt", "le", "lt").items()
    },
    **{k: Row(f, [FLOATS, OTHERS], 1e-6) for k, f in of("max", "min", "rem", "atan2").items()},
    "pow": Row(lax.pow, [FLOATS, OTHERS], 3e-6),
    "pow by a half": Row(lambda x: lax.pow(x, jnp.float32(0.5)), [POSITIVE], 1e-6),
    "pow by integers": Row(lax.pow, [MODERATE, np.arange(13, dtype="i4") - 5], 3e-6),
    **{f"integer_pow {n}": Row(lambda x, n=n: lax.integer_pow(x, n), [FLOATS], 1e-6) for n in (-3, -1, 0, 2, 3, 7)},
    "integer_pow of integers": Row(lambda x: lax.integer_pow(x, 3), [INTS]),
    **{
        f"{k} of integers": Row(f, [INTS, DIVISORS])
        for k, f in of(
            "add", "sub", "mul", "div", "rem", "max", "min", "bitwise_and", "bitwise_or", "bitwise_xor"
        ).items()
    },
    **{f"{k} of bytes": Row(f, [BYTES, BYTES[::-1].copy()]) for k, f in of("add", "sub", "mul", "div", "rem").items()},
    **{
        f"{k} of small integers": Row(f, [SMALL, SMALL[::-1].copy()]) for k, f in of("add", "mul", "div", "rem").items()
    },
    **{
        f"{k} of truths": Row(f, [TRUTHS, ~TRUTHS])
        for k, f in of("bitwise_and", "bitwise_or", "max", "min", "eq").items()
    },
    **{
        f"{k} with {n} {side}": Row(lambda x, f=f, n=n, s=side: f(x, n) if s == "right" else f(n, x), [x], 3e-6)
        for x, numbers in (
            (FLOATS, (np.float32(0.1), np.float32(-2), np.float32(-0.0))),
            (INTS, (np.int32(3), np.int32(0), np.int32(-1))),
        )
        for k, f in of("add", "sub", "mul", "div", "rem", "max", "min", "eq", "lt", "ge").items()
        for n in numbers
        for side in ("right", "left")
        if n != 0 or k not in ("sub", "max", "min")  # XLA does not tell 0 from -0 there
    },
    "clamp": Row(lax.clamp, [np.float32(-1), FLOATS, np.float32(2)]),
    "clamp by arrays": Row(lax.clamp, [OTHERS, FLOATS, OTHERS + 1]),
    "clamp by NaN": Row(lambda x: lax.clamp(np.float32(NAN), x, np.float32(2)), [FLOATS]),
    "clamp the wrong way": Row(lambda x: lax.clamp(np.float32(2), x, np.float32(-2)), [FLOATS[:-1]]),
    "clamp integers": Row(lax.clamp, [np.int32(-5), INTS, np.int32(3)]),
    "clamp a number": Row(lambda low, high: lax.clamp(low, jnp.full(16, 0.7), high), [OTHERS[:1].repeat(16), OTHERS]),
    "select": Row(lax.select_n, [TRUTHS, FLOATS[:5], OTHERS[:5]]),
    "select of three": Row(lax.select_n, [np.array([2, 0, 1, 1, 0], "i4"), FLOATS[:5], OTHERS[:5], OTHERS[5:10]]),
    "select of three, two of them numbers": Row(
        lambda which, x: lax.select_n(which, jnp.full(5, 3, jnp.int32), jnp.full(5, -4, jnp.int32), x),
        [np.array([2, 0, 1, 1, 0], "i4"), np.arange(5, dtype="i4")],
    ),
    "select by integers": Row(lax.select_n, [np.array([1, 0, 1, 1, 0], "i4"), FLOATS[:5], OTHERS[:5]]),
    "select of one": Row(lax.select_n, [np.array([0, 0], "i4"), FLOATS[:2]]),
    "select numbers": Row(lambda x: jnp.where(x, jnp.int32(3), jnp.int32(-4)), [TRUTHS]),
    "select by a truth": Row(lambda x, y: lax.select_n(jnp.asarray(True), x, y), [FLOATS, OTHERS]),
    **{
        f"{a} to {np.dtype(b).name}": Row(cast(b), [x])
        for a, x in {"floats": FLOATS, "integers": INTS, "bytes": BYTES, "truths": TRUTHS, "halves": HALVES}.items()
        for b in (jnp.bool_, jnp.int8, jnp.uint8, jnp.int16, jnp.int32, jnp.float16, jnp.bfloat16, jnp.float32)
    },
    "limits to int8": Row(cast(jnp.int8), [np.array([127, 127.5, -128, -128.5, -129, 126.9], "f4")]),
    "limits to int32": Row(cast(jnp.int32), [np.array([2147483520, 2147483648, -2147483648, -2147483904], "f4")]),
    **{k: Row(lambda x, k=k: getattr(lax, k)(x, 1, jnp.int32), [GRID]) for k in ("argmax", "argmin")},
    **{f"{k} of truths": Row(lambda x, k=k: getattr(lax, k)(x, 0, jnp.int32), [TRUTHS]) for k in ("argmax", "argmin")},
    **{
        f"{k}{' reverse' * back} of {name}": Row(lambda x, k=k, b=back: getattr(lax, k)(x, 0, b), [x])
        for k in ("cumsum", "cumprod", "cummax", "cummin")
        for back in (False, True)
        for name, x in {"floats": GRID, "integers": WHOLE}.items()
    },
    **{
        f"{k} of {name}": Row(lambda x, k=k: getattr(jnp, k)(x, axis=(0, 1)), [x], 1e-6)
        for k in ("sum", "prod", "max", "min")
        for name, x in {"floats": GRID[1:2, :3], "NaN": GRID, "integers": WHOLE}.items()
    },
    **{
        f"{k.__name__} of no {name}": Row(lambda x, k=k: k(x, [0]), [x])
        for name, x in {"floats": NOTHING, "integers": NOTHING.astype("i4"), "truths": NOTHING.astype(bool)}.items()
        for k in (lax.reduce_max, lax.reduce_min)
    },
    **{f"{k} of truths": Row(lambda x, k=k: getattr(jnp, k)(x), [TRUTHS]) for k in ("all", "any", "max", "min")},
    "no axes": Row(lambda x: lax.reduce_sum(x, []), [GRID]),
    "copy": Row(lambda x: lax.stop_gradient(jnp.copy(x)), [FLOATS]),
    "barrier": Row(barrier, [GRID, FLOATS]),
    "halves within": Row(lambda x: lax.reduce_precision(x, 8, 7), [FLOATS]),
    "as precise": Row(lambda x: lax.reduce_precision(x, 8, 23), [FLOATS]),
    "matrices": Row(lambda x, y: x @ y, [WHOLE.astype("f4") / 2**30, np.ones((4, 2), "f4")], 1e-6),
    "matrices of halves": Row(dot, [HALVES, HALVES.T], 1e-6),
    "matrices of bytes": Row(
        lambda x, y: lax.dot(x, y, preferred_element_type=jnp.int32), [SMALL[None], SMALL[:, None]]
    ),
    "batches": Row(
        lambda x, y: jnp.einsum("bij,bkj->bik", x, y), [np.ones((2, 3, 4), "f4"), np.ones((2, 5, 4), "f4")], 1e-6
    ),
    **{f"take {mode}": Row(take(mode), [GRID, np.array([0, 5, -1, -9, 2], "i4")]) for mode in ("fill", "clip", "wrap")},
    "take integers": Row(take("fill"), [WHOLE, np.array([0, 5, -1, -9, 2], "i4")]),
    "take truths": Row(take("fill"), [TRUTHS, np.array([0, 5, -1, -9, 2], "i4")]),
    "take along": Row(lambda x, i: jnp.take_along_axis(x, i, 1), [GRID, np.array([[0], [7], [3]], "i4")]),
    "slice": Row(lambda x: x[::2, 1:3], [GRID]),
    **{
        f"dynamic slice at {i}": Row(lambda x, i: lax.dynamic_slice(x, (i, i), (2, 3)), [GRID, np.int32(i)])
        for i in (-5, 0, 1, 9)
    },
    **{
        f"dynamic update at {i}": Row(
            lambda x, u, i: lax.dynamic_update_slice(x, u, (i, i)), [GRID, GRID[:2, :3] + 1, np.int32(i)]
        )
        for i in (-5, 0, 1, 9)
    },
    "pad": Row(lambda x: lax.pad(x, np.float32(NAN), [(1, 2, 0), (0, 1, 0)]), [GRID]),
    "pad integers": Row(lambda x, k: lax.pad(x, k, [(1, 2, 0), (0, 1, 0)]), [WHOLE, np.int32(7)]),
    "reverse": Row(lambda x: lax.rev(x, (0, 1)), [GRID]),
    "transpose": Row(jnp.transpose, [GRID]),
    "shapes": Row(lambda x: jnp.squeeze(x[None].reshape(1, 2, 6)), [GRID]),
    "broadcast": Row(lambda x: jnp.broadcast_to(x[:, None], (16, 2)), [FLOATS]),
    "expand": Row(lambda x: lax.expand_dims(x, (0, 2)), [FLOATS]),
    "concatenate": Row(lambda x, y: jnp.concatenate([x, y]), [GRID, GRID]),
    "stack": Row(lambda x, y: jnp.stack([x, y], 1), [GRID, GRID]),
    "split": Row(lambda x: lax.split(x, (1, 3), 1), [GRID]),
    "literals": Row(lambda x: x * jnp.full((3, 4), 0.7) + jnp.where(x > 0, jnp.full((3, 4), 3), 1), [GRID]),
    "iota": Row(lambda x: x + lax.broadcasted_iota(jnp.int32, (3, 4), 1), [WHOLE]),
    "counted": Row(counted, [np.float32(0.25)], 1e-6),
}


def names(jaxpr: Any) -> set[str]:
    """Of all primitives of a jaxpr."""
    found = set()
    for eqn in jaxpr.eqns:
        found.add(eqn.primitive.name)
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            found |= names(inner) if hasattr(inner, "eqns") else set()
    return found


def compare(found: Sequence[Any], expected: Sequence[Any], near: float) -> None:
    for own, right in zip(found, expected, strict=True):
        assert str(own.dtype).removeprefix("torch.") == right.dtype.name
        wide = right.astype("f8")
        own = own.to(torch.float64).numpy()
        np.testing.assert_allclose(own, wide, rtol=near, atol=0)
        zero = wide == 0
        assert (np.signbit(own) == np.signbit(wide))[zero].all()


@pytest.mark.parametrize(
    ("name", "known"),
    [
        (k, x)
        for k, row in ROWS.items()
        for x in ("nothing", "the last", "all")
        if len(row.inputs) > 1 or x != "the last"
    ],
)
def test_an_operation_gives_what_jax_gives(name: str, known: str) -> None:
    function, inputs, near = ROWS[name]
    count = {"nothing": len(inputs), "the last": len(inputs) - 1, "all": 0}[known]
    given, constants = inputs[:count], inputs[count:]
    expected = [np.asarray(x) for x in jax.tree.leaves(jax.jit(function)(*inputs))]
    closed = jax.make_jaxpr(lambda *xs: jax.tree.leaves(function(*xs, *map(jnp.asarray, constants))))(*given)
    compare(convert(closed, torch.device("cpu")).run(*map(tensor, given)), expected, near)


def tensor(x: Any) -> Any:
    """An array in PyTorch, which cannot take halves of NumPy."""
    half = x.dtype == jnp.bfloat16
    return torch.from_numpy(np.array(x, "f4")).to(torch.bfloat16) if half else torch.from_numpy(np.array(x))


def test_every_operation_of_the_table_is_compared() -> None:
    seen: set[str] = set()
    for row in ROWS.values():
        seen |= names(jax.make_jaxpr(row.function)(*row.inputs).jaxpr)
    listed = {
        *operations.UNARY,
        *operations.BINARY,
        *operations.REDUCTIONS,
        *operations.CUMULATIVE,
        *operations.FLAT_REDUCTIONS,
    }
    assert {*listed, *operations.FORMS} - seen == {"expand_dims"}  # which JAX writes as another


REFUSED: dict[str, tuple[Callable[..., Any], Any, str]] = {
    "unsigned integers": (lambda x: x + x, np.array([2**32 - 1], "u4"), "computes with uint32"),
    "halves within": (lambda x: lax.reduce_precision(x, 5, 10), FLOATS, "reduces float32 to 5 and 10 bits"),
    "bits of integers": (lambda x: lax.reduce_and(x, [0]), INTS, "reduce_and of integers"),
    "complex": (lambda x: lax.complex(x, x), FLOATS, "computes with complex64"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_operation_is_refused(case: str) -> None:
    function, given, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        convert(jax.make_jaxpr(function)(given), torch.device("cpu"))
