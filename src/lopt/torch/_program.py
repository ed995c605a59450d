"""A jaxpr as a function of PyTorch tensors.

What depends on constants alone is computed once, equal expressions are written once, and what does not change within a loop is computed
before it. The result is plain Python source, one operation of PyTorch a line, which runs eagerly or under `torch.compile`.
"""

from __future__ import annotations

import itertools
import linecache
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

from lopt.errors import InputError, needs_extra
from lopt.torch._operations import Number, cut, dtype, expression, number, takes_numbers
from lopt.torch._source import NAME, Block, Line, Loop, render

with needs_extra("torch"):
    import torch

FOLD = 4_096  # numbers of a constant; larger ones are made anew at each step rather than kept
CALLS = {"closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "jit", "pjit", "remat", "checkpoint"}
ACCELERATOR = "cuda"  # whose branch is taken where a rule has one for each platform: no loops over chunks

# What is computed on numbers of the host: counters of loops and what is made of them.
HOST: dict[str, tuple[str, Callable[..., Any]]] = {
    "add": ("({} + {})", operator.add),
    "sub": ("({} - {})", operator.sub),
    "mul": ("({} * {})", operator.mul),
    "max": ("max({}, {})", max),
    "min": ("min({}, {})", min),
    "lt": ("({} < {})", operator.lt),
    "le": ("({} <= {})", operator.le),
    "gt": ("({} > {})", operator.gt),
    "ge": ("({} >= {})", operator.ge),
    "eq": ("({} == {})", operator.eq),
    "ne": ("({} != {})", operator.ne),
    "select_n": ("({2} if {0} else {1})", lambda which, no, yes: yes if which else no),
    "convert_element_type": ("int({})", int),
}
WRAPS = {"add", "sub", "mul", "convert_element_type"}
Counters = dict[str, int]


class Value(NamedTuple):
    """What a variable of the jaxpr stands for."""

    text: str
    depth: int = 0  # of the loops around it
    known: torch.Tensor | None = None  # a constant
    host: Callable[[Counters], Any] | None = None  # a number of the host, given the counters of the loops


class Program(NamedTuple):
    """A function of tensors.

    Attributes:
        run: takes the inputs of the jaxpr and returns its outputs.
        source: of `run`.
        operations: lines of the source that are operations of PyTorch.
    """

    run: Callable[..., list[torch.Tensor]]
    source: str
    operations: int


def convert(closed: core.ClosedJaxpr, device: torch.device) -> Program:
    """Write a jaxpr as a function of tensors on a device.

    Args:
        closed: the jaxpr.
        device: where constants are put.

    Raises:
        InputError: for a primitive without an operation in PyTorch, and for a loop whose length depends on numbers of a tensor.
    """
    return _Writer().program(closed, device)


class _Writer:
    def __init__(self) -> None:
        self.blocks = [Block()]
        self.constants: dict[str, torch.Tensor] = {}
        self.names: dict[Any, str] = {}
        self.counters: dict[str, int] = {}  # of the loops around what is written, and their lengths
        self.buffers: set[str] = set()  # tensors that a loop overwrites part by part
        self.numbered = itertools.count()

    def program(self, closed: core.ClosedJaxpr, device: torch.device) -> Program:
        jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
        del used
        arguments = [f"a{i}" for i in range(len(jaxpr.invars))]
        outs = self.inline(jaxpr, closed.consts, [Value(a) for a in arguments])
        results = [self.tensor(v, o.aval) for v, o in zip(outs, jaxpr.outvars, strict=True)]
        body, operations = render(self.blocks[0], results)
        source = f"def run({', '.join(arguments)}):\n{body}    return [{', '.join(results)}]\n"
        space: dict[str, Any] = {
            "torch": torch,
            "device": device,
            **{k: x.to(device) for k, x in self.constants.items()},
        }
        file = f"<lopt.torch {id(self)}>"  # so that tracebacks show the line
        linecache.cache[file] = (len(source), None, source.splitlines(True), file)
        exec(compile(source, file, "exec"), space)
        return Program(space["run"], source, operations)

    # Values.

    def constant(self, given: Any, kind: Any = None) -> Value:
        array = np.asarray(given, kind)  # a literal may be a number of Python, of more digits than its kind has
        if array.dtype.name == "bfloat16":
            return self.known(torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16))
        return self.known(torch.from_numpy(np.array(array, order="C")))

    def known(self, tensor: torch.Tensor) -> Value:
        return Value("" if tensor.ndim else number(tensor), known=tensor)

    def tensor(self, value: Value, aval: Any) -> str:
        """The name of a value as a tensor."""
        if value.host is not None:
            text = f"torch.full({tuple(aval.shape)}, {value.text}, dtype={dtype(aval.dtype)}, device=device)"
            return self.line(text, value.depth)
        if value.known is None:
            return value.text
        x = value.known
        # Small constants that are equal are one; the large ones, views of a number mostly, are told apart by what holds them.
        alike = x.tolist() if x.numel() <= FOLD else id(x)
        name = self.names.setdefault(repr((tuple(x.shape), x.dtype, alike)), f"k{len(self.names)}")
        self.constants[name] = x
        return name

    def operand(self, value: Value, aval: Any, takes_numbers: bool) -> str:
        """A value as a number, where the operation takes them and it is one, or else as a tensor."""
        if takes_numbers and (value.host is not None or (value.known is not None and not value.known.ndim)):
            return Number(value.text)
        return self.tensor(value, aval)

    def line(self, text: str, depth: int) -> str:
        """The name of an expression, written in the outermost loop where its operands are known."""
        if NAME.fullmatch(text):
            return text
        return self.write(text, depth, 1)[0]

    def write(self, text: str, depth: int, count: int) -> list[str]:
        """The names of the values of an expression."""
        block = self.blocks[depth]
        if text not in block.seen:
            label = self.fresh("v")
            block.seen[text] = [label] if count == 1 else [f"{label}_{i}" for i in range(count)]
            block.items.append(Line(block.seen[text], text))
        return block.seen[text]

    def fresh(self, kind: str) -> str:
        """A name that is not used yet."""
        return f"{kind}{next(self.numbered)}"

    def state(self, text: str, depth: int, names: Sequence[str] = ()) -> None:
        """Write a line that is not shared with equal ones."""
        self.blocks[depth].items.append(Line(names, text))

    # Equations.

    def inline(self, jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Value]) -> list[Value]:
        """The values of the results of a jaxpr."""
        found = dict(zip(jaxpr.constvars, (self.constant(c) for c in consts), strict=True))
        found |= dict(zip(jaxpr.invars, args, strict=True))

        def read(v: Any) -> Value:
            return self.constant(v.val, getattr(v.aval, "dtype", None)) if isinstance(v, core.Literal) else found[v]

        for eqn in jaxpr.eqns:
            found |= dict(zip(eqn.outvars, self.equation(eqn, [read(v) for v in eqn.invars]), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn: Any, args: list[Value]) -> list[Value]:
        """The values of the results of an equation."""
        name, p = eqn.primitive.name, eqn.params
        if name in CALLS:
            inner = next(p[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in p)
            return self.inline(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), args)
        if name == "optimization_barrier":
            return args
        if name == "platform_index":
            chosen = [i for i, platforms in enumerate(p["platforms"]) if platforms is None or ACCELERATOR in platforms]
            return [self.known(torch.tensor(chosen[0], dtype=torch.int32))]
        if name == "cond":
            return self.cond(eqn, args)
        if name == "scan":
            return self.scan(eqn, args) if p["num_carry"] else self.map(eqn, args)
        if name == "while":
            raise InputError(
                "The rule has a loop whose length depends on what it computes; lopt.torch has no such loops."
            )
        if all(v.known is not None for v in args) and sum(o.aval.size for o in eqn.outvars) <= FOLD:
            return [self.known(x) for x in self.fold(eqn, args)]
        numbers = [v.host is not None or (v.known is not None and not v.known.ndim) for v in args]
        if all(numbers) and computes_on_host(eqn):
            return [self.host(eqn, args)]
        return self.emit(eqn, args)

    def emit(self, eqn: Any, args: list[Value]) -> list[Value]:
        """An equation as an expression of tensors."""
        name, depth = eqn.primitive.name, max((v.depth for v in args), default=0)
        first = {"dynamic_slice": 1, "dynamic_update_slice": 2}.get(name, len(args))
        able = takes_numbers(eqn)
        texts = [
            self.operand(v, o.aval, i in able or i >= first)
            for i, (v, o) in enumerate(zip(args, eqn.invars, strict=True))
        ]
        if first == len(args) and all(isinstance(x, Number) for x in texts):
            texts = [self.tensor(v, o.aval) for v, o in zip(args, eqn.invars, strict=True)]
        if first < len(args) and all(isinstance(i, Number) for i in texts[first:]):
            piece = eqn.outvars[0].aval.shape if first == 1 else eqn.invars[1].aval.shape
            where = cut(texts[first:], piece, eqn.invars[0].aval.shape)
            return [
                Value(
                    self.read(texts[0], where, depth)
                    if first == 1
                    else self.overwrite(texts[0], where, texts[1], depth),
                    depth,
                )
            ]
        if first < len(args):
            texts = [self.tensor(v, o.aval) for v, o in zip(args, eqn.invars, strict=True)]
        text = expression(eqn, texts)
        return [Value(label, depth) for label in self.results(text, depth, len(eqn.outvars))]

    def results(self, text: str, depth: int, count: int) -> list[str]:
        """The names of the results of an expression, which may be a name itself."""
        return [self.line(text, depth)] if count == 1 else self.write(text, depth, count)

    def read(self, x: str, where: str, depth: int) -> str:
        """The name of a part of a tensor; a copy of it where the tensor is overwritten later."""
        return self.line(f"{x}[{where}]" + ".clone()" * (x in self.buffers), depth)

    def overwrite(self, x: str, where: str, update: str, depth: int) -> str:
        """The name of a tensor of which a part is another; the tensor itself where nothing else reads it."""
        if x in self.buffers:
            self.state(f"{x}[{where}] = {update}", depth)
            return x
        copied = self.fresh("v")
        self.state(f"{x}.clone()", depth, [copied])
        self.state(f"{copied}[{where}] = {update}", depth)
        return copied

    def fold(self, eqn: Any, args: list[Value]) -> list[torch.Tensor]:
        """The values of an equation of constants."""
        space = {f"x{i}": v.known for i, v in enumerate(args)}
        try:
            text = expression(eqn, list(space))
        except InputError:  # such as random numbers
            given = [v.known.numpy() for v in args if v.known is not None]
            found = eqn.primitive.bind(*given, **eqn.params)
            found = found if eqn.primitive.multiple_results else [found]
            return [torch.from_numpy(np.array(x)) for x in found]
        result = eval(text, {"torch": torch, "device": torch.device("cpu"), **space})
        return list(result) if isinstance(result, tuple) else [result]

    def host(self, eqn: Any, args: list[Value]) -> Value:
        """A number of the host made of others."""
        fns = [v.host or partial(_the_same, v.known) for v in args]
        depth, kind = max(v.depth for v in args), np.dtype(eqn.outvars[0].aval.dtype)
        text, fn = HOST[eqn.primitive.name]
        written = text.format(*(v.text for v in args))
        if eqn.primitive.name not in WRAPS:
            return Value(written, depth, host=lambda c: fn(*(f(c) for f in fns)))
        # Integers of Python have no bounds; those of JAX wrap around.
        low, count = int(np.iinfo(kind).min), 2 ** (8 * kind.itemsize)
        wrapped = f"(({written} - {low}) % {count} + {low})"
        return Value(wrapped, depth, host=lambda c: (fn(*(f(c) for f in fns)) - low) % count + low)

    # Branches and loops.

    def cond(self, eqn: Any, args: list[Value]) -> list[Value]:
        """The branch that is always taken, or a choice among the results of all."""
        index, branches, rest = args[0], eqn.params["branches"], args[1:]
        which = self.decided(index)
        if which is not None:
            chosen = branches[max(0, min(int(which), len(branches) - 1))]
            return self.inline(chosen.jaxpr, chosen.consts, rest)
        found = [self.inline(b.jaxpr, b.consts, rest) for b in branches]
        text, results = self.tensor(index, eqn.invars[0].aval), []
        for values, var in zip(zip(*found, strict=True), eqn.outvars, strict=True):
            chosen, *others = (self.tensor(v, var.aval) for v in values)
            depth = max(index.depth, *(v.depth for v in values))
            for i, other in enumerate(others, 1):
                chosen = self.line(f"torch.where({text} >= {i}, {other}, {chosen})", depth)
            results.append(Value(chosen, depth))
        return results

    def decided(self, index: Value) -> Any:
        """The one value of an index whatever the counters are; `None` if there is no such."""
        if index.known is not None:
            return index.known.item()
        if index.host is None:
            return None
        turns = itertools.product(*(range(n) for n in self.counters.values()))
        values = {index.host(dict(zip(self.counters, turn, strict=True))) for turn in turns}
        return values.pop() if len(values) == 1 else None

    def map(self, eqn: Any, args: list[Value]) -> list[Value]:
        """A loop that carries nothing: all its turns at once."""
        p = eqn.params
        axes = [None if i < p["num_consts"] else 0 for i in range(len(args))]
        given = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
        body = jax.vmap(core.jaxpr_as_fun(p["jaxpr"]), axes, axis_size=p["length"])
        batched = jax.make_jaxpr(body)(*given)
        return self.inline(batched.jaxpr, batched.consts, args)

    def scan(self, eqn: Any, args: list[Value]) -> list[Value]:
        """A loop that carries something, as a loop of Python."""
        p, body = eqn.params, eqn.params["jaxpr"].jaxpr
        first, end, length = p["num_consts"], p["num_consts"] + p["num_carry"], p["length"]
        depth, counter, inside, outside = len(self.blocks), self.fresh("i"), args[:first], []
        rebound: dict[int, str] = {}  # what is carried, by its place among the results of the body
        for k, value in enumerate(args[first:end]):
            var, result = body.invars[first + k], body.outvars[k]
            if result is var:
                inside.append(value)
                outside.append(value)
                continue
            step = increment(body, var, result)
            if step is not None and value.known is not None:
                begin = int(value.known.item())
                count = partial(_count, counter, begin, step)
                inside.append(Value(f"({begin} + {counter} * {step})", depth, host=count))
                outside.append(self.constant(np.asarray(begin + length * step).astype(var.aval.dtype)))
                continue
            name, buffer = self.fresh("c"), is_overwritten(body, var, result)
            self.state(self.tensor(value, var.aval) + ".clone()" * buffer, depth - 1, [name])
            self.buffers |= {name} if buffer else set()
            rebound |= {} if buffer else {k: name}
            inside.append(Value(name, depth))
            outside.append(Value(name, depth - 1))
        self.blocks.append(Block())
        self.counters[counter] = length
        turn = f"{length - 1} - {counter}" if p["reverse"] else counter
        for x, var in zip(args[end:], eqn.invars[end:], strict=True):
            inside.append(Value(self.line(f"{self.tensor(x, var.aval)}.select(0, {turn})", depth), depth))
        outs = self.inline(body, p["jaxpr"].consts, inside)
        texts = [
            self.tensor(v, o.aval) if k in rebound or k >= end - first else ""
            for k, (v, o) in enumerate(zip(outs, body.outvars, strict=True))
        ]
        if rebound:
            self.state(f"{', '.join(rebound.values())} = {', '.join(texts[k] for k in rebound)}", depth)
        for text in texts[end - first :]:
            name = self.fresh("c")
            self.state("[]", depth - 1, [name])
            self.state(f"{name}.append({text})", depth)
            outside.append(Value(name, depth - 1))
        self.blocks[depth - 1].items.append(Loop(counter, length, self.blocks.pop()))
        del self.counters[counter]
        self.buffers -= {v.text for v in outside}
        order = "[::-1]" if p["reverse"] else ""
        stacked = [
            Value(self.line(f"torch.stack({v.text}{order})", depth - 1), depth - 1) for v in outside[end - first :]
        ]
        return [*outside[: end - first], *stacked]


def computes_on_host(eqn: Any) -> bool:
    """Whether Python computes what JAX does, given numbers: integers and truths; its floats have more digits than those of a rule."""
    name, kinds = eqn.primitive.name, [np.dtype(v.aval.dtype).kind for v in (*eqn.invars, *eqn.outvars)]
    if name == "select_n" and len(eqn.invars) != 3:
        return False
    return name in HOST and all(kind in "biu" for kind in kinds) and not (name in WRAPS and kinds[-1] == "b")


def increment(jaxpr: core.Jaxpr, var: core.Var, result: Any) -> int | None:
    """What a loop adds to an integer at each turn, if that is all it does to it."""
    for eqn in jaxpr.eqns:
        if (
            result in eqn.outvars
            and eqn.primitive.name == "add"
            and np.issubdtype(getattr(var.aval, "dtype", np.float32), np.integer)
        ):
            steps = [v.val for v in eqn.invars if isinstance(v, core.Literal)]
            return int(steps[0]) if len(steps) == 1 and any(v is var for v in eqn.invars) else None
    return None


def is_overwritten(jaxpr: core.Jaxpr, var: core.Var, result: Any) -> bool:
    """Whether a loop does nothing to what it carries but read parts of it and then overwrite one, so that this may be done in place."""
    users = [eqn for eqn in jaxpr.eqns if any(v is var for v in eqn.invars)]
    if (
        not users
        or not any(o is result for o in users[-1].outvars)
        or any(v is result for e in jaxpr.eqns for v in e.invars)
    ):
        return False
    *readers, writer = users
    alone = writer.invars[0] is var and not any(v is var for v in writer.invars[1:])
    return (
        alone
        and writer.primitive.name == "dynamic_update_slice"
        and all(eqn.primitive.name == "dynamic_slice" for eqn in readers)
        and sum(o is result for o in jaxpr.outvars) == 1
        and not any(o is var for o in jaxpr.outvars)
    )


def _count(counter: str, begin: int, step: int, counters: Counters) -> int:
    return begin + counters[counter] * step


def _the_same(known: torch.Tensor | None, counters: Counters) -> Any:
    del counters
    return known.item() if known is not None else None
