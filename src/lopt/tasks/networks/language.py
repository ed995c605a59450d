"""Predict the next character of real text with a recurrent network or a transformer."""

from __future__ import annotations

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import one_of, sizes
from lopt.errors import InputError
from lopt.tasks.data import text as texts
from lopt.tasks.networks.layers import Activation, Block, Function, Positions, function_of
from lopt.tasks.networks.learning import ClassificationTask

Cell = Literal["rnn", "gru", "lstm"]


class VanillaCell(eqx.Module):
    r"""$h' = \tanh(W x + U h + b)$, started as equinox's other cells are. Source: Elman 1990."""

    x: eqx.nn.Linear
    h: eqx.nn.Linear
    activation: Function  # a leaf, so that another may take its place

    def __init__(self, inputs: int, hidden: int, *, activation: Function, key: PRNGKeyArray):
        self.x = eqx.nn.Linear(inputs, hidden, key=key)
        self.h = eqx.nn.Linear(hidden, hidden, use_bias=False, key=key)
        self.activation = activation

    def __call__(self, x: Float[Array, " inputs"], h: Float[Array, " hidden"]) -> Float[Array, " hidden"]:
        """The next $h$."""
        return self.activation(self.x(x) + self.h(h))


class RecurrentNet(eqx.Module):
    """An embedding, a cell that goes over the characters, a linear layer."""

    embedding: eqx.nn.Embedding
    cell: Any
    head: eqx.nn.Linear

    def __call__(self, characters: Array) -> Float[Array, "length characters"]:
        """One piece of text, from a state of zeros."""
        inputs = jax.vmap(self.embedding)(characters)
        zeros = jnp.zeros(self.head.in_features, inputs.dtype)
        lstm = isinstance(self.cell, eqx.nn.LSTMCell)

        def step(state: Any, x: Array) -> tuple[Any, Array]:
            state = self.cell(x, state)
            return state, state[0] if lstm else state

        _, hidden = jax.lax.scan(step, (zeros, zeros) if lstm else zeros, inputs)
        return jax.vmap(self.head)(hidden)


class TransformerNet(eqx.Module):
    """An embedding with positions, causal transformer blocks, a norm, a linear layer."""

    embedding: eqx.nn.Embedding
    positions: Positions
    blocks: tuple[Block, ...]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __call__(self, characters: Array) -> Float[Array, "length characters"]:
        """One piece of text."""
        x = self.positions(jax.vmap(self.embedding)(characters))
        for block in self.blocks:
            x = block(x)
        return jax.vmap(lambda v: self.head(self.norm(v)))(x)


class CharRNN(ClassificationTask):
    r"""A recurrent network that predicts every next character of a piece of text.

    $$f(w; B) = -\frac{1}{|B| T} \sum_{c \in B} \sum_{t=1}^{T} \log p_w(c_{t+1} \mid c_1 \dots c_t)$$

    Args:
        text: pieces of text.
        cell: `rnn` (tanh), `gru` or `lstm`.
        hidden: numbers in the state.
        embedding: numbers that stand for a character.
        batch_size: pieces a minibatch.
        eval_size: pieces that `metrics` looks at; a split that is smaller is taken whole.
    """

    cell: Cell = eqx.field(static=True)
    hidden: int = eqx.field(static=True)
    embedding: int = eqx.field(static=True)

    def __init__(
        self,
        text: texts.Text,
        *,
        cell: Cell = "gru",
        hidden: int = 32,
        embedding: int = 16,
        batch_size: int = 16,
        eval_size: int = 500,
    ):
        sizes(batch_size=batch_size, eval_size=eval_size, hidden=hidden, embedding=embedding)
        one_of("cell", cell, Cell)
        super().__init__(text[:3], batch_size, eval_size, text.classes)
        self.cell, self.hidden, self.embedding = cell, hidden, embedding

    def network(self, key: PRNGKeyArray, activation: Function | None = None) -> RecurrentNet:
        """The recurrent network; `activation` takes the place of the tanh of `rnn`."""
        if self.cell == "rnn":
            cell = VanillaCell(self.embedding, self.hidden, activation=activation or jnp.tanh, key=key)
        else:
            kind = {"gru": eqx.nn.GRUCell, "lstm": eqx.nn.LSTMCell}[self.cell]
            cell = kind(self.embedding, self.hidden, key=key)
        embedding = eqx.nn.Embedding(self.classes, self.embedding, key=key)
        return RecurrentNet(embedding, cell, eqx.nn.Linear(self.hidden, self.classes, key=key))

    def logits(self, network: Any, inputs: Array, key: PRNGKeyArray, training: bool) -> Float[Array, "batch length c"]:
        """The logits of every next character."""
        del key, training
        return jax.vmap(network)(inputs)


