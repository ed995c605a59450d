"""Saved optimizers: `NAME.safetensors` with the weights, `NAME.json` with the card."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from lopt import checkpoint
from lopt.blocks.nets import shapes_only
from lopt.checkpoint import CheckpointError
from lopt.errors import InputError
from lopt.names import tuples, unknown
from lopt.optimizer import Optimizer
from lopt.optimizers import OPTIMIZERS, create
from lopt.tasks.naming import TaskName
from lopt.version import __version__

FOLDER = Path(__file__).parent
RELEASED = "general-2"  # meta-trained for hours, for general use: what is taken where no optimizer is named


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """How a saved optimizer came about. `save` fills in the second half."""

    description: str = ""
    tasks: tuple[
        dict[str, Any], ...
    ] = ()  # the mixture it was meta-trained on, as `lopt.tasks.TaskName.to_json` has each
    seed: int | None = None
    meta_steps: int = 0
    inner_steps: int = 0  # over all particles
    horizon: tuple[int, int] | None = None  # shortest and longest inner problem seen, inner steps
    seconds: float | None = None  # wall-clock of the meta-training
    cores: int | None = None
    command: str = ""
    licence: str = "Apache-2.0"

    optimizer: str = ""  # architecture, as in `lopt list`
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)  # and its constructor's arguments
    meta_parameters: int = 0
    lopt_version: str = ""
    sha256: str = ""  # of the weights file

    @property
    def mixture(self) -> str:
        """The tasks that it was meta-trained on, as text."""
        return ", ".join(str(TaskName.from_json(task)) for task in self.tasks)

    @property
    def fingerprint(self) -> str:
        """What tells saved optimizers apart, a SHA-256 of all that decides what they do: architecture, fields and weights. The file holds it too."""
        return hashlib.sha256(
            json.dumps([self.optimizer, self.fields, self.sha256], sort_keys=True).encode()
        ).hexdigest()


def save(path: str | Path, optimizer: Optimizer, card: Card | None = None) -> Path:
    """Write an optimizer as `path` (safetensors) and its card beside it (JSON), each by write-then-rename.

    Args:
        path: a file name; `.safetensors` is added where it is missing.
        optimizer: what to save; one of `lopt list`.
        card: what is known of its making.

    Returns:
        The path of the weights.

    Raises:
        InputError: for an optimizer that is not registered and so could not be loaded again.
    """
    kinds = {kind: name for name, kind in OPTIMIZERS.items()}
    if type(optimizer) not in kinds:
        raise InputError(f"{type(optimizer).__name__} cannot be saved; savable are: {', '.join(OPTIMIZERS)}.")
    weights, card_path = _files(Path(path))
    content = checkpoint.to_bytes(optimizer)
    card = dataclasses.replace(
        card or Card(),
        optimizer=kinds[type(optimizer)],
        fields={f.name: getattr(optimizer, f.name) for f in dataclasses.fields(optimizer) if f.metadata.get("static")},
        meta_parameters=sum(leaf.size for leaf in jax.tree.leaves(optimizer)),
        lopt_version=__version__,
        sha256=hashlib.sha256(content).hexdigest(),
    )
    weights.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_bytes(weights, content)
    content = dataclasses.asdict(card) | {"fingerprint": card.fingerprint}
    checkpoint.write_text(card_path, json.dumps(content, indent=2) + "\n")
    return weights


def load(name_or_path: str | Path, **fields: Any) -> Optimizer:
    """Load a saved optimizer.

    Args:
        name_or_path: a name that `available` lists, or the path of a `.safetensors` file with its card beside it.
        **fields: arguments of its constructor in place of those on the card, such as `low_memory=True` for `general-2`.

    Raises:
        InputError: for a name or a path at which there is nothing, with the nearest names; for fields that the optimizer does not have, whose
            values it refuses, or that need other weights.
        CheckpointError: for a card or a weights file that is damaged, truncated, changed or of another architecture, and for a card
            that is missing.

    Examples:
        >>> import jax, lopt, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> path = lopt.save(f"{folder}/mine", lopt.create("small_fc", key=jax.random.key(0)))
        >>> lopt.load(path).hidden
        (4, 4)
        >>> lopt.load(path, step_mult=1e-2).step_mult
        0.01
    """
    weights, _ = _find(name_or_path)
    card = read_card(name_or_path)
    content = _read(weights)
    if hashlib.sha256(content).hexdigest() != card.sha256:
        raise CheckpointError(
            f"{weights} does not have the checksum on its card: it is damaged, truncated, or another file's card lies beside it."
        )
    if card.optimizer not in OPTIMIZERS:
        raise CheckpointError(
            unknown("optimizer", card.optimizer, OPTIMIZERS) + f" It is named on the card of {weights}."
        )
    try:
        like = _like(card.optimizer, card.fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The card of {weights} does not describe a {card.optimizer}: {error}") from error
    if fields:
        if "key" in fields:
            raise InputError(f"{weights.stem} has weights; no key draws them.")
        try:
            saved, like = like, _like(card.optimizer, card.fields | fields)
        except TypeError as error:
            raise InputError(str(error)) from error
        if _leaves(like) != _leaves(saved):
            given = ", ".join(f"{name}={value!r}" for name, value in fields.items())
            raise InputError(f"{given} needs weights of other shapes than {weights.stem} has.")
    return checkpoint.from_bytes(content, like, str(weights), checked=True)


def read_card(name_or_path: str | Path) -> Card:
    """The card of a saved optimizer, with a tuple for every list in its file. Arguments and errors as for `load`."""
    _, path = _find(name_or_path)
    try:
        raw = json.loads(_read(path))
        if not all(isinstance(task, dict) for task in raw.get("tasks", ())):
            raise ValueError("its tasks are texts, as before version 0.2; save the optimizer again")
        known = {f.name for f in dataclasses.fields(Card)}
        card = Card(**{k: tuples(v) for k, v in raw.items() if k in known})
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a card, or is damaged: {error}.") from error
    for name, kind in (("optimizer", str), ("sha256", str), ("fields", dict)):
        value = getattr(card, name)
        if not isinstance(value, kind) or value == "":
            raise CheckpointError(f"{path} is not a card: its {name} is {value!r}.")
    if raw.get("fingerprint") != card.fingerprint:
        raise CheckpointError(
            f"{path} does not have its own fingerprint: its optimizer, its fields or its sha256 were changed or damaged after it was saved."
        )
    return card


def available() -> list[str]:
    """Names of the saved optimizers in this installation."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def _like(optimizer: str, fields: dict[str, Any]) -> Optimizer:
    """An optimizer of these fields, with shapes in place of arrays. Every field is of the type of its default, and every number finite."""
    for name, parameter in inspect.signature(OPTIMIZERS[optimizer]).parameters.items():
        value, default = fields.get(name), parameter.default
        if name not in fields or default is None or default is parameter.empty:
            continue
        number = isinstance(default, float) and type(value) in (int, float)
        if not number and type(value) is not type(default):
            raise TypeError(f"{name} is {value!r}; it must be like {default!r}.")
        for part in jax.tree.leaves(value):
            if isinstance(part, float) and not math.isfinite(part):
                raise InputError(f"{name} is {value!r}; it must be finite.")
    with shapes_only():
        return eqx.filter_eval_shape(lambda: create(optimizer, **fields))


def _leaves(optimizer: Optimizer) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights by their names."""
    return {jax.tree_util.keystr(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(optimizer)}


def _find(name_or_path: str | Path) -> tuple[Path, Path]:
    text = str(name_or_path)
    if text in available():
        return _files(FOLDER / text)
    if text in OPTIMIZERS:
        raise InputError(
            f"{text} is an optimizer without weights: create({text!r}) builds it. Saved are: {', '.join(available())}."
        )
    if not Path(text).name:
        raise InputError(unknown("saved optimizer", text, available()))
    weights, card = _files(Path(text))
    if not weights.exists():
        nearest = unknown("saved optimizer", text, available())
        raise InputError(f"{nearest} There is no file {weights}.")
    if not card.exists():
        raise CheckpointError(f"{weights} has no card: {card} is missing.")
    return weights, card


def _files(path: Path) -> tuple[Path, Path]:
    weights = path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")
    return weights, weights.with_suffix(".json")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error


__all__ = ["Card", "CheckpointError", "available", "load", "read_card", "save"]
