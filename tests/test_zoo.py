"""Saved optimizers: what is written comes back, and what is not as written is refused in one sentence."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
import safetensors.numpy

import lopt
from lopt import zoo
from lopt.checkpoint import CheckpointError
from lopt.errors import InputError
from lopt.names import tuples
from lopt.optimizers import OPTIMIZERS, FromOptax
from lopt.zoo import Card
from registry import OptimizerRow, optimizer_rows_heavy_ones_slow


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A saved optimizer."""
    return lopt.save(tmp_path / "mine", lopt.create("small_fc", key=jax.random.key(0)))


def card_of(path: Path) -> Path:
    return path.with_suffix(".json")


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the card of a saved optimizer."""
    card = json.loads(card_of(path).read_text())
    change(card)
    card_of(path).write_text(json.dumps(card))


def sign(path: Path) -> None:
    """Put the checksum of the weights as they are now on the card, and the fingerprint of the card as it is now."""
    raw = json.loads(card_of(path).read_text()) | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    card = Card(**{k: tuples(v) for k, v in raw.items() if k != "fingerprint"})
    card_of(path).write_text(json.dumps(raw | {"fingerprint": card.fingerprint}))


def refusal(path: Path | str, kind: type[InputError] = CheckpointError) -> str:
    """The one sentence with which loading is refused."""
    with pytest.raises(kind) as caught:
        lopt.load(path)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message
    return message


@optimizer_rows_heavy_ones_slow
def test_round_trip_is_bit_exact(row: OptimizerRow, tmp_path: Path) -> None:
    optimizer = row.create(seed=3)
    path = lopt.save(tmp_path / "mine.safetensors", optimizer)
    loaded = lopt.load(path)
    assert type(loaded) is row.kind
    assert eqx.tree_equal(loaded, optimizer)
    # Written again it is the same file.
    assert lopt.save(tmp_path / "again", loaded).read_bytes() == path.read_bytes()


def test_static_fields_come_back(tmp_path: Path) -> None:
    optimizer = lopt.create("small_fc", hidden=(8,), step_mult=0.5, momentum_decays=(0.5, 0.6, 0.7))
    loaded = lopt.load(lopt.save(tmp_path / "mine", optimizer))
    assert loaded.hidden == (8,)  # pyright: ignore[reportAttributeAccessIssue]
    assert eqx.tree_equal(loaded, optimizer)
    assert not eqx.tree_equal(loaded, lopt.create("small_fc"))


def test_the_card_says_what_it_is(tmp_path: Path) -> None:
    optimizer = lopt.create("small_fc", key=jax.random.key(0), step_mult=0.002)
    made = Card(
        description="a description",
        tasks=({"name": "digits_mlp", "fields": {"widths": (8, 8)}},),
        seed=3,
        meta_steps=7,
        inner_steps=700,
        horizon=(100, 500),
        seconds=1.5,
        cores=2,
        command="lopt meta-train",
    )
    path = lopt.save(tmp_path / "mine", optimizer, made)
    raw = json.loads(card_of(path).read_text())
    assert set(raw) == {"fingerprint", *(field.name for field in dataclasses.fields(Card))}
    assert raw["optimizer"] == "small_fc"
    assert raw["fields"]["hidden"] == [4, 4]
    assert raw["fields"]["step_mult"] == 0.002
    assert raw["meta_parameters"] == 197
    assert raw["lopt_version"] == lopt.__version__
    assert raw["licence"] == "Apache-2.0"
    assert raw["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    card = zoo.read_card(path)
    for field in (
        "description",
        "tasks",
        "seed",
        "meta_steps",
        "inner_steps",
        "horizon",
        "seconds",
        "cores",
        "command",
    ):
        assert getattr(card, field) == getattr(made, field)


def test_the_weights_are_plain_safetensors(saved: Path) -> None:
    arrays = safetensors.numpy.load_file(saved)
    assert sum(a.size for a in arrays.values()) == 197
    assert {a.dtype for a in arrays.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["mine", "mine.safetensors", "mine.v2", "below/mine"])
def test_file_names(tmp_path: Path, name: str) -> None:
    path = lopt.save(tmp_path / name, lopt.create("sgd"))
    expected = name.removesuffix(".safetensors") + ".safetensors"
    assert path == tmp_path / expected
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([path.name, path.stem + ".json"]), (
        "no temporary file"
    )
    for given in (tmp_path / name, str(tmp_path / name), path):
        assert eqx.tree_equal(lopt.load(given), lopt.create("sgd"))


def test_saving_again_replaces(saved: Path) -> None:
    lopt.save(saved, lopt.create("adam", learning_rate=0.5))
    assert eqx.tree_equal(lopt.load(saved), lopt.create("adam", learning_rate=0.5))
    assert len(list(saved.parent.iterdir())) == 2


def test_a_failed_write_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in saved.parent.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        lopt.save(saved, lopt.create("adam"))
    assert {path: path.read_bytes() for path in saved.parent.iterdir()} == before


def test_weights_in_the_wheel_load_by_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "FOLDER", saved.parent)
    assert zoo.available() == ["mine"]
    assert eqx.tree_equal(lopt.load("mine"), lopt.load(saved))
    assert zoo.read_card("mine") == zoo.read_card(saved)
    assert "did you mean mine?" in refusal("mime", InputError)


def test_every_released_optimizer_loads() -> None:
    for name in zoo.available():
        optimizer, card = lopt.load(name), zoo.read_card(name)
        assert sum(leaf.size for leaf in jax.tree.leaves(optimizer)) == card.meta_parameters
        assert card.description


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_load_draws_no_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing the draws takes longer than all the rest of a first load."""
    path = lopt.save(tmp_path / "it", lopt.create(name))
    for draw in ("normal", "truncated_normal"):
        monkeypatch.setattr(jax.random, draw, lambda *_, **__: pytest.fail("weights were drawn"))
    lopt.load(path)