class CharTransformer(ClassificationTask):
    r"""A small causal transformer that predicts every next character of a piece of text; loss as `CharRNN`.

    Args:
        text: pieces of text.
        width: numbers that stand for a character.
        depth: blocks.
        heads: of the attention; must divide the width.
        activation: of the MLPs: `relu`, `tanh`, `gelu`, `silu` or `sigmoid`.
        batch_size: pieces a minibatch.
        eval_size: pieces that `metrics` looks at; a split that is smaller is taken whole.

    Source: Vaswani et al. 2017.
    """

    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    activation: Activation = eqx.field(static=True)

    def __init__(
        self,
        text: texts.Text,
        *,
        width: int = 32,
        depth: int = 2,
        heads: int = 2,
        activation: Activation = "gelu",
        batch_size: int = 16,
        eval_size: int = 500,
    ):
        sizes(batch_size=batch_size, eval_size=eval_size, width=width, depth=depth, heads=heads)
        one_of("activation", activation, Activation)
        if width % heads:
            raise InputError(f"heads is {heads} and width {width}; heads must divide width.")
        super().__init__(text[:3], batch_size, eval_size, text.classes)
        self.width, self.depth, self.heads, self.activation = width, depth, heads, activation

    def network(self, key: PRNGKeyArray, activation: Function | None = None) -> TransformerNet:
        """The transformer."""
        function = activation or function_of(self.activation)
        blocks = [Block(self.width, self.heads, activation=function, causal=True, key=key) for _ in range(self.depth)]
        return TransformerNet(
            eqx.nn.Embedding(self.classes, self.width, key=key),
            Positions(self.train[0].shape[1], self.width),
            tuple(blocks),
            eqx.nn.LayerNorm(self.width),
            eqx.nn.Linear(self.width, self.classes, key=key),
        )

    def logits(self, network: Any, inputs: Array, key: PRNGKeyArray, training: bool) -> Float[Array, "batch length c"]:
        """The logits of every next character."""
        del key, training
        return jax.vmap(network)(inputs)


def char_rnn(
    *,
    text: texts.Prose = "prose",
    length: int = 32,
    cell: Cell = "gru",
    hidden: int = 32,
    embedding: int = 16,
    batch_size: int = 16,
    eval_size: int = 500,
) -> CharRNN:
    """Character model with a recurrent network, on `length` characters of `text`: `prose` or `source`. Other arguments as for `CharRNN`.

    Source: lopt's own; its plain cell is that of Elman 1990.
    """
    return CharRNN(
        texts.text(text, length),
        cell=cell,
        hidden=hidden,
        embedding=embedding,
        batch_size=batch_size,
        eval_size=eval_size,
    )


def char_transformer(
    *,
    text: texts.Prose = "prose",
    length: int = 32,
    width: int = 32,
    depth: int = 2,
    heads: int = 2,
    activation: Activation = "gelu",
    batch_size: int = 16,
    eval_size: int = 500,
) -> CharTransformer:
    """Character model with a transformer, on `length` characters of `text`. Other arguments as for `char_rnn` and `CharTransformer`."""
    return CharTransformer(
        texts.text(text, length),
        width=width,
        depth=depth,
        heads=heads,
        activation=activation,
        batch_size=batch_size,
        eval_size=eval_size,
    )