# --- What is refused. ---

refused = pytest.mark.usefixtures("unchecked")


def test_unknown_name() -> None:
    message = refusal("no_such_optimizer", InputError)
    assert "no_such_optimizer.safetensors" in message
    assert "There is no saved optimizer named 'no_such_optimizer'" in message


def test_fields_of_a_saved_optimizer_can_be_changed(tmp_path: Path) -> None:
    saved = lopt.create("small_fc", step_mult=0.5, key=jax.random.key(5))
    path = lopt.save(tmp_path / "mine", saved)
    changed = lopt.load(path, step_mult=0.25)
    assert changed.step_mult == 0.25  # pyright: ignore[reportAttributeAccessIssue]
    assert eqx.tree_equal(jax.tree.leaves(changed), jax.tree.leaves(saved))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"key": 3}, "mine has weights; no key draws them."),
        ({"hidden": (8,)}, "hidden=(8,) needs weights of other shapes than mine has."),
        (
            {"step_mlt": 0.1},
            "There is no field of optimizer small_fc named 'step_mlt'; did you mean step_mult or exp_mult?",
        ),
        ({"step_mult": "a"}, "step_mult is 'a'; it must be like 0.001."),
        ({"step_mult": float("nan")}, "step_mult is nan; it must be finite."),
    ],
)
def test_fields_that_a_saved_optimizer_cannot_have(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = lopt.save(tmp_path / "mine", lopt.create("small_fc"))
    with pytest.raises(InputError) as raised:
        lopt.load(path, **fields)
    assert message in str(raised.value)


def test_names_that_are_no_files() -> None:
    assert "There is no saved optimizer named ''" in refusal("", InputError)
    message = refusal("star", InputError)
    assert "star is an optimizer without weights: create('star') builds it. Saved are: " in message
    assert "general-1" in message


def test_missing_card(saved: Path) -> None:
    card_of(saved).unlink()
    assert "has no card" in refusal(saved)


def test_a_card_without_weights(saved: Path) -> None:
    saved.unlink()
    assert str(saved) in refusal(saved, InputError)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "3", '"card"', "{}", '{"optimizer": "sgd"}', '{"sha256": "0"}', "\x00\x01"]
)
def test_damaged_card(saved: Path, text: str) -> None:
    card_of(saved).write_text(text)
    message = refusal(saved)
    assert str(card_of(saved)) in message
    assert "not a card" in message


def test_a_card_that_is_no_text(saved: Path) -> None:
    card_of(saved).write_bytes(b"\xff\xfe\x00")
    assert "not a card" in refusal(saved)


def test_a_folder_in_the_place_of_a_file(saved: Path) -> None:
    saved.unlink()
    saved.mkdir()
    assert "cannot be read" in refusal(saved)


def test_wrong_checksum(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1
    saved.write_bytes(content)
    assert "checksum" in refusal(saved)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 50, -1])
def test_truncated_weights(saved: Path, kept: int) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    assert "checksum" in refusal(saved)
    sign(saved)
    assert "damaged or truncated" in refusal(saved)


def test_weights_of_another_architecture(saved: Path) -> None:
    other = lopt.save(saved.with_name("other"), lopt.create("adam"))
    saved.write_bytes(other.read_bytes())
    assert "checksum" in refusal(saved)
    sign(saved)
    message = refusal(saved)
    assert "belongs to another architecture" in message
    assert "log_learning_rate" in message


def test_weights_of_another_shape(saved: Path) -> None:
    other = lopt.save(saved.with_name("other"), lopt.create("small_fc", hidden=(4, 5)))
    saved.write_bytes(other.read_bytes())
    sign(saved)
    message = refusal(saved)
    assert "belongs to another architecture" in message
    assert "[4, 5]" in message
    assert "[4, 4]" in message


def test_weights_of_another_dtype(saved: Path) -> None:
    arrays = {name: array.astype(np.float16) for name, array in safetensors.numpy.load_file(saved).items()}
    saved.write_bytes(safetensors.numpy.save(arrays))
    sign(saved)
    message = refusal(saved)
    assert "float16" in message
    assert "float32" in message


@pytest.mark.parametrize("dropped", [0, -1])
def test_weights_with_a_tensor_missing(saved: Path, dropped: int) -> None:
    arrays = safetensors.numpy.load_file(saved)
    name = sorted(arrays)[dropped]
    del arrays[name]
    saved.write_bytes(safetensors.numpy.save(arrays))
    sign(saved)
    assert name in refusal(saved)


def test_unknown_optimizer_on_the_card(saved: Path) -> None:
    edit(saved, lambda card: card.update(optimizer="small_fx"))
    sign(saved)
    message = refusal(saved)
    assert "did you mean small_fc" in message
    assert str(saved) in message


@refused
@pytest.mark.parametrize(
    "fields",
    [
        {"hiden": [4, 4]},
        {"hidden": "wide"},
        {"hidden": 4},
        {"hidden": [-1]},
        {"momentum_decays": [2.0]},
        {"step_mult": "x"},
        {"step_mult": None},
        {"step_mult": True},
        {"step_mult": float("nan")},
        {"step_mult": float("inf")},
        {"momentum_decays": [0.9, float("nan"), 0.999]},
        [],
        [1],
        None,
        3,
    ],
)
def test_wrong_fields_on_the_card(saved: Path, fields: Any) -> None:
    edit(saved, lambda card: card.update(fields=fields))
    if isinstance(fields, dict):
        sign(saved)
    assert str(saved) in refusal(saved) or str(card_of(saved)) in refusal(saved)


@refused
@pytest.mark.parametrize(
    ("entry", "value"), [("optimizer", {}), ("optimizer", ["sgd"]), ("optimizer", 3), ("sha256", 3)]
)
def test_wrong_types_on_the_card(saved: Path, entry: str, value: Any) -> None:
    edit(saved, lambda card: card.update({entry: value}))
    assert str(saved) in refusal(saved) or str(card_of(saved)) in refusal(saved)


@pytest.mark.parametrize("value", [0.09, "x", None, float("nan")])
def test_a_card_whose_fields_were_changed(saved: Path, value: Any) -> None:
    lopt.load(saved)
    edit(saved, lambda card: card["fields"].update(step_mult=value))
    assert "does not have its own fingerprint" in refusal(saved)


def test_a_card_of_an_earlier_version(saved: Path) -> None:
    edit(saved, lambda card: card.update(tasks=["digits_mlp()"]))
    assert "before version 0.2" in refusal(saved)
    edit(saved, lambda card: card.update(tasks=[]))
    lopt.load(saved)
    edit(saved, lambda card: card.pop("fingerprint"))
    assert "does not have its own fingerprint" in refusal(saved)


def test_nested_tuples_come_back_as_tuples(tmp_path: Path) -> None:
    made = Card(tasks=({"name": "conv_net", "fields": {"filters": ((3, 3, 8), (3, 3, 16))}},), horizon=(1, 2))
    card = zoo.read_card(lopt.save(tmp_path / "it", lopt.create("sgd"), made))
    assert (card.tasks, card.horizon) == (made.tasks, made.horizon)


def test_cards_of_later_versions_may_say_more(saved: Path) -> None:
    edit(saved, lambda card: card.update(mood="good"))
    assert eqx.tree_equal(lopt.load(saved), lopt.create("small_fc", key=jax.random.key(0)))


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="FromOptax cannot be saved; savable are") as caught:
        lopt.save(tmp_path / "mine", FromOptax(optax.sgd(0.1)))
    assert all(name in str(caught.value) for name in OPTIMIZERS)
    assert not list(tmp_path.iterdir())
